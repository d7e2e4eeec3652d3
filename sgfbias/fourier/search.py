"""The margins after all single moves, the state of a search, and its parts in bounded
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from sgfbias.fourier.activation import pointwise
from sgfbias.fourier.examples import is_own, margin
from sgfbias.fourier.layers import HIGHEST, Layers
from sgfbias.fourier.moves import Candidates

# Numbers that a search holds at a time: (examples) x (candidates) with one layer of
# hidden units, and (examples) x (candidates) x (units) for a network of another kind.
AT_ONCE = 2**20


class State(eqx.Module):
    """Where the search of each example stands.

    **Arguments:**

    - `s`: (n, C), the values of the candidates' bits.
    - `z`: (n, m), the preactivations of the first layer.
    - `open`: (n, C), the candidates that are still open.
    """

    s: Float[Array, "n C"]
    z: Float[Array, "n m"]
    open: Bool[Array, "n C"]


class Search(eqx.Module):
    """A network under attack: its margins as functions of a `State`.

    **Arguments:**

    - `cut`: the network.
    - `columns`: (m, C), the weights of the candidates' bits.
    - `candidates`: the moves.
    """

    cut: Layers
    columns: Float[Array, "m C"]
    candidates: Candidates = eqx.field(static=True)

    def __init__(self, cut: Layers, candidates: Candidates):
        self.cut, self.candidates = cut, candidates
        self.columns = candidates.of(cut.weight)

    def start(self, inputs: Float[Array, "n d"]) -> State:
        """The state before any move."""
        s = self.candidates.of(inputs)
        return State(s, self.cut.preactivations(inputs), self.candidates.allowed(s))

    def margins(self, z: Float[Array, "n m"], labels: Num[Array, " n"]) -> Float[Array, " n"]:
        """The margins from given preactivations."""
        return margin(self.cut.outputs(z), labels)

    def slopes(self, state: State, labels: Num[Array, " n"]) -> Float[Array, "n C"]:
        """The change of the margin under each candidate to first order."""
        slope = jax.grad(lambda z: self.margins(z, labels).sum())(state.z)
        return self.candidates.changes(self.per_bit(slope), state.s)

    def per_bit(self, slope: Float[Array, "n m"]) -> Float[Array, "n C"]:
        """Derivatives in the candidates' bits from those in the preactivations."""
        return jnp.matmul(slope, self.columns, precision=HIGHEST)

    def scores(self, state: State, labels: Num[Array, " n"]) -> Float[Array, "n C"]:
        """The exact margin after each candidate."""
        head = self.cut.head
        act = None
        if head is not None and self.cut.activation is not None:
            act = pointwise(self.cut.activation, self.cut.m)
        if head is None or act is None:
            return self._scores_of_any(state, labels)
        return self._scores_of_one_layer(state, labels, *head, act)

    def _scores_of_one_layer(
        self,
        state: State,
        labels: Num[Array, " n"],
        weight: Float[Array, "c m"],
        bias: Float[Array, " c"],
        act: Callable[[Array], Array],
    ) -> Float[Array, "n C"]:
        """Scores as sums over the hidden units: no array has the size n x C x m."""

        def add(total: Array, unit: tuple[Array, Array, Array]) -> tuple[Array, None]:
            z, column, reads = unit
            hidden = act(z[:, None] + self.candidates.changes(column, state.s))
            return total + reads[:, None, None] * hidden, None

        start = jnp.broadcast_to(bias[:, None, None], (len(bias), *state.s.shape))
        # One unit at a time is one loop for XLA. Of four at a time it makes several,
        # which take six times as long.
        total, _ = jax.lax.scan(add, start, (state.z.T, self.columns, weight.T))
        if len(bias) == 1:
            return jnp.where(labels[:, None] > 0, total[0], -total[0])
        own = is_own(labels, len(bias)).T[:, :, None]
        others = jnp.where(own, -jnp.inf, total).max(axis=0)
        return jnp.where(own, total, 0).sum(axis=0) - others

    def _scores_of_any(self, state: State, labels: Num[Array, " n"]) -> Float[Array, "n C"]:
        """Scores by evaluating what follows the first layer once for each candidate,
        some candidates at a time.
        """
        n, m = state.z.shape
        each = max(1, AT_ONCE // (n * m))

        def one(candidate: Array) -> Array:
            amounts = jnp.zeros_like(state.s).at[:, candidate].set(1)
            if self.candidates.has_groups:
                shift = self.candidates.shift(amounts, state.s)
                moved = self.per_unit(shift)
            else:
                moved = -2 * state.s[:, candidate, None] * self.columns[:, candidate]
            return self.margins(state.z + moved, labels)

        return jax.lax.map(
            one, jnp.arange(self.candidates.count, dtype=jnp.int32), batch_size=each
        ).T

    def per_unit(self, shift: Float[Array, "n C"]) -> Float[Array, "n m"]:
        """Changes of the preactivations from those of the candidates' bits."""
        return jnp.matmul(shift, self.columns.T, precision=HIGHEST)

    def move(self, state: State, choice: Int[Array, " n"], taken: Bool[Array, " n"]) -> State:
        """The state after the chosen candidates, where they are `taken`."""
        count = jnp.arange(self.candidates.count, dtype=choice.dtype)
        amounts = ((choice[:, None] == count) & taken[:, None]).astype(state.s.dtype)
        shift = self.candidates.shift(amounts, state.s)
        same = self.candidates.same_feature(choice) & taken[:, None]
        return State(state.s + shift, state.z + self.per_unit(shift), state.open & ~same)


def in_parts(
    function: Callable[..., Any], size: int, *arrays: Array, at_once: int = AT_ONCE
) -> Any:
    """`function(*arrays)` on parts of the leading axis, in each of which the number of
    examples times `size` is at most `at_once`.

    The function must treat examples separately, and return arrays with that axis first.
    """
    n = arrays[0].shape[0]
    part = max(1, min(n, at_once // max(size, 1)))
    if part == n:
        return function(*arrays)
    count = -(-n // part)
    # The last part is filled up with copies of the first examples.
    filled = [
        jnp.resize(array, (count * part, *array.shape[1:])).reshape(count, part, *array.shape[1:])
        for array in arrays
    ]
    found = jax.lax.map(lambda parts: function(*parts), filled)
    return jax.tree.map(lambda leaf: leaf.reshape(count * part, *leaf.shape[2:])[:n], found)
