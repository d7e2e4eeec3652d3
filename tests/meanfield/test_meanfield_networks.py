"""The study `noise-of-networks`: made-up data on which every claim holds, and changes
after which each must fail.
"""

import numpy as np
from helpers import made_up
from study_case import StudyCase

from sgfbias.meanfield.studies.networks import Config, settings

CONFIG = Config()


def at(k, value):
    def changed(values):
        values = values.copy()
        values[k] = value * values[k] if value is not None else np.nan
        return values

    return changed


class TestNetworks(StudyCase):
    study = "noise-of-networks"
    small = "--examples 48 --width 6 --steps 200 --seeds 3"
    mutations = {
        "a run that is lost": ("loss", at(2, None), "Every run is finite"),
        "full batches that separate": (
            "distance",
            lambda v: v + 1e-6,
            "two runs stay together",
        ),
        "shares that do nothing": ("distance", at(3, 0.01), "Smaller shares"),
        "memories that do nothing": ("distance", at(6, 0.01), "long memories"),
        "another response": ("response", lambda v: 1.01 * v, "after one step is the step size"),
        "shared masks that separate": ("shared", lambda v: v + 1e-6, "that share their masks"),
    }

    @classmethod
    def make(cls):
        names = [f"b={b:g} q={q:.3g}" for b, q in settings(CONFIG)]
        ends = np.array([0, 1e-4, 1e-3, 1e-2, 2e-3, 4e-3, 8e-3])
        shape = (len(names), CONFIG.seeds)
        rows = {
            "distance": (("setting", "step"), ends[:, None] * np.array([0.1, 0.5, 1.0])),
            "stationarity": (("setting", "seed"), np.ones(shape)),
            "temperature": (("setting", "seed"), np.full(shape, 0.1)),
            "loss": (("setting", "seed"), np.full(shape, 0.1)),
            "response": (("setting", "seed"), np.full(shape, CONFIG.step)),
            "shared": (("step",), np.zeros(3)),
        }
        return made_up(CONFIG, rows, {"setting": names, "step": [1, 10, 100]})
