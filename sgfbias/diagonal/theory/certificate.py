"""A selected solution with the evidence for it, and the linear algebra that the solvers
of the selection programs share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.checks import as_float, as_float_array, check_finite, check_positive, is_concrete
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.rows import Rows, backward_error


class Selection(eqx.Module):
    """A selected solution and the evidence for it.

    - `beta`: (d,). The solution.
    - `multipliers`: (n,). The multipliers nu.
    - `feasibility`: `|X beta - y|_2 / |(|X| |beta| + |y|)|_2`, with every equation
      divided by the norm of its row of X. This is the backward error of the solution,
      the relative change of the data that makes it exact.
    - `stationarity`: `|(I - P)(arcsinh(beta/2 alpha^2) - offset)|_2` divided by the
      norm of the projected vector `arcsinh(beta/2 alpha^2) - offset`. P is the
      projector on the row space of X.
    - `duality_gap`: the difference of primal and dual value, divided by the scale of
      the primal. At the optimum it is a few units of rounding.
    - `iterations`: the number of Newton steps. A landing may count simplified Newton
      steps here.
    - `converged`: whether the feasibility met the tolerance.
    """

    references: ClassVar[Mapping[str, str]] = {
        "pesme2021": "the selected solution, Theorem 1",
        "woodworth2020": "the potential that it minimises",
        "oettli1964": "the backward error by which the fit is judged",
    }
    beta: Float[Array, " d"]
    multipliers: Float[Array, " n"]
    feasibility: Float[Array, ""]
    stationarity: Float[Array, ""]
    duality_gap: Float[Array, ""]
    iterations: Array
    converged: Array

    def __repr__(self) -> str:
        if not is_concrete(self.beta) or self.beta.ndim != 1:
            return f"Selection(beta {self.beta.shape})"
        return (
            f"Selection(beta {self.beta.shape}, feasibility {float(self.feasibility):.1e}, "
            f"stationarity {float(self.stationarity):.1e}, "
            f"duality gap {float(self.duality_gap):.1e}, {int(self.iterations)} iterations, "
            f"{'converged' if bool(self.converged) else 'NOT converged'})"
        )


def solver_tolerance(tolerance: float | None, dtype: Any) -> float:
    """The feasibility that the solver must reach; the default for None depends on the
    dtype.

    **Raises:** `ValueError` for a tolerance below four units of rounding.
    """
    eps = float(jnp.finfo(dtype).eps)
    if tolerance is None:
        return 1e-12 if eps < 1e-10 else 1e-5
    tolerance = as_float(tolerance, "tolerance")
    check_positive(tolerance, "tolerance")
    if not tolerance >= 4 * eps:
        raise ValueError(
            f"tolerance={tolerance:g} is below what {jnp.dtype(dtype).name} can reach (about "
            f"{4 * eps:.0e}); use a larger tolerance, or float64 data with "
            "jax.config.update('jax_enable_x64', True)"
        )
    return tolerance


def certificate(
    X: Array,
    y: Array,
    rows: Rows,
    beta: Array,
    mu: Array,
    slope: Array,
    values: tuple[Array, Array, Array],
    iterations: Array,
    tolerance: Any,
) -> Selection:
    """The `Selection` of a solution `beta`, including its evidence.

    **Arguments:**

    - `rows`: the form in which the equations `X beta = y` were solved.
    - `mu`: the multipliers of that form.
    - `slope`: (d,). The gradient of the potential, which must lie in the row space of
      X.
    - `values`: the primal value, the dual value, and the scale by which their
      difference is divided.
    - `iterations`: the number of Newton steps.
    - `tolerance`: the largest feasibility that counts as converged.
    """
    tiny = jnp.finfo(X.dtype).tiny
    feasibility = backward_error(X, y, beta)
    basis = row_space(X) if rows.transform is None else rows.rows
    outside = slope - basis.T @ (basis @ slope)
    stationarity = jnp.linalg.norm(outside) / jnp.maximum(jnp.linalg.norm(slope), tiny)
    primal, dual, scale = values
    gap = jnp.abs(primal - dual) / jnp.maximum(scale, tiny)
    return Selection(
        beta,
        rows.multipliers(mu),
        feasibility,
        stationarity,
        gap,
        iterations,
        feasibility <= tolerance,
    )


def row_space(X: Float[Array, "n d"]) -> Float[Array, "k d"]:
    """Orthonormal rows (k, d), k = min(n, d), that span the row space of X. If X is
    rank-deficient, the superfluous rows are zero.
    """
    _, singular, rows = jnp.linalg.svd(jax.lax.stop_gradient(X), full_matrices=False)
    keep = singular > singular[0] * max(X.shape) * jnp.finfo(X.dtype).eps
    return jnp.where(keep[:, None], rows, 0)


def per_feature(value: Any, name: str, problem: SparseRegression) -> Array:
    """One number per feature, shape (d,), from a scalar or an array.

    **Raises:** `ValueError`, with the argument's `name`, for other shapes and for
    numbers that are not finite.
    """
    array = as_float_array(value, name).astype(problem.dtype)
    check_finite(array, name)
    if array.ndim not in (0, 1) or (array.ndim == 1 and array.shape[0] != problem.d):
        raise ValueError(
            f"`{name}` must be a scalar or have shape ({problem.d},), but has shape "
            f"{array.shape}; for several at once use jax.vmap"
        )
    return jnp.broadcast_to(array, (problem.d,))


def solve_psd(H: Array, v: Array, *, refine: bool = True) -> Array:
    """Solve with a positive semi-definite matrix whose rows may differ in scale and may
    repeat.

    The matrix is scaled to unit diagonal, a tiny ridge is added, and one step of
    iterative refinement follows. Eigenvalues below rounding belong to directions in
    which beta hardly moves, so the ridge there does not change the solution.
    """
    unit, factor, scale = _unit_factor(H)
    scale = scale.reshape((-1,) + (1,) * (v.ndim - 1))
    w = v / scale
    x = jax.scipy.linalg.cho_solve((factor, False), w)
    if refine:
        x = x + jax.scipy.linalg.cho_solve((factor, False), w - unit @ x)
    return x / scale


def factor_psd(H: Array) -> Array:
    """The upper triangular factor with which `solve_psd` solves, for
    `jax.scipy.linalg.cho_solve`.
    """
    _, factor, scale = _unit_factor(H)
    return factor * scale[None, :]


def _unit_factor(H: Array) -> tuple[Array, Array, Array]:
    # Four times the smallest number, so that the product of two roots does not vanish.
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(H), 4 * jnp.finfo(H.dtype).tiny))
    unit = H / (scale[:, None] * scale[None, :])
    ridge = 8 * H.shape[0] * jnp.finfo(H.dtype).eps
    return (
        unit,
        jax.scipy.linalg.cho_factor(unit + ridge * jnp.eye(H.shape[0], dtype=H.dtype))[0],
        scale,
    )
