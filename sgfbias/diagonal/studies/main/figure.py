"""The plot of the main study: the runs, and predicted against simulated solutions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.main import Config
from sgfbias.study.plotting import (
    COLOURS,
    Axes,
    Figure,
    band,
    distribution,
    finish,
    line,
    panels,
    ticks,
)
from sgfbias.study.statistics import finite, jointly_finite

TITLES = {
    "loss": "Training loss",
    "loss_integral": "Loss integral: it sets the effective initialisation",
    "validation_error": "Validation error",
}
NOISES = {
    "weights": ("mean-loss noise", COLOURS["sgf"]),
    "isotropic": ("isotropic control", COLOURS["control"]),
}
HUGE = 1e30  # Larger values are of seeds that diverge.
LAWS = {
    "gradient_flow": ("predicted by gradient flow", COLOURS["gd"]),
    "mean_loss": ("SGD's path, mean-loss law", COLOURS["sgf"]),
    "per_sample": ("SGD's path, per-sample law", COLOURS["sgd"]),
}


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw up to six panels: the loss, the loss integral and the validation error
    against time; Theorem 1 in weights coordinates, coordinate by coordinate and against
    dt; and SGD's selected solution against three predictions. What does not apply to
    the data is left out.
    """
    drawn = _panels(ds)
    columns = 3 if len(drawn) > 4 else len(drawn)
    rows = -(-len(drawn) // columns)
    figure, axes = panels(rows=rows, columns=columns, size=(14, 3.8 * rows))
    for panel, draw in zip(axes, drawn, strict=False):
        draw(panel)
    for unused in axes[len(drawn) :]:
        unused.remove()
    figure.suptitle(
        f"Which solution do SGD and its flow select?  n = {ds.sizes['example']}, d = "
        f"{ds.sizes['feature']}, α = {config.alpha:g}, "
        f"γ = {float(ds.attrs['step_size']):.3g}; lines are medians, bands 5% to 95% of the seeds",
        fontsize=11,
    )
    return figure


def _panels(ds: xr.Dataset) -> list[Callable[[Axes], None]]:
    """The functions that draw the panels of which the dataset has the values."""
    drawn: list[Callable[[Axes], None]] = [
        functools.partial(_curves, ds=ds, quantity=quantity)
        for quantity in TITLES
        if f"gd_{quantity}" in ds
    ]
    for names, draw in (
        ([f"{name}_predicted" for name in NOISES], _scatter),
        ([f"{name}_gap" for name in NOISES], _rate),
        ([f"sgd_distance_{law}" for law in LAWS], _predictions),
    ):
        if any(np.isfinite(ds[name].values).any() for name in names):
            drawn.append(functools.partial(draw, ds=ds))
    return drawn


def _curves(panel: Axes, ds: xr.Dataset, quantity: str) -> None:
    """Draw GD's curve, and medians and bands over seeds of SGD and of the flow. Values
    far above GD's, of seeds that diverge, are left out.
    """
    time, gd = ds["time"].values, ds[f"gd_{quantity}"].values
    most = min(1e3 * np.max(gd[np.isfinite(gd)], initial=0.0), HUGE)
    line(
        panel, time, np.where(gd <= most, gd, np.nan), colour=COLOURS["gd"], label="GD", style="--"
    )
    for name in ("sgd", "sgf"):
        values = ds[f"{name}_{quantity}"].values
        band(
            panel,
            time,
            np.where(values <= most, values, np.nan),
            colour=COLOURS[name],
            label=f"{name.upper()}, {ds.sizes['seed']} seeds",
        )
    if (
        quantity == "validation_error"
        and (landed := finite(ds["sgf_landed_validation_error"])).size
    ):
        panel.axhline(
            np.median(landed),
            color=COLOURS["sgf"],
            linestyle=":",
            label="SGF, predicted limit (median)",
        )
    scale = "linear" if quantity == "loss_integral" else "log"
    finish(
        panel,
        title=TITLES[quantity],
        x="flow time (one SGD step = γ)",
        y=quantity.replace("_", " "),
        y_scale=scale,
        room=-0.2 if quantity == "validation_error" else 0.0,
        legend="lower left" if quantity == "validation_error" else "best",
    )


def _scatter(panel: Axes, ds: xr.Dataset) -> None:
    """Draw the error of every coordinate of the simulated iterate against the predicted
    minimiser's coordinate, in weights coordinates at the smallest dt.
    """
    for name, (label, colour) in NOISES.items():
        predicted = ds[f"{name}_predicted"].values.ravel()
        size, off = np.abs(predicted), np.abs(ds[f"{name}_beta"].values.ravel() - predicted)
        keep = (size > 0) & (off > 0) & (size < HUGE) & (off < HUGE)
        panel.plot(
            size[keep], off[keep], ".", color=colour, markersize=2, alpha=0.35, rasterized=True
        )
        # An empty series whose marker is large enough for the legend.
        panel.plot([], [], "o", color=colour, label=label)
    reach = np.array(panel.dataLim.intervalx)
    panel.plot(reach, reach, "k:", linewidth=0.8, label="error = coordinate")
    finish(
        panel,
        title="Theorem 1 in weights: error per coordinate",
        x="|predicted coordinate|",
        y="|simulated − predicted|",
    )


def _rate(panel: Axes, ds: xr.Dataset) -> None:
    """Draw the median and the root mean square over the seeds of the distance to the
    minimiser against dt, as the claims have them.
    """
    for name, (label, colour) in NOISES.items():
        gaps = np.array(jointly_finite(*ds[f"{name}_gap"].values))
        if not gaps.size:
            continue
        for words, style, values in (
            ("median", "o-", np.median(gaps, axis=1)),
            ("root mean square", "^:", np.sqrt(np.mean(np.square(gaps), axis=1))),
        ):
            panel.plot(ds["dt"], values, style, color=colour, label=f"{label}, {words}")
    finish(
        panel,
        title="Theorem 1 in weights: distance against dt",
        x="dt / γ",
        y="relative distance to minimiser",
    )
    ticks(panel, ds["dt"].values)


def _predictions(panel: Axes, ds: xr.Dataset) -> None:
    """Draw the distributions over the seeds of the distances from SGD's selected
    solution to three predictions.
    """
    for law, (label, colour) in LAWS.items():
        distribution(panel, ds[f"sgd_distance_{law}"], colour=colour, label=label)
    finish(
        panel,
        title="SGD's selected solution against predictions",
        x="distance to the predicted solution",
        y="share of seeds",
        y_scale="linear",
        room=0.25,
        legend="upper left",
    )
    panel.set_yticks(np.linspace(0, 1, 6))
