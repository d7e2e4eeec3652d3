"""What all recurrent networks have in common: a state, a step and a read-out."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.network import AbstractNetwork

OUTPUTS = ("last", "all")


class AbstractRecurrent(AbstractNetwork):
    """A network of a sequence that has a state: `s_t = advance(s_{t-1}, x_t)` and
    `y_t = read(s_t)`.

    It maps a sequence (T, i) to its last output (o,), or with `outputs="all"` to all of
    them, (T, o).
    """

    outputs: eqx.AbstractVar[str]

    @abc.abstractmethod
    def rest(self, x: Array) -> Any:
        """The state before the first input, a PyTree of arrays in the precision of the
        inputs `x`.
        """

    @abc.abstractmethod
    def advance(self, state: Any, x: Array) -> Any:
        """The state after the input `x`, (i,)."""

    @abc.abstractmethod
    def read(self, state: Any) -> Array:
        """The output of a state, (o,)."""

    def __call__(self, x: Array) -> Array:
        if self.outputs == "all":
            return self.all_outputs(x)
        state, _ = jax.lax.scan(lambda s, now: (self.advance(s, now), None), self.rest(x), x)
        return self.read(state)

    def predict(self, inputs: Array) -> Array:
        """The outputs on many sequences, (n, T, ...), which advance together."""
        together = Together(self, inputs.shape[0])
        sequences = jnp.moveaxis(inputs, 0, -1)

        def step(state: Any, now: Array) -> tuple[Any, Any]:
            state = together.advance(state, now)
            return state, together.read(state) if self.outputs == "all" else None

        last, outputs = jax.lax.scan(step, together.rest(sequences), sequences)
        return jnp.moveaxis(together.read(last) if outputs is None else outputs, -1, 0)

    def all_outputs(self, x: Array) -> Array:
        """The output after every input of the sequence `x`, (T, o)."""

        def step(state: Any, now: Array) -> tuple[Any, Array]:
            state = self.advance(state, now)
            return state, self.read(state)

        return jax.lax.scan(step, self.rest(x), x)[1]

    def states(self, x: Array) -> Any:
        """The states before every input of the sequence `x`, stacked, and the last
        state.
        """
        last, before = jax.lax.scan(lambda s, now: (self.advance(s, now), s), self.rest(x), x)
        return before, last


class Together:
    """A recurrent network that advances many sequences at once. They lie along the last
    axis of its inputs, states and outputs.

    The product of a matrix of weights and the states of all sequences has this layout.
    A map over the first axis transposes it in every step, so that training a GRU on
    short sequences takes twice as long. A vector of weights, such as a bias, is
    repeated for all sequences: JAX moves the axis to the front where a mapped array
    meets one that is not.
    """

    def __init__(self, network: AbstractRecurrent, count: int):
        def repeated(leaf: Array) -> Array:
            if leaf.ndim > 1:
                return leaf
            return jnp.broadcast_to(leaf[..., None], (*leaf.shape, count))

        weights, self._other = eqx.partition(network, eqx.is_inexact_array)
        self._weights = jax.tree.map(repeated, weights)
        self._axes = jax.tree.map(lambda leaf: None if leaf.ndim > 1 else -1, weights)

    def _each(self, method: Callable, *given: Any) -> Any:
        """Call a method of the network for every sequence."""

        def one(weights: Any, *given: Any) -> Any:
            return method(eqx.combine(weights, self._other), *given)

        axes = (self._axes, *(-1 for _ in given))
        return jax.vmap(one, in_axes=axes, out_axes=-1)(self._weights, *given)

    def rest(self, sequences: Array) -> Any:
        """The states before the first input of the sequences (T, ..., n)."""
        return self._each(lambda network, x: network.rest(x), sequences)

    def advance(self, states: Any, inputs: Array) -> Any:
        """The states after the inputs (..., n)."""
        return self._each(lambda network, s, x: network.advance(s, x), states, inputs)

    def read(self, states: Any) -> Array:
        """The outputs of the states, (..., n)."""
        return self._each(lambda network, s: network.read(s), states)


def check_outputs(outputs: Any) -> str:
    """Return which outputs a network has.

    **Raises:** `ValueError` for anything but "last" and "all".
    """
    if outputs not in OUTPUTS:
        raise ValueError(f"`outputs` must be 'last' or 'all', but is {outputs!r}")
    return outputs


def check_recurrent(network: Any) -> AbstractRecurrent:
    """Return a network with a state.

    **Raises:** `ValueError` that says how to make one.
    """
    if not isinstance(network, AbstractRecurrent):
        raise ValueError(
            "`network` must be a LinearRNN or an Unroll, which say what their state is, but is "
            f"{type(network).__name__}: write Unroll(cell, readout)"
        )
    return network
