"""Claims and picture of the study `hyper-gradient`."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, judge, not_applicable
from sgfbias.plotting import COLOURS, new_figure, tidy

LEVELS = (1.0, 0.5, 0.25)  # widths of the central differences
FINITE = "central differences, extrapolated to fourth and sixth order (Richardson)"
IMPLICIT = "Pesme et al. 2021, Theorem 1, and the implicit function theorem"
CHAIN = "chain rule through alpha_T = alpha exp(-2 gamma h int L)"
TOLERANCE, MODES, CONVERGED, COVERED = 1e-5, 1e-10, 1e-14, 0.9


def extrapolated(ds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Differences (row, seed) with the errors of second and fourth order removed, and how much the last step of that changed them."""
    d = ds["difference"].values
    fourth = (4 * d[:, 1:] - d[:, :-1]) / 3
    best = (16 * fourth[:, 1] - fourth[:, 0]) / 15
    return best, np.abs(best - fourth[:, 1])


def gaps(ds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Per row: the relative gap between the mean derivative and the mean difference, and the largest gap of a single seed relative to the root
    mean square of the derivatives."""
    slope, (best, _) = ds["slope"].values, extrapolated(ds)
    mean = np.abs(slope.mean(axis=1) - best.mean(axis=1)) / np.abs(slope.mean(axis=1))
    return mean, np.max(np.abs(slope - best), axis=1) / np.sqrt(np.mean(slope**2, axis=1))


def _distance(ds: Any, name: str, other: str = "limit") -> np.ndarray:
    """Distances between two gradients of the limit, relative to it, over (steps, seed) for seeds that converged."""
    limit = ds["limit_gradient"].values
    difference = ds[f"{name}_gradient"].values - ds[f"{other}_gradient"].values
    return (np.linalg.norm(difference, axis=-1) / np.linalg.norm(limit, axis=-1))[:, converged(ds)]


def converged(ds: Any) -> np.ndarray:
    """Seeds whose unrolled run has a loss below 1e-14 and a finite gradient."""
    return (ds["limit_loss"].values < CONVERGED) & np.isfinite(ds["limit_gradient"].values).all(axis=1)


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    rows = [str(name) for name in ds["row"].values]
    mean, single = gaps(ds)
    worst, worst_seed, worst_mode = int(np.argmax(mean)), int(np.argmax(single)), int(np.argmax(ds["mode_gap"].values))
    slope, doubt = ds["slope"].values, extrapolated(ds)[1]
    doubtful = float(np.max(np.abs(doubt.mean(axis=1)) / np.abs(slope.mean(axis=1))))
    unpaired = np.abs(ds["unpaired"].values - slope.mean(axis=1)) / np.abs(slope.mean(axis=1))
    # Outcomes that do not look at their random numbers cannot tell.
    random = np.ptp(slope, axis=1) > 1e-9 * np.abs(slope).max(axis=1)
    table = [
        judge(
            f"Mean derivatives equal central differences with common random numbers, {len(rows)} of outcome and hyperparameter",
            FINITE,
            predicted="equal",
            measured=f"largest relative gap {mean[worst]:.1e} ({rows[worst]}); the differences' own doubt is up to {doubtful:.0e}",
            tolerance=f"{TOLERANCE:.0e} relative",
            holds=np.all(mean <= TOLERANCE),
            reason="a derivative is wrong, or the differences are too coarse",
        ),
        judge(
            "The same seed by seed",
            FINITE,
            predicted="equal",
            measured=f"largest gap {single[worst_seed]:.1e} of the root mean square ({rows[worst_seed]})",
            tolerance=f"{TOLERANCE:.0e} of the root mean square over seeds",
            holds=np.all(single <= TOLERANCE),
        ),
        judge(
            "Forward mode equals reverse mode, every seed and entry",
            "chain rule, from either end",
            predicted="equal to rounding",
            measured=f"largest relative gap {float(ds['mode_gap'].max()):.1e} ({rows[worst_mode]})",
            tolerance=f"{MODES:.0e} of the largest entry",
            holds=np.all(ds["mode_gap"].values <= MODES),
        ),
        judge(
            "Control: with other random numbers on one side of the difference the derivatives are not met",
            "variance of a difference of independent means: of order 1/width",
            predicted="gaps far above the tolerance",
            measured=f"{int(np.sum(unpaired[random] > 100 * TOLERANCE))} of {int(random.sum())} rows off by more than {100 * TOLERANCE:.0e}, "
            f"median {np.median(unpaired[random]):.1e}",
            tolerance="all random rows",
            holds=random.any() and np.all(unpaired[random] > 100 * TOLERANCE),
            control=True,
        ),
        _fixed_time(ds, rows),
    ]
    return table + _limit_claims(ds)


def _fixed_time(ds: Any, rows: list[str]) -> Claim:
    """SGD's derivative in gamma at fixed steps is not the one at fixed time, on the same draws."""
    steps, time = ("SGD, fixed steps: error in step size", "SGD, fixed time: error in step size")
    difference = extrapolated(ds)[0].mean(axis=1)
    slope = ds["slope"].values.mean(axis=1)
    crossed = abs(slope[rows.index(steps)] / difference[rows.index(time)] - 1)
    return judge(
        "Control: a derivative at fixed steps does not pass for one at fixed time",
        "d/d gamma at fixed time = d/d gamma at fixed steps - (steps - 1) times the last step's effect",
        predicted="another number",
        measured=f"SGD's at fixed steps is off the difference at fixed time by {crossed:.1e} relative; "
        f"a single seed's share of the squares is {float(ds['share'][rows.index(steps)]):.2f} and {float(ds['share'][rows.index(time)]):.2f}",
        tolerance="more than 1e-2",
        holds=crossed > 1e-2,
        control=True,
    )


def _limit_claims(ds: Any) -> list[Claim]:
    """Implicit against unrolled."""
    name = "The gradient of the landed solution equals the unrolled gradient of the limit, within the landing estimate"
    kept, steps = converged(ds), ds["steps"].values
    if kept.sum() < 4:
        return [
            not_applicable(
                name, IMPLICIT, f"only {int(kept.sum())} seeds converged to a loss below {CONVERGED:.0e}: raise limit_steps or alpha"
            )
        ]
    error, estimate, plain = _distance(ds, "landed"), _distance(ds, "landed", "uncorrected"), _distance(ds, "uncorrected")
    iterate, frozen = _distance(ds, "unrolled"), _distance(ds, "frozen")
    covered = (error <= estimate).mean()
    medians = [np.median(v, axis=1) for v in (error, plain, iterate, frozen)]

    def ladder(values: np.ndarray) -> str:
        return " -> ".join(f"{v:.1e}" for v in values)

    at = ", ".join(f"{s:,}" for s in steps)
    return [
        judge(
            name,
            IMPLICIT,
            predicted="within the difference that the landing's correction makes",
            measured=f"{covered:.0%} of seeds and times; median error {ladder(medians[0])} after {at} steps; {int(kept.sum())} of {kept.size} seeds converged",
            tolerance=f"{COVERED:.0%}, as for the landed solution itself",
            holds=covered >= COVERED,
        ),
        judge(
            "It comes nearer the longer the run before landing",
            IMPLICIT,
            predicted="error falls",
            measured=f"median {ladder(medians[0])}, uncorrected {ladder(medians[1])}",
            tolerance="every median below the one before, the last a tenth of the first",
            holds=np.all(np.diff(medians[0]) < 0) and medians[0][-1] < 0.1 * medians[0][0],
        ),
        judge(
            "At the same number of steps it is nearer to the limit's gradient than the unrolled gradient of the iterate",
            IMPLICIT,
            predicted="nearer",
            measured=f"median error of the iterate's {ladder(medians[2])}",
            tolerance="landed below a tenth of it, at every number of steps",
            holds=np.all(medians[0] < 0.1 * medians[2]),
        ),
        judge(
            "Control: with the path's dependence on the hyperparameters left out (alpha_T / alpha held fixed) it is not the limit's gradient",
            CHAIN,
            predicted="an error that longer runs do not mend",
            measured=f"median {ladder(medians[3])}; covered by the estimate: {(frozen <= estimate).mean():.0%}",
            tolerance="at the last number of steps 10 times the chained gradient's error, covered for less than half",
            holds=medians[3][-1] > 10 * medians[0][-1] and (frozen <= estimate).mean() < 0.5,
            control=True,
        ),
    ]


def plot(ds: Any) -> Any:
    """Gaps of every row, and the gradient of the limit against the steps before landing."""
    figure, axes = new_figure(1, 2, size=(13.5, 6))
    left, right = axes[0]
    rows = [str(name) for name in ds["row"].values]
    mean, single = gaps(ds)
    at = np.arange(len(rows))[::-1]
    floor = 1e-17
    left.plot(np.maximum(mean, floor), at, "o", color=COLOURS["sgf"], label="mean, against differences")
    left.plot(np.maximum(single, floor), at, "|", color=COLOURS["sgd"], markersize=10, label="worst seed, against differences")
    left.plot(np.maximum(ds["mode_gap"].values, floor), at, "x", color=COLOURS["gd"], label="forward against reverse")
    left.axvline(TOLERANCE, color=COLOURS["sgf"], linestyle=":", linewidth=1)
    left.axvline(MODES, color=COLOURS["gd"], linestyle=":", linewidth=1)
    tidy(
        left,
        title="Derivatives against central differences, and mode against mode",
        x="relative gap (dotted: tolerance)",
        y="",
        y_scale="linear",
    )
    left.set_yticks(at, rows, fontsize=7)
    left.legend(frameon=False, fontsize=8, loc="upper right")
    if converged(ds).any():
        steps = ds["steps"].values
        for name, other, colour, style, label in (
            ("unrolled", "limit", COLOURS["gd"], "o--", "unrolled iterate"),
            ("frozen", "limit", COLOURS["control"], "o--", "control: path held fixed"),
            ("uncorrected", "limit", COLOURS["sgd"], "o-", "landed, uncorrected"),
            ("landed", "limit", COLOURS["sgf"], "o-", "landed, corrected"),
            ("landed", "uncorrected", "black", ":", "estimate"),
        ):
            right.plot(steps, np.median(_distance(ds, name, other), axis=1), style, color=colour, label=label, linewidth=1.5)
        right.legend(frameon=False, fontsize=8)
    tidy(
        right,
        title="Gradient of the limit: error against unrolling to convergence",
        x="steps before landing",
        y="relative error, median over seeds",
    )
    return figure
