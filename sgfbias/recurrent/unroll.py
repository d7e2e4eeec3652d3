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
    - `initial`: the hidden state before the first input, a PyTree of arrays, which may
      be complex. It does not move in training. Default: zeros of shape
      `cell.hidden_size`. An `equinox.nn.LSTMCell` needs a pair,
      `(jnp.zeros(h), jnp.zeros(h))`.

    **Raises:** `ValueError` for a cell or a read-out that is not callable, if the shape
    of the hidden state is not known, and in a call if a state that begins real becomes
    complex.
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
        # Whole numbers, such as tokens, have no precision of their own.
        real = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.result_type(float)
        if self.initial is None:
            assert self.size is not None
            return jnp.zeros(self.size, real)
        pair = jnp.complex128 if real == jnp.float64 else jnp.complex64

        def cast(leaf: Any) -> Any:
            if not eqx.is_inexact_array(leaf):
                return leaf
            return leaf.astype(pair if jnp.iscomplexobj(leaf) else real)

        return jax.tree.map(cast, self.initial)

    def advance(self, state, x):
        def as_before(new: Any, old: Any) -> Any:
            if jnp.iscomplexobj(new) and not jnp.iscomplexobj(old):
                raise ValueError(
                    f"the hidden state of {type(self.cell).__name__} becomes complex, but begins "
                    f"real: give a complex initial=, such as "
                    f"initial=jnp.zeros({old.shape}, complex)"
                )
            # A scan needs a state of one dtype, also if the weights have another.
            return new.astype(old.dtype)

        return jax.tree.map(as_before, self.cell(x, state), state)

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
