"""The picture of figure 3, drawn from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.pesme2021 import common
from sgfbias.diagonal.studies.pesme2021.fig3 import QUIET, SCHEMES, WIDTHS, Config
from sgfbias.study.plotting import COLOURS, Figure, distribution, finish, line, panels


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw loss and error against time, the distributions of the final errors, and the
    errors of the schemes on one Brownian path.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (left, right, errors, path) = panels(rows=2, columns=2, size=(12, 8))
    for panel, quantity in ((left, "loss"), (right, "validation_error")):
        common.curves(panel, ds, quantity, common.NAMES)
        levels = np.nanquantile(ds[f"weights_{quantity}"], [0.05, 0.5, 0.95], axis=0)
        for level, label in zip(levels, ("", "flow, Euler in w, dt = γ/10", ""), strict=True):
            line(
                panel,
                ds["scheme_time"].values,
                level,
                colour=COLOURS["control"],
                label=label,
                style="--",
            )
        finish(panel, title=common.TITLES[quantity], x="flow time", y=common.LABELS[quantity])
    for name, (label, colour) in (
        common.NAMES | {"quiet": (f"flow, noise of γ/{QUIET}", COLOURS["control"])}
    ).items():
        if name == "gd":
            errors.axvline(float(common.final(ds, name)), color=colour, label=label)
        else:
            distribution(errors, common.final(ds, name), colour=colour, label=label)
    finish(
        errors,
        title="Final validation errors",
        x=common.LABELS["validation_error"],
        y="share of seeds",
        y_scale="linear",
    )
    errors.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    errors.xaxis.set_minor_formatter(NullFormatter())
    widths, middle = (
        list(WIDTHS.values()),
        dict(zip(SCHEMES, np.nanmedian(ds["path_distance"], axis=1), strict=True)),
    )
    for name, style, colour, label in (
        ("break_predicted", ":", "black", "error of log(w₊w₋), predicted"),
        ("break", "o-", COLOURS["control"], "error of log(w₊w₋), Euler in w"),
    ):
        path.plot(
            widths,
            np.sqrt(np.nanmean(np.square(ds[f"path_{name}"]), axis=1)),
            style,
            color=colour,
            label=label,
        )
    for kind, colour, label in (
        ("weights", COLOURS["control"], "|β − fine solution|, Euler in w (median)"),
        ("mirror", COLOURS["sgf"], "|β − fine solution|, mirror system (median)"),
    ):
        chosen = [name for name in SCHEMES if name.startswith(kind)]
        path.plot(
            [SCHEMES[name] for name in chosen],
            [middle[name] for name in chosen],
            "s--",
            color=colour,
            label=label,
        )
    finish(path, title="Schemes on one Brownian path", x="dt / γ", y="error")
    return figure
