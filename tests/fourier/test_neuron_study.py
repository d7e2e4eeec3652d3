"""The study `fourier-neuron`: every claim can fail."""

import numpy as np
from study_case import StudyCase


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

    def test_the_paths_end_where_they_should(self):
        from sgfbias.fourier.studies.neuron import paths

        weight = np.array([[1.0, -4.0, 2.0]])
        for path in paths(weight).values():
            np.testing.assert_allclose(path[0], weight / 4)
            np.testing.assert_allclose(path[-1], np.sign(weight))
