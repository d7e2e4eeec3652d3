"""Examples that a rule changes at every iteration, against problems with other inputs,
a loop written out, and the law of the mean.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sgfbias as sgf
from sgfbias.core.brownian import PERTURBATION_STREAM

N, D = 12, 3


class Linear(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return jnp.dot(self.w, x)


class Noise(eqx.Module):
    """Normal noise of standard deviation `size` on the inputs."""

    size: jax.Array

    def __call__(self, network, inputs, targets, key):
        return inputs + self.size * jax.random.normal(key, inputs.shape, inputs.dtype)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(N, D))), jnp.asarray(rng.normal(size=N))


# Every batch has all examples, so that the loss of the batch is that of all.
WITHOUT = {"sampling": "without_replacement"}
FLOW = sgf.StochasticGradientFlow(0.05)
START = Linear(jnp.asarray([0.3, -0.2, 0.1]))
ALGORITHMS = {
    "GD": sgf.GradientDescent(0.1),
    "momentum": sgf.GradientDescent(0.1, momentum=0.5, label_noise=0.1),
    "SGD": sgf.StochasticGradientDescent(0.1, 4),
    "SVAG": sgf.SVAG(0.1, 2, 4),
    "Adam": sgf.OptaxDescent(optax.adam(1e-2), 1.0, 4),
    "line search": sgf.OptaxDescent(optax.lbfgs(), 1.0),
}


@pytest.mark.slow(cases=2)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_doubled_inputs_are_a_problem_with_doubled_inputs(name, data):
    X, y = data
    keys = sgf.seeds(0, 3)
    algorithm = ALGORITHMS[name]
    changed = sgf.Problem(X, y, perturb=lambda network, x, t, key: 2 * x)
    runs = sgf.simulate(algorithm, START, changed, keys=keys, steps=20)
    plain = keys if algorithm.is_stochastic else None
    wanted = sgf.simulate(algorithm, START, sgf.Problem(2 * X, y), keys=plain, steps=20)
    w = jnp.broadcast_to(wanted.networks.w, (3, D))
    np.testing.assert_allclose(runs.networks.w, w, rtol=1e-12)
    # The recorded losses are those of the examples as they are.
    clean = jnp.mean(jnp.square(w @ X.T - y), axis=1) * 0.25
    np.testing.assert_allclose(runs.final["loss"], clean, rtol=1e-12)
    assert np.all(np.abs(runs.final["loss"] - wanted.final["loss"]) > 1e-3)


@pytest.mark.parametrize("integral", ["full", "batch", "examples"])
def test_the_integral_is_that_of_the_unchanged_examples(integral, data):
    X, y = data
    algorithm = sgf.StochasticGradientDescent(0.1, N, integral=integral, **WITHOUT)
    problem = sgf.Problem(X, y, perturb=Noise(jnp.asarray(0.5)))
    record = sgf.Record({"w": lambda network: network.w}, times=0.1 * np.arange(10))
    runs = sgf.simulate(algorithm, START, problem, keys=sgf.seeds(0, 2), steps=9, record=record)
    w = np.asarray(runs["w"])
    assert w.shape == (2, 10, D)
    losses = 0.25 * np.mean(np.square(w @ np.asarray(X).T - np.asarray(y)), axis=2)
    wanted = 0.1 * np.cumsum(losses, axis=1)[:, :-1]
    np.testing.assert_allclose(runs["loss_integral"][:, 1:], wanted, rtol=1e-12)


def test_no_derivative_passes_through_the_rule(data):
    X, y = data
    # The rule moves every input along the weights, so a derivative through it would
    # have another term.
    problem = sgf.Problem(X, y, perturb=lambda network, x, t, key: x + network.w)
    runs = sgf.simulate(sgf.GradientDescent(0.1), START, problem, keys=sgf.seeds(0, 1), steps=30)
    w = np.asarray(START.w)
    for _ in range(30):
        moved = np.asarray(X) + w
        w = w - 0.1 * 0.5 * (moved @ w - np.asarray(y)) @ moved / N
    np.testing.assert_allclose(runs.networks.w[0], w, rtol=1e-12)


def test_keys_are_those_of_seed_and_iteration(data):
    X, y = data
    problem = sgf.Problem(X, y, perturb=Noise(jnp.asarray(0.5)))
    keys = sgf.seeds(5, 7)
    runs = sgf.simulate(sgf.GradientDescent(0.1), START, problem, keys=keys, steps=15)
    for key, found in zip(keys, runs.networks.w, strict=True):
        w, stream = START.w, jax.random.fold_in(key, PERTURBATION_STREAM)
        for step in range(15):
            moved = X + 0.5 * jax.random.normal(jax.random.fold_in(stream, step), X.shape)
            w = w - 0.1 * 0.5 * (moved @ w - y) @ moved / N
        np.testing.assert_allclose(found, w, rtol=1e-12)


def test_noise_on_the_inputs_shrinks_the_mean_as_a_ridge_does(data):
    X, y = data
    sigma, gamma, seeds, steps = 0.7, 0.2, 4_000, 25
    problem = sgf.Problem(X, y, perturb=Noise(jnp.asarray(sigma)))
    runs = sgf.simulate(
        sgf.GradientDescent(gamma), START, problem, keys=sgf.seeds(0, seeds), steps=steps
    )
    w, plain = np.asarray(START.w), np.asarray(START.w)
    X, y = np.asarray(X), np.asarray(y)
    for _ in range(steps):
        w = w - gamma * 0.5 * ((X @ w - y) @ X / N + sigma**2 * w)
        plain = plain - gamma * 0.5 * (X @ plain - y) @ X / N
    found = np.asarray(runs.networks.w)
    error = found.std(axis=0, ddof=1) / np.sqrt(seeds)
    # Five standard errors in three coordinates: a false alarm in 6e5 tests.
    assert np.all(np.abs(found.mean(axis=0) - w) < 5 * error)
    assert np.any(np.abs(found.mean(axis=0) - plain) > 50 * error)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_seed_does_not_depend_on_company_or_chunks(dtype, data):
    X, y = (a.astype(dtype) for a in data)
    problem = sgf.Problem(X, y, perturb=Noise(jnp.asarray(0.5, dtype)))
    sgd = sgf.StochasticGradientDescent(0.1, 4)
    many = sgf.simulate(sgd, START, problem, keys=sgf.seeds(0, 70), steps=40)
    few = sgf.simulate(sgd, START, problem, keys=sgf.seeds(66, 69), steps=40, chunk=7)
    assert many.networks.w.dtype == dtype
    np.testing.assert_array_equal(many.networks.w[66:69], few.networks.w)


def test_starts_of_their_own_and_maps(data):
    X, y = data
    starts = sgf.Stacked([START, Linear(START.w + 1)])
    problem = sgf.Problem(X, y, perturb=Noise(jnp.asarray(0.5)))
    runs = sgf.simulate(sgf.GradientDescent(0.1), starts, problem, keys=sgf.seeds(0, 2), steps=5)

    @jax.jit
    @jax.vmap
    def end(size, key):
        problem = sgf.Problem(X, y, perturb=Noise(size))
        run = sgf.simulate(sgf.GradientDescent(0.1), START, problem, keys=key, steps=5)
        return run.networks.w

    mapped = end(jnp.asarray([0.5, 0.0]), sgf.seeds(0, 2))
    np.testing.assert_allclose(mapped[0], runs.networks.w[0], rtol=1e-12)
    still = sgf.simulate(sgf.GradientDescent(0.1), START, sgf.Problem(X, y), steps=5)
    np.testing.assert_allclose(mapped[1], still.networks.w, rtol=1e-12)


@pytest.mark.slow
def test_a_diagonal_network_takes_it_in_its_weights(data):
    X, y = data
    network = sgf.DiagonalNetwork.init(alpha=0.5, d=D)
    changed = sgf.Problem(X, y, perturb=lambda network, x, t, key: 2 * x)
    runs = sgf.simulate(
        sgf.StochasticGradientDescent(0.05), network, changed, keys=sgf.seeds(0, 2), steps=20
    )
    wanted = sgf.simulate(
        sgf.StochasticGradientDescent(0.05),
        network,
        sgf.Problem(2 * X, y),
        keys=sgf.seeds(0, 2),
        steps=20,
    )
    np.testing.assert_allclose(runs.final["beta"], wanted.final["beta"], rtol=1e-12)


def refused(words, data, perturb, dynamics=None, keys=0):
    with pytest.raises(ValueError, match=words):
        sgf.simulate(
            dynamics or sgf.GradientDescent(0.1),
            START,
            sgf.Problem(*data, perturb=perturb),
            keys=sgf.seeds(0, 2) if keys == 0 else None,
            steps=2,
        )


def test_what_does_not_fit_is_refused(data):
    noise = Noise(jnp.asarray(0.5))
    refused("StochasticGradientFlow has no iterations", data, noise, FLOW)
    refused("a problem with `perturb` is random and needs keys", data, noise, keys=None)
    refused(r"same shape \(12, 3\).*returns shape \(2, 3\)", data, lambda n, x, t, k: x[:2])
    refused("returns tuple", data, lambda n, x, t, k: (x, t))
    refused(
        "float64, but returns shape .* and dtype float32",
        data,
        lambda n, x, t, k: x.astype("float32"),
    )
    refused("on 12 examples it raises KeyError", data, lambda n, x, t, k: {}["missing"])
    with pytest.raises(ValueError, match="`perturb` must be a function .* but is 0.3"):
        sgf.Problem(*data, perturb=0.3)
    with pytest.raises(ValueError, match="`perturb` must be a function"):
        sgf.Problem(*data, perturb=Noise)
