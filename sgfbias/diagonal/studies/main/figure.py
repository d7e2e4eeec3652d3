"""The plot of the main study: the runs, and predicted against simulated solutions."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.main import Config
from sgfbias.study.plotting import COLOURS, Axes, Figure, band, distribution, finish, line, panels
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
LAWS = {
    "gradient_flow": ("predicted by gradient flow", COLOURS["gd"]),
    "mean_loss": ("SGD's path, mean-loss law", COLOURS["sgf"]),
    "per_sample": ("SGD's path, per-sample law", COLOURS["sgd"]),
}


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw six panels: the loss, the loss integral and the validation error against
    time; Theorem 1 in weights coordinates, coordinate by coordinate and against dt; and
    SGD's selected solution against three predictions.
    """
    figure, axes = panels(rows=2, columns=3, size=(14, 7.6))
    for panel, quantity in zip(axes, TITLES, strict=False):
        _curves(panel, ds, quantity)
    _scatter(axes[3], ds)
    _rate(axes[4], ds)
    for law, (label, colour) in LAWS.items():
        distribution(axes[5], ds[f"sgd_distance_{law}"], colour=colour, label=label)
    title, x = "SGD's selected solution against predictions", "distance to the predicted solution"
    finish(axes[5], title=title, x=x, y="share of seeds", y_scale="linear")
    figure.suptitle(
        f"Which solution do SGD and its flow select?  n = {ds.sizes['example']}, d = "
        f"{ds.sizes['feature']}, α = {config.alpha:g}, "
        f"γ = {float(ds.attrs['step_size']):.3g}; lines are medians, bands 5% to 95% of the seeds",
        fontsize=11,
    )
    return figure


def _curves(panel: Axes, ds: xr.Dataset, quantity: str) -> None:
    """Draw GD's curve, and medians and bands over seeds of SGD and of the flow."""
    if f"gd_{quantity}" not in ds:
        panel.text(
            0.5,
            0.5,
            "no beta_star in the data",
            ha="center",
            va="center",
            transform=panel.transAxes,
        )
        panel.set_axis_off()
        return
    time = ds["time"].values
    line(panel, time, ds[f"gd_{quantity}"].values, colour=COLOURS["gd"], label="GD", style="--")
    for name in ("sgd", "sgf"):
        band(
            panel,
            time,
            ds[f"{name}_{quantity}"].values,
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
    )


def _scatter(panel: Axes, ds: xr.Dataset) -> None:
    """Draw the error of every coordinate of the simulated iterate against the predicted
    minimiser's coordinate, in weights coordinates at the smallest dt.
    """
    for name, (label, colour) in NOISES.items():
        predicted = ds[f"{name}_predicted"].values.ravel()
        size, off = np.abs(predicted), np.abs(ds[f"{name}_beta"].values.ravel() - predicted)
        keep = np.isfinite(off) & (size > 0) & (off > 0)
        panel.plot(
            size[keep], off[keep], ".", color=colour, markersize=2, alpha=0.35, rasterized=True
        )
        # An empty series whose marker is large enough for the legend.
        panel.plot([], [], "o", color=colour, label=label)
    panel.axline(
        (1e-3, 1e-3),
        (1.0, 1.0),
        color="black",
        linewidth=0.8,
        linestyle=":",
        label="error = coordinate",
    )
    finish(
        panel,
        title="Theorem 1 in weights: error per coordinate",
        x="|predicted coordinate|",
        y="|simulated − predicted|",
    )


def _rate(panel: Axes, ds: xr.Dataset) -> None:
    """Draw the median and the worst seed's distance to the minimiser against dt."""
    for name, (label, colour) in NOISES.items():
        gaps = np.array(jointly_finite(*ds[f"{name}_gap"].values))
        if gaps.size:
            panel.plot(
                ds["dt"], np.median(gaps, axis=1), "o-", color=colour, label=f"{label}, median seed"
            )
            panel.plot(ds["dt"], gaps.max(axis=1), "^:", color=colour, label=f"{label}, worst seed")
    finish(
        panel,
        title="Theorem 1 in weights: distance against dt",
        x="dt / γ",
        y="relative distance to the minimiser",
    )
