"""The study `margin-network`: made-up data on which every claim holds, and changes
after which each must fail; and the networks from which its runs start.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

from sgfbias import Problem, margin
from sgfbias.margin.network import fitting_network
from sgfbias.margin.studies.network import GEOMETRIES, LANDINGS, OPTIMISERS, Config

SEEDS = 3
NUS = np.geomspace(1, 3e3, 84)


def one(index, change):
    """A change of one entry along the second axis."""

    def apply(values):
        values[:, index] = change(values[:, index])
        return values

    return apply


def geometry(optimiser, index, value):
    """A gap of one optimiser in one geometry."""

    def apply(values):
        values[:, optimiser, index] = value
        return values

    return apply


class TestMarginNetwork(StudyCase):
    study = "margin-network"
    small = "--seeds 2 --n 8 --d 4 --units 5 --nu 300"
    mutations = {
        "a run that stops": ("reached", lambda v: v * 0.9, "Every run reaches"),
        "a surrogate that falls": ("slack", lambda v: v - 1, "surrogate margin changes by"),
        "a surrogate that rises less": ("gained", lambda v: v / 2, "what the surrogate margin gai"),
        "AdaGrad's own gap that rises": (
            "own",
            one(2, lambda v: v[:, ::-1]),
            "in the optimiser's own geometry falls",
        ),
        "AdaGrad aligned in l2": ("gap", geometry(2, 0, 0.01), "and least so in l2"),
        "RMSProp aligned in AdaGrad's metric": (
            "gap",
            geometry(1, 2, 0.01),
            "nearest to stationary in its own metric",
        ),
        "no balance": ("stationarity", lambda v: v + 1e-5, "lies a KKT point"),
        "no complementarity": ("complementarity", lambda v: v + 1e-5, "lies a KKT point"),
        "a margin that is lost": ("gain", lambda v: v * 0.5, "lies a KKT point"),
        "another norm": ("identity", lambda v: v + 1e-5, "L sum lambda q"),
        "gradient flow aligned in AdaGrad's metric": (
            "gap",
            geometry(0, 2, 0.01),
            "in the geometry of the other problem",
        ),
        "AdaGrad aligned in l_inf": ("gap", geometry(2, 1, 0.01), "nearly stationary in l_inf"),
    }

    @classmethod
    def make(cls):
        gap = np.full((SEEDS, 3, 3, NUS.size), 0.4)
        gap[:, 2, 0] = 0.5
        gap[:, :2, 0] = gap[:, 2, 2] = 0.5 / NUS**0.5
        own = np.stack([gap[:, 0, 0], gap[:, 1, 0], gap[:, 2, 2]], axis=1)
        runs, landings = (SEEDS, 3), (SEEDS, len(LANDINGS))
        margins = np.broadcast_to([0.009, 0.008, 0.005], runs).copy()
        # int (1 - cos^2) d log nu of these gaps is 2 - 1/4.
        rows = {"reached": np.ones(runs), "slack": np.full(runs, 1e-6), "margin": margins}
        rows["gained"] = np.full(runs, 1.8)
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
            | {
                "own": (("seed", "optimiser", "nu"), own),
                "turned": (("seed",), np.full(SEEDS, 0.4)),
            }
            | {name: (("seed", "optimiser"), values) for name, values in rows.items()}
            | {name: (("seed", "landing"), np.full(landings, v)) for name, v in landed.items()},
            {
                "nu": NUS,
                "optimiser": list(OPTIMISERS),
                "geometry": list(GEOMETRIES),
                "landing": [f"{name} in {geometry}" for name, geometry in LANDINGS],
            },
        )


def test_the_start_fits_and_is_balanced(monkeypatch):
    """nu is what was asked for, every margin is positive, and |W|^2 = 2 |a|^2."""
    X = jax.random.normal(jax.random.key(3), (9, 4))
    y = jnp.where(X[:, 0] > 0.1, 1.0, -1.0)
    network = fitting_network(jax.random.key(1), X, y, units=7, nu=0.5)
    problem = Problem(X, y, loss=margin.ExponentialLoss())
    np.testing.assert_allclose(margin.nu(network, problem), 0.5, rtol=1e-10)
    assert np.all(np.asarray(margin.margins(network, problem)) > 0)
    first, last = (np.asarray(layer.weight) for layer in network.layers)
    np.testing.assert_allclose(np.sum(first**2), 2 * np.sum(last**2), rtol=1e-12)
    # No output layer gives the same point two labels.
    monkeypatch.setattr("sgfbias.margin.network.DRAWS", 2)
    with pytest.raises(ValueError, match="hidden layers of 2 units lets an output layer fit the 2"):
        fitting_network(
            jax.random.key(1), X[:1].repeat(2, 0), jnp.array([1.0, -1.0]), units=2, nu=0.5
        )
