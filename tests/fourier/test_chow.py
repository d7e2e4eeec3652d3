"""Chow parameters against closed forms, enumeration in NumPy, and each other."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgfbias import fourier
from sgfbias.fourier.cube import corners, cube_moments
from sgfbias.fourier.quadrature import tanh_moments

LINEAR = np.arange(1.0, 16) / 10
BIASED = np.where(np.arange(15) % 2 == 0, -0.5, 0.3)


def half_tanh(z):
    return jnp.tanh(z / 2)


def network(weight, bias=0.0, activation=half_tanh, dtype=jnp.float64):
    """A network with the given first layer, and a head that does not matter."""
    weight = jnp.atleast_2d(jnp.asarray(weight, dtype))
    m, d = weight.shape
    net = eqx.nn.MLP(d, "scalar", m, 1, activation, key=jax.random.key(0), dtype=dtype)
    bias = jnp.broadcast_to(jnp.asarray(bias, dtype), (m,))
    return eqx.tree_at(lambda n: (n.layers[0].weight, n.layers[0].bias), net, (weight, bias))


def enumerated(weight, bias, means, activation):
    """The definition, with one row for every input."""
    x = np.array(list(itertools.product([-1.0, 1.0], repeat=weight.shape[1])))
    mass = np.prod((1 + means * x) / 2, axis=1)
    values = activation(x @ weight.T + bias) * mass[:, None]
    return values.T @ x, values.sum(axis=0)


def neurons(d, size, m=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, d)) * size, rng.normal(size=m) * size


def close(found, expected, **tolerance):
    for a, b in zip((found.coefficients, found.mean), expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_the_corners_are_all_inputs_once():
    assert {tuple(map(int, row)) for row in corners(5)} == set(itertools.product([-1, 1], repeat=5))


@pytest.mark.parametrize("d", [15, 7])
def test_every_bit_of_a_majority_counts_the_same(d):
    """A bit decides the majority of d where the others are tied."""
    t = fourier.chow(network(np.ones(d), activation=fourier.sign))
    decides = math.comb(d - 1, d // 2) / 2 ** (d - 1)
    np.testing.assert_allclose(t.coefficients, decides * np.ones((1, d)), atol=1e-12)
    assert decides == {15: 0.20947265625, 7: 0.3125}[d]


def test_a_dictator_depends_on_its_bit_only():
    t = fourier.chow(network(np.eye(9)[:1] * 3, activation=fourier.sign))
    np.testing.assert_allclose(t.coefficients, np.eye(9)[:1], atol=1e-15)


def test_the_values_that_were_computed_elsewhere():
    found = fourier.chow(network(LINEAR, -0.2), BIASED)
    expected = {0: 0.197095144048, 7: 0.026583498489, 14: 0.426611809137}
    for i, value in expected.items():
        np.testing.assert_allclose(found.coefficients[0, i], value, atol=1e-10)
    np.testing.assert_allclose(found.mean, -0.365188750716, atol=1e-10)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0, 30.0])
def test_both_methods_are_the_definition(size, biased):
    """Whatever the weights, also where no product of cosines decays."""
    weight, bias = neurons(9, size)
    means = np.random.default_rng(1).uniform(-1, 1, 9) if biased else np.zeros(9)
    net, expected = network(weight, bias), enumerated(weight, bias, means, half_tanh)
    for method in ("enumerate", "quadrature"):
        close(fourier.chow(net, means, method=method), expected, atol=1e-12, rtol=0)


def test_zeros_of_cosines_do_no_harm():
    """Equal weights, at which every cosine vanishes at the same node, and bits that
    never change.
    """
    weight, means = np.full((1, 8), np.pi / 2), np.array([0, 0, 1, -1, 0, 0.5, 0, 1.0])
    net = network(weight)
    expected = enumerated(weight, 0.0, means, half_tanh)
    close(fourier.chow(net, means, method="quadrature"), expected, atol=1e-13)


@pytest.mark.parametrize(
    "activation",
    [jax.nn.sigmoid, jnp.tanh, lambda z: 3 - 0.2 * jnp.tanh(7 * z), lambda z: jnp.tanh(z / 900)],
    ids=["sigmoid", "tanh", "decreasing", "slow"],
)
def test_a_plus_b_tanh_is_recognised(activation):
    weight, bias = neurons(9, 1.0)
    net = network(weight, bias, activation)
    found = fourier.chow(net, 0.3, method="quadrature")
    close(found, enumerated(weight, bias, 0.3 * np.ones(9), activation), rtol=1e-10, atol=1e-13)


def test_units_may_have_parameters_of_their_own():
    class Slope(eqx.Module):
        c: jax.Array

        def __call__(self, z):
            return jnp.tanh(self.c * z)

    weight, bias = neurons(9, 1.0)
    slopes = np.array([0.5, 1.0, 2.0, 3.0])
    net = eqx.tree_at(
        lambda n: n.activation, network(weight, bias), Slope(jnp.asarray(slopes)[None])
    )
    expected = enumerated(weight, bias, np.zeros(9), lambda z: np.tanh(slopes * z))
    for method in ("enumerate", "quadrature"):
        close(fourier.chow(net, method=method), expected, atol=1e-13)


@pytest.mark.slow
def test_many_bits_agree_with_a_sample():
    weight, bias = neurons(80, 0.2, m=3)
    net, means = network(weight, bias), np.linspace(-0.8, 0.8, 80)
    exact = fourier.chow(net, means)
    drawn = fourier.chow(net, means, method="sample", samples=20_001, key=jax.random.key(4))
    assert (exact.method, exact.coefficients_error) == ("quadrature", None)
    for name in ("coefficients", "mean"):
        off = np.asarray(getattr(drawn, name) - getattr(exact, name))
        z = off / np.asarray(getattr(drawn, f"{name}_error"))
        # Of 240 normal numbers the largest is below 4.5 with a probability of 99.8%.
        assert np.abs(z).max() < 4.5
        assert np.sqrt(np.mean(z**2)) > 0.3


@pytest.mark.slow
def test_a_thousand_bits_of_which_twelve_have_weights():
    """The bits without weights are independent of the neuron, so the others can be
    enumerated.
    """
    used, means = np.arange(12) * 80 + 3, np.linspace(-0.9, 0.9, 1000)
    few, bias = neurons(12, 1.0, m=2)
    weight = np.zeros((2, 1000))
    weight[:, used] = few
    found = fourier.chow(network(weight, bias), means)
    expected, mean = enumerated(few, bias, means[used], half_tanh)
    np.testing.assert_allclose(found.mean, mean, atol=1e-13)
    np.testing.assert_allclose(found.coefficients[:, used], expected, atol=1e-13)
    others = np.setdiff1d(np.arange(1000), used)
    independent = mean[:, None] * means[others]
    np.testing.assert_allclose(found.coefficients[:, others], independent, atol=1e-13)


@pytest.mark.slow
def test_the_standard_errors_are_those_of_a_small_sample():
    weight, _ = neurons(5, 1.0, m=2)
    draws = [
        fourier.chow(network(weight), method="sample", samples=50, key=jax.random.key(k))
        for k in range(200)
    ]
    spread = np.std([draw.coefficients for draw in draws], axis=0)
    told = np.mean([draw.coefficients_error for draw in draws], axis=0)
    np.testing.assert_allclose(told, spread, rtol=0.25)


def test_data_are_a_weighted_mean_of_different_inputs():
    weight, bias = neurons(6, 1.0)
    x = np.unique(np.random.default_rng(0).choice([-1.0, 1.0], size=(12, 6)), axis=0)
    counts = 1 + np.arange(len(x)) % 3
    found = fourier.chow(network(weight, bias), inputs=np.repeat(x, counts, axis=0))
    values = half_tanh(x @ weight.T + bias) * (counts / counts.sum())[:, None]
    close(found, (values.T @ x, values.sum(axis=0)), atol=1e-14)


@pytest.mark.slow
def test_permuting_bits_permutes_coefficients():
    weight, bias = neurons(20, 0.5)
    order = np.random.default_rng(2).permutation(20)
    first, second = (fourier.chow(network(w, bias)) for w in (weight, weight[:, order]))
    np.testing.assert_allclose(first.coefficients[:, order], second.coefficients, atol=1e-14)


@pytest.mark.slow
def test_it_is_jitted_and_batched_over_networks():
    nets = [network(*neurons(18, 0.4, seed=k)) for k in range(3)]
    params = [eqx.filter(net, eqx.is_array) for net in nets]
    _, static = eqx.partition(nets[0], eqx.is_array)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

    @jax.jit
    @jax.vmap
    def found(p):
        t = fourier.chow(eqx.combine(p, static))
        return t.coefficients, t.mean

    for k, net in enumerate(nets):
        one = fourier.chow(net)
        assert one.method == "quadrature"
        for a, b in zip(found(stack), (one.coefficients, one.mean), strict=True):
            np.testing.assert_allclose(a[k], b, atol=1e-14)


@pytest.mark.slow
def test_the_blocks_of_a_sum_do_not_matter(monkeypatch):
    weight, bias = (jnp.asarray(v) for v in neurons(9, 1.0))
    means = jnp.full(9, 0.2)
    cut = [
        f(weight, bias, means, *a) for f, a in ((cube_moments, (half_tanh,)), (tanh_moments, ()))
    ]
    monkeypatch.setattr("sgfbias.fourier.cube.BLOCK", 100)
    monkeypatch.setattr("sgfbias.fourier.quadrature.BLOCK", 1)
    again = [
        f(weight, bias, means, *a) for f, a in ((cube_moments, (half_tanh,)), (tanh_moments, ()))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-15), cut, again)


@pytest.mark.slow
def test_float32_has_its_own_precision():
    weight, bias = neurons(20, 0.5)
    single = fourier.chow(network(weight, bias, dtype=jnp.float32), 0.1)
    assert (single.method, single.coefficients.dtype) == ("quadrature", np.float32)
    double = fourier.chow(network(weight, bias), 0.1)
    close(single, (double.coefficients, double.mean), atol=5e-6)


def test_weights_that_are_not_finite_end():
    weight, _ = neurons(20, 0.5)
    weight[0, 3] = np.inf
    found = fourier.chow(network(weight))
    assert np.isnan(found.coefficients[0]).all()
    assert np.isfinite(found.coefficients[1:]).all()


def test_another_activation_is_sampled_with_a_warning():
    net = network(*neurons(17, 0.5), activation=jax.nn.relu)
    with pytest.warns(UserWarning, match="relu with 17 bits are estimated from 1,000 random"):
        assert fourier.chow(net, samples=1000).method == "sample"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"method": "quadratur"},
            "no method .*; did you mean quadrature\\? the methods",
        ),
        ({"method": "enumerate"}, "at most 22 bits, but there are 23"),
        ({"method": "quadrature"}, "needs an activation a \\+ b tanh\\(c z\\).* but relu"),
        ({"method": "data"}, "needs inputs="),
        ({"inputs": np.ones((2, 23)), "means": 0.1}, "leave out `means`"),
        ({"inputs": np.zeros((2, 23))}, "must be -1 or \\+1, but 0 occurs: write 2\\*x - 1"),
        ({"inputs": np.ones((2, 4))}, "inputs have 4 bits"),
        ({"means": 1.5}, "means must be from -1 to 1, .* but 1.5 occurs"),
        ({"means": np.nan}, "means must be from -1 to 1"),
        ({"means": np.zeros(4)}, "shape \\(23,\\), one mean for each bit, but have shape \\(4,\\)"),
        ({"method": "sample", "samples": 1}, "samples must be at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        fourier.chow(network(np.ones(23), activation=jax.nn.relu), **options)


def test_a_layer_without_activation_asks_for_one():
    linear = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match="name it by activation="):
        fourier.chow(linear)
    assert fourier.chow(linear, activation=jnp.tanh).coefficients.shape == (3, 4)
