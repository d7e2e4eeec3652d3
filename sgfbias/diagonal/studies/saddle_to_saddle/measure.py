"""The measurements of the study: the jump times, visited saddles and dual path of the
flow at every alpha, and the predictions of the limit.
"""

from __future__ import annotations

import operator
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import PchipInterpolator

from sgfbias import (
    DiagonalNetwork,
    GradientFlow,
    Record,
    SparseRegression,
    Status,
    Trajectory,
    minimum_l1,
    simulate,
)
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.saddle_to_saddle import Config
from sgfbias.diagonal.theory.saddles import (
    SaddlePath,
    first_jump_constant,
    followed,
    greedy_path,
    memoryless_times,
    saddle_path,
)
from sgfbias.study import Columns, Log

# How often the recorded times are refined around the jumps.
REFINEMENTS = 2
TIME, GAP, WEIGHT = "flow time / log(1/alpha)", "relative distance", "target / input"
# The dimensions, units and values of a variable.
Column = tuple[tuple[str, ...], str, Any]
RECORDED = {"beta": None, "log_ratio": operator.attrgetter("log_ratio")}


def measure(config: Config, log: Log) -> Columns:
    """Measure the jump times, the visited saddles and the dual path of the flow at
    every alpha on every problem, and compute the algorithm's predictions.

    Jumps that come too late to be followed within `config.most_steps` are left out and
    counted. A problem with fewer jumps than another is padded with NaN. For the problem
    `config.shown` the loss and the coefficients are stored over time.
    """
    levels, rows = np.array((config.coarse, *config.decades)), []
    out = Columns(decades=("decades", levels, {"units": "log10(1/alpha)"}))
    for k in range(config.problems):
        problem, _ = draw(config, problem_seed=config.data_seed() + k, alpha=1.0)
        whole, log_scales = saddle_path(problem), levels * np.log(10)
        jumps, end = followed(problem, whole, log_scales[-1], config.most_steps)
        path = whole.until(jumps)
        log(
            f"problem {k}: {len(whole.times)} jumps are predicted up to tau = "
            f"{whole.times[-1]:.3g}; the flow follows {jumps} of them up to tau = {end:.3g}, from "
            f"alpha = 1e-{levels[0]:g} to 1e-{levels[-1]:g}"
        )
        tau = np.linspace(0, end, config.points)
        flows, runs = zip(
            *(_flow(config, problem, path, tau, scale) for scale in log_scales), strict=True
        )
        constant, rival = first_jump_constant(problem)
        last, size = whole.betas[-1], np.linalg.norm(path.betas[-1])
        gap = np.linalg.norm(last - np.asarray(minimum_l1(problem))) / np.linalg.norm(last)
        apart = np.linalg.norm(greedy_path(problem, jumps) - path.betas, axis=1) / size
        predicted: dict[str, Column] = {
            "predicted_time": (("jump",), TIME, path.times),
            "predicted_loss": (("saddle",), "loss", path.losses),
            "predicted_size": (("saddle",), "coordinates", np.sum(path.betas != 0, axis=1)),
            "memoryless_time": (("jump",), TIME, memoryless_times(path)),
            "relaxations": (
                ("decades", "saddle"),
                "relaxation times",
                np.outer(log_scales, path.relaxations(end)),
            ),
            "clearance": (
                ("decades", "saddle"),
                "-log(target / input)",
                np.outer(log_scales, path.clearances()),
            ),
            "greedy_apart": (("saddle",), GAP, apart),
            "l1_gap": ((), GAP, gap),
            "left_out": ((), "jumps", len(whole.times) - jumps),
            "first_constant": ((), "flow time", constant),
            "rival": ((), "1", rival),
        }
        by_alpha = {
            name: (("decades", *dims), units, [flow[name][2] for flow in flows])
            for name, (dims, units, _) in flows[0].items()
        }
        rows.append(predicted | by_alpha)
        if k == config.shown:
            out.axes["tau"], piece = tau, path.piece(tau)
            out.add("loss", ("decades", "tau"), [run["loss"] for run in runs], "loss")
            out.add("beta", ("decades", "tau", "feature"), [run["beta"] for run in runs], WEIGHT)
            out.add("path_loss", ("tau",), path.losses[piece], "loss")
            out.add("path_beta", ("tau", "feature"), path.betas[piece], WEIGHT)
    for name, (dims, units, _) in rows[0].items():
        out.add(
            name,
            ("problem", *dims),
            _padded([np.asarray(row[name][2], np.float64) for row in rows]),
            units,
        )
    return out


