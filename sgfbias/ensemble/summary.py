"""Medians, quantiles and intervals of every cell of a sweep, as rows and as a picture.

Cells are read one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from sgfbias.core.types import Dataset
from sgfbias.study.plotting import COLOURS, legend_below, new_figure, ticks, tidy
from sgfbias.study.statistics import bootstrap, median_interval

LEVELS = (0.05, 0.95)
# With more seeds than this, the interval of the median comes from order statistics.
BOOTSTRAPPED = 2000
SHOWN = 6  # largest number of variables in a picture
LINES = ("#1b70b7", "#d95f02", "#4d4d4d", "#c23b8f", "#2a9d5c", "#8a6d3b")


class Cell(NamedTuple):
    """One variable in one cell.

    `finite` and `done` are the numbers of seeds with a finite value and of all seeds
    that are done. `low` and `high` are the ends of the 99% interval of the median, and
    `quantiles` the 5% and 95% quantiles over seeds.
    """

    point: dict[str, Any]
    finite: int
    done: int
    median: float
    low: float
    high: float
    quantiles: tuple[float, float]


def axes_of(dataset: Dataset) -> list[str]:
    """The names of the grid's axes, in order."""
    return [name for name, _ in json.loads(dataset.attrs["sweep"])["grid"]]


def scalars(dataset: Dataset) -> list[str]:
    """The names of the float variables with one number per seed, except `stop_time`.

    Those that begin with `final_` come first.
    """
    lead = (*axes_of(dataset), "seed")
    names = [
        str(n)
        for n, v in dataset.data_vars.items()
        if v.dims == lead and v.dtype.kind == "f" and n not in ("stop_time",)
    ]
    ends = [n for n in names if n.startswith("final_")]
    return sorted(ends or names) + sorted(n for n in names if ends and n not in ends)


def cells_of(dataset: Dataset, name: str) -> list[Cell]:
    """Summarise the variable `name` in every cell.

    **Raises:** `ValueError` if no variable of that name has one number per seed.
    """
    known = scalars(dataset)
    if name not in known:
        raise ValueError(
            f"there is no variable {name!r} with one number per seed; the variables are "
            f"{', '.join(known) or 'none'}"
        )
    axes, rows = axes_of(dataset), []
    for index in np.ndindex(*(dataset.sizes[axis] for axis in axes)):
        place = dict(zip(axes, index, strict=True))
        values = np.asarray(dataset[name].isel(place).values, np.float64)
        point = {
            axis: dataset[axis].values[k].item()
            if hasattr(dataset[axis].values[k], "item")
            else dataset[axis].values[k]
            for axis, k in place.items()
        }
        known_values = values[np.isfinite(values)]
        done = int(dataset["runs_done"].isel(place))
        if known_values.size < 2:
            nan = float("nan")
            rows.append(Cell(point, known_values.size, done, nan, nan, nan, (nan, nan)))
            continue
        short = known_values.size <= BOOTSTRAPPED
        low, high = (
            bootstrap(lambda v: np.median(v, axis=-1), known_values, draws=1000)
            if short
            else median_interval(known_values)
        )
        quantiles = np.quantile(known_values, LEVELS)
        rows.append(
            Cell(
                point,
                known_values.size,
                done,
                float(np.median(known_values)),
                low,
                high,
                (float(quantiles[0]), float(quantiles[1])),
            )
        )
    return rows


def plot(dataset: Dataset, names: list[str] | None = None) -> Any:
    """Plot medians, their 99% intervals and the middle 90% of the seeds.

    They are plotted against the first numeric axis with more than one value, with one
    line per value of the other axes. `names` are the variables to plot, by default the
    first six of `scalars`.
    """
    names = (names or scalars(dataset))[:SHOWN]
    axes = axes_of(dataset)
    along = next(
        (axis for axis in axes if dataset[axis].dtype.kind in "if" and dataset.sizes[axis] > 1),
        None,
    )
    columns = min(len(names), 3)
    rows = -(-len(names) // max(columns, 1))
    figure, panels = new_figure(
        max(rows, 1), max(columns, 1), size=(5.2 * max(columns, 1), 4.0 * max(rows, 1))
    )
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels.flat, names, strict=False):
        cells = cells_of(dataset, name)
        groups: dict[tuple, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(
                tuple((k, v) for k, v in cell.point.items() if k != along), []
            ).append(cell)
        for k, (others, members) in enumerate(groups.items()):
            colour = LINES[k % len(LINES)]
            label = _words((axis, value) for axis, value in others if dataset.sizes[axis] > 1)
            x = [cell.point[along] for cell in members] if along else [k]
            middle = np.array([cell.median for cell in members])
            panel.fill_between(
                x,
                *np.array([cell.quantiles for cell in members]).T,
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            error = np.abs(
                np.array(
                    [[c.median - c.low for c in members], [c.high - c.median for c in members]]
                )
            )
            panel.errorbar(
                x,
                middle,
                yerr=error,
                color=colour,
                marker="o",
                markersize=3.5,
                capsize=2,
                linewidth=1.4,
                label=label or None,
            )
        positive = all(c.quantiles[0] > 0 for c in cells if np.isfinite(c.median)) and any(
            np.isfinite(c.median) for c in cells
        )
        values = dataset[along].values if along else np.array([])
        wide = along is not None and values.min() > 0 and values.max() / values.min() > 8
        title = name.removeprefix("final_").replace("_", " ")
        units = str(dataset[name].attrs.get("units", "")).replace("*", "×").replace("^2", "²")
        tidy(
            panel,
            title=f"{title} at the end" if name.startswith("final_") else title,
            x=(along or "").replace("_", " "),
            y=units if units not in ("", "1") else title,
            x_scale="log" if wide else "linear",
            y_scale="log" if positive else "linear",
        )
        if along is not None and 2 <= dataset.sizes[along] <= 6:
            ticks(panel, values)
        elif along is None:
            panel.set_xticks([])
    if names and 1 < len(groups) <= 12:
        legend_below(figure, panels.flat[0])
    fixed = _words((axis, dataset[axis].values[0]) for axis in axes if dataset.sizes[axis] == 1)
    figure.suptitle(
        f"Medians with 99% intervals; shaded: the middle {LEVELS[1] - LEVELS[0]:.0%} of the seeds"
        + (f"; {fixed}" if fixed else ""),
        fontsize=9,
        color=COLOURS["gd"],
    )
    return figure


def _words(point: Iterable[tuple[str, Any]]) -> str:
    """The values of axes in words, for example "gamma 0.05, draw 3"."""
    return ", ".join(
        f"{axis.replace('_', ' ')} {value:.3g}"
        if isinstance(value, float)
        else f"{axis.replace('_', ' ')} {value}"
        for axis, value in point
    )
