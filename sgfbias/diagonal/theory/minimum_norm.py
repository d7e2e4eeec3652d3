"""The interpolating solutions of smallest l2 and l1 norm, which are the limits of the
selected solution at large and at small alpha.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import is_concrete
from sgfbias.diagonal.problem import SparseRegression, check_regression
from sgfbias.diagonal.rows import clearly_independent, orthonormal_rows


def minimum_l2(problem: SparseRegression) -> Float[Array, " d"]:
    """The interpolating solution of smallest Euclidean norm, (d,): the limit alpha ->
    infinity.

    **Raises:** `ValueError` if no solution interpolates.
    """
    check_regression(problem)
    problem.require_interpolation()
    if not is_concrete(problem.X) or _even(problem):
        return jnp.linalg.lstsq(problem.X, problem.y)[0]
    rows = orthonormal_rows(problem.X, problem.y)
    return rows.targets(problem.y) @ rows.rows


def minimum_l1(problem: SparseRegression) -> Float[Array, " d"]:
    """An interpolating solution of smallest l1 norm (basis pursuit), (d,): the limit
    alpha -> 0. It is computed by SciPy's HiGHS, so not inside `jax.jit` or
    `jax.grad`.

    **Raises:** `ValueError` if no solution interpolates, `RuntimeError` if the linear
    program is not solved.
    """
    check_regression(problem)
    problem.require_interpolation()
    X, y = np.asarray(problem.X, np.float64), np.asarray(problem.y, np.float64)
    # HiGHS lets every equation be off by an absolute 1e-7.
    if (_even(problem) and 1e-2 < np.linalg.norm(y) < 1e4) or not y.any():
        return jnp.asarray(_basis_pursuit(X, y), problem.dtype)
    rows = orthonormal_rows(problem.X, problem.y)
    A = np.asarray(rows.rows, np.float64)
    b = np.asarray(rows.targets(problem.y), np.float64)
    size = float(np.linalg.norm(b))
    return jnp.asarray(size * _basis_pursuit(A, b / size, refinements=3), problem.dtype)


def _even(problem: SparseRegression) -> bool:
    """Whether the rows of X, which is not traced, are of moderate size and clearly
    independent. Other rows are solved for in an orthonormal basis of their span.
    """
    rows = np.linalg.norm(np.asarray(problem.X, np.float64), axis=1)
    return bool(rows.min() > 1e-2 and rows.max() < 1e4) and clearly_independent(problem.X)


def _basis_pursuit(X: np.ndarray, y: np.ndarray, refinements: int = 0) -> np.ndarray:
    """The refinements solve the program for the correction of the last solution, scaled
    up by its residual (Gleixner, Steffy, Wolter 2016).
    """
    parts, scale = np.zeros((2, X.shape[1])), 1.0
    for _ in range(1 + refinements):
        rest = y - X @ (parts[0] - parts[1])
        scale = max(float(np.linalg.norm(rest)), 1e-16) if parts.any() else 1.0
        moved = _linear_program(X, rest / scale, -parts.ravel() / scale)
        parts = parts + scale * moved.reshape(parts.shape)
    return parts[0] - parts[1]


def _linear_program(X: np.ndarray, y: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Two parts (2 d,) of smallest sum, each at least `least`, such that X times their
    difference is y.
    """
    from scipy.optimize import linprog

    bounds = np.stack([least, np.full_like(least, np.inf)], axis=1)
    result = linprog(
        np.ones(len(least)), A_eq=np.hstack([X, -X]), b_eq=y, bounds=bounds, method="highs"
    )
    if result.status != 0:
        raise RuntimeError(f"the linear program of basis pursuit was not solved: {result.message}")
    return result.x
