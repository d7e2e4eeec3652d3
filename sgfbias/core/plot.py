"""Pictures of runs for a first look: `runs.plot()`.

Matplotlib is imported only when a picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # At run time these are not needed, and importing Matplotlib is slow.
    Axes = Figure = Any

STATUS_COLOURS = ("#1b70b7", "#8fbbe0", "#d95f02", "#c23b8f", "#8c6d31")
SHOWN = (0.05, 0.5, 0.95)  # quantiles over seeds


def grid(panels: int, width: float = 4.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure that needs no display, and its panels, at most three in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if panels == 4 else min(panels, 3)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[panels:]:
        unused.remove()
    return figure, axes[:panels]


def median_band(
    axes: Axes,
    x: Any,
    rows: Any,
    *,
    colour: str,
    label: str = "",
    levels: tuple[float, float] = (SHOWN[0], SHOWN[2]),
    style: str = "-",
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw the median over seeds against x, and the band between two quantiles.

    Values that are not finite are left out. A single seed has no band.

    **Arguments:**

    - `x`: (points,).
    - `rows`: (seeds, points).
    - `colour`, `label`, `style`: colour, legend entry and line style of the median.
    - `levels`: the two quantiles, by default 5% and 95%.

    **Returns:** the two quantiles, each (points,), or None if no value is finite.
    """
    shown = np.where(np.isfinite(rows), rows, np.nan)
    shown = shown[~np.isnan(shown).all(axis=1)]
    if shown.size == 0:
        return None
    known = ~np.isnan(shown).all(axis=0)
    found = np.full((3, known.size), np.nan)
    found[:, known] = np.nanquantile(shown[:, known], [levels[0], 0.5, levels[1]], axis=0)
    low, middle, high = found
    if len(shown) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, middle, style, color=colour, label=label or None, linewidth=1.5, markersize=4)
    return low, high


def series(
    axes: Axes,
    time: np.ndarray,
    values: np.ndarray,
    label: str,
    unit: str,
    clock: str = "flow time",
) -> None:
    """Draw the median over seeds and the band from the 5% to the 95% quantile against
    time. A series of one run is a line.

    **Arguments:**

    - `time`: (times,).
    - `values`: (times,), or (seeds, times). Seeds with values that are not finite are
      left out.
    - `label`, `unit`: of the series.
    - `clock`: what `time` measures.
    """
    rows = np.atleast_2d(np.asarray(values, np.float64))
    rows = rows[np.isfinite(rows).all(axis=1)]
    positive = time > 0
    drawn = median_band(axes, time[positive], rows[:, positive], colour=STATUS_COLOURS[0])
    if drawn is not None:
        low, high = (edge.min() if edge is drawn[0] else edge.max() for edge in drawn)
        axes.set_xscale("log")
        if low > 0 and high > 20 * low:
            axes.set_yscale("log")
    axes.set_title(label.replace("_", " "), loc="left", fontsize=10)
    axes.set_xlabel(clock)
    axes.set_ylabel(unit)


def statuses(axes: Axes, counts: Mapping[str, int], words: Sequence[str]) -> None:
    """Draw how many seeds ended with each status."""
    known = [word for word in words if counts.get(word)]
    axes.barh(
        known,
        [counts[word] for word in known],
        color=[STATUS_COLOURS[words.index(word)] for word in known],
    )
    for k, word in enumerate(known):
        axes.annotate(f" {counts[word]:,}", (counts[word], k), va="center", fontsize=9)
    axes.margins(x=0.2)
    axes.set_title("how the seeds ended", loc="left", fontsize=10)
    axes.set_xlabel("number of seeds")


def table(title: str, rows: Mapping[str, Any]) -> str:
    """A table of two columns in HTML, for notebooks."""
    from html import escape

    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(str(key))}</th>"
        f"<td style='text-align:left'>{escape(str(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{cells}</tbody></table>"
