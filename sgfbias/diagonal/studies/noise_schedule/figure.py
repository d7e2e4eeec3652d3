"""The picture of the study is drawn from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.noise_schedule import Config
from sgfbias.study.plotting import (
    COLOURS,
    Figure,
    distribution,
    legend_below,
    log_band,
    panels,
    tidy,
)
from sgfbias.study.statistics import geometric_mean

# Schedule -> its colour, its line style and its label.
STYLES = {
    "learned": (COLOURS["sgf"], "-", "learned"),
    "constant": (COLOURS["gd"], "-", "best constant"),
    "pulse": (COLOURS["sgd"], "--", "best pulse"),
    "none": ("#999999", ":", "no label noise"),
    "uniform": ("#999999", "-.", "constant that spends the budget"),
    "reversed": (COLOURS["control"], "-", "learned, backwards in time"),
}


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Three panels show the schedules, the search, and the distributions of the errors
    on held-out seeds.
    """
    figure, (left, middle, right) = panels(columns=3, size=(15, 4.8))
    value, error, at = (ds[name].values for name in ("search_value", "search_error", "iteration"))
    log_band(middle, at, value, error, colour=STYLES["learned"][0], style="o-")
    for rule, (colour, style, label) in STYLES.items():
        distribution(right, ds["error"].sel(rule=rule), colour=colour, label=label, style=style)
        if rule in ("learned", "constant", "pulse"):
            edges = np.append(ds["piece"].values, config.time)
            left.stairs(
                ds["delta"].sel(rule=rule).values,
                edges,
                baseline=None,
                color=colour,
                linestyle=style,
                linewidth=1.8,
            )
        if rule in ("constant", "pulse"):
            middle.axhline(
                geometric_mean(ds["train_error"].sel(rule=rule)), color=colour, linestyle=style
            )
    left.set_ylim(bottom=0)
    tidy(
        left,
        title=f"Schedules of label noise with ∫δ² dt at most {config.budget:g}",
        x="flow time",
        y="δ",
        x_scale="linear",
        y_scale="linear",
    )
    tidy(
        middle,
        title="Search for the schedule, training seeds",
        x="iteration",
        y="error, geometric mean ± 2 standard errors",
        x_scale="linear",
    )
    tidy(
        right,
        title="Validation error of the last iterate, held-out seeds",
        x="validation error",
        y="share of the seeds with a smaller error",
        y_scale="linear",
    )
    legend_below(figure, right)
    return figure
