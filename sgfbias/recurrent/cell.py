"""What all recurrent networks have in common: a state, a step and a read-out."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
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
