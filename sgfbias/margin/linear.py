"""The maximal margin of linear models, in several norms, with multipliers.

In the scale `q_min = 1` the problem is `min |w| s.t. Z w >= 1`, where the rows of Z are
the gradients of the margins. It is solved by kept libraries: least-distance programming
by non-negative least squares, and linear programming by HiGHS.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

NORMS = ("l2", "l1", "linf")
# The norm of the solution, in units of the inverse of the largest example, beyond which
# a problem of least distance is solved again in units of its solution.
LONG = 10.0


class LinearMargin(NamedTuple):
    """The linear classifier of maximal margin, in the scale `q_min = 1`.

    - `weights`: (d,), or (C, d) for C classes.
    - `margin`: the least margin over the norm of the weights.
    - `multipliers`: (n,), or (n, C - 1) for C classes; 0 where inactive. Their sum is
      1 / margin for "l1" and "linf", and 1 / margin^2 for "l2" and a metric.
    - `gap`: the upper bound on any margin that the multipliers prove (weak duality)
      over `margin`, minus 1.
    """

    weights: np.ndarray
    margin: float
    multipliers: np.ndarray
    gap: float


def max_margin(X: Any, y: Any, norm: Any = "l2") -> LinearMargin:
    """The linear classifier whose least margin over its norm is maximal.

    **Arguments:**

    - `X`: (n, d), the examples.
    - `y`: (n,), labels -1 and 1 for `q_i = y_i <w, x_i>`; or class labels from 0 to
      C - 1 for the pairs `q_ij = <w_y - w_j, x_i>`.
    - `norm`: "l2", "l1", "linf", or a metric: positive numbers m, (d,) or the shape of
      the weights, for the norm `sqrt(sum m w^2)`.

    **Returns:** a `LinearMargin`.

    **Raises:** `ValueError` for data that no weights separate, for arguments that do
    not fit, and if a solver takes too many iterations.
    """
    X, y, Z, shape = _rows(X, y)
    if isinstance(norm, str):
        if norm not in NORMS:
            raise ValueError(f"`norm` must be 'l2', 'l1', 'linf' or a metric (d,), but is {norm!r}")
        metric = None
    else:
        metric = _metric(norm, shape)
    power = 1
    if metric is not None or norm == "l2":
        power = 2
        root = np.ones(Z.shape[1]) if metric is None else np.sqrt(metric)
        A, unit = _scaled(Z / root)
        v, multipliers = least_distance(A, np.ones(len(A)))
        if (size := float(np.linalg.norm(v))) > LONG:
            # The last residual is 1 / (1 + |v|^2), which loses digits where v is long.
            v, multipliers = (size * part for part in least_distance(A, np.full(len(A), 1 / size)))
        Z, w = A * root, v / root
        size, bound = float(np.linalg.norm(v)), float(np.linalg.norm(A.T @ multipliers))
    elif norm == "linf":
        Z, unit = _scaled(Z)
        w, multipliers = _linear_program(Z, infinite=True)
        size, bound = float(np.abs(w).max()), float(np.abs(Z.T @ multipliers).sum())
    else:
        Z, unit = _scaled(Z)
        w, multipliers = _linear_program(Z, infinite=False)
        size, bound = float(np.abs(w).sum()), float(np.abs(Z.T @ multipliers).max())
    least = float((Z @ w).min())
    margin = least / size  # of the scaled examples, as the bound is
    pairs = (len(X),) if len(shape) == 1 else (len(X), shape[0] - 1)
    return LinearMargin(
        (w / least / unit).reshape(shape),
        margin * unit,
        (multipliers / unit**power).reshape(pairs),
        bound / multipliers.sum() / margin - 1,
    )


def least_distance(A: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`min |v| s.t. A v >= b`, and multipliers u >= 0 with `v = A^T u`.

    This is least-distance programming (Lawson, Hanson 1974, chapter 23): with the
    solution u of non-negative least squares on the matrix `[A^T; b^T]` and the right
    side `e_last`, and its residual r, `v = -r_head / r_last`.

    **Raises:** `ValueError` if no v satisfies the constraints, and as `nonnegative`.
    """
    E = np.vstack([A.T, b])
    f = np.zeros(len(E))
    f[-1] = 1
    u = nonnegative(E, f)
    r = E @ u - f
    if -r[-1] < 1e-13 * max(1.0, float(np.abs(b).max()) * float(u.sum())):
        raise ValueError(
            "the data are not separable: no weights give every example a positive margin, so there "
            "is no maximal one"
        )
    return -r[:-1] / r[-1], u / -r[-1]


def nonnegative(E: np.ndarray, f: np.ndarray) -> np.ndarray:
    """`argmin |E u - f|` over u >= 0, by non-negative least squares.

    **Raises:** `ValueError` if that takes too many iterations.
    """
    from scipy.optimize import nnls

    most = 30 * max(E.shape)
    try:
        return nnls(E, f, maxiter=most)[0]
    except RuntimeError as error:
        raise ValueError(
            f"non-negative least squares did not end within {most:,} iterations for "
            f"{E.shape[1]:,} constraints and {len(E) - 1:,} numbers: some constraints are nearly "
            "the same or nearly opposite; leave out examples that occur twice"
        ) from error


