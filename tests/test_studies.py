"""The further studies at small sizes: what is closed-form holds, every kind of claim can fail, and pictures are drawn."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from helpers import failed, mutated

from sgfbias import cli, store
from sgfbias.diagonal import noise_anatomy, svag, weak_error
from sgfbias.digits import study as digits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weak():
    return weak_error.run(weak_error.Config(seeds=2048, law_seeds=256))


def test_weak_error_closed_forms_simulation_and_g7(weak):
    """Ground truth G7 is among the claims: log alpha of SGD, of the per-sample and of the second-order flow agree at every feature."""
    rows = [
        claim
        for claim in weak_error.claims(weak)
        if "diagonal network" not in claim.statement and "smallest step size" not in claim.statement
    ]
    assert len(rows) == 14
    assert [claim.statement for claim in rows if claim.verdict != "holds"] == []
    support = weak["law_support"].values
    for name in ("per-sample", "exact-2"):
        np.testing.assert_allclose(weak["law_shrinkage"].sel(law=name) / weak["law_shrinkage"].sel(law="sgd"), 1, atol=0.02)
    assert float((weak["law_shrinkage"].sel(law="exact-1") / weak["law_shrinkage"].sel(law="sgd")).values[support].min()) < 0.9
    assert weak_error.plot(weak) is not None


def synthetic(weak, first=1.0, second=2.0, variance=1.0):
    """Samples whose means differ from SGD's by known powers of the step size."""
    rng, copy = np.random.default_rng(0), weak.copy(deep=True)
    gamma = copy["step_size"].values[:, None]
    copy["network_sgd_shrinkage"].values = gamma + 1e-6 * rng.normal(size=(3, 2048))
    gaps = np.stack([0.3 * gamma**first, gamma**second, 0.3 * gamma], axis=1)
    copy["network_shrinkage"].values = gamma[:, None] + gaps + 1e-6 * rng.normal(size=(3, 3, 2048))
    sample = rng.normal(size=(3, 2048))
    copy["network_sgd_validation_error"].values = sample
    copy["network_validation_error"].values = np.stack([sample, sample * np.sqrt(variance), 2 * sample], axis=1)
    return copy


def test_weak_error_claims_on_the_network_know_the_orders_apart(weak):
    assert failed(weak_error, synthetic(weak)) == ""
    assert "does to second" in failed(weak_error, synthetic(weak, second=1.0))
    assert "to first weak order (diagonal" in failed(weak_error, synthetic(weak, first=0.3))
    assert "variance of the validation error" in failed(weak_error, synthetic(weak, variance=2.0))


