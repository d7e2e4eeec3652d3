"""The disagreement of two neurons: values computed elsewhere, another formula for the
Gaussian one, and a bound that always holds.
"""

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import owens_t
from scipy.stats import norm

from sgfbias import fourier

COUNTING = np.arange(1.0, 16)
DOMINATED = np.r_[6.0, np.ones(14)]


@pytest.mark.parametrize(
    ("w", "bias", "new_bias", "exact", "gaussian", "bound"),
    [
        (COUNTING, 0.0, 0.0, 0.154144287109375, 0.157621, 0.207672119),
        (COUNTING, -30.5, -4.0, 0.10260009765625, 0.105163810, 0.152160645),
        (DOMINATED, -0.5, 0.0, 0.336029052734375, 0.240231047, 0.496042887),
    ],
)
def test_the_values_that_were_computed_elsewhere(w, bias, new_bias, exact, gaussian, bound):
    found = fourier.disagreement(w, np.sign(w), bias, new_bias)
    np.testing.assert_allclose(found.exact, exact, atol=1e-15)
    np.testing.assert_allclose(found.gaussian, gaussian, atol=5e-7)
    np.testing.assert_allclose(found.bound, bound, atol=5e-10)


def test_one_big_weight_exceeds_the_gaussian_value():
    found = fourier.disagreement(DOMINATED, np.sign(DOMINATED), -0.5)
    assert found.gaussian < found.exact < found.bound


def by_owen(a, b, rho):
    """The probability that exactly one of two normal numbers of correlation rho exceeds
    its threshold, by Owen's formula for Phi_2.
    """
    root = np.sqrt((1 - rho) * (1 + rho))
    both = (norm.cdf(a) + norm.cdf(b)) / 2 - (0.5 if a * b < 0 else 0.0)
    both -= owens_t(a, (b / a - rho) / root) + owens_t(b, (a / b - rho) / root)
    return norm.cdf(a) + norm.cdf(b) - 2 * both


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 0.3, 1.5, 2.5, 3.1])
def test_the_gaussian_value_is_that_of_owen(angle):
    for a, b in ((0.3, 0.31), (0.3, 1.5), (-0.7, 0.4), (2.0, -2.0), (3.0, 3.0)):
        w, v = np.array([2.0, 0.0]), 5 * np.array([np.cos(angle), np.sin(angle)])
        found = fourier.disagreement(w, v, 2 * a, 5 * b).gaussian
        np.testing.assert_allclose(found, by_owen(a, b, np.cos(angle)), atol=2e-9)


@pytest.mark.slow
def test_without_thresholds_it_is_the_angle():
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(2, 30))
    rho = w @ v / np.linalg.norm(w) / np.linalg.norm(v)
    np.testing.assert_allclose(
        fourier.disagreement(w, v).gaussian, np.arccos(rho) / np.pi, rtol=1e-12
    )


def test_ties_count_as_plus_one():
    """Of the four inputs only (-1, +1) and (+1, -1) are ties of v, and w gives one of
    them the label -1.
    """
    assert float(fourier.disagreement([2.0, 1.0], [1.0, 1.0]).exact) == 0.25


@pytest.mark.slow
@hypothesis.given(
    arrays.arrays(float, st.sampled_from([1, 6, 9]), elements=st.floats(-4, 4, width=16)),
    st.floats(-3, 3),
    st.floats(-3, 3),
    st.floats(0.1, 5),
)
@hypothesis.settings(max_examples=60)
def test_the_bound_always_holds(w, bias, new_bias, c):
    hypothesis.assume(np.any(w))
    found = fourier.disagreement(w, c * np.sign(w), bias, new_bias)
    assert found.exact <= found.bound + 1e-12


def test_the_bound_of_four_equal_weights_by_hand():
    """With thresholds 0 and 3 the labels differ where the sum is 0 or 2, which costs
    2 (6 * 3 + 4 * 1) / 16. The smallest distances from 3 are 1 with the mass 5/16, at
    the sums 4 and 2, and then 3 with the mass 6/16.
    """
    found = fourier.disagreement(np.ones(4), np.ones(4), 0.0, -3.0)
    np.testing.assert_allclose(found.exact, 10 / 16)
    share = (44 / 16 - 2 * 1 * 5 / 16) / (2 * 3 * 6 / 16)
    np.testing.assert_allclose(found.bound, 5 / 16 + share * 6 / 16, atol=1e-12)


def test_many_bits_have_a_bound_but_no_exact_value():
    rng = np.random.default_rng(1)
    w = rng.normal(size=30)
    found = fourier.disagreement(w, 0.3 * np.sign(w))
    assert found.exact is None
    x = rng.choice([-1.0, 1.0], size=(100_000, 30))
    assert np.mean((x @ w >= 0) != (x @ np.sign(w) >= 0)) < found.bound - 0.01
    assert found.bound < 0.5
    assert fourier.disagreement(np.ones(41), np.ones(41)).bound is None


@pytest.mark.slow
def test_half_sums_give_the_alignment_of_the_whole_cube():
    """The bound, computed from its definition with all 2^d inputs."""
    rng = np.random.default_rng(2)
    w, theta, bias = rng.normal(size=10), 1.5, 0.7
    s, x = np.sign(w), np.asarray(fourier.cube.corners(10))
    y = np.abs(x @ s - theta)
    gap = np.mean(y) - np.mean(np.where(x @ w + bias >= 0, 1, -1) * (x @ s - theta))
    mass, spent = 0.0, 0.0
    for value in np.sort(y):
        part = min(1.0, (gap - spent) / (2 * value / len(x)))
        mass, spent = mass + part / len(x), spent + part * 2 * value / len(x)
        if part < 1:
            break
    np.testing.assert_allclose(
        fourier.disagreement(w, 0.2 * s, bias, -0.2 * theta).bound, mass, atol=1e-12
    )


@pytest.mark.slow
def test_pruned_bits_do_not_count():
    w = np.array([0.0, 2.0, 0.0, -1.0, 0.5])
    with_zeros = fourier.disagreement(w, np.sign(w), 0.1, 0.2)
    without = fourier.disagreement(w[w != 0], np.sign(w[w != 0]), 0.1, 0.2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), with_zeros, without)


def test_the_bound_needs_equal_weights():
    w = COUNTING
    assert fourier.disagreement(w, w + 1).bound is None
    assert fourier.disagreement(w, -np.sign(w)).bound is None
    assert np.isnan(jax.jit(lambda v: fourier.disagreement(w, v).bound)(w + 1))


@pytest.mark.slow
def test_it_is_batched():
    rows = jnp.asarray(np.random.default_rng(3).normal(size=(4, 8)))
    found = jax.jit(jax.vmap(lambda w: fourier.disagreement(w, jnp.sign(w), 0.1)))(rows)
    for k, w in enumerate(rows):
        one = fourier.disagreement(w, jnp.sign(w), 0.1)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[k], b, rtol=1e-12), found, one)


@pytest.mark.parametrize(
    ("w", "v", "words"),
    [
        (np.ones(3), np.ones(4), "one length, but have the shapes \\(3,\\) and \\(4,\\)"),
        (np.ones((2, 3)), np.ones((2, 3)), "use jax.vmap"),
        (np.zeros(3), np.ones(3), "w must have a weight other than 0"),
        (np.ones(3), np.zeros(3), "v must have a weight other than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(w, v, words):
    with pytest.raises(ValueError, match=words):
        fourier.disagreement(w, v)
