r"""The predicted solution: `argmin phi_alpha(beta) subject to X beta = y`, solved in the dual with n unknowns.

With multipliers nu the solution is `beta = 2 alpha^2 sinh(4 X^T nu + offset)` and the equation is `X beta = y`, the gradient of the
smooth convex dual `sum 1/2 alpha_i^2 cosh(4 (X^T nu)_i + offset_i) - <nu, y>`. Theorem 1 of Pesme, Pillaud-Vivien, Flammarion 2021 (flows,
offset 0); Even, Pesme, Gunasekar, Flammarion 2023 (SGD, with the offset its own path leaves).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import numpy_for
from sgfbias.core.tiles import tile_map
from sgfbias.diagonal.certificate import Selection, certificate, per_feature, solve_psd, solver_tolerance
from sgfbias.diagonal.deep_selection import select_deep
from sgfbias.diagonal.potential import beta_from, potential, u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression

MAX_ITERATIONS = 2000
NEAR = 0.03  # relative error from which Newton's method is trusted to finish
CLOSE = 0.1  # change of log alpha and offset over which it is tried without a path between


def select(problem: SparseRegression, log_alpha: Any, *, offset: Any = 0.0, depth: int = 2, tolerance: float | None = None) -> Selection:
    """`argmin phi_alpha(beta)` over the solutions of `X beta = y`.

    Differentiable in X, y, log_alpha and offset by the implicit function theorem, any number of times, one n x n solve each; unbatched, use
    `jax.vmap` over log_alpha. Tested for alpha from 1e-100 to 1e4 and far below; duplicated rows are allowed.

    **Arguments:** `log_alpha`: scalar or (d,). `offset`: scalar or (d,), `log(alpha_+/alpha_-)` of SGD's law or of an initialisation with
    unequal weights, see `Trajectory.final["offset"]`. `depth`: of the network; above 2 the potential has two effective initialisations, and
    `log_alpha` is a pair `(log_alpha_plus, log_alpha_minus)` or one value for both, from 1e-6 to 1e3. `tolerance`: relative feasibility
    asked for, default 1e-12 in float64 and 1e-5 in float32, ten times that above depth 2.

    **Raises:** `ValueError` if the system has no solution, log_alpha is not finite or has the wrong shape, the tolerance is below what
    the precision can reach, or the depth is not a whole number >= 2.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 2:
        raise ValueError(f"`depth` must be a whole number >= 2, but is {depth!r}")
    problem.require_interpolation()
    if depth > 2:
        if not (isinstance(offset, float) and offset == 0):
            raise ValueError(
                "at depth 3 and above there is no offset: the two effective initialisations (log_alpha_plus, log_alpha_minus) say it all"
            )
        return select_deep(problem, log_alpha, depth, tolerance)
    if isinstance(log_alpha, tuple):
        raise ValueError("a pair of effective initialisations belongs to depth 3 and above; at depth 2 give one log_alpha, and offset=")
    log_alpha = per_feature(log_alpha, "log_alpha", problem)
    offset = per_feature(offset, "offset", problem)
    tolerance = solver_tolerance(tolerance, problem.dtype)
    return _select(problem.X, problem.y, log_alpha, offset, tolerance)


def select_many(
    problem: SparseRegression,
    log_alpha: Array,
    *,
    offset: Array | None = None,
    targets: Array | None = None,
    near: tuple[Array, Array] | None = None,
    tolerance: float | None = None,
) -> Selection:
    """`select` for many seeds at once, in tiles: fields gain a leading axis, and a seed's result does not depend on the others.

    **Arguments:** `log_alpha` (seeds, d); `offset` (seeds, d), default 0; `targets` (seeds, n), default the problem's for every seed. With
    `targets = X beta_t` the solution is the minimiser on the fibre of beta_t, where theory says a run is at any finite time. `near`: multipliers
    (seeds, n) and the log_alpha (seeds, d) they are close for, to start from instead of a large alpha; with the same offset and targets. `tolerance`: as in `select`.

    **Raises:** `ValueError` as `select`; `targets` are taken to be in the range of X.
    """
    problem.require_interpolation()
    offset = jnp.zeros_like(log_alpha) if offset is None else offset
    if targets is None:
        targets = numpy_for(problem.y).broadcast_to(problem.y, (log_alpha.shape[0], problem.n))
    accuracy = np.asarray(solver_tolerance(tolerance, problem.dtype), problem.dtype)  # an array: another one compiles nothing new

    def select_tile(tile: Any) -> Selection:
        targets, log_alpha, offset, near = tile
        nu, iterations = solve_tile(problem.X, targets, log_alpha, offset, near, accuracy)
        return _certify_tile(problem.X, targets, log_alpha, offset, nu, iterations, accuracy)

    return tile_map(select_tile, (targets, log_alpha, offset, near))


