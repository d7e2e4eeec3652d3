"""The picture of the explorer, drawn from the computed results."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from sgfbias.diagonal.explore.compute import ALPHAS, Explored, Runs, unit_ball
from sgfbias.study import plotting
from sgfbias.study.plotting import Axes

GD, SGF, TRUTH, CONTROL = (plotting.COLOURS[name] for name in ("gd", "sgf", "sgd", "control"))
MOST_SHOWN = 40  # largest number of coordinates shown


def png(explored: Explored) -> bytes:
    """The picture as a PNG."""
    target = io.BytesIO()
    plot(explored).savefig(target, dpi=100)
    return target.getvalue()


def plot(explored: Explored) -> Any:
    """The loss and the validation error along the runs, the solution curve, the
    selected and predicted coordinates, and the unit ball of the potential.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The axes are placed by hand, because a layout that measures every text would take
    # half of the time.
    figure = Figure(figsize=(13.5, 8.2))
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic(
        [["loss", "error", "curve"], ["coordinates", "coordinates", "ball"]]
    )
    figure.subplots_adjust(left=0.055, right=0.99, bottom=0.065, top=0.96, wspace=0.22, hspace=0.27)
    _training(axes["loss"], explored, "loss", "Training loss")
    _training(axes["error"], explored, "validation", "Validation error")
    _curve(axes["curve"], explored)
    _coordinates(axes["coordinates"], explored)
    _ball(axes["ball"], explored)
    return figure


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=CONTROL)


def _scale(*drawn: np.ndarray) -> str:
    """Logarithmic if any value can be drawn on a logarithmic axis, else linear."""
    return (
        "log" if any((np.isfinite(values) & (values > 0)).any() for values in drawn) else "linear"
    )


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _training(axes: Axes, explored: Explored, name: str, title: str) -> None:
    config, runs, descent = explored.config, explored.runs, explored.descent
    series, alone = getattr(runs, name), getattr(descent, name)[0]
    if config.noise != "none":
        label = (
            f"stochastic flow, {np.sum(~runs.diverged)} seeds"
            if name == "loss"
            else "stochastic flow, 5% to 95%"
        )
        plotting.band(axes, runs.times, series, colour=SGF, label=label)
    plotting.line(axes, descent.times, alone, colour=GD, label="gradient flow")
    if name == "validation":
        for landed, colour in ((_middle(runs), SGF), (_middle(descent), GD)):
            if np.isfinite(landed) and landed > 0:
                axes.axhline(landed, color=colour, linestyle=":", linewidth=1.5)
        axes.plot([], [], color="k", linestyle=":", label="landed (median)")
    if config.noise == "label":
        axes.axvline(
            config.label_steps * config.step_size,
            color=CONTROL,
            linewidth=1,
            label="label noise off",
        )
    if runs.diverged.all():
        _nothing(axes, "every seed diverged")
    plotting.tidy(
        axes,
        title=title,
        x="flow time",
        y="loss" if name == "loss" else r"$|\beta - \beta^*|^2$",
        y_scale=_scale(series, alone),
    )
    axes.legend(loc="lower left" if name == "loss" else "center left", fontsize=8)


def _middle(runs: Runs) -> float:
    errors = _finite(runs.validation_error)
    return float(np.median(errors)) if errors.size else float("nan")


def _curve(axes: Axes, explored: Explored) -> None:
    config, runs = explored.config, explored.runs
    axes.plot(explored.curve_integral, explored.curve_error, color=TRUTH, label="predicted curve")
    if config.noise != "none":
        axes.plot(
            runs.integral,
            runs.validation_error,
            "o",
            color=SGF,
            markersize=4,
            alpha=0.5,
            label="seeds, landed",
        )
    start = explored.descent.validation_error[0]
    if np.isfinite(start):
        axes.plot([0], [start], "s", color=GD, label="gradient flow (alpha unchanged)")
    if not runs.landed.any():
        _nothing(axes, "no seed landed")
    added = r"$\int (L + \delta^2)\,dt$" if config.noise == "label" else r"$\int L\,dt$"
    plotting.tidy(
        axes,
        title="Solutions that noise can select",
        x=f"{added}, which shrinks alpha",
        y=r"$|\beta - \beta^*|^2$",
        x_scale="linear",
        y_scale=_scale(explored.curve_error),
    )
    axes.legend(loc="upper right", fontsize=8)


