"""The study `pesme2021.fig4`: label noise shrinks the effective initialisation and
lowers the error, on full batches it does not, and every claim can fail.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network, small_problem
from study_case import StudyCase

from sgfbias.diagonal.stepsize import find_step_size
from sgfbias.diagonal.studies.pesme2021 import fig4


@pytest.mark.slow
class TestFig4(StudyCase):
    study = "pesme2021.fig4"
    small = "--n 20 --d 50 --sparsity 3 --step-size .05 --steps 6000 --noise-steps 1500 --alpha .05"
    mutations = {
        "seeds that diverge": (
            "label_status",
            lambda v: np.where(np.arange(v.size) < 8, 3, v),
            "the iterates converge",
        ),
        "a small integral": ("label_final_shrinkage", lambda v: v / 60, "is several times larger"),
        "a large error": (
            "label_selected_error",
            lambda v: v * 0 + 1.0,
            "SGD with label noise at the beginning",
        ),
        "a flow with a large error": (
            "label_sgf_selected_error",
            lambda v: v * 0 + 1.0,
            "The flow with label noise at the beginning",
        ),
        "SGD no better": (
            "sgd_final_validation_error",
            lambda v: 50 * v,
            "final error of SGD is below",
        ),
        "another rate": (
            "law_excess",
            lambda v: v + 0.5,
            "Under label noise SGD shrinks log alpha",
        ),
        "full batches that shrink alpha": (
            "label_gd_final_shrinkage",
            lambda v: 10 * v,
            "Control: the same label noise",
        ),
        "full batches that lower the error": (
            "label_gd_final_validation_error",
            lambda v: v / 1e6,
            "Control: the same label noise",
        ),
    }
    refusals = [({"noise_steps": 10**7}, "steps must be finite and above noise_steps")]

    def test_every_claim_applies(self, made):
        assert all(claim.verdict != "not applicable" for claim in self.module.claims(made))


def test_the_papers_size():
    assert (fig4.PAPER.steps, fig4.PAPER.alpha) == (1_000_000, 0.01)
    assert fig4.PAPER.seeds >= 64


@pytest.mark.slow
def test_a_step_size_for_label_noise_is_smaller():
    problem, start = small_problem(), network()
    short = {"probes": 16, "steps": 600, "candidates": [0.03, 0.14, 0.6]}
    clean, _ = find_step_size(problem, start, **short)
    noisy, tried = find_step_size(
        problem, start, label_noise=lambda k: jnp.where(k < 300, 1.5, 0.0), **short
    )
    assert noisy < clean
    assert not tried[0].converged
