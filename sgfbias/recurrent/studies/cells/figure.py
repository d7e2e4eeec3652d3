"""The picture of the study `recurrent-cells`."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.recurrent.studies.cells import ARMS, FACTORS_OF, LEVEL, LINEAR, RADII, SCALES, Config
from sgfbias.study.plotting import COLOURS, Axes, Figure, finish, panels, ticks

TASK_COLOURS = (COLOURS["sgf"], COLOURS["sgd"], COLOURS["gd"])
STYLES = {"one length": "o--", "mixed lengths": "s-", "tail penalty": "^-"}


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the loss of cells against the length, with the median horizon, the memory of
    one of them, the loss of linear networks, and, unless the sequences are a user's
    own, that of scaled cells against what their memory says.
    """
    figure, (left, middle, right, last) = panels(columns=2, rows=2)
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
    if "scaled_loss" not in ds:
        last.set_axis_off()
        return figure
    _scaled(last, ds, config)
    return figure


def _scaled(panel: Axes, ds: xr.Dataset, config: Config) -> None:
    """Draw the loss of scaled cells on long sequences against the loss in training and
    the energy of their memory gain beyond it, and the line where both are equal.
    """
    first, last = np.moveaxis(ds["scaled_loss"].values.astype(np.float64), -1, 0)
    gain = ds["scaled_gain"].values.astype(np.float64)[..., config.length :]
    found = first + np.sum(np.exp(2 * gain), axis=-1)
    for kind, colour, marker in zip(FACTORS_OF, TASK_COLOURS, "o^s", strict=True):
        rows = [k for k, (name, _) in enumerate(SCALES) if name == kind]
        x, y = found[rows].ravel(), last[rows].ravel()
        panel.plot(x, y, marker, ms=5, color=colour, alpha=0.7, label=kind)
    ends = np.asarray([np.nanmin(found), np.nanmax(last)])
    panel.plot(ends, ends, color="grey", linestyle=":", label="equal")
    finish(
        panel,
        title="Cells of three kinds that return their last input",
        x=f"loss at length {config.length} + energy of the gain at later lags",
        y=f"loss / variance at length {ds['end'].values[-1]}",
    )
