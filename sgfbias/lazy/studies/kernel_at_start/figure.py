"""The picture of the study `kernel-at-start`."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.lazy import norm_variance
from sgfbias.lazy.studies.kernel_at_start import DISTANCES, NARROW, Config
from sgfbias.lazy.studies.kernel_at_start.claims import error_slope
from sgfbias.study.plotting import COLOURS, Figure, finish, panels, ticks
from sgfbias.study.statistics import mean_and_error


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the error of the kernel against width, the variance of the norms by layer,
    and the steps of gradient descent against the least eigenvalue.
    """
    figure, (left, middle, right) = panels(columns=3)
    width = ds["width"].values
    for name, colour, label in (
        ("error", COLOURS["sgf"], "closed form"),
        ("ungated_error", COLOURS["control"], "without gates (control)"),
    ):
        slope, means, errors = error_slope(ds, name)
        left.errorbar(
            width,
            means,
            yerr=2 * errors,
            marker="o",
            color=colour,
            capsize=2,
            label=f"{label}: slope {slope.value:.2f}",
        )
    left.plot(width, error_slope(ds)[1][0] * np.sqrt(width[0] / width), "k:", label="1/√m")
    finish(
        left,
        title="Distance of the kernel from a closed form",
        x="width m",
        y="relative error, bars: 2 standard errors",
        room=0.25,
    )
    left.set_xticks(width, [str(w) for w in width])
    left.minorticks_off()
    layers = ds["layer"].values
    squares = np.square(ds["norm"].values.astype(np.float64) - 1)
    means, errors = np.transpose([mean_and_error(column) for column in squares.T])
    middle.errorbar(
        layers, means, yerr=3 * errors, fmt="o", color=COLOURS["sgf"], capsize=3, label="measured"
    )
    formula = np.asarray(norm_variance(layers.astype(np.float32), NARROW))
    middle.plot(layers, formula, "k_", markersize=18, label="$(1 + 5/m)^l - 1$")
    finish(
        middle,
        title=f"Variance of $|x_l|^2$ at width {NARROW}",
        x="layer l",
        y="variance, bars: 3 standard errors",
        x_scale="linear",
        y_scale="linear",
        legend="upper left",
    )
    ticks(middle, layers)
    for k, distance in enumerate(ds["distance"].values):
        shade = 0.25 + 0.75 * k / (len(DISTANCES) - 1)
        right.plot(
            ds["least_eigenvalue"].values[k],
            ds["steps"].values[k],
            "o",
            color=COLOURS["sgd"],
            alpha=shade,
            label=f"distance {distance:g}",
        )
    finish(
        right,
        title=f"Gradient descent to the loss {config.loss:g}, width {config.trained}",
        x="least eigenvalue of the kernel of infinite width",
        y="steps",
    )
    return figure
