"""Panels and curves that the studies share.

Matplotlib is imported only when a picture is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:  # At run time these are not needed, and importing Matplotlib is slow.
    Axes = Figure = Any

# The colours stay distinguishable with colour-vision deficiencies and in grey.
COLOURS = {"gd": "#4d4d4d", "sgd": "#d95f02", "sgf": "#1b70b7", "control": "#c23b8f"}


def new_figure(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure that needs no display, and its panels (rows, columns).

    **Arguments:**

    - `rows`, `columns`: numbers of panels.
    - `size`: width and height of the figure in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def band(
    axes: Axes,
    time: np.ndarray,
    values: np.ndarray,
    *,
    colour: str,
    label: str,
    levels: tuple[float, float] = (0.05, 0.95),
) -> None:
    """Draw the median over seeds against time, and the band between two quantiles.

    Values that are not finite are left out. So are times that are not positive, because
    the time axis is usually logarithmic.

    **Arguments:**

    - `time`: (times,).
    - `values`: (seeds, times).
    - `colour`, `label`: colour and legend entry of the median.
    - `levels`: the two quantiles, by default 5% and 95%.
    """
    shown = np.where(np.isfinite(values), values, np.nan)
    shown = shown[~np.isnan(shown).all(axis=1)]
    if shown.size == 0:
        return
    low, middle, high = np.nanquantile(shown, [levels[0], 0.5, levels[1]], axis=0)
    keep = time > 0
    axes.fill_between(time[keep], low[keep], high[keep], color=colour, alpha=0.2, linewidth=0)
    axes.plot(time[keep], middle[keep], color=colour, label=label, linewidth=1.5)


def line(
    axes: Axes, time: np.ndarray, values: np.ndarray, *, colour: str, label: str, style: str = "-"
) -> None:
    """Draw one curve on a logarithmic time axis; times that are not positive are left
    out.
    """
    keep = time > 0
    axes.plot(time[keep], values[keep], color=colour, label=label, linestyle=style, linewidth=1.5)


def tidy(
    axes: Axes, *, title: str, x: str, y: str, x_scale: str = "log", y_scale: str = "log"
) -> None:
    """Set the title, labels and scales of a panel, and draw a light grid."""
    axes.set(title=title, xlabel=x, ylabel=y, xscale=x_scale, yscale=y_scale)
    axes.grid(True, which="major", alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def panels(
    *, columns: int, rows: int = 1, size: tuple[float, float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure and the list of its panels, row by row.

    **Arguments:**

    - `columns`, `rows`: numbers of panels.
    - `size`: width and height of the figure in inches; by default 6 by 4.4 per panel.
    """
    figure, axes = new_figure(rows, columns, size=size or (6 * columns, 4.4 * rows))
    return figure, list(axes.ravel())


def finish(
    axes: Axes, *, title: str, x: str, y: str, x_scale: str = "log", y_scale: str = "log"
) -> None:
    """Finish a panel: set its title, labels and scales, and draw a light grid and the
    legend. There is no legend if no curve has a label.
    """
    tidy(axes, title=title, x=x, y=y, x_scale=x_scale, y_scale=y_scale)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def ticks(axes: Axes, places: Any) -> None:
    """Put ticks of the x axis only at the given places, labelled with plain numbers.
    Call this after `finish`.
    """
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()


def legend_below(figure: Figure, axes: Axes) -> None:
    """Draw one legend below all panels, with the labels of the panel `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8
    )


def quantile_band(
    axes: Axes,
    x: Any,
    rows: Any,
    *,
    colour: str,
    label: str,
    levels: tuple[float, float] = (0.05, 0.95),
    style: str = "o-",
) -> None:
    """Draw the median over seeds against x, and the band between two quantiles.

    Values that are not finite are left out.

    **Arguments:**

    - `x`: (points,).
    - `rows`: (points, seeds).
    - `colour`, `label`, `style`: colour, legend entry and line style of the median.
    - `levels`: the two quantiles, by default 5% and 95%.
    """
    low, middle, high = np.nanquantile(
        np.where(np.isfinite(rows), rows, np.nan), [levels[0], 0.5, levels[1]], axis=1
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, middle, style, color=colour, label=label, linewidth=1.5, markersize=4)


def distribution(axes: Axes, sample: Any, *, colour: str, label: str, style: str = "-") -> None:
    """Draw the empirical distribution function of a sample, without the values that are
    not finite.
    """
    values = np.sort(np.asarray(sample)[np.isfinite(sample)])
    axes.plot(
        values, np.linspace(0, 1, values.size), style, color=colour, label=label, linewidth=1.5
    )


def interval_bars(
    axes: Axes, x: Any, estimates: Any, *, colour: str, label: str = "", style: str = "o"
) -> None:
    """Draw estimates against x, with their intervals as bars.

    **Arguments:**

    - `x`: (points,).
    - `estimates`: a triple (value, low, high) for each point, such as an `Estimate`.
    - `colour`, `label`, `style`: colour, legend entry and style of the markers.
    """
    value, low, high = np.asarray(list(estimates), np.float64).T
    axes.errorbar(
        x,
        value,
        yerr=[value - low, high - value],
        fmt=style,
        color=colour,
        label=label or None,
        capsize=2,
        markersize=4,
    )


def log_band(
    axes: Axes, x: Any, value: Any, error: Any, *, colour: str, label: str = "", style: str = "-"
) -> None:
    """Draw exp(value) against x, and the band from exp(value - 2 error) to
    exp(value + 2 error).

    **Arguments:**

    - `x`: (points,).
    - `value`, `error`: (points,): a mean logarithm and its standard error.
    - `colour`, `label`, `style`: colour, legend entry and line style of the curve.
    """
    low, middle, high = (
        np.exp(np.asarray(value) + sign * np.asarray(error)) for sign in (-2, 0, 2)
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, middle, style, color=colour, label=label or None, linewidth=1.6, markersize=3)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, without the version of Matplotlib in its metadata."""
    figure.savefig(path, metadata={"Software": "sgfbias"})
