"""Which constrained problem a direction solves, with multipliers that anyone can
check.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sgfbias.core.checks import as_float
from sgfbias.core.problem import Problem
from sgfbias.core.trajectory import Status, Trajectory
from sgfbias.core.types import Dataset
from sgfbias.margin.degree import check_homogeneous
from sgfbias.margin.geometry import GEOMETRIES, alignment_gap, norm
from sgfbias.margin.linear import nonnegative
from sgfbias.margin.point import check_fitted, derivatives, flat, geometry_of, point_of

# A gap that is this many times smaller than at a tenth of nu falls. Those of networks
# fall slowly, as a small power of nu; one that has a limit above 0 comes to rest.
FALLS = 1.25


class Certificate(NamedTuple):
    """How far weights are from a KKT point of `min |w|^2/2 s.t. q >= 1`.

    All is in the scale `q_min = 1`, for the norm of the `geometry`. Of a run of
    `MarginDescent`, whose h is known up to a factor, the `margin` in "metric" has an
    arbitrary factor, which is another one at other times, and so have the multipliers.
    The gap, stationarity and complementarity do not depend on it.

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
    - `active`: positive; constraints with `q <= 1 + active` may have multipliers.
    - `trainable`: which arrays are weights, as it was in `simulate`.

    **Returns:** a `Certificate`, which can be printed.

    **Raises:** `ValueError` for weights that do not fit the data (`q_min <= 0`), for
    several runs at once, for a run without a conditioner and geometry "metric", for a
    run that moved other arrays than those of `trainable`, for an `active` that is not
    positive, and for a model that is not homogeneous.
    """
    if not as_float(active, "active") > 0:
        raise ValueError(
            "`active` must be positive, since constraints with q <= 1 + active may have "
            f"multipliers in the scale where the least q is 1, but is {active}"
        )
    at = point_of(run, problem, trainable, verb="certify")
    name, metric = geometry_of(geometry, at)
    degree = check_homogeneous(at.coordinates, at.position, at.problem.inputs).degree
    q, rows, gradient = derivatives(at, at.position)
    if at.gradient is not None:
        gradient = at.gradient
    w, least = flat(at.position), check_fitted(q)
    gap = float(alignment_gap(jnp.asarray(w), jnp.asarray(gradient), metric))
    size = float(norm(jnp.asarray(w), metric))
    scaled = w * least ** (-1 / degree)
    # grad q is homogeneous of degree L - 1.
    rows = rows.reshape(q.size, w.size) * least ** (-(degree - 1) / degree)
    shape, q = q.shape, q.reshape(-1) / least
    near = np.flatnonzero(q <= 1 + active)
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
        multipliers[near] = nonnegative(both, np.append(v, 0.0))
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
    - `ratios`: the gaps at a tenth of the last nu over those at the end; NaN for a
      model, which has no past.
    """

    geometries: tuple[str, ...]
    gaps: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def holds(self) -> tuple[str, ...]:
        """The geometries whose gap goes to zero, as far as the run says: it is below
        1e-6, or it is below 0.1 and has fallen by a factor of 1.25, at least, over the
        last tenfold of nu.
        """
        return tuple(
            name
            for name, gap, ratio in zip(*self, strict=True)
            if gap < 1e-6 or (gap < 0.1 and ratio > FALLS)
        )

    def __repr__(self) -> str:
        lines = []
        for name, gap, ratio in zip(*self, strict=True):
            line = f"{name:<7} gap {gap:.2e}"
            if ratio == ratio:
                times = (
                    f"{ratio:.3g} times smaller" if ratio >= 1 else f"{1 / ratio:.3g} times larger"
                )
                line += f", {times} than at a tenth of nu"
                line += ": goes to zero" if name in self.holds else ": stays"
            lines.append(line)
        return "\n".join(lines)


def which(run: Any, problem: Problem | None = None, *, trainable: Any = None) -> Which:
    """Which geometry the direction of a run obeys: one line for each, with the
    alignment gap at the end and at a tenth of the last nu.

    The geometry that the optimiser solves is the one whose gap goes to zero. Gaps of
    networks close slowly, because the logarithm of the norm grows as log(nu)/L, so look
    at the ratio and not at the size.

    **Arguments:**

    - `run`: a single run of this system, with the gaps among its series; or a model,
      which needs the `problem`. A model has no past, so it has gaps and no ratios, and
      no metric.
    - `problem`: the data with a loss of classification, for a model.
    - `trainable`: which arrays of a model are weights, as it was in `simulate`.

    **Returns:** a `Which`, which can be printed.

    **Raises:** `ValueError` for several runs at once, for runs without these series,
    and for a run that does not reach a tenfold of a positive nu, with the reason why it
    ended if it gave up. Of such a run the times that it reached count.
    """
    if not isinstance(run, Trajectory):
        at = point_of(run, problem, trainable, verb="which")
        gradient = jnp.asarray(derivatives(at, at.position)[2])
        w, plain = jnp.asarray(flat(at.position)), ("l2", "linf")
        own = tuple(float(alignment_gap(w, gradient, name)) for name in plain)
        return Which(plain, own, (float("nan"),) * len(plain))
    if problem is not None:
        raise ValueError("a run has its own problem: leave `problem` out")
    if "gap_l2" not in run.series:
        raise ValueError(
            "`which` reads the series gap_l2, gap_linf and gap_metric of a run of MarginFlow: "
            "leave `record` out, or name them in it"
        )
    if jnp.ndim(run.status):
        raise ValueError("`which` takes a single run, but there is an axis of seeds")
    names = tuple(name for name in GEOMETRIES if f"gap_{name}" in run.series)
    rows = np.stack([np.abs(np.asarray(run[f"gap_{name}"])) for name in names])
    nus = np.asarray(run["nu"] if "nu" in run.series else run.times)
    # Of a run that gave up there are no values after its end.
    reached = np.isfinite(nus) & np.isfinite(rows).all(axis=0)
    nus, rows = nus[reached], rows[:, reached]
    last = float(nus[-1]) if nus.size else float("nan")
    if not (last > 0 and np.any((nus > 0) & (nus <= last / 10))):
        way = f"goes from nu = {nus[0]:.3g} to {last:.3g}" if nus.size else "has no finite values"
        ended = int(run.status) in (Status.GAVE_UP, Status.STALLED, Status.NON_FINITE)
        raise ValueError(
            f"`which` compares gaps at the last nu with those at a tenth of it, but the run {way}: "
            "take a larger t1, or more recorded times"
            + (f". The run {run.reason()}" if ended else "")
        )
    early = int(np.flatnonzero(nus <= last / 10)[-1])
    gaps, ratios = [], []
    for series in rows:
        gaps.append(float(series[-1]))
        ratios.append(float(series[early] / max(series[-1], np.finfo(np.float64).tiny)))
    return Which(names, tuple(gaps), tuple(ratios))


def _largest_weights(
    w: np.ndarray, rows: np.ndarray, slack: np.ndarray
) -> tuple[np.ndarray, float]:
    """Multipliers m >= 0 with `<w, J^T m> = |w|_inf` and the least sum of `|J^T m|_1`
    and of the complementarity, by HiGHS, and the stationarity that they prove.
    """
    from scipy import sparse
    from scipy.optimize import linprog

    m, d = rows.shape
    size = float(np.abs(w).max())
    # Variables are m and t >= |J^T m|.
    eye = sparse.eye_array(d)
    above = sparse.block_array([[rows.T, -eye], [-rows.T, -eye]], format="csc")
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
