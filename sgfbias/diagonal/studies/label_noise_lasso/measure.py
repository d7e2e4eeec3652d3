"""The study measures the time averages of every run, and the Lasso solutions to which
theory says they are equal.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias import (
    LabelNoise,
    Record,
    Status,
    StochasticGradientDescent,
    StochasticGradientFlow,
    simulate,
)
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.label_noise_lasso import BURN_IN, FACTORS, WINDOWS, Config
from sgfbias.diagonal.theory.lasso import label_noise_lasso, lasso, sample_weights
from sgfbias.study import Columns, Log

WEIGHT = "target / input"
Cell = tuple[str, float, float, float, float]  # kind, gamma, delta, dt, flow time
# Variable of a run -> its dimensions and its units.
VARIABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "beta": (("window", "seed", "feature"), WEIGHT),
    "loss": (("window", "seed"), "loss"),
    "lost": (("seed",), "1"),
    "lasso": (("factor", "feature"), WEIGHT),
    "own_lasso": (("window", "feature"), WEIGHT),
    "sample_lasso": (("feature",), WEIGHT),
    "sample_h": (("feature",), "input^2 loss"),
    "predicted_lasso": (("feature",), WEIGHT),
    "predicted_loss": ((), "loss"),
    "gap": ((), "1"),
    "path": (("time", "feature"), WEIGHT),
    "running": (("time", "feature"), WEIGHT),
}


def measure(config: Config, log: Log) -> Columns:
    """Run the flow and SGD at every (gamma, delta), average each seed over the windows,
    and solve the Lasso problems that theory names. One seed's path is kept for the
    picture, and the flow is also run without label noise as a control.
    """
    problem, _ = draw(config)
    size = float(problem.h @ jnp.abs(problem.beta_star)) if config.relative else 1.0
    pairs = [("flow", *pair) for pair in config.flows] + [
        ("SGD", *pair) for pair in config.descents
    ]
    cells: list[Cell] = []
    for kind, gamma, delta in pairs:
        dt, time = (config.dt, config.time) if kind == "flow" else (gamma, config.sgd_time)
        cells.append((kind, gamma / size, delta * size, dt / size, time / size))
    kinds, gammas, deltas, _, times = (np.array(column) for column in zip(*cells, strict=True))
    out = Columns(
        run=[f"{kind}, gamma {gamma:g}, delta {delta:g}" for kind, gamma, delta in pairs],
        discrete=("run", kinds == "SGD"),
        gamma=("run", gammas),
        delta=("run", deltas),
        length=("run", times, {"units": "time"}),
        window=("window", np.asarray(WINDOWS), {"units": "share of the run"}),
        factor=("factor", np.asarray(FACTORS), {"units": "penalty"}),
        seed=np.arange(config.seeds),
    )
    rows = []
    for k, (cell, name) in enumerate(zip(cells, out.axes["run"], strict=True)):
        log(f"running {name}: {config.seeds} seeds over flow time {cell[-1]:g}")
        row, path, (start, end) = _averages(
            config, cell, config.keys(k * config.seeds, (k + 1) * config.seeds)
        )
        _, gamma, delta, dt, _ = cell
        shown = np.linspace(0, end - 1, 400).astype(int)
        running = np.cumsum(path[0], axis=0) / np.arange(1, path.shape[1] + 1)[:, None]
        row |= {
            "path": path[0, shown],
            "running": running[shown],
            "sample_h": sample_weights(problem, path[:, start:end], delta),
        }
        predicted, predicted_loss = label_noise_lasso(problem, gamma, delta, dt=dt)
        penalty, h = gamma * (delta**2 + row["loss"].mean(axis=1)), np.asarray(problem.h)
        solved = [lasso(problem, factor * penalty[-1] * h) for factor in FACTORS]
        row |= {
            "lasso": [found.beta for found in solved],
            "own_lasso": [lasso(problem, level * h).beta for level in penalty],
        }
        row |= {
            "sample_lasso": lasso(problem, gamma * row["sample_h"]).beta,
            "predicted_lasso": predicted.beta,
        }
        row |= {
            "predicted_loss": predicted_loss,
            "gap": max(found.gap for found in (*solved, predicted)),
        }
        rows.append(row)
    for name, (dims, units) in VARIABLES.items():
        out.add(name, ("run", *dims), np.stack([np.asarray(row[name]) for row in rows]), units)
    log("running the control, the flow without label noise")
    quiet, *_ = _averages(
        config,
        (*cells[0][:2], 0.0, cells[0][3], cells[0][4] / 4),
        config.keys(0, config.seeds),
    )
    out.add("quiet_beta", ("seed", "feature"), quiet["beta"][-1], WEIGHT)
    out.add("truth", ("feature",), problem.beta_star, WEIGHT)
    out.add("fourth", ("feature",), jnp.mean(problem.X**4, axis=0), "input^4")
    out.add("h", ("feature",), problem.h, "input^2")
    out.add("gram", ("feature", "other"), problem.X.T @ problem.X / problem.n, "input^2")
    out.add("pull", ("feature",), problem.X.T @ problem.y / problem.n, "input * target")
    return out


def _averages(
    config: Config, cell: Cell, keys: Array
) -> tuple[dict[str, Any], np.ndarray, tuple[int, int]]:
    """Run one cell. The results are the averages over every window, the recorded path
    (seeds, times, features), and the first and last index of the longest window in it.
    """
    (problem, network), (kind, gamma, delta, dt, time) = draw(config), cell
    dynamics: Any = StochasticGradientFlow(gamma, LabelNoise(delta), dt=dt)
    if kind == "SGD":
        dynamics = StochasticGradientDescent(gamma, label_noise=delta, integral="batch")
    every = max(round(time / dt / config.points), 1)
    count = round(time / dt / every)
    times = np.arange(count + 1) * every * dt
    runs = simulate(
        dynamics, network, problem, keys=keys, steps=count * every, record=Record(["beta"], times)
    )
    path, integral = np.asarray(runs["beta"]), np.asarray(runs["loss_integral"])
    ends = [max(round(share * count), 5) for share in WINDOWS]
    windows = [(round(BURN_IN * end), end) for end in ends]
    averages = {
        "beta": np.stack([path[:, a:b].mean(axis=1) for a, b in windows]),
        "loss": np.stack(
            [(integral[:, b] - integral[:, a]) / (times[b] - times[a]) for a, b in windows]
        ),
        "lost": runs.status == Status.NON_FINITE,
    }
    return averages, path, windows[-1]
