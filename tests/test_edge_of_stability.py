"""The study `edge-of-stability`: the recursion against the package, every claim told right from wrong on a made-up dataset, and a small run."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from helpers import failed, mutated, outside_row_space, small_problem

import sgfbias as sgf
from sgfbias.diagonal import edge_of_stability as study
from sgfbias.diagonal.edge_of_stability_family import edges, family, unevenness

DRAWS, LEVELS, BATCHES, SEEDS, FEATURES, SUPPORT = 8, 25, (1, 2, 4), 2, 30, 3
N = 20


def made_up():
    """What theory would have a run find: gains gamma (G + V/b) (1 + c gamma), edges, errors that follow the shape of the gain."""
    rng = np.random.default_rng(0)
    level = np.arange(8, -17, -1) / 4
    gamma, on = 2.0**level, np.arange(FEATURES) < SUPPORT
    draw = np.exp(0.05 * rng.normal(size=DRAWS))
    truth = np.tile(np.where(on, 1.0, 0.0), (DRAWS, 1))
    full, each = np.where(on, 0.8, 0.1), np.where(on, 1.6, 1.0)

    def gain(shape, extra=()):
        total = (gamma * (1 + 0.8 * gamma))[None, :, None] * draw[:, None, None] * shape
        return np.broadcast_to(total.reshape(DRAWS, LEVELS, *(1,) * len(extra), FEATURES), (DRAWS, LEVELS, *extra, FEATURES)).copy()

    def loss(edge, extra=()):
        return np.broadcast_to(np.where(level <= edge, 1e-6, np.inf).reshape(LEVELS, *(1,) * len(extra)), (DRAWS, LEVELS, *extra)).copy()

    def error(edge, sign, extra=()):
        below = edge - level
        jump = np.where(below < 0.45, 4.0 * (0.5 - below), 0.0)
        logs = sign * (0.3 * gamma / 2.0**edge + jump)
        return np.exp(logs.reshape(LEVELS, *(1,) * len(extra))[None] * draw.reshape(-1, *(1,) * (1 + len(extra)))) + np.zeros(
            (DRAWS, LEVELS, *extra)
        )

    start = np.ones(DRAWS)
    columns = {
        "gamma": (("draw", "level"), np.tile(gamma, (DRAWS, 1))),
        "truth": (("draw", "feature"), truth),
        "flat_error": (("draw", "level"), error(1.0, -1)),
    }
    columns |= dict.fromkeys(("start_loss", "shifted_start_loss", "flow_error", "shifted_flow_error"), (("draw",), start))
    for name, edge, sign, shape in (("gd", 1.0, 1, full), ("shifted", -1.0, -1, np.where(on, 0.42, 0.4))):
        columns |= {f"{name}_loss": (("draw", "level"), loss(edge)), f"{name}_error": (("draw", "level"), error(edge, sign))}
        columns |= {f"{name}_{v}": (("draw", "level", "feature"), gain(shape)) for v in ("gain", "half_gain")}
    dims, limits = ("batch", "draw", "level", "seed"), (-1.0, -0.5, 0.25)
    columns["sgd_loss"] = (dims, np.stack([loss(e, (SEEDS,)) for e in limits]))
    columns["sgd_error"] = (dims, np.stack([error(e, -1, (SEEDS,)) for e in limits]))
    gains = np.stack([gain(full + each / b, (SEEDS,)) for b in BATCHES])
    columns |= {f"sgd_{v}": ((*dims, "feature"), gains.copy()) for v in ("gain", "half_gain")}
    law = ("law", "draw", "law_level")
    live = np.stack([loss(e)[:, ::2] for e in (1.0, -1.0)])
    for name, value in (("stationarity", 1e-14), ("distance", 1e-13), ("no_offset", 0.1), ("no_gain", 0.5)):
        columns[f"law_{name}"] = (law, np.full(live.shape, value))
    columns["law_loss"] = (law, live)
    columns["law_gain"] = ((*law, "feature"), np.stack([gain(full)[:, ::2]] * 2))
    squares = rng.exponential(size=(2, 2, 2000)) * np.array([[(N + 1) / 3 + 1, 1.0], [5.0, 3.0]])[..., None]
    columns["first_square"] = (("law", "part", "first_draw"), squares)
    attrs = {"config": json.dumps({"n": N, "sparsity": SUPPORT, "mean": 4.0})}
    return xr.Dataset(columns, {"level": level, "batch": np.array(BATCHES)}, attrs)


@pytest.fixture(scope="module")
def dataset():
    return made_up()


def test_what_theory_predicts_passes_and_is_drawn(dataset):
    assert failed(study, dataset) == ""
    assert all(claim.verdict == "holds" for claim in study.claims(dataset))
    assert study.plot(dataset) is not None


def _even(v):
    return np.broadcast_to(v.mean(axis=-1, keepdims=True), v.shape)


def _same_batch(v):
    return np.stack([v[0]] * len(v))


MUTATIONS = {
    "a wrong gain": ("law_stationarity", lambda v: v + 1e-6, "Exact law"),
    "an endpoint elsewhere": ("law_distance", lambda v: v + 1e-6, "Exact law"),
    "solutions not found": ("law_distance", lambda v: np.where(np.arange(v.shape[1])[None, :, None] < 2, np.nan, v), "Exact law"),
    "an offset of no consequence": ("law_no_offset", lambda v: v * 1e-9, "Control: without the offset"),
    "another convention": ("law_gain", lambda v: 2 * v, "one step size, one gain"),
    "an edge beyond the grid": ("gd_loss", np.zeros_like, "across every edge"),
    "gains still growing": ("gd_half_gain", lambda v: 0.9 * v, "gain has settled"),
    "even gradients at the start": ("first_square", lambda v: np.stack([v[1], v[1]]), "At the start"),
    "an even gain of gradient descent": ("gd_gain", _even, "So is the gain"),
    "an uneven gain of SGD": ("sgd_gain", lambda v: v * np.where(np.arange(FEATURES) < SUPPORT, 5, 1), "So is the gain"),
    "an uneven gain on uncentred inputs": ("shifted_gain", lambda v: v * np.where(np.arange(FEATURES) < SUPPORT, 8, 1), "far more even"),
    "gradient descent that recovers": ("gd_error", lambda v: 1 / v, "gradient descent recovers the truth worse"),
    "SGD that does not": ("sgd_error", lambda v: 1 / v, "SGD, batch 4 recovers the truth better"),
    "solutions that were not found": (
        "sgd_error",
        lambda v: np.where(np.arange(DRAWS)[:, None, None] == 0, v * [1, np.nan], v),
        "SGD, batch 2 recovers",
    ),
    "no trend of gradient descent": ("gd_error", lambda v: np.where(np.arange(LEVELS) > 5, 1.0, v), "gradient descent gets worse"),
    "no trend of SGD": ("sgd_error", lambda v: np.where(np.arange(LEVELS)[:, None] > 13, 1.0, v), "SGD, batch 1 gets better"),
    "no window": (
        "gd_error",
        lambda v: np.exp(np.broadcast_to(2.0 ** (-np.arange(LEVELS) / 4), v.shape)),
        "narrow window below the edge, gradient",
    ),
    "uncentred inputs that harm": ("shifted_error", lambda v: 1 / v, "Control: where its gain is even"),
    "an even gain that harms": ("flat_error", lambda v: 1 / v, "spread evenly"),
    "no scaling rule": ("sgd_gain", lambda v: v * np.array([1, 1.5, 3])[:, None, None, None, None], "Linear scaling rule: 4"),
    "a gain that does not grow": ("sgd_gain", lambda v: np.broadcast_to(v[:, :, -1:], v.shape), "Control: twice the step size"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_can_fail(dataset, name):
    variable, change, words = MUTATIONS[name]
    assert words in failed(study, mutated(dataset, variable, change))


def test_an_edge_has_only_convergence_below_it():
    loss = np.array([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])[..., None]
    np.testing.assert_array_equal(edges(loss, np.ones(3)), [2, 4, 0])


def test_the_recursion_is_the_packages_gradient_descent_and_obeys_its_law():
    problem, alpha, gamma, steps = small_problem(), 0.2, 0.1, 300
    beta, gain, offset = (
        v[0] for v in study.recursion(np.asarray(problem.X)[None], np.asarray(problem.y)[None], np.array([gamma]), alpha, steps)
    )
    network = sgf.DiagonalNetwork.init(alpha=alpha / 2**0.5, d=problem.d, dtype=jnp.float64)
    runs = sgf.simulate(sgf.GradientDescent(gamma), network, problem, steps=steps, record=study.LAST)
    np.testing.assert_allclose(beta, runs.networks.beta, atol=1e-12)
    np.testing.assert_allclose(gain, 2 * (network.log_alpha - runs.networks.log_alpha), atol=1e-12)
    np.testing.assert_allclose(offset, runs.networks.offset, atol=1e-11)
    slope = np.arcsinh(beta / (2 * (alpha**2 / 2) * np.exp(-gain)))
    assert outside_row_space(problem.X, slope - offset) < 1e-10
    assert outside_row_space(problem.X, slope) > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 1}, "draws must be at least 4"),
        ({"steps": 101}, "steps must be even"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"mean": float("nan")}, "mean must be positive"),
        ({"n": 30}, "n must be below d = 30"),
        ({"sparsity": 30}, "sparsity must be from 1"),
        ({"batch_sizes": (1, 3)}, "batch_sizes must be 1, 2, 4"),
        ({"batch_sizes": (1, 2, 4, 8, 16, 32)}, "batch_sizes must be at most n"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(study.Config(), **change))


@pytest.mark.slow
def test_a_small_run_from_end_to_end():
    dataset = study.run(study.Config(draws=8, seeds=2, steps=8000, batch_sizes=(1, 2)))
    words = failed(study, dataset)
    for must in (
        "Exact law",
        "Control: without the offset",
        "one step size, one gain",
        "At the start",
        "SGD, batch 1 recovers",
    ):
        assert must not in words
    # Too few draws for the intervals of the others; the shapes differ all the same.
    gd, sgd = (unevenness(dataset, f.below(f.gain, 4)) for f in (family(dataset, "gd"), family(dataset, "sgd", 0)))
    assert np.mean(gd - sgd) > np.log(2)
    assert dataset["sgd_gain"].dims == ("batch", "draw", "level", "seed", "feature")
    assert all("units" in dataset[name].attrs for name in dataset.data_vars)
    assert study.plot(dataset) is not None
