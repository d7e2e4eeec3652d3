"""The study `fourier-digits`: every claim can fail. The data that come with
scikit-learn.
"""

import sys

import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

from sgfbias.fourier import bundled
from sgfbias.fourier.studies.digits import AT, UNITS, Config

SEEDS, FLIPS = 8, 6
LEVELS = {
    "digits_attacked": (0.38, 0.50, 0.51, 0.63, 0.56, 0.2),
    "digits_certified": (0.10, 0.35, 0.35, 0.20, 0.40, 0.1),
    "cancer_attacked": (0.80, 0.77, 0.77, 0.82, 0.80, 0.2),
    "cancer_certified": (0.40, 0.67, 0.67, 0.50, 0.70, 0.1),
}
NAMES = ("plain", "stable", "refit", "against", "both", "random")


class TestDigits(StudyCase):
    study = "fourier-digits"
    small = "--seeds 6 --flips 2"
    mutations = {
        "no gain": ("digits_attacked_stable", lambda v: v - 0.13, "stabilisation adds attacked"),
        "a dear one": (
            "digits_attacked_stable", lambda v: v - 0.2 * (np.arange(FLIPS + 1) == 0), "its budget"
        ),
        "as good as training": (
            "digits_attacked_stable", lambda v: v + 0.14, "training against the attacker leaves"
        ),
        "on top of training": ("digits_attacked_both", lambda v: v + 0.1, "lowers its"),
        "nothing proved": ("cancer_certified_stable", lambda v: v - 0.3, "adds certified"),
        "signs without a meaning": ("digits_attacked_random", lambda v: v + 0.4, "random signs"),
    }  # fmt: skip

    @classmethod
    def make(cls):
        falling = 0.2 * (AT - np.arange(FLIPS + 1))
        spread = 0.004 * np.linspace(-1, 1, SEEDS)[:, None]
        variables = {
            f"{kind}_{name}": (("seed", "flips"), level + falling + spread)
            for kind, levels in LEVELS.items()
            for name, level in zip(NAMES, levels, strict=True)
        }
        weights = np.random.default_rng(0).normal(size=(2, UNITS, 64))
        variables["weights"] = ("stage", "unit", "pixel"), weights
        return made_up(Config(), variables, {"flips": np.arange(FLIPS + 1)})


def test_the_data_of_scikit_learn():
    """Pixels above 7 of 16; odd digits; features above their median, on half of the
    samples.
    """
    from sklearn import datasets

    found = bundled.digits()
    assert found.inputs.shape == (1797, 64)
    image, number = datasets.load_digits(return_X_y=True)
    np.testing.assert_array_equal(found.inputs[10] > 0, image[10] >= 8)
    np.testing.assert_array_equal(found.labels, number % 2)
    tissue = bundled.cancer()
    assert tissue.inputs.shape == (569, 30)
    on = np.asarray(tissue.inputs > 0).sum(axis=0)
    assert ((on <= 284) & (on > 270)).all()
    assert tissue.classes == ("malignant", "benign")
    assert int(tissue.labels.sum()) == 357


def test_without_scikit_learn_the_data_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for load in (bundled.digits, bundled.cancer):
        with pytest.raises(ValueError, match=r"pip install 'sgfbias\[fourier\]'"):
            load()
