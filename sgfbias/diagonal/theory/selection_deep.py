"""Depth p >= 3: the potential with two effective initialisations, and the solution that
it selects.

`beta = w_+^p - w_-^p` with the noise of SGD converges to `beta = h(X^T nu)`, where
`h(z) = (A_+ - z)^{-q} - (A_- + z)^{-q}`, `q = p/(p-2)`, `A_+- = alpha_+-^{2-p}` (Pesme,
Pillaud-Vivien, Flammarion 2021, appendix on depth p, with the constant of SGD's own
noise). Hence `grad phi = h^{-1}` and
`phi*(z) = sum [(A_+ - z)^{1-q} + (A_- + z)^{1-q}] / (q - 1)`, a barrier of the box
`-A_- < z < A_+`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.rows import Rows, rows_of
from sgfbias.diagonal.theory.certificate import (
    Selection,
    certificate,
    per_feature,
    solve_psd,
    solver_tolerance,
)

NEWTON_STEPS = 500


class _Place(NamedTuple):
    """A point z of the box, given by its distances to the two walls,
    `A_+ - z = w_+^{2-p}` and `A_- + z = w_-^{2-p}`, and by their difference.

    Near a wall z has too few digits for the distance, and far from both walls the
    distances have too few digits for their difference. So each number is stored and
    updated separately.
    """

    plus: Array
    minus: Array
    difference: Array

    def moved(self, dz: Array) -> _Place:
        return _Place(self.plus - dz, self.minus + dz, self.difference - 2 * dz)


def _place(z: Array, A: tuple[Array, Array]) -> _Place:
    return _Place(A[0] - z, A[1] + z, A[0] - A[1] - 2 * z)


def _beta(at: _Place, depth: int) -> Array:
    """`h(z)`, evaluated without cancellation; NaN outside the box."""
    q = depth / (depth - 2)
    close = jnp.abs(at.difference) < at.minus / 2
    log_ratio = jnp.where(
        close,
        jnp.log1p(jnp.where(close, at.difference, 0) / at.minus),
        jnp.log(at.plus) - jnp.log(at.minus),
    )
    # plus^-q - minus^-q is the larger of the two times a number in [0, 1), with a sign.
    larger = jnp.minimum(at.plus, at.minus) ** -q
    return -jnp.sign(log_ratio) * larger * -jnp.expm1(-q * jnp.abs(log_ratio))


def _curvature(at: _Place, depth: int) -> Array:
    q = depth / (depth - 2)
    return q * (at.plus ** (-q - 1) + at.minus ** (-q - 1))


def _conjugate(at: _Place, depth: int) -> Array:
    q = depth / (depth - 2)
    inside = (at.plus > 0) & (at.minus > 0)
    terms = (
        jnp.where(inside, at.plus, 1) ** (1 - q) + jnp.where(inside, at.minus, 1) ** (1 - q)
    ) / (q - 1)
    return jnp.sum(jnp.where(inside, terms, jnp.inf))


def slope_of(beta: Float[Array, " d"], A: tuple[Array, Array], depth: int) -> Float[Array, " d"]:
    """`grad phi = h^{-1}(beta)`, coordinate-wise.

    With `s = A_+ + A_-` and `z = (A_+ - A_-)/2 + s/2 tanh(theta)` the equation becomes
    `(1 + e^{2 theta})^q - (1 + e^{-2 theta})^q = beta s^q`, whose left side is odd and
    increasing in theta on the whole real line.
    """
    q, s = depth / (depth - 2), A[0] + A[1]
    size = jnp.abs(beta) * s**q
    # The left side is convex for theta >= 0, so Newton's method descends to the root
    # from above. It equals (1 + e^{-2 theta})^q (e^{2 q theta} - 1), so it is at least
    # |beta| s^q where e^{2 q theta} = 1 + |beta| s^q: the start is not below the root.
    above = jnp.log1p(size) / (2 * q)

    def newton(_: Any, theta: Array) -> Array:
        up, down = jax.nn.softplus(2 * theta), jax.nn.softplus(-2 * theta)
        slope = 2 * q * (jnp.exp((q - 1) * up + 2 * theta) + jnp.exp((q - 1) * down - 2 * theta))
        return theta - (jnp.exp(q * down) * jnp.expm1(2 * q * theta) - size) / slope

    theta = jnp.sign(beta) * jax.lax.fori_loop(0, 40, newton, above)
    return (A[0] - A[1]) / 2 + s / 2 * jnp.tanh(theta)


def beta_of(z: Float[Array, " d"], A: tuple[Array, Array], depth: int) -> Float[Array, " d"]:
    """`h(z)`, coordinate-wise; NaN outside the box."""
    return _beta(_place(z, A), depth)


def deep_dual_potential(
    z: Float[Array, " d"], A: tuple[Array, Array], depth: int
) -> Float[Array, ""]:
    """`phi*(z)`, whose gradient is `beta`. It is infinite outside the box."""
    return _conjugate(_place(z, A), depth)


def deep_potential(
    beta: Float[Array, " d"], log_alpha_plus: Any, log_alpha_minus: Any, depth: int
) -> Float[Array, ""]:
    """`phi(beta) = <z, beta> - phi*(z)` at `z = h^{-1}(beta)`.

    **Arguments:**

    - `beta`: (d,).
    - `log_alpha_plus`, `log_alpha_minus`: scalars or (d,). The effective
      initialisations of the two signs.
    - `depth`: p.
    """
    A = _barriers(
        (
            jnp.broadcast_to(log_alpha_plus, beta.shape),
            jnp.broadcast_to(log_alpha_minus, beta.shape),
        ),
        depth,
    )
    z = slope_of(beta, A, depth)
    return jnp.vdot(z, beta) - deep_dual_potential(z, A, depth)


def _barriers(log_alpha: tuple[Array, Array], depth: int) -> tuple[Array, Array]:
    plus, minus = (jnp.exp((2 - depth) * value) for value in log_alpha)
    return plus, minus


def select_deep(
    problem: SparseRegression, log_alpha: Any, depth: int, tolerance: float | None
) -> Selection:
    """`select` at depth p >= 3; `log_alpha` is one value, or a pair of values for the
    two signs.
    """
    pair = log_alpha if isinstance(log_alpha, tuple) else (log_alpha, log_alpha)
    if len(pair) != 2:
        raise ValueError(
            "`log_alpha` must be one value or a pair (log_alpha_plus, log_alpha_minus), but has "
            f"{len(pair)} parts"
        )
    plus, minus = (per_feature(value, f"log_alpha[{k}]", problem) for k, value in enumerate(pair))
    # The last digits of the fit come from features far from both walls, through an
    # almost singular curvature, so the default tolerance is ten times larger.
    tolerance = (
        10 * solver_tolerance(None, problem.dtype)
        if tolerance is None
        else solver_tolerance(tolerance, problem.dtype)
    )
    rows = rows_of(problem.X, problem.y)
    return _select(problem.X, problem.y, rows, (plus, minus), depth, tolerance)


@eqx.filter_jit
def _select(
    X: Array, y: Array, rows: Rows, log_alpha: tuple[Array, Array], depth: int, tolerance: float
) -> Selection:
    A, b = _barriers(log_alpha, depth), rows.targets(y)
    mu, at, count = _solve(rows.rows, b, A, depth, rows.tolerance(tolerance))
    beta = _beta(at, depth)
    slope = slope_of(beta, A, depth)
    primal = jnp.vdot(slope, beta) - deep_dual_potential(slope, A, depth)
    conjugate = _conjugate(at, depth)
    values = (
        primal,
        jnp.vdot(mu, b) - conjugate,
        jnp.sum(jnp.abs(beta * slope)) + jnp.abs(conjugate),
    )
    return certificate(X, y, rows, beta, mu, slope, values, count, tolerance)


def _solve(
    X: Array, y: Array, A: tuple[Array, Array], depth: int, tolerance: float
) -> tuple[Array, _Place, Array]:
    """The multipliers, the place in the box and the number of Newton steps,
    differentiable by the implicit function theorem.
    """

    @jax.custom_jvp
    def solve(X: Array, y: Array, A: tuple[Array, Array]) -> Any:
        return _newton(X, y, A, depth, tolerance)

    @solve.defjvp
    def _(primals, tangents):
        nu, at, count = solve(*primals)
        (X, _, _), (dX, dy, dA) = primals, tangents
        held = nu @ dX  # the change of z at fixed nu
        shift = _Place(dA[0] - held, dA[1] + held, dA[0] - dA[1] - 2 * held)
        curvature = _curvature(at, depth)
        beta, moved = jax.jvp(lambda place: _beta(place, depth), (at,), (shift,))
        dnu = -solve_psd((X * curvature[None]) @ X.T, dX @ beta + X @ moved - dy)
        dz = dnu @ X
        dplace = _Place(shift.plus - dz, shift.minus + dz, shift.difference - 2 * dz)
        return (nu, at, count), (dnu, dplace, np.zeros((), jax.dtypes.float0))

    return solve(X, y, A)


class _Iterate(NamedTuple):
    nu: Array
    at: _Place
    best: tuple[Array, _Place]
    best_error: Array
    stale: Array
    steps: Array


def _newton(
    X: Array, y: Array, A: tuple[Array, Array], depth: int, tolerance: float
) -> tuple[Array, _Place, Array]:
    """Damped Newton steps on the convex dual from nu = 0, which is inside the box and
    far from its walls.
    """
    eps = jnp.finfo(X.dtype).eps
    rows = jnp.linalg.norm(X, axis=1)
    rows = jnp.where(rows > 0, rows, 1)
    X, y = X / rows[:, None], y / rows
    size = jnp.maximum(jnp.linalg.norm(y), jnp.finfo(X.dtype).tiny)

    def advance(state: _Iterate) -> _Iterate:
        nu, at = state.nu, state.at
        gradient = X @ _beta(at, depth) - y
        step = -solve_psd((X * _curvature(at, depth)[None]) @ X.T, gradient)
        # Line search: start with the largest fraction of the step that stays inside the
        # box, and halve it until the dual falls enough.
        dz = step @ X
        wall = jnp.where(dz > 0, at.plus, at.minus)
        room = jnp.min(jnp.where(dz == 0, jnp.inf, wall / jnp.where(dz == 0, 1, jnp.abs(dz))))
        here, fall = _conjugate(at, depth) - jnp.vdot(nu, y), jnp.vdot(gradient, step)
        noise = 10 * eps * (jnp.abs(here) + jnp.abs(jnp.vdot(nu, y)))

        def too_far(carry: tuple[Array, Array]) -> Array:
            t, halvings = carry
            there = _conjugate(at.moved(t * dz), depth) - jnp.vdot(nu + t * step, y)
            return (there > here + 1e-4 * t * fall + noise) & (halvings < 60)

        share, _ = jax.lax.while_loop(
            too_far, lambda c: (c[0] / 2, c[1] + 1), (jnp.minimum(1, 0.95 * room), jnp.int32(0))
        )
        nu, at = nu + share * step, at.moved(share * dz)
        error = jnp.linalg.norm(X @ _beta(at, depth) - y) / size
        better = error < state.best_error
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), (nu, at), state.best)
        stale = jnp.where(
            (error < 0.1) & (error > 0.9 * state.best_error), state.stale + 1, state.stale
        )
        return _Iterate(nu, at, best, jnp.minimum(error, state.best_error), stale, state.steps + 1)

    goal = jnp.maximum(tolerance / 10, 2 * eps)
    start = (jnp.zeros_like(y), _place(jnp.zeros_like(A[0]), A))
    infinite = jnp.full((), jnp.inf, X.dtype)
    begin = _Iterate(*start, start, infinite, jnp.int32(0), jnp.int32(0))
    end = jax.lax.while_loop(
        lambda s: (s.best_error > goal) & (s.stale < 20) & (s.steps < NEWTON_STEPS), advance, begin
    )
    nu, at = end.best
    return nu / rows, at, end.steps
