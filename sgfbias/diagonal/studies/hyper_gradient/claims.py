"""The claims of the study, from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.hyper_gradient import FIXED_STEPS, FIXED_TIME, Config
from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import arrow, finite

FINITE = "central differences, extrapolated to fourth and sixth order (Richardson)"
IMPLICIT = f"{source('pesme2021', 'theorem 1')}, and the implicit function theorem"
# The tolerated relative gap to central differences, and between the two modes; the loss
# below which a seed has converged; the share of gaps that the landing estimate covers.
TOLERANCE, MODES, CONVERGED, COVERED = 1e-5, 1e-10, 1e-14, 0.9
# The comparisons with the limit need at least so many seeds that converged, and so
# large a share of all seeds.
FEWEST, SHARE = 4, 0.75


def extrapolated(ds: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Central differences with their errors of second and fourth order removed by
    Richardson extrapolation, and by how much the last step of it changed them: (row,
    seed) each.
    """
    d = ds["difference"].values
    fourth = (4 * d[:, 1:] - d[:, :-1]) / 3
    best = (16 * fourth[:, 1] - fourth[:, 0]) / 15
    return best, np.abs(best - fourth[:, 1])


def gaps(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Relative gaps between derivatives and central differences, (row,) each.

    **Returns:**

    - `mean`: between the mean derivative and the mean difference, `unpaired`: between
      the mean derivative and the difference of means with other random numbers on one
      side, `doubt`: the uncertainty of the differences; all relative to the mean
      derivative.
    - `single`: the largest gap of a single seed, relative to the root mean square of
      the derivatives.
    - `lost`: the number of seeds whose derivative or difference is not finite. They are
      left out of the other numbers, which are infinite if no seed is left.
    """
    slope, (best, doubt) = ds["slope"].values, extrapolated(ds)
    known = np.isfinite(slope) & np.isfinite(best)
    count = np.maximum(known.sum(axis=1), 1)
    slope, best, doubt = (np.where(known, v, 0) for v in (slope, best, doubt))
    mean = slope.sum(axis=1) / count
    off = {
        "mean": mean - best.sum(axis=1) / count,
        "unpaired": mean - ds["unpaired"].values,
        "doubt": doubt.sum(axis=1) / count,
    }
    with np.errstate(all="ignore"):
        found = {name: np.abs(value) / np.abs(mean) for name, value in off.items()}
        found["single"] = np.max(np.abs(slope - best), axis=1) / np.sqrt(
            np.sum(slope**2, axis=1) / count
        )
    return {
        **{name: np.where(known.any(axis=1), value, np.inf) for name, value in found.items()},
        "lost": np.sum(~known, axis=1),
    }


def converged(ds: xr.Dataset) -> np.ndarray:
    """Whether a seed's unrolled run has a loss below 1e-14 and a finite gradient:
    (seeds,).
    """
    return (ds["limit_loss"].values < CONVERGED) & np.isfinite(ds["limit_gradient"].values).all(
        axis=1
    )


def distance(ds: xr.Dataset, name: str, other: str = "limit") -> np.ndarray:
    """Distances between the gradients `name` and `other`, relative to the norm of the
    limit's gradient, for the seeds that converged: (steps, seeds).
    """
    limit = ds["limit_gradient"].values
    difference = ds[f"{name}_gradient"].values - ds[f"{other}_gradient"].values
    return (np.linalg.norm(difference, axis=-1) / np.linalg.norm(limit, axis=-1))[:, converged(ds)]


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Judge that derivatives equal central differences in both modes, and that the
    gradient of the landed solution is the limit's.
    """
    rows, slope, off, modes = ds["row"].values, ds["slope"].values, gaps(ds), ds["mode_gap"].values
    # An outcome that does not depend on its random numbers is no use in the control.
    random = np.ptp(slope, axis=1) > 1e-9 * np.abs(slope).max(axis=1)
    whole = off["lost"] == 0
    unpaired = off["unpaired"][random & whole]
    large = unpaired > 100 * TOLERANCE
    lost = off["lost"].max()
    left_out = (
        f"; {lost} of {slope.shape[1]} seeds are not finite ({rows[np.argmax(off['lost'])]})"
        if lost
        else ""
    )
    return [
        claim(
            "Mean derivatives equal central differences with common random numbers, for "
            f"{len(rows)} pairs of outcome and hyperparameter",
            FINITE,
            predicted="equal up to the error of the differences",
            measured=f"largest relative gap {_worst(off['mean'], rows)}; the differences "
            f"themselves are uncertain by at most {off['doubt'].max():.0e}{left_out}",
            tolerance=f"relative gap at most {TOLERANCE:.0e}; finite for at least half of the "
            "seeds (a run that is landed too early, on a plateau, has no limit)",
            holds=np.all(off["mean"] <= TOLERANCE) and 2 * lost <= slope.shape[1],
            reason="a derivative is wrong, or the central differences are too coarse",
        ),
        claim(
            "Derivatives equal central differences with common random numbers also seed by seed, "
            "for all of these pairs",
            FINITE,
            predicted="equal up to the error of the differences",
            measured="largest gap of a seed, relative to the root mean square derivative, "
            f"{_worst(off['single'], rows)}{left_out}",
            tolerance=f"at most {TOLERANCE:.0e} of the root mean square over seeds",
            holds=np.all(off["single"] <= TOLERANCE),
            main=True,
        ),
        claim(
            "Forward mode equals reverse mode at every seed and every entry of the gradient",
            "chain rule, applied from either end",
            predicted="equal up to rounding",
            measured=f"largest relative gap {_worst(modes, rows)}",
            tolerance=f"at most {MODES:.0e} of the largest entry",
            holds=np.all(modes <= MODES),
        ),
        control(
            "with other random numbers on one side of the central difference, it does not equal "
            "the derivative",
            "the error of a difference of independent means is of order 1 / width",
            predicted="gaps far above the tolerance",
            measured=f"{large.sum()} of the {unpaired.size} pairs that depend on random numbers "
            f"have a relative gap above {100 * TOLERANCE:.0e}"
            + (
                f"; the median of these gaps is {np.median(unpaired[large]):.1e}"
                if large.any()
                else ""
            )
            + (f"; {np.sum(~whole)} pairs lost seeds and are left out" if lost else ""),
            tolerance="all of these pairs; at most half of all pairs left out",
            holds=large.any() and large.all() and whole.mean() >= 0.5,
            main=True,
        ),
        _fixed_time(ds),
        *_limit_claims(ds),
    ]


def _worst(gap: np.ndarray, rows: np.ndarray) -> str:
    """The largest gap and the row that has it, in words."""
    return f"{gap.max():.1e} ({rows[np.argmax(gap)]})"


def _fixed_time(ds: xr.Dataset) -> Claim:
    """The control that SGD's derivative in gamma at a fixed number of steps differs
    from the one at fixed time, on the same draws.
    """
    steps, time = (
        list(ds["row"].values).index(f"{name} in step size") for name in (FIXED_STEPS, FIXED_TIME)
    )
    here, there = finite(ds["slope"].values[steps]), finite(extrapolated(ds)[0][time])
    crossed = abs(here.mean() / there.mean() - 1) if here.size and there.size else 0.0
    return control(
        "a derivative in gamma at a fixed number of steps is not the derivative at fixed time",
        "chain rule: at fixed time the last step shrinks by steps - 1 times what gamma gains, "
        "instead of growing by once that; so d/d gamma at fixed time = d/d gamma at fixed steps - "
        "steps times the derivative in the length of the last step",
        predicted="two different numbers",
        measured="relative gap between SGD's derivative at fixed steps and the central "
        f"difference at fixed time {crossed:.1e}; the largest seed's share of the squared "
        f"gradients is {float(ds['share'][steps]):.2f} at fixed steps and "
        f"{float(ds['share'][time]):.2f} at fixed time",
        tolerance="relative gap above 1e-2",
        holds=crossed > 1e-2,
    )


def _limit_claims(ds: xr.Dataset) -> list[Claim]:
    """The claims that compare the landed solution's gradient with the limit's, which is
    unrolled. Seeds whose unrolled run did not converge have no limit to compare with:
    they are counted, and if too few seeds converged, only the claim about their number
    applies.
    """
    from scipy.stats import binom

    kept, at = converged(ds), ", ".join(f"{steps:,}" for steps in ds["steps"].values)
    least = max(FEWEST, int(np.ceil(SHARE * kept.size)))
    statements = {
        "landed": "The gradient of the landed solution equals the unrolled gradient of the limit, "
        "within the landing estimate",
        "later": "The longer the run before landing, the nearer the gradient of the landed "
        "solution is to the limit's",
        "iterate": "After the same number of steps the gradient of the landed solution is nearer "
        "to the limit's gradient than the unrolled gradient of the iterate",
        "frozen": f"{CONTROL}with the path's dependence on the hyperparameters left out "
        "(alpha_T / alpha held fixed) the gradient of the landed solution is not the limit's",
    }
    there = claim(
        "The unrolled runs reach their limits, so that there is a gradient to compare with",
        IMPLICIT,
        predicted="all seeds converge",
        measured=f"{kept.sum()} of {kept.size} seeds have a loss below {CONVERGED:g} and a finite "
        "gradient; the others are left out of the comparisons with the limit",
        tolerance=f"at least {least} seeds",
        holds=kept.sum() >= least,
        reason="raise limit_steps or alpha",
    )
    if there.verdict != "holds":
        return [
            there,
            *(
                not_applicable(
                    statement,
                    IMPLICIT,
                    f"only {kept.sum()} of {kept.size} seeds converged to a loss below "
                    f"{CONVERGED:g}: raise limit_steps or alpha",
                )
                for statement in statements.values()
            ),
        ]
    estimate, error, frozen = (
        distance(ds, "landed", "uncorrected"),
        distance(ds, "landed"),
        distance(ds, "frozen"),
    )
    landed, plain, iterate, fixed = (
        np.median(v, axis=1)
        for v in (error, distance(ds, "uncorrected"), distance(ds, "unrolled"), frozen)
    )
    covered, covered_fixed = (np.mean(v <= estimate) for v in (error, frozen))
    # So many of the pairs of a seed and a landing time are covered with a probability
    # of 99%, if each is with the probability `COVERED`.
    enough = int(binom.ppf(0.01, error.size, COVERED))
    return [
        there,
        claim(
            statements["landed"],
            IMPLICIT,
            predicted="a gap no larger than the change that the landing's correction makes to "
            "the gradient",
            measured=f"the gap is that small for {covered:.0%} of seeds and landing times; median "
            f"relative gap {arrow(landed)} after {at} steps",
            tolerance=f"at least {enough} of {error.size} pairs of a seed and a landing time, "
            f"which is the 1% quantile if {COVERED:.0%} are covered, as for the landed solution "
            "itself",
            holds=np.sum(error <= estimate) >= enough,
            main=True,
        ),
        claim(
            statements["later"],
            IMPLICIT,
            predicted="a relative error that falls with the number of steps",
            measured=f"median relative error {arrow(landed)} after {at} steps; "
            f"{arrow(plain)} if the landing is not corrected",
            tolerance="every median below the one before, the last below a tenth of the first",
            holds=np.all(np.diff(landed) < 0) and landed[-1] < 0.1 * landed[0],
        ),
        claim(
            statements["iterate"],
            IMPLICIT,
            predicted="a smaller relative error",
            measured=f"median relative error {arrow(landed)} of the landed solution's gradient "
            f"after {at} steps, {arrow(iterate)} of the iterate's",
            tolerance="the landed solution's below a tenth of the iterate's after every number of "
            "steps",
            holds=np.all(landed < 0.1 * iterate),
            main=True,
        ),
        control(
            statements["frozen"].removeprefix(CONTROL),
            "chain rule through alpha_T = alpha exp(-2 gamma h int L)",
            predicted="a relative error that longer runs do not reduce",
            measured=f"median relative error {arrow(fixed)} after {at} steps; within the landing "
            f"estimate for {covered_fixed:.0%} of seeds and landing times",
            tolerance="after the last number of steps above 10 times the full gradient's error; "
            "within the estimate for less than half",
            holds=fixed[-1] > 10 * landed[-1] and covered_fixed < 0.5,
            main=True,
        ),
    ]