def solve_tile(X: Array, targets: Any, log_alpha: Array, offset: Array, near: Any, tolerance: Any) -> tuple[Array, Array]:
    """Multipliers (seeds, n) of a tile and their Newton steps, without a certificate."""
    # Two programs, of which the second, slow to compile, is the same wherever it starts.
    start = _far_tile(X, targets, log_alpha) if near is None else (*near, offset)
    return _solve_tile(X, targets, log_alpha, offset, start, tolerance)


Start = tuple[Array, Array, Array]  # multipliers, and the log alpha and offset that they are close for


@eqx.filter_jit
def _select(X: Array, y: Array, log_alpha: Array, offset: Array, tolerance: float) -> Selection:
    nu, iterations = _dual(X, y, log_alpha, offset, tolerance, far_start(X, y, log_alpha))
    return certify(X, y, log_alpha, offset, nu, iterations, tolerance)


@jax.jit
def _far_tile(X: Array, targets: Array, log_alpha: Array) -> Start:
    return jax.vmap(far_start, in_axes=(None, 0, 0))(X, targets, log_alpha)


@jax.jit
def _solve_tile(X: Array, targets: Any, log_alpha: Array, offset: Array, start: Start, tolerance: Any) -> tuple[Array, Array]:
    def one(y: Array, log_alpha: Array, offset: Array, start: Start) -> tuple[Array, Array]:
        return _dual(X, y, log_alpha, offset, tolerance, start)

    return jax.vmap(one)(targets, log_alpha, offset, start)


@jax.jit
def _certify_tile(X: Array, targets: Any, log_alpha: Array, offset: Array, nu: Array, iterations: Array, tolerance: Any) -> Selection:
    return jax.vmap(certify, in_axes=(None, 0, 0, 0, 0, 0, None))(X, targets, log_alpha, offset, nu, iterations, tolerance)


def certify(X: Array, y: Array, log_alpha: Array, offset: Array, nu: Array, iterations: Array, tolerance: Any) -> Selection:
    """The solution of multipliers `nu`, with its certificate computed from beta, not from nu."""
    u = 4 * (nu @ X) + offset
    beta = beta_from(log_alpha, u)
    # Where beta underflows to 0 its arcsinh is lost, and any u in the flat part will do: the multipliers' own.
    slope = jnp.where(beta == 0, u, u_from(beta, log_alpha)) - offset
    # Primal phi(beta) - <offset, beta>/4 and dual <nu, y> - phi*(X^T nu + offset/4): equal at the optimum.
    primal = potential(beta, log_alpha) - jnp.vdot(offset, beta) / 4
    dual = jnp.vdot(nu, y) - jnp.sum(xi_from(log_alpha, u)) / 4
    scale = jnp.sum(jnp.abs(beta * u) + xi_from(log_alpha, u)) / 4
    return certificate(X, y, beta, nu, slope, (primal, dual, scale), iterations, tolerance)


class _Path(NamedTuple):
    """State of the continuation: the last accepted point with its tangent, the trial beyond it, and the best point at the end."""

    tau: Array
    nu: Array
    tangent: Array
    step: Array
    trial: Array
    trial_tau: Array
    error: Array  # at the trial, before the last Newton step; infinite after a prediction
    best: Array
    best_error: Array
    stale: Array  # Newton steps at the end that did not improve on the best
    iterations: Array


