"""The picture of the study `recurrent-cells`."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.recurrent.studies.cells import ARMS, LEVEL, LINEAR, RADII, Config
from sgfbias.study.plotting import COLOURS, Figure, finish, panels, ticks

TASK_COLOURS = (COLOURS["sgf"], COLOURS["sgd"], COLOURS["gd"])
STYLES = {"one length": "o--", "mixed lengths": "s-", "tail penalty": "^-"}


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the loss of cells against the length, with the median horizon, the memory of
    one of them, and the loss of linear networks.
    """
    figure, (left, middle, right) = panels(columns=3)
    lengths = ds["length"].values
    for t, (task, colour) in enumerate(zip(ds["task"].values, TASK_COLOURS, strict=False)):
        for a, arm in enumerate(ARMS):
            rows, style = ds["loss"].values[t, a], STYLES[arm]
            middle_row = np.median(rows, axis=0)
            left.fill_between(lengths, rows.min(0), rows.max(0), color=colour, alpha=0.1, lw=0)
            left.plot(lengths, middle_row, style, ms=4, color=colour, label=f"{task}, {arm}")
            horizon = np.median(ds["horizon"].values[t, a])
            if horizon in lengths:
                at = middle_row[list(lengths).index(horizon)]
                left.plot(horizon, at, "o", ms=11, mfc="none", color=colour)
            gain = ds["gain"].values[t, a]
            line = style.strip("os^")
            middle.plot(np.arange(len(gain)), gain, line, color=colour, label=f"{task}, {arm}")
    left.plot([], [], "o", ms=11, mfc="none", color="grey", label="holds to here, median")
    left.axhline(LEVEL, color="grey", linestyle=":", label="the level")
    middle.axvline(config.length - 0.5, color="grey", linestyle=":", label="length of training")
    colours = (COLOURS["gd"], COLOURS["sgd"], COLOURS["sgf"])
    for a, (arm, colour) in enumerate(zip(LINEAR, colours, strict=True)):
        rows = ds["linear_loss"].values[a, -1]
        for row in rows:
            right.plot(lengths, row, color=colour, alpha=0.2, lw=0.8)
        right.plot(lengths, np.median(rows, axis=0), STYLES[arm], ms=4, color=colour, label=arm)
    finish(left, title="Cells", x="length", y="loss / variance", room=0.4)
    finish(
        middle,
        title="Memory of one network",
        x="lag",
        y="log of the gain",
        x_scale="linear",
        y_scale="linear",
        room=0.3,
    )
    finish(
        right,
        title=f"Linear networks, radius {RADII[-1]:g} at the start",
        x="length",
        y="loss / variance",
        room=0.2,
    )
    for panel in (left, right):
        ticks(panel, lengths)
    return figure
