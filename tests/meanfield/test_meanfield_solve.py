"""The dynamical mean-field theory against closed forms of linear models."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.kernels import Effective
from sgfbias.meanfield.solution import solve_drawn

SQUARE = sgf.SquaredLoss(0.5)
TEACHER = mf.LinearTeacher(3.0)
RIDGE = mf.MaskedDescent(0.1, ridge=0.5)
MIXTURE = mf.GaussianMixture(2.0, spectrum=0.5)


def spectrum(alpha, nodes=2000):
    """Nodes and weights of the Marchenko-Pastur law of `X^T X` for alpha > 1."""
    theta = np.arange(1, nodes + 1) * np.pi / (nodes + 1)
    x = 1 + alpha + 2 * np.sqrt(alpha) * np.cos(theta)
    return x, 2 * alpha / (nodes + 1) * np.sin(theta) ** 2 / x


def cubature(steps, dtype="float64"):
    """Effective examples whose means and second moments are those of normal ones."""
    size = steps + 3
    points = np.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])
    along, white = points[:, 0], points[:, 2:].T[None]
    masks = np.ones((1, steps, 2 * size))
    return Effective(*(jnp.asarray(a, dtype) for a in (along, along, masks, white)))


@functools.cache
def exact(steps, memory=None, dtype="float64"):
    """Ridge regression by full-batch descent from an overlap of 0.2."""

    @eqx.filter_jit
    def solve(effective):
        start = mf.Start(0.2)
        return solve_drawn(TEACHER, SQUARE, RIDGE, start, effective, None, steps, memory)

    return solve(cubature(steps, dtype))


def closed_form(steps, m0, eta=0.1, lam=0.5, alpha=3.0):
    """The overlap, the correlation without it, and the response of ridge regression."""
    x, w = spectrum(alpha)
    k = x + lam
    t = np.arange(steps + 1)[:, None]
    phi = (1 - eta * k) ** t * m0 + x / k * (1 - (1 - eta * k) ** t)
    m = phi @ w
    lag = t - t.T - 1
    decay = np.array([(1 - eta * k) ** n @ w for n in range(steps)])
    response = np.where(lag >= 0, decay[np.clip(lag, 0, steps - 1)], 0)
    return m, (phi * w) @ phi.T - np.outer(m, m), response


def test_the_moments_of_the_spectral_law():
    x, w = spectrum(3.0)
    moments = [w @ x**k for k in range(1, 5)]
    np.testing.assert_allclose(moments, [3, 12, 57, 300], rtol=1e-12)
    v = w @ (1 / (x + 0.5))
    assert abs(1 / v - 0.5 - 3 / (1 + v)) < 1e-12


def test_gradient_descent_of_ridge_regression_is_exact():
    """Overlaps, correlations and responses are those of the Marchenko-Pastur law."""
    steps = 32
    found = exact(steps)
    m, rest, response = closed_form(steps, 0.2)
    listed = [0.2, 0.43, 0.5555, 0.630775, 0.67928375]
    np.testing.assert_allclose(found["overlap"][:5], listed, atol=1e-12)
    np.testing.assert_allclose(found["overlap"], m, atol=1e-12)
    np.testing.assert_allclose(found["response"], response, atol=1e-12)
    np.testing.assert_allclose(found["correlation"] - np.outer(m, m), rest, atol=1e-12)
    assert found["distance"] is None


@pytest.mark.slow
def test_effective_examples_in_single_precision_are_exact_to_1e_5():
    found = exact(32, dtype="float32")
    m, rest, response = closed_form(32, 0.2)
    np.testing.assert_allclose(found["overlap"], m, atol=1e-5)
    np.testing.assert_allclose(found["response"], response, atol=1e-5)
    np.testing.assert_allclose(found["correlation"] - np.outer(m, m), rest, atol=1e-5)


@pytest.mark.slow
def test_the_long_run_reaches_the_ridge_solution_and_needs_the_memory():
    """Without the memory of the stiffness it would end elsewhere."""
    x, w = spectrum(3.0)
    limit = w @ (x / (x + 0.5))
    assert abs(limit - 0.81385934) < 1e-8
    m, _, _ = closed_form(100, 0.2)
    np.testing.assert_allclose(exact(100)["overlap"], m, atol=1e-12)
    assert abs(m[-1] - limit) < 2e-7
    assert abs(exact(100, memory=0)["overlap"][-1] - 0.8235) < 1e-3


@pytest.mark.slow
def test_a_first_step_from_zero_is_known_in_closed_form():
    """Logistic loss, two clusters: m = eta alpha/2 and Cp = eta^2 alpha Delta/(4 b)."""
    b, eta, alpha, delta = 0.3, 0.1, 2.0, 0.5
    rule = mf.MaskedDescent(eta, sgf.BernoulliMask(b))
    found = mf.solve(
        MIXTURE, sgf.LogisticLoss(), rule, steps=1, samples=100_000, keys=sgf.seeds(0, 4)
    )
    assert found.overlap.shape == (4, 2)
    assert found.response.shape == (4, 2, 2)
    m = found.overlap[:, 1]
    rest = found.correlation[:, 1, 1] - m**2
    error = mf.error.upper_tail(np.sqrt(b * alpha / (delta * (b * alpha + delta))))
    assert abs(float(error) - 0.14813) < 1e-5
    # Standard errors of one step with 400,000 examples: f = -s c / 2.
    spread = eta * alpha / 2 * np.sqrt((1 - b) / b + delta / b) / np.sqrt(4e5)
    assert abs(np.mean(m) - eta * alpha / 2) < 4 * spread
    np.testing.assert_allclose(np.mean(rest), eta**2 * alpha * delta / (4 * b), rtol=4 * 0.0025)
    np.testing.assert_allclose(np.mean(found.test_error[:, 1]), error, rtol=0.01)


def small(rule, replicas=2, **options):
    """A run of the mixture, of one block, with few samples."""
    options = {"steps": 12, "samples": 400, "keys": jax.random.key(3), **options}
    start = mf.Start(0.1, 0.3)
    return mf.solve(MIXTURE, sgf.LogisticLoss(), rule, start=start, replicas=replicas, **options)


@pytest.mark.slow
def test_replicas_without_masks_stay_together():
    rule = mf.MaskedDescent(0.2, sgf.PersistentMask(1.0, persistence=5.0), ridge=0.1)
    found = small(rule)
    assert np.all(np.asarray(found.distance) == 0)
    full = small(mf.MaskedDescent(0.2, ridge=0.1))
    np.testing.assert_array_equal(full.overlap, found.overlap)


@pytest.mark.slow
def test_masks_without_memory_are_independent_masks():
    """A persistence of 1/b is the law of independent masks, and a longer one is not."""
    b, found = 0.4, []
    masks = [sgf.BernoulliMask(b), *(sgf.PersistentMask(b, persistence=q) for q in (2.5, 8.0))]
    for k, mask in enumerate(masks):
        keys = sgf.seeds(16 * k, 16 * k + 16)
        runs = small(mf.MaskedDescent(0.2, mask, ridge=0.1), keys=keys)
        last = np.asarray(runs.distance[:, -1])
        found.append((last.mean(), last.std(ddof=1) / 4))
    (one, error), (same, error_same), (other, _) = found
    assert abs(one - same) < 4 * np.hypot(error, error_same)
    assert other > 1.5 * one


def test_the_response_is_causal_and_the_correlation_symmetric():
    found = small(mf.MaskedDescent(0.2, sgf.PersistentMask(0.4, persistence=4.0)))
    assert np.all(np.triu(np.asarray(found.response)) == 0)
    assert np.all(np.diag(np.asarray(found.response), -1) == 1)
    np.testing.assert_array_equal(found.correlation, found.correlation.T)
    assert int(found.diverged_at) == -1


@pytest.mark.slow
def test_the_monte_carlo_error_falls_as_the_root_of_the_samples():
    rule = mf.MaskedDescent(0.2, sgf.BernoulliMask(0.3), ridge=0.1)
    spreads = []
    for samples in (500, 8000):
        found = mf.solve(
            MIXTURE,
            sgf.LogisticLoss(),
            rule,
            steps=12,
            samples=samples,
            keys=sgf.seeds(0, 32),
            start=mf.Start(variance=0.01),
        )
        last = np.asarray(found.correlation[:, -1, -1])
        spreads.append((np.std(found.overlap[:, -1]), np.std(last)))
    ratio = np.array(spreads[0]) / np.array(spreads[1])
    assert np.all((ratio > 2) & (ratio < 8)), spreads
