"""The picture of figure 2, drawn from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.pesme2021 import common
from sgfbias.diagonal.studies.pesme2021.fig2 import WORDS, Config
from sgfbias.study.plotting import COLOURS, Figure, finish, panels


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the loss, its integral and the error against time, and the error against the
    loss integral with the curve of Theorem 1.
    """
    figure, axes = panels(rows=2, columns=2, size=(11.5, 8))
    for panel, quantity in zip(axes, common.QUANTITIES, strict=False):
        common.curves(panel, ds, quantity, common.NAMES)
        scale = "linear" if quantity == "loss_integral" else "log"
        finish(
            panel,
            title=common.TITLES[quantity],
            x="flow time",
            y=common.LABELS[quantity],
            y_scale=scale,
        )
    axes[0].set_ylim(bottom=1e-16)
    panel, dots = (
        axes[3],
        {
            name: (common.final(ds, name, "loss_integral"), common.final(ds, name))
            for name in ("sgd", "sgf", "gd")
        },
    )
    panel.plot(ds["point"], ds["curve_error"], color="black", linewidth=1, label="Theorem 1")
    for name in WORDS:
        label, colour = common.NAMES[name]
        panel.plot(
            *dots[name],
            ".",
            color=colour,
            markersize=3,
            alpha=0.6,
            label=f"{label}, one dot per seed",
        )
    scheme = (ds["weights_loss_integral"], ds["weights_validation_error"])
    panel.plot(
        *scheme, "x", color=COLOURS["control"], markersize=4, label="flow, Euler in w, dt = γ/10"
    )
    panel.plot(*dots["gd"], "s", color=COLOURS["gd"], label="GD")
    errors = np.concatenate([dots[name][1] for name in WORDS])
    finish(
        panel,
        title="Error against loss integral",
        x="∫ L dt",
        y=common.LABELS["validation_error"],
        x_scale="linear",
    )
    panel.set(
        xlim=(0, 1.05 * np.nanmax(dots["sgd"][0])),
        ylim=(0.5 * np.nanmin(errors), 2 * np.nanmax(errors)),
    )
    return figure
