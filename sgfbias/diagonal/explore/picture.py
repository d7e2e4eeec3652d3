"""What the page of the explorer draws and says, as numbers and texts that JSON can
hold.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sgfbias.diagonal.explore import snippet
from sgfbias.diagonal.explore.compute import Explored, Runs, batch_size, notes

MOST_SHOWN = 40  # largest number of coordinates shown


def picture(explored: Explored) -> dict[str, Any]:
    """Everything that the page shows for one config.

    Numbers have four significant digits; None stands for what is not finite.
    """
    config, runs, alone = explored.config, explored.runs, explored.descent
    noisy = config.noise != "none"
    return {
        "config": dataclasses.asdict(config),
        "notes": notes(explored),
        "descent": _curves(alone) | {"landed": _number(alone.validation_error[0])},
        "sgd": None
        if explored.sgd is None
        else _curves(explored.sgd) | {"landed": _middle(explored.sgd)},
        "sgd_missing": _why_no_sgd(explored),
        "sgf": _curves(runs) | {"landed": _middle(runs)} if noisy else None,
        "curve": {
            "integral": _numbers(explored.curve_integral),
            "error": _numbers(explored.curve_error),
        },
        "seeds": {
            "integral": _numbers(runs.integral[runs.landed]) if noisy else [],
            "error": _numbers(runs.validation_error[runs.landed]) if noisy else [],
        },
        "coordinates": _coordinates(explored),
        "effective_alpha": _number(explored.effective_alpha),
        "edges": {name: _number(edge) for name, edge in explored.edges.items()},
        "table": _table(explored),
        "texts": _texts(explored),
        "shell": snippet.command_line(config),
        "python": snippet.python_text(config),
    }


def _number(value: Any) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _numbers(values: Any) -> list[float | None]:
    return [_number(value) for value in np.asarray(values)]


def _middle(runs: Runs) -> float | None:
    errors = runs.validation_error[runs.landed]
    return _number(np.median(errors)) if errors.size else None


def _curves(runs: Runs) -> dict[str, Any]:
    """The loss and the validation error against time: the median over the seeds that
    are finite, and the quantiles at 5% and 95%.
    """
    keep = runs.times > 0
    found: dict[str, Any] = {"times": _numbers(runs.times[keep])}
    for name, values in (("loss", runs.loss), ("validation", runs.validation)):
        alive = values[np.isfinite(values).all(axis=1)][:, keep]
        rows = np.quantile(alive, [0.05, 0.5, 0.95], axis=0) if alive.size else []
        found[name] = [_numbers(row) for row in rows]
    return found


def _why_no_sgd(explored: Explored) -> str:
    """Why SGD itself is not among the curves, or an empty text."""
    config = explored.config
    if explored.sgd is not None or config.noise == "none":
        return ""
    if config.noise == "label":
        return "SGD itself is not drawn with label noise."
    if batch_size(config) is None:
        return (
            f"SGD itself is not drawn: no batch size up to n has noise of {config.strength:g} times"
            " the variance of batches of 1."
        )
    return ""


def _coordinates(explored: Explored) -> dict[str, Any]:
    """The coordinates of one seed's solution, the truth's support first."""
    seed, star, runs = explored.shown, explored.beta_star, explored.runs
    support = np.flatnonzero(star)
    support = support[np.argsort(-np.abs(star[support]))]
    others = np.flatnonzero(star == 0)
    others = others[np.argsort(-np.abs(explored.l2[others]))]
    order = np.concatenate([support, others])[:MOST_SHOWN]
    low = high = []
    if runs.landed.sum() > 1:
        low, high = np.nanquantile(runs.beta[runs.landed][:, order], [0.05, 0.95], axis=0)
    return {
        "support": int(support.size),
        "of": int(star.size),
        "truth": _numbers(star[order]),
        "l2": _numbers(explored.l2[order]),
        "l1": _numbers(explored.l1[order]),
        "iterate": _numbers(runs.iterate[seed][order]),
        "landed": _numbers(runs.beta[seed][order]),
        "predicted": _numbers(explored.predicted[seed][order]),
        "low": _numbers(low),
        "high": _numbers(high),
    }


def _table(explored: Explored) -> list[list[str]]:
    """Rows of a name and a validation error."""
    runs, star = explored.runs, explored.beta_star
    rows = [["gradient flow, its limit", f"{explored.descent.validation_error[0]:.2e}"]]
    if explored.sgd is not None:
        rows.append(["SGD, its limit", _spread(explored.sgd)])
    if explored.config.noise != "none":
        rows.append(["with noise, its limit", _spread(runs)])
    for name, beta in (("minimum l1", explored.l1), ("minimum l2", explored.l2)):
        rows.append([name, f"{np.sum(np.square(beta - star)):.2e}"])
    return rows


def _spread(runs: Runs) -> str:
    """The median validation error of the limits, and the quantiles at 5% and 95%."""
    kept = runs.validation_error[runs.landed]
    low, middle, high = np.quantile(kept, [0.05, 0.5, 0.95]) if kept.size else [np.nan] * 3
    return f"{middle:.2e} ({low:.1e} to {high:.1e})"


def _texts(explored: Explored) -> list[str]:
    """The sentences below the pictures."""
    config, runs = explored.config, explored.runs
    lines, control = [], ""
    if config.noise != "none":
        control = f" (with the alpha of the start instead: {explored.gap_start:.1e})"
        line = (
            f"{runs.landed.sum()} of {runs.diverged.size} seeds landed, {runs.diverged.sum()} "
            "diverged."
        )
        if runs.landed.any():
            line += (
                f" Effective alpha (median) {explored.effective_alpha:.2e}, from {config.alpha:g}. "
                "The landed solution's distance from the limit is about "
                f"{np.median(runs.error[runs.landed]):.1e}."
            )
        lines.append(line)
    lines.append(
        "Landing solves the same program as the prediction, so circles and dots agree by "
        "construction. The independent test is a run in weights, where the theorem can fail: "
        "arcsinh(beta / 2 alpha_t²) is in the row space of the data up to a relative error of "
        f"{explored.gap:.1e}{control}."
    )
    lines.append(f"Computed in {explored.seconds:.2f} s.")
    return lines
