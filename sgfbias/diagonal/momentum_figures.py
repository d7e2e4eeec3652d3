"""Picture of the study `momentum`, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.provenance import config_of
from sgfbias.diagonal.momentum_claims import NAMES, apart, shrinkage, whole_lambdas
from sgfbias.plotting import COLOURS, new_figure, tidy


def plot(ds: Any) -> Any:
    """Effective alpha against lambda, discrete methods against the flow, the effect on the error over problems, and SGD with momentum."""
    figure, axes = new_figure(2, 2, size=(12.5, 8.6))
    lam, whole = ds["lam"].values, whole_lambdas(ds)
    panel = axes[0, 0]
    lost = shrinkage(ds, "flow")
    panel.plot(lam[whole], lost[whole].max(axis=1), "^-", color=COLOURS["control"], markersize=4, label="largest feature")
    panel.plot(lam[whole], lost[whole].mean(axis=1), "o-", color=COLOURS["sgf"], markersize=4, label="mean")
    panel.plot(lam[whole], lam[whole] * ds["still_squares"].values.mean(), color=COLOURS["gd"], linewidth=1, label="mean, first order")
    if not whole.all():
        panel.axvline(lam[~whole][0], color=COLOURS["gd"], linestyle=":", linewidth=1.2, label="a weight goes through 0")
    tidy(panel, title="What momentum takes from log α", x="λ", y="log α lost")
    panel = axes[0, 1]
    colours = (COLOURS["sgf"], COLOURS["sgd"], COLOURS["control"])
    for name, style in (("ours", "-"), ("printed", "--")):
        gaps = apart(ds, name)
        for m, marker in enumerate(("o", "s")):
            for k, b in enumerate(ds["momentum"].values):
                label = f"{NAMES[str(ds['method'].values[m])]}, b = {b:g}" if name == "ours" else None
                colour = colours[k % len(colours)]
                panel.plot(lam[:3], gaps[m, k], style, marker=marker, color=colour, markersize=4, linewidth=1.3, label=label)
    panel.plot([], [], "--", color=COLOURS["gd"], label="dashed: printed λ = γ/(1−b)²")
    tidy(panel, title="Discrete solution to the flow's, our λ and the printed one", x="λ", y="distance")
    panel.set_ylim(bottom=apart(ds, "ours").min() / 200)
    panel = axes[1, 0]
    for name, colour, style, label in (
        ("centred_error_slope", COLOURS["sgf"], "-", "centred inputs"),
        ("shifted_error_slope", COLOURS["sgd"], "-", "inputs of mean " + format(config_of(ds, "shift"), "g")),
        ("centred_even_slope", COLOURS["sgf"], ":", "centred, α shrunk evenly"),
        ("shifted_even_slope", COLOURS["sgd"], ":", "shifted, α shrunk evenly"),
    ):
        values = np.sort(ds[name].values)
        panel.plot(values, np.arange(1, values.size + 1) / values.size, style, color=colour, label=label, linewidth=1.6)
    panel.axvline(0, color=COLOURS["gd"], linewidth=1)
    tidy(
        panel,
        title="Does momentum help? Error at small λ",
        x="d log error / dλ",
        y="part of the problems below",
        x_scale="linear",
        y_scale="linear",
    )
    panel.set_xscale("symlog", linthresh=1)
    panel = axes[1, 1]
    rate = ds["rate"].values
    bars = np.arange(len(rate))
    noise, inertia = (np.nanmean(ds[f"sgd_{name}"].values, axis=1) / rate for name in ("noise", "inertia"))
    panel.bar(bars, noise, 0.5, color=COLOURS["sgd"], alpha=0.5, label="predicted: noise of step γ/(1−b)")
    panel.bar(bars, inertia, 0.5, bottom=noise, color=COLOURS["sgf"], alpha=0.5, label="predicted: inertia")
    for name, marker, colour, label in (
        ("shrinkage", "o", "#000000", "SGD with momentum"),
        ("plain", "s", COLOURS["gd"], "SGD of step γ/(1−b)"),
    ):
        values = ds[f"sgd_{name}"].values / rate[:, None]
        error = 2.6 * np.nanstd(values, axis=1) / np.sqrt(values.shape[1])
        panel.errorbar(bars, np.nanmean(values, axis=1), error, fmt=marker, color=colour, capsize=4, markersize=5, label=label)
    tidy(
        panel, title="Stochastic: mean log α lost, over γ/(1−b)", x="γ / (1 − b)", y="log α lost / step", x_scale="linear", y_scale="linear"
    )
    panel.set_xticks(bars, [f"{v:g}" for v in rate])
    panel.set_ylim(top=1.45 * float(np.max(noise + inertia)))
    for panel, place, columns in zip(axes.flat, ("upper left", "lower left", "center", "upper right"), (1, 2, 1, 1), strict=True):
        panel.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8, loc=place, ncols=columns)
    return figure
