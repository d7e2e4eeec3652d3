"""The study of alpha's shape at a tiny size: it completes, what does not depend on size holds, and every claim can hold and fail."""

import dataclasses

import numpy as np
import pytest

from sgfbias.core.claim import broken
from sgfbias.diagonal import alpha_shape
from sgfbias.diagonal.alpha_shape_claims import MOST_LOST

TINY = alpha_shape.Config(tasks=8, held_out=16, n=6, d=14, sparsity=2, steps=100, alpha_low=1e-2, alpha_high=1.0, levels=4, iterations=3)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny():
    return alpha_shape.run(TINY)


@pytest.fixture(scope="module")
def made(tiny):
    """A dataset in which everything is as predicted: the shape is found and carries over, and the controls are what they should be."""
    rng, copy, on = np.random.default_rng(0), tiny.copy(deep=True), tiny["support"].values
    level = {
        "learned": 0.003, "uniform": 0.3, "oracle": 0.003, "l1": 0.15, "elsewhere_learned": 2.0, "elsewhere_uniform": 0.3,
        "scattered_learned": 0.4, "scattered_uniform": 0.3,
    }  # fmt: skip
    for name in copy:
        kind = str(name).removeprefix("held_")
        if str(name).startswith("held_") and kind in level:
            copy[name].values = level[kind] * np.exp(0.1 * rng.normal(size=16))
    for kind, value in (("learned", 0.003), ("uniform", 0.3), ("scattered_learned", 0.15), ("scattered_uniform", 0.3)):
        copy[f"train_{kind}"].values = value * np.exp(0.1 * rng.normal(size=8))
    for name in ("search", "scattered_search"):
        copy[f"{name}_excluded"].values[:] = 0
    copy["held_size"].values[:] = 4.0
    copy["slope_difference"].values = copy["slope_pathwise"].values * (1 + 1e-8)
    # Among 14 coordinates two are found by chance too often; 40 more, off the support, make it hard.
    wide = copy.drop_dims("coordinate")
    wide["support"] = ("coordinate", np.concatenate([on, np.zeros(40, bool)]))
    for name in ("learned", "uniform", "scattered"):
        wide[f"log_alpha_{name}"] = ("coordinate", np.where(wide["support"].values & (name == "learned"), 0.0, -6.0))
    return wide


def changed(dataset, **changes):
    copy = dataset.copy(deep=True)
    for name, change in changes.items():
        copy[name].values = change(copy[name].values.copy())
    return copy


def failed(dataset):
    return [claim.statement for claim in broken(alpha_shape.claims(dataset))]


def test_a_tiny_run_completes_and_its_gradients_are_right(tiny):
    assert tiny.attrs["study"] == "alpha-shape"
    assert tiny["support"].values.sum() == tiny["other_support"].values.sum() == 2
    assert not (tiny["support"] & tiny["other_support"]).values.any()
    assert tiny["grid_error"].sizes == {"alpha": 4, "task": 8}
    assert tiny["search_log_alpha"].sizes == {"iteration": 3, "coordinate": 14}
    assert np.isfinite(tiny["held_learned"].values).mean() >= 1 - MOST_LOST
    # Tasks are the same whichever alpha they are trained from, and the search starts at the start.
    np.testing.assert_array_equal(
        tiny["train_uniform"], tiny["grid_error"].sel(alpha=np.exp(tiny["log_alpha_uniform"][0]), method="nearest")
    )
    np.testing.assert_allclose(tiny["search_log_alpha"][0], tiny["log_alpha_start"], rtol=1e-12)
    assert tiny["search_value"].values.min() < tiny["search_value"].values[0]
    (gradient,) = [claim for claim in alpha_shape.claims(tiny) if "central differences" in claim.statement]
    assert gradient.verdict == "holds"


def test_pictures_are_drawn(tiny, made):
    assert alpha_shape.plot(tiny) is not None
    assert alpha_shape.plot(made) is not None


def test_claims_hold_where_everything_is_as_predicted(made):
    rows = alpha_shape.claims(made)
    assert [claim.statement for claim in rows if claim.verdict != "holds"] == []
    assert sum(claim.control for claim in rows) == 2


def lose(count):
    return lambda v: np.where(np.arange(v.size) < count, np.nan, v)


