"""The figures of Pesme et al. 2021 share some claims; each of these can fail."""

import jax
import numpy as np
import pytest
import xarray as xr
from helpers import mutated

from sgfbias import (
    GradientDescent,
    StochasticGradientDescent,
    StochasticGradientFlow,
    simulate,
)
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.pesme2021 import common, fig3


def made(**finals):
    """A dataset as the figures write it, with 64 converged seeds whose final errors
    scatter about the values in `finals`.
    """
    rng = np.random.default_rng(0)
    data = {}
    for name, value in finals.items():
        sample = value * np.exp(0.3 * rng.normal(size=64)) if name != "gd" else np.array(value)
        data[f"{name}_final_validation_error"] = (("seed",) if name != "gd" else (), sample)
        data[f"{name}_status"] = (
            (("seed",), np.zeros(64, int)) if name != "gd" else ((), np.array(0))
        )
    return xr.Dataset(data, attrs={"step_size": "0.1"})


def test_shared_claims_can_fail():
    good = made(gd=1.0, sgd=0.1, sgf=0.12)
    assert common.below(good, "sgd", "SGD", "").verdict == "holds"
    assert common.alike(good, "").verdict == "holds"
    assert common.none_lost(good, {"sgd": "SGD"}).verdict == "holds"
    ratio = 1 / common.final(good, "sgd")
    assert common.printed("", "", said=20.0, sample=ratio, ours="").verdict == "holds"
    assert common.printed("", "", said=80.0, sample=ratio, ours="").verdict == "fails"
    assert common.below(made(gd=1.0, sgd=1.5), "sgd", "SGD", "").broken
    assert common.alike(made(gd=1.0, sgd=0.1, sgf=2.0), "").broken
    lost = mutated(good, "sgd_status", lambda v: np.where(np.arange(64) < 8, 3, v))
    assert common.none_lost(lost, {"sgd": "SGD"}).broken


def test_claims_that_cannot_be_tested_say_so():
    good = made(gd=1.0, sgd=0.1, sgf=0.12)
    assert common.below(good, "sgd", "SGD", "", unless="why").reason == "why"

    def laws(**errors):
        return good.assign({f"law_{name}_error": value for name, value in errors.items()})

    clear = laws(gd=1.0, sgd=0.1, sgf=0.2)
    assert common.no_effect(clear, "sgd") == ""
    assert common.alike(clear, "").verdict == "holds"
    assert "predicts 1.05" in common.no_effect(laws(gd=1.0, sgd=0.95, sgf=0.2), "sgd")
    # The seeds scatter by 0.3, so 64 of them resolve 4 * 1.25 * 0.3 / 8 = 0.19.
    assert "predicts 1.15" in common.no_effect(laws(gd=1.15, sgd=1.0, sgf=0.2), "sgd")
    assert common.no_effect(laws(gd=1.3, sgd=1.0, sgf=0.2), "sgd") == ""
    assert common.alike(laws(gd=1.0, sgd=0.1, sgf=0.5), "").verdict == "not applicable"
    lost = mutated(clear, "sgd_status", lambda v: np.where(np.arange(64) < 8, 3, v))
    assert common.no_effect(lost, "sgd") == "8 of 64 runs (SGD) diverged"
    assert common.many_lost(clear, "gd", "sgd") == ""
    nothing = np.full(64, np.nan)
    assert common.printed("", "", said=2.0, sample=nothing, ours="").verdict == "not applicable"


def test_no_effect_does_not_pass_for_a_small_printed_ratio():
    one = np.full(64, 1.0)
    assert common.printed("", "", said=2.1, sample=one, ours="").verdict == "fails"
    assert common.printed("", "", said=2.1, sample=1.6 * one, ours="").verdict == "holds"
    assert common.printed("", "", said=1.0, sample=1.2 * one, ours="").verdict == "holds"


@pytest.mark.slow
def test_the_laws_predict_the_ends_of_runs_with_little_noise():
    """At a small step size the ratios of the errors are those that the laws predict."""
    config = fig3.Config(n=10, d=20, sparsity=2, alpha=0.1, step_size=0.02, steps=20_000, seeds=32)
    with jax.enable_x64(True):
        problem, start = draw(config)
        out = common.columns(
            config, 0.02, simulate(GradientDescent(0.02), start, problem, steps=10)
        )
        common.add_laws(out, problem, start, 0.02, config.steps, flows={"sgf": 1.0}, label=0.5)
        ends = {
            name: simulate(dynamics, start, problem, keys=config.keys(0, 32), steps=config.steps)
            for name, dynamics in (
                ("sgd", StochasticGradientDescent(0.02)),
                ("sgf", StochasticGradientFlow(0.02)),
            )
        }
    said = {name: float(out.data[f"law_{name}_error"][1]) for name in ("gd", *ends, "label")}
    for name, runs in ends.items():
        found = np.median(np.log(np.asarray(runs.final["validation_error"]) / said["gd"]))
        assert found == pytest.approx(np.log(said[name] / said["gd"]), rel=0.2)
    assert said["label"] < said["sgd"]
