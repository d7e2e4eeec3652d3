"""Picture of the study `noisy-sgd`, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.provenance import config_of
from sgfbias.diagonal.noisy_sgd_claims import TIGHT
from sgfbias.plotting import COLOURS, new_figure, tidy


def plot(ds: Any) -> Any:
    """The residual against its law, the distance from the theorem's solution, the error and its parts, and weights against dt."""
    figure, axes = new_figure(2, 2, size=(12.5, 8.6))
    sigma = ds["sigma"].values[1:]
    gamma, outside = float(config_of(ds, "step_size")), int(ds.attrs["outside"])
    line = np.geomspace(sigma[0] / 1.5, sigma[-1] * 1.5, 50)
    panel = axes[0, 0]
    values = np.sqrt(ds["residual_square"].values[1:])
    low, high = np.nanquantile(values, [0.05, 0.95], axis=1)
    panel.fill_between(sigma, low, high, color=COLOURS["sgf"], alpha=0.2, linewidth=0)
    panel.plot(
        sigma, np.sqrt(np.nanmean(np.square(values), axis=1)), "o", color=COLOURS["sgf"], label="root mean square, middle 90% of the seeds"
    )
    rate = 16 * outside * gamma * np.nanmean(ds["loss_integral"].values[1])
    panel.plot(line, np.sqrt(rate) * line, color=COLOURS["gd"], linewidth=1.2, label="4σ √(γ (d−n) E∫L), ∫L of the smallest σ")
    tidy(panel, title="How far the theorem is broken", x="σ", y="|(I − P) arcsinh(β / 2α²)|")
    panel = axes[0, 1]
    root = np.sqrt(ds["distance_square"].values[1:])
    low, high = np.nanquantile(root, [0.05, 0.95], axis=1)
    panel.fill_between(sigma, low, high, color=COLOURS["control"], alpha=0.2, linewidth=0)
    panel.plot(sigma, np.sqrt(np.nanmean(np.square(root), axis=1)), "o", color=COLOURS["control"], label="without the offset")
    panel.plot(
        sigma,
        np.sqrt(np.nanmean(ds["response_square"].values[1:], axis=1)),
        color=COLOURS["gd"],
        linewidth=1.2,
        label="first order, from the variance",
    )
    there = np.where(ds["loss"].values < TIGHT, ds["gap"].values, np.nan)[1:]
    known = np.isfinite(there).any(axis=1)
    panel.plot(sigma[known], np.nanmedian(there[known], axis=1), "s-", color=COLOURS["sgf"], markersize=4, label="with it, converged seeds")
    tidy(panel, title="Distance of the endpoint from the programme's solution", x="σ", y="|β∞ − β|")
    panel = axes[1, 0]
    start = np.nanmean(ds["error"].values[0])
    curves = (
        ("error_without", "o--", COLOURS["control"], "smaller α alone (no offset)"),
        ("error", "o-", COLOURS["sgf"], "SGD's and isotropic noise"),
        ("error_inside", "s-", COLOURS["sgd"], "SGD's own noise, as much shrinkage per loss"),
    )
    for name, style, colour, label in curves:
        values = ds[name].values
        mean = np.nanmean(values, axis=1) / start
        error = 2.6 * np.nanstd(values, axis=1) / np.sqrt(values.shape[1]) / start
        panel.fill_between(ds["sigma"].values, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        panel.plot(ds["sigma"].values, mean, style, color=colour, markersize=4, linewidth=1.5, label=label)
    panel.axhline(1, color=COLOURS["gd"], linewidth=1)
    tidy(panel, title="Error of the selected solution over that at σ = 0, means", x="σ", y="ratio", x_scale="linear", y_scale="linear")
    panel = axes[1, 1]
    for noise, colour, label in (
        ("mean-loss", COLOURS["sgd"], "mean-loss"),
        ("label", COLOURS["gd"], "label noise"),
        ("isotropic", COLOURS["control"], "mean-loss + isotropic"),
    ):
        values = np.sqrt(ds["weights_residual_square"].sel(noise=noise).values)
        panel.plot(ds["dt"].values, np.nanmedian(values, axis=1), "o-", color=colour, markersize=4, label=label)
    tidy(panel, title="Residual in weights coordinates, median", x="dt / γ", y="|(I − P) arcsinh(β / 2α²)|")
    for panel in axes.flat:
        panel.legend(frameon=False, fontsize=8)
    return figure
