"""The picture of the study, from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.saddle_to_saddle import Config
from sgfbias.diagonal.studies.saddle_to_saddle.claims import relative_errors, scales
from sgfbias.study.plotting import COLOURS, Figure, finish, panels


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the loss and the coefficients of one problem over rescaled time, and the
    relative error of every jump time against Lambda.
    """
    figure, (left, middle, right) = panels(columns=3, size=(15.0, 4.4))
    tau, scale, decades = ds["tau"].values, scales(ds), ds["decades"].values
    loss, path_loss = (
        (ds[name] / ds["loss"][0, 0].item()).values for name in ("loss", "path_loss")
    )
    shades = [
        COLOURS["control"],
        *(str(v) for v in np.linspace(0.75, 0.35, len(decades) - 2)),
        COLOURS["sgf"],
    ]
    for k, shade in enumerate(shades):
        left.plot(
            tau,
            loss[k],
            "-" if k else ":",
            color=shade,
            label=f"α = 1e-{decades[k]:g}",
            linewidth=1.3,
        )
    left.plot(
        tau, path_loss, color=COLOURS["sgd"], linestyle="--", label="algorithm", linewidth=1.3
    )
    left.set_ylim(max(path_loss[ds["path_loss"] > 1e-12].min() / 30, 1e-8), 2)
    path, beta = ds["path_beta"].values, ds["beta"].values[-1]
    for k, i in enumerate(np.flatnonzero(np.any(path != 0, axis=0))):
        middle.plot(tau, beta[:, i], color=f"C{k}", linewidth=1.5)
        middle.plot(
            tau,
            path[:, i],
            color="black",
            linestyle="--",
            linewidth=0.9,
            label="" if k else "algorithm",
        )
    errors = relative_errors(ds)
    right.plot(scale, errors.T, color=COLOURS["gd"], alpha=0.25, linewidth=0.8)
    centre = np.median(errors, axis=0)
    right.plot(
        scale,
        centre,
        "o-",
        color=COLOURS["sgf"],
        linewidth=1.8,
        markersize=4,
        label="median of all jumps",
    )
    right.plot(
        scale,
        centre[-1] * scale[-1] / scale,
        "--",
        color=COLOURS["sgd"],
        linewidth=1.2,
        label="slope -1",
    )
    finish(
        left,
        title=f"Loss of problem {config.shown}",
        x="τ = t / log(1/α)",
        y="loss / loss at 0",
        x_scale="linear",
    )
    finish(
        middle,
        title=f"Coefficients of problem {config.shown}, α = 1e-{decades[-1]:g}",
        x="τ = t / log(1/α)",
        y="β",
        x_scale="linear",
        y_scale="linear",
    )
    finish(
        right,
        title=f"Jump times, {ds.sizes['problem']} problems",
        x="Λ = log(1/α)",
        y="relative error of t / Λ",
    )
    return figure
