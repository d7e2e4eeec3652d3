"""Solve the programs of many seeds of one problem, whose solutions all lie on one
curve.

Under the mean-loss model log alpha falls along one line, `log alpha - 2 gamma h S`, so
the solutions selected at any loss integrals S lie on a curve. Between two neighbouring
points of it the multipliers are almost linear, and one factorisation of the dual's
Hessian serves all seeds in between by the simplified Newton iteration (Ortega,
Rheinboldt 1970, chapter 7). Each simplified Newton step multiplies the error by the
relative change of the Hessian, which at small alpha divides it by 10 to 100, and no
step factorises a matrix.
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
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import beta_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.rows import Rows
from sgfbias.diagonal.theory.certificate import factor_psd
from sgfbias.diagonal.theory.selection import continuation, far_start, hessian

DIGITS = 2**5  # The points are loss integrals of five binary digits.
# Number of points solved at once. A batch takes as long as its slowest point, and an
# unfilled batch costs as much as a full one.
GROUP = 8
MAX_NUMBERS = 2**24  # largest size of the factors that a tile of seeds holds, in numbers
MAX_STEPS = 30
# How often the Hessian of a seed off the curve is factorised again, and how far a step
# with it may move the logarithm of a ratio of weights.
ROUNDS, REACH = 12, 1.0


class Points(NamedTuple):
    """Points of the curve.

    - `integrals`: (m,). The loss integrals.
    - `laws`: (m, d). log alpha at these loss integrals.
    - `multipliers`: (m, k). The multipliers of the k equations that are solved.
    - `factors`: (m, k, k). Factors of the Hessians of the dual.
    """

    integrals: Array
    laws: Array
    multipliers: Array
    factors: Array


class Place(NamedTuple):
    """The places of seeds on the curve: between the points numbered `below` and
    `above`, at the fraction `share` of the way. All arrays have shape (seeds,).
    """

    below: Array
    above: Array
    share: Array

    def start(self, points: Points) -> tuple[Array, Array, Array]:
        """The multipliers to start from (seeds, k), their derivatives in the loss
        integral (seeds, k), and the factors of Hessians (seeds, k, k).
        """
        low, high = points.multipliers[self.below], points.multipliers[self.above]
        width = points.integrals[self.above] - points.integrals[self.below]
        return (
            low + self.share[:, None] * (high - low),
            (high - low) / width[:, None],
            points.factors[self.below],
        )


def places(
    problem: SparseRegression,
    rows: Rows,
    network: DiagonalNetwork,
    step_size: Array,
    integral: Any,
    tolerance: Any,
) -> tuple[Points, Place]:
    """The points of the curve around the loss integrals `integral` (seeds,), which must
    not be negative, and the places of the seeds between them.

    The points are loss integrals of five binary digits. So the place from which a seed
    starts does not depend on the other seeds, and a few points serve thousands of
    seeds.
    """
    digits, exponent = np.frexp(np.asarray(integral, np.float64))
    below = np.floor(digits * DIGITS)
    ends = np.ldexp(np.stack([below, below + 1]) / DIGITS, exponent)
    wanted, index = np.unique(ends, return_inverse=True)
    # Padded to whole tiles, so that another number of points does not compile again.
    padded = wanted[tile_index(len(wanted)).ravel()]
    groups = np.int32(math.ceil(len(wanted) / GROUP))
    points = _points(
        problem,
        rows,
        network,
        step_size,
        np.concatenate([np.zeros(GROUP), padded]),
        groups,
        rows.tolerance(tolerance),
    )
    low, high = GROUP + index.reshape(ends.shape).astype(np.int32)
    return points, Place(low, high, (digits * DIGITS - below).astype(problem.dtype))


@eqx.filter_jit
def _points(
    problem: SparseRegression,
    rows: Rows,
    network: DiagonalNetwork,
    step_size: Array,
    integrals: Array,
    groups: Array,
    tolerance: Any,
) -> Points:
    """Points of the curve. The first group is the start of the curve, where the loss
    integral is 0, and each of the `groups` further groups is reached from there by
    continuation.
    """
    X, y = rows.rows, rows.targets(problem.y)
    integrals = integrals.astype(problem.dtype)
    laws = (
        network.log_alpha.astype(problem.dtype)
        - 2 * step_size * problem.time_scale * problem.h * integrals[:, None]
    )
    offset = jnp.broadcast_to(network.offset.astype(problem.dtype), laws[0].shape)
    far = far_start(X, y, laws[0])

    def one(start: Any, law: Array) -> tuple[Array, Array]:
        nu, _ = continuation(X, y, start[0], start[1:], (law, offset), tolerance)
        H = hessian(X, xi_from(law, 4 * (nu @ X) + offset))
        return nu, factor_psd(H)

    def solve(k: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
        start = jax.tree.map(
            lambda a, b: jnp.where(k == 0, a, b), far, (done[0][0], laws[0], offset)
        )
        found = jax.vmap(one, in_axes=(None, 0))(
            start, jax.lax.dynamic_slice_in_dim(laws, k * GROUP, GROUP)
        )
        return jax.tree.map(
            lambda all, some: jax.lax.dynamic_update_slice_in_dim(all, some, k * GROUP, 0),
            done,
            found,
        )

    m, k = integrals.shape[0], X.shape[0]
    return Points(
        integrals,
        laws,
        *jax.lax.fori_loop(
            0, groups + 1, solve, (jnp.zeros((m, k), X.dtype), jnp.zeros((m, k, k), X.dtype))
        ),
    )


@jax.jit
def solve_nearby(
    equations: tuple[Array, Array],
    log_alpha: Array,
    offset: Array,
    nu: Array,
    factor: Array,
    accuracy: Any,
    tolerance: Any,
) -> tuple[Array, Array, Array]:
    """The multipliers of a tile of seeds, from close ones, by simplified Newton steps
    with the factors of neighbouring Hessians. The result of a seed does not depend on
    the other seeds.

    **Arguments:**

    - `equations`: X (k, d) and y (k,) of the equations `X beta = y`.
    - `log_alpha`, `offset`: (seeds, d). Those of the programs to solve.
    - `nu`: (seeds, k). Multipliers close to the solution.
    - `factor`: (seeds, k, k). Factors of the Hessians at neighbouring points.
    - `accuracy`: the residual relative to y at which to stop; 0 stands for what
      rounding allows.
    - `tolerance`: the relative residual that is required.

    **Returns:** the multipliers (seeds, k), the numbers of steps (seeds,), and whether
    the residual has met the tolerance (seeds,).
    """
    X, y = equations
    size = jnp.maximum(jnp.linalg.norm(y), jnp.finfo(X.dtype).tiny)
    goal = jnp.maximum(accuracy / 10, 2 * jnp.finfo(X.dtype).eps)

    def unfinished(state: Any) -> Array:
        *_, moving, steps = state
        return jnp.any(moving) & (jnp.max(steps) <= MAX_STEPS)

    def advance(state: Any) -> Any:
        best, least, trial, moving, steps = state
        rest = beta_from(log_alpha, 4 * (trial @ X) + offset) @ X.T - y
        error = jnp.linalg.norm(rest, axis=1) / size
        better = moving & (error < least)
        # A seed stops when its error is small enough, when rounding stops the progress,
        # or when the Hessian belongs to a point that is not close enough.
        going = better & (error > goal) & (error < 0.7 * least)
        onward = trial - jax.vmap(lambda U, v: jax.scipy.linalg.cho_solve((U, False), v))(
            factor, rest
        )
        return (
            jnp.where(better[:, None], trial, best),
            jnp.where(better, error, least),
            onward,
            going,
            steps + going.astype(jnp.int32),
        )

    start = (
        nu,
        jnp.full(nu.shape[0], jnp.inf, nu.dtype),
        nu,
        jnp.ones(nu.shape[0], bool),
        jnp.zeros(nu.shape[0], jnp.int32),
    )
    nu, error, _, _, steps = jax.lax.while_loop(unfinished, advance, start)
    return nu, steps, error <= tolerance


@jax.jit
def solve_closely(
    equations: tuple[Array, Array],
    log_alpha: Array,
    offset: Array,
    nu: Array,
    factor: Array,
    accuracy: Any,
    tolerance: Any,
) -> tuple[Array, Array, Array]:
    """`solve_nearby` for seeds that are close to the curve and not on it. Where the
    factor of a neighbouring point is not close enough, damped Newton steps with the
    seed's own Hessian follow, up to twelve.
    """
    X, y = equations

    def solve(nu: Array, factor: Array) -> tuple[Array, Array, Array]:
        return solve_nearby(equations, log_alpha, offset, nu, factor, accuracy, tolerance)

    def again(state: Any) -> Any:
        nu, count, solved, rounds = state
        u = 4 * (nu @ X) + offset
        factor = jax.vmap(lambda own: factor_psd(hessian(X, own)))(xi_from(log_alpha, u))
        rest = beta_from(log_alpha, u) @ X.T - y
        step = jax.vmap(lambda U, v: jax.scipy.linalg.cho_solve((U, False), v))(factor, rest)
        move = jnp.max(jnp.abs(4 * (step @ X)), axis=1)
        share = jnp.where(solved, 0, jnp.minimum(1, REACH / jnp.maximum(move, REACH)))
        nu, more, solved = solve(nu - share[:, None] * step, factor)
        return nu, count + more, solved, rounds + 1

    return jax.lax.while_loop(
        lambda state: ~jnp.all(state[2]) & (state[3] < ROUNDS),
        again,
        (*solve(nu, factor), jnp.int32(0)),
    )[:3]
