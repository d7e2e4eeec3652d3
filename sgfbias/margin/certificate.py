"""Which constrained problem a direction solves, with multipliers that anyone can
check.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.network import declared_trainable
from sgfbias.core.problem import Problem
from sgfbias.core.trajectory import Trajectory
from sgfbias.core.types import Dataset
from sgfbias.core.weights import Weights, cast
from sgfbias.margin.degree import check_homogeneous
from sgfbias.margin.geometry import GEOMETRIES, alignment_gap, norm
from sgfbias.margin.objective import check_classification, margins_of, nu_and_gradient

# A gap that is this many times smaller than at a tenth of nu falls at least as a root.
FALLS = 2.0


class Certificate(NamedTuple):
    """How far weights are from a KKT point of `min |w|^2/2 s.t. q >= 1`.

    All is in the scale `q_min = 1`, for the norm of the `geometry`.

    - `geometry`: "l2", "linf" or "metric".
    - `margin`: the normalised margin, `q_min / |w|^L`.
    - `multipliers`: (n,) for one output, (n, C - 1) for classes; 0 where inactive.
    - `alignment_gap`: `1 - <w, G> / (|w| |G|_*)` with the gradient G of nu. It needs no
      multipliers: those are proportional to the losses of the examples.
    - `stationarity`: `|w - J^T multipliers| / |w|` with the gradients J of the margins,
      in the metric for "metric". For "linf", `1 - |w| / |J^T multipliers|_1` where
      `<w, J^T multipliers> = |w|`, which is 0 at a KKT point, too.
    - `complementarity`: the mean of q - 1, weighted by the multipliers.
    - `support`: the number of multipliers that are not 0.
    - `margins`: of the shape of the multipliers, q in this scale.
    - `degree`: L, the degree of the model.
    """

    geometry: str
    margin: float
    multipliers: np.ndarray
    alignment_gap: float
    stationarity: float
    complementarity: float
    support: int
    margins: np.ndarray
    degree: float

    def to_xarray(self) -> Dataset:
        """Everything as an `xarray.Dataset`."""
        import xarray as xr

        dims = ("example", "other_class")[: self.multipliers.ndim]
        data = {
            name: (dims, value) if np.ndim(value) else value
            for name, value in self._asdict().items()
            if name != "geometry"
        }
        dataset = xr.Dataset(data, attrs={"geometry": self.geometry})
        for name in dataset.data_vars:
            dataset[name].attrs["units"] = "1"
        return dataset

    def __repr__(self) -> str:
        return (
            f"Certificate in {self.geometry}: margin {self.margin:.6g}, "
            f"{self.support} of {self.margins.size} constraints support it\n"
            f"  alignment gap    {self.alignment_gap:.2e}\n"
            f"  stationarity     {self.stationarity:.2e}\n"
            f"  complementarity  {self.complementarity:.2e}"
        )


class Point(NamedTuple):
    """Weights that are certified: the problem, coordinates, position, and h or None."""

    problem: Problem
    coordinates: Weights
    position: Any
    conditioner: np.ndarray | None


def certify(
    run: Any,
    problem: Problem | None = None,
    *,
    geometry: Any = "l2",
    active: float = 0.1,
    trainable: Any = None,
) -> Certificate:
    """How far the weights at the end of a run are from a max-margin solution.

    **Arguments:**

    - `run`: a single run, or a model, which needs the `problem`.
    - `problem`: the data with a loss of classification, for a model.
    - `geometry`: "l2", "linf", or "metric" for `sum w^2 / h` with the conditioner of
      the run; or the numbers 1/h, one for every weight, in the order of the arrays.
    - `active`: constraints with `q < 1 + active` may have multipliers.
    - `trainable`: which arrays are weights, as it was in `simulate`.

    **Returns:** a `Certificate`, which can be printed.

    **Raises:** `ValueError` for weights that do not fit the data (`q_min <= 0`), for
    several runs at once, for a run without a conditioner and geometry "metric", and for
    a model that is not homogeneous.
    """
    from scipy.optimize import nnls

    at = _point(run, problem, trainable)
    name, metric = _geometry(geometry, at)
    degree = check_homogeneous(at.coordinates, at.position, at.problem.inputs).degree
    q, rows, gradient = (np.asarray(part, np.float64) for part in _linear(at))
    w = np.asarray(jax.flatten_util.ravel_pytree(at.position)[0], np.float64)
    least = float(q.min())
    if not least > 0:
        hardest = int(np.argmin(q.reshape(len(q), -1).min(axis=1)))
        raise ValueError(
            f"the data are not fitted: q_min = {least:.3g} for example {hardest}; the margin is "
            "defined once all are"
        )
    gap = float(alignment_gap(jnp.asarray(w), jnp.asarray(gradient), metric))
    size = float(norm(jnp.asarray(w), metric))
    scaled = w * least ** (-1 / degree)
    # grad q is homogeneous of degree L - 1.
    rows = rows.reshape(q.size, w.size) * least ** (-(degree - 1) / degree)
    shape, q = q.shape, q.reshape(-1) / least
    near = np.flatnonzero(q < 1 + active)
    multipliers = np.zeros(q.size)
    if name == "linf":
        multipliers[near], stationarity = _largest_weights(
            scaled, rows[near], (q[near] - 1) * degree
        )
    else:
        root = np.ones(w.size) if isinstance(metric, str) else np.sqrt(np.asarray(metric))
        v, A = scaled * root, rows[near] / root
        long = float(np.linalg.norm(v))
        # At a KKT point L sum lambda = |v|^2, so the last row is |v| times the
        # complementarity, and both are made small together.
        both = np.vstack([A.T, (q[near] - 1) * degree / long])
        multipliers[near] = nnls(both, np.append(v, 0.0), maxiter=30 * max(A.shape))[0]
        stationarity = float(np.linalg.norm(v - A.T @ multipliers[near]) / long)
    total = float(multipliers.sum())
    return Certificate(
        name,
        least / size**degree,
        multipliers.reshape(shape),
        gap,
        stationarity,
        float(multipliers @ (q - 1)) / total if total > 0 else float("inf"),
        int(np.count_nonzero(multipliers)),
        q.reshape(shape),
        degree,
    )


class Which(NamedTuple):
    """The alignment gaps of a run in every geometry, see `which`.

    - `geometries`: their names.
    - `gaps`: at the end.
    - `ratios`: the gaps at a tenth of the last nu over those at the end.
    """

    geometries: tuple[str, ...]
    gaps: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def holds(self) -> tuple[str, ...]:
        """The geometries whose gap goes to zero: it is below 1e-6, or it is below 0.1
        and has halved, at least, over the last tenfold of nu.
        """
        return tuple(
            name
            for name, gap, ratio in zip(*self, strict=True)
            if gap < 1e-6 or (gap < 0.1 and ratio > FALLS)
        )

    def __repr__(self) -> str:
        return "\n".join(
            f"{name:<7} gap {gap:.2e}, "
            + (f"{ratio:.3g} times smaller than" if ratio > 0 else "not smaller than")
            + " at a tenth of nu"
            + (": goes to zero" if name in self.holds else ": stays")
            for name, gap, ratio in zip(*self, strict=True)
        )


def which(run: Trajectory) -> Which:
    """Which geometry the direction of a run obeys: one line for each, with the
    alignment gap at the end and at a tenth of the last nu.

    The geometry that the optimiser solves is the one whose gap goes to zero. Gaps of
    networks close slowly, because the logarithm of the norm grows as log(nu)/L, so look
    at the ratio and not at the size.

    **Arguments:**

    - `run`: a single run of `MarginFlow`, with the gaps among its series.

    **Returns:** a `Which`, which can be printed.

    **Raises:** `ValueError` for several runs at once, for runs without these series,
    and for a run that does not reach a tenfold of a positive nu.
    """
    if not isinstance(run, Trajectory) or "gap_l2" not in run.series:
        raise ValueError(
            "`which` reads the series gap_l2, gap_linf and gap_metric of a run of MarginFlow: "
            "leave `record` out, or name them in it"
        )
    if jnp.ndim(run.status):
        raise ValueError("`which` takes a single run, but there is an axis of seeds")
    nus = np.asarray(run["nu"] if "nu" in run.series else run.times)
    last = float(nus[-1])
    if not (last > 0 and np.any((nus > 0) & (nus <= last / 10))):
        raise ValueError(
            f"`which` compares gaps at the last nu with those at a tenth of it, but the run goes "
            f"from nu = {nus[0]:.3g} to {last:.3g}: take a larger t1, or more recorded times"
        )
    early = int(np.flatnonzero(nus <= last / 10)[-1])
    gaps, ratios = [], []
    for name in GEOMETRIES:
        series = np.abs(np.asarray(run[f"gap_{name}"]))
        gaps.append(float(series[-1]))
        ratios.append(float(series[early] / max(series[-1], np.finfo(np.float64).tiny)))
    return Which(GEOMETRIES, tuple(gaps), tuple(ratios))


def _point(run: Any, problem: Problem | None, trainable: Any) -> Point:
    """The weights to certify.

    **Raises:** `ValueError` that says what to give.
    """
    h = None
    if isinstance(run, Trajectory):
        if problem is not None:
            raise ValueError("a run has its own problem: leave `problem` out")
        if jnp.ndim(run.status):
            raise ValueError(
                "a certificate is of one run, but there is an axis of seeds: give the network of "
                "one seed and the problem"
            )
        network, problem = run.networks, run.problem
        if "conditioner" in run.final:
            h = np.asarray(run.final["conditioner"], np.float64)
    else:
        network = run
        if not isinstance(problem, Problem):
            raise ValueError("certify(model, problem) needs the Problem that the model classifies")
    check_classification(problem)
    network = cast(network, problem.dtype)
    trainable = declared_trainable(network) if trainable is None else trainable
    coordinates = Weights(
        network, problem.dtype, trainable=True if trainable is None else trainable
    )
    return Point(problem, coordinates, coordinates.encode(network), h)


def _geometry(geometry: Any, at: Point) -> tuple[str, Any]:
    """The name of a geometry, and its norm as `norm` takes it."""
    if isinstance(geometry, str):
        if geometry not in GEOMETRIES:
            raise ValueError(
                f"`geometry` must be 'l2', 'linf', 'metric' or the numbers 1/h, but is {geometry!r}"
            )
        if geometry != "metric":
            return geometry, geometry
        if at.conditioner is None:
            raise ValueError(
                "geometry='metric' needs the conditioner of a run of MarginFlow: give such a run, "
                "or the numbers 1/h as the geometry"
            )
        return "metric", jnp.asarray(1 / at.conditioner)
    metric = np.asarray(geometry, np.float64)
    count = sum(leaf.size for leaf in jax.tree.leaves(at.position))
    if metric.shape != (count,) or not (np.isfinite(metric) & (metric > 0)).all():
        raise ValueError(
            f"a metric must have one positive number for each of the {count} weights, but has "
            f"shape {metric.shape}"
        )
    return "metric", jnp.asarray(metric)


def _linear(at: Point) -> tuple[Array, Array, Array]:
    """The margins, their gradients (one row for each), and the gradient of nu."""
    return _derivatives(at.coordinates, at.position, at.problem)


@eqx.filter_jit
def _derivatives(
    coordinates: Weights, position: Any, problem: Problem
) -> tuple[Array, Array, Array]:
    flat, unravel = jax.flatten_util.ravel_pytree(position)

    def q(w: Array) -> Array:
        outputs = coordinates.outputs(unravel(w), problem.inputs)
        return margins_of(problem.loss, outputs, problem.targets)

    _, gradient = nu_and_gradient(coordinates.linearise, position, problem)
    return q(flat), jax.jacrev(q)(flat), jax.flatten_util.ravel_pytree(gradient)[0]


def _largest_weights(
    w: np.ndarray, rows: np.ndarray, slack: np.ndarray
) -> tuple[np.ndarray, float]:
    """Multipliers m >= 0 with `<w, J^T m> = |w|_inf` and the least sum of `|J^T m|_1`
    and of the complementarity, by HiGHS, and the stationarity that they prove.
    """
    from scipy.optimize import linprog

    m, d = rows.shape
    size = float(np.abs(w).max())
    # Variables are m and t >= |J^T m|.
    above = np.block([[rows.T, -np.eye(d)], [-rows.T, -np.eye(d)]])
    found = linprog(
        np.concatenate([slack / size, np.ones(d)]),
        A_ub=above,
        b_ub=np.zeros(2 * d),
        A_eq=np.concatenate([rows @ w, np.zeros(d)])[None],
        b_eq=[size],
        method="highs",
    )
    if found.status != 0:
        raise ValueError(f"the linear program was not solved: {found.message}")
    return found.x[:m], float(1 - 1 / np.abs(rows.T @ found.x[:m]).sum())
