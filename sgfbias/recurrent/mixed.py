"""Sequences of mixed lengths in training, made from sequences of one length."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_whole
from sgfbias.recurrent.linear import LinearRNN


class Masked(eqx.Module):
    """A cell that skips the steps of a sequence at which the last input channel is 0.

    In such a step the hidden state stays what it is, so that a sequence with steps set
    to 0 is the same as one without these steps. The cell is given the other channels.

    **Arguments:**

    - `cell`: any cell for `Unroll`, with one input less than the sequences have
      channels.

    **Raises:** `ValueError` for a cell that is not callable.
    """

    cell: Any

    def __init__(self, cell: Any):
        if not callable(cell):
            raise ValueError(
                f"`cell` must be a module that can be called, but is {type(cell).__name__}"
            )
        self.cell = cell

    @property
    def hidden_size(self) -> Any:
        """The size of the cell's hidden state, or None if it is unknown or a pair."""
        pair = isinstance(self.cell, eqx.nn.LSTMCell)
        return None if pair else getattr(self.cell, "hidden_size", None)

    def __call__(self, x: Array, hidden: Any) -> Any:
        moved, counts = self.cell(x[:-1], hidden), x[-1] != 0
        return jax.tree.map(
            lambda new, old: jnp.where(counts, new.astype(old.dtype), old), moved, hidden
        )


class MixedLengths(eqx.Module):
    """A rule for `Problem(..., perturb=)` that shortens every sequence of an iteration
    to a random length, from `least` to its own, all equally likely.

    Steps are removed by setting all their channels to 0: those at the front, so that
    the end and its target stay. A `LinearRNN`, whose state is still 0 there, does not
    see such steps. Other cells do, so write `Masked(cell)` and give the sequences a
    last channel of ones. Recorded losses are those of whole sequences.

    **Arguments:**

    - `least`: the shortest length, at least 1.
    - `keep`: a channel, or None. With a channel, steps are removed at random places
      rather than at the front, but never those at which that channel is not 0, on which
      the target depends. Only for cells that skip such steps, `Masked(cell)`, as the
      state of a `LinearRNN` moves in them.

    **Raises:** `ValueError` for numbers outside these ranges, and in `simulate` for
    inputs other than sequences (n, T, i) with T of at least `least`, and for a
    `LinearRNN` with `keep`.
    """

    least: int = eqx.field(static=True)
    keep: int | None = eqx.field(static=True)

    def __init__(self, least: int, *, keep: int | None = None):
        self.least = as_whole(least, "least")
        self.keep = None if keep is None else as_whole(keep, "keep", least=0)

    def __call__(self, network: Any, inputs: Array, targets: Array, key: Array) -> Array:
        if inputs.ndim != 3 or inputs.shape[1] < self.least:
            raise ValueError(
                f"MixedLengths({self.least}) needs sequences (n, T, i) with T of at least "
                f"{self.least}, but the inputs have shape {tuple(inputs.shape)}"
            )
        if self.keep is not None and isinstance(network, LinearRNN):
            raise ValueError(
                "MixedLengths(keep=) removes steps after the first, in which the state of a "
                "LinearRNN moves on: leave keep out, or use Unroll(Masked(cell), readout)"
            )
        if self.keep is not None and self.keep >= inputs.shape[2]:
            raise ValueError(
                f"`keep` must be one of the {inputs.shape[2]} channels, counted from 0, but is "
                f"{self.keep}"
            )
        return jnp.where(self.left(inputs, key)[..., None], inputs, 0)

    def left(self, inputs: Array, key: Array) -> Array:
        """Which steps of the sequences are left, (n, T)."""
        many, T = inputs.shape[:2]
        first, second = jax.random.split(key)
        lengths = jax.random.randint(first, (many, 1), self.least, T + 1)
        if self.keep is None:
            return jnp.arange(T)[None, ::-1] < lengths
        kept = inputs[..., self.keep] != 0
        order = jax.random.uniform(second, (many, T), inputs.dtype) - kept.astype(inputs.dtype)
        return kept | (jnp.argsort(jnp.argsort(order, axis=1), axis=1) < lengths)
