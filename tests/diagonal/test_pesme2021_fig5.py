"""The study `pesme2021.fig5`: gradient descent from alpha_inf ends where SGD ended,
from other initialisations it does not, and every claim can fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from study_case import StudyCase

import sgfbias as sgf
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.pesme2021 import fig5


def like_own(rule):
    """A change of `rule_distance` that replaces the distances of one rule by those from
    alpha_inf.
    """
    return lambda v: np.stack([v[1] if k == rule else row for k, row in enumerate(v)])


@pytest.mark.slow
class TestFig5(StudyCase):
    study = "pesme2021.fig5"
    small = "--n 20 --d 50 --sparsity 3 --step-size .15 --steps 4000 --alpha .02"
    mutations = {
        "seeds that diverge": (
            "sgd_status",
            lambda v: np.where(np.arange(v.size) < 8, 3, v),
            "the iterates converge",
        ),
        "SGD no better": (
            "sgd_final_validation_error",
            lambda v: 50 * v,
            "final error of SGD is below",
        ),
        "no better from alpha_inf": (
            "again_final_validation_error",
            lambda v: 50 * v,
            "final error of gradient descent from alpha_inf is below",
        ),
        "restarts that diverge": (
            "again_status",
            lambda v: np.where(np.arange(v.size) < 8, 3, v),
            "the iterates converge",
        ),
        "no nearer": ("again_end_distance", lambda v: 50 * v, "ends closer to where SGD ends"),
        "something else": (
            "again_predicted",
            lambda v: 1.01 * v,
            "The offsets of both evolution laws",
        ),
        "offsets that do nothing": (
            "rule_distance",
            lambda v: v * np.where(np.arange(len(v)) == 1, 1e-6, 1)[:, None],
            "The offsets of both evolution laws",
        ),
        "any initialisation": ("rule_distance", lambda v: v[[0, 0, 0, 0, 0, 0]], "Control"),
        "half as far down does as well": ("rule_distance", like_own(3), "shrunk half as much"),
        "twice as far down does as well": ("rule_distance", like_own(4), "shrunk twice as much"),
        "another error": (
            "again_final_validation_error",
            lambda v: 20 * v,
            "The error of gradient descent from alpha_inf is closer",
        ),
    }
    refusals = [({"n": 100}, "n must be below d")]

    def test_every_claim_applies(self, made):
        assert all(claim.verdict != "not applicable" for claim in self.module.claims(made))

    def test_gradient_descent_from_alpha_inf_is_gradient_descent(self, made):
        """The vmapped runs of the study equal single runs of `simulate`."""
        config = self.module.config_of(made)
        problem, _ = draw(config)
        log_alpha = np.log(config.alpha) - made["shrinkage"].values[3]
        with jax.enable_x64(True):
            start = sgf.DiagonalNetwork.init(log_alpha=log_alpha, d=config.d, dtype=jnp.float64)
            runs = sgf.simulate(
                sgf.GradientDescent(config.step_size), start, problem, steps=config.steps
            )
        np.testing.assert_allclose(
            runs["validation_error"], made["again_validation_error"].values[3], rtol=1e-6
        )


def test_the_papers_size():
    assert (fig5.PAPER.steps, fig5.PAPER.alpha) == (100_000, 0.01)
    assert fig5.PAPER.seeds >= 64
