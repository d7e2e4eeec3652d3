"""Certificates: never above the truth, and equal to it where that can be shown."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attacks import data, flip, half_tanh, least, network, one_hot, swap

from sgfbias import fourier

ROUNDING = 1e-12
KEY = jax.random.key(0)


def chain(*layers):
    return eqx.nn.Sequential(layers)


def one_signed(net, seed, of_one_order):
    """The network with weights for which, bit by bit, the products of the weights into
    and out of the units have one sign. If `of_one_order`, their sizes are a_j b_i, so
    that all units have the same order of the bits.
    """
    last = net.layers[1]
    random = np.random.default_rng(seed)
    signs, bits = random.choice([-1.0, 1.0], (5, 1)), random.choice([-1.0, 1.0], 9)
    sizes = random.random((5, 1)) * random.random(9) if of_one_order else random.random((5, 9))
    new = [jnp.asarray(3 * sizes * signs * bits), jnp.abs(last.weight) * signs[:, 0]]
    return eqx.tree_at(lambda net: [layer.weight for layer in net.layers], net, new)


@pytest.mark.slow
@pytest.mark.parametrize(
    "activation",
    [half_tanh, *(pytest.param(f, marks=pytest.mark.slow) for f in (jax.nn.relu, jnp.sign))],
)
def test_it_is_the_truth_if_all_units_have_the_same_worst_moves(activation):
    """Ground truth 9. With other sizes of the weights the units disagree on the worst
    bits, until all bits that hurt are flipped: at k = d the bound is the truth again.
    """
    for seed in range(3):
        x, y = data(10, 9, seed)
        net = one_signed(network(9, 5, seed, activation=activation), seed, True)
        truth = fourier.attack(net, x, y, 3, method="exhaustive").margin
        np.testing.assert_allclose(fourier.certify(net, x, y, 3).margin, truth, atol=ROUNDING)
        net = one_signed(network(9, 5, seed, activation=activation), seed, False)
        truth = fourier.attack(net, x, y, 9, method="exhaustive").margin
        found = fourier.certify(net, x, y, 9).margin
        assert (found <= truth + ROUNDING).all()
        assert (found[2:4] < truth[2:4] - 1e-3).any()
        np.testing.assert_allclose(found[::9], truth[::9], atol=ROUNDING)


@pytest.mark.parametrize("outputs", ["scalar", pytest.param(4, marks=pytest.mark.slow)])
def test_it_is_exact_for_linear_models(outputs):
    net = eqx.nn.Linear(9, outputs, key=KEY)
    x, y = data(8, 9, 3, 4 if outputs == 4 else 2)
    truth = least(net, x, y, 3, lambda x: flip(x, range(9)))
    np.testing.assert_allclose(fourier.certify(net, x, y, 3).margin, truth, atol=ROUNDING)


@pytest.mark.slow
def test_groups_move_once():
    """With swaps, the linear model is exact too, and counts one swap per group."""
    groups = [(0, 1, 2, 3), (5, 6, 7)]
    x, y = one_hot(6, groups, 8, 1), data(6, 8, 1)[1]
    for outputs in ("scalar", 2):
        net = eqx.nn.Linear(8, outputs, key=KEY)
        truth = least(net, x, y, 3, lambda x: swap(x, groups))
        found = fourier.certify(net, x, y, 3, moves=fourier.OneHotSwaps(groups))
        np.testing.assert_allclose(found.margin, truth, atol=ROUNDING)


DEEP = {
    "two layers": network(8, 4, 2, depth=2),
    "three outputs": network(8, 4, 2, 3, depth=3),
    "falling activation": network(8, 4, 2, activation=lambda z: -jnp.tanh(z)),
    "final activation": eqx.nn.MLP(8, 3, 4, 2, final_activation=jnp.tanh, key=KEY),
    "final activation of one": eqx.nn.MLP(8, "scalar", 4, 1, final_activation=jnp.tanh, key=KEY),
    "parameters": eqx.nn.MLP(8, 1, 4, 1, eqx.nn.PReLU(), key=KEY),
    "chain": chain(
        eqx.nn.Linear(8, 4, use_bias=False, key=KEY),
        eqx.nn.Lambda(jax.nn.elu),
        eqx.nn.Linear(4, 3, key=KEY),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Linear(3, 2, use_bias=False, key=KEY),
    ),
}


DEEP_NAMES = [
    pytest.param(name, marks=() if name == "chain" else pytest.mark.slow(cases=2)) for name in DEEP
]


@pytest.mark.parametrize("name", DEEP_NAMES)
def test_it_is_below_every_attack_and_clean_margins_are_exact(name):
    net = DEEP[name]
    classes = 3 if "outputs" in name or name == "final activation" else 2
    x, y = data(12, 8, 5, classes)
    truth = np.asarray(fourier.attack(net, x, y, 3, method="exhaustive").margin)
    found = np.asarray(fourier.certify(net, x, y, 3).margin)
    assert (found <= truth + ROUNDING).all()
    np.testing.assert_allclose(found[0], truth[0], atol=ROUNDING)
    assert (np.diff(found, axis=0) <= ROUNDING).all()
    assert found[3].mean() > truth[0].mean() - 20  # it says something


@pytest.mark.slow
def test_directions_and_masks_tighten_it():
    net, (x, y) = network(10, 4, 4), data(15, 10, 4)
    whole = fourier.certify(net, x, y, 3).margin
    for moves in (
        fourier.BitFlips(direction="add"),
        fourier.BitFlips(direction="remove"),
        fourier.BitFlips(mutable=np.arange(10) < 5),
    ):
        found = fourier.certify(net, x, y, 3, moves=moves).margin
        truth = fourier.attack(net, x, y, 3, method="exhaustive", moves=moves).margin
        assert (found <= truth + ROUNDING).all()
        assert (found >= whole - ROUNDING).all()
        assert found.mean() > whole.mean()
    still = fourier.certify(net, x, y, 3, moves=fourier.BitFlips(mutable=np.zeros(10, bool)))
    np.testing.assert_allclose(still.margin, np.tile(whole[0], (4, 1)), atol=ROUNDING)


@pytest.mark.slow
def test_a_batch_of_networks():
    x, y = data(6, 8, 11)
    keys = jax.random.split(KEY, 3)
    networks = eqx.filter_vmap(lambda key: eqx.nn.MLP(8, "scalar", 4, 1, half_tanh, key=key))(keys)
    found = eqx.filter_vmap(lambda net: fourier.certify(net, x, y, 2).margin)(networks)
    for i in range(3):
        one = eqx.nn.MLP(8, "scalar", 4, 1, half_tanh, key=keys[i])
        np.testing.assert_allclose(found[i], fourier.certify(one, x, y, 2).margin, atol=ROUNDING)


class Own(eqx.Module):
    body: eqx.nn.Linear

    def __call__(self, x):
        return self.body(x)


SOFTMAX = chain(
    eqx.nn.Linear(8, 4, key=KEY), eqx.nn.Lambda(jax.nn.softmax), eqx.nn.Linear(4, 1, key=KEY)
)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (network(8, 4, 0, activation=jax.nn.gelu), r"gelu is not monotone: use attack\(\), or exh"),
        (network(8, 4, 0, depth=3, activation=jax.nn.silu), "silu is not monotone"),
        (network(8, 4, 0, activation=jnp.abs), "not monotone"),
        (SOFTMAX, "softmax does not act on each unit alone"),
        (
            Own(eqx.nn.Linear(8, 2, key=KEY)),
            "an eqx.nn.MLP or an eqx.nn.Sequential, but is given Own",
        ),
        (chain(eqx.nn.Linear(8, 4, key=KEY), eqx.nn.LayerNorm(4)), "chain of linear layers"),
        (chain(eqx.nn.LayerNorm(8), eqx.nn.Linear(8, 4, key=KEY)), "must be linear, but is Layer"),
    ],
)
def test_what_cannot_be_certified_is_refused(net, words):
    x, y = data(3, 8, 0)
    with pytest.raises(ValueError, match=words):
        fourier.certify(net, x, y, 1)
