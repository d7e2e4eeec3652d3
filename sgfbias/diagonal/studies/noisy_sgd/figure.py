"""The picture of the study is drawn from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.noisy_sgd import TIGHT, Config
from sgfbias.diagonal.theory.isotropic import mean_residual_square
from sgfbias.study.plotting import COLOURS, Axes, Figure, finish, panels

# Variable -> its style, its colour and its label.
CURVES = {
    "error_without": ("o--", COLOURS["control"], "smaller α alone (no offset)"),
    "error": ("o-", COLOURS["sgf"], "SGD's own and isotropic noise"),
    "error_inside": ("s-", COLOURS["sgd"], "SGD's own noise, with as much shrinkage per loss"),
}
# Noise model -> its colour and its label.
NOISES = {
    "mean-loss": (COLOURS["sgd"], "mean-loss noise"),
    "label": (COLOURS["gd"], "label noise"),
    "isotropic": (COLOURS["control"], "mean-loss plus isotropic noise"),
}


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Four panels show the residual and its prediction, the distance from the theorem's
    solution, the error and its parts, and the residual in weights coordinates by dt.
    """
    figure, (residual, distance, error, weights) = panels(rows=2, columns=2, size=(12.5, 8.6))
    sigma, residual_name = ds["sigma"].values[1:], "|(I − P) arcsinh(β / 2α²)|"
    _root_band(
        residual, ds, "residual_square", COLOURS["sgf"], "root mean square, middle 90% of the seeds"
    )
    line, integral = (
        np.geomspace(sigma[0] / 1.5, sigma[-1] * 1.5, 50),
        np.nanmean(ds["loss_integral"].values[1]),
    )
    law = np.sqrt(mean_residual_square(int(ds.attrs["outside"]), config.step_size, line, integral))
    residual.plot(
        line,
        law,
        color=COLOURS["gd"],
        linewidth=1.2,
        label="4σ √(γ (d−n) E∫L), with ∫L of the smallest σ",
    )
    finish(residual, title="How far the theorem is broken", x="σ", y=residual_name)
    _root_band(distance, ds, "distance_square", COLOURS["control"], "without the offset")
    first = np.sqrt(np.nanmean(ds["response_square"].values[1:], axis=1))
    distance.plot(
        sigma, first, color=COLOURS["gd"], linewidth=1.2, label="without the offset, to first order"
    )
    there = np.where(ds["loss"].values < TIGHT, ds["gap"].values, np.nan)[1:]
    known = np.isfinite(there).any(axis=1)
    distance.plot(
        sigma[known],
        np.nanmedian(there[known], axis=1),
        "s-",
        color=COLOURS["sgf"],
        markersize=4,
        label="with the offset, converged seeds",
    )
    finish(
        distance, title="Distance of the endpoint from the program's solution", x="σ", y="|β∞ − β|"
    )
    for name, (style, colour, label) in CURVES.items():
        values = ds[name].values / np.nanmean(ds["error"].values[0])
        mean, width = (
            np.nanmean(values, axis=1),
            2.6 * np.nanstd(values, axis=1) / np.sqrt(values.shape[1]),
        )
        error.fill_between(
            ds["sigma"], mean - width, mean + width, color=colour, alpha=0.2, linewidth=0
        )
        error.plot(ds["sigma"], mean, style, color=colour, markersize=4, linewidth=1.5, label=label)
    error.axhline(1, color=COLOURS["gd"], linewidth=1)
    title = "Mean error of the selected solution over its value at σ = 0"
    finish(error, title=title, x="σ", y="ratio", x_scale="linear", y_scale="linear")
    for noise, (colour, label) in NOISES.items():
        middle = np.nanmedian(np.sqrt(ds["weights_residual_square"].sel(noise=noise)), axis=1)
        weights.plot(ds["dt"], middle, "o-", color=colour, markersize=4, label=label)
    finish(weights, title="Median residual in weights coordinates", x="dt / γ", y=residual_name)
    return figure


def _root_band(panel: Axes, ds: xr.Dataset, name: str, colour: str, label: str) -> None:
    """Draw root mean squares over the seeds against sigma, with a band of the middle
    90% of the seeds.
    """
    sigma, squares = ds["sigma"].values[1:], ds[name].values[1:]
    low, high = np.nanquantile(np.sqrt(squares), [0.05, 0.95], axis=1)
    panel.fill_between(sigma, low, high, color=colour, alpha=0.2, linewidth=0)
    panel.plot(sigma, np.sqrt(np.nanmean(squares, axis=1)), "o", color=colour, label=label)
