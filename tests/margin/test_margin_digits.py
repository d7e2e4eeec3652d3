"""The study `margin-digits`: made-up data on which every claim holds, and changes after
which each must fail.
"""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

from sgfbias.margin.data import digits
from sgfbias.margin.studies.digits import Config
from sgfbias.study import study_named

SEEDS = 2
NUS = np.geomspace(5, 1000, 47)


class TestMarginDigits(StudyCase):
    study = "margin-digits"
    small = "--seeds 1 --images 20 --width 8 --nu 760 --adam-steps 500"
    mutations = {
        "a run that stops": ("end_nu", lambda v: v * 0.9, "reaches the last nu"),
        "a loss that is not 0": ("end_loss", lambda v: v + 1e-300, "reaches the last nu"),
        "a margin that falls": ("margin_l2", lambda v: v[:, ::-1], "margin rises all the way"),
        "a gap that stays": ("gap_l2", lambda v: v * 0 + 0.1, "turns towards a KKT point"),
        "a gap in l_inf that closes": ("gap_linf", lambda v: v / NUS, "not turn towards l_inf"),
        "a solver that gets there": ("end_slid", lambda v: v * 0 + 30, "does not reach nu"),
    }

    @classmethod
    def make(cls):
        series = {
            "margin_l2": 0.08 - 0.1 / NUS,
            "gap_l2": 0.4 / NUS,
            "gap_linf": 0.7 + 0 * NUS,
            "accuracy": 0.8 + 0 * NUS,
        }
        ends = {"nu": 1000.0, "loss": 0.0, "q_min": 1001.0, "pointwise": 0.1, "slid": 9.0}
        ends |= {"adam_nu": 8.0, "adam_l2": 0.3, "adam_linf": 0.4}
        return made_up(
            Config(seeds=SEEDS),
            {name: (("seed", "nu"), np.stack([v] * SEEDS)) for name, v in series.items()}
            | {f"end_{name}": (("seed",), np.full(SEEDS, v)) for name, v in ends.items()},
            {"nu": NUS},
        )


def test_the_images_and_what_they_need(monkeypatch):
    first, second = digits(100, seed=1)
    assert first.inputs.shape == (100, 64)
    assert second.n == 1797 - 100
    assert float(jnp.min(first.inputs)) >= -1
    assert float(jnp.max(first.inputs)) <= 1
    with pytest.raises(ValueError, match="`n` must be"):
        digits(2000)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"need scikit-learn: pip install 'sgfbias\[margin\]'"):
        digits(100)


@pytest.mark.slow
def test_a_convolution_goes_to_the_last_nu_as_well():
    """A small convolution, on which all claims that must hold do."""
    config = Config(
        convolution=True, seeds=1, images=20, width=8, nu=760, adam_steps=1500, root_seed=1
    )
    study = study_named("margin-digits")
    dataset = study.run(config)
    np.testing.assert_allclose(dataset["end_nu"], 760, rtol=1e-3)
    assert dataset["end_loss"].item() == 0.0
    assert [claim.statement for claim in study.claims(dataset) if claim.broken] == []


def test_an_adam_that_has_not_fitted_is_not_judged():
    dataset = TestMarginDigits.make()
    dataset["end_adam_l2"].values[0] = np.nan
    (row,) = [c for c in study_named("margin-digits").claims(dataset) if c.statement[:4] == "Adam"]
    assert row.verdict == "not applicable"
    assert "take more, --adam-steps" in row.reason
