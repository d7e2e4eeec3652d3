"""What the system says of arguments that do not fit, and of results that it has not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.report import NoiseReport

KEY = jax.random.key(0)
MIXTURE = mf.GaussianMixture(2.0, spectrum=0.5)
RULE = mf.MaskedDescent(0.1)
LOGISTIC = sgf.LogisticLoss()


def refused(words):
    return pytest.raises(ValueError, match=words)


def solved(data=MIXTURE, loss=LOGISTIC, rule=RULE, **options):
    return mf.solve(data, loss, rule, **{"steps": 2, "keys": KEY, "samples": 8, **options})


def simulated(data=MIXTURE, loss=LOGISTIC, rule=RULE, **options):
    return mf.simulate(data, loss, rule, **{"steps": 2, "keys": KEY, "d": 4, **options})


def stationary(data=MIXTURE, loss=LOGISTIC, **options):
    return mf.stationary_point(data, loss, ridge=0.1, **options)


def made_classes():
    rng = np.random.default_rng(0)
    y = np.repeat([-1.0, 1.0], 10)
    return (y[:, None] * 0.3 + rng.normal(size=(20, 4))) / 2, y


@pytest.mark.parametrize("run", [solved, simulated, stationary])
def test_readouts_of_one_output_that_are_no_functions_of_a_number(run):
    with refused("`readout` must be a function of the pre-activation, .* but is 2.0"):
        run(readout=2.0)
    with refused("`readout` must return one number .* but returns shape \\(2,\\)"):
        run(readout=lambda r: jnp.stack([r, r]))
    with refused("`readout` must return one number .* but returns tuple"):
        run(readout=lambda r: (r, r))
    with refused("`readout` must be a function of one pre-activation, a number, but fails on one"):
        run(readout=lambda r: r[0] + r[1])


@pytest.mark.parametrize("run", [solved, simulated])
def test_data_of_ones_own_have_no_readout(run):
    with refused("the test error of data from `fit` is known only without `readout`: leave it out"):
        run(mf.fit(*made_classes()), readout=jnp.tanh)


def test_the_error_where_w_sees_no_noise_is_certain():
    """With m > 0 all examples are on their side, and with m < 0 none."""
    clean = mf.GaussianMixture(2.0, spectrum=0.0)
    overlaps = jnp.asarray([0.5, -0.5, 0.0])
    error = clean.test_error(overlaps, jnp.zeros(3), None)
    np.testing.assert_array_equal(error, [0, 1, 0.5])
    slopes = jax.grad(lambda m: jnp.sum(clean.test_error(m, jnp.zeros(3), None)))(overlaps)
    np.testing.assert_array_equal(slopes, 0)
    X, y = made_classes()
    np.testing.assert_array_equal(
        mf.fit(X, y).test_error(overlaps, jnp.zeros(3), None), [0, 1, 0.5]
    )


@pytest.mark.slow
def test_clean_clusters_are_classified_without_error():
    clean = mf.GaussianMixture(2.0, spectrum=0.0)
    start = mf.Start(overlap=0.5)
    for curves in (solved(clean, start=start), simulated(clean, start=start)):
        np.testing.assert_array_equal(curves.test_error, 0)


def report():
    """A report with the lags 0, 1, 3 and 10."""
    drop, chi = jnp.asarray([[0.0, 1.0, 2.0, 3.0]] * 2), jnp.asarray([[0.0, 2.0, 8.0, 24.0]] * 2)
    steps = jnp.asarray([0, 5, 6, 8, 15])
    flat = jnp.zeros((2, 5))
    last = drop[:, -1] / chi[:, -1]
    return NoiseReport(steps, flat[0], jnp.ones(2), drop, chi, last, flat, waiting=5, numbers=7)


def test_the_slope_of_a_report_is_at_a_lag():
    found = report()
    np.testing.assert_array_equal(found.lags, [0, 1, 3, 10])
    for lag, expected in ((1, 0.5), (3, 0.25), (10, 0.125), (np.int64(3), 0.25)):
        np.testing.assert_array_equal(found.slope(lag), expected)
    assert "0.5 +- 0 at lag 1" in repr(found)
    for lag in (0, 2, 4, -1):
        with refused(f"`lag` must be one of those measured, 1, 3, 10, but is {lag}"):
            found.slope(lag)
