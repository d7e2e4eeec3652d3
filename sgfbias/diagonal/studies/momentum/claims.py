"""The claims of the momentum study, computed from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.momentum import KINDS, LEVELS, Config
from sgfbias.diagonal.studies.momentum.discrete import (
    follow,
    intrinsic,
    not_intrinsic,
    printed_lambda,
    ratio_of_lambdas,
)
from sgfbias.diagonal.studies.momentum.quantities import (
    FIRST,
    PPF,
    length,
    shrinkage,
    whole_lambdas,
)
from sgfbias.diagonal.studies.momentum.solutions import (
    evenly,
    ladder,
    no_inertia,
    sparser,
    stochastic,
    support,
)
from sgfbias.study import Claim, claim, control, not_applicable
from sgfbias.study.statistics import listed, log_slope

ODE = f"{PPF}, the flow lambda w'' + w' + grad L = 0"
CROSSED = "at every lambda a weight goes through 0"


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims: the flows keep their evolution law, the discrete methods follow the
    flow with our lambda, and inertia changes the solution, also of SGD, as predicted.
    """
    whole, small = ds.isel(lam=whole_lambdas(ds)), ds.isel(lam=slice(LEVELS))
    return [
        _law(whole, config),
        _law_ends(ds),
        _selected(whole),
        _start(whole),
        _offset(small),
        _shrinks(whole, config),
        _derivative(
            "At small lambda the log alpha of every feature falls by lambda int (X^T r / n)^2 dt, "
            "with the integral along gradient flow",
            small,
            shrinkage(small, config, "flow"),
            small["still_squares"].values,
        ),
        _derivative(
            "At small lambda the selected solution moves by lambda times a derivative, which is "
            "that of the program in log alpha times -int (X^T r / n)^2 dt",
            small,
            (small["flow_selected"] - small["still_selected"]).values,
            small["still_derivative"].values,
        ),
        follow(small),
        printed_lambda(small),
        ratio_of_lambdas(small, config),
        intrinsic(small),
        not_intrinsic(ds),
        support(ds, config),
        *(sparser(ds, config, kind) for kind in KINDS),
        evenly(ds),
        ladder(ds),
        stochastic(ds, config),
        no_inertia(ds),
    ]


def _law(whole: xr.Dataset, config: Config) -> Claim:
    statement = (
        "While no weight goes through 0, log(w_+ w_-) = 2 log alpha - lambda int (s_+^2 "
        "+ s_-^2) - lambda (s_+ + s_-) holds at all times, where s = w'/w"
    )
    lams = whole["lam"].values
    if not lams.size:
        return not_applicable(statement, ODE, CROSSED)
    gap = whole["law_gap"].values.max(axis=1)
    size = 2 * np.abs(shrinkage(whole, config, "flow")).max(axis=1)
    return claim(
        statement,
        ODE,
        predicted="both sides are equal, with s from a spline through the simulated weights",
        measured=f"largest difference {gap.max():.1e} at any time and feature, lambda "
        f"{lams[0]:g} to {lams[-1]:g}; log(w_+ w_-) itself changes by up to {listed(size)}",
        tolerance="difference below a thousandth of that change, at every lambda",
        holds=np.all(gap < 1e-3 * size),
        reason="the flow does not follow this equation, or its time steps are too wide",
    )


def _law_ends(ds: xr.Dataset) -> Claim:
    statement, whole = (
        "where a weight goes through 0 the equation fails, but only for that feature",
        whole_lambdas(ds),
    )
    if whole.all():
        return not_applicable(
            f"Control: {statement}",
            ODE,
            "no weight goes through 0 at any lambda; larger lambdas are needed",
        )
    first = ds.isel(lam=int(np.argmin(whole)))
    gap, crossed = first["law_gap"].values, first["law_crossings"].values
    inside, outside = gap[crossed].min(), gap[~crossed].max(initial=0)
    return control(
        statement,
        ODE,
        predicted="the two sides differ for such features, and for no others",
        measured=f"at lambda = {float(first['lam']):g} a weight of {crossed.sum()} of {gap.size} "
        f"features goes through 0: they differ by at least {inside:.1g}, the others by at most "
        f"{outside:.1e}",
        tolerance="above 1 for these features, below 1e-3 for the others",
        holds=inside > 1 and outside < 1e-3,
    )


