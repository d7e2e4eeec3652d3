"""The linear algebra of the equations `X beta = y`: whether they can be solved up to
rounding, and the form in which they are solved when X is ill-conditioned.

Data in their natural units have condition numbers of 1e4 and more. The residual of the
best solution in floating point is then of the size of the rounding of `|X| |beta|`,
which is far larger than `|y|` times a unit of rounding. So solutions are judged by
their backward error, the relative change of the data that makes them exact (Oettli,
Prager 1964).
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import is_concrete, numpy_for

# Backward errors that are accepted, in units of rounding times the root of the larger
# side of X: as a solution, and as a solution found without near-dependent rows.
SOLVED, WELL_SOLVED = 50, 5


def backward_error(X: Any, y: Any, beta: Any) -> Any:
    """`|X beta - y|_2 / |(|X| |beta| + |y|)|_2`, with every equation divided by the
    norm of its row of X.

    In a single equation this is the smallest relative change of its data, entry by
    entry, that makes `beta` an exact solution (Oettli, Prager 1964). Of several
    equations it is the root mean square, weighted by their sizes. It does not depend on
    the units of the features or of the examples. It is 0 if both sides are 0.

    **Arguments:**

    - `X`: (n, d).
    - `y`: (n,).
    - `beta`: (d,).
    """
    xp = numpy_for((X, y, beta))
    rows = xp.linalg.norm(X, axis=1)
    rows = xp.where(rows > 0, rows, 1)
    rest = xp.linalg.norm((X @ beta - y) / rows)
    size = xp.linalg.norm((xp.abs(X) @ xp.abs(beta) + xp.abs(y)) / rows)
    return rest / xp.maximum(size, xp.finfo(X.dtype).tiny)


class Rows(NamedTuple):
    """The equations in the form in which they are solved, `rows beta = transform y`.

    - `rows`: (k, d). The rows of X; or, if X is ill-conditioned or has dependent rows,
      an orthonormal basis of their span.
    - `transform`: (k, n). It takes X to `rows`. None stands for the identity.
    """

    rows: Float[Array, "k d"]
    transform: Float[Array, "k n"] | None

    def targets(self, y: Any) -> Any:
        """The targets (..., k) of the transformed equations, from those of the original
        ones (..., n).
        """
        return y if self.transform is None else y @ self.transform.T

    def multipliers(self, mu: Array) -> Array:
        """The multipliers (..., n) of the original equations, from those of the
        transformed ones (..., k).
        """
        return mu if self.transform is None else mu @ self.transform

    def coordinates(self, X: Array, nu: Array) -> Array:
        """The multipliers (..., k) of the transformed equations, from those of the
        original ones `X beta = y`, (..., n).
        """
        return nu if self.transform is None else (nu @ X) @ self.rows.T

    def tolerance(self, tolerance: Any) -> Any:
        """The relative residual at which a solver may stop. With transformed equations
        it goes on until rounding stops it: features in very different units may hide an
        error of single equations in a residual over all of them.
        """
        return tolerance if self.transform is None else 0 * tolerance


def rows_of(X: Any, y: Any) -> Rows:
    """The form in which `X beta = y` is solved. Data with clearly independent rows, and
    data that are being traced, stay as they are.

    **Arguments:**

    - `X`: (n, d).
    - `y`: (n,). They may be traced; then the numerical rank of X is that of its dtype.
    """
    if not is_concrete(X) or clearly_independent(X):
        return Rows(X, None)
    return orthonormal_rows(X, y)


def orthonormal_rows(X: Any, y: Any) -> Rows:
    """An orthonormal basis of the rows of X, which is not traced, with the equations
    `X beta = y` in it.
    """
    factors = _factors(X)
    rank = factors.rank(jnp.finfo(X.dtype).eps)
    # Rows of float32 that are independent only in float64 count as independent if the
    # targets need them.
    if is_concrete(y) and not factors.fits(X, y, rank, WELL_SOLVED):
        rank = factors.rank(np.finfo(np.float64).eps)
    if rank == 0:
        return Rows(X, None)
    return Rows(
        jnp.asarray(factors.right[:rank], X.dtype),
        jnp.asarray(factors.transform(rank), X.dtype),
    )


def solvable(X: Any, y: Any) -> bool:
    """Whether some beta solves `X beta = y` up to rounding. Data that are being traced
    are taken to be solvable.

    The equations are solvable if the rows of X are independent in float64, or if the
    best beta has a backward error of some units of rounding of the data's dtype. Its
    residual must then also be small against y, since an enormous beta makes any
    backward error small.
    """
    if not is_concrete((X, y)) or clearly_independent(X):
        return True
    factors = _factors(X)
    rank = factors.rank(np.finfo(np.float64).eps)
    return rank == X.shape[0] or factors.fits(X, y, rank)


class _Factors(NamedTuple):
    """The singular value decomposition, in float64, of X with its rows scaled to unit
    length.
    """

    scale: np.ndarray  # (n,), the norms of the rows
    left: np.ndarray
    singular: np.ndarray
    right: np.ndarray

    def rank(self, eps: Any) -> int:
        n, d = len(self.scale), self.right.shape[1]
        return int(np.sum(self.singular > self.singular[0] * max(n, d) * float(eps)))

    def transform(self, rank: int) -> np.ndarray:
        unit = self.left[:, :rank] / self.scale[:, None]
        return (unit / self.singular[:rank]).T

    def fits(self, X: Any, y: Any, rank: int, accepted: int = SOLVED) -> bool:
        eps = float(jnp.finfo(X.dtype).eps)
        X, y = np.asarray(X, np.float64), np.asarray(y, np.float64)
        beta = self.right[:rank].T @ (self.transform(rank) @ y)
        gap = np.linalg.norm((X @ beta - y) / self.scale)
        return bool(
            backward_error(X, y, beta) <= accepted * eps * max(X.shape) ** 0.5
            and gap <= eps**0.5 * np.linalg.norm(y / self.scale)
        )


def _factors(X: Any) -> _Factors:
    return _remembered(X, "factors", _factorised)


def _factorised(X: np.ndarray) -> _Factors:
    scale = np.linalg.norm(X, axis=1)
    scale = np.where(scale > 0, scale, 1)
    return _Factors(scale, *np.linalg.svd(X / scale[:, None], full_matrices=False))


def clearly_independent(X: Any) -> bool:
    """Whether the rows are clearly linearly independent, so that any targets can be
    fitted, and so well-conditioned that nothing has to be done for accuracy. This is
    far cheaper than a decomposition.
    """
    least = 0.03 if jnp.finfo(X.dtype).eps < 1e-10 else 0.1
    return _remembered(X, "independence", _independence) > least


def _independence(X: np.ndarray) -> float:
    """The smallest distance of a row, scaled to unit length, from the span of those
    before it.
    """
    rows = np.linalg.norm(X, axis=1)
    if X.shape[0] > X.shape[1] or rows.min() == 0:
        return 0.0
    unit = X / rows[:, None]
    try:
        return float(np.diagonal(np.linalg.cholesky(unit @ unit.T)).min())
    except np.linalg.LinAlgError:
        return 0.0


_KNOWN: dict[tuple[int, str], tuple[weakref.ref, Any]] = {}


def _remembered(X: Any, name: str, compute: Any) -> Any:
    """What `compute` says of X, remembered for each JAX array, since such an array
    cannot change. On 1,000 x 10,000 inputs the cheaper question takes as long as five
    steps of 64 seeds.
    """
    if not isinstance(X, jax.Array):
        return compute(np.asarray(X, np.float64))
    place = id(X), name
    known = _KNOWN.get(place)
    if known is None or known[0]() is not X:
        forget = weakref.ref(X, lambda _: _KNOWN.pop(place, None))
        known = _KNOWN[place] = forget, compute(np.asarray(X, np.float64))
    return known[1]
