"""Tests of the study `weak-error`: the claims about closed forms, simulations and
ground truth G7 hold, and on made-up samples of known orders every claim holds or fails
as it should.
"""

import numpy as np
import pytest
from study_case import StudyCase, small_run


def synthetic(dataset, first=1.0, second=2.0, size=1.0, variance=1.0, mean_loss=4.0):
    """A copy of the dataset whose samples on the network are made up: their means
    differ from SGD's by known powers of the step size, their variances by known ratios.
    """
    rng, copy = np.random.default_rng(0), dataset.copy(deep=True)
    gamma = copy["step_size"].values[:, None]
    copy["network_sgd_shrinkage"].values = gamma + 1e-6 * rng.normal(size=(3, 2048))
    gaps = np.stack([0.3 * gamma**first, size * gamma**second, 0.3 * gamma], axis=1)
    copy["network_shrinkage"].values = gamma[:, None] + gaps + 1e-6 * rng.normal(size=(3, 3, 2048))
    sample = rng.normal(size=(3, 2048))
    copy["network_sgd_validation_error"].values = sample
    copy["network_validation_error"].values = np.stack(
        [sample, sample * variance**0.5, sample * mean_loss**0.5], axis=1
    )
    return copy


def with_law(*names):
    """A mutation after which the flows `names` shrink log alpha exactly as SGD does."""

    def change(dataset):
        for name in names:
            dataset["law_shrinkage"].loc[{"law": name}] = (
                dataset["law_shrinkage"].sel(law="sgd").values
            )
        return dataset

    return change


@pytest.mark.slow
class TestWeakError(StudyCase):
    study = "weak-error"
    small = "--seeds 2048 --law-seeds 256"
    mutations = {
        "half an order": (
            "closed_error",
            lambda v: v * 2.0 ** (np.arange(6) / 2),
            "first-order flow with exact noise follows SGD to first",
        ),
        "first order in place of second": (
            "closed_error",
            lambda v: np.broadcast_to(v[:1], v.shape),
            "second weak order (least squares",
        ),
        "second order with any noise": (
            "closed_error",
            lambda v: np.broadcast_to(v[1:2], v.shape),
            "Control: the second-order drift",
        ),
        "a covariance that is off": (
            "closed_variance",
            lambda v: v * 1.1,
            "variance of the weights",
        ),
        "the covariance of any noise": (
            "closed_variance",
            lambda v: np.broadcast_to(v[:1], v.shape),
            "Control: with mean-loss noise, or without noise",
        ),
        "another process": ("simulated_mean", lambda v: v + 0.1, "Simulated mean losses"),
        "a third of an order on the network": (
            lambda ds: synthetic(ds, first=0.3),
            "to first weak order (diagonal",
        ),
        "first order on the network": (
            lambda ds: synthetic(ds, second=1.0),
            "to second weak order (diagonal",
        ),
        "a large error of second order": (
            lambda ds: synthetic(ds, size=10.0),
            "below a quarter of the first-order",
        ),
        "twice the variance": (
            lambda ds: synthetic(ds, variance=2.0),
            "variance of the validation error",
        ),
        "laws off at one feature": (
            "law_shrinkage",
            lambda v: (
                v * np.where(np.arange(v.shape[1]) == 3, 1.2, 1)[None] ** np.arange(5)[:, None]
            ),
            "Under the per-sample flow log alpha shrinks as in SGD, feature by feature",
        ),
        "the mean-loss flow at every feature": (
            with_law("mean-loss-1"),
            "Control: under the mean-loss flow",
        ),
        "the first-order flow at every feature": (
            with_law("exact-1"),
            "Control: under the first-order flow",
        ),
    }
    refusals = [({"time": 0.1}, "time must be a whole number of step_size")]

    @classmethod
    def make(cls):
        return synthetic(small_run(cls.study))

    def test_closed_forms_simulations_and_g7_hold(self):
        """The claims contain ground truth G7: log alpha of SGD, of the per-sample flow
        and of the second-order flow agree at every feature.
        """
        dataset = small_run(self.study)
        words = ("diagonal network", "smallest step size")
        rows = [
            claim
            for claim in self.module.claims(dataset)
            if not any(word in claim.statement for word in words)
        ]
        assert len(rows) == 14
        assert [claim.statement for claim in rows if claim.verdict == "fails"] == []
        shrinkage = dataset["law_shrinkage"]
        for name in ("per-sample", "exact-2"):
            np.testing.assert_allclose(
                shrinkage.sel(law=name) / shrinkage.sel(law="sgd"), 1, atol=0.02
            )
        assert (
            float(
                (shrinkage.sel(law="exact-1") / shrinkage.sel(law="sgd"))
                .values[dataset["law_support"].values]
                .min()
            )
            < 0.9
        )

    def test_too_few_seeds_for_a_law_are_said_to_be_too_few(self, made):
        few = made.copy(deep=True)
        few["law_error"].values = few["law_error"].values * 2
        rows = [
            claim for claim in self.module.claims(few) if "feature by feature" in claim.statement
        ]
        assert [row.verdict for row in rows] == ["not applicable"] * 2

    @pytest.mark.parametrize(("mean_loss", "verdict"), [(1.0, "fails"), (2.0, "holds")])
    def test_the_variance_under_mean_loss_noise_only_informs(self, made, mean_loss, verdict):
        (row,) = (
            row
            for row in self.module.claims(synthetic(made, mean_loss=mean_loss))
            if row.statement.startswith("With mean-loss noise the variance")
        )
        assert (row.verdict, row.must_hold) == (verdict, False)
