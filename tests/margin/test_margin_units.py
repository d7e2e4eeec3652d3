"""The maximal margin of linear models does not depend on the units of the data."""

import numpy as np
import pytest

from sgfbias import margin

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(8, 12)), np.where(np.arange(8) % 2, -1.0, 1.0)
METRIC = RNG.uniform(0.1, 10, size=12)


@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "metric"])
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-7, 1e-3, 1e6])
def test_the_solution_in_other_units(norm, scale):
    """With s X the weights are w/s, the margin is s times as large, and the multipliers
    are smaller by s, or by s^2 where their sum is 1/margin^2.
    """
    given = METRIC if norm == "metric" else norm
    plain, other = margin.max_margin(X, Y, norm=given), margin.max_margin(scale * X, Y, norm=given)
    assert abs(other.gap) < 1e-12
    np.testing.assert_allclose(other.weights * scale, plain.weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(other.margin, scale * plain.margin, rtol=1e-12)
    power = 1 if norm in ("l1", "linf") else 2
    np.testing.assert_allclose(
        other.multipliers * scale**power, plain.multipliers, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
def test_a_margin_that_is_small_beside_the_data(norm):
    """Two examples (1, g) and (1, -g) with the labels 1 and -1: only the second input
    tells them apart, so w = (0, 1/g) and the margin is g.
    """
    for g in (1e-2, 1e-4):
        found = margin.max_margin(np.array([[1, g], [1, -g]]), [1, -1], norm=norm)
        np.testing.assert_allclose(found.margin, g, rtol=1e-9)
        np.testing.assert_allclose(found.weights * g, [0, 1], atol=1e-9)
        assert abs(found.gap) < 1e-9


def test_a_metric_of_any_size():
    """With c times the metric the norm is sqrt(c) times as large."""
    plain = margin.max_margin(X, Y, norm=METRIC)
    for c in (1e-16, 1e16):
        found = margin.max_margin(X, Y, norm=c * METRIC)
        np.testing.assert_allclose(found.weights, plain.weights, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.margin, plain.margin / np.sqrt(c), rtol=1e-12)
        assert abs(found.gap) < 1e-12


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize("scale", [0.0, 1e-9, 1.0, 1e9])
def test_data_that_are_not_separable_in_any_units(norm, scale):
    twice = scale * np.concatenate([X[:1], X[:1]])
    with pytest.raises(ValueError, match="the data are not separable"):
        margin.max_margin(twice, [1, -1], norm=norm)
