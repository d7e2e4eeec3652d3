"""The main study: every claim can fail, and claims do not apply, instead of failing,
where the data have no truth or all seeds have diverged.
"""

import numpy as np
import pytest
from study_case import StudyCase, mutate

# The initialisation scale of the small run.
ALPHA = 0.05


def steeper(log_alpha):
    """log alpha after a shrinkage that is 30% larger."""
    return np.log(ALPHA) + 1.3 * (log_alpha - np.log(ALPHA))


@pytest.mark.slow
class TestMain(StudyCase):
    study = "diagonal"
    small = (
        "--seeds 64 --steps 3000 --n 20 --d 50 --sparsity 3 --step-size .05 --weights-seeds 32 "
        "--weights-steps 200 --early-steps 500 --compare-steps 500 --alpha .05"
    )
    mutations = {
        "divergence": ("sgd_status", lambda v: np.full_like(v, 3), "converge at this step size"),
        "a weights gap that stays": (
            "weights_gap",
            lambda v: np.broadcast_to(v[:1], v.shape),
            "computed from int L, for the median seed",
        ),
        "some seeds whose gap stays": (
            "weights_gap",
            lambda v: np.where(np.arange(v.shape[1]) % 4 == 3, v[:1], v),
            "computed from int L, in the mean square",
        ),
        "a control that passes": (
            "isotropic_gap",
            lambda v: v * np.array([1, 0.25, 0.06])[:, None],
            "Control: with isotropic noise",
        ),
        "an iterate off the solution": ("sgf_distance", lambda v: v * 100, "mirror coordinates"),
        "an unsolved program": ("sgf_stationarity", lambda v: v + 1e-3, "program is solved"),
        "a wrong law of SGD": ("sgd_gap", lambda v: v + 1e-4, "SGD's own evolution law"),
        "an offset that makes no difference": (
            "sgd_gap_no_offset",
            lambda v: v * 1e-9,
            "Control: without the offset",
        ),
        "a per-sample prediction no better": (
            "sgd_distance_per_sample",
            lambda v: v * 100,
            "per-sample evolution law",
        ),
        "a flow without a lower error": (
            "sgf_validation_error",
            lambda v: v * 1e3,
            "error of the flow is below GD",
        ),
        "SGD without a lower error": (
            "sgd_validation_error",
            lambda v: v * 1e3,
            "error of SGD is below GD",
        ),
        "a mean-loss flow of another law": (
            "law_mean_loss_log_alpha",
            steeper,
            "As gamma falls, the mean-loss flow shrinks",
        ),
        "a per-sample flow of another law": (
            "law_per_sample_log_alpha",
            steeper,
            "SGD and the per-sample flow shrink",
        ),
        "a loss integral of another path": (
            "law_sgd_loss_integral",
            lambda v: v * 0.7,
            "As gamma falls, the mean-loss flow shrinks",
        ),
        "an estimate too small": (
            "early_corrected_estimate",
            lambda v: v * 0,
            "early and corrected",
        ),
        "an uncorrected estimate too small": (
            "early_landed_estimate",
            lambda v: v * 0,
            "early and uncorrected",
        ),
        "an estimate of SGD's limit too small": (
            "early_sgd_estimate",
            lambda v: v * 0,
            "SGD's own limit, predicted early",
        ),
        "an unsolved limit of SGD": (
            "early_sgd_stationarity",
            lambda v: v + 1e-3,
            "The predicted limits of SGD are certified",
        ),
        "a limit of SGD without an offset": (
            "early_sgd_no_offset_distance",
            lambda v: v * 0,
            "Control: predicted early without the offset",
        ),
    }

    def test_what_theory_does_not_promise_only_informs(self, made):
        """SGD follows the mean-loss law only on average over the features, and only if
        the norms of the examples are uncorrelated with their loss integrals.
        """
        worse = mutate(made, ("sgd_distance_mean_loss", lambda v: v * 100, ""))
        worse = mutate(worse, ("law_sgd_log_alpha", steeper, ""))
        rows = {claim.statement: claim for claim in self.module.claims(worse)}
        for words in ("The mean-loss evolution law", "As gamma falls, SGD and the mean-loss flow"):
            found = [row for statement, row in rows.items() if statement.startswith(words)]
            assert found
            assert found[0].verdict == "fails"
            assert not found[0].broken

    def test_own_data_without_truth_is_not_applicable_not_failed(self, made):
        dataset = made.drop_vars(
            [name for name in made.data_vars if "validation" in str(name) or name == "beta_star"]
        )
        rows = [claim for claim in self.module.claims(dataset) if "below GD" in claim.statement]
        assert [row.verdict for row in rows] == ["not applicable"] * 2
        assert all("no beta_star" in row.reason for row in rows)
        assert self.module.plot(dataset) is not None

    def test_seeds_that_are_all_lost_leave_claims_and_a_picture(self, made):
        """Claims on lost seeds do not apply, but the claim of convergence fails."""
        lost = made.copy(deep=True)
        for name in (
            "weights_gap",
            "isotropic_gap",
            "weights_beta",
            "isotropic_beta",
            "sgf_distance",
            "sgd_gap",
            "law_sgd_log_alpha",
        ):
            lost[name].values = np.full_like(lost[name].values, np.nan)
        for name in (
            "early_corrected_distance",
            "early_landed_distance",
            "early_sgd_corrected_distance",
        ):
            lost[name].values = np.full_like(lost[name].values, np.nan)
        lost["sgd_status"].values = np.full_like(lost["sgd_status"].values, 3)
        rows = self.module.claims(lost)
        assert sum(row.verdict == "not applicable" for row in rows) >= 10
        assert any("converge" in row.statement and row.broken for row in rows)
        assert all(row.control == row.statement.startswith("Control: ") for row in rows)
        assert self.module.plot(lost) is not None
