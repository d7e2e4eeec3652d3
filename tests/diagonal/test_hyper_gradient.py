"""Tests of the study `hyper-gradient`: its claims hold on a small run, and every claim
can fail.
"""

import numpy as np
import pytest
from helpers import mutated
from study_case import StudyCase


def scaled(v, factor):
    """A copy of `v` whose first row is multiplied by `factor`."""
    return np.concatenate([v[:1] * factor, v[1:]])


def replaced(name, other):
    """A mutation that replaces the values of variable `name` by `other(dataset)`."""
    return lambda ds: ds.assign({name: (ds[name].dims, np.broadcast_to(other(ds), ds[name].shape))})


@pytest.mark.slow
class TestHyperGradient(StudyCase):
    study = "hyper-gradient"
    small = "--seeds 4 --steps 40 --landing-steps 150 500 --limit-steps 4000 --alpha .4"
    mutations = {
        "a derivative off by two parts in 1e5": (
            "slope",
            lambda v: scaled(v, 1 + 2e-5),
            "Mean derivatives equal",
        ),
        "a single seed off": (
            "slope",
            lambda v: v + np.array([1, -1, 0, 0]) * 1e-4 * np.abs(v).max(),
            "seed by seed",
        ),
        "modes that disagree": ("mode_gap", lambda v: v + 2e-10, "Forward mode equals"),
        "noise that does not matter": (
            replaced("unpaired", lambda ds: ds["slope"].values.mean(axis=1)),
            "Control: with other random numbers",
        ),
        "fixed steps that are fixed time": (
            replaced(
                "difference",
                lambda ds: ds["slope"].sel(row="SGD, fixed steps: error in step size").values,
            ),
            "Control: a derivative in gamma at a fixed number of steps",
        ),
        "most derivatives lost": (
            "slope",
            lambda v: np.where(np.arange(4) < 3, np.nan, v),
            "Mean derivatives equal",
        ),
        "a reference that is not the limit": (
            "limit_loss",
            lambda v: v + 1e-10,
            "The unrolled runs reach their limits",
        ),
        "an estimate that is too small": (
            replaced("uncorrected_gradient", lambda ds: ds["landed_gradient"].values),
            "within the landing estimate",
        ),
        "landing later does not help": (
            "landed_gradient",
            lambda v: np.broadcast_to(v[:1], v.shape),
            "The longer the run before landing",
        ),
        "an iterate that is as good": (
            replaced("unrolled_gradient", lambda ds: ds["limit_gradient"].values),
            "nearer to the limit's gradient than",
        ),
        "a path that does not matter": (
            replaced("frozen_gradient", lambda ds: ds["landed_gradient"].values),
            "Control: with the path's",
        ),
    }
    refusals = [
        ({"landing_steps": (300, 100)}, "landing_steps must be increasing"),
        ({"landing_steps": ()}, "landing_steps must be increasing"),
        ({"limit_steps": 500}, "above the last of landing_steps"),
    ]

    def test_ten_claims_hold(self, made):
        assert [claim.verdict for claim in self.module.claims(made)] == ["holds"] * 10

    def test_seeds_that_did_not_converge_are_told_and_too_few_say_nothing(self, made):
        short = mutated(made, "limit_loss", lambda v: np.where(np.arange(4) < 2, 1.0, v))
        reached, *rest = self.module.claims(short)[5:]
        assert reached.broken
        assert reached.measured.startswith("2 of 4 seeds have a loss below 1e-14")
        assert [claim.verdict for claim in rest] == ["not applicable"] * 4
        assert all("only 2 of 4 seeds converged" in claim.reason for claim in rest)
        whole = self.module.claims(made)
        assert [claim.statement for claim in rest] == [claim.statement for claim in whole[6:]]

    def test_a_lost_seed_is_told_and_no_number_is_nan(self, made):
        lost = mutated(made, "slope", lambda v: scaled(v, [np.nan, 1, 1, 1]))
        rows = self.module.claims(lost)
        assert "1 of 4 seeds are not finite" in rows[0].measured
        assert "1 pairs lost seeds" in rows[3].measured
        assert [claim.verdict for claim in rows] == ["holds"] * 10
        assert not any("nan" in claim.measured for claim in rows)
