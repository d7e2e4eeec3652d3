"""What the claims compare: time averages with their errors, distances from Lasso
solutions, and the ratios of slopes to penalties, all from the dataset alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.label_noise_lasso import BURN_IN
from sgfbias.study.statistics import LEVEL, Estimate


def runs_of(ds: xr.Dataset, *, discrete: bool = False) -> list[xr.Dataset]:
    """The runs of the flow, or with `discrete` the runs of SGD in the order of falling
    gamma, each as a dataset of its own.
    """
    return [ds.isel(run=k) for k in np.flatnonzero(ds["discrete"].values == discrete)]


def average(run: xr.Dataset) -> np.ndarray:
    """The time averages of a run's seeds over the longest window, (seeds, features)."""
    return run["beta"].values[-1]


def solution(run: xr.Dataset, factor: int = 1) -> np.ndarray:
    """The Lasso solution (features,) at the penalty times `FACTORS[factor]`; by default
    that factor is 1.
    """
    return run["lasso"].values[factor]


def away(run: xr.Dataset, beta: np.ndarray) -> np.ndarray:
    """The distance of each seed's time average from a solution `beta`, (seeds,)."""
    return np.linalg.norm(average(run) - beta, axis=1)


def distance(run: xr.Dataset, beta: np.ndarray, window: int = -1) -> tuple[float, float]:
    """The distance of the time average, averaged over seeds, from `beta`, and the
    standard error of that average (of its length as a vector). The window is the
    longest one by default.
    """
    each = run["beta"].values[window]
    return float(np.linalg.norm(each.mean(axis=0) - beta)), float(
        np.sqrt(np.sum(each.var(axis=0, ddof=1)) / len(each))
    )


def room(run: xr.Dataset, tests: int) -> float:
    """The distance of the time average, averaged over seeds, from its limit that is
    explained by the scatter of the seeds and by the start.

    The scatter allows the 99% quantile of Student's t, corrected for `tests` tests, in
    standard errors. It is exact if all scatter has one direction, and larger than
    needed otherwise. The influence of the start falls as 1 / T, so a third of the
    change since the window of a quarter of the length is left of it.
    """
    error = distance(run, solution(run))[1]
    change = distance(run, average(run).mean(axis=0), window=-2)[0]
    return quantile(run, tests) * error + change / 3


def quantile(run: xr.Dataset, tests: int) -> float:
    """The two-sided quantile of Student's t for the seeds of a run at the level 99%,
    corrected for `tests` tests.
    """
    from scipy.stats import t

    return float(t.ppf(1 - (1 - LEVEL) / (2 * tests), average(run).shape[0] - 1))


def unsettled(flows: list[xr.Dataset]) -> str:
    """Which runs of the flow are too short for all coordinates to settle, in words; an
    empty text if none are.

    The predicted mean loss and solution b give every coordinate's rate of approach. A
    coordinate of b moves at the rate 2 h |b|. One off the support falls at the rate
    2 (2 penalty - |X^T r / n|), which may be very small. The slowest must settle three
    times over before an average begins.
    """
    slow = []
    for run in flows:
        b, h = run["predicted_lasso"].values, run["h"].values
        bound = 2 * run["gamma"].values * (run["delta"].values ** 2 + run["predicted_loss"].values)
        slack = bound * h - np.abs(b @ run["gram"].values - run["pull"].values)
        rate = 2 * np.where(b != 0, h * np.abs(b), np.maximum(slack, 0.0))
        before = BURN_IN * float(run["length"])
        if rate.min() * before < 3:
            slow.append(f"exp(-{rate.min() * before:.2g}) {at([run])}")
    return (
        "when the averages begin, the slowest coordinate has approached its limit only up to the "
        f"factor {', '.join(slow)}, and exp(-3) is needed; use a longer run"
        if slow
        else ""
    )


def separation(run: xr.Dataset, factor: int) -> float:
    """The distance between the Lasso solutions at the right penalty and at `FACTORS`
    times it.
    """
    return float(np.linalg.norm(solution(run, factor) - solution(run)))


def level(run: xr.Dataset) -> np.ndarray:
    """The flow's penalty divided by h, `gamma (delta^2 + mean L)`, with each seed's own
    mean loss, (seeds,).
    """
    return run["gamma"].values * (run["delta"].values ** 2 + run["loss"].values[-1])


def slopes(run: xr.Dataset) -> np.ndarray:
    """The means of X^T r / n over the longest window, (seeds, features)."""
    return average(run) @ run["gram"].values - run["pull"].values


def bound_ratios(run: xr.Dataset) -> np.ndarray:
    """|mean X^T r / n| divided by its bound, which is twice the flow's penalty, (seeds,
    features).
    """
    return np.abs(slopes(run)) / (2 * level(run).mean() * run["h"].values)


def constants(run: xr.Dataset, penalties: Any, beta: np.ndarray) -> np.ndarray:
    """`-<b, mean X^T r / n> / <penalties, |b|>` for each seed, (seeds,).

    It is 2 if b minimises the Lasso with these penalties, since |mean X^T r / n| is
    then twice the penalty on the support of b, over which b weighs the coordinates.

    **Arguments:**

    - `penalties`: (features,) or (seeds, features).
    - `beta`: (features,). The solution b.
    """
    return -(slopes(run) @ beta) / np.sum(penalties * np.abs(beta), axis=-1)


def law_constants(run: xr.Dataset) -> np.ndarray:
    """`constants` with the flow's penalties, `level` times h."""
    return constants(run, level(run)[:, None] * run["h"].values, solution(run))


def window_errors(ds: xr.Dataset) -> np.ndarray:
    """The root mean square over seeds of the distance between the time average of a
    window and the Lasso solution at that window's own penalty, (runs, windows).
    """
    gap = ds["beta"].values - ds["own_lasso"].values[:, :, None]
    return np.sqrt(np.mean(np.sum(np.square(gap), axis=-1), axis=-1))


def half_width(each: Estimate) -> float:
    """Half the width of an interval."""
    return (each.high - each.low) / 2


def at(runs: list[xr.Dataset]) -> str:
    """The pairs of gamma and delta of some runs, as text."""
    return "at (gamma, delta) = " + ", ".join(
        f"({float(run['gamma']):g}, {float(run['delta']):g})" for run in runs
    )
