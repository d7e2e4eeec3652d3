r"""Solving for many seeds of one problem, which all end on one curve.

Under the mean-loss model log alpha falls along one line, `log alpha - 2 gamma h S`, so the solutions selected at any loss integrals S lie on a curve.
Between two of its points the multipliers are all but linear, and one factorisation of the dual's Hessian serves all seeds in between: the simplified
Newton iteration (Ortega, Rheinboldt 1970, chapter 7), whose error falls by the relative change of the Hessian, at small alpha ten to a hundred times a step, and
whose step factorises nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.tiles import tile_index
from sgfbias.diagonal.certificate import factor_psd
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import beta_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import continuation, far_start, hessian

DIGITS = 2**5
GROUP = 8  # points solved at once: a batch waits for its slowest, and costs as much unfilled
MAX_NUMBERS = 2**24  # of the factors that a tile of seeds holds
MAX_STEPS = 30


class Points(NamedTuple):
    """Points of the curve: loss integrals (m,), log alpha (m, d), multipliers (m, n), factors of the dual's Hessians (m, n, n)."""

    integrals: Array
    laws: Array
    multipliers: Array
    factors: Array


class Place(NamedTuple):
    """Where a seed is on the curve: between points `below` and `above`, at this `share` of the way. Arrays (seeds,)."""

    below: Array
    above: Array
    share: Array

    def start(self, points: Points) -> tuple[Array, Array, Array]:
        """Multipliers to start from (seeds, n), their slope in the loss integral (seeds, n), factors of Hessians (seeds, n, n)."""
        low, high = points.multipliers[self.below], points.multipliers[self.above]
        width = points.integrals[self.above] - points.integrals[self.below]
        return low + self.share[:, None] * (high - low), (high - low) / width[:, None], points.factors[self.below]


def places(problem: SparseRegression, network: DiagonalNetwork, step_size: Array, integral: Any, tolerance: Any) -> tuple[Points, Place]:
    """The points of the curve around these loss integrals (seeds,), not negative, and the places of the seeds.

    Points are loss integrals of five binary digits, so that where a seed starts does not depend on the others, and a few points serve thousands of
    seeds.
    """
    digits, exponent = np.frexp(np.asarray(integral, np.float64))
    below = np.floor(digits * DIGITS)
    ends = np.ldexp(np.stack([below, below + 1]) / DIGITS, exponent)
    wanted, index = np.unique(ends, return_inverse=True)
    padded = wanted[tile_index(len(wanted)).ravel()]  # whole tiles: another number of points compiles nothing new
    groups = np.int32(math.ceil(len(wanted) / GROUP))
    points = _points(problem, network, step_size, np.concatenate([np.zeros(GROUP), padded]), groups, tolerance)
    low, high = GROUP + index.reshape(ends.shape).astype(np.int32)
    return points, Place(low, high, (digits * DIGITS - below).astype(problem.dtype))


@eqx.filter_jit
def _points(
    problem: SparseRegression, network: DiagonalNetwork, step_size: Array, integrals: Array, groups: Array, tolerance: Any
) -> Points:
    """Points of the curve, of which the first group is its start, integral 0, and `groups` further ones are each reached from there."""
    X, y = problem.X, problem.y
    integrals = integrals.astype(problem.dtype)
    laws = network.log_alpha.astype(problem.dtype) - 2 * step_size * problem.pace * problem.h * integrals[:, None]
    offset = jnp.broadcast_to(network.offset.astype(problem.dtype), laws[0].shape)
    far = far_start(X, y, laws[0])

    def one(start: Any, law: Array) -> tuple[Array, Array]:
        nu, _ = continuation(X, y, start[0], start[1:], (law, offset), tolerance)
        H = hessian(X, xi_from(law, 4 * (nu @ X) + offset))
        return nu, factor_psd(H)

    def solve(k: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
        start = jax.tree.map(lambda a, b: jnp.where(k == 0, a, b), far, (done[0][0], laws[0], offset))
        found = jax.vmap(one, in_axes=(None, 0))(start, jax.lax.dynamic_slice_in_dim(laws, k * GROUP, GROUP))
        return jax.tree.map(lambda all, some: jax.lax.dynamic_update_slice_in_dim(all, some, k * GROUP, 0), done, found)

    m, n = integrals.shape[0], problem.n
    return Points(integrals, laws, *jax.lax.fori_loop(0, groups + 1, solve, (jnp.zeros((m, n), X.dtype), jnp.zeros((m, n, n), X.dtype))))


@jax.jit
def solve_nearby(
    problem: SparseRegression, log_alpha: Array, offset: Array, nu: Array, factor: Array, tolerance: Any
) -> tuple[Array, Array, Array]:
    """Multipliers (seeds, n) of a tile from close ones `nu` by the factors of neighbours' Hessians (seeds, n, n), the steps taken (seeds,), and
    whether the relative feasibility has met `tolerance` (seeds,). A seed's result does not depend on the others."""
    X, y = problem.X, problem.y
    size = jnp.maximum(jnp.linalg.norm(y), jnp.finfo(X.dtype).tiny)
    goal = jnp.maximum(tolerance / 10, 2 * jnp.finfo(X.dtype).eps)

    def unfinished(state: Any) -> Array:
        *_, moving, steps = state
        return jnp.any(moving) & (jnp.max(steps) <= MAX_STEPS)

    def advance(state: Any) -> Any:
        best, least, trial, moving, steps = state
        rest = beta_from(log_alpha, 4 * (trial @ X) + offset) @ X.T - y
        error = jnp.linalg.norm(rest, axis=1) / size
        better = moving & (error < least)
        # A seed stops where it is good enough, at the limit of rounding, or where the Hessian is not that of a point close enough.
        going = better & (error > goal) & (error < 0.7 * least)
        onward = trial - jax.vmap(lambda U, v: jax.scipy.linalg.cho_solve((U, False), v))(factor, rest)
        return jnp.where(better[:, None], trial, best), jnp.where(better, error, least), onward, going, steps + going.astype(jnp.int32)

    start = nu, jnp.full(nu.shape[0], jnp.inf, nu.dtype), nu, jnp.ones(nu.shape[0], bool), jnp.zeros(nu.shape[0], jnp.int32)
    nu, error, _, _, steps = jax.lax.while_loop(unfinished, advance, start)
    return nu, steps, error <= tolerance
