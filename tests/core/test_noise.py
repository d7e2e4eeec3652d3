"""Each noise's square root squares to its covariance, and sums add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf

GAMMA = jnp.asarray(0.3)
SLOPES = jnp.asarray([0.5, -1.2, 0.1, 2.0])
MODELS = {
    "mean-loss": sgf.MeanLossNoise(),
    "per-sample": sgf.PerSampleNoise(),
    "minibatch": sgf.MinibatchNoise(3),
    "without replacement": sgf.MinibatchNoise(3, replace=False),
    "label": sgf.LabelNoise(0.7),
    "sum": sgf.PerSampleNoise() + sgf.LabelNoise(0.7),
}


def dense(covariance, n):
    total = jnp.zeros((n, n))
    if covariance.diagonal is not None:
        total = total + jnp.diag(jnp.broadcast_to(covariance.diagonal, (n,)))
    return (
        total
        if covariance.rank_one is None
        else total - jnp.outer(covariance.rank_one, covariance.rank_one)
    )


@pytest.mark.parametrize("name", MODELS)
def test_root_squares_to_covariance(name):
    noise = MODELS[name]
    flat, unravel = jax.flatten_util.ravel_pytree(
        jax.tree.map(
            jnp.zeros,
            noise.shapes((4,), None),
            is_leaf=lambda s: isinstance(s, tuple) and s and isinstance(s[0], int),
        )
    )
    root = jax.vmap(lambda e: noise.sqrt_covariance(SLOPES, GAMMA, unravel(e)).examples)(
        jnp.eye(flat.size)
    ).T
    np.testing.assert_allclose(root @ root.T, dense(noise.covariance(SLOPES, GAMMA), 4), atol=1e-14)


def test_covariances_are_the_formulas():
    n, s = 4, np.asarray(SLOPES)
    full = np.diag(s**2) / n - np.outer(s, s) / n**2
    np.testing.assert_allclose(
        dense(sgf.MinibatchNoise(1).covariance(SLOPES, GAMMA), 4), 0.3 * full, atol=1e-15
    )
    np.testing.assert_allclose(
        dense(sgf.MinibatchNoise(2, replace=False).covariance(SLOPES, GAMMA), 4),
        0.3 * (2 / 6) * full,
        atol=1e-15,
    )
    np.testing.assert_allclose(
        sgf.MeanLossNoise().covariance(SLOPES, GAMMA).diagonal, 0.3 / n * np.mean(s**2)
    )
    np.testing.assert_allclose(
        sgf.MinibatchNoise(4, replace=False).covariance(SLOPES, GAMMA).diagonal, 0, atol=1e-16
    )
    one = (
        sgf.MinibatchNoise(1, replace=False)
        .sqrt_covariance(SLOPES[:1], GAMMA, jnp.ones(1))
        .examples
    )
    np.testing.assert_array_equal(one, 0)


def test_noise_dies_with_the_loss_and_its_derivative_is_finite():
    for noise in (sgf.MeanLossNoise(), sgf.PerSampleNoise(), sgf.MinibatchNoise(2)):
        value, slope = jax.jvp(
            lambda s, noise=noise: noise.sqrt_covariance(s, GAMMA, jnp.ones(4)).examples,
            (jnp.zeros(4),),
            (jnp.ones(4),),
        )
        np.testing.assert_array_equal(value, 0)
        assert np.isfinite(slope).all()


def test_validation_error_under_a_covariance_and_on_a_validation_set():
    """For inputs with covariance A A^T the risk is the mean squared error of new
    samples, within 5 standard errors.
    """
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    truth, beta = rng.normal(size=4), rng.normal(size=4)
    X = rng.normal(size=(2, 4))
    problem = sgf.SparseRegression(X, X @ truth, truth, covariance=root @ root.T)
    fresh = rng.normal(size=(200_000, 4)) @ root.T
    squares = (fresh @ (beta - truth)) ** 2
    assert abs(
        problem.validation_error(jnp.asarray(beta)) - squares.mean()
    ) < 5 * squares.std() / np.sqrt(squares.size)
    measured = sgf.SparseRegression(X, X @ truth, validation=(fresh[:50], fresh[:50] @ truth))
    np.testing.assert_allclose(
        measured.validation_error(jnp.asarray(beta)), squares[:50].mean(), rtol=1e-12
    )
    plain = sgf.SparseRegression(X, X @ truth, truth)
    np.testing.assert_allclose(
        plain.validation_error(jnp.asarray(beta)), np.sum((beta - truth) ** 2), rtol=1e-12
    )
