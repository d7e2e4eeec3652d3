"""Panels and curves that the studies share.

Matplotlib is imported only when a picture is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sgfbias.core.plot import median_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:  # At run time these are not needed, and importing Matplotlib is slow.
    Axes = Figure = Any

# Ending of a picture -> what is written about its origin.
METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": "sgfbias"},
    ".svg": {"Creator": "sgfbias", "Date": None},
    ".pdf": {"Creator": "sgfbias", "Producer": None, "CreationDate": None},
}
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
    keep = time > 0
    median_band(axes, time[keep], values[:, keep], colour=colour, label=label, levels=levels)


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
    """Set the title, labels and scales of a panel, and draw a light grid. An axis on
    which nothing is positive and finite is linear.
    """
    least_x, least_y = np.isfinite(axes.dataLim.minpos)
    x_scale, y_scale = x_scale if least_x else "linear", y_scale if least_y else "linear"
    axes.set(xscale=x_scale, yscale=y_scale)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=9)
    for axis, scale in ((axes.xaxis, x_scale), (axes.yaxis, y_scale)):
        if scale == "log":
            _readable(axis)
    axes.grid(True, which="major", alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _readable(axis: Any) -> None:
    """Give a logarithmic axis ticks that can be read whatever its range: powers of ten
    over several decades, otherwise 1, 2, 5 times these, and over less than these
    evenly spaced numbers. Labels are plain numbers from 0.001 to 10,000.
    """
    from matplotlib import ticker

    class Ticks(ticker.LogLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            low, high = sorted((vmin, vmax))
            if low <= 0 or not np.isfinite(high) or high > 40 * low:
                return super().tick_values(vmin, vmax)
            tens = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
            some = np.sort(np.outer([1, 2, 5], tens).ravel())
            some = some[(some >= low) & (some <= high)]
            return some if some.size > 2 else ticker.MaxNLocator(4).tick_values(low, high)

    def label(value: float, _: Any) -> str:
        low, high = axis.get_view_interval()
        if value <= 0:
            return ""
        if min(low, high) >= 5e-4 and max(low, high) <= 2e4:
            return f"{value:.4g}"
        power = int(np.floor(np.log10(value) + 1e-9))
        front = value / 10.0**power
        mantissa = "" if abs(front - 1) < 1e-6 else rf"{front:.3g}\times"
        return rf"$\mathdefault{{{mantissa}10^{{{power}}}}}$"

    axis.set_major_locator(Ticks())
    axis.set_major_formatter(ticker.FuncFormatter(label))
    axis.set_minor_formatter(ticker.NullFormatter())


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
    axes: Axes,
    *,
    title: str,
    x: str,
    y: str,
    x_scale: str = "log",
    y_scale: str = "log",
    room: float = 0.0,
    legend: Any = "best",
) -> None:
    """Finish a panel: set its title, labels and scales, and draw a light grid and the
    legend. There is no legend if no curve has a label.

    **Arguments:**

    - `title`, `x`, `y`: the title and the labels of the axes.
    - `x_scale`, `y_scale`: "log" or "linear".
    - `room`: free space above the curves for the legend, as a fraction of the panel.
      Negative space is below the curves.
    - `legend`: where the legend is, as for Matplotlib.
    """
    tidy(axes, title=title, x=x, y=y, x_scale=x_scale, y_scale=y_scale)
    if room:
        scale = axes.yaxis.get_transform()
        low, high = scale.transform(np.asarray(axes.get_ylim()))
        grown = (high - low) / (1 - abs(room))
        ends = (low, low + grown) if room > 0 else (high - grown, high)
        marked = axes.get_yticks()
        axes.set_ylim(*scale.inverted().transform(np.asarray(ends)))
        if y_scale == "linear":  # the free space has no ticks, as it has no data
            axes.set_yticks(marked[(marked >= low) & (marked <= high)])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=legend, fontsize=8, framealpha=0.8, edgecolor="none", borderpad=0.2)


def ticks(axes: Axes, places: Any) -> None:
    """Put ticks of the x axis only at the given places, labelled with plain numbers.
    Call this after `finish`.
    """
    axes.set_xticks(places, [f"{place:.3g}" for place in places])
    axes.minorticks_off()


def legend_below(figure: Figure, axes: Axes) -> None:
    """Draw one legend below all panels, with the labels of the panel `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), int(figure.get_figwidth() / 2)))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
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
    median_band(axes, x, np.asarray(rows).T, colour=colour, label=label, levels=levels, style=style)


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


def check_ending(path: Path) -> None:
    """Refuse the path of a picture that ends in anything but .png, .svg or .pdf.

    **Raises:** `ValueError` that names the path.
    """
    if path.suffix.lower() not in METADATA:
        raise ValueError(
            f"the picture must end in {', '.join(METADATA)}, but is {path}; the ending chooses "
            "the format"
        )


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, SVG or PDF, which the ending of the path chooses.

    The same figure gives the same file: neither a date nor the version of Matplotlib is
    written.

    **Raises:** `ValueError` for another ending.
    """
    import matplotlib as mpl

    check_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "sgfbias"}):
        figure.savefig(path, metadata=METADATA[path.suffix.lower()])
