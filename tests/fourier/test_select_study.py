"""The study `fourier-select`: a made-up dataset decides every claim, and every claim
can fail.
"""

import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase, small_run

from sgfbias.fourier.studies.select import Config

BUDGETS = np.array([0.01, 0.02, 0.05])


class TestSelect(StudyCase):
    study = "fourier-select"
    small = "--seeds 6 --steps 400 --budgets 0.02 0.05"
    mutations = {
        "no loss": ("clean", lambda v: np.ones_like(v), "Stabilising all neurons costs"),
        "an exact choice that is not": ("exact_gain", lambda v: v - 100, "No rule has a larger"),
        "GMB as good": (lambda ds: ds.assign(gmb_gain=ds["gmbc_gain"]), "larger gains than GMB"),
        "a poor GMBC": ("gmbc_gain", lambda v: v * 0.75, "GMBC has at least 75%"),
        "any order as good": (
            lambda ds: ds.assign(random_gain=ds["gmbc_gain"]),
            "the order matters",
        ),
    }
    refusals = [
        ({"budgets": (0.01,)}, "budgets must be two or more growing numbers"),
        ({"budgets": (0.02, 0.01)}, "growing numbers, but are"),
    ]

    @classmethod
    def make(cls):
        """Gains that grow with the budget, in the order of the claims."""
        rng = np.random.default_rng(0)
        spread = 1 + 0.02 * rng.normal(size=(8, 3))
        gain = np.array([470.0, 570.0, 740.0]) * spread
        shares = {"exact": 1.0, "gmbc": 0.9, "gmb": 0.6, "bisect": 0.6, "random": 0.8}
        variables = {
            f"{name}_gain": (("seed", "budget"), share * gain) for name, share in shares.items()
        }
        for name in (*shares, "clip"):
            variables[f"{name}_loss"] = (("seed", "budget"), BUDGETS * 0.9 * spread)
            variables[f"{name}_test_loss"] = (("seed", "budget"), BUDGETS * spread)
            attacked = np.stack([0.6 * spread, 0.1 * spread], axis=-1)
            variables[f"{name}_attacked"] = (("seed", "budget", "attack"), attacked)
        clean = np.stack([0.98 * spread[:, 0], 0.91 * spread[:, 0]], axis=1)
        variables["clean"] = (("seed", "copy"), clean)
        variables["attacked"] = (
            ("seed", "copy", "attack"),
            np.stack([0.5 * clean, 0.1 * clean], 2),
        )
        return made_up(Config(), variables, {"budget": BUDGETS, "attack": [2, 4]})

    def test_what_only_informs_is_said(self, made):
        rows = {c.statement: c for c in self.module.claims(made) if not c.must_hold}
        assert [row.verdict for row in rows.values()] == ["holds", "holds", "fails"]
        apart = made.assign(gmb_attacked=made["gmb_attacked"] - 0.08)
        rows = [c for c in self.module.claims(apart) if "differ by at most" in c.statement]
        assert (rows[0].verdict, rows[0].must_hold) == ("fails", False)

    @pytest.mark.slow
    def test_a_small_one_is_complete(self):
        dataset = small_run(self.study)
        assert dataset["exact_gain"].sizes == {"seed": 6, "budget": 2}
        assert np.isfinite(dataset["clip_attacked"].values).all()
        assert self.module.plot(dataset) is not None
