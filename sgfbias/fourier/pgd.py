"""Projected gradient descent on the relaxed problem, rounded to whole moves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from sgfbias.fourier.climb import Found, climb
from sgfbias.fourier.search import Search, State

_HALVINGS = 24
_TRAVEL = 3.0  # how many times the way to the budget all steps add up to
_NONE = 1e-3  # an amount that counts as no move


def project(
    amounts: Float[Array, "n C"], allowed: Bool[Array, "n C"], budget: Float[Array, ""]
) -> Float[Array, "n C"]:
    """The closest amounts in [0, 1] whose sum is at most `budget`.

    The solution is `clip(amounts - shift, 0, 1)` with the least `shift >= 0` for which
    the sum is small enough, found by bisection.
    """
    amounts = jnp.where(allowed, amounts, 0)

    def half(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        much = jnp.clip(amounts - middle, 0, 1).sum(axis=1, keepdims=True) > budget
        return jnp.where(much, middle, low), jnp.where(much, high, middle)

    top = jnp.maximum(amounts.max(axis=1, keepdims=True), 0)
    _, shift = jax.lax.fori_loop(0, _HALVINGS, half, (jnp.zeros_like(top), top))
    fits = jnp.clip(amounts, 0, 1).sum(axis=1, keepdims=True) <= budget
    return jnp.clip(amounts - jnp.where(fits, 0, shift), 0, 1)


def pgd(
    search: Search,
    state: State,
    labels: Num[Array, " n"],
    moves: int,
    key: Array,
    steps: int,
    restarts: int,
) -> Found:
    """Relax every move to an amount in [0, 1], descend on the margin, and round.

    The amounts of one example add up to at most k, which is the l1 ball of radius 2k
    around its bits. This is done for each budget k, from no move and from random
    amounts. Each result is rounded by taking the moves in the order of their amounts.

    Source: Madry et al. (2018), "Towards Deep Learning Models Resistant to Adversarial
    Attacks", with the l1 ball and rounding.
    """
    clean = search.margins(state.z, labels)
    dtype = state.s.dtype

    def relaxed(amounts: Array) -> Array:
        shift = search.candidates.shift(amounts, state.s)
        return search.margins(state.z + search.per_unit(shift), labels).sum()

    def descend(amounts: Array, budget: Array) -> Array:
        length = _TRAVEL * budget / steps

        def step(_: int, amounts: Array) -> Array:
            slope = jnp.where(state.open, jax.grad(relaxed)(amounts), 0)
            norm = jnp.linalg.norm(slope, axis=1, keepdims=True)
            slope = jnp.where(norm > 0, slope / jnp.where(norm > 0, norm, 1), 0)
            return project(amounts - length * slope, state.open, budget)

        return jax.lax.fori_loop(0, steps, step, amounts)

    def run(carry: Found, run: tuple[Array, Array, Array]) -> tuple[Found, None]:
        budget, number, key = run
        random = jax.random.uniform(key, state.s.shape, dtype)
        begin = project(jnp.where(number == 0, 0, random), state.open, budget)
        amounts = descend(begin, budget)
        wish = jnp.where(amounts > _NONE, -amounts, jnp.inf)
        path, bits = climb(search, state, labels, moves, lambda state: wish)
        least, best = carry
        best = jnp.where((path[:, -1] < least[:, -1])[:, None], bits, best)
        return (jnp.minimum(path, least), best), None

    budgets = jnp.repeat(jnp.arange(1, moves + 1, dtype=dtype), restarts)
    numbers = jnp.tile(jnp.arange(restarts, dtype=jnp.int32), moves)
    keys = jax.random.split(key, moves * restarts)
    nothing = (jnp.repeat(clean[:, None], moves + 1, axis=1), state.s)
    (least, best), _ = jax.lax.scan(run, nothing, (budgets, numbers, keys))
    return least, best
