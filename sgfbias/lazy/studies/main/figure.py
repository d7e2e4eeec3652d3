"""The picture of the study `lazy`."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.lazy.scaling import exponent
from sgfbias.lazy.studies.main import Config
from sgfbias.lazy.studies.main.claims import names, whole
from sgfbias.study.plotting import COLOURS, Figure, finish, panels

SHADES = (COLOURS["gd"], COLOURS["sgf"], COLOURS["sgd"])


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the distance, the switched units and the change of the kernel against the
    width, with their slopes, and the gradient over its floor.
    """
    figure, axes = panels(rows=2, columns=2)
    width = ds["width"].values
    distance, flips = whole(ds["distance"].values), ds["flips"].values.mean(axis=-1)
    for panel, rows, control, title, y in (
        (axes[0], distance, "mean_field_distance", "Distance from the start", "|w - w(0)|"),
        (axes[1], flips, "mean_field_flips", "Switched units", "share of units and examples"),
        (axes[2], ds["kernel_drift"].values, None, "Change of the kernel", "|K - K(0)| / |K(0)|"),
    ):
        for name, colour, row in zip(names(ds), SHADES, rows, strict=True):
            slope = exponent(width.astype(float), row).value
            panel.plot(width, row, "o", color=colour, alpha=0.3, markersize=3)
            panel.plot(width, row.mean(axis=1), color=colour, label=f"{name}: slope {slope:.2f}")
        if control is not None:
            row = ds[control].values
            slope = exponent(width.astype(float), row).value
            panel.plot(
                width,
                row.mean(axis=1),
                "--",
                color=COLOURS["control"],
                label=f"outputs / √m, logistic: slope {slope:.2f}",
            )
        finish(panel, title=f"{title}, at the loss {config.loss:g}", x="width m", y=y, room=0.3)
    ratio = ds["typical_floor"].values[..., -1]
    for name, colour, row in zip(names(ds), SHADES, ratio, strict=True):
        axes[3].plot(width, np.median(row, axis=1), "o-", color=colour, label=name)
    axes[3].axhline(1, color="k", linestyle=":", label="floor")
    finish(
        axes[3],
        title="Squared gradient of the last layer over its floor",
        x="width m",
        y="median over the steps",
        room=0.3,
    )
    for panel in axes:
        panel.set_xticks(width, [str(w) for w in width])
        panel.minorticks_off()
    return figure
