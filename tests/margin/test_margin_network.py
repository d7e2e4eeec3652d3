"""The study `margin-network`: made-up data on which every claim holds, and changes
after which each must fail.
"""

import numpy as np
from helpers import made_up
from study_case import StudyCase

from sgfbias.margin.studies.network import GEOMETRIES, LANDINGS, OPTIMISERS, Config

SEEDS = 3
NUS = np.geomspace(1, 3e3, 42)


def one(index, change):
    """A change of one entry along the second axis."""

    def apply(values):
        values[:, index] = change(values[:, index])
        return values

    return apply


class TestMarginNetwork(StudyCase):
    study = "margin-network"
    small = "--seeds 2 --n 8 --d 4 --units 4 --nu 300"
    # At the quick size claims fail on root seed 0: a run rests with an example that is
    # not fitted, and at nu = 1,000 a gap of AdaGrad in its own metric is still 0.18.
    draws = ()
    mutations = {
        "a run that stops": ("reached", lambda v: v * 0.9, "Every run reaches"),
        "RMSProp that is not aligned": (
            "gap",
            one(1, lambda v: v * 0 + 0.2),
            "gradient flow and of RMSProp are nearly parallel",
        ),
        "AdaGrad that is not": (
            "gap",
            one(2, lambda v: v * 0 + 0.3),
            "AdaGrad are nearly stationary in its own",
        ),
        "a margin that falls": ("slack", lambda v: v - 1, "surrogate margin changes by"),
        "no balance": ("stationarity", lambda v: v + 1e-2, "lies a KKT point"),
        "no complementarity": ("complementarity", lambda v: v + 1e-2, "lies a KKT point"),
        "a margin that is lost": ("gain", lambda v: v * 0.5, "lies a KKT point"),
        "another norm": ("identity", lambda v: v + 1e-2, "L sum lambda q"),
        "AdaGrad that is aligned": (
            "gap",
            one(2, lambda v: v * 0 + 0.01),
            "AdaGrad are not stationary in l2",
        ),
    }

    @classmethod
    def make(cls):
        gap = np.full((SEEDS, 3, 3, NUS.size), 0.3)
        gap[:, :2, 0] = 0.5 / NUS**0.5
        gap[:, 2, 2] = 0.5 / NUS**0.5
        runs, landings = (SEEDS, 3), (SEEDS, len(LANDINGS))
        margin = np.broadcast_to([0.009, 0.008, 0.005], runs).copy()
        rows = {"reached": np.ones(runs), "slack": np.full(runs, 1e-6), "margin": margin}
        landed = {
            "stationarity": 1e-6,
            "complementarity": 1e-9,
            "identity": 1e-8,
            "gain": 1.3,
            "moved": 12.0,
            "iterations": 20.0,
            "landed_margin": 0.01,
        }
        return made_up(
            Config(seeds=SEEDS),
            {"gap": (("seed", "optimiser", "geometry", "nu"), gap)}
            | {name: (("seed", "optimiser"), values) for name, values in rows.items()}
            | {name: (("seed", "landing"), np.full(landings, v)) for name, v in landed.items()},
            {
                "nu": NUS,
                "optimiser": list(OPTIMISERS),
                "geometry": list(GEOMETRIES),
                "landing": [f"{name} in {geometry}" for name, geometry in LANDINGS],
            },
        )
