"""The picture of the study is drawn from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.noise_anatomy import LABELS, OUTSIDE, Config
from sgfbias.diagonal.studies.noise_anatomy.claims import by_noise, ladders
from sgfbias.study.plotting import Axes, Figure, band, finish, panels
from sgfbias.study.statistics import finite

PALETTE = dict(
    zip(
        LABELS,
        ("#4d4d4d", "#1b70b7", "#5aa9e6", "#d95f02", "#f0a35e", "#2a8f5b", "#7a5195", "#c23b8f"),
        strict=True,
    )
)


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Four panels show the theorem's gap against dt, the effective alpha, and the
    validation error along the runs and of the selected solution.
    """
    figure, (theorem, alphas, along, errors) = panels(rows=2, columns=2, size=(13, 8.2))
    for name, (middle, _, _) in ladders(ds).items():
        theorem.plot(ds["dt"], middle, "o--" if name == OUTSIDE else "o-", color=PALETTE[name])
    for name, values in by_noise(ds, "validation_error").items():
        # The legend of this panel explains the colours of all panels.
        band(along, ds["time"].values, values, colour=PALETTE[name], label=LABELS[name])
    finish(
        theorem,
        title="Distance from the theorem's solution, in weights",
        x="dt / γ",
        y="median relative gap",
    )
    finish(
        along,
        title="Validation error along the runs",
        x="flow time",
        y="validation error",
        room=-0.45,
        legend="lower left",
    )
    effective = {
        name: np.exp(np.nanmean(values, axis=1))
        for name, values in by_noise(ds, "log_alpha").items()
    }
    _bars(alphas, effective, title="Effective initialisation", x="effective α at the end")
    _bars(
        errors,
        by_noise(ds, "landed_error"),
        title="Error of the selected solution",
        x="validation error",
    )
    return figure


def _bars(panel: Axes, rows: dict[str, np.ndarray], *, title: str, x: str) -> None:
    """Draw one line per noise model: the median and the middle 90% of its seeds."""
    for place, (name, values) in enumerate(rows.items()):
        low, middle, high = np.quantile(finite(values), [0.05, 0.5, 0.95])
        panel.plot([low, high], [place, place], color=PALETTE[name], linewidth=4, alpha=0.5)
        panel.plot([middle], [place], "o", color=PALETTE[name])
    finish(
        panel,
        title=f"{title}, 90% of the seeds",
        x=x,
        y="noise model",
        x_scale="linear",
        y_scale="linear",
    )
    panel.set_yticks(range(len(rows)), [LABELS[name] for name in rows])
    panel.invert_yaxis()
