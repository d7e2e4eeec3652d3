"""The picture of the study `fourier-neuron`."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.fourier.studies.neuron import PATHS, Config
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import mean_t


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw mean distances before and after, disagreements against both formulas, and
    the labels that the three paths keep.
    """
    figure, (left, middle, right) = panels(columns=3)
    before, after = (ds[f"distance_{name}"].sel(p=1.0).values for name in ("before", "reached"))
    left.plot(before, after, ".", color=COLOURS["sgf"], label="neurons", markersize=4)
    ends = np.array([before.min(), after.max()])
    left.plot(ends, ends, "k:", linewidth=1, label="no gain")
    finish(
        left,
        title="Mean l1 distance from the hyperplane",
        x="before",
        y="stabilised",
        x_scale="linear",
        y_scale="linear",
    )
    for kind, marker, filled in (("gaussian", "o", "full"), ("bound", "^", "none")):
        for name, colour in (("normal", COLOURS["sgf"]), ("big", COLOURS["control"])):
            middle.plot(
                ds[f"{name}_exact"],
                ds[f"{name}_{kind}"],
                marker,
                fillstyle=filled,
                color=colour,
                markersize=3.5,
                alpha=0.6,
                label=f"{'Sheppard' if kind == 'gaussian' else 'bound'}, "
                + ("normal weights" if name == "normal" else "one big weight"),
            )
    top = max(float(ds["big_exact"].max()), float(ds["normal_exact"].max()))
    middle.plot([0, top], [0, top], "k:", linewidth=1, label="equal")
    finish(
        middle,
        title="Probability that old and new label differ",
        x="exact",
        y="by formula",
        x_scale="linear",
        y_scale="linear",
        room=0.25,
    )
    for (name, label), colour, style in zip(
        PATHS.items(),
        (COLOURS["sgf"], COLOURS["sgd"], COLOURS["gd"]),
        ("o-", "s--", "^:"),
        strict=True,
    ):
        values = [mean_t(row) for row in ds[f"agreement_{name}"].values]
        right.plot(ds["way"], [v.value for v in values], style, color=colour, label=label)
    finish(
        right,
        title="Labels kept on three ways from w to sgn(w)",
        x="fraction of the gain in mean l1 distance",
        y="agreement with the old labels, mean",
        x_scale="linear",
        y_scale="linear",
    )
    return figure
