"""Tests of the study `noise-schedule`: a small run is complete, and on made-up errors
every claim can both hold and fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import failed, mutated
from study_case import StudyCase, small_run

from sgfbias.diagonal.studies.noise_schedule import GRADIENT_RUNS, RULES, Config
from sgfbias.diagonal.studies.noise_schedule.measure import means, one_run, schedule

TINY = Config(
    n=8, d=20, steps=80, pieces=4, train=16, held_out=32, iterations=4, grid=5, budget=4.0
)


def only(rule, change):
    """A function that changes the row of one schedule."""
    at = RULES.index(rule)
    return lambda v: np.stack([change(row) if k == at else row for k, row in enumerate(v)])


def some(row, value=np.nan):
    return np.where(np.arange(row.size) < 2, value, row)


def both(dataset, factor):
    """Enlarge all schedules by a factor, and the label noise that the runs spent."""
    return mutated(
        mutated(dataset, "delta", lambda v: v * factor), "spent", lambda v: v * factor**2
    )


@pytest.mark.slow
class TestNoiseSchedule(StudyCase):
    study = "noise-schedule"
    small = (
        "--n 8 --d 20 --steps 80 --pieces 4 --train 16 --held-out 32 --iterations 4 --grid 5 "
        "--budget 4"
    )
    mutations = {
        "a run that spends otherwise": ("spent", lambda v: v + 1e-6, "budget is kept"),
        "more than the budget": (lambda ds: both(ds, 1.01), "budget is kept"),
        "a constant as good": (
            "error",
            only("constant", lambda row: row / 5),
            "beats the best constant",
        ),
        "a cheaper grid": (
            "cost",
            lambda v: v * np.array([1.0, 0.9, 1.0]),
            "beats the best constant",
        ),
        "worst of all on two seeds": (
            "error",
            only("learned", lambda row: some(row, 1e12)),
            "beats the best constant",
        ),
        "all seeds lost": (
            "error",
            only("learned", lambda row: row * np.nan),
            "beats the best constant",
        ),
        "fitted to its problems": (
            "train_error",
            only("learned", lambda row: row / 10),
            "not fitted to",
        ),
        "no gain in training": (
            "train_error",
            only("learned", lambda row: row * 6),
            "not fitted to",
        ),
        "too few seeds to tell": (
            "error",
            only("learned", lambda row: some(row, 1e9)),
            "not fitted to",
        ),
        "a derivative that is off": (
            "slope",
            lambda v: v + 2e-5 * np.abs(v).max(),
            "true gradients",
        ),
        "many without a derivative": (
            "slope",
            lambda v: np.where(np.arange(16) < 2, np.nan, v),
            "true gradients",
        ),
        "seeds lost": ("error", only("learned", some), "Hardly any seed diverges"),
        "seeds lost in the search": (
            "search_excluded",
            lambda v: v + 1,
            "Hardly any seed diverges",
        ),
        "backwards as good": (
            "error",
            only("reversed", lambda row: row / 20),
            "Control: the learned schedule backwards",
        ),
    }
    refusals = [
        ({"steps": 1001}, "steps must be a whole number of pieces = 8, but is 1001"),
        ({"n": 50}, "n must be below d = 50"),
        ({"sparsity": 51}, "sparsity must be at most d = 50"),
    ]

    @classmethod
    def make(cls):
        """The small run with made-up errors for which every claim holds."""
        copy, rng = small_run(cls.study).copy(deep=True), np.random.default_rng(0)
        # The errors are in the order of `RULES`.
        middle = np.array([0.1, 0.5, 0.15, 0.6, 0.7, 2.0])[:, None]
        for name in ("error", "train_error"):
            copy[name].values = middle * np.exp(0.1 * rng.normal(size=copy[name].shape))
        return copy

    def claim(self, dataset, words):
        """The one claim whose statement contains these words."""
        (claim,) = [claim for claim in self.module.claims(dataset) if words in claim.statement]
        return claim

    def test_every_claim_can_hold(self, made):
        assert [claim.verdict for claim in self.module.claims(made)] == ["holds"] * 8

    @pytest.mark.parametrize(
        ("words", "rule"), [("best pulse", "pulse"), ("no label noise", "none")]
    )
    def test_what_informs_can_fail_without_breaking_the_study(self, made, words, rule):
        worse = mutated(made, "error", only(rule, lambda row: row / 10))
        assert self.claim(worse, words).verdict == "fails"
        assert failed(self.module, worse) == ""

    def test_lost_seeds_are_shown_and_count_against_the_claims(self, made):
        lost = mutated(made, "error", only("learned", some))
        assert self.claim(lost, "Hardly any seed diverges").verdict == "fails"
        measured = self.claim(lost, "beats the best constant").measured
        assert "2 of 32 pairs lost" in measured
        known = np.log(lost["error"][0].values / lost["error"][1].values)
        assert (
            f"{np.exp(np.where(np.isnan(known), np.nanmax(known), known).mean()):.3g} (" in measured
        )
        assert self.module.plot(lost) is not None

    def test_runs_that_are_lost_are_told_and_no_number_is_nan(self, made):
        lost = mutated(made, "spent", only("learned", some))
        assert "2 of 192 runs diverged" in self.claim(lost, "budget is kept").measured
        lost = mutated(made, "train_error", only("learned", some))
        assert "in training 2 of 16 pairs lost" in self.claim(lost, "not fitted to").measured
        nothing = mutated(made, "slope", lambda v: v * np.nan)
        assert "nan" not in self.claim(nothing, "true gradients").measured

    def test_a_small_run_is_complete_keeps_its_budget_and_follows_true_gradients(self):
        dataset = small_run(self.study)
        for words in ("budget is kept", "true gradients", "Hardly any seed diverges"):
            assert self.claim(dataset, words).verdict == "holds"
        assert dataset["error"].sizes == {"rule": 6, "seed": 32}
        assert dataset["search_value"][-1] < dataset["search_value"][0]
        cost = dict(zip(dataset["method"].values, dataset["cost"].values, strict=True))
        assert cost["search"] == 4 * 16 * GRADIENT_RUNS * 80
        assert cost["search"] <= cost["constant"] <= cost["search"] + 5 * 80
        assert cost["search"] <= cost["pulse"] <= cost["search"] + 12 * 80
        np.testing.assert_array_equal(
            dataset["delta"].sel(rule="reversed"), dataset["delta"].sel(rule="learned")[::-1]
        )
        assert not np.isin(
            dataset["error"].sel(rule="none"), dataset["train_error"].sel(rule="none")
        ).any()


def test_a_grid_point_that_loses_too_many_seeds_is_passed_over():
    logs = np.zeros((2, 40))
    logs[0, :3] = np.nan
    value, error, count = means(logs)
    assert np.isinf(value[0])
    assert (value[1], error[1], count.tolist()) == (0, 0, [3, 0])


def test_a_schedule_spends_at_most_the_budget_and_has_a_derivative_where_a_part_is_nothing():
    def spent(logits):
        return jnp.sum(jnp.square(schedule(TINY, logits))) * TINY.time / TINY.pieces

    assert float(spent(jnp.zeros(5))) == pytest.approx(4 / 5 * 4.0)
    nothing = jnp.array([0.0, -2000.0, 3.0, 1.0, -2000.0])
    assert float(spent(nothing)) == pytest.approx(4.0)
    assert bool(jnp.all(jnp.isfinite(jax.jacobian(lambda z: schedule(TINY, z))(nothing))))


@pytest.mark.slow
def test_noise_goes_where_the_schedule_says():
    """log alpha shows how much noise there was, but not when. The loss at the end does:
    it is larger after late noise, which has had less time to decay.
    """
    early, late = (
        one_run(TINY, jnp.asarray(v), jax.random.key(0)) for v in ([2.0, 0, 0, 0], [0, 0, 0, 2.0])
    )
    for outcome in (early, late):
        assert float(outcome.spent) == pytest.approx(4.0, rel=1e-12)
    assert float(late.loss) > 2 * float(early.loss)
