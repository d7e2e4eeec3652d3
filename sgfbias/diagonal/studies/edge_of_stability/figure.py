"""The picture of the study is drawn from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.edge_of_stability import PER_OCTAVE, Config
from sgfbias.diagonal.studies.edge_of_stability.family import families
from sgfbias.study.plotting import COLOURS, Figure, finish, panels, quantile_band, ticks

BATCH_COLOURS = ("#d95f02", "#e6a15c", "#1b70b7", "#7fb0d8")
LEVELS = (0.1, 0.9)


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Four panels show the error, the gain and the shape of the gain against the step
    size, and the linear scaling rule.
    """
    figure, (errors, gains, shapes, scaling) = panels(columns=2, rows=2, size=(12.5, 8.6))
    gd, shifted, sgd = families(ds)
    colours = [BATCH_COLOURS[k % len(BATCH_COLOURS)] for k in range(len(sgd))]
    steps = np.arange(3 * PER_OCTAVE + 1)
    for f, colour, style in (
        (gd, COLOURS["gd"], "o-"),
        (shifted, COLOURS["control"], "o--"),
        *((f, colour, "o-") for f, colour in zip(sgd, colours, strict=True)),
    ):
        for panel, rows in (
            (errors, [np.exp(f.error(int(k))) for k in steps]),
            (gains, [f.below(f.gain, int(k)).mean(axis=1) for k in steps]),
            (shapes, [np.exp(f.unevenness(int(k))) for k in steps]),
        ):
            whole = np.isfinite(rows).all(axis=1)
            x, shown = 2.0 ** (-steps[whole] / PER_OCTAVE), np.array(rows)[whole]
            if whole.any():
                quantile_band(
                    panel, x, shown, colour=colour, label=f.word, levels=LEVELS, style=style
                )
    of_largest = "step size over the largest that converges"
    for panel, title, y, room in (
        (errors, "Error over gradient flow's error", "ratio of |β − β*|²", 0.0),
        (gains, "Mean gain", "$2 \\log(\\alpha / \\alpha_\\infty)$", 0.0),
        (shapes, "Shape of the gain", "gain on the support / gain off it", 0.25),
    ):
        finish(panel, title=title, x=of_largest, y=y, room=room)
        ticks(panel, 2.0 ** np.arange(-3, 1))
    errors.set_ylim(1e-5, 1e4)
    for panel in (errors, shapes):
        panel.axhline(1, color="black", linewidth=0.8)
    gamma = np.exp(np.mean(np.log(ds["gamma"].values), axis=0))
    for f, colour, batch in zip(sgd, colours, ds["batch"].values, strict=True):
        total = f.gain.mean(axis=-1)
        keep = np.isfinite(total).all(axis=0) & (np.arange(gamma.size) >= f.edge.max())
        scaling.plot(
            gamma[keep] / batch,
            np.median(total[:, keep], axis=0),
            "o-",
            color=colour,
            label=f"batch {batch}",
            markersize=3.5,
        )
    finish(
        scaling, title="Linear scaling rule", x="γ / b (geometric mean over draws)", y="mean gain"
    )
    figure.suptitle(
        f"Towards the edge of stability on {config.draws} sparse problems: lines are medians over "
        "problems, bands are 10% to 90%",
        fontsize=11,
    )
    return figure
