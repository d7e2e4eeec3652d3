"""When a temperature is said to be that of a stationary state, on made-up kernels."""

import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.curves import Curves

STEPS, ETA = 24, 0.1


def curves_of(correlation, response):
    """Curves with given kernels (keys, times, times)."""
    keys, times = correlation.shape[:2]
    flat = jnp.zeros((keys, times))
    return Curves(
        overlap=flat,
        correlation=jnp.asarray(correlation),
        response=jnp.asarray(response),
        loss=flat,
        test_error=flat,
        distance=None,
        keys=sgf.seeds(0, keys),
        data=mf.RandomLabels(1.0),
        rule=mf.MaskedDescent(ETA),
        start=mf.Start(),
        loss_function=sgf.LogisticLoss(),
        origin="made-up kernels",
    )


def one_mode(rate, size, keys=1):
    """An autoregressive state `C = size rate^|t - u|`, whose response is that of w."""
    t = np.arange(STEPS + 1)
    lag = t[:, None] - t
    correlation = size * rate ** np.abs(lag)
    response = np.where(lag > 0, rate ** np.maximum(lag - 1, 0), 0)
    return np.tile(correlation, (keys, 1, 1)), np.tile(response, (keys, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("lags", [3, None])
def test_a_stationary_mode_is_stationary_at_any_lag(lags):
    """Its drop is `size (1 - rate^lag)` and chi is `eta (1 - rate^lag)/(1 - rate)`, so
    that every temperature is `size (1 - rate)/eta`.
    """
    heat = mf.effective_temperature(curves_of(*one_mode(0.8, 2.0)), 4, lags=lags)
    np.testing.assert_allclose(heat.temperature, 2.0 * 0.2 / ETA, rtol=1e-12)
    np.testing.assert_allclose(heat.halves, 2.0 * 0.2 / ETA, rtol=1e-12)
    np.testing.assert_allclose(heat.drift, 0, atol=1e-12)
    assert heat.stationary


@pytest.mark.parametrize("lags", [3, None])
def test_two_modes_are_stationary_though_their_temperature_depends_on_the_lag(lags):
    fast, slow = one_mode(0.3, 1.0), one_mode(0.8, 0.2)
    both = [(a + b) / 2 for a, b in zip(fast, slow, strict=True)]
    heat = mf.effective_temperature(curves_of(*both), 4, lags=lags)
    early, late = np.asarray(heat.halves)[0]
    np.testing.assert_allclose(early, late, rtol=1e-12)
    assert float(heat.slope(1)[0]) > 1.5 * early
    assert heat.stationary


@pytest.mark.parametrize("lags", [3, None])
def test_a_mode_that_cools_is_not_stationary(lags):
    """`C(t,u) = s(t) s(u) rate^|t - u|`, where s^2 falls by an e-fold in 20 steps."""
    correlation, response = one_mode(0.8, 2.0)
    s = np.exp(-np.arange(STEPS + 1) / 40)
    cooling = curves_of(correlation * np.outer(s, s), response)
    heat = mf.effective_temperature(cooling, 4, lags=lags)
    assert not heat.stationary
    assert "not stationary" in repr(heat)


@pytest.mark.parametrize("keys", [4, 1000])
def test_the_error_of_a_drift_is_no_drift(keys):
    """A state of many keys, each with an error of C of its own, is as stationary as
    one of few, since these errors are 0 on average.
    """
    correlation, response = one_mode(0.8, 2.0, keys)
    errors = np.random.default_rng(0).normal(size=(keys, STEPS + 1))
    errors -= errors.mean(axis=0)
    correlation[:, range(STEPS + 1), range(STEPS + 1)] += errors
    heat = mf.effective_temperature(curves_of(correlation, response), 4)
    assert np.asarray(heat.drift).min() < -0.5 < 0.5 < np.asarray(heat.drift).max()
    assert heat.stationary


def test_a_true_drift_is_found_above_a_tenth_of_the_squared_distance():
    """The mean squared distance at long lags is `2 size + drift`, so that the threshold
    of the drift is `2 size/9`. The last time is in neither half.
    """
    for drift, expected in ((0.40, True), (0.48, False)):
        correlation, response = one_mode(0.3, 2.0, 4)
        correlation[:, -1, -1] += drift
        heat = mf.effective_temperature(curves_of(correlation, response), 5)
        np.testing.assert_allclose(heat.drift, drift, rtol=1e-12)
        assert heat.stationary is expected
