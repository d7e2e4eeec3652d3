"""Tests of the study `land-sgd`: on a small run all claims hold, and each can fail."""

import numpy as np
import pytest
from study_case import StudyCase

from sgfbias.diagonal.studies.land_sgd import DYNAMICS


def kind(name, change):
    """A function that changes the rows of one kind of runs."""
    at = list(DYNAMICS).index(name)
    return lambda v: np.stack([change(row) if k == at else row for k, row in enumerate(v)])


def other_law(dataset):
    """The fall feature by feature as the mean-loss law has it."""
    copy = dataset.copy(deep=True)
    copy["feature_fell"].values = copy["feature_mean_loss_law"].values
    return copy


def without_feedback(dataset):
    """Runs that fall as if there were no feedback."""
    copy = dataset.copy(deep=True)
    copy["fell"].values = copy["unfed"].values
    return copy


def accepted(dataset):
    """The answer to isotropic noise, if it were not refused."""
    copy = dataset.copy(deep=True)
    copy.attrs["isotropic_refusal"] = ""
    return copy


@pytest.mark.slow
class TestLandSGD(StudyCase):
    study = "land-sgd"
    small = "--seeds 64 --n 20 --d 50 --sparsity 3 --long-steps 6000 --root-seed 1"
    mutations = {
        "diverged seeds": (
            "status",
            kind("sgd", lambda row: np.where(np.arange(row.size) < 4, 3, row)),
            "Hardly any seed diverges",
        ),
        "a correction that is far off": (
            "corrected",
            kind("sgd", lambda row: row * 1e4),
            "SGD's own limit is known",
        ),
        "a correction that moves away": (
            "corrected",
            kind("distinct", lambda row: row * 100),
            "brings the landed solution closer",
        ),
        "an estimate that is too small": (
            "estimate",
            kind("per_sample", lambda row: row / 20),
            "covers the true error of at least 90%",
        ),
        "an estimate that covers anything": (
            "estimate",
            lambda v: v * 1e4,
            "Control: the estimate does not cover",
        ),
        "an estimate that is too careful": (
            "estimate",
            kind("replaced", lambda row: row * 30),
            "at most 30 times in the median",
        ),
        "another fall of log alpha": (
            "fell",
            kind("sgd", lambda row: row * 1.5),
            "The mean fall of log alpha",
        ),
        "runs without feedback": (without_feedback, "Control: without the feedback"),
        "the law of other noise": (other_law, "Under per-sample noise log alpha falls"),
        "laws that agree": (other_law, "Control: by the mean-loss law"),
        "an offset that does not matter": (
            "selected",
            kind("sgd", lambda row: row / 1e4),
            "Control: without its offset",
        ),
        "gradient descent goes elsewhere": (
            "gd_corrected",
            lambda v: v * 100,
            "Gradient descent is landed too",
        ),
        "isotropic noise is accepted": (accepted, "Control: isotropic noise"),
    }
    refusals = [
        ({"long_steps": 5999}, "long_steps must be at least 30 times steps = 200, but is 5999"),
        ({"n": 100}, "n must be below d = 100"),
        ({"batch_size": 41}, "batch_size must be at most n = 40, but is 41"),
        ({"sparsity": 101}, "sparsity must be at most d = 100"),
    ]

    def test_all_claims_are_judged(self, made):
        assert [claim.verdict for claim in self.module.claims(made)] == ["holds"] * 13

    def test_rungs_at_which_the_limit_is_not_known_are_not_judged(self, made):
        copy = made.copy(deep=True)
        for name in ("left", "gd_left"):
            copy[name].values = np.ones_like(copy[name].values)
        verdicts = [claim.verdict for claim in self.module.claims(copy)]
        assert verdicts[0] == "holds"
        assert set(verdicts[1:]) == {"not applicable"}
