"""The plot of the kernel-to-rich study, drawn from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.kernel_to_rich import Config
from sgfbias.diagonal.theory.limits import fixed_exponent, log_alpha_of, order_of, worst_excess
from sgfbias.study.plotting import Figure, finish, panels, ticks
from sgfbias.study.statistics import span

SHADES = ("#1b70b7", "#d95f02", "#4d4d4d", "#c23b8f", "#1b9e77")
EXCESS = "relative excess over the least"


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw norms and errors over the transition, and the rates of both limits."""
    figure, (l1, l2, error, *limits) = panels(columns=3, rows=2, size=(14, 8))
    alpha = ds["alpha"].values
    for k, depth in enumerate(config.depths):
        colour, at = SHADES[k % len(SHADES)], ds.sel(depth=depth)
        ratios = {l1: at["l1"] / ds["l1_least"], l2: at["l2"] / ds["l2_least"], error: at["error"]}
        for panel, found in ratios.items():
            rows = found.transpose("draw", "alpha").values
            panel.plot(
                alpha, np.median(rows, axis=0), color=colour, linewidth=2, label=f"depth {depth}"
            )
            panel.plot(alpha, rows.T, color=colour, linewidth=0.5, alpha=0.35)
        _draw_limits(limits, at, depth, colour)
    finish(l1, title="Ratio of l1 norm to the least", x="α", y="l1 / least", y_scale="linear")
    finish(l2, title="Ratio of l2 norm to the least", x="α", y="l2 / least", y_scale="linear")
    finish(error, title="Error on the sparse truth", x="α", y="|β - β*|²")
    worst, each, kernel = limits
    finish(worst, title="Worst excess l1 norm; lines: predicted leading order", x="α", y=EXCESS)
    worst.set_xlim(1e-14, 1)
    worst.set_ylim(bottom=1e-4)
    finish(each, title="Excess l1 norm on each problem", x="α", y=EXCESS)
    finish(
        kernel,
        title="Kernel limit; dotted: after the correction",
        x="$\\alpha^p / \\max |\\beta_{l2}|$",
        y="relative distance to minimum l2",
    )
    ticks(kernel, ds["scale"].values)
    figure.suptitle(
        f"From the kernel to the rich regime: thick lines are medians over {config.draws} "
        "problems; in the worst case depth 2 needs exponentially small α",
        fontsize=11,
    )
    return figure


def _draw_limits(limits: list[Any], at: xr.Dataset, depth: int, colour: str) -> None:
    """Draw the points and lines of one depth in the three panels of the limits."""
    worst, each, kernel = limits
    log_alpha, label = log_alpha_of(at["order"].values, depth), f"depth {depth}"
    worst.plot(np.exp(log_alpha), at["worst_excess"], "o", color=colour, label=label, markersize=5)
    line = np.linspace(-32 if depth == 2 else log_alpha[-1], log_alpha[0], 100)
    worst.plot(
        np.exp(line), worst_excess(depth)[0] * order_of(line, depth), color=colour, linewidth=1
    )
    exponents = [fixed_exponent(depth, c) for c in at["certificate"].values]
    words = f"exponents {span(exponents, '.2f')}" if depth == 2 else f"exponent {depth}"
    for j, (exponent, row) in enumerate(zip(exponents, at["rich_excess"].values, strict=True)):
        style = {"color": colour, "linewidth": 0.8, "label": None if j else f"{label}: {words}"}
        each.plot(at["target"].values ** (1 / exponent), row, ".-", **style)
    scale, distance = at["scale"].values, at["kernel_distance"].values
    kernel.plot(scale, np.median(distance, axis=0), "o-", color=colour, label=label, markersize=4)
    kernel.plot(
        scale,
        np.median(distance * at["kernel_gap"].values, axis=0),
        "o:",
        color=colour,
        markersize=3,
    )