def _flow(
    config: Config, problem: SparseRegression, path: SaddlePath, tau: np.ndarray, scale: float
) -> tuple[dict[str, Column], Trajectory]:
    """Run the flow from `alpha = exp(-scale)` up to rescaled times `tau`. Return the
    times at which the loss is half way between consecutive saddles, the distances to
    the predicted saddles between these times and to the predicted dual path; and the
    run.
    """
    network = DiagonalNetwork.init(log_alpha=-scale, d=problem.d, dtype=jnp.float64)
    flow, halves = (
        GradientFlow(rtol=config.rtol, atol=config.rtol / 100),
        (path.losses[1:] + path.losses[:-1]) / 2,
    )

    def jumps(times: np.ndarray) -> tuple[Trajectory, np.ndarray]:
        # The solver is explicit: at a saddle the Newton iteration of the implicit one
        # divides 0 by 0, and the equation is not stiff.
        solver, record = dfx.Tsit5(), Record(RECORDED, times)
        runs = simulate(
            flow,
            network,
            problem,
            t1=float(times[-1]),
            coordinates="mirror",
            solver=solver,
            record=record,
        )
        return runs, _crossings(times, np.asarray(runs["loss"]), halves)

    grid = tau * scale
    runs, times = jumps(grid)
    for _ in range(REFINEMENTS):
        grid = _around(grid, times, config.points)
        closer, times = jumps(grid)
    edges = np.concatenate([[0.0], times, [tau[-1] * scale * 2]])
    # The flow is compared half way through each rest, and at its end for the last one.
    middle = np.clip(
        np.searchsorted(tau * scale, (edges[1:] + edges[:-1]) / 2), 0, config.points - 1
    )
    visited, size = np.asarray(runs["beta"])[middle], np.linalg.norm(path.betas[-1])
    found: dict[str, Column] = {
        "time": (("jump",), "flow time", times),
        "saddle_gap": (("saddle",), GAP, np.linalg.norm(visited - path.betas, axis=1) / size),
        "greedy_gap": (
            ("saddle",),
            GAP,
            np.linalg.norm(visited - greedy_path(problem, len(path.times)), axis=1) / size,
        ),
        "dual_gap": (
            (),
            "1",
            np.abs(np.asarray(runs["log_ratio"]) / (4 * scale) - path.dual(tau)).max(),
        ),
        "lost": (
            (),
            "1",
            any(run.status in (Status.NON_FINITE, Status.GAVE_UP) for run in (runs, closer)),
        ),
    }
    return found, runs


def _crossings(times: np.ndarray, loss: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The first time at which the loss falls to each of `levels`, by monotone cubic
    interpolation in the logarithm of the loss; infinite if it never does.
    """
    found = np.full(len(levels), np.inf)
    for k, level in enumerate(levels):
        below = np.flatnonzero(loss <= level)
        if below.size and below[0] > 0:
            near = slice(max(below[0] - 4, 0), below[0] + 4)
            fall = -np.log(loss[near])
            # Points where the loss rests, up to rounding, are left out: the
            # interpolation needs strictly increasing abscissae.
            falling = np.concatenate([[True], np.diff(np.maximum.accumulate(fall)) > 0])
            found[k] = PchipInterpolator(fall[falling], times[near][falling])(-np.log(level))
    return found


def _around(times: np.ndarray, crossings: np.ndarray, points: int) -> np.ndarray:
    """A grid of `points` times that are dense around the `crossings`: within two old
    spacings before and after each.
    """
    finite = crossings[np.isfinite(crossings)]
    after = np.searchsorted(times, finite).clip(1, len(times) - 1)
    widths = 2 * (times[after] - times[after - 1])
    each = (points - 2) // max(len(finite), 1)
    windows = [
        np.linspace(max(c - w, 0), min(c + w, times[-1]), each)
        for c, w in zip(finite, widths, strict=True)
    ]
    near = np.unique(np.concatenate([*windows, times[[0, -1]]]))
    # The grid always has the same number of times, so that nothing is recompiled.
    extra = np.setdiff1d(np.linspace(times[0], times[-1], 2 * points)[1:-1], near)[
        : points - len(near)
    ]
    return np.sort(np.concatenate([near, extra]))


def _padded(values: list[np.ndarray]) -> np.ndarray:
    """The arrays stacked, their last axis padded with NaN to the longest."""
    if values[0].ndim == 0:
        return np.stack(values)
    most = max(v.shape[-1] for v in values)
    return np.stack(
        [
            np.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, most - v.shape[-1])], constant_values=np.nan)
            for v in values
        ]
    )
