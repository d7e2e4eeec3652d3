"""The predicted solution, `argmin phi_alpha(beta) subject to X beta = y`, computed from
the dual with n unknowns.

With multipliers nu the solution is `beta = 2 alpha^2 sinh(4 X^T nu + offset)`. The
equation for nu is `X beta = y`: the gradient of the smooth convex dual
`sum 1/2 alpha_i^2 cosh(4 (X^T nu)_i + offset_i) - <nu, y>` vanishes. For flows, with
offset 0, this is Theorem 1 of Pesme, Pillaud-Vivien, Flammarion 2021; for SGD, with the
offset that its own path leaves, it is due to Even, Pesme, Gunasekar, Flammarion 2023.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_whole, numpy_for
from sgfbias.core.tiles import tile_map
from sgfbias.diagonal.potential import beta_from, potential, u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression, check_regression
from sgfbias.diagonal.rows import Rows, backward_error, rows_of
from sgfbias.diagonal.theory.certificate import (
    Selection,
    certificate,
    per_feature,
    solve_psd,
    solver_tolerance,
)
from sgfbias.diagonal.theory.selection_deep import select_deep

MAX_ITERATIONS = 2000
# Below this relative error Newton's method is trusted to finish.
NEAR = 0.03
# Up to this change of log alpha and offset Newton's method is tried directly at the
# end, without a path in between.
CLOSE = 0.1


def select(
    problem: SparseRegression,
    log_alpha: Any,
    *,
    offset: Any = 0.0,
    depth: int = 2,
    tolerance: float | None = None,
) -> Selection:
    """`argmin phi_alpha(beta)` over the solutions of `X beta = y`.

    The result is differentiable in X, y, log_alpha and offset by the implicit function
    theorem, any number of times, with one n x n solve for each derivative. For several
    initialisations use `jax.vmap` over log_alpha. The solver is tested for alpha from
    1e-100 to 1e4 and far below; duplicated rows are allowed. If X is ill-conditioned,
    as data in their natural units are, an orthonormal basis of its rows is used, unless
    X is being traced.

    **Arguments:**

    - `problem`: the data X (n, d) and y (n,).
    - `log_alpha`: a scalar or (d,). The effective initialisation. At depth > 2 the
      potential has two effective initialisations: give a pair
      `(log_alpha_plus, log_alpha_minus)`, or one value for both, with alpha from 1e-6
      to 1e3.
    - `offset`: a scalar or (d,). `log(alpha_+/alpha_-)` of the evolution law of SGD, or
      of an initialisation with unequal weights; see `Trajectory.final["offset"]`.
    - `depth`: the depth of the network.
    - `tolerance`: the feasibility to reach, as a `Selection` defines it. The default is
      1e-12 in float64 and 1e-5 in float32, and ten times these at depth > 2.

    **Returns:** a `Selection`: the solution with its certificate.

    **Raises:** `ValueError` if the system has no solution, if log_alpha is not finite
    or has the wrong shape, if the tolerance is below what the precision can reach, or
    if the depth is not a whole number >= 2.
    """
    depth = as_whole(depth, "depth", least=2)
    check_regression(problem)
    problem.require_interpolation()
    if depth > 2:
        if not (isinstance(offset, float) and offset == 0):
            raise ValueError(
                "at depth 3 and above there is no offset: give the two effective initialisations "
                "(log_alpha_plus, log_alpha_minus) instead"
            )
        return select_deep(problem, log_alpha, depth, tolerance)
    if isinstance(log_alpha, tuple):
        raise ValueError(
            "a pair of effective initialisations belongs to depth 3 and above; at depth 2 give "
            "one log_alpha and, for unequal weights, offset="
        )
    log_alpha = per_feature(log_alpha, "log_alpha", problem)
    offset = per_feature(offset, "offset", problem)
    tolerance = solver_tolerance(tolerance, problem.dtype)
    rows = rows_of(problem.X, problem.y)
    return _select(problem.X, problem.y, rows, log_alpha, offset, tolerance)


def select_many(
    problem: SparseRegression,
    log_alpha: Array,
    *,
    offset: Array | None = None,
    targets: Array | None = None,
    near: tuple[Array, Array] | None = None,
    tolerance: float | None = None,
) -> Selection:
    """`select` for many seeds at once, in tiles. All fields gain a leading axis, and
    the result of a seed does not depend on the other seeds.

    **Arguments:**

    - `log_alpha`: (seeds, d). The effective initialisations.
    - `offset`: (seeds, d). The default is 0.
    - `targets`: (seeds, n), taken to be in the range of X. The default is the problem's
      targets for every seed. With `targets = X beta_t` the solution is the minimiser on
      the fibre of beta_t, which the theory predicts to be beta_t itself at any finite
      time.
    - `near`: a pair of multipliers (seeds, n) and the log_alpha (seeds, d) for which
      they are close, at the same offset and targets. The solver then starts from there
      instead of from a large alpha.
    - `tolerance`: as in `select`.

    **Returns:** a `Selection` with a leading axis of seeds.

    **Raises:** `ValueError` as `select` does.
    """
    problem.require_interpolation()
    offset = jnp.zeros_like(log_alpha) if offset is None else offset
    if targets is None:
        targets = numpy_for(problem.y).broadcast_to(problem.y, (log_alpha.shape[0], problem.n))
    # As an array, so that another tolerance does not compile again.
    accuracy = np.asarray(solver_tolerance(tolerance, problem.dtype), problem.dtype)
    rows = rows_of(problem.X, problem.y)

    def select_tile(tile: Any) -> Selection:
        targets, log_alpha, offset, near = tile
        if near is not None:
            near = rows.coordinates(problem.X, near[0]), near[1]
        mu, iterations = solve_tile(rows, targets, log_alpha, offset, near, accuracy)
        return _certify_tile(problem.X, targets, rows, log_alpha, offset, mu, iterations, accuracy)

    return tile_map(select_tile, (targets, log_alpha, offset, near))


def solve_tile(
    rows: Rows,
    targets: Any,
    log_alpha: Array,
    offset: Array,
    near: Any,
    tolerance: Any,
) -> tuple[Array, Array]:
    """The multipliers (seeds, k) of a tile, of the equations in the form `rows`, and
    the numbers of Newton steps, without a certificate.
    """
    # Two compiled programs: the second, which is slow to compile, is the same for every
    # kind of start.
    start = _far_tile(rows, targets, log_alpha) if near is None else (*near, offset)
    return _solve_tile(rows, targets, log_alpha, offset, start, tolerance)


# Multipliers, and the log alpha and the offset for which they are close.
Start = tuple[Array, Array, Array]


@eqx.filter_jit
def _select(
    X: Array, y: Array, rows: Rows, log_alpha: Array, offset: Array, tolerance: float
) -> Selection:
    start = far_start(rows.rows, rows.targets(y), log_alpha)
    mu, iterations = dual(rows, y, log_alpha, offset, tolerance, start)
    return certify(X, y, rows, log_alpha, offset, mu, iterations, tolerance)


@jax.jit
def _far_tile(rows: Rows, targets: Array, log_alpha: Array) -> Start:
    return jax.vmap(far_start, in_axes=(None, 0, 0))(rows.rows, rows.targets(targets), log_alpha)


@jax.jit
def _solve_tile(
    rows: Rows,
    targets: Any,
    log_alpha: Array,
    offset: Array,
    start: Start,
    tolerance: Any,
) -> tuple[Array, Array]:
    def one(y: Array, log_alpha: Array, offset: Array, start: Start) -> tuple[Array, Array]:
        return dual(rows, y, log_alpha, offset, tolerance, start)

    return jax.vmap(one)(targets, log_alpha, offset, start)


@jax.jit
def _certify_tile(
    X: Array,
    targets: Any,
    rows: Rows,
    log_alpha: Array,
    offset: Array,
    mu: Array,
    iterations: Array,
    tolerance: Any,
) -> Selection:
    return jax.vmap(certify, in_axes=(None, 0, None, 0, 0, 0, 0, None))(
        X, targets, rows, log_alpha, offset, mu, iterations, tolerance
    )


def certify(
    X: Array,
    y: Array,
    rows: Rows,
    log_alpha: Array,
    offset: Array,
    mu: Array,
    iterations: Array,
    tolerance: Any,
) -> Selection:
    """The solution with multipliers `mu` of the equations in the form `rows`, and a
    certificate that is computed from beta and not from mu.
    """
    u = 4 * (mu @ rows.rows) + offset
    beta = beta_from(log_alpha, u)
    # Where beta underflows to 0, arcsinh cannot recover u from it. Any u that gives 0
    # is consistent with beta, so the u of the multipliers is used.
    slope = jnp.where(beta == 0, u, u_from(beta, log_alpha)) - offset
    # The primal phi(beta) - <offset, beta>/4 and the dual <nu, y> - phi*(X^T nu +
    # offset/4) are equal at the optimum.
    primal = potential(beta, log_alpha) - jnp.vdot(offset, beta) / 4
    dual = jnp.vdot(mu, rows.targets(y)) - jnp.sum(xi_from(log_alpha, u)) / 4
    scale = jnp.sum(jnp.abs(beta * u) + xi_from(log_alpha, u)) / 4
    return certificate(X, y, rows, beta, mu, slope, (primal, dual, scale), iterations, tolerance)


class _Path(NamedTuple):
    """State of the continuation: the last accepted point with its tangent, the trial
    point beyond it, and the best point found at the end of the path.
    """

    tau: Array
    nu: Array
    tangent: Array
    step: Array
    trial: Array
    trial_tau: Array
    # The error of the trial before the last Newton step; infinite after a prediction.
    error: Array
    best: Array
    best_error: Array
    stale: Array  # number of Newton steps at the end that did not halve the best error
    iterations: Array


def dual(
    rows: Rows, y: Array, log_alpha: Array, offset: Array, tolerance: Any, start: Start
) -> tuple[Array, Array]:
    """The multipliers (k,) of `X beta = y` in the form `rows`, and the number of Newton
    steps, differentiable by the implicit function theorem.
    """
    # The second attempt goes in shorter steps, and on until rounding stops it. It is
    # the only one in ill-conditioned equations, where a small residual over all
    # features may hide a large error of those in small units.
    first = 0 if rows.transform is None else 1

    @jax.custom_jvp
    def solve(
        X: Array, y: Array, log_alpha: Array, offset: Array, start: Start, tolerance: Any
    ) -> tuple[Array, Array]:
        end = log_alpha, offset
        careful = float(jnp.finfo(X.dtype).eps) ** 0.5

        def attempt(state: Any) -> Any:
            k, count, best, least = state
            near = jnp.where(k == 0, jnp.asarray(NEAR, X.dtype), careful)
            goal = jnp.where(k == 0, tolerance, 0)
            nu, steps = continuation(X, y, start[0], start[1:], end, goal, near)
            error = backward_error(X, y, beta_from(log_alpha, 4 * (nu @ X) + offset))
            better = (error < least) | (count == 0)
            best, least = jax.tree.map(
                lambda new, old: jnp.where(better, new, old), (nu, error), (best, least)
            )
            return k + 1, count + steps, best, least

        def unfinished(state: Any) -> Array:
            k, _, _, least = state
            return (k < 2) & ~(least <= tolerance)

        infinite = jnp.full((), jnp.inf, X.dtype)
        state = jnp.int32(first), jnp.int32(0), start[0], infinite
        _, count, nu, _ = jax.lax.while_loop(unfinished, attempt, state)
        return nu, count.astype(nu.dtype)

    @solve.defjvp
    def _(primals, tangents):
        nu, count = solve(*primals)
        X, _, log_alpha, offset, *_ = primals
        _, moved = jax.jvp(lambda *p: _residual(nu, *p), primals[:4], tangents[:4])
        H = hessian(X, xi_from(log_alpha, 4 * (nu @ X) + offset))
        return (nu, count), (-solve_psd(H, moved), jnp.zeros_like(count))

    X, y, start = rows.rows, rows.targets(y), jax.lax.stop_gradient(start)
    nu, count = solve(X, y, log_alpha, offset, start, jnp.asarray(tolerance, X.dtype))
    return nu, jax.lax.stop_gradient(count).astype(jnp.int32)


def _residual(nu: Array, X: Array, y: Array, log_alpha: Array, offset: Array) -> Array:
    return X @ beta_from(log_alpha, 4 * (nu @ X) + offset) - y


def hessian(X: Array, xi: Array) -> Array:
    """The Hessian of the dual, `4 X diag(xi) X^T`, shape (n, n), for `xi` (d,)."""
    return 4 * (X * xi[None]) @ X.T


def far_start(X: Array, y: Array, log_alpha: Array) -> Start:
    """A start at one large alpha, uniform over the features and without offset, where
    the equation is almost linear.
    """
    tiny = jnp.finfo(X.dtype).tiny
    nu0 = solve_psd(X @ X.T, y, refine=False)
    top = jnp.max(jnp.abs(nu0 @ X))
    start = jnp.maximum(0.5 * jnp.log(jnp.maximum(top, tiny)), jnp.max(log_alpha))
    start = jnp.where(top > 10 * tiny, start, jnp.max(log_alpha))
    return nu0 / jnp.maximum(8 * jnp.exp(2 * start), tiny), start + 0 * log_alpha, 0 * log_alpha


def continuation(
    X: Array,
    y: Array,
    nu: Array,
    start: tuple[Array, Array],
    end: tuple[Array, Array],
    tolerance: Any,
    near: Any = NEAR,
) -> tuple[Array, Array]:
    """Newton's method along a path of programs, on which `(log alpha, offset)` goes
    straight from `start`, where `nu` is close, to `end`.

    As alpha falls the multipliers become linear in log alpha, so a tangent predictor
    can take longer and longer steps. A step is taken back if its trial is further from
    the path than Newton's method can correct.

    Points on the way are solved to the relative residual `near`. The smaller it is, the
    shorter are the steps that are tried.

    **Returns:** the multipliers and the number of Newton steps.
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
        """The Newton correction, the tangent d nu / d tau, and the relative error, all
        at one point.
        """
        la, off = at(tau)
        u = 4 * (nu @ X) + off
        beta, xi = beta_from(la, u), xi_from(la, u)
        g = X @ beta - y
        moved = X @ (2 * beta * slope + xi * tilt)
        both = solve_psd(hessian(X, xi), jnp.stack([g, moved], axis=1), refine=False)
        return -both[:, 0], -both[:, 1], jnp.linalg.norm(g) / size

    zero, one, infinite = jnp.zeros((), dtype), jnp.ones((), dtype), jnp.full((), jnp.inf, dtype)
    # If the end is far away, only a short first step succeeds, wherever the end is. If
    # it is very near, it is tried at once.
    way = jnp.maximum(jnp.max(jnp.abs(slope)), jnp.max(jnp.abs(tilt)))
    width = jnp.where(way > 1, one / 16, one)
    path = _Path(
        zero,
        nu0,
        jnp.zeros_like(nu0),
        width,
        nu0,
        jnp.where(way > CLOSE, zero, one),
        infinite,
        nu0,
        infinite,
        jnp.int32(0),
        jnp.int32(0),
    )
    goal = jnp.maximum(tolerance / 10, 2 * eps)

    def unfinished(path: _Path) -> Array:
        return (path.stale < 5) & (path.best_error > goal) & (path.iterations < MAX_ITERATIONS)

    def advance(path: _Path) -> _Path:
        correction, tangent, error = newton(path.trial, path.trial_tau)
        finite = jnp.isfinite(error + jnp.sum(correction + tangent))
        predicted = jnp.isinf(path.error)
        # The trial is lost if a prediction left the basin of Newton's method, or if the
        # error does not fall. Then return to the accepted point and take a quarter of
        # the step.
        lost = (
            ~finite
            | (predicted & (error > 0.5))
            | (~predicted & (error > 0.8 * path.error) & (error > near))
        )
        lost = lost & (path.trial_tau > path.tau)
        close = finite & ~lost & (error <= near)
        at_end = path.trial_tau >= 1
        onward = close & ~at_end
        # Where most entries of beta are tiny the equation is almost flat in them, and a
        # full Newton step would make its exponentials overflow.
        u, move = jnp.max(jnp.abs(jnp.stack([path.trial, correction]) @ X), axis=1)
        damped = jnp.minimum(1, (0.5 + u / 2) / jnp.maximum(move, jnp.finfo(dtype).tiny))
        refined = jnp.where(finite, path.trial + damped * correction, path.trial)
        tau, nu, along = jax.tree.map(
            lambda new, old: jnp.where(onward, new, old),
            (path.trial_tau, refined, tangent),
            (path.tau, path.nu, path.tangent),
        )
        step = jnp.where(
            lost,
            (path.trial_tau - path.tau) / 4,
            jnp.where(onward & (path.iterations > 0), 2 * path.step, path.step),
        )
        step = jnp.minimum(step, 1 - tau)
        predict = lost | onward
        target = jnp.where(step >= 1 - tau, one, tau + step)
        # If the end was tried at once and is not near enough, solve at the start first.
        target = jnp.where(lost & (path.iterations == 0), zero, target)
        # Under quadratic convergence the errors e1, e2 are followed by e2^3 / e1^2. If
        # that is far below the goal, and rounding of u allows it, the next point needs
        # no check.
        sure = (
            close
            & at_end
            & ~predicted
            & (100 * error**3 <= goal * path.error**2)
            & (40 * eps * u <= goal)
        )
        better = close & at_end & (error < path.best_error)
        stalled = at_end & close & ~(error < 0.5 * path.best_error)
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
