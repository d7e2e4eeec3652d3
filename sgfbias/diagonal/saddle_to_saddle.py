"""As alpha -> 0 gradient flow jumps between saddles: the flow at alphas down to 1e-120 against the algorithm of the limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import PchipInterpolator

from sgfbias.core.flow import GradientFlow
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.trajectory import Status, Trajectory
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.saddle_to_saddle_claims import claims as claims
from sgfbias.diagonal.saddle_to_saddle_claims import plot as plot
from sgfbias.diagonal.saddles import SaddlePath, first_jump_constant, greedy_path, saddle_path
from sgfbias.diagonal.selection import minimum_l1

LONGER = 1.25  # times the last predicted jump
REFINEMENTS = 2  # of the recorded times around the jumps


@dataclasses.dataclass(frozen=True)
class SaddleToSaddleConfig:
    """Gradient flow from tiny initialisations on several problems: jump times, visited saddles, dual path and limit against the algorithm."""

    problems: int = 8
    """Drawn problems, of seeds problem_seed, problem_seed + 1, ..."""
    decades: tuple[float, ...] = (10.0, 20.0, 60.0, 120.0)
    """alpha = 10^-decades, increasing; log alpha is the state, so these do not underflow."""
    coarse: float = 2.0
    """Decades of the control, an alpha that is not small."""
    n: int = 10
    """Examples."""
    d: int = 25
    """Features."""
    sparsity: int = 3
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the first problem."""
    shown: int = 4
    """Number of the problem whose course is in the picture."""
    points: int = 2000
    """Recorded times of a run; it is run twice again with as many closer and closer around the jumps."""
    rtol: float = 1e-9
    """Relative tolerance of the adaptive solver."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        if self.problems < 2:
            raise ValueError(f"problems must be at least 2, but is {self.problems}")
        if len(self.decades) < 3 or list(self.decades) != sorted(set(self.decades)) or not np.isfinite(self.decades[-1]):
            raise ValueError(f"decades must be at least 3 increasing finite numbers, but are {self.decades}")
        if not 0 < self.coarse < self.decades[0]:
            raise ValueError(f"coarse must be between 0 and the first of decades, {self.decades[0]}, but is {self.coarse}")
        if not 0 <= self.shown < self.problems:
            raise ValueError(f"shown must be the number of a problem, 0 to {self.problems - 1}, but is {self.shown}")
        if self.n >= self.d:
            raise ValueError(f"n must be below d = {self.d}, so that there are many interpolators, but is {self.n}")
        if self.points < 200:
            raise ValueError(f"points must be at least 200, but is {self.points}")
        if not 1e-14 < self.rtol <= 1e-6:
            raise ValueError(f"rtol must be between 1e-14 and 1e-6, but is {self.rtol}")


Config = SaddleToSaddleConfig
# The paper shows single runs on a few features; at its full size this study has more problems, more features and a smaller alpha.
PAPER = SaddleToSaddleConfig(problems=32, decades=(10.0, 20.0, 60.0, 120.0, 240.0), n=20, d=50, sparsity=5, points=4000)
REFERENCES = {
    "pesme2023": "saddles, jump times and the piecewise algorithm",
}


def run(config: SaddleToSaddleConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per problem.

    **Returns:** an `xarray.Dataset` with dimensions problem, decades, jump, saddle, tau and feature; rows of problems with fewer jumps end in
    NaN.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        levels = (config.coarse, *config.decades)
        rows: list[dict[str, np.ndarray]] = []
        shown: dict[str, Any] = {}
        for k in range(config.problems):
            key = jax.random.key(config.problem_seed + k)
            problem = SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
            path = saddle_path(problem)
            say(f"problem {k}: {len(path.times)} jumps up to tau = {path.times[-1]:.3g}, alpha = 1e-{levels[0]:g} to 1e-{levels[-1]:g}")
            runs = [_flow(config, problem, path, level, shown if k == config.shown else None) for level in levels]
            constant, rival = first_jump_constant(problem)
            shortest, ends = np.asarray(minimum_l1(problem)), np.linalg.norm(path.betas[-1])
            rows.append(
                {
                    "predicted_time": path.times,
                    "predicted_loss": path.losses,
                    "predicted_size": np.sum(path.betas != 0, axis=1),
                    "memoryless_time": _memoryless(path),
                    "relaxations": np.outer(np.asarray(levels) * np.log(10), path.relaxations(LONGER * path.times[-1])),
                    "l1_gap": np.asarray(np.linalg.norm(path.betas[-1] - shortest) / ends),
                    "first_constant": np.asarray(constant),
                    "rival": np.asarray(rival),
                    **{name: np.stack([row[name] for row in runs]) for name in runs[0]},
                }
            )
        out = Columns()
        for name, (dims, units) in VARIABLES.items():
            out.add(name, ("problem", *dims), _padded([np.asarray(row[name], np.float64) for row in rows]), units)
        for name, (dims, units) in SHOWN.items():
            out.add(name, dims, np.stack(shown[name]) if isinstance(shown[name], list) else shown[name], units)
        coords = {"decades": ("decades", np.asarray(levels), {"units": "log10(1/alpha)"}), "tau": shown["tau"][0]}
        attrs = attributes({"study": "saddle-to-saddle", **dataclasses.asdict(config)}, dtype=jnp.float64)
        return out.dataset(coords, attrs | {"study": "saddle-to-saddle"})


VARIABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "predicted_time": (("jump",), "flow time / log(1/alpha)"),
    "predicted_loss": (("saddle",), "loss"),
    "predicted_size": (("saddle",), "coordinates"),
    "memoryless_time": (("jump",), "flow time / log(1/alpha)"),
    "relaxations": (("decades", "saddle"), "relaxation times"),
    "l1_gap": ((), "relative distance"),
    "first_constant": ((), "flow time"),
    "rival": ((), "1"),
    "time": (("decades", "jump"), "flow time"),
    "saddle_gap": (("decades", "saddle"), "relative distance"),
    "greedy_gap": (("decades", "saddle"), "relative distance"),
    "dual_gap": (("decades",), "1"),
    "lost": (("decades",), "1"),
}
SHOWN: dict[str, tuple[tuple[str, ...], str]] = {
    "loss": (("decades", "tau"), "loss"),
    "beta": (("decades", "tau", "feature"), "target / input"),
    "path_loss": (("tau",), "loss"),
    "path_beta": (("tau", "feature"), "target / input"),
}


def _simulate(config: Config, problem: SparseRegression, log_scale: float, times: np.ndarray) -> Trajectory:
    """One flow in mirror coordinates. Explicit steps: at a saddle the implicit solver's Newton iteration divides 0 by 0, and stiff it is not."""
    network = DiagonalNetwork.init(log_alpha=-log_scale, d=problem.d, dtype=jnp.float64)
    flow = GradientFlow(rtol=config.rtol, atol=config.rtol / 100)
    record = Record({"beta": None, "log_ratio": _log_ratio}, times)
    return simulate(flow, network, problem, t1=float(times[-1]), coordinates="mirror", solver=dfx.Tsit5(), record=record)


