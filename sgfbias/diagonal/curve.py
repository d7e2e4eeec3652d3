"""The solution curve of the mean-loss model: all seeds of one problem end on it, at their own loss integral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import is_concrete
from sgfbias.core.schedule import as_number
from sgfbias.diagonal.certificate import per_feature, solve_psd, solver_tolerance
from sgfbias.diagonal.potential import beta_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import _dual, continuation, far_start, hessian


class SolutionCurve(eqx.Module):
    """`S -> argmin phi_{alpha exp(-2 gamma h S)}(beta) : X beta = y`, tabulated with its slope.

    Call it with loss integrals, any shape, for the solutions, shape + (d,); NaN outside the table. Between the tabulated points it is a
    cubic through values and slopes.
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "the selected solution as a function of the loss integral, Theorem 1"}
    integrals: Float[Array, " m"]
    beta: Float[Array, "m d"]
    slope: Float[Array, "m d"]

    def __call__(self, integral: Any) -> Array:
        """The solution at these loss integrals."""
        S = jnp.asarray(integral, self.beta.dtype)
        grid = self.integrals
        k = jnp.clip(jnp.searchsorted(grid, S) - 1, 0, grid.shape[0] - 2)
        width = grid[k + 1] - grid[k]
        t = ((S - grid[k]) / width)[..., None]
        width = width[..., None]
        value = (
            (1 + 2 * t) * (1 - t) ** 2 * self.beta[k]
            + t * (1 - t) ** 2 * width * self.slope[k]
            + t**2 * (3 - 2 * t) * self.beta[k + 1]
            + t**2 * (t - 1) * width * self.slope[k + 1]
        )
        inside = (grid[0] <= S) & (grid[-1] >= S)
        return jnp.where(inside[..., None], value, jnp.nan)


def solution_curve(problem: SparseRegression, log_alpha: Any, *, step_size: Any, integrals: Any) -> SolutionCurve:
    """The curve of solutions that the mean-loss model can select from the initialisation `log_alpha`, by continuation in `S = int L`.

    Follows from Theorem 1 of Pesme, Pillaud-Vivien, Flammarion 2021: log alpha_inf depends on the path through S only.

    **Arguments:** `log_alpha` scalar or (d,); `step_size` gamma; `integrals` (m,) increasing, m >= 2, the first >= 0.

    **Raises:** `ValueError` for a grid that is not increasing, or no interpolating solution.
    """
    problem.require_interpolation()
    start = per_feature(log_alpha, "log_alpha", problem)
    S = jnp.asarray(integrals, problem.dtype)
    if S.ndim != 1 or S.shape[0] < 2 or (is_concrete(S) and (float(S[0]) < 0 or not (np.diff(np.asarray(S)) > 0).all())):
        raise ValueError("`integrals` must be an increasing array of at least two loss integrals, the first one >= 0")
    rate = -2 * problem.pace * as_number(step_size, "step_size").astype(problem.dtype) * problem.h
    return _trace(problem, start, rate, S)


@eqx.filter_jit
def _trace(problem: SparseRegression, start: Array, rate: Array, S: Array) -> SolutionCurve:
    X, y = problem.X, problem.y
    tolerance = solver_tolerance(None, problem.dtype)
    zero = jnp.zeros_like(start)

    def point(nu: Array, log_alpha: Array) -> tuple[Array, Array]:
        u = 4 * (nu @ X)
        beta, xi = beta_from(log_alpha, u), xi_from(log_alpha, u)
        moved = -solve_psd(hessian(X, xi), X @ (2 * beta * rate))
        return beta, 2 * beta * rate + 4 * xi * (moved @ X)

    def onward(carry: tuple[Array, Array], integral: Array) -> Any:
        nu, log_alpha = carry
        new = start + rate * integral
        nu, _ = continuation(X, y, nu, (log_alpha, zero), (new, zero), tolerance)
        return (nu, new), point(nu, new)

    first = start + rate * S[0]
    nu, _ = _dual(X, y, first, zero, tolerance, far_start(X, y, first))
    _, (beta, slope) = jax.lax.scan(onward, (nu, first), S[1:])
    beta0, slope0 = point(nu, first)
    return SolutionCurve(S, jnp.concatenate([beta0[None], beta]), jnp.concatenate([slope0[None], slope]))
