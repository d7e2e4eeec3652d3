"""The picture of the study, from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.hyper_gradient import Config
from sgfbias.diagonal.studies.hyper_gradient.claims import (
    MODES,
    TOLERANCE,
    converged,
    distance,
    gaps,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the gaps between derivatives and central differences and between the two
    modes, and the errors of the limit's gradient against the steps before landing.
    """
    figure, (left, right) = panels(columns=2, size=(13.5, 6))
    off, at = gaps(ds), np.arange(ds.sizes["row"])[::-1]
    for gap, style, colour, label in (
        (off["mean"], "o", COLOURS["sgf"], "mean, against central differences"),
        (off["single"], "|", COLOURS["sgd"], "worst seed, against central differences"),
        (ds["mode_gap"].values, "x", COLOURS["gd"], "forward against reverse mode"),
    ):
        left.plot(np.maximum(gap, 1e-17), at, style, color=colour, label=label)
    for tolerance, colour, label in (
        (TOLERANCE, COLOURS["sgf"], "tolerance, against central differences"),
        (MODES, COLOURS["gd"], "tolerance, forward against reverse mode"),
    ):
        left.axvline(tolerance, color=colour, linestyle=":", linewidth=1, label=label)
    finish(
        left,
        title="Gaps to central differences, and between modes",
        x="relative gap",
        y="outcome and hyperparameter",
        y_scale="linear",
        room=-0.2,
        legend="lower left",
    )
    left.set_yticks(at, ds["row"].values, fontsize=7)
    for name, other, colour, style, label in (
        ("unrolled", "limit", COLOURS["gd"], "o--", "unrolled iterate"),
        ("frozen", "limit", COLOURS["control"], "o--", "control: path held fixed"),
        ("uncorrected", "limit", COLOURS["sgd"], "o-", "landed, uncorrected"),
        ("landed", "limit", COLOURS["sgf"], "o-", "landed, corrected"),
        ("landed", "uncorrected", "black", ":", "landing estimate"),
    ):
        if converged(ds).any():
            right.plot(
                ds["steps"],
                np.median(distance(ds, name, other), axis=1),
                style,
                color=colour,
                label=label,
                linewidth=1.5,
            )
    finish(
        right,
        title="Error of the limit's gradient",
        x="steps before landing",
        y="median error, relative to the unrolled limit",
    )
    return figure
