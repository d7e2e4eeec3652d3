"""The cut of a network behind its first layer, and the margin of its outputs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgfbias.fourier.activation import Activation
from sgfbias.fourier.examples import accuracy, as_bits, as_labels, check_classes, margin
from sgfbias.fourier.layers import first_layer

D, KEY = 6, jax.random.key(3)


def half_tanh(z):
    return jnp.tanh(z / 2)


class Own(eqx.Module):
    """A module whose layers are not in the order in which they act."""

    head: eqx.nn.Linear
    body: eqx.nn.Linear

    def __call__(self, x):
        return self.head(jnp.tanh(self.body(x)))


class Skip(eqx.Module):
    """A module that reads the bits a second time beside its first layer."""

    body: eqx.nn.Linear

    def __call__(self, x):
        return self.body(x) + x[:2]


def linear(d, m, **options):
    return eqx.nn.Linear(d, m, key=KEY, **options)


NETWORKS = {
    "MLP": eqx.nn.MLP(D, "scalar", 4, 1, activation=half_tanh, key=KEY),
    "three outputs": eqx.nn.MLP(D, 3, 4, 2, final_activation=jnp.tanh, key=KEY),
    "scanned": eqx.nn.MLP(D, 1, 4, 3, scan=True, key=KEY),
    "linear": eqx.nn.Linear(D, "scalar", key=KEY),
    "parameters in the activation": eqx.nn.MLP(D, 1, 4, 1, eqx.nn.PReLU(), key=KEY),
    "chain": eqx.nn.Sequential(
        [linear(D, 4, use_bias=False), eqx.nn.Lambda(jax.nn.gelu), linear(4, 2)]
    ),
    "normed": eqx.nn.Sequential([linear(D, 4), eqx.nn.LayerNorm(4), linear(4, 2)]),
}
STEPS = {"MLP": 2, "three outputs": 5, "linear": 0, "parameters in the activation": 2, "chain": 2}


def inputs(n=5, d=D, seed=0):
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(n, d))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_has_the_outputs_of_the_whole(name):
    network, x = NETWORKS[name], jnp.asarray(inputs())
    cut = first_layer(network, D)
    whole = jax.vmap(network)(x)
    ours = cut.outputs(cut.preactivations(x))
    np.testing.assert_allclose(ours, whole.reshape(ours.shape), atol=1e-14)
    assert eqx.tree_equal(cut.replace(cut.weight), network)
    assert (None if cut.steps is None else len(cut.steps)) == STEPS.get(name)
    doubled = cut.replace(2 * cut.weight, 3 * cut.bias)
    z = 2 * x @ cut.weight.T + 3 * cut.bias
    np.testing.assert_allclose(jax.vmap(doubled)(x).reshape(ours.shape), cut.outputs(z), atol=1e-13)


def test_the_steps_after_the_layer_make_up_the_rest():
    x = jnp.asarray(inputs())
    for name in STEPS:
        cut = first_layer(NETWORKS[name], D)
        z = cut.preactivations(x)
        through = z
        for step in cut.steps:
            through = step(through) if isinstance(step, Activation) else jax.vmap(step)(through)
        np.testing.assert_allclose(
            through.reshape(cut.outputs(z).shape), cut.outputs(z), atol=1e-14
        )


def test_the_head_reads_the_hidden_units():
    cut = first_layer(NETWORKS["chain"])
    weight, bias = cut.head
    z = cut.preactivations(jnp.asarray(inputs()))
    np.testing.assert_allclose(cut.activation(z) @ weight.T + bias, cut.outputs(z), atol=1e-14)
    assert first_layer(NETWORKS["three outputs"]).head is None
    assert first_layer(NETWORKS["normed"]).head is None


def test_a_module_of_ones_own_names_its_layer():
    own = Own(linear(4, 2), linear(D, 4))
    cut = first_layer(own, D)
    assert cut.weight is own.body.weight
    assert cut.activation is None
    cut = first_layer(own, layer=lambda net: net.body, activation=jnp.tanh)
    assert cut.activation.name == "tanh"
    np.testing.assert_allclose(cut.activation(jnp.ones((2, 4))), np.tanh(1.0))
    with pytest.raises(ValueError, match="its layer 4 -> 2, to its outputs, but fails"):
        first_layer(own)


@pytest.mark.slow
def test_a_network_may_be_traced():
    networks = eqx.filter_vmap(lambda key: eqx.nn.MLP(D, 1, 4, 1, key=key))(
        jax.random.split(KEY, 3)
    )
    x = jnp.asarray(inputs())

    def ours(network):
        cut = first_layer(network, D)
        return cut.outputs(cut.preactivations(x))

    whole = eqx.filter_vmap(lambda network: jax.vmap(network)(x)[:, 0])(networks)
    np.testing.assert_allclose(eqx.filter_vmap(ours)(networks), whole, atol=1e-14)


REFUSED = [
    (lambda: first_layer(NETWORKS["MLP"], 7), "inputs have 7 bits, but the first layer .* takes 6"),
    (lambda: first_layer(eqx.nn.Conv1d(1, 2, 3, key=KEY)), "Conv1d has no eqx.nn.Linear; name"),
    (
        lambda: first_layer(eqx.nn.Sequential([eqx.nn.LayerNorm(D), linear(D, 2)])),
        "must be linear, but is LayerNorm; name the layer",
    ),
    (
        lambda: first_layer(eqx.nn.Sequential([eqx.nn.Lambda(lambda x: x / 2), linear(D, 2)])),
        "Something acts on the bits before that layer or beside it",
    ),
    (lambda: first_layer(Skip(linear(D, 2))), "before that layer or beside it"),
    (lambda: first_layer(Own(linear(4, 2), linear(D, 4)), 9), "there are 9.*layers 4 -> 2, 6 -> 4"),
    (lambda: first_layer(3), "`net` must be an Equinox module, but is 3"),
    (
        lambda: first_layer(NETWORKS["MLP"], layer=lambda net: net.layers),
        "`layer` must return an eqx.nn.Linear of the network",
    ),
    (lambda: as_bits([[0, 1]], float), r"but 0 occurs: write 2\*x - 1 for bits in \{0, 1\}"),
    (lambda: as_bits([[np.nan, 1]], float), "but nan occurs"),
    (lambda: as_bits([[True]], float), r"are booleans: write 2.0 \* x - 1"),
    (lambda: as_bits([1, -1], float), r"write inputs\[None\] for one example"),
    (lambda: as_bits(np.ones((0, 2)), float), "must have examples and bits"),
    (lambda: as_bits(np.array([["a"]]), float), r"must be -1 or \+1, but are"),
    (lambda: as_labels([0, 2], (2,)), "for a network with one output, but has the values 0, 2"),
    (lambda: as_labels([0, 2], (2, 2)), "must be classes from 0 to 1 .* values 0, 2"),
    (lambda: as_labels([0], (2,)), "one label for each of the 2 examples"),
    (lambda: as_labels(["a"], (1,)), "`y` must be numbers"),
    (lambda: check_classes(jnp.ones(3)), "two classes or more, but all labels are 1"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_margins():
    """Written out for three examples; scalar labels have two conventions."""
    outputs = jnp.array([0.5, -0.25, 2.0])
    for labels in ([1, 0, 0], [1, -1, -1], [True, False, False]):
        found = margin(outputs, as_labels(labels, (3,)))
        np.testing.assert_array_equal(found, [0.5, 0.25, -2.0])
    several = jnp.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    np.testing.assert_array_equal(margin(several, as_labels([1, 2], (2, 3))), [2.0, -2.0])
    assert accuracy(jnp.array([1.0, 0.0, -1.0, 2.0])) == 0.5
