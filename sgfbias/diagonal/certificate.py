"""A selected solution with its evidence, and the linear algebra every programme here uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.checks import as_float_array, check_finite, is_concrete
from sgfbias.diagonal.problem import SparseRegression


class Selection(eqx.Module):
    """A selected solution and the evidence for it.

    - `beta` (d,), `multipliers` nu (n,).
    - `feasibility`: `|X beta - y|_2 / |y|_2`. `stationarity`: `|(I - P)(arcsinh(beta/2 alpha^2) - offset)|_2`, relative to the norm of
      what is projected, P the projector on the row space of X. `duality_gap`: primal minus dual value over the primal's scale; a few
      units of rounding at the optimum. `iterations`: Newton steps, simplified ones where a landing got by with them.
      `converged`: whether the feasibility met the tolerance.
    """

    references: ClassVar[Mapping[str, str]] = {
        "pesme2021": "the selected solution, Theorem 1",
        "woodworth2020": "the potential that it minimises",
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
            f"Selection(beta {self.beta.shape}, feasibility {float(self.feasibility):.1e}, stationarity {float(self.stationarity):.1e}, "
            f"duality gap {float(self.duality_gap):.1e}, {int(self.iterations)} iterations, "
            f"{'converged' if bool(self.converged) else 'NOT converged'})"
        )


def solver_tolerance(tolerance: float | None, dtype: Any) -> float:
    """The relative feasibility to ask for.

    **Raises:** `ValueError` for one below four units of rounding.
    """
    eps = float(jnp.finfo(dtype).eps)
    if tolerance is None:
        return 1e-12 if eps < 1e-10 else 1e-5
    if not tolerance >= 4 * eps:
        raise ValueError(
            f"tolerance={tolerance:g} is below what {jnp.dtype(dtype).name} can reach (about {4 * eps:.0e}); use a larger tolerance, or "
            "float64 data with jax.config.update('jax_enable_x64', True)"
        )
    return float(tolerance)


def certificate(
    X: Array, y: Array, beta: Array, nu: Array, slope: Array, values: tuple[Array, Array, Array], iterations: Array, tolerance: Any
) -> Selection:
    """The evidence for a solution: `slope` must lie in the row space of X; `values` are primal, dual and the scale of their difference."""
    tiny = jnp.finfo(X.dtype).tiny
    feasibility = jnp.linalg.norm(X @ beta - y) / jnp.maximum(jnp.linalg.norm(y), tiny)
    basis = row_space(X)
    outside = slope - basis.T @ (basis @ slope)
    stationarity = jnp.linalg.norm(outside) / jnp.maximum(jnp.linalg.norm(slope), tiny)
    primal, dual, scale = values
    gap = jnp.abs(primal - dual) / jnp.maximum(scale, tiny)
    return Selection(beta, nu, feasibility, stationarity, gap, iterations, feasibility <= tolerance)


def row_space(X: Float[Array, "n d"]) -> Float[Array, "k d"]:
    """Orthonormal rows spanning the row space of X, k = min(n, d); zero rows where X is rank-deficient."""
    _, singular, rows = jnp.linalg.svd(jax.lax.stop_gradient(X), full_matrices=False)
    keep = singular > singular[0] * max(X.shape) * jnp.finfo(X.dtype).eps
    return jnp.where(keep[:, None], rows, 0)


def per_feature(value: Any, name: str, problem: SparseRegression) -> Array:
    """A number per feature, (d,), from a scalar or an array; refuses other shapes and what is not finite, by the argument's name."""
    array = as_float_array(value, name).astype(problem.dtype)
    check_finite(array, name)
    if array.ndim not in (0, 1) or (array.ndim == 1 and array.shape[0] != problem.d):
        raise ValueError(
            f"`{name}` must be a scalar or have shape ({problem.d},), but has shape {array.shape}; for several at once use jax.vmap"
        )
    return jnp.broadcast_to(array, (problem.d,))


def solve_psd(H: Array, v: Array, *, refine: bool = True) -> Array:
    """Solve with a positive semi-definite matrix whose rows differ in scale and may repeat: unit diagonal, tiny ridge, one refinement.

    Directions below rounding are those in which beta hardly moves, so the ridge there does not change the solution.
    """
    unit, factor, scale = _unit_factor(H)
    scale = scale.reshape((-1,) + (1,) * (v.ndim - 1))
    w = v / scale
    x = jax.scipy.linalg.cho_solve((factor, False), w)
    if refine:
        x = x + jax.scipy.linalg.cho_solve((factor, False), w - unit @ x)
    return x / scale


def factor_psd(H: Array) -> Array:
    """The upper triangular factor by which `solve_psd` solves, for use with `jax.scipy.linalg.cho_solve`."""
    _, factor, scale = _unit_factor(H)
    return factor * scale[None, :]


def _unit_factor(H: Array) -> tuple[Array, Array, Array]:
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(H), jnp.finfo(H.dtype).tiny))
    unit = H / (scale[:, None] * scale[None, :])
    ridge = 8 * H.shape[0] * jnp.finfo(H.dtype).eps
    return unit, jax.scipy.linalg.cho_factor(unit + ridge * jnp.eye(H.shape[0], dtype=H.dtype))[0], scale
