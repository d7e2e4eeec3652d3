"""Pictures shared by the studies. Matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

# Distinguishable with colour-vision deficiencies and in grey.
COLOURS = {"gd": "#4d4d4d", "sgd": "#d95f02", "sgf": "#1b70b7", "control": "#c23b8f"}


def new_figure(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its axes, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def band(axes: Any, time: np.ndarray, values: np.ndarray, *, colour: str, label: str, levels: tuple[float, float] = (0.05, 0.95)) -> None:
    """Median over the first axis, and the band between two quantiles; non-finite seeds are left out."""
    shown = np.where(np.isfinite(values), values, np.nan)
    shown = shown[~np.isnan(shown).all(axis=1)]
    if shown.size == 0:
        return
    low, middle, high = np.nanquantile(shown, [levels[0], 0.5, levels[1]], axis=0)
    keep = time > 0
    axes.fill_between(time[keep], low[keep], high[keep], color=colour, alpha=0.2, linewidth=0)
    axes.plot(time[keep], middle[keep], color=colour, label=label, linewidth=1.5)


def line(axes: Any, time: np.ndarray, values: np.ndarray, *, colour: str, label: str, style: str = "-") -> None:
    """One curve on a logarithmic time axis."""
    keep = time > 0
    axes.plot(time[keep], values[keep], color=colour, label=label, linestyle=style, linewidth=1.5)


def tidy(axes: Any, *, title: str, x: str, y: str, x_scale: str = "log", y_scale: str = "log") -> None:
    """Title, labels, scales and a light grid."""
    axes.set(title=title, xlabel=x, ylabel=y, xscale=x_scale, yscale=y_scale)
    axes.grid(True, which="major", alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, metadata={"Software": "sgfbias"})