def _scaled(Z: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows over a unit, and the unit: the power of 2 for which the longest row has a
    norm between 1 and 2. So the solvers' tolerances do not depend on the units of the
    data, and nothing is rounded.
    """
    top = float(np.abs(Z).max())
    if top == 0:
        return Z, 1.0
    longest = top * float(np.linalg.norm(Z / top, axis=1).max())
    unit = 2.0 ** (np.frexp(longest)[1] - 1)
    return Z / unit, float(unit)


def _linear_program(Z: np.ndarray, *, infinite: bool) -> tuple[np.ndarray, np.ndarray]:
    """The weights of least largest or absolute sum with `Z w >= 1`, and multipliers."""
    from scipy import sparse
    from scipy.optimize import linprog

    m, d = Z.shape
    if infinite:  # variables w and t >= |w|
        cost = np.concatenate([np.zeros(d), [1.0]])
        eye, one = sparse.eye_array(d), np.ones((d, 1))
        above = sparse.block_array([[-Z, None], [eye, -one], [-eye, -one]], format="csc")
        limits = np.concatenate([-np.ones(m), np.zeros(2 * d)])
        bounds = [(None, None)] * d + [(0, None)]
    else:  # w = p - q with p, q >= 0
        cost, above, limits = np.ones(2 * d), np.hstack([-Z, Z]), -np.ones(m)
        bounds = [(0, None)] * (2 * d)
    found = linprog(cost, A_ub=above, b_ub=limits, bounds=bounds, method="highs")
    if found.status == 2:
        raise ValueError(
            "the data are not separable: no weights give every example a positive margin, so there "
            "is no maximal one"
        )
    if found.status != 0:
        raise ValueError(f"the linear program was not solved: {found.message}")
    w = found.x[:d] if infinite else found.x[:d] - found.x[d:]
    multipliers = np.maximum(-found.ineqlin.marginals[:m], 0)
    sharper = _sharper(Z, w, multipliers, infinite=infinite)
    return min((w, multipliers), sharper, key=lambda pair: abs(_gap(Z, *pair, infinite=infinite)))


def _gap(Z: np.ndarray, w: np.ndarray, multipliers: np.ndarray, *, infinite: bool) -> float:
    """The gap that multipliers prove for weights; infinite for multipliers below 0."""
    if (multipliers < 0).any() or not multipliers.any():
        return float("inf")
    size, mixed = np.abs(w), np.abs(Z.T @ multipliers)
    bound = mixed.sum() if infinite else mixed.max()
    long = size.max() if infinite else size.sum()
    return float(bound / multipliers.sum() * long / (Z @ w).min() - 1)


def _sharper(
    Z: np.ndarray, w: np.ndarray, multipliers: np.ndarray, *, infinite: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and multipliers from the equations that hold at the solution.

    A linear program is solved up to a tolerance; which constraints are active is known
    exactly from it.
    """
    active = Z[multipliers > 1e-9 * multipliers.max()]
    mixed = Z.T @ multipliers
    sizes = np.abs(mixed if infinite else w)
    at = sizes > 1e-7 * sizes.max()
    signs = np.where(at, np.sign(mixed if infinite else w), 0.0)
    if infinite:  # Z w = 1 with w = t signs where `at`, and sum_at signs Z^T m = 1, 0 elsewhere
        free = np.eye(len(w))[:, ~at]
        basis = np.column_stack([signs, free])
        new = basis @ np.linalg.lstsq(active @ basis, np.ones(len(active)), rcond=None)[0]
        equations = np.vstack([signs @ active.T, active.T[~at]])
        aim = np.concatenate([[1.0], np.zeros(int((~at).sum()))])
    else:  # Z w = 1 with w = 0 except `at`, and Z^T m = signs there
        new = np.zeros_like(w)
        new[at] = np.linalg.lstsq(active[:, at], np.ones(len(active)), rcond=None)[0]
        equations, aim = active.T[at], signs[at]
    better = np.zeros_like(multipliers)
    better[multipliers > 1e-9 * multipliers.max()] = np.linalg.lstsq(equations, aim, rcond=None)[0]
    return new, better


def _rows(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """The data, the gradients of all margins (rows), and the shape of the weights."""
    X, y = np.asarray(X, np.float64), np.asarray(y)
    if X.ndim != 2 or y.shape != X.shape[:1] or len(X) == 0:
        raise ValueError(
            f"`X` must have shape (n, d) and `y` shape (n,), but they have {X.shape} and {y.shape}"
        )
    if not np.isfinite(X).all():
        raise ValueError("`X` has entries that are NaN or infinite")
    values = set(np.unique(y).tolist())
    if values <= {-1, 1}:
        return X, y, X * y[:, None], (X.shape[1],)
    if not all(v >= 0 and v == int(v) for v in values) or len(values) < 2:
        shown = ", ".join(f"{v:g}" for v in sorted(values)[:5])
        raise ValueError(
            "`y` must have labels -1 and 1, or class labels from 0 to C - 1, but takes the values "
            f"{shown}"
        )
    y = y.astype(int)
    if y.min() > 0:
        raise ValueError(
            f"the least class label is {y.min()}, so that class 0 has no examples: number the "
            "classes from 0, as numpy.unique(y, return_inverse=True)[1] does"
        )
    (n, d), count = X.shape, int(y.max()) + 1
    Z = np.zeros((n, count - 1, count, d))
    for i in range(n):
        others = [j for j in range(count) if j != y[i]]
        for k, j in enumerate(others):
            Z[i, k, y[i]], Z[i, k, j] = X[i], -X[i]
    return X, y, Z.reshape(n * (count - 1), count * d), (count, d)


def _metric(norm: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A metric as numbers for all weights.

    **Raises:** `ValueError` unless all are positive and as many as there are weights.
    """
    metric = np.asarray(norm, np.float64)
    if metric.shape not in (shape, shape[-1:]) or not (np.isfinite(metric) & (metric > 0)).all():
        raise ValueError(
            f"a metric must have positive numbers of shape {shape[-1:]} or {shape}, but has shape "
            f"{metric.shape}" + ("" if metric.size == 0 else f" and least entry {metric.min():g}")
        )
    return np.broadcast_to(metric, shape).reshape(-1)
