"""The picture of the study, from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.alpha_shape import Config
from sgfbias.study.plotting import COLOURS, Figure, distribution, finish, log_band, panels
from sgfbias.study.statistics import geometric_mean


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the learned alphas, the course of the searches, and the distributions of the
    error on held-out tasks.
    """
    figure, (left, middle, right) = panels(columns=3, size=(16, 4.8))
    x, on = ds["coordinate"].values, ds["support"].values
    for name, where, style, colour, label in (
        ("learned", ~on, "o", COLOURS["gd"], "off the support"),
        ("learned", on, "o", COLOURS["sgd"], "on the support"),
        ("uniform", on | ~on, "--", COLOURS["sgf"], "best uniform α"),
        ("scattered", on | ~on, "x", COLOURS["control"], "no shared support (control)"),
    ):
        left.plot(
            x[where],
            ds[f"log_alpha_{name}"].values[where],
            style,
            color=colour,
            markersize=5,
            label=label,
        )
    finish(
        left,
        title="Learned log α, one per coordinate",
        x="coordinate",
        y="log α",
        x_scale="linear",
        y_scale="linear",
    )
    for kind, colour, label in (
        ("", COLOURS["sgd"], "shared support"),
        ("scattered_", COLOURS["control"], "no shared support (control)"),
    ):
        value, error = ds[f"{kind}search_value"], ds[f"{kind}search_error"]
        log_band(
            middle, np.arange(value.size), value, error, colour=colour, label=f"training, {label}"
        )
        middle.axhline(
            geometric_mean(ds[f"held_{kind}learned"]),
            color=colour,
            linestyle=":",
            linewidth=1.6,
            label=f"held out, {label}",
        )
    finish(
        middle,
        title="Error during the search",
        x="iteration",
        y="geometric mean of the error, ±2 standard errors",
        x_scale="linear",
        room=-0.3,
        legend="lower left",
    )
    for name, colour, label, style in (
        ("learned", COLOURS["sgd"], "learned α", "-"),
        ("oracle", COLOURS["gd"], "support known", "--"),
        ("uniform", COLOURS["sgf"], "best uniform α", "-"),
        ("l1", COLOURS["sgf"], "minimum l1", ":"),
        ("elsewhere_learned", COLOURS["control"], "learned α, another support", "-"),
    ):
        distribution(right, ds[f"held_{name}"], colour=colour, label=label, style=style)
    finish(
        right,
        title="Held-out tasks",
        x="error |β − β*|²",
        y="distribution function",
        y_scale="linear",
        room=0.3,
        legend="upper left",
    )
    return figure
