r"""Solving for many seeds of one problem, which all end on one curve.

Under the mean-loss model log alpha falls along one line, `log alpha - 2 gamma h S`, so the solutions selected at any loss integrals S lie on a curve.
Between two of its points the multipliers are all but linear, and one inverse of the dual's Hessian serves all seeds in between: the simplified
Newton iteration (Ortega, Rheinboldt 1970, chapter 7), whose error falls by the relative change of the Hessian, here ten to a hundred times a step, and
whose step is two products instead of a factorisation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.tiles import tile_index
from sgfbias.diagonal.certificate import solve_psd
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import beta_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import continuation, far_start, hessian

DIGITS = 2**5
MAX_NUMBERS = 2**24  # of the inverses that a tile of seeds holds
MAX_STEPS = 30


class Points(NamedTuple):
    """Points of the curve: loss integrals (m,), log alpha (m, d), multipliers (m, n), inverse Hessians of the dual (m, n, n)."""

    integrals: Array
    laws: Array
    multipliers: Array
    inverses: Array


class Place(NamedTuple):
    """Where a seed is on the curve: between points `below` and `above`, at this `share` of the way. Arrays (seeds,)."""

    below: Array
    above: Array
    share: Array

    def start(self, points: Points) -> tuple[Array, Array, Array]:
        """Multipliers to start from (seeds, n), their slope in the loss integral (seeds, n), inverse Hessians (seeds, n, n)."""
        low, high = points.multipliers[self.below], points.multipliers[self.above]
        width = points.integrals[self.above] - points.integrals[self.below]
        return low + self.share[:, None] * (high - low), (high - low) / width[:, None], points.inverses[self.below]


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
    points = _points(problem, network, step_size, np.concatenate([[0.0], padded]), np.int32(len(wanted)), tolerance)
    low, high = 1 + index.reshape(ends.shape).astype(np.int32)
    return points, Place(low, high, (digits * DIGITS - below).astype(problem.dtype))


@eqx.filter_jit
def _points(
    problem: SparseRegression, network: DiagonalNetwork, step_size: Array, integrals: Array, count: Array, tolerance: Any
) -> Points:
    """The start of the curve, integral 0, and `count` further points of it, each reached from the start: one after another, since a batch waits for its
    slowest and costs as much unfilled."""
    X, y = problem.X, problem.y
    integrals = integrals.astype(problem.dtype)
    laws = network.log_alpha.astype(problem.dtype) - 2 * step_size * problem.pace * problem.h * integrals[:, None]
    offset = jnp.broadcast_to(network.offset.astype(problem.dtype), laws[0].shape)
    far = far_start(X, y, laws[0])

    def solve(k: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
        nu, law, tilt = jax.tree.map(lambda a, b: jnp.where(k == 0, a, b), far, (done[0][0], laws[0], offset))
        nu, _ = continuation(X, y, nu, (law, tilt), (laws[k], offset), tolerance)
        H = hessian(X, xi_from(laws[k], 4 * (nu @ X) + offset))
        return done[0].at[k].set(nu), done[1].at[k].set(solve_psd(H, jnp.eye(problem.n, dtype=H.dtype), refine=False))

    m, n = integrals.shape[0], problem.n
    return Points(integrals, laws, *jax.lax.fori_loop(0, count + 1, solve, (jnp.zeros((m, n), X.dtype), jnp.zeros((m, n, n), X.dtype))))


@jax.jit
def solve_nearby(
    problem: SparseRegression, log_alpha: Array, offset: Array, nu: Array, inverse: Array, tolerance: Any
) -> tuple[Array, Array, Array]:
    """Multipliers (seeds, n) of a tile from close ones `nu` by the inverses (seeds, n, n), the steps taken (seeds,), and whether the relative
    feasibility has met `tolerance` (seeds,). A seed's result does not depend on the others."""
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
        # A seed stops where it is good enough, at the limit of rounding, or where the inverse is not that of a point close enough.
        going = better & (error > goal) & (error < 0.7 * least)
        onward = trial - jnp.einsum("sij,sj->si", inverse, rest)
        return jnp.where(better[:, None], trial, best), jnp.where(better, error, least), onward, going, steps + going.astype(jnp.int32)

    start = nu, jnp.full(nu.shape[0], jnp.inf, nu.dtype), nu, jnp.ones(nu.shape[0], bool), jnp.zeros(nu.shape[0], jnp.int32)
    nu, error, _, _, steps = jax.lax.while_loop(unfinished, advance, start)
    return nu, steps, error <= tolerance
