"""The main study's picture: what was run, and predicted against simulated."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.plotting import COLOURS, band, line, new_figure, tidy


def plot(ds: Any) -> Any:
    """Six panels: loss, loss integral, validation error; Theorem 1 in weights, its rate, and SGD's solution from its own path."""
    figure, axes = new_figure(2, 3, size=(14, 7.6))
    time = ds["time"].values
    gamma, alpha = float(ds.attrs["step_size"]), _alpha(ds)
    flow_time = "flow time (one SGD step = γ)"
    for panel, quantity, title in (
        (axes[0, 0], "loss", "Training loss"),
        (axes[0, 1], "loss_integral", "Loss integral: it sets the effective initialisation"),
        (axes[0, 2], "validation_error", "Validation error"),
    ):
        if f"gd_{quantity}" not in ds:
            panel.text(0.5, 0.5, "no beta_star in the data", ha="center", va="center", transform=panel.transAxes)
            panel.set_axis_off()
            continue
        line(panel, time, ds[f"gd_{quantity}"].values, colour=COLOURS["gd"], label="GD", style="--")
        for name in ("sgd", "sgf"):
            band(panel, time, ds[f"{name}_{quantity}"].values, colour=COLOURS[name], label=f"{name.upper()}, {ds.sizes['seed']} seeds")
        scale = "linear" if quantity == "loss_integral" else "log"
        tidy(panel, title=title, x=flow_time, y=quantity.replace("_", " "), y_scale=scale)
        if quantity == "validation_error" and "sgf_landed_validation_error" in ds:
            landed = ds["sgf_landed_validation_error"].values
            landed = landed[np.isfinite(landed)]
            if landed.size:
                panel.axhline(np.median(landed), color=COLOURS["sgf"], linestyle=":", linewidth=1.5, label="SGF landed, predicted limit")
        panel.legend(frameon=False, fontsize=8)
    _scatter(axes[1, 0], ds)
    _rate(axes[1, 1], ds)
    _sgd(axes[1, 2], ds)
    figure.suptitle(
        f"Which solution do SGD and its flow select?  n = {ds.sizes['example']}, d = {ds.sizes['feature']}, α = {alpha:g}, γ = {gamma:.3g}; "
        "lines are medians, bands 5% to 95% of the seeds",
        fontsize=11,
    )
    return figure


def _alpha(ds: Any) -> float:
    import json

    return float(json.loads(ds.attrs["config"])["alpha"])


def _scatter(axes: Any, ds: Any) -> None:
    """Coordinates of the simulated iterate against the predicted minimiser, in weights coordinates at the finest step."""
    for name, label, colour in (("weights", "mean-loss noise", COLOURS["sgf"]), ("isotropic", "isotropic control", COLOURS["control"])):
        predicted, simulated = ds[f"{name}_predicted"].values, ds[f"{name}_beta"].values
        off = np.abs(simulated - predicted).ravel()
        size = np.abs(predicted).ravel()
        keep = np.isfinite(off) & (size > 0) & (off > 0)
        axes.plot(size[keep], off[keep], ".", color=colour, markersize=2, alpha=0.35, label=label, rasterized=True)
    ends = np.array(axes.get_xlim())
    if ends[1] > 0:
        axes.axline((1e-3, 1e-3), (1.0, 1.0), color="black", linewidth=0.8, linestyle=":", label="error = coordinate")
    tidy(axes, title="Theorem 1 in weights: error per coordinate", x="|predicted coordinate|", y="|simulated − predicted|")
    axes.legend(frameon=False, fontsize=8, markerscale=5)


def _rate(axes: Any, ds: Any) -> None:
    widths = ds["dt"].values
    for name, label, colour in (("weights", "mean-loss noise", COLOURS["sgf"]), ("isotropic", "isotropic control", COLOURS["control"])):
        gaps = ds[f"{name}_gap"].values
        gaps = gaps[:, np.isfinite(gaps).all(axis=0)]
        if gaps.size == 0:
            continue
        axes.plot(widths, np.median(gaps, axis=1), "o-", color=colour, label=f"{label}, median seed")
        axes.plot(widths, gaps.max(axis=1), "^:", color=colour, label=f"{label}, worst seed")
    tidy(axes, title="Theorem 1 in weights: gap against step", x="dt / γ", y="relative distance to the predicted minimiser")
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=8)


def _sgd(axes: Any, ds: Any) -> None:
    """Distances of SGD's selected solution from what four laws predict, over seeds."""
    rows = {
        "gradient flow's": ds["sgd_distance_gradient_flow"].values,
        "own path, mean-loss law": ds["sgd_distance_mean_loss"].values,
        "own path, per-sample law": ds["sgd_distance_per_sample"].values,
    }
    colours = (COLOURS["gd"], COLOURS["sgf"], COLOURS["sgd"])
    for (label, values), colour in zip(rows.items(), colours, strict=True):
        values = np.sort(values[np.isfinite(values)])
        if values.size:
            axes.plot(values, np.arange(1, values.size + 1) / values.size, color=colour, label=label, drawstyle="steps-post")
    tidy(
        axes,
        title="SGD's selected solution against predictions",
        x="distance to the predicted solution",
        y="share of seeds",
        y_scale="linear",
    )
    axes.legend(frameon=False, fontsize=8)