MUTATIONS = {
    "first order in place of second": ("closed_error", lambda v: np.broadcast_to(v[:1], v.shape), "second weak order"),
    "a covariance that is off": ("closed_variance", lambda v: v * 1.1, "variance of the weights"),
    "another process": ("simulated_mean", lambda v: v + 0.1, "Simulated means"),
    "a law off at one feature": ("law_shrinkage", lambda v: v * np.where(np.arange(v.shape[1]) == 3, 1.2, 1)[None] ** np.arange(5)[:, None], "feature by feature"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_weak_error_claims_can_fail(weak, name):
    variable, change, words = MUTATIONS[name]
    assert words in failed(weak_error, mutated(weak, variable, change))


@pytest.fixture(scope="module")
def anatomy():
    config = noise_anatomy.Config(seeds=64, steps=1500, n=10, d=25, weights_seeds=64, weights_steps=100)
    return noise_anatomy.run(config)


def test_noise_anatomy_holds_and_can_fail(anatomy):
    """Ground truth G11 among the claims: isotropic noise leaves the span, all the others stay, in weights coordinates."""
    assert failed(noise_anatomy, anatomy) == ""
    order = {str(name): k for k, name in enumerate(anatomy["noise"].values)}

    def only(name, change):
        return lambda v: np.stack([change(row) if k == order[name] else row for k, row in enumerate(v)])

    stays = mutated(anatomy, "gap", only("per-sample", lambda row: np.broadcast_to(row[:1], row.shape)))
    assert "per-sample: the iterate minimises" in failed(noise_anatomy, stays)
    passes = mutated(anatomy, "gap", only("isotropic", lambda row: row * np.array([1, 0.25, 0.06])[:, None]))
    assert "Control: noise with another support" in failed(noise_anatomy, passes)
    law = mutated(anatomy, "weights_shrinkage", only("label", lambda row: row * 1.3))
    assert "label noise for a while: log alpha moves" in failed(noise_anatomy, law)
    still = mutated(anatomy, "weights_shrinkage", only("minibatch-4", lambda row: row * 0))
    assert "Every noise lowers" in failed(noise_anatomy, still)
    worse = mutated(anatomy, "landed_error", only("mean-loss", lambda row: row * 10))
    assert "Noise helps" in failed(noise_anatomy, worse)
    assert noise_anatomy.plot(anatomy) is not None


def test_svag_approaches_the_flow_and_the_claims_can_fail():
    dataset = svag.run(svag.Config(seeds=4096, time=2.0))
    assert failed(svag, dataset) == ""
    assert "falls like 1/l" in failed(svag, mutated(dataset, "svag_shrinkage", lambda v: np.broadcast_to(v[:1], v.shape)))
    assert "Control" in failed(svag, mutated(dataset, "sgd_shrinkage", lambda v: dataset["svag_shrinkage"].values))
    assert svag.plot(dataset) is not None


def test_digits_through_the_command_line(tmp_path):
    """A short run: too short to hold, but complete; and claims told from made-up bundles."""
    options = ["--seeds", "8", "--steps", "60", "--hidden", "8", "--train", "64", "--out", str(tmp_path)]
    assert cli.main(["run", "digits", *options]) in (0, 1)
    dataset = store.load(tmp_path / "study.zarr")
    assert (tmp_path / "study.png").stat().st_size > 20_000
    assert dataset["flow_test_accuracy"].sizes == {"seed": 8, "time": 61}
    assert float(dataset["sgd_loss"][:, -1].mean()) < float(dataset["sgd_loss"][:, 0].mean())

    rng = np.random.default_rng(0)
    made = dataset.copy(deep=True)
    for quantity, middle, effect in (("test_loss", 0.2, 0.03), ("test_accuracy", 0.9, -0.02)):
        made[f"gd_{quantity}"].values = np.full(61, middle)
        for name, shift in (("sgd", 0.0), ("flow", 0.0), ("coarse", 0.0), ("mean_loss", 3 * effect)):
            made[f"{name}_{quantity}"].values = middle + effect + shift + rng.normal(size=(8, 1)) * 0.001 * np.ones(61)
    assert failed(digits, made) == ""
    assert "explains it" in failed(digits, mutated(made, "flow_test_loss", lambda v: v + 0.02))
    assert "not told apart" in failed(digits, mutated(made, "flow_test_accuracy", lambda v: v + 0.02))
    assert "The noise matters" in failed(digits, mutated(made, "gd_test_loss", lambda v: v + 0.03))
    assert "Control: mean-loss" in failed(digits, mutated(made, "mean_loss_test_loss", lambda v: made["sgd_test_loss"].values))
    assert "no seed is lost" in failed(digits, mutated(made, "sgd_status", lambda v: np.full_like(v, 3)))


BAD = {
    "weak-error": (weak_error, {"time": 0.1}, "whole number of steps"),
    "noise-anatomy": (noise_anatomy, {"n": 4}, "at least 5"),
    "svag": (svag, {"step_size": -1.0}, "step_size must be positive"),
    "digits": (digits, {"batch_size": 600}, "between 1 and train = 512"),
    "digits steps": (digits, {"steps": 100}, "multiple of 60"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_before_anything_runs(name):
    study, change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(study.Config(), **change))


def test_digits_without_scikit_learn_says_what_to_install():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from sgfbias.digits.study import load_digits\n"
        "try: load_digits(0, 10)\nexcept ValueError as e: print(e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'sgfbias[digits]'" in out
