"""The claims of the main study about limits that are predicted early, computed from its
dataset alone.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import sign_test

P21, E23 = source("pesme2021"), source("even2023")


def early(ds: xr.Dataset, name: str) -> Claim:
    """The flow's limit, from its loss integral, with or without the correction."""
    statement = (
        "The flow's limit, predicted early and "
        f"{'corrected' if name == 'corrected' else 'uncorrected'} for the loss integral still to "
        "come, is within its own error estimate"
    )
    where = (
        "the expected loss integral still to come is D / (2 (1 - gamma <h, xi>)); see "
        "theory/landing.py"
    )
    distance, iterate = ds[f"early_{name}_distance"].values, ds["early_distance"].values
    alive = np.isfinite(distance)
    if alive.sum() < 8:
        return not_applicable(statement, where, "fewer than 8 seeds did not diverge")
    error, stated = distance[alive], ds[f"early_{name}_estimate"].values[alive]
    known = np.isfinite(stated)
    covered = np.mean(known & (error <= stated))
    middle, before = np.median(error), np.median(iterate[alive])
    closer = f"{before / middle:.0f} times smaller than the iterate's" if middle else "exact"
    return claim(
        statement,
        where,
        predicted="true for at least 90% of the seeds",
        measured=f"true for {covered:.0%}; the median error {middle:.1e} is {closer}; "
        f"{np.sum(~known)} seeds have no estimate",
        tolerance="at least 90% of the seeds",
        holds=covered >= 0.9,
        reason="the estimate is too small: the step size is too close to the stability edge, or "
        "the limit was predicted too early",
    )


def early_sgd(ds: xr.Dataset) -> list[Claim]:
    """SGD's own limit, predicted early by the linear equation of the second moments,
    from the alpha and the offset that its steps have left.
    """
    within = (
        "SGD's own limit, predicted early from its alpha and its offset and corrected for the "
        "rest of the run, is within its own error estimate"
    )
    solved = (
        "The predicted limits of SGD are certified: each is feasible and stationary for the "
        "potential with SGD's own offset, and its duality gap is 0"
    )
    without = "predicted early without the offset, SGD's limit is further away than with it"
    where = f"{E23}; {P21}, Theorem 1; see theory/landing.py"
    distance, stated, radius = (
        ds[f"early_sgd_{name}"].values for name in ("corrected_distance", "estimate", "radius")
    )
    alive = np.isfinite(distance)
    if alive.sum() < 8:
        reason = "fewer than 8 seeds of SGD did not diverge"
        return [not_applicable(words, where, reason) for words in (within, solved)] + [
            not_applicable(CONTROL + without, where, reason)
        ]
    unsolved = max(
        float(np.max(ds[f"early_sgd_{name}"].values[alive]))
        for name in ("feasibility", "stationarity", "duality_gap")
    )
    certified = claim(
        solved,
        f"KKT conditions; {E23}",
        predicted="all three errors are 0",
        measured=f"largest relative error {unsolved:.1e}",
        tolerance="at most 1e-9",
        holds=unsolved <= 1e-9,
        reason="the dual solver did not converge for some seed",
    )
    if np.mean(radius[alive] < 1) < 0.9:
        reason = (
            f"for {np.mean(radius[alive] >= 1):.0%} of the seeds the step size is beyond "
            "mean-square stability, where there is no estimate"
        )
        return [
            not_applicable(within, where, reason),
            certified,
            not_applicable(CONTROL + without, where, reason),
        ]
    covered = distance[alive] <= stated[alive]
    bare = ds["early_sgd_no_offset_distance"].values[alive]
    further, needed = int(np.sum(bare > distance[alive])), sign_test(int(alive.sum()))
    middle, before = (
        float(np.median(values[alive]))
        for values in (distance, ds["early_sgd_iterate_distance"].values)
    )
    return [
        claim(
            within,
            where,
            predicted="true for at least 90% of the seeds",
            measured=f"true for {np.mean(covered):.0%}; the median error {middle:.1e} is "
            f"{before / middle:.0f} times smaller than the iterate's; "
            f"{np.sum(~np.isfinite(stated[alive]))} seeds have no estimate",
            tolerance="at least 90% of the seeds",
            holds=np.mean(covered) >= 0.9,
            main=True,
            reason="the estimate is too small: the step size is too close to the stability edge, "
            "or the limit was predicted too early",
        ),
        certified,
        control(
            without,
            E23,
            predicted="true for most seeds",
            measured=f"true for {further} of {alive.sum()} seeds; the median distance is "
            f"{np.median(bare) / middle:.0f} times that with the offset",
            tolerance=f"at least {needed} seeds, sign test at level 1%",
            holds=further >= needed,
            reason="the offset makes no difference here",
        ),
    ]