def _dual(X: Array, y: Array, log_alpha: Array, offset: Array, tolerance: Any, start: Start) -> tuple[Array, Array]:
    """Multipliers (n,) and the number of Newton steps, differentiable by the implicit function theorem."""

    @jax.custom_jvp
    def solve(X: Array, y: Array, log_alpha: Array, offset: Array, start: Start, tolerance: Any) -> tuple[Array, Array]:
        nu, count = continuation(X, y, start[0], start[1:], (log_alpha, offset), tolerance)
        return nu, count.astype(nu.dtype)

    @solve.defjvp
    def _(primals, tangents):
        nu, count = solve(*primals)
        X, _, log_alpha, offset, *_ = primals
        _, moved = jax.jvp(lambda *p: _residual(nu, *p), primals[:4], tangents[:4])
        H = hessian(X, xi_from(log_alpha, 4 * (nu @ X) + offset))
        return (nu, count), (-solve_psd(H, moved), jnp.zeros_like(count))

    nu, count = solve(X, y, log_alpha, offset, jax.lax.stop_gradient(start), jnp.asarray(tolerance, X.dtype))
    return nu, jax.lax.stop_gradient(count).astype(jnp.int32)


def _residual(nu: Array, X: Array, y: Array, log_alpha: Array, offset: Array) -> Array:
    return X @ beta_from(log_alpha, 4 * (nu @ X) + offset) - y


def hessian(X: Array, xi: Array) -> Array:
    """The dual's Hessian (n, n), `4 X diag(xi) X^T`, at `xi` (d,)."""
    return 4 * (X * xi[None]) @ X.T


def far_start(X: Array, y: Array, log_alpha: Array) -> Start:
    """One uniform large alpha without offset, where the equation is almost linear."""
    tiny = jnp.finfo(X.dtype).tiny
    nu0 = solve_psd(X @ X.T, y, refine=False)
    top = jnp.max(jnp.abs(nu0 @ X))
    start = jnp.maximum(0.5 * jnp.log(jnp.maximum(top, tiny)), jnp.max(log_alpha))
    start = jnp.where(top > 10 * tiny, start, jnp.max(log_alpha))
    return nu0 / (8 * jnp.exp(2 * start)), start + 0 * log_alpha, 0 * log_alpha


