"""Any cell, unrolled over a sequence."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from sgfbias.core.network import declared_trainable
from sgfbias.recurrent.cell import AbstractRecurrent, check_outputs


class Unroll(AbstractRecurrent):
    """A cell `(input, hidden) -> hidden`, unrolled over a sequence, and a read-out.

    It maps a sequence (T, i) to the read-out of the last hidden state.

    **Arguments:**

    - `cell`: an Equinox module that maps an input (i,) and a hidden state to the next
      hidden state, such as `equinox.nn.GRUCell` or one of your own.
    - `readout`: a module that maps the hidden state to the output (o,), or None for the
      hidden state itself. If the hidden state is a tuple, as in an LSTM, it is given
      the first part.
    - `outputs`: "last", or "all" for the read-outs at all times, (T, o).
    - `initial`: the hidden state before the first input, a PyTree of arrays. It does
      not move in training. Default: zeros of shape `cell.hidden_size`. An
      `equinox.nn.LSTMCell` needs a pair, `(jnp.zeros(h), jnp.zeros(h))`.

    **Raises:** `ValueError` for a cell or a read-out that is not callable, and if the
    shape of the hidden state is not known.
    """

    cell: Any
    readout: Any
    initial: Any
    outputs: str = eqx.field(static=True)
    size: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(
        self, cell: Any, readout: Any = None, *, outputs: str = "last", initial: Any = None
    ):
        for name, part in (("cell", cell), ("readout", readout)):
            if not callable(part) and not (name == "readout" and part is None):
                raise ValueError(
                    f"`{name}` must be a module that can be called, but is {type(part).__name__}"
                )
        self.cell, self.readout, self.outputs = cell, readout, check_outputs(outputs)
        self.initial = None if initial is None else jax.tree.map(jnp.asarray, initial)
        self.size = None
        if initial is None:
            size = getattr(cell, "hidden_size", None)
            pair = isinstance(cell, eqx.nn.LSTMCell)
            if pair or not isinstance(size, int | tuple):
                why = (
                    "is a pair (hidden, cell)"
                    if pair
                    else "is unknown, as the cell has no `hidden_size`"
                )
                example = f"(jnp.zeros({size}), jnp.zeros({size}))" if pair else "jnp.zeros(16)"
                raise ValueError(
                    f"the hidden state of {type(cell).__name__} {why}: give initial=, such as "
                    f"initial={example}"
                )
            self.size = (size,) if isinstance(size, int) else tuple(size)

    def rest(self, x):
        if self.initial is None:
            assert self.size is not None
            return jnp.zeros(self.size, x.dtype)
        return jax.tree.map(
            lambda leaf: leaf.astype(x.dtype) if eqx.is_inexact_array(leaf) else leaf, self.initial
        )

    def advance(self, state, x):
        moved = self.cell(x, state)
        # A scan needs a state of one dtype, also where a cell has weights of another.
        return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, state)

    def read(self, state):
        hidden = state[0] if isinstance(state, tuple | list) else state
        return hidden if self.readout is None else self.readout(hidden)

    def trainable(self):
        """All arrays of the cell and the read-out that they declare themselves, or all;
        not the initial state.
        """

        def own(part: Any) -> Any:
            declared = declared_trainable(part)
            return True if declared is None else declared

        if any(callable(own(p)) for p in (self.cell, self.readout)):
            return None
        return eqx.tree_at(
            lambda n: (n.cell, n.readout, n.initial),
            self,
            (own(self.cell), own(self.readout), False),
            is_leaf=lambda leaf: leaf is None,
        )
