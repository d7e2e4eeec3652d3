"""The picture of the study is drawn from its dataset alone."""

from __future__ import annotations

import xarray as xr

from sgfbias.diagonal.studies.convergence import Config
from sgfbias.study.plotting import COLOURS, Axes, Figure, finish, panels

STYLES = (
    ("o-", COLOURS["sgd"]),
    ("s--", "#e6a15c"),
    ("^-", COLOURS["control"]),
    ("v-", COLOURS["sgf"]),
)
RANGES = ("SGD", "mean-loss flow")  # for which the range of the problems is drawn


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """The shares of seeds that converge against the step size over the predicted edge,
    SGD's edge by batch size, and the terms of the identity along some paths.
    """
    figure, (left, middle, right) = panels(columns=3)
    _shares(left, ds)
    _batches(middle, ds)
    _paths(right, ds)
    return figure


def _shares(axes: Axes, ds: xr.Dataset) -> None:
    fractions, shares = ds["fraction"].values, ds["share"].values
    for k, (noise, (style, colour)) in enumerate(zip(ds["noise"].values, STYLES, strict=True)):
        rows = shares[:, k]
        label = f"{noise}, with the range" if noise in RANGES else str(noise)
        axes.plot(fractions, rows.mean(axis=0), style, color=colour, label=label, markersize=4)
        if noise in RANGES:
            axes.fill_between(
                fractions, rows.min(axis=0), rows.max(axis=0), color=colour, alpha=0.15, linewidth=0
            )
    axes.axvline(1, color=COLOURS["gd"], linewidth=1, linestyle=":")
    finish(
        axes,
        title="Seeds that converge: mean over the problems",
        x="step size / predicted edge",
        y="share of seeds",
        x_scale="linear",
        y_scale="linear",
        room=-0.25,
        legend="lower left",
    )


def _batches(axes: Axes, ds: xr.Dataset) -> None:
    batches, edges = ds["batch"].values, ds["batch_edge"].values
    shares = ds["batch_share"].values
    axes.plot(batches, edges[0] * batches, ":", color=COLOURS["gd"], label="linear scaling rule")
    axes.plot(batches, edges, "-", color=COLOURS["sgd"], label="predicted edge")
    for k, (side, marker) in enumerate(zip(ds["side"].values, ("o", "x"), strict=True)):
        axes.plot(
            batches,
            side * edges,
            marker,
            color=COLOURS["sgf"],
            label=f"{side:g} times: {shares[:, k].mean():.0%} converge",
        )
    finish(
        axes,
        title="SGD's edge by batch size",
        x="batch size b",
        y="step size",
        legend="upper left",
    )


def _paths(axes: Axes, ds: xr.Dataset) -> None:
    time = ds["time"].values
    keep = time > 0
    for name, colour, label in (
        ("value", COLOURS["sgf"], "V"),
        ("drift", COLOURS["gd"], "V at 0, and its drift"),
        ("martingale", COLOURS["control"], "the martingale S"),
    ):
        rows = ds[f"path_{name}"].values
        start = ds["path_value"].values[:, :1] if name == "drift" else 0 * rows[:, :1]
        rows = start + rows
        for k, row in enumerate(rows):
            axes.plot(
                time[keep],
                row[keep],
                color=colour,
                linewidth=1,
                label=label if k == 0 else None,
            )
    axes.axhline(0, color=COLOURS["gd"], linewidth=0.6)
    finish(
        axes,
        title="The identity along five paths: V = drift + S",
        x="flow time",
        y="V, drift and S, in target / input",
        y_scale="linear",
        legend="lower left",
    )
