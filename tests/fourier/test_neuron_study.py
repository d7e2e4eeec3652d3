"""The study `fourier-neuron`: a made-up dataset decides every claim, and every claim
can fail.
"""

import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase, small_run

from sgfbias.fourier.studies.neuron import POWERS, WAY, Config
from sgfbias.fourier.studies.neuron.measure import paths

SMALL = Config(neurons=40)


class TestNeuron(StudyCase):
    study = "fourier-neuron"
    small = "--neurons 20 --d 8"
    mutations = {
        "another distance": ("distance_reached", lambda v: v * 1.001, "the mean l_p distance"),
        "weights that do better": (
            "distance_others",
            lambda v: v * 3,
            "No other weights have a larger",
        ),
        "no growth": (
            lambda ds: ds.assign(distance_before=ds["distance_reached"]),
            "grows by at most",
        ),
        "p = 2 that gains as much": (
            lambda ds: ds.assign(distance_before=ds["distance_reached"] / 2),
            "for p = 2",
        ),
        "a sign": ("sign_mismatches", lambda v: v + 1, "signs of the weights"),
        "a bound that is a median": (
            "normal_bound",
            lambda v: v - 0.2,
            "is never exceeded",
        ),
        "another mean": ("normal_exact", lambda v: v + 0.15, "Sheppard's formula has the mean"),
        "a formula that bounds": ("big_gaussian", lambda v: v + 0.3, "is no bound"),
        "powers that keep as many": (
            lambda ds: ds.assign(agreement_power=ds["agreement_clip"]),
            "than powers",
        ),
        "shifts that keep more": (
            lambda ds: ds.assign(agreement_shift=ds["agreement_clip"] + 0.01),
            "than shifted",
        ),
        "a coarse quadrature": ("quadrature_error", lambda v: v + 1e-8, "by quadrature"),
        "biases without effect": ("unbiased_error", lambda v: 0 * v, "biases of the bits matter"),
    }

    @classmethod
    def make(cls):
        """Neurons of which the theory holds, with a spread."""
        spread = 1 + 0.05 * np.random.default_rng(0).normal(size=SMALL.neurons)
        reached = np.array([2.3, 1.1, 0.82, 0.6])[:, None] * spread
        before = reached / np.array([1.8, 1.2, 1.005, 1.2])[:, None]
        kept = 1 - 0.15 * WAY[:, None] * spread
        values = {
            "distance_reached": (("p", "neuron"), reached),
            "distance_norm": (("p", "neuron"), reached),
            "distance_before": (("p", "neuron"), before),
            "distance_others": (("p", "neuron"), 0.97 * reached),
            "gain_bound": (("neuron",), 10 * spread),
            "sign_mismatches": (("neuron",), np.zeros(SMALL.neurons)),
            "quadrature_error": (("neuron",), 1e-15 * spread),
            "unbiased_error": (("neuron",), 0.1 * spread),
            "path_distance": (("way", "neuron"), 1.3 + WAY[:, None] * spread),
            "agreement_clip": (("way", "neuron"), kept),
            "agreement_power": (("way", "neuron"), kept - 0.02 * spread),
            "agreement_shift": (("way", "neuron"), kept - 0.05 * spread),
        }
        for name, exact, gaussian, bound in (("normal", 0.2, 0.19, 0.33), ("big", 0.3, 0.23, 0.45)):
            for kind, value in (("exact", exact), ("gaussian", gaussian), ("bound", bound)):
                values[f"{name}_{kind}"] = (("neuron",), value * spread)
        return made_up(SMALL, values, {"p": list(POWERS), "way": WAY})

    def test_the_paths_end_where_they_should(self):
        weight = np.array([[1.0, -4.0, 2.0]])
        for path in paths(weight).values():
            np.testing.assert_allclose(path[0], weight / 4)
            np.testing.assert_allclose(path[-1], np.sign(weight))

    @pytest.mark.slow
    def test_a_small_one_is_complete_and_holds(self):
        dataset = small_run(self.study)
        assert all(np.isfinite(dataset[name].values).all() for name in dataset.data_vars)
        assert not [claim for claim in self.module.claims(dataset) if claim.broken]
