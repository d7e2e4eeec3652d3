"""The study `hyper-gradient`: a part of it is run, and every claim is told right from wrong."""

import dataclasses

import numpy as np
import pytest
from helpers import failed, mutated

from sgfbias.diagonal import hyper_gradient as study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset():
    config = study.Config(seeds=4, steps=40, landing_steps=(150, 500), limit_steps=4000, alpha=0.4)
    kept = {name: case for name, case in study.cases(config).items() if name in ("SGD, fixed steps: error", "SGD, fixed time: error")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "cases", lambda config: kept)
        return study.run(config)


def test_it_holds_and_is_drawn(dataset):
    assert failed(study, dataset) == ""
    assert len(study.claims(dataset)) == 9
    assert study.plot(dataset) is not None


def part_of(dataset, name, row=0, factor=1 + 2e-5):
    return mutated(dataset, name, lambda v: np.where((np.arange(len(v)) == row).reshape(-1, *[1] * (v.ndim - 1)), v * factor, v))


def nearer(dataset, name, weight):
    """A gradient moved towards (weight 1: onto) that of the limit."""
    return mutated(dataset, name, lambda v: weight * dataset["limit_gradient"].values[None] + (1 - weight) * v)


MUTATIONS = {
    "a derivative off by two parts in 1e5": (lambda ds: part_of(ds, "slope"), "Mean derivatives equal"),
    "a single seed off": (lambda ds: mutated(ds, "slope", lambda v: v + np.array([1, -1, 0, 0]) * 1e-4 * np.abs(v).max()), "seed by seed"),
    "modes that disagree": (lambda ds: mutated(ds, "mode_gap", lambda v: v + 2e-10), "Forward mode equals"),
    "noise that does not matter": (
        lambda ds: mutated(ds, "unpaired", lambda v: ds["slope"].values.mean(axis=1)),
        "Control: with other random numbers",
    ),
    "fixed steps that are fixed time": (
        lambda ds: mutated(ds, "difference", lambda v: np.broadcast_to(ds["slope"].values[:1, None], v.shape)),
        "Control: a derivative at fixed steps",
    ),
    "an estimate that is too small": (lambda ds: mutated(ds, "uncorrected_gradient", lambda v: ds["landed_gradient"].values), "within the landing estimate"),
    "landing later does not help": (lambda ds: mutated(ds, "landed_gradient", lambda v: np.broadcast_to(v[:1], v.shape)), "nearer the longer"),
    "an iterate that is as good": (lambda ds: nearer(ds, "unrolled_gradient", 1.0), "nearer to the limit's gradient than"),
    "a path that does not matter": (lambda ds: mutated(ds, "frozen_gradient", lambda v: ds["landed_gradient"].values), "Control: with the path's"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_can_fail(dataset, name):
    change, words = MUTATIONS[name]
    assert words in failed(study, change(dataset))


def test_seeds_that_did_not_converge_are_left_out_and_too_few_say_nothing(dataset):
    short = mutated(dataset, "limit_loss", lambda v: np.where(np.arange(4) < 2, 1.0, v))
    assert study.claims(short)[-1].verdict == "not applicable"
    assert "only 2 seeds converged" in study.claims(short)[-1].reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, "alpha must be positive"),
        ({"seeds": 2}, "seeds must be at least 4"),
        ({"landing_steps": (300, 100)}, "landing_steps must be increasing"),
        ({"limit_steps": 500}, "above the last of landing_steps"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(study.Config(), **change))
