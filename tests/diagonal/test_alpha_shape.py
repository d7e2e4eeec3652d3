"""Tests of the study `alpha-shape`: at a tiny size whatever does not depend on size
holds, and on made-up errors every claim can hold and can fail.
"""

import numpy as np
import pytest
from helpers import mutated
from study_case import StudyCase, small_run

from sgfbias.diagonal.studies.alpha_shape import MOST_LOST
from sgfbias.diagonal.studies.alpha_shape.measure import best


def predicted(tiny):
    """A dataset in which everything is as predicted: the shape is found and carries
    over, and the controls come out as they should.
    """
    rng, copy, on = np.random.default_rng(0), tiny.copy(deep=True), tiny["support"].values
    level = {
        "held_learned": 0.003,
        "held_uniform": 0.3,
        "held_oracle": 0.003,
        "held_l1": 0.15,
        "held_elsewhere_learned": 2.0,
        "held_elsewhere_uniform": 0.3,
        "held_scattered_learned": 0.4,
        "held_scattered_uniform": 0.3,
        "train_learned": 0.003,
        "train_uniform": 0.3,
        "train_scattered_learned": 0.15,
        "train_scattered_uniform": 0.3,
    }
    for name, value in level.items():
        copy[name].values = value * np.exp(0.1 * rng.normal(size=copy[name].size))
    for name in ("search", "scattered_search"):
        copy[f"{name}_excluded"].values[:] = 0
    copy["held_size"].values[:] = 4.0
    copy["slope_difference"].values = copy["slope_pathwise"].values * (1 + 1e-8)
    # Two of 14 coordinates are found by chance too often. With 40 more coordinates off
    # the support this becomes unlikely.
    wide = copy.drop_dims("coordinate").assign_coords(coordinate=np.arange(54))
    wide["support"] = ("coordinate", np.concatenate([on, np.zeros(40, bool)]))
    for name in ("learned", "uniform", "scattered"):
        wide[f"log_alpha_{name}"] = (
            "coordinate",
            np.where(wide["support"].values & (name == "learned"), 0.0, -6.0),
        )
    return wide


def lose(count):
    """A change of values that loses the first `count` tasks."""
    return lambda v: np.where(np.arange(v.size) < count, np.nan, v)


@pytest.mark.slow
class TestAlphaShape(StudyCase):
    study = "alpha-shape"
    small = (
        "--tasks 8 --held-out 16 --n 6 --d 14 --sparsity 2 --steps 100 --alpha-low .01 "
        "--alpha-high 1 --levels 4 --iterations 3"
    )
    mutations = {
        "no better than the uniform alpha": (
            "held_learned",
            lambda v: v * 100,
            "beats the best uniform",
        ),
        "better on average only": (
            "held_learned",
            lambda v: 0.3 * np.exp(3 * np.random.default_rng(1).normal(-0.1, 1, v.size)),
            "beats the best uniform",
        ),
        "no better than minimum l1": ("held_l1", lambda v: v / 50, "minimum l1"),
        "one alpha off the support is large": (
            "log_alpha_learned",
            lambda v: np.where(np.arange(v.size) == 50, 1.0, v),
            "found the support",
        ),
        "two of few coordinates, no discovery": (
            lambda ds: ds.isel(coordinate=slice(0, 14)),
            "found the support",
        ),
        "held-out tasks keep a third of the gain": (
            "held_learned",
            lambda v: 0.3 * (v / 0.3) ** 0.33,
            "the shape, not the tasks",
        ),
        "nothing learned in training": (
            "train_learned",
            lambda v: v * 110,
            "the shape, not the tasks",
        ),
        "a wrong gradient": ("slope_pathwise", lambda v: v * 1.0001, "central differences"),
        "hardly a gradient to compare": (
            "slope_pathwise",
            lambda v: np.where(np.arange(8) < 7, np.nan, v),
            "central differences",
        ),
        "tasks lost": ("train_learned", lose(1), "have a limit"),
        "tasks lost during the search": ("search_excluded", lambda v: v + 1, "have a limit"),
        "all lost": ("held_learned", lambda v: v * np.nan, "have a limit"),
        "all lost, and no better": ("held_learned", lambda v: v * np.nan, "beats the best"),
        "useful on another support too": (
            "held_elsewhere_learned",
            lambda v: v / 10,
            "Control: on held-out tasks with another",
        ),
        "as good on another support": (
            "held_elsewhere_learned",
            lambda v: v * 0.15,
            "Control: on held-out tasks with another",
        ),
        "memory carries over": (
            "held_scattered_learned",
            lambda v: v * 0.35,
            "Control: learned on tasks without",
        ),
        "nothing memorised": (
            "train_scattered_learned",
            lambda v: v * 2.5,
            "Control: learned on tasks without",
        ),
    }
    refusals = [
        ({"alpha_high": 1e-3}, "^alpha_high must be .*0.001"),
        ({"n": 50}, "^n must be .*50"),
        ({"sparsity": 26}, "^sparsity must be .*26"),
    ]

    @classmethod
    def make(cls):
        return predicted(small_run(cls.study))

    def test_every_claim_holds_where_everything_is_as_predicted(self, made):
        rows = self.module.claims(made)
        assert [claim.statement for claim in rows if claim.verdict != "holds"] == []
        assert sum(claim.control for claim in rows) == 2

    def test_lost_tasks_count_against_the_claim_and_are_shown(self, made):
        one_bad = made.copy(deep=True)
        one_bad["held_uniform"].values[:] = 0.3
        one_bad["held_learned"].values = 0.003 * np.where(np.arange(16) == 5, 250.0, 1.0)
        lost = mutated(one_bad, "held_learned", lose(4))
        before, after = (
            next(claim for claim in self.module.claims(d) if "best uniform" in claim.statement)
            for d in (one_bad, lost)
        )
        assert "4 of 16 pairs lost" in after.measured
        assert "lost" not in before.measured
        ratio_before, ratio_after = (
            float(claim.measured.removeprefix("ratio ").split()[0]) for claim in (before, after)
        )
        assert ratio_after > 3 * ratio_before


@pytest.mark.slow
def test_a_tiny_run_completes_and_its_gradients_are_right():
    tiny = small_run("alpha-shape")
    assert tiny["support"].values.sum() == tiny["other_support"].values.sum() == 2
    assert not (tiny["support"] & tiny["other_support"]).values.any()
    assert tiny["grid_error"].sizes == {"alpha": 4, "task": 8}
    assert tiny["search_log_alpha"].sizes == {"iteration": 3, "coordinate": 14}
    assert np.isfinite(tiny["held_learned"].values).mean() >= 1 - MOST_LOST
    # The tasks do not depend on the alpha that they are trained from, and the search
    # begins at the stored start.
    uniform = tiny["grid_error"].sel(alpha=np.exp(tiny["log_alpha_uniform"][0]), method="nearest")
    np.testing.assert_array_equal(tiny["train_uniform"], uniform)
    np.testing.assert_allclose(tiny["search_log_alpha"][0], tiny["log_alpha_start"], rtol=1e-12)
    assert tiny["search_value"].values.min() < tiny["search_value"].values[0]


def test_a_level_that_loses_the_hard_tasks_is_not_the_best():
    found = np.stack([np.full(8, 0.3), np.where(np.arange(8) < 4, np.nan, 1e-3)])
    assert best(np.array([0.01, 1.0]), found) == 0
    with pytest.raises(ValueError, match="no uniform alpha from 1 to 1"):
        best(np.array([1.0]), found[1:])
