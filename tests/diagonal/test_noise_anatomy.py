"""Tests of the study `noise-anatomy`: isotropic noise leaves the span of the rows, all
other noises stay in it, and every claim can fail.
"""

import numpy as np
import pytest
from study_case import StudyCase, mutate

from sgfbias.diagonal.studies.noise_anatomy import LABELS


def only(name, change):
    """A function that changes the values of one noise model."""
    return lambda v: np.stack(
        [change(row) if other == name else row for other, row in zip(LABELS, v, strict=True)]
    )


@pytest.mark.slow
class TestNoiseAnatomy(StudyCase):
    """The claims include ground truth G11 in weights coordinates."""

    study = "noise-anatomy"
    small = "--seeds 64 --steps 1500 --n 10 --d 25 --weights-seeds 64 --weights-steps 100"
    mutations = {
        "a gap that stays": (
            "gap",
            only("per-sample", lambda row: np.broadcast_to(row[:1], row.shape)),
            "per-sample noise, the iterate minimises",
        ),
        "gaps that stay": (
            "gap",
            lambda v: np.broadcast_to(v[:, :1], v.shape),
            "Under no noise, the iterate minimises",
        ),
        "an isotropic gap that closes": (
            "gap",
            only("isotropic", lambda row: row * np.array([1, 0.25, 0.06])[:, None]),
            "Control: noise with another support",
        ),
        "another law": (
            "weights_shrinkage",
            only("label", lambda row: row * 1.3),
            "Under label noise for a while, log alpha follows",
        ),
        "a drift of log alpha": (
            "weights_shrinkage",
            lambda v: v * 1.3 + 0.1,
            "Under no noise, log alpha follows its evolution equation",
        ),
        "no noise": (
            "weights_shrinkage",
            only("minibatch-4", lambda row: row * 0),
            "Every noise lowers",
        ),
        "one scale for both batches": (
            "law_shrinkage",
            lambda v: v[[0, 1, 2, 3, 3, 5, 6, 7]],
            "Control: the evolution equation of another scale",
        ),
        "label noise without effect": (
            "log_alpha",
            only("label", lambda row: row * 0 + np.log(0.1)),
            "in the order of the noises' scales",
        ),
        "isotropic noise that stays": (
            "fibre_gap",
            only("isotropic", lambda row: row * 1e-6),
            "Control: support matters",
        ),
        "label noise that leaves the span of the rows": (
            "fibre_gap",
            only("label", lambda row: row + 1e-2),
            "Control: support matters",
        ),
    }

    def test_errors_of_the_selected_solutions_only_inform(self, made):
        """Which of two selected solutions is better depends on the problem."""
        for name, factor, words in (
            ("mean-loss", 10, "Noise helps"),
            ("minibatch", 10, "error with batches of 1 than with batches of 4"),
            ("label", 1e3, "error with label noise for a while than with mean-loss noise"),
        ):
            worse = mutate(
                made, ("landed_error", only(name, lambda row, by=factor: row * by), words)
            )
            found = [row for row in self.module.claims(worse) if words in row.statement]
            assert [(row.verdict, row.broken) for row in found] == [("fails", False)]
