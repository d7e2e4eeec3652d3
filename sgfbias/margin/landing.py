"""The KKT point of a max-margin problem that lies below given weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from sgfbias.core.checks import as_float, as_whole, check_positive
from sgfbias.core.problem import Problem
from sgfbias.margin.certificate import Certificate, certify
from sgfbias.margin.degree import check_homogeneous
from sgfbias.margin.linear import least_distance
from sgfbias.margin.point import (
    Point,
    check_fitted,
    derivatives,
    flat,
    geometry_of,
    margins_at,
    point_of,
)

# Steps below this fraction of the way to the solution of the linearised problem are
# lost in rounding.
SHORTEST = 1e-12
# Gradients below this fraction of the largest count as 0.
DEAD = 1e-12
# Constraints with a margin below 1 + NEAR are looked at first.
NEAR = 0.2


class Landed(NamedTuple):
    """What `land` found.

    - `network`: the model with the weights at the end, in the scale `q_min = 1`.
    - `certificate`: the `Certificate` of these weights in the geometry.
    - `moved_degrees`: the angle between the weights at the start and at the end, in the
      inner product of the geometry.
    - `iterations`: the number of problems of least distance that were solved.
    - `reached`: whether the stationarity is at most the tolerance.
    """

    network: Any
    certificate: Certificate
    moved_degrees: float
    iterations: int
    reached: bool

    def __repr__(self) -> str:
        found = self.certificate
        return (
            ("landed" if self.reached else "did not land")
            + f" in {found.geometry} after {self.iterations} iterations: margin "
            f"{found.margin:.6g}, stationarity {found.stationarity:.1e}, complementarity "
            f"{found.complementarity:.1e}, {found.support} of {found.margins.size} constraints "
            f"support it; moved by {self.moved_degrees:.3g} degrees"
            + (
                ""
                if self.reached
                else ". The norm could not be lowered further: at a kink of the model there may be "
                "no lower weights although the gradients on one side of it do not balance; or "
                "take more iterations (`most`)"
            )
        )


def land(
    run: Any,
    problem: Problem | None = None,
    *,
    geometry: Any = "l2",
    tol: float = 1e-6,
    most: int = 1000,
    trainable: Any = None,
) -> Landed:
    """A KKT point of `min |w|^2/2 s.t. q >= 1` below the weights at the end of a run.

    Each iteration solves the problem whose constraints are linearised at the weights w,
    `min |u| s.t. J u >= 1 + (L - 1) q` with `q_min(w) = 1` and the gradients J of the
    margins, by non-negative least squares. It then moves from w towards u, as far as
    the norm falls when `q_min = 1` is restored. So the normalised margin never falls.

    This gives a KKT point whose margin is at least that of the run. It is not a proof
    that the run would end there: other KKT points may lie nearer, and another optimiser
    may land at the same one. `moved_degrees` says how far the direction has moved; see
    `which` for what the run itself obeys. Runs that land where they are within a degree
    or two were there already.

    Weights on which no margin depends, such as those of dead units, are set to 0 first.
    The gradients of all margins, (n (C - 1), P) numbers, are held in memory. On models
    with kinks (ReLU) the end may be a kink, at which no gradients of one side balance;
    `reached` is False then, and the certificate says how far they are from it.

    **Arguments:**

    - `run`: a single run, or a model, which needs the `problem`.
    - `problem`: the data with a loss of classification, for a model.
    - `geometry`: "l2"; "metric" for the norm `sum w^2 / h` with the conditioner of the
      run; or the numbers 1/h, one for every weight, in the order of the arrays.
    - `tol`: the stationarity `|w - J^T multipliers| / |w|` at which it ends.
    - `most`: the number of iterations after which it ends anyhow.
    - `trainable`: which arrays are weights, as it was in `simulate`.

    **Returns:** a `Landed`, which can be printed.

    **Raises:** `ValueError` for weights that do not fit the data (`q_min <= 0`), for
    the geometry "linf", whose linearised problems have many solutions, for several runs
    at once, for a run that moved other arrays than those of `trainable`, and for a
    model that is not homogeneous.
    """
    check_positive(as_float(tol, "tol"), "tol")
    most = as_whole(most, "most")
    at = point_of(run, problem, trainable, verb="land")
    name, metric = geometry_of(geometry, at)
    if name == "linf":
        raise ValueError(
            "`land` is for the geometries 'l2' and 'metric', but geometry='linf': the linearised "
            "problems of l_inf have many solutions; certify(run, geometry='linf') and which(run) "
            "say how near the run is"
        )
    degree = check_homogeneous(at.coordinates, at.position, at.problem.inputs).degree
    given = flat(at.position)
    root = np.ones(given.size) if isinstance(metric, str) else np.sqrt(np.asarray(metric))
    w = _rescaled(at, _without_dead(at, given), degree)
    reached, beta, count = False, 1.0, 0
    while count < most:
        count += 1
        q, rows, _ = derivatives(at, _position(at, w))
        q = q.reshape(-1)
        size = float(np.linalg.norm(root * w))
        u = _nearest(rows / root, 1 + (degree - 1) * q, q, size) / root
        reached = float(np.linalg.norm(root * (w - u))) <= tol * size
        if reached:
            break
        beta = min(1.0, 2 * beta)
        while beta > SHORTEST:
            trial = _rescaled(at, w + beta * (u - w), degree)
            if trial is not None and np.linalg.norm(root * trial) < size:
                break
            beta /= 2
        else:
            break
        w = trial
    network = at.coordinates.decode(_position(at, w))
    cosine = float(np.sum(root**2 * w * given))
    cosine /= float(np.linalg.norm(root * w) * np.linalg.norm(root * given))
    certificate = certify(
        network,
        at.problem,
        geometry="l2" if isinstance(metric, str) else np.asarray(metric),
        trainable=trainable,
    )
    return Landed(
        network, certificate, float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), count, reached
    )


def _position(at: Point, w: np.ndarray) -> Any:
    """Flat weights as a position."""
    like, unravel = jax.flatten_util.ravel_pytree(at.position)
    return unravel(jnp.asarray(w, like.dtype))


def _rescaled(at: Point, w: np.ndarray, degree: float) -> Any:
    """The weights in the scale `q_min = 1`, or None where `q_min` is not positive."""
    least = float(jnp.min(margins_at(at.coordinates, _position(at, w), at.problem)))
    return w * least ** (-1 / degree) if least > 0 else None


def _without_dead(at: Point, w: np.ndarray) -> np.ndarray:
    """The weights with 0 for those on which no margin depends.

    **Raises:** `ValueError` for weights that do not fit the data.
    """
    q, rows, _ = derivatives(at, _position(at, w))
    check_fitted(q)
    dead = np.abs(rows).max(axis=0) <= DEAD * np.abs(rows).max()
    bare = np.where(dead, 0.0, w)
    same = np.asarray(margins_at(at.coordinates, _position(at, bare), at.problem), np.float64)
    return bare if np.allclose(same, q, rtol=1e-9, atol=1e-9 * np.abs(q).max()) else w


def _nearest(A: np.ndarray, b: np.ndarray, q: np.ndarray, size: float) -> np.ndarray:
    """`argmin |v| s.t. A v >= b`, of which `size` is an upper bound.

    Most constraints with a large margin q do not matter, so the problem is solved for
    the others, and again with those that its solution violates, until there are none.
    """
    kept = q < 1 + NEAR
    while True:
        v = _least(A[kept], b[kept], size)
        violated = (A @ v < b - 1e-10 * np.abs(b)) & ~kept
        if not violated.any():
            return v
        kept |= violated


def _least(A: np.ndarray, b: np.ndarray, size: float) -> np.ndarray:
    """`argmin |v| s.t. A v >= b`. With more weights than constraints the solution lies
    in the span of the rows, so the problem is reduced to that.
    """
    m, p = A.shape
    if p <= m:
        return least_distance(A, b / size)[0] * size
    basis, triangle = np.linalg.qr(A.T)
    return basis @ (least_distance(triangle.T, b / size)[0] * size)
