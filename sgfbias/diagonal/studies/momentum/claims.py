"""The claims of the momentum study, computed from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.momentum import KINDS, LEVELS, Config
from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.statistics import listed, log_slope, mean_and_error, sign_test

PPF = source("papazov2024")
ODE = f"{PPF}, the flow lambda w'' + w' + grad L = 0"
OURS = (
    "our lambda is gamma (1 + b) / (2 (1 - b)^2) for heavy ball, and "
    "gamma (1 - b + 2 b^2) / (2 (1 - b)^2) for Nesterov"
)
FIRST = "to first order in lambda s = w'/w is gradient flow's, -+ X^T r / n"
CROSSED = "at every lambda a weight goes through 0"
HALF = "more than half of all problems, by a binomial test at 0.5%"
# A difference of fewer standard errors counts as chance.
SURE = 3.3
NAMES = {"heavy ball": "heavy ball", "nesterov": "Nesterov"}


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
        _follows(small),
        _printed(small),
        _ratios(small, config),
        _intrinsic(small),
        _not_intrinsic(ds),
        _support(ds, config),
        *(_sparser(ds, config, kind) for kind in KINDS),
        _even(ds),
        _ladder(ds),
        _stochastic(ds, config),
        _no_inertia(ds),
    ]


def whole_lambdas(ds: xr.Dataset) -> np.ndarray:
    """Which lambdas are below the first one at which a weight goes through 0, (lam,)
    booleans.
    """
    return np.cumsum(ds["law_crossings"].values.any(axis=1)) == 0


def shrinkage(ds: xr.Dataset, config: Config, name: str) -> np.ndarray:
    """The decrease of log alpha of the runs `name`, (..., feature)."""
    return np.log(config.alpha) - ds[f"{name}_log_alpha"].values


def apart(small: xr.Dataset, flow: str) -> np.ndarray:
    """Distances of the discrete methods' solutions from the flows' solutions at the
    `LEVELS` smallest lambdas, (method, momentum, level).

    **Arguments:** `flow`: "flow" for our lambda, "printed" for the printed lambda.
    """
    return _norm(small["discrete_selected"].values - small[f"{flow}_selected"].values)


def _norm(v: Any) -> np.ndarray:
    return np.linalg.norm(np.asarray(v), axis=-1)


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
    )


def _derivative(
    statement: str, small: xr.Dataset, change: np.ndarray, derivative: np.ndarray
) -> Claim:
    """The claim that `change` (lam, feature) divided by lambda tends to `derivative`
    (feature,), with an error of the next order in lambda.
    """
    lam = small["lam"].values
    off = _norm(change / lam[:, None] - derivative) / _norm(derivative)
    slope = log_slope(lam, off)
    return claim(
        statement,
        FIRST,
        predicted="relative difference falls in proportion to lambda",
        measured=f"relative difference {listed(off)} at lambda {listed(lam)}, slope {slope:.2f}",
        tolerance="slope above 0.8",
        holds=slope > 0.8,
    )


def _orders(small: xr.Dataset, flow: str) -> tuple[np.ndarray, str]:
    """Slopes in lambda of the distances `apart`, (method, momentum), and a text on
    them.
    """
    gaps = apart(small, flow)
    slopes = np.array([log_slope(small["lam"], rows) for rows in gaps])
    return slopes, "; ".join(
        f"{NAMES[method]} {listed(row, '.2f')} (distances {listed(gap[:, 0], '.1e')})"
        for method, row, gap in zip(small["method"].values, slopes, gaps, strict=True)
    )


def _follows(small: xr.Dataset) -> Claim:
    slopes, words = _orders(small, "flow")
    return claim(
        "Discrete heavy ball and Nesterov select the solution of the flow with our lambda, to "
        "second order in gamma",
        OURS,
        predicted="distance of the solutions: slope 2 in gamma at each b = "
        f"{listed(small['momentum'])}",
        measured=f"slopes {words} at the smallest lambda",
        tolerance="every slope above 1.5",
        holds=np.all(slopes > 1.5),
        reason="our lambda is not the right one",
    )


def _printed(small: xr.Dataset) -> Claim:
    slopes, words = _orders(small, "printed")
    factor = (apart(small, "printed") / apart(small, "flow"))[:, :, 0].min()
    return control(
        "with the printed lambda, gamma / (1 - b)^2, the discrete methods select the flow's "
        "solution to first order only",
        f"{PPF}: lambda = gamma / (1 - b)^2, the limit b -> 1",
        predicted="distance of the solutions: slope 1 in gamma",
        measured=f"slopes {words} at the smallest lambda, at least {factor:.0f} times the "
        "distances with our lambda",
        tolerance="every slope below 1.5, and every distance above 5 times that with our lambda",
        holds=np.all(slopes < 1.5) and factor > 5,
    )


def _at_zero(lam: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Ratios (..., level) at the lambdas `lam` (level,), extrapolated to lambda = 0 by
    the polynomial through all of them, (...).
    """
    others = [np.delete(lam, k) for k in range(lam.size)]
    return ratios @ [np.prod(rest / (rest - at)) for rest, at in zip(others, lam, strict=True)]


