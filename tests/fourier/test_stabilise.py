"""Stabilised neurons: the best weights by Hoelder's inequality, clipping, thresholds,
and the networks that hold them.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgfbias import fourier

D = 15
W = np.random.default_rng(0).normal(size=D)
X = np.asarray(fourier.cube.corners(D))
LABELS = np.where(X @ W >= 0, 1.0, -1.0)


def network(weight, bias=0.0, activation=fourier.sign, **options):
    """A network with the given first layer, and a head that does not matter."""
    weight = jnp.atleast_2d(jnp.asarray(weight, float))
    m, d = weight.shape
    net = eqx.nn.MLP(d, "scalar", m, 1, activation, key=jax.random.key(0), **options)
    return eqx.tree_at(
        lambda n: (n.layers[0].weight, n.layers[0].bias),
        net,
        (weight, jnp.broadcast_to(jnp.asarray(bias, float), (m,))),
        is_leaf=lambda leaf: leaf is None,
    )


def weights(net):
    return np.asarray(net.layers[0].weight)


def distance(v, p, theta=0.0):
    """The mean l_p distance of the inputs from the hyperplane of v, with the sign of
    the old labels.
    """
    q = math.inf if p == 1 else p / (p - 1)
    return np.mean(LABELS * (X @ v - theta)) / np.linalg.norm(v, q)


@pytest.mark.parametrize(
    ("p", "norm"),
    [(1, 2.30419921875), (1.5, 1.1162728674), (2, 0.8203955472), (4, 0.6066916314)],
)
def test_the_mean_distance_is_the_norm_of_the_coefficients(p, norm):
    """The value of Hoelder's inequality, computed elsewhere, is reached, and no other
    weights have a larger one.
    """
    t = fourier.chow(network(W)).coefficients[0]
    np.testing.assert_allclose(np.linalg.norm(t, p), norm, atol=1e-10)
    v = weights(fourier.stabilise(network(W), p=p))[0]
    np.testing.assert_allclose(distance(v, p), norm, atol=1e-10)
    for other in np.random.default_rng(1).normal(size=(20, D)) * 0.3 + v:
        assert distance(other, p) < norm


def test_the_mean_distances_of_the_original_neuron():
    np.testing.assert_allclose(distance(W, 1), 1.2648902412, atol=1e-10)
    np.testing.assert_allclose(distance(W, 2), 0.8168522300, atol=1e-10)
    assert distance(weights(fourier.stabilise(network(W)))[0], 1) > 2.3041992


def test_the_gain_bounds_what_the_mean_distance_can_gain():
    gain = D - np.abs(W).sum() / np.abs(W).max()
    np.testing.assert_allclose(gain, 10.4516757635, atol=1e-10)
    assert gain > 2.3041992188 - 1.2648902412


@pytest.mark.parametrize("theta", [0.0, 0.4, -2.0, 5.0])
def test_coefficients_have_the_signs_of_the_weights(theta):
    rows = np.random.default_rng(3).normal(size=(6, 9))
    t = np.asarray(fourier.chow(network(rows, -theta)).coefficients)
    assert ((t * rows > 0) | (np.abs(t) < 1e-15)).all()
    assert (np.linalg.norm(t, axis=1) <= 1 + 1e-12).all()


def test_all_distances_tend_to_one_bit():
    v = weights(fourier.stabilise(network(W), p=math.inf))[0]
    top = np.argmax(np.abs(W))
    np.testing.assert_allclose(v, np.sign(W[top]) * np.abs(W).sum() * np.eye(D)[top])
    large = weights(fourier.stabilise(network(W), p=3000.0))[0]
    # The norm that is kept belongs to q = 3000/2999, and is 1/1000 smaller.
    np.testing.assert_allclose(large, v, rtol=1e-3, atol=1e-6 * np.abs(W).sum())


@pytest.mark.parametrize(("p", "q"), [(1, np.inf), (1.5, 3), (2, 2), (4, 4 / 3), (math.inf, 1)])
def test_the_scale_keeps_a_norm(p, q):
    rows = np.random.default_rng(4).normal(size=(3, 8))
    for scale, order in (("linf", q), ("l2", 2)):
        v = weights(fourier.stabilise(network(rows), p=p, scale=scale))
        kept = [np.linalg.norm(w, order, axis=1) for w in (v, rows)]
        np.testing.assert_allclose(*kept, rtol=1e-12)


def test_a_dictator_and_pruned_bits_stay():
    rows = np.array([[0.0, -2.0, 0, 0], [1.0, 0.0, -0.5, 0.0]])
    expected = [[0.0, -2.0, 0, 0], [1.0, 0.0, -1.0, 0.0]]
    np.testing.assert_array_equal(weights(fourier.stabilise(network(rows))), expected)


@pytest.mark.parametrize("scale", ["linf", "l2"])
def test_twice_is_once(scale):
    net = network(np.random.default_rng(5).normal(size=(4, 7)), 0.3)
    once = fourier.stabilise(net, scale=scale)
    twice = fourier.stabilise(once, scale=scale)
    np.testing.assert_allclose(weights(twice), weights(once), rtol=1e-15)


def test_levels_lead_from_the_network_to_p_1():
    net = network(np.random.default_rng(6).normal(size=(4, 7)))
    whole = {s: weights(fourier.stabilise(net, scale=s)) for s in ("linf", "l2")}
    for scale in whole:
        same, low = (fourier.stabilise(net, level=c, scale=scale) for c in (1.0, 1e-9))
        np.testing.assert_allclose(weights(same), weights(net), rtol=1e-12)
        np.testing.assert_allclose(weights(low), whole[scale], rtol=1e-12)
    half = weights(fourier.stabilise(net, level=0.5))
    c = np.abs(weights(net)).max(axis=1, keepdims=True) / 2
    clipped = np.clip(weights(net), -c, c)
    np.testing.assert_allclose(half, 2 * clipped, rtol=1e-12)


def test_no_other_weights_of_the_same_norms_have_a_larger_cosine():
    v = weights(fourier.stabilise(network(W), level=0.4))[0]
    best = v @ W / np.linalg.norm(v)
    rng = np.random.default_rng(7)
    for other in rng.normal(size=(300, D)) * 0.2 + v:
        # Scaled to the largest entry of v. A larger 2-norm means a larger distance.
        other = other * np.abs(v).max() / np.abs(other).max()
        if np.linalg.norm(other) >= np.linalg.norm(v):
            assert other @ W / np.linalg.norm(other) <= best + 1e-12


@pytest.mark.parametrize("scale", ["linf", "l2"])
def test_the_level_is_differentiable(scale):
    net = network(np.random.default_rng(8).normal(size=(2, 6)), activation=jnp.tanh)
    x = jnp.asarray([1.0, -1, 1, 1, -1, 1])

    def output(level):
        return fourier.stabilise(net, level=level, scale=scale)(x)

    level, h = jnp.asarray(0.37), 1e-6
    slope = (output(level + h) - output(level - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(output)(level), slope, rtol=1e-6)
    levels = jnp.asarray([0.2, 0.8])
    each = weights(fourier.stabilise(net, level=levels, scale=scale))
    for k in range(2):
        one = weights(fourier.stabilise(net, level=levels[k], scale=scale))
        np.testing.assert_allclose(each[k], one[k], rtol=1e-14)


def test_a_mask_selects_neurons_and_leaves_the_rest_alone():
    net = network(np.random.default_rng(9).normal(size=(3, 6)), 0.2)
    mask = np.array([True, False, True])
    new = fourier.stabilise(net, mask)
    whole = fourier.stabilise(net)
    np.testing.assert_array_equal(weights(new)[mask], weights(whole)[mask])
    np.testing.assert_array_equal(weights(new)[1], weights(net)[1])
    kept = [(n.layers[0].bias, n.layers[1]) for n in (net, new)]
    assert eqx.tree_equal(*kept)


@pytest.mark.slow
def test_permuting_bits_permutes_the_weights():
    rows, order = np.random.default_rng(10).normal(size=(3, 9)), np.arange(9)[::-1]
    for p in (1, 2, 4):
        first, second = (fourier.stabilise(network(w), p=p) for w in (rows, rows[:, order]))
        np.testing.assert_allclose(weights(first)[:, order], weights(second), atol=1e-13)


def test_a_decreasing_activation_keeps_its_labels():
    rising, falling = (network(W, activation=f) for f in (jnp.tanh, lambda z: -jnp.tanh(z)))
    for p in (1.5, 2):
        new = [weights(fourier.stabilise(net, p=p)) for net in (rising, falling)]
        np.testing.assert_allclose(*new, rtol=1e-12)


def test_coefficients_may_be_those_of_the_data():
    x = X[::97][:, :D]
    t = fourier.chow(network(W), inputs=x)
    new = weights(fourier.stabilise(network(W), chow=t))[0]
    np.testing.assert_array_equal(new, np.abs(W).max() * np.sign(t.coefficients[0]))
    again = weights(fourier.stabilise(network(W), p=2, chow=t.coefficients))[0]
    np.testing.assert_allclose(
        again / np.linalg.norm(W), t.coefficients[0] / jnp.linalg.norm(t.coefficients)
    )


def test_any_module_with_a_linear_first_layer_is_stabilised():
    chain = eqx.nn.Sequential(
        [
            eqx.nn.Linear(6, 4, use_bias=False, key=jax.random.key(1)),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Linear(4, 3, key=jax.random.key(2)),
        ]
    )
    new = fourier.stabilise(chain)
    assert new.layers[0].bias is None
    assert len(np.unique(np.abs(new.layers[0].weight[0]).round(12))) == 1


@pytest.mark.slow
def test_it_is_jitted_and_batched_over_networks():
    stack = jnp.asarray(np.random.default_rng(11).normal(size=(3, 2, 8)))
    for p, level in ((1, None), (2, None), (1, 0.3)):
        new = jax.jit(
            jax.vmap(lambda w: fourier.stabilise(network(w), p=p, level=level).layers[0].weight)
        )(stack)
        for k in range(3):
            one = weights(fourier.stabilise(network(stack[k]), p=p, level=level))
            np.testing.assert_allclose(new[k], one, rtol=1e-12)


@pytest.mark.slow
def test_refitted_thresholds_keep_most_labels():
    """No threshold on a fine grid agrees on more of the inputs, and the old bias is
    kept where it is as good as any.
    """
    rng = np.random.default_rng(12)
    rows, bias = rng.normal(size=(5, 12)), rng.normal(size=5) * 2
    x = rng.choice([-1.0, 1.0], size=(301, 12), p=[0.7, 0.3])
    net = network(rows, bias)
    new = fourier.stabilise(net, neurons=np.array([True] * 4 + [False]), refit_bias=x)
    old = x @ rows.T + bias >= 0
    scores = x @ weights(new).T
    agreement = np.mean((scores + np.asarray(new.layers[0].bias) >= 0) == old, axis=0)
    for b in np.linspace(-60, 60, 4001):
        assert (np.mean((scores + b >= 0) == old, axis=0)[:4] <= agreement[:4]).all()
    assert new.layers[0].bias[4] == bias[4]
    plain = np.mean((scores + bias >= 0) == old, axis=0)
    assert agreement[:4].sum() > plain[:4].sum()


def test_refitting_an_unchanged_neuron_changes_no_label():
    x = np.random.default_rng(13).choice([-1.0, 1.0], size=(50, 5))
    net = network([[1.0, -1, 1, 1, 1]], 0.3)
    new = fourier.stabilise(net, refit_bias=x)
    both = [x @ weights(n).T + np.asarray(n.layers[0].bias) >= 0 for n in (net, new)]
    np.testing.assert_array_equal(*both)


def test_a_neuron_without_weights_is_returned_with_a_warning():
    rows = np.vstack([np.zeros(6), np.arange(1.0, 7)])
    for p in (1, 2, math.inf):
        with pytest.warns(UserWarning, match="returned unchanged: 0"):
            new = fourier.stabilise(network(rows, 0.2), p=p)
        np.testing.assert_array_equal(weights(new)[0], np.zeros(6))
        assert np.isfinite(weights(new)).all()
    for scale in ("linf", "l2"):
        with pytest.warns(UserWarning, match="all their weights"):
            assert np.isfinite(
                weights(fourier.stabilise(network(rows), level=0.5, scale=scale))
            ).all()
    fourier.stabilise(network(rows), np.array([False, True]))  # it is not selected: no warning


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"p": 0.5}, "p must be at least 1, .* but is 0.5"),
        ({"p": math.nan}, "p must be at least 1"),
        ({"scale": "l1"}, "scale must be 'linf' or 'l2', but is 'l1'"),
        ({"level": 0.0}, "level must be above 0 and at most 1, but is 0.0"),
        ({"level": 1.5}, "above 0 and at most 1"),
        ({"level": np.ones(3)}, "shape \\(2,\\), but has shape \\(3,\\)"),
        ({"level": 0.5, "p": 2}, "goes with neither another p nor chow="),
        ({"level": 0.5, "chow": np.ones((2, 5))}, "goes with neither another p nor chow="),
        ({"chow": np.ones((2, 4))}, "\\(2, 5\\), but has \\(2, 4\\)"),
        ({"neurons": np.array([0, 1])}, "mask of 2 booleans, .* but has type int"),
        ({"neurons": np.ones(3, bool)}, "mask of 2 booleans, .* shape \\(3,\\)"),
        ({"refit_bias": np.zeros((3, 5))}, "refit_bias must be -1 or \\+1, but 0 occurs"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        fourier.stabilise(network(np.ones((2, 5))), **options)


def test_refitting_needs_biases():
    net = eqx.nn.MLP(4, 1, 3, 1, jnp.tanh, use_bias=False, key=jax.random.key(0))
    with pytest.raises(ValueError, match="first layer with biases"):
        fourier.stabilise(net, refit_bias=np.ones((2, 4)))
