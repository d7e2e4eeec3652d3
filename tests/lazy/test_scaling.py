"""Slopes against a power law that is put in, and against the law of the output
scale.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import sgfbias as sgf
from sgfbias import lazy
from sgfbias.ensemble.disk import StoreError
from sgfbias.lazy.scaling import Scaling

scaling_module = sys.modules["sgfbias.lazy.scaling"]

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def problem():
    return lazy.SeparatedSphere.sample(KEY, n=6, d=5, separation=0.5)


def make(alpha, key):
    return lazy.rescale(lazy.DeepReLU.init(key, 5, width=16, depth=1), alpha)


def rule(alpha):
    return sgf.GradientDescent(0.5 / alpha**2)


def largest(before, after):
    """The largest change of a weight."""
    return jnp.max(jnp.abs(after.model.weights[0] - before.model.weights[0]))


@pytest.fixture(scope="module")
def found(problem):
    grid = {"alpha": [16.0, 64.0, 256.0]}
    return lazy.scaling(
        make, grid, problem, rule, seeds=2, stop=0.4, steps=400, quantities={"largest": largest}
    )


def test_the_distance_falls_as_the_inverse_of_the_output_scale(found, problem):
    """The linearised outputs for one loss are the same at every alpha, and the distance
    that gives them is proportional to 1/alpha; the number of steps does not depend on
    alpha.
    """
    slope = found.slopes["distance"]
    assert slope.low < slope.value < slope.high
    assert abs(slope.value + 1) < 0.05
    # So does a quantity of one's own that is proportional to it.
    assert abs(found.slopes["largest"].value + 1) < 0.05
    assert found.lost == 0
    steps = found.quantities["steps"]
    assert np.all(np.ptp(steps, axis=0) <= 0.05 * steps.max(axis=0) + 1)
    # The networks are those that runs of their own give.
    key = sgf.seeds(0, 2)[1]
    run = sgf.simulate(
        rule(64.0), make(64.0, key), problem, steps=int(steps[1, 1]), record=sgf.Record(times=2)
    )
    assert run.final["loss"] <= 0.4
    measured = lazy.measure(make(64.0, key), run.networks, problem)
    np.testing.assert_allclose(
        found.quantities["distance"][1, 1], np.linalg.norm(measured.distance), rtol=1e-9
    )
    text = repr(found)
    assert "slopes in alpha, from 16 to 256, at the loss 0.4; 0 of 6 runs" in text
    table = found.to_xarray()
    assert table["distance"].dims == ("alpha", "seed")


def test_the_interval_covers_the_exponent_as_often_as_it_says():
    """Power laws with normal errors: 99% of the intervals contain the exponent."""
    rng = np.random.default_rng(0)
    x, inside = np.asarray([1.0, 2.0, 4.0, 8.0]), 0
    for _ in range(500):
        rows = 3 * x[:, None] ** -0.5 * np.exp(0.2 * rng.normal(size=(4, 3)))
        inside += Scaling("x", x, {"steps": rows}, 0.1).slopes["steps"].contains(-0.5)
    low, high = scipy.stats.binom.ppf([0.001, 0.999], 500, 0.99)
    assert low <= inside <= high


def test_runs_that_do_not_reach_the_loss_are_lost(problem):
    grid = {"alpha": [1.0, 2.0]}
    found = lazy.scaling(
        make, grid, problem, lambda alpha: sgf.GradientDescent(1e-4), seeds=2, steps=3
    )
    assert found.lost == 4
    assert np.isnan(found.slopes["steps"].value)
    assert "4 of 4 runs did not reach it" in repr(found)
    assert "no slope, as a value is 0 or missing" in repr(found)


@pytest.mark.parametrize(
    ("grid", "options", "words"),
    [
        ({}, {}, "the grid must have one variable"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, {}, "the grid must have one variable"),
        ({"a": [2.0, 1.0]}, {}, "a must have two values or more, in increasing order"),
        ({"a": [0.0, 1.0]}, {}, "`a` must be positive"),
        ({"a": [1.0, 2.0]}, {"seeds": 1}, "`seeds` must be a whole number >= 2"),
        (
            {"a": [1.0, 2.0]},
            {"quantities": {"flips": largest}},
            "'flips' in `quantities` is the name of a quantity that is there already",
        ),
        (
            {"alpha": [16.0, 64.0]},
            {"quantities": {"mine": lambda a, b: jnp.ones(2)}, "stop": 0.4},
            r"'mine' in `quantities` must be a real number, but has shape \(2,\)",
        ),
    ],
)
def test_refusals(grid, options, words, problem):
    with pytest.raises(ValueError, match=words):
        lazy.scaling(make, grid, problem, rule, **options)


@pytest.mark.slow
def test_a_random_algorithm(problem):
    found = lazy.scaling(
        lambda width, key: lazy.DeepReLU.init(key, 5, width=width, depth=1, dtype=jnp.float64),
        {"width": [8, 16]},
        problem,
        lambda width: sgf.StochasticGradientDescent(2 / width, 3),
        seeds=2,
        stop=0.6,
        steps=400,
    )
    assert found.quantities["distance"].shape == (2, 2)
    assert found.lost == 0


def test_a_store_continues_what_was_interrupted(problem, tmp_path, monkeypatch):
    """An interrupted call leaves the runs that it has done. The next one trains the
    others only, and gives the numbers of a call without interruption.
    """
    grid, options = {"alpha": [16.0, 64.0]}, {"seeds": 2, "stop": 0.4, "steps": 400}
    whole = lazy.scaling(make, grid, problem, rule, **options)
    trained = scaling_module._trained
    counts = []

    def until(most):
        def one(*args, **kwargs):
            if len(counts) == most:
                raise KeyboardInterrupt
            counts.append(1)
            return trained(*args, **kwargs)

        return one

    store = tmp_path / "store"
    monkeypatch.setattr(scaling_module, "_trained", until(3))
    with pytest.raises(KeyboardInterrupt):
        lazy.scaling(make, grid, problem, rule, store=store, **options)
    assert len(list(store.iterdir())) == 3 + 1
    damaged = next(f for f in store.iterdir() if f.name != "scaling.json")
    damaged.write_text(damaged.read_text()[:-5])
    counts.clear()
    monkeypatch.setattr(scaling_module, "_trained", until(2))
    found = lazy.scaling(make, grid, problem, rule, store=store, **options)
    assert len(counts) == 2
    for name, rows in whole.quantities.items():
        np.testing.assert_array_equal(found.quantities[name], rows)
    # Nothing is trained again, and everything is if the loss or the algorithm changes.
    monkeypatch.setattr(scaling_module, "_trained", until(2))
    lazy.scaling(make, grid, problem, rule, store=store, **options)
    for change in ({"stop": 0.3}, {"steps": 399}):
        counts.clear()
        monkeypatch.setattr(scaling_module, "_trained", until(0))
        with pytest.raises(KeyboardInterrupt):
            lazy.scaling(make, grid, problem, rule, store=store, **(options | change))
    with pytest.raises(KeyboardInterrupt):
        slower = lambda alpha: sgf.GradientDescent(0.4 / alpha**2)  # noqa: E731
        lazy.scaling(make, grid, problem, slower, store=store, **options)


def test_a_store_is_a_folder_of_its_own(problem, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(StoreError, match="holds something else than runs of `scaling`"):
        lazy.scaling(make, {"alpha": [1.0, 2.0]}, problem, rule, store=tmp_path)
    with pytest.raises(StoreError, match="holds something else"):
        lazy.scaling(make, {"alpha": [1.0, 2.0]}, problem, rule, store=tmp_path / "thesis.txt")