FAILURES = {
    "no better than the uniform alpha": ({"held_learned": lambda v: v * 100}, "beats the best uniform"),
    "better on average only": ({"held_learned": lambda v: 0.3 * np.exp(3 * np.random.default_rng(1).normal(-0.1, 1, v.size))}, "beats the best uniform"),
    "no better than minimum l1": ({"held_l1": lambda v: v / 50}, "minimum l1"),
    "one alpha off the support is large": ({"log_alpha_learned": lambda v: np.where(np.arange(v.size) == 50, 1.0, v)}, "found the support"),
    "held-out tasks keep a third of the gain": ({"held_learned": lambda v: 0.3 * (v / 0.3) ** 0.33}, "the shape, not the tasks"),
    "nothing learned in training": ({"train_learned": lambda v: v * 110}, "the shape, not the tasks"),
    "a wrong gradient": ({"slope_pathwise": lambda v: v * 1.0001}, "central differences"),
    "hardly a gradient to compare": ({"slope_pathwise": lambda v: np.where(np.arange(8) < 7, np.nan, v)}, "central differences"),
    "tasks lost": ({"train_learned": lose(1)}, "have a limit"),
    "tasks lost during the search": ({"search_excluded": lambda v: v + 1}, "have a limit"),
    "useful on another support too": ({"held_elsewhere_learned": lambda v: v / 10}, "Control: on held-out tasks with another"),
    "as good on another support": ({"held_elsewhere_learned": lambda v: v * 0.15}, "Control: on held-out tasks with another"),
    "memory carries over": ({"held_scattered_learned": lambda v: v * 0.35}, "Control: learned on tasks without"),
    "nothing memorised": ({"train_scattered_learned": lambda v: v * 2.5}, "Control: learned on tasks without"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_claims_can_fail(made, name):
    changes, words = FAILURES[name]
    assert any(words in statement for statement in failed(changed(made, **changes)))


def test_two_coordinates_of_few_are_no_discovery(made):
    """The right ones on top, but among so few that chance would do it."""
    (row,) = [claim for claim in alpha_shape.claims(made.isel(coordinate=slice(0, 14))) if "found the support" in claim.statement]
    assert row.verdict == "fails"
    assert "2 of 2" in row.measured


def test_lost_tasks_count_against_the_claim_and_are_shown(made):
    ratios = np.where(np.arange(16) == 5, 250.0, 1.0)
    one_bad = changed(made, held_learned=lambda v: 0.003 * ratios, held_uniform=lambda v: np.full(16, 0.3))
    lost = changed(one_bad, held_learned=lambda v: np.where(np.arange(16) < 4, np.nan, v))
    before, after = (next(claim for claim in alpha_shape.claims(d) if "best uniform" in claim.statement) for d in (one_bad, lost))
    assert "4 of 16 lost" in after.measured
    assert "lost" not in before.measured
    assert float(after.measured.split()[0]) > 3 * float(before.measured.split()[0])
    everything = changed(made, held_learned=lambda v: np.full_like(v, np.nan))
    assert {"have a limit", "beats the best"} <= {
        words for words in ("have a limit", "beats the best") if any(words in s for s in failed(everything))
    }


def test_a_level_that_loses_the_hard_tasks_is_not_the_best():
    errors = np.stack([np.full(8, 0.3), np.where(np.arange(8) < 4, np.nan, 1e-3)])
    assert alpha_shape._best(np.array([0.01, 1.0]), errors) == 0.01
    with pytest.raises(ValueError, match="no uniform alpha from 1 to 1"):
        alpha_shape._best(np.array([1.0]), errors[1:])


BAD = {
    "noise": 0.0, "step_size": -1.0, "alpha_low": 0.0, "alpha_high": 1e-3, "learning_rate": np.inf, "tasks": 2, "held_out": 1, "n": 50,
    "sparsity": 26, "steps": 1, "levels": 2, "iterations": 0, "problem_seed": -1,
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_before_anything_runs(name):
    with pytest.raises(ValueError, match=f"^{name} must be .*{BAD[name]}"):
        alpha_shape.run(dataclasses.replace(alpha_shape.Config(), **{name: BAD[name]}))
