"""A network cut behind its first layer, and the margin of its outputs.

A bit that flips moves the preactivations of the first layer by a multiple of one column
of its weights. Attacks, certificates and stabilisation therefore work on the weights of
that layer and on the rest of the network as a function of its preactivations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import is_concrete, shown
from sgfbias.fourier.activation import Activation

HIGHEST = jax.lax.Precision.HIGHEST
_CHAINS = (eqx.nn.MLP, eqx.nn.Sequential, eqx.nn.Linear)
# The final activation of an `eqx.nn.MLP` to which none was given.
_IDENTITY = inspect.signature(eqx.nn.MLP).parameters["final_activation"].default
_PROBES = 9


class Given(eqx.Module):
    """A stand-in for a linear layer that returns the preactivations it holds."""

    z: Array | None
    scalar: bool = eqx.field(static=True)

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        assert self.z is not None
        return self.z[0] if self.scalar else self.z


class Layers(eqx.Module):
    """A network `x -> rest(W x + b)`, cut behind its first layer.

    `first_layer` makes it.

    **Arguments:**

    - `linear`: the first layer, with weights (m, d) and biases (m,) or None.
    - `rest`: the network with a stand-in for that layer.
    - `activation`: the function that follows the layer, or None if none is known.
    - `steps`: everything that follows the layer, as `eqx.nn.Linear` and `Activation` in
      turn, or None if the network is no chain of these.
    """

    linear: eqx.nn.Linear
    rest: Any
    activation: Activation | None
    steps: tuple | None

    @property
    def weight(self) -> Float[Array, "m d"]:
        """The weights W of the first layer."""
        return self.linear.weight

    @property
    def bias(self) -> Float[Array, " m"]:
        """The biases b of the first layer, zeros where it has none."""
        bias = self.linear.bias
        return jnp.zeros(self.weight.shape[:1], self.weight.dtype) if bias is None else bias

    @property
    def m(self) -> int:
        """The number of units of the first layer."""
        return self.weight.shape[0]

    @property
    def d(self) -> int:
        """The number of bits."""
        return self.weight.shape[1]

    @property
    def dtype(self) -> Any:
        """The precision of the weights, which is that of the computation."""
        return self.weight.dtype

    @property
    def head(self) -> tuple[Float[Array, "c m"], Float[Array, " c"]] | None:
        """The weights and biases of the linear layer that reads the hidden units, or
        None if something else follows the activation.
        """
        if self.steps is None or len(self.steps) != 2:
            return None
        linear = self.steps[1]
        if not isinstance(linear, eqx.nn.Linear):
            return None
        bias = linear.bias
        zeros = jnp.zeros(linear.weight.shape[:1], linear.weight.dtype)
        return linear.weight, zeros if bias is None else bias

    def preactivations(self, inputs: Float[Array, "n d"]) -> Float[Array, "n m"]:
        """The preactivations `W x + b` of every example."""
        return jnp.matmul(inputs, self.weight.T, precision=HIGHEST) + self.bias

    def outputs(self, z: Float[Array, "n m"]) -> Float[Array, "n *c"]:
        """The outputs from given preactivations: (n,) for a network with one output,
        and (n, c) for one with c.
        """
        x = jnp.zeros(self.d, self.dtype)

        def one(z: Array) -> Array:
            return jax.tree.map(
                lambda leaf: Given(z, leaf.scalar) if isinstance(leaf, Given) else leaf,
                self.rest,
                is_leaf=lambda leaf: isinstance(leaf, Given),
            )(x)

        return _one_axis(jax.vmap(one)(z))

    def replace(self, weight: Float[Array, "m d"], bias: Float[Array, " m"] | None = None) -> Any:
        """The whole network with other weights in its first layer, and other biases if
        they are given.
        """
        linear = eqx.tree_at(lambda layer: layer.weight, self.linear, weight)
        if bias is not None:
            linear = eqx.tree_at(
                lambda layer: layer.bias, linear, bias, is_leaf=lambda leaf: leaf is None
            )
        return _exchange(self.rest, lambda leaf: isinstance(leaf, Given), linear)


def _one_axis(outputs: Array) -> Array:
    """Outputs (n, 1) as (n,), and all others as they are."""
    if outputs.ndim > 2:
        raise ValueError(
            "the network must have a scalar output or a vector of outputs for one example, but "
            f"its output has shape {outputs.shape[1:]}"
        )
    return outputs[:, 0] if outputs.ndim == 2 and outputs.shape[1] == 1 else outputs


def _exchange(tree: Any, found: Callable[[Any], bool], new: Any) -> Any:
    """A tree in which every node for which `found` is true is `new`."""
    return jax.tree.map(lambda leaf: new if found(leaf) else leaf, tree, is_leaf=found)


def _steps(module: Any) -> list[Any]:
    """What a module does in turn: linear layers, activations, and whatever else."""
    if isinstance(module, eqx.nn.Sequential):
        return [step for layer in module.layers for step in _steps(layer)]
    if isinstance(module, eqx.nn.Lambda):
        return [Activation(module.fn)]
    if isinstance(module, eqx.nn.PReLU):
        return [Activation(module)]
    if isinstance(module, eqx.nn.Identity):
        return []
    if isinstance(module, eqx.nn.Dropout) and module.inference is True:
        return []
    if not isinstance(module, eqx.nn.MLP) or module.scan:
        return [module]
    steps: list[Any] = []
    for i, layer in enumerate(module.layers):
        steps.append(layer)
        if i < module.depth:
            function = jax.tree.map(
                lambda leaf, i=i: leaf[i] if eqx.is_array(leaf) else leaf, module.activation
            )
            steps.append(Activation(function, scalar=True))
    if module.depth and module.final_activation is not _IDENTITY:
        steps.append(Activation(module.final_activation, scalar=module.out_size != "scalar"))
    return steps


def _chains(tree: Any) -> Iterator[list[Any]]:
    """The chains of steps inside a tree, in the order of the tree."""
    if isinstance(tree, _CHAINS):
        steps = _steps(tree)
        yield steps
        others = [step for step in steps if not isinstance(step, eqx.nn.Linear | Activation)]
        if isinstance(tree, eqx.nn.MLP) and tree.scan:
            # Its layers after the first are stacked, so no chain goes through them.
            function = jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, tree)
            yield [tree.layers[0], Activation(function.activation, scalar=True)]
            return
    else:
        others = [tree]
    for other in others:
        inside = jax.tree.leaves(other, is_leaf=lambda leaf: isinstance(leaf, _CHAINS))
        for leaf in inside:
            if isinstance(leaf, _CHAINS) and leaf is not tree:
                yield from _chains(leaf)


def first_layer(
    network: Any,
    d: int | None = None,
    *,
    layer: Callable[[Any], eqx.nn.Linear] | None = None,
    activation: Callable | None = None,
) -> Layers:
    """Cut a network behind the first layer that sees the bits.

    That layer is the first of an `eqx.nn.MLP` or an `eqx.nn.Sequential`, and otherwise
    the first `eqx.nn.Linear` of the module with d inputs.

    **Arguments:**

    - `network`: an Equinox module that maps an input (d,) to a scalar or a vector.
    - `d`: the number of bits, or None if any is right.
    - `layer`: a function that returns the first layer of the network, for a module in
      which it is another one.
    - `activation`: the function that follows the layer. It is needed only where the
      layer is inside of a module other than these two.

    **Raises:** `ValueError` if there is no such layer, or if the output of the network
    is not a function of its preactivations `W x + b`.
    """
    if not callable(network):
        raise ValueError(f"`net` must be an Equinox module, but is {shown(network)}")
    named = None if layer is None else layer(network)
    if layer is not None and not isinstance(named, eqx.nn.Linear):
        raise ValueError(
            f"`layer` must return an eqx.nn.Linear of the network, but returns {shown(named)}"
        )
    for number, steps in enumerate(_chains(network)):
        for i, step in enumerate(steps):
            if not isinstance(step, eqx.nn.Linear):
                if number == 0 and layer is None and isinstance(network, eqx.nn.Sequential):
                    _refuse_first(step, network)
                continue
            chain = isinstance(network, _CHAINS)
            if step is named or (named is None and (chain or d in (None, step.in_features))):
                return _cut(network, step, steps[i + 1 :], chain and number == 0, activation, d)
    found = [step for steps in _chains(network) for step in steps if hasattr(step, "in_features")]
    have = ", ".join(f"{step.in_features} -> {step.out_features}" for step in found)
    raise ValueError(
        "the network must have a first eqx.nn.Linear that sees the bits"
        + (f", of which there are {d}" if d is not None else "")
        + f", but {type(network).__name__} has "
        + (f"linear layers {have}" if found else "no eqx.nn.Linear")
        + "; name the layer by layer=lambda net: net.LAYER"
    )


def _refuse_first(step: Any, network: Any) -> None:
    """Refuse a chain that begins with something else than a linear layer."""
    if isinstance(step, Activation) or any(
        isinstance(leaf, eqx.nn.Linear)
        for leaf in jax.tree.leaves(step, is_leaf=lambda leaf: isinstance(leaf, eqx.nn.Linear))
    ):
        return  # whether it changes the bits is found out by comparing outputs
    raise ValueError(
        f"the first layer of the network must be linear, but is {type(step).__name__}; name the "
        "layer that sees the bits by layer=lambda net: net.LAYER"
    )


def _cut(
    network: Any,
    linear: eqx.nn.Linear,
    after: list[Any],
    whole: bool,
    activation: Callable | None,
    d: int | None,
) -> Layers:
    """The network cut behind `linear`, which is followed by the steps `after`."""
    if d is not None and linear.in_features != d:
        raise ValueError(
            f"the inputs have {d} bits, but the first layer of the network takes "
            f"{linear.in_features}"
        )
    given = Given(None, linear.out_features == "scalar")
    rest = _exchange(network, lambda leaf: leaf is linear, given)
    chained = whole and all(isinstance(step, eqx.nn.Linear | Activation) for step in after)
    follows = after[0] if after and isinstance(after[0], Activation) else None
    cut = Layers(
        linear,
        rest,
        follows if activation is None else Activation(activation),
        tuple(after) if chained else None,
    )
    if is_concrete(jax.tree.leaves(network)):
        _compare(cut, network)
    return cut


@eqx.filter_jit
def _disagreement(cut: Layers, network: Any, probes: Array) -> Array:
    """By how much the outputs of a cut network differ from its own, relative to them:
    the median over the probes.
    """
    ours = cut.outputs(cut.preactivations(probes))
    own = _one_axis(jax.vmap(network)(probes))
    error = jnp.abs(ours - own).reshape(len(probes), -1).max(axis=1)
    return jnp.median(error) / (1 + jnp.abs(own).max())


def _compare(cut: Layers, network: Any) -> None:
    """Refuse a cut that does not have the outputs of the network.

    The median over some inputs is compared, since a unit with a step may round to the
    other side on one of them.
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_PROBES, cut.d))
    probes = jnp.asarray(signs).astype(cut.dtype)
    try:
        error = float(_disagreement(cut, network, probes))
    except TypeError as problem:
        raise ValueError(
            f"the network must map {cut.d} bits, the inputs of its layer {cut.d} -> {cut.m}, to "
            f"its outputs, but fails: {problem} If another layer sees the bits, name it by "
            "layer=lambda net: net.LAYER"
        ) from problem
    if not error < 1e-3:
        raise ValueError(
            "the output of the network must depend on the bits through its first linear layer "
            f"alone, but from the preactivations of its layer {cut.d} -> {cut.m} other outputs "
            "follow. Something acts on the bits before that layer or beside it: name the layer "
            "that sees the bits by layer=lambda net: net.LAYER, or leave out what is before it"
        )