def _ratios(small: xr.Dataset, config: Config) -> Claim:
    lost, flow, printed = (
        shrinkage(small, config, name).sum(axis=-1) for name in ("discrete", "flow", "printed")
    )
    lam, factor = small["lam"].values, small["lam"].values / small["printed_lam"].values
    ours, ratio = _at_zero(lam, lost / flow), _at_zero(lam, lost / printed)
    off, wrong = np.abs(ours - 1).max(), np.abs(ratio / factor[..., 0] - 1).max()
    shown = "; ".join(
        f"{NAMES[method]} {listed(row, '.3f')} (predicted {listed(f, '.3f')})"
        for method, row, f in zip(small["method"].values, ratio, factor[..., 0], strict=True)
    )
    return claim(
        "As lambda falls, the log alpha of the discrete methods falls as much as the flow's with "
        "our lambda, and less than the flow's with the printed lambda, by the ratio of the two "
        "lambdas",
        OURS,
        predicted="ratio of the decreases 1 with our lambda; with the printed lambda (1 + b)/2 "
        "for heavy ball, (1 - b + 2 b^2)/2 for Nesterov",
        measured=f"extrapolated to lambda = 0, b = {listed(small['momentum'])}: with our lambda 1 "
        f"to within {off:.1e}; with the printed lambda {shown}; at the smallest lambda 1 to within "
        f"{np.abs(lost / flow - 1)[..., 0].max():.1e} with our lambda",
        tolerance="1% of the predicted ratio, with each lambda: the difference is of order lambda, "
        f"and a polynomial through the {LEVELS} smallest lambdas removes all but order "
        f"lambda^{LEVELS}",
        holds=off < 0.01 and wrong < 0.01,
        reason="our lambda is wrong by a factor",
    )


def _spread(solutions: np.ndarray) -> np.ndarray:
    """Largest distance between two of the solutions (solution, ..., feature) along the
    first axis, (...).
    """
    return _norm(solutions[:, None] - solutions[None, :]).max(axis=(0, 1))


def _intrinsic(small: xr.Dataset) -> Claim:
    solutions = small["discrete_selected"].values.reshape(-1, *small["flow_selected"].shape)
    spread, moved = (
        _spread(solutions),
        _norm(solutions - small["still_selected"].values).mean(axis=0),
    )
    second, first = (log_slope(small["lam"], distance) for distance in (spread, moved))
    return claim(
        "lambda is intrinsic: all pairs (gamma, b) with the same lambda, of heavy ball and of "
        "Nesterov, select the same solution to first order in lambda",
        f"{PPF}: lambda defines the path; here with our lambda",
        predicted="spread of the solutions: slope 2 in lambda; their distance from gradient "
        "flow's solution: slope 1",
        measured=f"spread {listed(spread)}, slope {second:.2f}; mean distance from gradient "
        f"flow's solution {listed(moved)}, slope {first:.2f}; spread over distance "
        f"{listed(spread / moved, '.1%')}",
        tolerance="slope of the spread above 1.5, slope of the distance below 1.5",
        holds=second > 1.5 > first,
        reason="lambda is not all that matters to first order",
    )


def _not_intrinsic(ds: xr.Dataset) -> Claim:
    solutions, lams = ds["same_selected"].values, ds["same_lam"].values
    moved = _norm(solutions - ds["still_selected"].values)
    ratio = float(_spread(solutions) / moved.mean())
    return control(
        "pairs (gamma, b) with the same gamma select solutions that are as far apart as they are "
        "from gradient flow's solution",
        f"{PPF}: gamma alone does not define the path",
        predicted="distances from gradient flow's solution proportional to lambda, which is "
        f"proportional to {listed(lams / lams[0], '.3g')}",
        measured=f"distances {listed(moved)}, proportional to {listed(moved / moved[0], '.3g')}; "
        f"spread of the solutions {ratio:.0%} of the mean distance",
        tolerance="spread above half of the mean distance",
        holds=ratio > 0.5,
    )


def _most(condition: np.ndarray) -> bool:
    """Whether a condition (problem,) holds on more than half of all problems by the
    one-sided binomial test at 0.5%.
    """
    return bool(condition.sum() >= sign_test(condition.size, level=0.005))


def _support(ds: xr.Dataset, config: Config) -> Claim:
    share, even = ds["centred_share"].values, config.sparsity / config.many_d
    return claim(
        "Inertia shrinks alpha most where the solution is large: on centred inputs more than a "
        "proportional share of the shrinkage is on the truth's support",
        f"the gradient X^T r / n is largest on the support; {source('even2023')} for gradient "
        "descent",
        predicted=f"share of the shrinkage above {even:.0%}, the support's share of the features",
        measured=f"share {np.median(share):.0%} (median), {share.min():.0%} (smallest) of "
        f"{share.size} problems; with shifted inputs {np.median(ds['shifted_share']):.0%} (median)",
        tolerance=f"share above the support's share of the features, on {HALF}",
        holds=_most(share > even),
    )


