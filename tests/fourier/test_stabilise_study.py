"""The study `fourier-stabilise`: a made-up dataset decides every claim, and every claim
can fail.
"""

import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase, small_run

from sgfbias.fourier.studies.main import NETWORKS, Config

FLIPS = np.arange(9)


class TestStabilise(StudyCase):
    study = "fourier-stabilise"
    small = "--seeds 6 --flips 4 --levels 2 --steps 400"
    mutations = {
        "a large loss": ("attacked_stable", lambda v: v - 0.03 * (FLIPS == 0), "clean accuracy"),
        "no gain under attack": (
            lambda ds: ds.assign(attacked_stable=ds["attacked_plain"] - 0.001),
            "the attacked accuracy grows",
        ),
        "no gain of the certificate": (
            lambda ds: ds.assign(certified_stable=ds["certified_plain"]),
            "the certified accuracy grows",
        ),
        "a loose certificate": (
            "certified_stable",
            lambda v: v - 0.05 * (FLIPS == 4),
            "nearly tight",
        ),
        "a weak certificate": ("certified_stable", lambda v: v * 0.3, "exceeds what an attack"),
        "an attack below the truth": (
            "attacked_stable",
            lambda v: v - 0.01 * (FLIPS == 2),
            "lies between",
        ),
        "a certificate above the truth": (
            "certified_plain",
            lambda v: v + 0.2 * (FLIPS == 1),
            "lies between",
        ),
        "p = 2 that helps": ("attacked_two", lambda v: v + 0.1 * (FLIPS == 5), "for p = 2"),
        "noise that helps": ("attacked_noise", lambda v: v + 0.2, "gains nothing"),
        "signs that do not matter": ("attacked_random", lambda v: v + 0.4, "random signs"),
    }
    refusals = []

    @classmethod
    def make(cls):
        """Curves that fall as fast as the claims say, with a spread over seeds."""
        rng = np.random.default_rng(0)
        plain, stable = 0.98 / (1 + (FLIPS / 3.5) ** 3), 0.97 / (1 + (FLIPS / 6) ** 3)
        spread = 1 + 0.005 * rng.normal(size=(8, 1))
        curves = {
            "plain": plain * spread,
            "stable": stable * spread,
            "two": plain * spread,
            "noise": (plain - 0.005) * spread,
            "random": 0.5 * plain * spread,
        }
        variables = {f"attacked_{name}": (("seed", "flips"), curves[name]) for name in NETWORKS}
        for name, below in (("plain", 0.9), ("stable", 1.0)):
            bound = curves[name] * np.where(FLIPS > 0, below, 1)
            variables[f"certified_{name}"] = (("seed", "flips"), bound)
            variables[f"true_{name}"] = (("seed", "least"), curves[name][:, :3])
        variables["chosen"] = (("seed",), np.full(8, 16))
        for way, count in (("choosing", 17), ("clipping", 16)):
            along = np.linspace(0, 1, count)
            variables[f"{way}_clean"] = ((way,), 0.98 - 0.01 * along)
            variables[f"{way}_robust"] = ((way,), 0.4 + 0.4 * along)
        return made_up(Config(), variables, {"flips": FLIPS, "least": FLIPS[:3]})

    @pytest.mark.slow
    def test_a_small_one_is_complete(self):
        dataset = small_run(self.study)
        assert dataset["attacked_noise"].sizes == {"seed": 6, "flips": 5}
        assert self.module.plot(dataset) is not None
        assert np.isfinite(dataset.to_array().values).any()
