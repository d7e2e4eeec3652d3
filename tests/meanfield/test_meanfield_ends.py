"""Where training ends, as a point and by long runs; and the theory under the
transformations of JAX.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf

LOGISTIC = sgf.LogisticLoss()
MIXTURE = mf.GaussianMixture(2.0, spectrum=0.5)


def ends(curves):
    """The last overlap, variance, loss and test error of every key."""
    m = np.asarray(curves.overlap)[:, -1]
    variance = np.asarray(curves.correlation)[:, -1, -1] - m**2
    return {
        "overlap": m,
        "variance": variance,
        "loss": np.asarray(curves.loss)[:, -1],
        "test_error": np.asarray(curves.test_error)[:, -1],
    }


def agree(found, point, slack=0.0):
    """Means over keys are within four standard errors of the point."""
    for name, values in found.items():
        error = values.std(ddof=1) / np.sqrt(values.size)
        listed = float(getattr(point, name))
        assert error < 0.03 * listed, (name, error)
        assert abs(values.mean() - listed) < 4 * error + slack, (name, values.mean(), error)


@pytest.mark.slow
def test_long_runs_end_at_the_stationary_point():
    """Full batches without noise: every mode has decayed by `exp(-0.1 * 100)`. The
    response to a constant force is then the susceptibility.
    """
    point = mf.stationary_point(MIXTURE, LOGISTIC, ridge=0.1)
    rule = mf.MaskedDescent(1.0, ridge=0.1)
    theory = mf.solve(MIXTURE, LOGISTIC, rule, steps=100, samples=1000, keys=sgf.seeds(0, 8))
    chi = np.asarray(mf.effective_temperature(theory, 0).response)[:, -1]
    agree({**ends(theory), "susceptibility": chi}, point, 1e-4)
    runs = mf.simulate(MIXTURE, LOGISTIC, rule, steps=100, d=200, keys=sgf.seeds(0, 16))
    agree(ends(runs), point, 1e-4)


def solved(data, keys, **options):
    rule = mf.MaskedDescent(0.2, sgf.PersistentMask(0.4, persistence=4.0), ridge=0.1)
    options = {"steps": 6, "samples": 100, "dtype": "float64", **options}
    return mf.solve(data, LOGISTIC, rule, keys=keys, start=mf.Start(0.3, 0.2), **options)


@pytest.mark.slow
def test_keys_can_be_mapped_over():
    keys = sgf.seeds(0, 3)
    names = ("overlap", "correlation", "response", "loss", "test_error")

    def curves(key):
        found = solved(MIXTURE, key)
        return [getattr(found, name) for name in names]

    for name, mapped in zip(names, jax.vmap(curves)(keys), strict=True):
        np.testing.assert_allclose(mapped, getattr(solved(MIXTURE, keys), name), rtol=1e-9)


@pytest.mark.slow(cases=1)
@pytest.mark.parametrize("several", [False, True])
def test_derivatives_in_alpha_and_in_the_spectrum_are_those_of_differences(several):
    """Of a law with one number, whose effective examples contain the part along v, and
    of one with two eigenvalues.
    """

    def final(numbers):
        alpha, delta = numbers
        spectrum = jnp.stack([delta, 2 * delta]) if several else delta
        found = solved(mf.GaussianMixture(alpha, spectrum=spectrum), jax.random.key(1))
        return found.loss[-1] + found.correlation[-1, 3] + found.test_error[-1]

    at = jnp.asarray([2.0, 0.5])
    gradient = jax.grad(final)(at)
    for k, step in enumerate(1e-6 * np.eye(2)):
        expected = (final(at + step) - final(at - step)) / 2e-6
        np.testing.assert_allclose(gradient[k], expected, rtol=1e-5, atol=1e-8)
