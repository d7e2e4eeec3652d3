"""The picture of the study, drawn from its dataset alone."""

from __future__ import annotations

import xarray as xr

from sgfbias.digits.studies.main import COMPARED, ENSEMBLES, Config
from sgfbias.study.plotting import COLOURS, Figure, band, finish, line, panels

TITLES = {"loss": "Training loss", "test_loss": "Test loss", "test_accuracy": "Test accuracy"}


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Plot training loss, test loss and test accuracy of SGD, two flows and gradient
    descent.
    """
    figure, axes = panels(columns=3, size=(14, 4.2))
    for panel, (quantity, title) in zip(axes, TITLES.items(), strict=True):
        for name, colour in COMPARED.items():
            label = f"{ENSEMBLES[name]}, {config.seeds} seeds"
            band(
                panel,
                ds["time"].values,
                ds[f"{name}_{quantity}"].values,
                colour=colour,
                label=label,
            )
        line(
            panel,
            ds["time"].values,
            ds[f"gd_{quantity}"].values,
            colour=COLOURS["gd"],
            label="gradient descent",
            style="--",
        )
        scale = "linear" if "accuracy" in quantity else "log"
        finish(panel, title=title, x="flow time", y=title.lower(), x_scale="linear", y_scale=scale)
    figure.suptitle(
        "Digits: lines are medians and bands hold 5% to 95% of the seeds, which all start from "
        "one network",
        fontsize=11,
    )
    return figure
