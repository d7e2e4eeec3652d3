"""Attacks that move one step at a time: greedy, beam, JSMA and FGSM.

Each returns for every example the least margin met with 0, 1, ... moves, and the bits
at the least of all.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from sgfbias.fourier.search import Search, State

# The least margins (n, moves + 1), and the candidates' bits (n, C) at the last of them.
Found = tuple[Float[Array, "n k"], Float[Array, "n C"]]
Guide = Callable[[State], Float[Array, "n C"]]


def climb(
    search: Search, state: State, labels: Num[Array, " n"], moves: int, guide: Guide
) -> Found:
    """Take the open candidate of least `guide` again and again.

    A candidate whose guide is infinite is not taken. The least margin on the way
    counts, so a step that raises the margin does no harm.
    """
    clean = search.margins(state.z, labels)
    if moves == 0:
        return clean[:, None], state.s

    def step(carry: tuple, _: None) -> tuple[tuple, Array]:
        state, least, best = carry
        wish = jnp.where(state.open, guide(state), jnp.inf)
        choice = jnp.argmin(wish, axis=1).astype(jnp.int32)
        taken = jnp.isfinite(jnp.min(wish, axis=1))
        state = search.move(state, choice, taken)
        now = search.margins(state.z, labels)
        best = jnp.where((now < least)[:, None], state.s, best)
        least = jnp.minimum(now, least)
        return (state, least, best), least

    (_, _, best), path = jax.lax.scan(step, (state, clean, state.s), None, length=moves)
    return jnp.concatenate([clean[None], path]).T, best


def greedy(search: Search, state: State, labels: Num[Array, " n"], moves: int) -> Found:
    """Take the move after which the margin is least, evaluated exactly."""
    return climb(search, state, labels, moves, lambda state: search.scores(state, labels))


def fgsm(search: Search, state: State, labels: Num[Array, " n"], moves: int) -> Found:
    """Take the moves that lower the margin most to first order, all at once.

    Source: the fast gradient sign method of Goodfellow, Shlens and Szegedy (2015), with
    whole flips instead of small steps.
    """
    slopes = search.slopes(state, labels)
    wish = jnp.where(slopes < 0, slopes, jnp.inf)
    return climb(search, state, labels, moves, lambda state: wish)


def jsma(search: Search, state: State, labels: Num[Array, " n"], moves: int) -> Found:
    """Take the move of greatest saliency, by derivatives at the current bits.

    The saliency of a move that raises the output of the target class by a > 0, and
    lowers the sum of the others by b > 0, to first order, is a b. The target is the
    class that comes closest to the label. Where no move does both, the one that lowers
    the margin most is taken. With one output this is FGSM with new derivatives at every
    step.

    Source: Papernot et al. (2016), "The Limitations of Deep Learning in Adversarial
    Settings", equation (8).
    """

    def guide(state: State) -> Array:
        slopes = search.slopes(state, labels)
        plain = jnp.where(slopes < 0, slopes, jnp.inf)
        outputs, pull = jax.vjp(search.cut.outputs, state.z)
        if outputs.ndim == 1:
            return plain
        classes = jnp.arange(outputs.shape[1], dtype=jnp.int32)
        label = labels.astype(jnp.int32)[:, None]
        target = jnp.argmax(jnp.where(classes == label, -jnp.inf, outputs), axis=1)
        is_target = (classes == target[:, None].astype(jnp.int32)).astype(outputs.dtype)
        change = search.candidates.changes
        raises = change(search.per_bit(pull(is_target)[0]), state.s)
        others = change(search.per_bit(pull(1 - is_target)[0]), state.s)
        salient = state.open & (raises > 0) & (others < 0)
        saliency = jnp.where(salient, raises * others, jnp.inf)
        return jnp.where(salient.any(axis=1)[:, None], saliency, plain)

    return climb(search, state, labels, moves, guide)


def beam(search: Search, state: State, labels: Num[Array, " n"], moves: int, width: int) -> Found:
    """Keep the `width` sets of moves with the least margins instead of one."""
    n, count = state.s.shape
    clean = search.margins(state.z, labels)
    # A set is known by the sum of random numbers of its moves, whatever their order.
    numbers = jax.random.bits(jax.random.key(0), (count,), jnp.uint32)
    children = min(width * width, width * count)

    def flat(state: State) -> State:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), state)

    def step(carry: tuple, _: None) -> tuple[tuple, Array]:
        states, alive, sums, least, best = carry
        scores = search.scores(flat(states), jnp.repeat(labels, width)).reshape(n, width, count)
        scores = jnp.where(states.open & alive[:, :, None], scores, jnp.inf)
        after = (sums[:, :, None] + numbers).reshape(n, -1)
        negative, child = jax.lax.top_k(-scores.reshape(n, -1), children)
        chosen = _distinct(jnp.take_along_axis(after, child, 1), width)
        child = jnp.take_along_axis(child, chosen, 1)
        score = -jnp.take_along_axis(negative, chosen, 1)
        parent, choice = child // count, child % count
        states = jax.tree.map(lambda leaf: jax.vmap(lambda row, at: row[at])(leaf, parent), states)
        alive = jnp.isfinite(score)
        states = jax.tree.map(
            lambda leaf: leaf.reshape(n, width, *leaf.shape[1:]),
            search.move(flat(states), choice.ravel(), alive.ravel()),
        )
        better = score[:, 0] < least
        best = jnp.where(better[:, None], states.s[:, 0], best)
        least = jnp.minimum(least, score[:, 0])
        return (states, alive, jnp.take_along_axis(after, child, 1), least, best), least

    states = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], width, axis=1), state)
    alive = jnp.broadcast_to(jnp.arange(width) == 0, (n, width))
    sums = jnp.zeros((n, width), jnp.uint32)
    carry = (states, alive, sums, clean, state.s)
    (*_, best), path = jax.lax.scan(step, carry, None, length=moves)
    return jnp.concatenate([clean[None], path]).T, best


def _distinct(sums: Array, width: int) -> Int[Array, "n width"]:
    """The places of the first `width` different sums in each row, then of others."""
    size = sums.shape[1]
    place = jnp.arange(size, dtype=jnp.int32)
    earlier = (sums[:, :, None] == sums[:, None, :]) & (place[None] < place[:, None])
    repeated = earlier.any(axis=2)
    # In single precision XLA finds the least whole numbers without sorting all.
    late = (jnp.where(repeated, size, 0).astype(jnp.int32) + place).astype(jnp.float32)
    return jax.lax.top_k(-late, width)[1]
