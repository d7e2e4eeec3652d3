"""The picture of the study, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.weak_error import FLOWS, LAWS, Config
from sgfbias.study.plotting import COLOURS, Figure, finish, panels


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw three panels: the errors of the mean loss, and, relative to SGD's, the
    variances of the weights and the shrinkage of log alpha at every feature.
    """
    figure, (left, middle, right) = panels(columns=3, size=(14, 4.4))
    sgf, sgd, gd, other = (COLOURS[name] for name in ("sgf", "sgd", "gd", "control"))
    colours = dict(
        zip((*FLOWS, "per-sample"), (sgf, sgd, gd, other, other, "#5b8c2a"), strict=True)
    )

    def look(name: str) -> dict[str, Any]:
        noise, order = FLOWS.get(name, ("per-sample", 1))
        label = "no noise" if noise == "none" else f"{noise} noise, order {order}"
        return {"marker": "os"[order - 1], "color": colours[name], "label": label, "markersize": 4}

    for name, (noise, _) in FLOWS.items():
        style, steps = "-" if noise == "exact" else ":", ds["closed_step"]
        left.plot(steps, np.abs(ds["closed_error"].sel(flow=name)), style, **look(name))
        if noise != "none":
            middle.plot(
                steps,
                ds["closed_variance"].sel(flow=name) / ds["closed_sgd_variance"],
                style,
                **look(name),
            )
    for k, name in enumerate(list(LAWS)[1:]):
        ratio = (ds["law_shrinkage"].sel(law=name) / ds["law_shrinkage"].sel(law="sgd")).values
        right.plot(np.arange(ratio.size) + 0.08 * k, ratio, linestyle="", **look(name))
    for panel in (middle, right):
        panel.axhline(1, color="k", linewidth=0.8)
    where = "(least squares, closed forms)"
    finish(
        left, title=f"Error of the mean loss\n{where}", x="step size γ", y="|E L(flow) - E L(SGD)|"
    )
    finish(
        middle,
        title=f"Variance of the weights / SGD's\n{where}",
        x="step size γ",
        y="ratio of the variances",
        y_scale="linear",
    )
    finish(
        right,
        title=f"Shrinkage of log α / SGD's\n(diagonal network, γ = {config.law_step_size:g})",
        x="feature",
        y="ratio of the shrinkages",
        x_scale="linear",
        y_scale="linear",
    )
    return figure