def _log_ratio(network: DiagonalNetwork) -> Any:
    return network.log_ratio


def _flow(config: Config, problem: SparseRegression, path: SaddlePath, level: float, shown: dict[str, Any] | None) -> dict[str, np.ndarray]:
    """One alpha: when the loss is half way between consecutive saddles, where the flow is between these times, and its dual path."""
    log_scale = level * np.log(10)
    tau = np.linspace(0, LONGER * path.times[-1], config.points)
    runs = _simulate(config, problem, log_scale, tau * log_scale)
    loss, beta = np.asarray(runs["loss"]), np.asarray(runs["beta"])
    halves = (path.losses[1:] + path.losses[:-1]) / 2
    grid, closer, times = tau * log_scale, runs, _crossings(tau * log_scale, loss, halves)
    for _ in range(REFINEMENTS):
        grid = _around(grid, times, config.points)
        closer = _simulate(config, problem, log_scale, grid)
        times = _crossings(grid, np.asarray(closer["loss"]), halves)
    edges = np.concatenate([[0.0], times, [tau[-1] * log_scale * 2]])
    # Half way through each rest; at the end for the last one.
    middle = np.clip(np.searchsorted(tau * log_scale, (edges[1:] + edges[:-1]) / 2), 0, config.points - 1)
    visited, size = beta[middle], np.linalg.norm(path.betas[-1])
    greedy = greedy_path(problem, len(path.times))
    dual = np.asarray(runs["log_ratio"]) / (4 * log_scale)
    if shown is not None:
        k = path.piece(tau)
        for name, value in (("loss", loss), ("beta", beta), ("tau", tau)):
            shown.setdefault(name, []).append(value)
        shown.update(path_loss=path.losses[k], path_beta=path.betas[k])
    return {
        "time": times,
        "saddle_gap": np.linalg.norm(visited - path.betas, axis=1) / size,
        "greedy_gap": np.linalg.norm(visited - greedy, axis=1) / size,
        "dual_gap": np.abs(dual - path.dual(tau)).max(),
        "lost": np.asarray(any(run.status in (Status.NON_FINITE, Status.GAVE_UP) for run in (runs, closer))),
    }


def _crossings(times: np.ndarray, loss: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """First time at which the loss is below each level; infinite if never. By monotone cubic interpolation in its logarithm."""
    found = np.full(len(levels), np.inf)
    for k, level in enumerate(levels):
        below = np.flatnonzero(loss <= level)
        if below.size and below[0] > 0:
            near = slice(max(below[0] - 4, 0), below[0] + 4)
            fall = -np.log(loss[near])
            falling = np.concatenate([[True], np.diff(np.maximum.accumulate(fall)) > 0])  # not where it rests, to rounding
            found[k] = PchipInterpolator(fall[falling], times[near][falling])(-np.log(level))
    return found


def _around(times: np.ndarray, crossings: np.ndarray, points: int) -> np.ndarray:
    """As many times as before, closer around the crossings: two of the old spacings there before and after each."""
    finite = crossings[np.isfinite(crossings)]
    after = np.searchsorted(times, finite).clip(1, len(times) - 1)
    widths = 2 * (times[after] - times[after - 1])
    each = (points - 2) // max(len(finite), 1)
    windows = [np.linspace(max(c - w, 0), min(c + w, times[-1]), each) for c, w in zip(finite, widths, strict=True)]
    near = np.unique(np.concatenate([*windows, times[[0, -1]]]))
    # Filled up to the same number, so that the compiled program is the same.
    extra = np.setdiff1d(np.linspace(times[0], times[-1], 2 * points)[1:-1], near)[: points - len(near)]
    return np.sort(np.concatenate([near, extra]))


def _memoryless(path: SaddlePath) -> np.ndarray:
    """Jump times if the dual variable started from 0 at every saddle: `1 / (2 max |grad L|)` of waiting each; the control."""
    return np.cumsum(0.5 / np.abs(path.gradients[:-1]).max(axis=1))


def _padded(values: list[np.ndarray]) -> np.ndarray:
    """Stacked, the last axis filled up by NaN."""
    if values[0].ndim == 0:
        return np.stack(values)
    most = max(v.shape[-1] for v in values)
    return np.stack([np.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, most - v.shape[-1])], constant_values=np.nan) for v in values])