def _coordinates(axes: Axes, explored: Explored) -> None:
    seed, star, runs = explored.shown, explored.beta_star, explored.runs
    support = np.flatnonzero(star)
    support = support[np.argsort(-np.abs(star[support]))]
    others = np.flatnonzero(star == 0)
    others = others[np.argsort(-np.abs(explored.l2[others]))]
    order = np.concatenate([support, others])[:MOST_SHOWN]
    x = np.arange(order.size)
    axes.bar(x, star[order], width=0.9, color=TRUTH, alpha=0.25, label=r"truth $\beta^*$")
    axes.plot(x, explored.l2[order], "_", color="k", markersize=9, label="minimum l2")
    axes.plot(x, explored.l1[order], "x", color=CONTROL, markersize=7, zorder=5, label="minimum l1")
    axes.plot(x, runs.iterate[seed][order], ".", color=GD, alpha=0.6, label="end of the run")
    if runs.landed.sum() > 1:
        low, high = np.nanquantile(runs.beta[runs.landed][:, order], [0.05, 0.95], axis=0)
        axes.vlines(x, low, high, color=SGF, linewidth=4, alpha=0.3)
    axes.plot(
        x,
        runs.beta[seed][order],
        "o",
        color=SGF,
        markersize=4,
        label="landed (bar: 5% to 95% of the seeds)",
    )
    predicted = r"predicted: select at $\alpha_\infty$"
    axes.plot(
        x,
        explored.predicted[seed][order],
        "o",
        markerfacecolor="none",
        markeredgecolor="k",
        markersize=9,
        label=predicted,
    )
    if order.size > support.size:
        axes.axvline(support.size - 0.5, color="k", linewidth=0.7, linestyle="--")
    if not runs.landed.any():
        _nothing(axes, "no seed landed")
    cut = f", the first {MOST_SHOWN} of {star.size}" if star.size > MOST_SHOWN else ""
    title = (
        "Selected and predicted solution of the seed with median error"
        if runs.beta.shape[0] > 1
        else "Selected and predicted solution"
    )
    plotting.tidy(
        axes,
        title=title,
        x=f"coordinates, the truth's support first{cut}",
        y=r"$\beta_i$",
        x_scale="linear",
        y_scale="linear",
    )
    axes.legend(loc="best", fontsize=8, ncols=3)


def _ball(axes: Axes, explored: Explored) -> None:
    for alpha in np.geomspace(*ALPHAS, 8):
        axes.plot(*unit_ball(alpha), color="0.8", linewidth=0.7)
    angle = np.linspace(0, np.pi / 2, 100)
    axes.plot(np.cos(angle), np.sin(angle), color="k", linewidth=0.8, linestyle=":", label="l2")
    axes.plot([0, 1], [1, 0], color="k", linewidth=0.8, linestyle="--", label="l1")
    start, end = explored.config.alpha, explored.effective_alpha
    axes.plot(*unit_ball(start), color=GD, linewidth=2, label=rf"$\alpha$ = {start:.2g}, the start")
    if np.isfinite(end) and explored.config.noise != "none":
        axes.plot(
            *unit_ball(end),
            color=SGF,
            linewidth=2,
            label=rf"$\alpha_\infty$ = {end:.2g}, with noise",
        )
    plotting.tidy(
        axes,
        title=r"One quarter of the unit ball of $\phi_\alpha$, d = 2",
        x=r"$\beta_1$",
        y=r"$\beta_2$",
        x_scale="linear",
        y_scale="linear",
    )
    axes.set(aspect="equal", xlim=(0, 1.03), ylim=(0, 1.03))
    axes.legend(loc="lower left", fontsize=8)
