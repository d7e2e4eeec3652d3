"""The study `fourier-adversarial`: every claim can fail."""

import numpy as np
from helpers import made_up
from study_case import StudyCase

from sgfbias.fourier.studies.adversarial import AT, LENGTHS, Config

SEEDS, MOST = 8, 8


def curves(before, after):
    """Accuracies (seed, ..., stage, flips) that have the given values at 4 flips, with
    some spread over seeds.
    """
    spread = 0.004 * np.linspace(-1, 1, SEEDS)
    level = np.stack(np.broadcast_arrays(before, after), axis=-1)[..., None]
    falling = level + 0.05 * (AT - np.arange(MOST + 1))
    return falling + spread.reshape(-1, *(1,) * falling.ndim)


def at(stage, length, by):
    """A change of the accuracy at one stage and length."""

    def change(values):
        values = values.copy()
        values[:, LENGTHS.index(length), stage] += by
        return values

    return change


class TestAdversarial(StudyCase):
    study = "fourier-adversarial"
    small = "--seeds 6 --steps 1500 --most 4"
    mutations = {
        "no gain after a short training": ("attacked", at(0, 62, 0.2), "After 62 steps against"),
        "a short training is not enough": ("attacked", at(1, 62, -0.1), "at least four fifths"),
        "one length without a certificate": (
            "certified", at(1, 375, -0.15), "points of certified accuracy"
        ),
        "training that does not help": ("attacked", at(0, 1250, -0.25), "1250 steps against the"),
        "steps help, and not flips": (
            "attacked_idle", lambda v: v + 0.2, "an attacker who flips nothing"
        ),
    }  # fmt: skip
    refusals = []

    @classmethod
    def make(cls):
        attacked = curves(np.array([0.35, 0.45, 0.52, 0.68, 0.76]), np.full(5, 0.76))
        certified = curves(np.array([0.25, 0.32, 0.33, 0.35, 0.36]), np.full(5, 0.76))
        dims, one = ("seed", "length", "stage", "flips"), ("seed", "stage", "flips")
        return made_up(
            Config(),
            {
                "attacked": (dims, attacked),
                "certified": (dims, certified),
                "attacked_idle": (one, curves(0.33, 0.74)),
                "attacked_scratch": (one, curves(0.80, 0.79)),
            },
            {"length": list(LENGTHS), "flips": np.arange(MOST + 1), "stage": [0, 1]},
        )
