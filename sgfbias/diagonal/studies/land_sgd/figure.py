"""The plot of the study, drawn from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.land_sgd import DYNAMICS, Config
from sgfbias.diagonal.studies.land_sgd.rungs import judged
from sgfbias.study.plotting import COLOURS, Axes, Figure, finish, panels, quantile_band
from sgfbias.study.statistics import mean

SHADES = {
    "sgd": COLOURS["sgd"],
    "replaced": "#e6a03c",
    "distinct": "#8c510a",
    "mean_loss": COLOURS["sgf"],
    "per_sample": "#5ab4ac",
}
SHORT = {
    "sgd": "SGD, batches of 1",
    "replaced": "SGD, larger batches",
    "distinct": "the same, without replacement",
    "mean_loss": "mean-loss flow",
    "per_sample": "per-sample flow",
}
ANSWERS = {
    "iterate": ("iterate", COLOURS["gd"]),
    "selected": ("selected at α_T, without the offset", COLOURS["control"]),
    "landed": ("landed: selected at α_T and the offset", COLOURS["sgf"]),
    "corrected": ("landed and corrected by the expected rest", COLOURS["sgd"]),
}


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the distances from SGD's limit against the length of the run, those of all
    dynamics, the error estimates against the errors, and the fall of log alpha relative
    to its predictions.
    """
    figure, axes = panels(rows=2, columns=2, size=(12.5, 8.8))
    for draw, panel in zip((_sgd, _all, _estimates, _falls), axes, strict=True):
        draw(panel, ds)
    return figure


def _lengths(panel: Axes, steps: np.ndarray) -> None:
    """Ticks at the lengths that were landed."""
    panel.set_xticks(steps, [f"{count:,}" for count in steps])
    panel.minorticks_off()


def _sgd(panel: Axes, ds: xr.Dataset) -> None:
    steps, data = ds["steps"].values, ds.sel(dynamics="sgd")
    size = data["size"].values
    for name, (label, colour) in ANSWERS.items():
        quantile_band(panel, steps, data[name].values / size, colour=colour, label=label)
    finish(
        panel,
        title="SGD with batches of 1: distance from its own limit",
        x="iterations before landing",
        y="distance / length of the limit",
        room=-0.35,
        legend="lower left",
    )
    _lengths(panel, steps)


def _all(panel: Axes, ds: xr.Dataset) -> None:
    steps = ds["steps"].values
    for name in DYNAMICS:
        data = ds.sel(dynamics=name)
        for key, style in (("landed", "o:"), ("corrected", "o-")):
            panel.plot(
                steps,
                np.nanmedian(data[key].values / data["size"].values, axis=1),
                style,
                color=SHADES[name],
                markersize=4,
                label=SHORT[name] if key == "corrected" else None,
            )
    for key, style in (("gd_landed", "s:"), ("gd_corrected", "s-")):
        panel.plot(
            steps,
            ds[key].values / float(ds["gd_size"]),
            style,
            color=COLOURS["gd"],
            markersize=4,
            label="gradient descent" if key == "gd_corrected" else None,
        )
    panel.plot([], [], ":", color="0.4", label="dotted: not corrected")
    finish(
        panel,
        title="All dynamics: landed, and corrected",
        x="iterations before landing",
        y="median distance / length of the limit",
        room=-0.35,
        legend="lower left",
    )
    _lengths(panel, steps)


def _estimates(panel: Axes, ds: xr.Dataset) -> None:
    every: list[tuple[str, np.ndarray]] = []
    for rung in judged(ds):
        error, bound = rung.data["corrected"].values, rung.data["estimate"].values
        first = not any(name == rung.name for name, *_ in every)
        every.append((rung.name, error))
        panel.plot(
            error,
            bound,
            ".",
            color=SHADES[rung.name],
            markersize=3,
            alpha=0.5,
            label=SHORT[rung.name] if first else None,
        )
    if every:
        ends = np.array([min(e.min() for _, e in every), max(e.max() for _, e in every)])
        for factor, style, label in (
            (1, "-", "estimate = error"),
            (30, "--", "estimate = 30 errors"),
        ):
            panel.plot(ends, factor * ends, style, color="0.3", linewidth=1, label=label)
    finish(
        panel,
        title="Error estimates of single seeds",
        x="error of the corrected answer",
        y="its estimate",
        legend="upper left",
        room=0.3,
    )


def _falls(panel: Axes, ds: xr.Dataset) -> None:
    places: list[tuple[float, str]] = []
    for k, name in enumerate(DYNAMICS):
        rungs = [rung for rung in judged(ds) if rung.name == name]
        for j, rung in enumerate(rungs):
            x = k + 0.22 * (j - (len(rungs) - 1) / 2)
            for key, marker, filled in (("expected", "o", True), ("unfed", "D", False)):
                fell, predicted = rung.data["fell"].values, rung.data[key].values
                value = mean(fell / predicted)
                panel.errorbar(
                    x,
                    value.value,
                    yerr=[[value.value - value.low], [value.high - value.value]],
                    fmt=marker,
                    color=SHADES[name],
                    markersize=5,
                    markerfacecolor=SHADES[name] if filled else "white",
                    capsize=2,
                )
        places.append((k, SHORT[name].replace(", ", ",\n").replace(" flow", "\nflow")))
    panel.axhline(1, color="0.4", linewidth=1)
    panel.plot([], [], "o", color="0.4", label="predicted with the noise's feedback")
    panel.plot(
        [], [], "D", color="0.4", markerfacecolor="white", label="the feedback left out (control)"
    )
    finish(
        panel,
        title="Fall of log α in the rest of the runs / its prediction",
        x="dynamics; from left to right the later landings",
        y="mean ratio over seeds, 99% interval",
        x_scale="linear",
        y_scale="linear",
        room=0.25,
        legend="upper left",
    )
    panel.set_xticks([x for x, _ in places], [label for _, label in places], fontsize=8)
