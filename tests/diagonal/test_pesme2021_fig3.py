"""The study `pesme2021.fig3`: bundles of runs overlap, the paper's scheme breaks the
equation of `w_+ w_-` as predicted, and every claim can fail.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from study_case import StudyCase

from sgfbias.diagonal.studies.pesme2021 import fig3
from sgfbias.diagonal.studies.pesme2021.fig3.claims import overlap
from sgfbias.diagonal.theory.effective import euler_scatter


@pytest.mark.slow
class TestFig3(StudyCase):
    study = "pesme2021.fig3"
    small = (
        "--n 20 --d 50 --sparsity 3 --step-size .15 --steps 4000 --scheme-steps 300 "
        "--path-steps 200 --alpha .02"
    )
    mutations = {
        "seeds that diverge": (
            "weights_status",
            lambda v: np.where(np.arange(v.size) < 8, 3, v),
            "the iterates converge",
        ),
        "bundles apart": (
            "sgf_final_validation_error",
            lambda v: 1e-3 * v,
            "The bundles of runs overlap",
        ),
        "bundles that overlap without the noise": (
            lambda ds: ds.assign(quiet_final_validation_error=ds["sgf_final_validation_error"]),
            "Control",
        ),
        "a flow that is not SGD's": (
            "sgf_final_validation_error",
            lambda v: 20 * v,
            "closer to SGD's than gradient descent's",
        ),
        "SGD no better": (
            "sgd_final_validation_error",
            lambda v: 50 * v,
            "final error of SGD is below",
        ),
        "a flow no better": (
            "sgf_final_validation_error",
            lambda v: 50 * v,
            "final error of the flow is below",
        ),
        "a law kept": ("path_break", lambda v: v / 3, "breaks log"),
        "an error that does not fall": (
            "path_break",
            lambda v: v[[1, 1, 1]],
            "falls as the square root",
        ),
        "a mirror system no better": (
            "path_distance",
            lambda v: v[[1, 1, 1, 1, 1]],
            "with dt = gamma/10 for both, the mirror system is closer",
        ),
    }
    refusals = [({"n": 100}, "n must be below d")]

    def test_every_claim_applies(self, made):
        assert all(claim.verdict != "not applicable" for claim in self.module.claims(made))

    def test_bundles_are_not_judged_where_the_laws_of_sgd_and_the_flow_differ(self, made):
        changed = made.assign(law_sgf_error=made["law_sgf_error"] * 100)
        for words in ("The bundles of runs overlap", "closer to SGD's", "of the flow is below"):
            (row,) = (row for row in self.module.claims(changed) if words in row.statement)
            assert row.verdict == "not applicable"
            assert row.reason


def test_the_papers_size():
    assert (fig3.PAPER.steps, fig3.PAPER.alpha) == (100_000, 0.01)
    assert fig3.PAPER.seeds >= 64


def test_overlap_is_the_probability_that_two_draws_meet():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), rng.normal(1.5, size=20)
    x, y = rng.choice(a, (40_000, 5)), rng.choice(b, (40_000, 5))
    met = np.mean((x.min(axis=1) <= y.max(axis=1)) & (y.min(axis=1) <= x.max(axis=1)))
    assert overlap(a, b) == pytest.approx(met, abs=0.01)
    assert overlap(a, a + 100) == pytest.approx(0, abs=1e-12)
    long = rng.normal(size=(2, 20_000))
    # With one distribution the ranges miss each other in two of the 252 ways to split
    # ten values into halves.
    assert overlap(*long) == pytest.approx(1 - 2 / 252, abs=1e-3)


def test_a_step_of_euler_scatters_as_the_break_of_the_law_says():
    """One Euler step in w from the initialisation, in NumPy: log(w_+ w_-) misses its
    equation by errors with standard deviation sqrt(2) 4 gamma h L dt.
    """
    rng, n, d, alpha, gamma, dt = np.random.default_rng(0), 10, 6, 0.1, 0.02, 0.001
    X = rng.normal(size=(n, d))
    # beta is 0 at the initialisation.
    residual = -X @ rng.normal(size=d)
    loss, h = np.mean(residual**2) / 4, np.mean(X**2, axis=0)
    noise = 2 * np.sqrt(gamma * loss / n) * rng.normal(0, np.sqrt(dt), (20_000, n)) @ X
    move = noise - X.T @ residual / n * dt
    plus, minus = alpha * (1 + move), alpha * (1 - move)
    broken_by = np.log(plus * minus) - (2 * np.log(alpha) - 4 * gamma * h * loss * dt)
    predicted = euler_scatter(jnp.full((1, 1), loss), step_size=gamma, dt=dt, spacing=dt)
    np.testing.assert_allclose(predicted, np.sqrt(2) * 4 * gamma * loss * dt)
    np.testing.assert_allclose(
        np.std(broken_by, axis=0) / h, np.broadcast_to(predicted, d), rtol=0.05
    )
