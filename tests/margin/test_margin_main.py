"""The study `margin`: made-up data on which every claim holds, and changes after which
each must fail.
"""

import numpy as np
from helpers import made_up
from study_case import StudyCase

from sgfbias.margin.studies.main import ANGLES, CANDIDATES, RUNS, Config

ROTATIONS, D = 3, 6
NUS = np.geomspace(0.1, 1e4, 101)
GD, RMSPROP, ADAGRAD, LOGISTIC = range(4)


def of(run, change):
    """A change of one run of an array (run, ...)."""

    def apply(values):
        values[run] = change(values[run])
        return values

    return apply


class TestMargin(StudyCase):
    study = "margin"
    small = "--rotations 2 --nu 1e3"
    mutations = {
        "another limit": ("closed_form_error", lambda v: v + 1e-5, "closed form of its limit"),
        "a distance that stays": (
            "distance",
            of(GD, lambda v: v * 0 + 0.1),
            "Gradient flow goes to the l2",
        ),
        "one that falls too fast": (
            "distance",
            of(LOGISTIC, np.square),
            "Gradient flow of the logistic loss",
        ),
        "RMSProp that falls slowly": ("distance", of(RMSPROP, np.sqrt), "RMSProp goes to the l2"),
        "AdaGrad that stays": (
            "distance",
            of(ADAGRAD, lambda v: v * 0 + 0.3),
            "AdaGrad goes to the max-margin",
        ),
        "an answer that does not turn": (
            "direction",
            lambda v: np.roll(v, 1, axis=0),
            "Turning the data",
        ),
        "a margin that falls": ("slack", lambda v: v - 1e-3, "surrogate margin changes by"),
        "another speed": ("loss_time_speed", lambda v: v * 1.001, "The loss falls as"),
        "a clock that is late": ("clock_error", lambda v: v + 1e-3, "nu of the weights"),
        "AdaGrad at the l2 solution": (
            "distance",
            of(ADAGRAD, lambda v: np.minimum(v, 1 / NUS)),
            "AdaGrad does not go to the l2",
        ),
        "gradient flow at AdaGrad's solution": (
            "distance",
            of(GD, lambda v: np.minimum(v, 1 / NUS)),
            "gradient flow does not go to",
        ),
    }
    refusals = [({"n": 6}, "n must be below d = 6")]

    @classmethod
    def make(cls):
        distance = np.full((len(RUNS), ROTATIONS, len(CANDIDATES), NUS.size), 0.3)
        distance[[GD, RMSPROP, LOGISTIC], :, 0] = 1.2 / NUS
        distance[ADAGRAD, :, 2] = 0.5 / NUS
        direction = np.zeros((len(RUNS), ROTATIONS, D))
        direction[..., 0] = 1
        direction[ADAGRAD] = np.eye(D)[:ROTATIONS]
        shape = (len(RUNS), ROTATIONS)
        runs = ("run", "rotation")
        return made_up(
            Config(rotations=ROTATIONS),
            {
                "distance": ((*runs, "candidate", "nu"), distance),
                "direction": ((*runs, "input"), direction),
                "loss_time_speed": (runs, np.full(shape, 1 + 1e-9)),
                "slack": (runs, np.full(shape, 1e-8)),
                "clock_error": (runs, np.full(shape, 1e-9)),
                "closed_form_error": (("angle", "eps"), np.full((ANGLES.size, 3), 1e-9)),
            },
            {
                "nu": NUS,
                "run": list(RUNS),
                "candidate": list(CANDIDATES),
                "angle": ANGLES,
                "eps": [1e-8, 1e-4, 1.0],
            },
        )
