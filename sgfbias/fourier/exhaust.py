"""The least margin over all sets of moves, by trying every one."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from sgfbias.fourier.climb import Found
from sgfbias.fourier.moves import Candidates
from sgfbias.fourier.search import AT_ONCE, Search, State

MOST = 10**8  # evaluations of the network


def sets(candidates: Candidates, moves: int) -> int:
    """The number of sets of at most `moves` candidates."""
    return sum(math.comb(candidates.count, k) for k in range(moves + 1))


def prefixes(candidates: Candidates, moves: int) -> list[Int[np.ndarray, "sets size"]]:
    """The sets of 0, 1, ... up to `moves - 1` candidates of different features, each in
    ascending order.
    """
    found = []
    for size in range(moves):
        number = math.comb(candidates.count, size)
        every = itertools.chain.from_iterable(itertools.combinations(range(candidates.count), size))
        rows = np.fromiter(every, np.int32, number * size).reshape(number, size)
        if candidates.has_groups and size > 1:
            kin = np.sort(candidates.kin[rows], axis=1)
            rows = rows[(np.diff(kin, axis=1) != 0).all(axis=1)]
        found.append(rows)
    return found


def exhaust(
    search: Search,
    state: State,
    labels: Num[Array, " n"],
    tried: list[Int[Array, "sets size"]],
) -> Found:
    """The least margins over all sets of 0, 1, ... moves.

    A set of k moves is a set of k - 1, from `prefixes`, and one more move of a higher
    number.
    """
    clean = search.margins(state.z, labels)
    least, best, path = clean, state.s, [clean]
    for rows in tried:
        least, best = _last_move(search, state, labels, rows, least, best)
        path.append(least)
    return jnp.stack(path, axis=1), best


def _after(search: Search, state: State, rows: Int[Array, "n size"]) -> State:
    """The state after one set of moves of each example, from which moves of higher
    numbers are open, or none if the set itself was not.
    """
    place = jnp.arange(state.s.shape[1], dtype=jnp.int32)
    inside = (rows[:, :, None] == place).any(axis=1)
    shift = search.candidates.shift(inside.astype(state.s.dtype), state.s)
    # Over all candidates XLA would take seconds to find that none is closed.
    possible = jnp.take_along_axis(state.open, rows, axis=1).all(axis=1)
    still = state.open & (place > rows[:, -1:]) & possible[:, None]
    if search.candidates.has_groups:
        for i in range(rows.shape[1]):
            still = still & ~search.candidates.same_feature(rows[:, i])
    return State(state.s + shift, state.z + search.per_unit(shift), still)


def _last_move(
    search: Search,
    state: State,
    labels: Num[Array, " n"],
    rows: Int[Array, "sets size"],
    least: Float[Array, " n"],
    best: Float[Array, "n C"],
) -> tuple[Float[Array, " n"], Float[Array, "n C"]]:
    """Try all sets that consist of one of the rows and a move of a higher number."""
    n, count = state.s.shape
    number, size = rows.shape
    part = max(1, min(number, AT_ONCE // (n * count)))
    parts = -(-number // part)
    # The last part is filled up with copies of the first rows.
    blocks = jnp.resize(rows, (parts, part, size)) if size else jnp.zeros((1, 1, 0), jnp.int32)
    place = jnp.arange(count, dtype=jnp.int32)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, blocks.shape[1], axis=0), state)
    repeated_labels = jnp.repeat(labels, blocks.shape[1])

    def block(carry: tuple, rows: Array) -> tuple[tuple, None]:
        least, best = carry
        inside = (rows[:, :, None] == place).any(axis=1)
        moved = _after(search, repeated, jnp.tile(rows, (n, 1))) if size else repeated
        scores = jnp.where(moved.open, search.scores(moved, repeated_labels), jnp.inf)
        scores = scores.reshape(n, -1)
        at = jnp.argmin(scores, axis=1).astype(jnp.int32)
        now = jnp.take_along_axis(scores, at[:, None], 1)[:, 0]
        amounts = (inside[at // count] | (place == (at % count)[:, None])).astype(state.s.dtype)
        bits = state.s + search.candidates.shift(amounts, state.s)
        best = jnp.where((now < least)[:, None], bits, best)
        return (jnp.minimum(now, least), best), None

    (least, best), _ = jax.lax.scan(block, (least, best), blocks)
    return least, best
