"""Tests of the study `saddle-to-saddle`: its claims hold on a small run, every claim
can fail, and senseless configs are refused.
"""

import numpy as np
import pytest
from study_case import StudyCase


@pytest.mark.slow
class TestSaddleToSaddle(StudyCase):
    study = "saddle-to-saddle"
    small = "--problems 6 --decades 20 60 120 --n 10 --d 25 --sparsity 3 --points 1000"
    mutations = {
        "a run that is lost": ("lost", lambda v: v + 1, "Every run completes"),
        "another resting place": (
            "saddle_gap",
            lambda v: v + 1e-3,
            "rests at the predicted saddles",
        ),
        "jumps of another time": ("predicted_time", lambda v: v * 1.01, "falls as 1 / Lambda"),
        "a term in log Lambda": (
            "time",
            lambda v: v + 0.5 * np.log(np.arange(2, 2 + v.shape[1]))[:, None],
            "grow by tau_k times",
        ),
        "another constant": ("first_constant", lambda v: 0 * v, "first jump's own constant"),
        "a dual variable that goes astray": (
            "dual_gap",
            lambda v: v[:, ::-1],
            "dual variable follows",
        ),
        "another limit": ("l1_gap", lambda v: v + 1e-6, "least l1 norm"),
        "rests at a large alpha": ("saddle_gap", lambda v: 0 * v, "Control: at alpha"),
        "a jump that does not happen": (
            "time",
            lambda v: np.where(np.arange(v.shape[2]) == 0, np.inf, v),
            "Every run completes",
        ),
        "greedy that is right": (
            "greedy_gap",
            lambda v: 0 * v,
            "Control: where the solutions of orthogonal matching",
        ),
        "no memory needed": (
            lambda ds: ds.assign(
                time=ds["memoryless_time"] * np.log(10) * ds["decades"] + 0 * ds["time"]
            ).transpose(*ds["time"].dims, ...),
            "Control: a dual variable",
        ),
    }
    refusals = [
        ({"decades": (10.0, 5.0, 20.0)}, "decades must be"),
        ({"decades": (10.0, 20.0)}, "decades must be at least 3"),
        ({"coarse": 20.0}, "coarse must be below"),
        ({"shown": 9}, "shown must be"),
        ({"n": 30}, "n must be below"),
        ({"rtol": 1e-14}, "rtol must be"),
        ({"rtol": 0.1}, "rtol must be"),
        ({"most_steps": 1.0}, "most_steps must be"),
    ]
