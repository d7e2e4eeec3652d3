"""The plot of the momentum study, drawn from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.momentum import LEVELS, Config
from sgfbias.diagonal.studies.momentum.quantities import NAMES, apart, shrinkage, whole_lambdas
from sgfbias.study.plotting import (
    COLOURS,
    Axes,
    Figure,
    distribution,
    finish,
    interval_bars,
    panels,
)
from sgfbias.study.statistics import finite, mean_t

# The colours of the momenta.
SHADES = (COLOURS["sgf"], COLOURS["sgd"], COLOURS["control"])


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the decrease of log alpha against lambda, the distance of the discrete
    methods from the flow, the effect on the error over problems, and SGD with momentum.
    """
    figure, axes = panels(rows=2, columns=2, size=(12.5, 8.6))
    for draw, panel in zip((_lost, _gaps, _problems, _stochastic), axes, strict=True):
        draw(panel, ds, config)
    return figure


def _lost(panel: Axes, ds: xr.Dataset, config: Config) -> None:
    whole = whole_lambdas(ds)
    lam, lost = ds["lam"].values[whole], shrinkage(ds, config, "flow")[whole]
    panel.plot(
        lam, lost.max(axis=1), "^-", color=COLOURS["control"], markersize=4, label="largest feature"
    )
    panel.plot(lam, lost.mean(axis=1), "o-", color=COLOURS["sgf"], markersize=4, label="mean")
    panel.plot(
        lam,
        lam * ds["still_squares"].values.mean(),
        color=COLOURS["gd"],
        linewidth=1,
        label="mean, first order",
    )
    if not whole.all():
        panel.axvline(
            float(ds["lam"][~whole][0]),
            color=COLOURS["gd"],
            linestyle=":",
            linewidth=1.2,
            label="a weight goes through 0",
        )
    finish(panel, title="Decrease of log α by momentum", x="λ", y="decrease of log α")


def _gaps(panel: Axes, ds: xr.Dataset, config: Config) -> None:
    small = ds.isel(lam=slice(LEVELS))
    for flow, style in (("flow", "-"), ("printed", "--")):
        for method, marker, rows in zip(
            small["method"].values, "os", apart(small, flow), strict=True
        ):
            for k, row in enumerate(rows):
                label = f"{NAMES[method]}, b = {config.momenta[k]:g}" if flow == "flow" else None
                panel.plot(
                    small["lam"],
                    row,
                    style + marker,
                    color=SHADES[k % len(SHADES)],
                    markersize=4,
                    linewidth=1.3,
                    label=label,
                )
    panel.plot([], [], "--", color=COLOURS["gd"], label="dashed: printed λ = γ/(1−b)²")
    finish(
        panel,
        title="Distance of discrete solutions from the flow's",
        x="λ",
        y="distance",
    )
    panel.set_ylim(bottom=apart(small, "flow").min() / 200)


def _problems(panel: Axes, ds: xr.Dataset, config: Config) -> None:
    for kind, colour, inputs in (
        ("centred", COLOURS["sgf"], "centred inputs"),
        ("shifted", COLOURS["sgd"], f"inputs of mean {config.shift:g}"),
    ):
        distribution(panel, ds[f"{kind}_error_slope"], colour=colour, label=inputs)
        distribution(
            panel,
            ds[f"{kind}_even_slope"],
            colour=colour,
            label=f"{kind}, α shrunk evenly",
            style=":",
        )
    panel.axvline(0, color=COLOURS["gd"], linewidth=1)
    x, y = "d log error / dλ", "distribution function over problems"
    finish(
        panel,
        title="Does momentum lower the error? Small λ",
        x=x,
        y=y,
        x_scale="linear",
        y_scale="linear",
        room=0.3,
        legend="upper left",
    )
    panel.set_xscale("symlog", linthresh=1)


def _stochastic(panel: Axes, ds: xr.Dataset, config: Config) -> None:
    rate, places = np.asarray(config.sgd_rates), range(len(config.sgd_rates))
    noise, inertia = (np.nanmean(ds[f"sgd_{name}"], axis=1) / rate for name in ("noise", "inertia"))
    panel.bar(
        places,
        noise,
        0.5,
        color=COLOURS["sgd"],
        alpha=0.5,
        label="predicted: noise, step size γ/(1−b)",
    )
    panel.bar(
        places,
        inertia,
        0.5,
        bottom=noise,
        color=COLOURS["sgf"],
        alpha=0.5,
        label="predicted: inertia",
    )
    for name, style, colour, label in (
        ("shrinkage", "o", "#000000", "SGD with momentum"),
        ("plain", "s", COLOURS["gd"], "SGD with step size γ/(1−b)"),
    ):
        means = [mean_t(finite(row)) for row in ds[f"sgd_{name}"].values / rate[:, None]]
        interval_bars(panel, places, means, colour=colour, label=label, style=style)
    title = "SGD: mean decrease of log α over γ/(1−b)"
    finish(
        panel,
        title=title,
        x="γ / (1 − b)",
        y="decrease of log α / (γ/(1−b))",
        x_scale="linear",
        y_scale="linear",
    )
    panel.set_xticks(places, [f"{v:g}" for v in rate])
    panel.set_ylim(top=1.45 * float(np.max(noise + inertia)))