def _selected(whole: xr.Dataset) -> Claim:
    statement = (
        "The iterate is the program's solution among all beta with the same outputs, with the "
        "alpha and the offset that the two integrals of the evolution law give"
    )
    distance = whole["law_distance"].values
    if not distance.size:
        return not_applicable(statement, ODE, CROSSED)
    return claim(
        statement,
        f"{PPF}, the implicit regularisation problem",
        predicted="distance between iterate and solution 0",
        measured=f"largest distance {distance.max():.1e}, at most "
        f"{np.max(distance / whole['start_distance'].values):.1e} of the distance with the initial "
        f"alpha, at a loss of at most {whole['flow_loss'].values.max():.0e}",
        tolerance="a hundredth of the distance with the initial alpha at the same lambda, which "
        "allows for the error of the integrals",
        holds=np.all(distance < 0.01 * whole["start_distance"].values),
        main=True,
        reason="alpha and the offset do not determine the solution",
    )


def _start(whole: xr.Dataset) -> Claim:
    distance = whole["start_distance"].values
    return control(
        "with the initial alpha, which gradient flow keeps, the iterate is not the program's "
        "solution",
        ODE,
        predicted="distance proportional to lambda",
        measured=f"distance {listed(distance)} by lambda",
        tolerance="above 30 times the distance with the evolution law's alpha, at every lambda",
        holds=distance.size > 0 and np.all(distance > 30 * whole["law_distance"].values),
    )


def _offset(small: xr.Dataset) -> Claim:
    without, start = small["law_no_offset_distance"].values, small["start_distance"].values
    second, first = (log_slope(small["lam"], distance) for distance in (without, start))
    return claim(
        "At small lambda momentum acts through alpha: alpha matters to first order in lambda, "
        "the offset only to second",
        FIRST + ", whose square is the same for both signs",
        predicted="distance between iterate and solution: slope 2 in lambda without the offset, "
        "slope 1 with the initial alpha",
        measured=f"distance without the offset {listed(without)}, slope {second:.2f}; with the "
        f"initial alpha {listed(start)}, slope {first:.2f}",
        tolerance="slope above 1.5 without the offset, below 1.5 with the initial alpha",
        holds=second > 1.5 > first,
    )


def _shrinks(whole: xr.Dataset, config: Config) -> Claim:
    mean = shrinkage(whole, config, "flow").mean(axis=1)
    return claim(
        "The larger lambda, the smaller the effective initialisation, averaged over the "
        "features, while no weight goes through 0",
        f"{PPF}: momentum shrinks alpha",
        predicted="mean decrease of log alpha larger at every larger lambda",
        measured=f"mean decrease {listed(mean, '.4f')} at lambda {listed(whole['lam'])}",
        tolerance="every value above the one before, and the first above 0",
        holds=mean.size > 2 and mean[0] > 0 and np.all(np.diff(mean) > 0),
        main=True,
    )


def _derivative(
    statement: str, small: xr.Dataset, change: np.ndarray, derivative: np.ndarray
) -> Claim:
    """The claim that `change` (lam, feature) divided by lambda tends to `derivative`
    (feature,), with an error of the next order in lambda.
    """
    lam = small["lam"].values
    off = length(change / lam[:, None] - derivative) / length(derivative)
    slope = log_slope(lam, off)
    return claim(
        statement,
        FIRST,
        predicted="relative difference falls in proportion to lambda",
        measured=f"relative difference {listed(off)} at lambda {listed(lam)}, slope {slope:.2f}",
        tolerance="slope above 0.8",
        holds=slope > 0.8,
    )
