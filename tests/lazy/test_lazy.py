"""The network, the data and the closed forms: identities that hold at any width, laws
that draws must follow, and limits.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import lazy
from sgfbias.lazy.theory import arc_cosine_0, arc_cosine_1

N, D, DEPTH = 8, 6, 3


@pytest.fixture(scope="module")
def problem():
    return lazy.SeparatedSphere.sample(jax.random.key(1), n=N, d=D, separation=0.4)


@pytest.fixture(scope="module")
def network():
    return lazy.DeepReLU.init(jax.random.key(2), D, width=10, depth=DEPTH)


@pytest.fixture(scope="module")
def kernel(network, problem):
    return lazy.ntk(network, problem.inputs)


def many(count, width, depth, x, seed=0):
    """The squared norms of the layers, (count, depth), and the outputs (count, n)."""

    def one(key):
        net = lazy.DeepReLU.init(key, x.shape[1], width=width, depth=depth)
        layers = jax.vmap(net.activations)(x)
        return jnp.stack([jnp.sum(h[0] ** 2) for h in layers]), jax.vmap(net)(x)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), count))


def test_the_network_is_the_one_of_the_paper(network, problem):
    x = np.asarray(problem.inputs)
    h = x
    for weight in network.weights:
        h = np.maximum(h @ np.asarray(weight).T, 0)
    np.testing.assert_allclose(jax.vmap(network)(problem.inputs), h @ network.readout, rtol=1e-12)
    assert [w.shape for w in network.weights] == [(10, D), (10, 10), (10, 10)]
    assert list(network.readout) == [1] * 5 + [-1] * 5
    again = lazy.DeepReLU(network.weights, network.readout)
    assert eqx.tree_equal(again, network)
    # The read-out is frozen, in a run and in the kernel.
    runs = sgf.simulate(sgf.GradientDescent(0.1), network, problem, steps=2)
    assert np.all(runs.networks.readout == network.readout)
    assert np.any(runs.networks.weights[0] != network.weights[0])


def test_the_kernel_of_a_layer_is_a_product_of_two_gram_matrices(network, problem, kernel):
    """`K_l = (H_{l-1} H_{l-1}^T) * (B_l B_l^T)`, from the chain rule by hand."""
    h, gates = [np.asarray(problem.inputs)], []
    for weight in network.weights:
        z = h[-1] @ np.asarray(weight).T
        gates.append(z > 0)
        h.append(np.maximum(z, 0))
    b = np.asarray(network.readout) * gates[-1]
    parts = []
    for layer in reversed(range(DEPTH)):
        parts.insert(0, (h[layer] @ h[layer].T) * (b @ b.T))
        if layer:
            b = (b @ np.asarray(network.weights[layer])) * gates[layer - 1]
    assert kernel.methods == ("structured",) * DEPTH
    for part, wanted in zip(kernel.layers.values(), parts, strict=True):
        np.testing.assert_allclose(part, wanted, rtol=0, atol=1e-12)


def test_gradients_and_kernel_agree(network, problem, kernel):
    """`n^2 |grad_l L|^2 = u^T K_l u` with u = l', and Euler's `<W_l, grad_l f> = f`."""
    u = problem.derivatives(network)
    gradient = jax.grad(problem.risk)(network)
    for g, part in zip(gradient.weights, kernel.layers.values(), strict=True):
        np.testing.assert_allclose(N**2 * np.sum(g**2), u @ part @ u, rtol=1e-12)
    x = problem.inputs[0]
    slope = jax.grad(lambda net: net(x))(network)
    for w, g in zip(network.weights, slope.weights, strict=True):
        np.testing.assert_allclose(np.sum(w * g), network(x), rtol=1e-12)


def test_arc_cosine_kernels():
    ends = jnp.asarray([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(arc_cosine_0(ends), [0, 0.5, 1], atol=1e-12)
    np.testing.assert_allclose(arc_cosine_1(ends), [0, 1 / np.pi, 1], atol=1e-12)
    # The derivative of k1 is k0.
    r = jnp.linspace(-0.9, 0.9, 7)
    np.testing.assert_allclose(jax.vmap(jax.grad(arc_cosine_1))(r), arc_cosine_0(r), rtol=1e-10)
    # Within 4 standard errors of a sample.
    rng, count = np.random.default_rng(0), 10**5
    for r in (-0.5, 0.3, 0.8):
        a, b = rng.normal(size=(2, count))
        b = r * a + np.sqrt(1 - r**2) * b
        both = (a > 0) & (b > 0)
        product = np.maximum(a, 0) * np.maximum(b, 0)
        for values, wanted in ((both, arc_cosine_0(r)), (product, arc_cosine_1(r))):
            error = 4 * 2 * values.std() / np.sqrt(count)
            np.testing.assert_allclose(2 * values.mean(), wanted, rtol=0, atol=error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "width"), [(1500, 16), pytest.param(4000, 64, marks=pytest.mark.slow)]
)
def test_norms_and_outputs_follow_their_laws(problem, count, width):
    """Within 4 standard errors. The laws of one input are exact at every width."""
    x = problem.inputs[:2]
    norms, outputs = (np.asarray(v) for v in many(count, width, DEPTH, x))
    for layer in range(DEPTH):
        squares = np.square(norms[:, layer] - 1)
        error = squares.std() / np.sqrt(count)
        assert abs(squares.mean() - lazy.norm_variance(layer + 1, width)) < 4 * error
    wanted = lazy.output_covariance(x, DEPTH)
    np.testing.assert_allclose(np.diag(wanted), 1 - 1 / np.pi, rtol=1e-6)
    for i, j in ((0, 0), (0, 1))[: 1 if width < 64 else 2]:
        products = outputs[:, i] * outputs[:, j]
        assert abs(products.mean() - wanted[i, j]) < 4 * products.std() / np.sqrt(count)
    # Read-outs of random signs would have the variance 1, and the law of weights of
    # half the variance is missed by far at a width where it differs.
    squares = np.square(outputs[:, 0])
    assert 1 - squares.mean() > 4 * squares.std() / np.sqrt(count)
    if width == 64:
        squares = np.square(norms[:, 0] / 2 - 1)
        missed = squares.mean() - lazy.norm_variance(1, width)
        assert missed > 10 * squares.std() / np.sqrt(count)


def test_pre_activations_near_zero_follow_their_law():
    """Of inputs of any norm, within 4 standard errors."""
    width = 64
    z = np.sqrt(2 / width) * 0.7 * np.random.default_rng(0).normal(size=10**5)
    for bound in (0.02, 0.2):
        p = float(lazy.near_zero_fraction(bound, width, norm=0.7))
        assert abs(np.mean(np.abs(z) <= bound) - p) < 4 * np.sqrt(p * (1 - p) / z.size)
    small = lazy.near_zero_fraction(1e-4, width)
    np.testing.assert_allclose(small, 1e-4 * np.sqrt(width / np.pi), rtol=1e-6)


def test_the_kernel_of_one_layer(problem):
    """`K/m -> (x . x') k0 / 2`, and 1/2 on the diagonal at any depth."""
    x = problem.inputs
    one = x @ x.T
    np.testing.assert_allclose(lazy.layer_kernels(x, 1)[0], one * arc_cosine_0(one) / 2, rtol=1e-12)
    for part in lazy.layer_kernels(x, DEPTH):
        np.testing.assert_allclose(np.diag(part), 0.5, rtol=1e-6)


@pytest.mark.slow
def test_wide_networks_have_the_kernel_of_infinite_width(problem):
    """The error falls as 1/sqrt(m), and one layer has K/m -> (x . x') k0 / 2."""
    x = problem.inputs
    one = x @ x.T
    np.testing.assert_allclose(lazy.layer_kernels(x, 1)[0], one * arc_cosine_0(one) / 2, rtol=1e-12)
    wanted = lazy.layer_kernels(x, DEPTH)
    for part in wanted:
        np.testing.assert_allclose(np.diag(part), 0.5, rtol=1e-6)
    errors = []
    for width in (64, 1024):
        found = []
        for seed in range(4):
            net = lazy.DeepReLU.init(jax.random.key(seed), D, width=width, depth=DEPTH)
            parts = lazy.ntk(net, x).layers.values()
            found += [
                np.linalg.norm(part / width - w) / np.linalg.norm(w)
                for part, w in zip(parts, wanted, strict=True)
            ]
        errors.append(np.sqrt(np.mean(np.square(found))))
    # Four draws of three layers each know their root mean square within a third.
    assert 4 / 1.6 < errors[0] / errors[1] < 4 * 1.6
    assert errors[1] < 8 / np.sqrt(1024)


def test_points_keep_their_distance(problem):
    def distances(x):
        found = np.linalg.norm(x[:, None] - x[None], axis=-1)
        return found[np.triu_indices(len(x), 1)]

    x = np.asarray(problem.inputs)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(x[:, -1], 0.5, rtol=1e-12)
    assert distances(x).min() >= 0.4
    assert set(np.asarray(problem.targets)) == {-1.0, 1.0}
    pairs = lazy.SeparatedSphere.pairs(jax.random.key(0), n=6, d=9, separation=0.3, bias=0.6)
    x = np.asarray(pairs.inputs)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(x[::2] - x[1::2], axis=1), 0.3, rtol=1e-9)
    assert distances(x).min() >= 0.3 * (1 - 1e-9)
    assert np.all(pairs.targets[::2] == -pairs.targets[1::2])
    single = lazy.SeparatedSphere.sample(
        jax.random.key(0), n=3, d=4, separation=0.1, dtype=jnp.float32
    )
    assert single.inputs.dtype == single.targets.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda key: lazy.DeepReLU.init(key, 3, width=5), "`width` must be even.*but is 5"),
        (lambda key: lazy.DeepReLU.init(key, 3, depth=0), "`depth` must be a whole number >= 1"),
        (lambda key: lazy.DeepReLU([jnp.ones((4, 3))], jnp.ones(3)), "one entry for each row"),
        (lambda key: lazy.DeepReLU([], jnp.ones(3)), "must be matrices"),
        (
            lambda key: lazy.SeparatedSphere.sample(key, n=50, d=3, separation=0.9),
            "no further point at distance .* points fit in 3 coordinates, but 50 were asked for",
        ),
        (
            lambda key: lazy.SeparatedSphere.sample(key, n=3, d=3, separation=1.8),
            "`separation` must be from 0 to 1.73",
        ),
        (
            lambda key: lazy.SeparatedSphere.sample(key, n=3, d=3, separation=0.1, bias=1.0),
            "`bias` must be between 0 and 1",
        ),
        (
            lambda key: lazy.SeparatedSphere.pairs(key, n=3, d=4, separation=0.1),
            "pairs need an even `n`",
        ),
        (lambda key: lazy.layer_kernels(2 * jnp.eye(3), 2), "rows of norm 1.*norms from 2 to 2"),
        (lambda key: lazy.norm_variance(1, 0), "`width` must be positive"),
        (lambda key: lazy.near_zero_fraction(-1.0, 4), "`bound` must be non-negative"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call(jax.random.key(0))
