"""Samplings with a memory: the law of the masks, loops written out, and one of the
user.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias.core.brownian import SAMPLING_START_STREAM, SAMPLING_STREAM
from sgfbias.core.sampling import AbstractSampling, Draw

N, D, GAMMA = 12, 3, 0.1
PERSISTENT = sgf.PersistentMask(0.3, persistence=8)


class Linear(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return jnp.dot(self.w, x)


START = Linear(jnp.asarray([0.3, -0.2, 0.1]))


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    return sgf.Problem(
        jnp.asarray(rng.normal(size=(N, D))),
        jnp.asarray(rng.normal(size=N)),
        loss=sgf.SquaredLoss(scale=0.5),
    )


def masked(mask, **options):
    return sgf.StochasticGradientDescent(GAMMA, sampling=mask, **options)


def moved(w, problem, weights):
    """One iteration of gradient descent with the weights s of the examples."""
    X, y = np.asarray(problem.inputs), np.asarray(problem.targets)
    return w - GAMMA / N * (weights * (X @ w - y)) @ X


@pytest.mark.parametrize(
    ("mask", "rho"),
    [
        (PERSISTENT, 1 - 1 / (0.3 * 8)),
        (sgf.PersistentMask(0.6, persistence=1.25), 1 - 1 / (0.6 * 1.25)),
        (sgf.PersistentMask(0.3, persistence=1 / 0.3), 0.0),
        (sgf.BernoulliMask(0.3), 0.0),
    ],
)
def test_masks_have_the_covariance_of_the_chain(mask, rho):
    b, n, steps = float(mask.fraction), 20_000, 12
    s = np.asarray(mask.path(jax.random.key(3), n, steps))
    assert set(np.unique(s)) == {0.0, 1 / b}
    # Examples are independent, so means over them have errors of 1 / sqrt(n), and the
    # stationary chain has the same law at every iteration.
    sd = (1 - b) / b / np.sqrt(n)
    assert np.abs(s.mean(1) - 1).max() < 5 * np.sqrt((1 - b) / b / n)
    for lag in (0, 1, 3, 8):
        cov = np.mean((s[0] - 1) * (s[lag] - 1))
        # The product of two masks has at most the variance of its square.
        assert abs(cov - (1 - b) / b * rho**lag) < 5 * max((1 - b) / b, 1 / b) * sd / np.sqrt(b)


def test_control_persistence_is_seen_by_the_covariance():
    s = np.asarray(PERSISTENT.path(jax.random.key(3), 20_000, 4))
    assert np.mean((s[0] - 1) * (s[3] - 1)) > 0.3


@pytest.mark.slow
def test_a_run_follows_the_masks_of_its_key(problem):
    keys = sgf.seeds(0, 2)
    ends = sgf.simulate(masked(PERSISTENT), START, problem, keys=keys, steps=25).networks.w
    for key, end in zip(keys, ends, strict=True):
        stream = jax.random.fold_in(key, SAMPLING_STREAM)
        inside = PERSISTENT.start(problem, START, jax.random.fold_in(key, SAMPLING_START_STREAM))
        w = np.asarray(START.w)
        for step in range(25):
            draw, inside = PERSISTENT.draw(inside, stream, jnp.int32(step), N)
            w = moved(w, problem, N * np.asarray(draw.weight))
        np.testing.assert_allclose(end, w, rtol=1e-12)


def test_the_mask_of_everything_is_gradient_descent(problem):
    for mask in (sgf.BernoulliMask(1.0), sgf.PersistentMask(1.0, persistence=5)):
        end = sgf.simulate(masked(mask), START, problem, keys=sgf.seeds(2), steps=20).networks.w
        wanted = sgf.simulate(sgf.GradientDescent(GAMMA), START, problem, steps=20).networks.w
        np.testing.assert_allclose(end, np.broadcast_to(wanted, end.shape), rtol=1e-13)


def test_chunks_and_company_change_nothing(problem):
    dynamics, keys = masked(PERSISTENT), sgf.seeds(0, 5)
    whole = sgf.simulate(dynamics, START, problem, keys=keys, steps=40)
    cut = sgf.simulate(dynamics, START, problem, keys=keys[3:], steps=40, chunk=7)
    np.testing.assert_array_equal(whole.networks.w[3:], cut.networks.w)
    # The integral of the loss needs no further pass: a mask sees all examples.
    np.testing.assert_array_equal(whole.final["loss_integral"][3:], cut.final["loss_integral"])


@pytest.mark.slow
def test_float32_has_the_same_masks(problem):
    single = sgf.Problem(
        problem.inputs.astype(jnp.float32), problem.targets.astype(jnp.float32), loss=problem.loss
    )
    keys = sgf.seeds(3)
    low = sgf.simulate(masked(PERSISTENT), START, single, keys=keys, steps=30).networks.w
    high = sgf.simulate(masked(PERSISTENT), START, problem, keys=keys, steps=30).networks.w
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_derivatives_hold_the_masks_fixed(problem):
    key = sgf.seeds(1)[0]

    def end(gamma):
        dynamics = sgf.StochasticGradientDescent(gamma, sampling=PERSISTENT)
        return jnp.sum(sgf.simulate(dynamics, START, problem, keys=key, steps=9).networks.w)

    step = 1e-5
    difference = (end(GAMMA + step) - end(GAMMA - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(end)(GAMMA), difference, rtol=1e-6)

    def of_fraction(b):
        mask = sgf.PersistentMask(b, persistence=8.0)
        return jnp.sum(sgf.simulate(masked(mask), START, problem, keys=key, steps=3).networks.w)

    with pytest.raises(ValueError, match="no derivative in `fraction`"):
        jax.grad(of_fraction)(0.3)


@pytest.mark.slow
def test_fractions_can_be_mapped_over(problem):
    def end(b):
        mask = sgf.PersistentMask(b, persistence=8.0)
        run = sgf.simulate(masked(mask), START, problem, keys=sgf.seeds(1)[0], steps=3)
        return run.networks.w

    both = jax.vmap(end)(jnp.asarray([0.3, 1.0]))
    np.testing.assert_allclose(both[0], end(0.3), rtol=1e-12)


class Largest(AbstractSampling):
    """Of three examples that go round, the one whose slope was the largest when it was
    last seen, and a place that is filled; all slopes are forgotten every 10 steps.
    """

    every = 10

    def start(self, problem, network, key):
        return jnp.full(problem.n, jnp.inf, problem.dtype)

    def draw(self, memory, key, step, n):
        choice = (3 * step + jnp.arange(3, dtype=step.dtype)) % n
        best = choice[jnp.argmax(memory[choice])]
        index = jnp.stack([best, jnp.zeros_like(best)])
        return Draw(index, valid=jnp.asarray([True, False])), memory

    def learn(self, memory, draw, derivatives):
        return memory.at[draw.index[0]].set(jnp.abs(derivatives[0]))

    def refresh(self, memory, network, problem, key):
        return jnp.full_like(memory, jnp.inf)


def test_a_sampling_of_ones_own_learns_and_forgets(problem):
    key, steps = sgf.seeds(1)[0], 25
    end = sgf.simulate(masked(Largest()), START, problem, keys=key, steps=steps, chunk=8).networks.w
    X, y = np.asarray(problem.inputs), np.asarray(problem.targets)
    w, memory = np.asarray(START.w), np.full(N, np.inf)
    for step in range(steps):
        if step and step % 10 == 0:
            memory[:] = np.inf
        choice = (3 * step + np.arange(3)) % N
        i = choice[np.argmax(memory[choice])]
        slope = X[i] @ w - y[i]
        memory[i] = abs(slope)
        w = w - GAMMA * slope * X[i]
    np.testing.assert_allclose(end, w, rtol=1e-12)


def test_weights_of_a_batch_are_those_of_the_gradient(problem):
    class Twice(AbstractSampling):
        def draw(self, memory, key, step, n):
            index = jnp.asarray([1, 4])
            return Draw(index, weight=jnp.asarray([0.5, 0.25])), memory

    run = sgf.simulate(
        masked(Twice(), integral="batch"), START, problem, keys=sgf.seeds(1)[0], steps=1
    )
    X, y, w = np.asarray(problem.inputs), np.asarray(problem.targets), np.asarray(START.w)
    slope = X[[1, 4]] @ w - y[[1, 4]]
    np.testing.assert_allclose(
        run.networks.w, w - GAMMA * (np.array([0.5, 0.25]) * slope) @ X[[1, 4]], rtol=1e-13
    )
    np.testing.assert_allclose(
        run.final["loss_integral"], GAMMA * np.array([0.5, 0.25]) @ slope**2 / 2, rtol=1e-13
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sgf.BernoulliMask(0.0), "`fraction` must be above 0 and at most 1, but is 0"),
        (lambda: sgf.BernoulliMask(1.5), "but is 1.5"),
        (lambda: sgf.PersistentMask(0.3, persistence=0.5), "at least max.* = 2.33333 with .* 0.5"),
        (lambda: sgf.PersistentMask(0.8, persistence=0.5), "= 1 with fraction = 0.8, but is 0.5"),
        (lambda: PERSISTENT.path(jax.random.key(0), 0, 3), "`n` must be a whole number >= 1"),
        (
            lambda: sgf.StochasticGradientDescent(0.1, 4, sampling=PERSISTENT),
            "PersistentMask says itself how many .* leave out `batch_size`, which is 4",
        ),
        (lambda: sgf.StochasticGradientDescent(0.1, sampling=3), "but is 3"),
        (lambda: sgf.SVAG(0.1, 2, sampling=PERSISTENT), "independent minibatches"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
