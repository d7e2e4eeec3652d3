"""The solution curve of the mean-loss model. All seeds of one problem end on it, each
at its own loss integral.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import as_float_array, is_concrete
from sgfbias.core.schedule import as_number
from sgfbias.diagonal.potential import beta_from, xi_from
from sgfbias.diagonal.problem import SparseRegression, check_regression
from sgfbias.diagonal.rows import Rows, rows_of
from sgfbias.diagonal.theory.certificate import per_feature, solve_psd, solver_tolerance
from sgfbias.diagonal.theory.selection import dual, far_start, hessian


class SolutionCurve(eqx.Module):
    """The curve `S -> argmin phi_{alpha exp(-2 gamma h S)}(beta) : X beta = y`,
    tabulated together with its derivative in S.

    Calling it with loss integrals of any shape returns the solutions, of that shape +
    (d,). Between tabulated points it is the cubic through values and derivatives;
    outside the table it is NaN.

    - `integrals`: (m,). The tabulated loss integrals S.
    - `beta`: (m, d). The solutions there.
    - `slope`: (m, d). The derivatives of the solutions in S.
    """

    references: ClassVar[Mapping[str, str]] = {
        "pesme2021": "the selected solution as a function of the loss integral, Theorem 1"
    }
    integrals: Float[Array, " m"]
    beta: Float[Array, "m d"]
    slope: Float[Array, "m d"]

    def __call__(self, integral: Any) -> Array:
        """The solutions at these loss integrals."""
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


def solution_curve(
    problem: SparseRegression, log_alpha: Any, *, step_size: Any, integrals: Any
) -> SolutionCurve:
    """The curve of solutions that the mean-loss model can select from the
    initialisation `log_alpha`, computed by continuation in `S = int L`.

    It follows from Theorem 1 of Pesme, Pillaud-Vivien, Flammarion 2021: log alpha_inf
    depends on the path through S only.

    **Arguments:**

    - `log_alpha`: a scalar or (d,). The initialisation.
    - `step_size`: gamma.
    - `integrals`: (m,), increasing, m >= 2, the first >= 0. The values of S to
      tabulate.

    **Returns:** a `SolutionCurve`, which is called with loss integrals.

    **Raises:** `ValueError` for a grid that is not increasing, and if there is no
    interpolating solution.
    """
    check_regression(problem)
    problem.require_interpolation()
    start = per_feature(log_alpha, "log_alpha", problem)
    S = as_float_array(integrals, "integrals").astype(problem.dtype)
    if (
        S.ndim != 1
        or S.shape[0] < 2
        or (is_concrete(S) and (float(S[0]) < 0 or not (np.diff(np.asarray(S)) > 0).all()))
    ):
        raise ValueError(
            "`integrals` must be an increasing array of at least two loss integrals, the first "
            "one >= 0"
        )
    rate = (
        -2
        * problem.time_scale
        * as_number(step_size, "step_size").astype(problem.dtype)
        * problem.h
    )
    return _trace(problem, rows_of(problem.X, problem.y), start, rate, S)


@eqx.filter_jit
def _trace(
    problem: SparseRegression, rows: Rows, start: Array, rate: Array, S: Array
) -> SolutionCurve:
    X, y = rows.rows, problem.y
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
        nu, _ = dual(rows, y, new, zero, tolerance, (nu, log_alpha, zero))
        return (nu, new), point(nu, new)

    first = start + rate * S[0]
    nu, _ = dual(rows, y, first, zero, tolerance, far_start(X, rows.targets(y), first))
    _, (beta, slope) = jax.lax.scan(onward, (nu, first), S[1:])
    beta0, slope0 = point(nu, first)
    return SolutionCurve(
        S, jnp.concatenate([beta0[None], beta]), jnp.concatenate([slope0[None], slope])
    )
