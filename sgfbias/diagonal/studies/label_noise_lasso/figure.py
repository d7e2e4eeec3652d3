"""The picture of the study is drawn from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.label_noise_lasso import Config
from sgfbias.diagonal.studies.label_noise_lasso.averages import (
    bound_ratios,
    runs_of,
    solution,
    window_errors,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Three panels show one seed's iterate and running average, the distance of the
    time averages to the Lasso solution, and the optimality conditions.
    """
    figure, (left, middle, right) = panels(columns=3, size=(15.0, 4.4))
    flow, window, errors = runs_of(ds)[0], ds["window"].values, window_errors(ds)
    share = np.linspace(0, 1, ds.sizes["time"])
    for k, i in enumerate(np.argsort(-np.abs(solution(flow)))[:3]):
        left.plot(share, flow["path"].values[:, i], color=f"C{k}", alpha=0.3, linewidth=0.7)
        left.plot(
            share,
            flow["running"].values[:, i],
            color=f"C{k}",
            linewidth=1.6,
            label="" if k else "running average",
        )
        left.axhline(
            solution(flow)[i],
            color="black",
            linestyle="--",
            linewidth=0.9,
            label="" if k else "Lasso",
        )
        left.axhline(
            ds["truth"].values[i],
            color=COLOURS["control"],
            linestyle=":",
            linewidth=0.9,
            label="" if k else "truth",
        )
    for discrete, colour, mark, label in (
        (False, COLOURS["sgf"], "o", "flow"),
        (True, COLOURS["sgd"], "s", "SGD"),
    ):
        rows = errors[ds["discrete"].values == discrete]
        for k, (run, row) in enumerate(zip(runs_of(ds, discrete=discrete), rows, strict=True)):
            middle.plot(
                window,
                row,
                mark + "-",
                color=colour,
                markersize=4,
                alpha=0.45 if k else 0.95,
                label="" if k else label,
            )
            ratio, place = bound_ratios(run).mean(axis=0), np.arange(ds.sizes["feature"]) + 1
            order = np.argsort(-ratio)
            on = solution(run)[order] != 0
            style = {"color": colour, "linestyle": "", "marker": mark}
            right.plot(
                place[on],
                ratio[order][on],
                **style,
                markersize=4.5,
                alpha=0.7,
                label="" if k else label,
            )
            right.plot(
                place[~on],
                ratio[order][~on],
                **style,
                markersize=3,
                alpha=0.25,
                markerfacecolor="none",
            )
    middle.plot(
        window,
        errors[0, -1] * np.sqrt(window[-1] / window),
        "--",
        color=COLOURS["gd"],
        linewidth=1,
        label="slope −1/2",
    )
    right.axhline(
        1, color="black", linestyle="--", linewidth=0.9, label="bound 2 γ h (δ² + mean L)"
    )
    right.plot(
        [],
        [],
        "o",
        color="black",
        markerfacecolor="none",
        markersize=3,
        label="off the support of the Lasso solution (hollow)",
    )
    named = flow["run"].item().replace("gamma ", "γ = ").replace("delta ", "δ = ")
    left_title = f"One seed: {named}"
    finish(
        left,
        title=left_title,
        x="share of the run",
        y="three largest coordinates of β",
        x_scale="linear",
        y_scale="linear",
    )
    finish(
        middle,
        title="Distance of the time average to the Lasso solution",
        x="length of the average, as a share of the run",
        y="root mean square distance of a seed",
    )
    finish(
        right,
        title="|mean Xᵀr/n| over its bound",
        x="rank of the coordinate",
        y="ratio",
        x_scale="linear",
        y_scale="linear",
        room=0.25,
        legend="upper right",
    )
    right.locator_params(axis="x", integer=True)
    return figure
