"""The runs of figure 3, as columns of its dataset."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias import (
    DiagonalNetwork,
    GradientDescent,
    Record,
    SparseRegression,
    StochasticGradientDescent,
    StochasticGradientFlow,
    simulate,
)
from sgfbias.diagonal.setup import draw, step_size
from sgfbias.diagonal.studies.pesme2021 import common
from sgfbias.diagonal.studies.pesme2021.fig3 import FINEST, QUIET, SCHEMES, WIDTHS, Config
from sgfbias.diagonal.theory.effective import euler_scatter
from sgfbias.study import Columns, Log


def measure(config: Config, log: Log) -> Columns:
    """Simulate gradient descent, SGD, the flow, the flow with less noise and the flow
    by the paper's scheme, and compare schemes on one Brownian path.
    """
    problem, network = draw(config)
    gamma, keys = step_size(config, problem, network, log), config.keys(0, config.seeds)
    log(f"gradient descent, SGD and the flow: {config.seeds} seeds x {config.steps:,} iterations")
    gd = simulate(GradientDescent(gamma), network, problem, steps=config.steps)
    out = common.columns(config, gamma, gd)
    common.add_runs(out, "gd", gd)
    common.add_laws(
        out, problem, network, gamma, config.steps, flows={"sgf": 1.0, "quiet": 1 / QUIET}
    )
    dynamics = {
        "sgd": StochasticGradientDescent(gamma),
        "sgf": StochasticGradientFlow(gamma),
        "quiet": StochasticGradientFlow(gamma / QUIET, dt=gamma),
    }
    for name, each in dynamics.items():
        common.add_runs(
            out, name, simulate(each, network, problem, keys=keys, steps=config.steps), log=log
        )
    log(
        f"the paper's scheme: Euler in the weights, dt = gamma/10, {config.scheme_steps:,} SGD "
        "steps"
    )
    record = Record(times=np.asarray(gd.times)[np.asarray(gd.steps) <= config.scheme_steps])
    euler = StochasticGradientFlow(gamma, dt=gamma / 10)
    weights = simulate(
        euler,
        network,
        problem,
        keys=keys,
        steps=10 * config.scheme_steps,
        coordinates="weights",
        record=record,
    )
    common.add_runs(out, "weights", weights, time="scheme_time", log=log)
    out.axes["scheme_time"] = np.asarray(weights.times)
    log(
        f"comparing schemes on one Brownian path, {config.path_steps:,} SGD steps; the "
        f"reference is the mirror system with dt = gamma/{FINEST}"
    )
    _paths(out, config, problem, network, gamma, keys)
    return out


def _paths(
    out: Columns,
    config: Config,
    problem: SparseRegression,
    network: DiagonalNetwork,
    gamma: float,
    keys: Array,
) -> None:
    """Add how far the schemes are from the reference, and by how much Euler's method in
    the weights breaks the equation `log(w_+ w_-) = 2 log alpha - 4 gamma h int L`.
    """

    def go(width: float, coordinates: str) -> Any:
        flow = StochasticGradientFlow(gamma, dt=gamma * width, brownian_dt=gamma / FINEST)
        record, steps = (
            Record(times=gamma * np.arange(config.path_steps + 1)),
            round(config.path_steps / width),
        )
        return simulate(
            flow, network, problem, keys=keys, steps=steps, coordinates=coordinates, record=record
        )

    reference = go(1 / FINEST, "mirror")
    runs = {name: go(width, name.split()[0]) for name, width in SCHEMES.items()}

    def add(name: str, axis: str, values: dict[str, Array], units: str) -> None:
        """Add one row per scheme, NaN where the scheme or the reference diverged."""
        rows = [
            jnp.where(runs[which].diverged | reference.diverged, jnp.nan, value)
            for which, value in values.items()
        ]
        out.add(f"path_{name}", (axis, "seed"), jnp.stack(rows), units)

    # The reference is the mirror system. Distances from a fine solution by Euler's
    # method in the weights show that this choice does not decide.
    for name, fine in (("distance", reference), ("distance_weights", runs[f"weights {FINEST}"])):
        beta = jnp.where(fine.diverged[:, None], jnp.nan, fine.final["beta"])
        add(
            name,
            "scheme",
            {k: jnp.linalg.norm(v.final["beta"] - beta, axis=1) for k, v in runs.items()},
            "target / input",
        )
    total = reference.final["loss_integral"]
    add(
        "integral",
        "scheme",
        {k: v.final["loss_integral"] / total - 1 for k, v in runs.items()},
        "relative",
    )
    breaks, predicted = {}, {}
    for name, width in WIDTHS.items():
        law = (
            2 * network.log_alpha
            - 4 * gamma * problem.h * runs[name].final["loss_integral"][:, None]
        )
        breaks[name] = jnp.sqrt(
            jnp.mean(jnp.square((2 * runs[name].final["log_alpha"] - law) / problem.h), axis=1)
        )
        predicted[name] = euler_scatter(
            runs[name]["loss"][:, :-1], step_size=gamma, dt=gamma * width, spacing=gamma
        )
    add("break", "width", breaks, "log weight per h")
    add("break_predicted", "width", predicted, "log weight per h")
    out.add(
        "path_scheme",
        ("scheme",),
        np.array(list(SCHEMES), dtype=object),
        "scheme and steps per SGD step",
    )
    out.add("path_width", ("width",), list(WIDTHS.values()), "gamma")