def _sparser(ds: xr.Dataset, config: Config, kind: str) -> Claim:
    norm, error = ds[f"{kind}_l1_slope"].values, ds[f"{kind}_error_slope"].values
    inputs = "centred inputs" if kind == "centred" else f"inputs of mean {config.shift:g}"
    return claim(
        f"The larger lambda, the sparser the solution and the smaller its error, on {inputs}, to "
        "first order in lambda",
        f"{PPF}: small lambda helps to recover sparse solutions, as alpha falls",
        predicted="the l1 norm and the error fall as lambda rises from 0",
        measured=f"the l1 norm falls on {np.sum(norm < 0)}, the error on {np.sum(error < 0)} of "
        f"{norm.size} problems; median d log error / d lambda {np.median(error):+.2f}",
        tolerance=f"each falls on {HALF}",
        holds=_most(norm < 0) and _most(error < 0),
        must_hold=False,
        reason="alpha falls unevenly over the features, most where the solution is large",
    )


def _even(ds: xr.Dataset) -> Claim:
    centred, shifted = (ds[f"{kind}_even_slope"].values < 0 for kind in KINDS)
    return control(
        "the same mean shrinkage of log alpha, spread evenly over the features, lowers the error",
        f"{source('woodworth2020')}: alpha -> 0 is the minimum l1 norm",
        predicted="the error falls",
        measured=f"the error falls on {centred.sum()} of {centred.size} problems with centred "
        f"inputs, and on {shifted.sum()} with shifted inputs",
        tolerance=f"on {HALF}, of each kind",
        holds=_most(centred) and _most(shifted),
        reason="a smaller alpha does not help on these problems",
    )


def _ladder(ds: xr.Dataset) -> Claim:
    # The first row is the solution without momentum, the others are by lambda.
    solutions = np.vstack([ds["still_selected"].values, ds["flow_selected"].values])
    error, norm = (
        np.square(solutions - ds["beta_star"].values).sum(axis=1),
        np.abs(solutions).sum(axis=1),
    )
    return claim(
        "Beyond first order, on the single problem of the flows, the error and the l1 norm fall "
        "as lambda rises",
        f"{PPF}; centred inputs",
        predicted="both fall",
        measured=f"error {error[0]:.3f} without momentum, {listed(error[1:], '.3f')} at lambda "
        f"{listed(ds['lam'])}; l1 norm {norm[0]:.3f} without, {listed(norm[1:], '.3f')} with",
        tolerance="every value at a lambda below the value before",
        holds=np.all(np.diff(error[1:]) < 0) and np.all(np.diff(norm[1:]) < 0),
        must_hold=False,
        reason="the error or the norm rises, as on most problems with centred inputs",
    )


def _sgd(ds: xr.Dataset, *parts: str) -> tuple[str, float, float]:
    """Relative difference of SGD's decrease of log alpha from the sum of the predicted
    parts.

    **Returns:** a text with its means at both step sizes, its extrapolation to step
    size 0, and the standard error of this over the seeds.
    """
    predicted = sum(ds[f"sgd_{part}"].values for part in parts)
    off = (ds["sgd_shrinkage"].values - predicted) / np.nanmean(predicted, axis=1, keepdims=True)
    return listed(np.nanmean(off, axis=1), "+.3f"), *mean_and_error(2 * off[1] - off[0])


def _stochastic(ds: xr.Dataset, config: Config) -> Claim:
    words, limit, error = _sgd(ds, "noise", "inertia")
    plain = np.nanmean(ds["sgd_shrinkage"], axis=1) / np.nanmean(ds["sgd_plain"], axis=1)
    return claim(
        f"SGD with momentum b = {config.sgd_momentum:g} shrinks log alpha by two terms: the noise "
        "of SGD with step size gamma / (1 - b), and the inertia",
        "to first order in gamma the terms are (gamma/(1-b)) (X^2)^T int r^2 / 2n and "
        "(gamma b/(1-b)^2) int (X^T r/n)^2; SGD without momentum has the first only",
        predicted="relative difference from their sum tends to 0 with gamma",
        measured=f"relative difference, averaged over the features, {words} at gamma / (1 - b) = "
        f"{listed(ds['rate'])}, extrapolated to gamma = 0 {limit:+.3f} +- {error:.3f}; the "
        f"decrease of log alpha is {listed(plain, '.2f')} times that of SGD with step size "
        "gamma / (1 - b)",
        tolerance=f"extrapolation within {SURE} standard errors of 0",
        holds=abs(limit) < SURE * error,
        reason="momentum has another effect to first order in gamma",
    )


def _no_inertia(ds: xr.Dataset) -> Claim:
    words, limit, error = _sgd(ds, "noise")
    return control(
        "without the inertia, as if momentum only made the step size larger, the predicted "
        "decrease of log alpha is wrong",
        "SGD with step size gamma / (1 - b)",
        predicted="relative difference from the noise term alone does not tend to 0",
        measured=f"relative difference {words} at the two step sizes, extrapolated to gamma = 0 "
        f"{limit:+.3f} +- {error:.3f}",
        tolerance="extrapolation more than 10 standard errors from 0",
        holds=abs(limit) > 10 * error,
    )
