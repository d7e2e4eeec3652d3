"""Closed forms where floats end, and where there is none."""

import math

import numpy as np
import pytest

from sgfbias import margin


def unit(v):
    return np.asarray(v) / np.linalg.norm(v)


@pytest.mark.parametrize("u0", [-3000.0, -600.0, -20.0, 0.0, 30.0, 600.0, 2000.0])
def test_adagrads_limit_at_any_start(u0):
    """Far below 0 the squares are far above eps, and `2 sum |x_i| sqrt(S) = e^(-u0)`,
    with the direction sign(x). Far above, `sum x_i^2 S / sqrt(eps) = e^(-u0)`, with the
    direction x. An input of 0 does not move.
    """
    x, eps = np.array([0.8, -0.3, 0.0, 0.05]), 1e-8
    limit = margin.adagrad_limit(x, u0 * x / (x @ x), eps=eps)
    if u0 < -10:
        log_s = 2 * (-u0 - math.log(2 * np.abs(x).sum()))
        np.testing.assert_allclose(limit.direction, unit(np.sign(x)), atol=1e-7)
    else:
        log_s = -u0 + math.log(eps) / 2 - math.log(x @ x)
    if u0 in (-20.0, 30.0, 600.0):  # where S is a float
        np.testing.assert_allclose(math.log(limit.path_sum), log_s, rtol=1e-4)
    if u0 > 10:
        np.testing.assert_allclose(limit.direction, unit(x), atol=1e-7)
        np.testing.assert_allclose(limit.conditioner, eps**-0.5, rtol=1e-6)
    if u0 == 0:
        rise = np.sum(np.sqrt(eps + x**2 * limit.path_sum) - math.sqrt(eps))
        np.testing.assert_allclose(2 * rise, 1, rtol=1e-10)
    if u0 == -600:
        np.testing.assert_allclose(
            np.log(limit.conditioner[0]), -log_s / 2 - math.log(0.8), rtol=1e-10
        )
    assert limit.direction[2] == 0
    np.testing.assert_allclose(limit.conditioner[2], eps**-0.5, rtol=1e-12)


def test_adagrads_limit_needs_numbers():
    with pytest.raises(ValueError, match="`x` or `w0` has entries that are NaN or infinite"):
        margin.adagrad_limit([1.0, np.nan], [0.0, 0.0])


def gains(lr, b1, b2, steps):
    """By how much nu grows in each step of Adam with eps = 0 and one example x = 1."""
    M = U = 0.0
    f, found = 1.0, []
    for k in range(1, steps + 1):
        M, U = b1 * M * f + 1 - b1, b2 * U * f * f + 1 - b2
        found.append(lr * M / (1 - b1**k) / math.sqrt(U / (1 - b2**k)))
        if found[-1] > 1:  # no steady rate is, as it is below -log(b1)
            break
        f = math.exp(found[-1])
    return found


@pytest.mark.parametrize(
    ("lr", "b1", "b2"),
    [(1e-3, 0.9, 0.5), (1e-2, 0.9, 0.81), (1e-2, 0.9, 0.99), (0.1, 0.5, 0.0), (0.05, 0.0, 0.9)],
)
def test_adams_rate_is_that_of_its_steps(lr, b1, b2):
    np.testing.assert_allclose(margin.adam_rate(1.0, lr, b1, b2), gains(lr, b1, b2, 3000)[-1])


@pytest.mark.parametrize(("lr", "b1", "b2"), [(0.05, 0.9, 0.5), (0.1, 0.9, 0.5), (0.05, 0.9, 0.8)])
def test_where_adams_steps_grow_without_end_there_is_no_rate(lr, b1, b2):
    assert gains(lr, b1, b2, 3000)[-1] > 1
    with pytest.raises(ValueError, match=r"there is no steady rate for b1 > sqrt\(b2\) at this st"):
        margin.adam_rate(1.0, lr, b1, b2)