def continuation(
    X: Array, y: Array, nu: Array, start: tuple[Array, Array], end: tuple[Array, Array], tolerance: Any
) -> tuple[Array, Array]:
    """Newton's method along a path of problems, `(log alpha, offset)` going straight from `start`, where `nu` is close, to `end`.

    As alpha falls the multipliers become linear in log alpha, so a tangent predictor takes ever longer steps; a step is taken back if its
    trial is further off than Newton's method can mend. Returns the multipliers and the number of Newton steps.
    """
    dtype = X.dtype
    eps = jnp.finfo(dtype).eps
    rows = jnp.linalg.norm(X, axis=1)
    rows = jnp.where(rows > 0, rows, 1)
    X, y, nu0 = X / rows[:, None], y / rows, nu * rows
    size = jnp.maximum(jnp.linalg.norm(y), jnp.finfo(dtype).tiny)
    slope, tilt = end[0] - start[0], end[1] - start[1]

    def at(tau: Array) -> tuple[Array, Array]:
        return start[0] + tau * slope, start[1] + tau * tilt

    def newton(nu: Array, tau: Array) -> tuple[Array, Array, Array]:
        """Newton correction, tangent d nu / d tau, and relative error, at one point."""
        la, off = at(tau)
        u = 4 * (nu @ X) + off
        beta, xi = beta_from(la, u), xi_from(la, u)
        g = X @ beta - y
        H = hessian(X, xi)
        moved = X @ (2 * beta * slope + xi * tilt)
        both = solve_psd(H, jnp.stack([g, moved], axis=1), refine=False)
        return -both[:, 0], -both[:, 1], jnp.linalg.norm(g) / size

    zero, one, infinite = jnp.zeros((), dtype), jnp.ones((), dtype), jnp.full((), jnp.inf, dtype)
    # From far away the first step that succeeds is short, whatever the end; from very near the end is tried at once.
    way = jnp.maximum(jnp.max(jnp.abs(slope)), jnp.max(jnp.abs(tilt)))
    width = jnp.where(way > 1, one / 16, one)
    path = _Path(
        zero, nu0, jnp.zeros_like(nu0), width, nu0, jnp.where(way > CLOSE, zero, one), infinite, nu0, infinite, jnp.int32(0), jnp.int32(0)
    )
    goal = jnp.maximum(tolerance / 10, 2 * eps)

    def unfinished(path: _Path) -> Array:
        return (path.stale < 5) & (path.best_error > goal) & (path.iterations < MAX_ITERATIONS)

    def advance(path: _Path) -> _Path:
        correction, tangent, error = newton(path.trial, path.trial_tau)
        finite = jnp.isfinite(error + jnp.sum(correction + tangent))
        predicted = jnp.isinf(path.error)
        # Beyond Newton's basin after a prediction, or not coming down: back to the accepted point, a quarter of the step.
        lost = ~finite | (predicted & (error > 0.5)) | (~predicted & (error > 0.8 * path.error) & (error > NEAR))
        lost = lost & (path.trial_tau > path.tau)
        near = finite & ~lost & (error <= NEAR)
        at_end = path.trial_tau >= 1
        onward = near & ~at_end
        # Where beta is next to nothing in most directions the equation is almost flat in them, and a full step would leave its exponentials' range.
        u, move = jnp.max(jnp.abs(jnp.stack([path.trial, correction]) @ X), axis=1)
        damped = jnp.minimum(1, (0.5 + u / 2) / jnp.maximum(move, jnp.finfo(dtype).tiny))
        refined = jnp.where(finite, path.trial + damped * correction, path.trial)
        tau, nu, along = jax.tree.map(
            lambda new, old: jnp.where(onward, new, old), (path.trial_tau, refined, tangent), (path.tau, path.nu, path.tangent)
        )
        step = jnp.where(lost, (path.trial_tau - path.tau) / 4, jnp.where(onward & (path.iterations > 0), 2 * path.step, path.step))
        step = jnp.minimum(step, 1 - tau)
        predict = lost | onward
        target = jnp.where(step >= 1 - tau, one, tau + step)
        target = jnp.where(lost & (path.iterations == 0), zero, target)  # not as near as it seemed: the start itself first
        # Errors e1, e2 of quadratic convergence are followed by e2^3 / e1^2: where that is far below the goal, and u is known to as many digits,
        # nothing is left to look at.
        sure = near & at_end & ~predicted & (100 * error**3 <= goal * path.error**2) & (40 * eps * u <= goal)
        better = near & at_end & (error < path.best_error)
        stalled = at_end & near & ~(error < 0.5 * path.best_error)
        return _Path(
            tau=tau,
            nu=nu,
            tangent=along,
            step=step,
            trial=jnp.where(predict, nu + step * along, refined),
            trial_tau=jnp.where(predict, target, path.trial_tau),
            error=jnp.where(predict, infinite, error),
            best=jnp.where(sure, refined, jnp.where(better, path.trial, path.best)),
            best_error=jnp.where(sure, goal, jnp.where(better, error, path.best_error)),
            stale=path.stale + stalled.astype(jnp.int32),
            iterations=path.iterations + 1,
        )

    path = jax.lax.while_loop(unfinished, advance, path)
    return jnp.where(jnp.isfinite(path.best_error), path.best, path.trial) / rows, path.iterations


def minimum_l2(problem: SparseRegression) -> Float[Array, " d"]:
    """The interpolating solution of smallest Euclidean norm, (d,): the limit alpha -> infinity.

    **Raises:** `ValueError` if no solution interpolates.
    """
    problem.require_interpolation()
    return jnp.linalg.lstsq(problem.X, problem.y)[0]


def minimum_l1(problem: SparseRegression) -> Float[Array, " d"]:
    """An interpolating solution of smallest l1 norm (basis pursuit), (d,): the limit alpha -> 0. SciPy's HiGHS; concrete data only.

    **Raises:** `ValueError` if no solution interpolates, `RuntimeError` if the linear programme is not solved.
    """
    from scipy.optimize import linprog

    problem.require_interpolation()
    X, y = np.asarray(problem.X, np.float64), np.asarray(problem.y, np.float64)
    result = linprog(np.ones(2 * problem.d), A_eq=np.hstack([X, -X]), b_eq=y, bounds=(0, None), method="highs")
    if result.status != 0:
        raise RuntimeError(f"basis pursuit was not solved: {result.message}")
    plus, minus = np.split(result.x, 2)
    return jnp.asarray(plus - minus, problem.dtype)
