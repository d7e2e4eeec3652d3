"""The study `pesme2021.fig1`: SGD's error is below gradient descent's in time, at every
alpha and on other problems, and every claim can fail.
"""

import numpy as np
import pytest
import test_alpha_sweep
from study_case import StudyCase

from sgfbias.diagonal.studies.pesme2021 import fig1


@pytest.mark.slow
class TestFig1(StudyCase):
    study = "pesme2021.fig1"
    small = (
        "--n 40 --d 80 --sparsity 4 --step-size .05 --steps 4000 --levels 3 --alpha-low .003 "
        "--alpha-high .05 --sweep-steps 8000 --problems 7 --alpha .02"
    )
    # The right panel makes the claims of the study `alpha-sweep` on variables with the
    # same names.
    mutations = test_alpha_sweep.TestAlphaSweep.mutations | {
        "seeds that diverge on the left": (
            "left_sgd_status",
            lambda v: np.where(np.arange(v.size) < 8, 3, v),
            "the iterates converge",
        ),
        "SGD no better": (
            "left_sgd_final_validation_error",
            lambda v: 50 * v,
            "final error of SGD is below",
        ),
        "a flow no better": (
            "left_sgf_final_validation_error",
            lambda v: 50 * v,
            "final error of the flow is below",
        ),
        "other problems without an effect": ("problem_gd", lambda v: v * 1e-3, "On other problems"),
    }
    refusals = [
        ({"alpha_high": 1e-5}, "alpha_high must be finite and above alpha_low"),
        ({"n": 100}, "n must be below d"),
    ]

    def test_every_claim_applies(self, made):
        assert all(claim.verdict != "not applicable" for claim in self.module.claims(made))


def test_the_papers_size():
    assert (fig1.PAPER.steps, fig1.PAPER.alpha) == (1_000_000, 0.005)
    assert fig1.PAPER.seeds >= 64
