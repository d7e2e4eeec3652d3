"""The study `margin-crossover`: made-up data on which every claim holds, and changes
after which each must fail.
"""

import numpy as np
from helpers import made_up
from study_case import StudyCase

from sgfbias.margin.studies.crossover import DISCRETE, EPSILONS, LARGE_EPS, NUS, Config

COUNT = len(EPSILONS)
SEEN = 6 + 4.6 * np.arange(COUNT)


class TestMarginCrossover(StudyCase):
    study = "margin-crossover"
    small = "--iterations 8000"
    mutations = {
        "a crossover elsewhere": ("seen", lambda v: v + 0.2, "falls to eps where"),
        "ratios that fall": ("ratio_linf", lambda v: v[::-1], "margin approaches the best"),
        "l2 margins that stay": ("ratio_l2", lambda v: v * 0 + 0.9, "goes to the l2 solution"),
        "another rate": ("rate", lambda v: v * 1.02, "at the rate of the closed form"),
        "another direction": ("end_linf", lambda v: v - 0.1, "l_inf margin is the best one"),
        "gradient flow in l_inf": ("reference_linf", lambda v: v * 0 + 1, "have no phase"),
        "equal margins": ("rate_l2", lambda v: v * 0 + RATES, "does not give the rates"),
    }
    refusals = [({"n": 6}, "n must be below d = 6")]

    @classmethod
    def make(cls):
        early = NUS[None] < SEEN[:, None]
        linf = np.where(early, 1 - 0.3 / NUS, 0.8)
        for k, nu in enumerate(SEEN):  # at the crossover itself
            near = np.abs(NUS - nu) < 0.2
            linf[k, near] = 1 - 0.3 / nu
        l2 = np.where(NUS[None] < SEEN[:, None] + 0.2, 0.8, 0.995)
        return made_up(
            Config(),
            {
                "ratio_linf": (("eps", "nu"), linf),
                "ratio_l2": (("eps", "nu"), l2),
                "reference_linf": (("reference", "nu"), np.full((2, NUS.size), 0.75)),
                "reference_l2": (("reference", "nu"), np.full((2, NUS.size), 0.99)),
                "seen": (("eps",), SEEN.copy()),
                "predicted": (("eps",), SEEN + 0.1),
                "earliest": (("eps",), SEEN - 0.15),
                "latest": (("eps",), SEEN + 0.15),
                "rate": (("algorithm",), RATES * 1.001),
                "rate_predicted": (("algorithm",), RATES.copy()),
                "rate_l2": (("algorithm",), RATES * 0.6),
                "end_linf": (("algorithm",), np.full(3, 0.999)),
            },
            {
                "nu": NUS,
                "eps": np.array(EPSILONS),
                "reference": ["gradient flow", f"eps = {LARGE_EPS:g}"],
                "algorithm": list(DISCRETE),
            },
        )


RATES = np.array([4.9e-4, 4.9e-4, 3.7e-3])
