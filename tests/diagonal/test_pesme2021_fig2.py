"""The study `pesme2021.fig2`: a larger loss integral goes with a smaller error along
the curve of Theorem 1, single runs follow SGD's law, and every claim can fail.
"""

import numpy as np
import pytest
from scipy.stats import spearmanr
from study_case import StudyCase

from sgfbias.diagonal.studies.pesme2021 import fig2
from sgfbias.diagonal.studies.pesme2021.fig2.claims import spearman


@pytest.mark.slow
class TestFig2(StudyCase):
    study = "pesme2021.fig2"
    small = (
        "--n 20 --d 50 --sparsity 3 --step-size .15 --seeds 128 --steps 3000 --scheme-steps 1500"
    )
    mutations = {
        "seeds that diverge": (
            "sgf_status",
            lambda v: np.where(np.arange(v.size) < 8, 3, v),
            "the iterates converge",
        ),
        "a smaller integral": (
            "sgd_final_loss_integral",
            lambda v: v / 100,
            "loss integral of SGD is larger",
        ),
        "a smaller integral of the flow": (
            "sgf_final_loss_integral",
            lambda v: v / 100,
            "loss integral of the flow is larger",
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
        "no order along the curve": (
            "weights_loss_integral",
            lambda v: v[::-1],
            "Among the flow's seeds a larger loss integral",
        ),
        "off the minimiser": (
            "weights_curve_distance",
            lambda v: 0 * v + 0.1,
            "ends at the minimiser that Theorem",
        ),
        "half the exponent does as well": (
            "weights_half_distance",
            lambda v: v * np.array([1, 0.01])[:, None],
            "Control: with half",
        ),
        "another law": ("sgd_own_error", lambda v: v[::-1], "which its own evolution law selects"),
        "a law that does no worse": (
            lambda ds: ds.assign(sgd_alpha_error=ds["sgd_own_error"]),
            "is closer to that of this solution",
        ),
        "the printed identity": (
            "flow_integral",
            lambda v: 2 * v,
            "half of the increase of the potential",
        ),
    }
    refusals = [({"n": 100}, "n must be below d")]

    def test_every_claim_applies(self, made):
        assert all(claim.verdict != "not applicable" for claim in self.module.claims(made))


def test_the_papers_size():
    assert (fig2.PAPER.steps, fig2.PAPER.alpha) == (100_000, 0.1)
    assert fig2.PAPER.seeds >= 64


def test_rank_correlation_is_spearmans():
    a, b = np.random.default_rng(1).normal(size=(2, 40))
    assert float(spearman(a, b)) == pytest.approx(spearmanr(a, b)[0])
