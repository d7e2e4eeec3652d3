"""Claims of the study `momentum`, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, judge, not_applicable
from sgfbias.core.provenance import config_of

PPF = "Papazov, Pesme, Flammarion 2024"
ODE = f"{PPF}, the flow lambda w'' + w' + grad L = 0"
OURS = "heavy ball gamma (1 + b) / (2 (1 - b)^2), Nesterov gamma (1 - b + 2 b^2) / (2 (1 - b)^2)"
FIRST = "first order in lambda: s = w'/w is that of the gradient flow, -+ X^T r / n"
SURE = 3.3  # standard errors
NAMES = {"heavy ball": "heavy ball", "nesterov": "Nesterov"}


def claims(ds: Any) -> list[Claim]:
    """The study's claims."""
    return [
        _law(ds),
        _law_ends(ds),
        _selected(ds),
        _start(ds),
        _offset(ds),
        _shrinks(ds),
        _first_order(ds),
        _moves(ds),
        _follows(ds),
        _printed(ds),
        _ratios(ds),
        _intrinsic(ds),
        _not_intrinsic(ds),
        _support(ds),
        _sparser(ds, "centred"),
        _sparser(ds, "shifted"),
        _even(ds),
        _ladder(ds),
        _stochastic(ds),
        _no_inertia(ds),
    ]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _norm(v: Any) -> np.ndarray:
    return np.linalg.norm(np.asarray(v), axis=-1)


def _listed(values: Any, form: str = ".2g") -> str:
    return ", ".join(format(float(v), form) for v in values)


def whole_lambdas(ds: Any) -> np.ndarray:
    """At which lambdas no weight goes through 0, up to the first one at which one does."""
    return np.cumsum(ds["law_crossings"].values.any(axis=1)) == 0


def shrinkage(ds: Any, name: str) -> np.ndarray:
    return float(np.log(config_of(ds, "alpha"))) - ds[f"{name}_log_alpha"].values


def _law(ds: Any) -> Claim:
    whole = whole_lambdas(ds)
    statement = "While no weight goes through 0, log(w_+ w_-) = 2 log alpha - lambda int (s_+^2 + s_-^2) - lambda (s_+ + s_-), s = w'/w, at all times"
    if not whole.any():
        return not_applicable(statement, ODE, "at every lambda a weight goes through 0")
    gap = ds["law_gap"].values[whole].max(axis=1)
    size = 2 * np.abs(shrinkage(ds, "flow")[whole]).max(axis=1)
    lams = ds["lam"].values[whole]
    return judge(
        statement,
        ODE,
        predicted="equal; s from a spline through the simulated weights",
        measured=f"lambda {lams[0]:g} to {lams[-1]:g}: largest difference at any time and feature {gap.max():.1e}, where the law's own effect reaches {_listed(size)}",
        tolerance="a thousandth of that effect, every lambda",
        holds=np.all(gap < 1e-3 * size),
        reason="the flow is not that of this equation, or its steps are too wide",
    )


def _law_ends(ds: Any) -> Claim:
    whole, crossed = whole_lambdas(ds), ds["law_crossings"].values
    statement = "Control: where a weight goes through 0 the law ends, for that feature only"
    if whole.all():
        return not_applicable(statement, ODE, "no weight goes through 0 at any lambda; larger ones are needed", control=True)
    first = int(np.argmin(whole))
    gap = ds["law_gap"].values[first]
    inside, outside = gap[crossed[first]].min(), gap[~crossed[first]].max(initial=0)
    return judge(
        statement,
        ODE,
        predicted="off there, and there only",
        measured=f"at lambda = {float(ds['lam'].values[first]):g}, {int(crossed[first].sum())} of {gap.size} features: off by at least {inside:.1g}; the others by at most {outside:.1e}",
        tolerance="above 1; below 1e-3",
        holds=inside > 1 and outside < 1e-3,
        control=True,
    )


def _selected(ds: Any) -> Claim:
    whole = whole_lambdas(ds)
    statement = "The iterate is the programme's solution on its fibre, with the alpha and the offset of the law's two integrals"
    if not whole.any():
        return not_applicable(statement, ODE, "at every lambda a weight goes through 0")
    distance = ds["law_distance"].values[whole]
    return judge(
        statement,
        f"{PPF}, the implicit regularisation problem",
        predicted="the same point",
        measured=f"largest distance {distance.max():.1e}, loss at most {ds['flow_loss'].values[whole].max():.0e}",
        tolerance="1e-5, for the integrals' error",
        holds=np.all(distance < 1e-5),
        reason="alpha and the offset are not what decides",
    )


def _start(ds: Any) -> Claim:
    whole = whole_lambdas(ds)
    distance, law = ds["start_distance"].values[whole], ds["law_distance"].values[whole]
    return judge(
        "Control: at the initial alpha, the gradient flow's, it is not",
        ODE,
        predicted="a distance in proportion to lambda",
        measured=f"{_listed(distance)}",
        tolerance="above 30 times the law's, every lambda",
        holds=distance.size > 0 and np.all(distance > 30 * law),
        control=True,
    )


def _offset(ds: Any) -> Claim:
    distance, lam = ds["law_no_offset_distance"].values[:3], ds["lam"].values[:3]
    start = ds["start_distance"].values[:3]
    slope = _slope(lam, distance)
    return judge(
        "The perturbed reference point matters to second order in lambda only, alpha to first: small lambda acts through alpha",
        FIRST + ", whose square is the same for both signs",
        predicted="distance without the offset: slope 2 in lambda; with the initial alpha: slope 1",
        measured=f"without the offset {_listed(distance)}: slope {slope:.2f}; with the initial alpha {_listed(start)}: slope {_slope(lam, start):.2f}",
        tolerance="above 1.5, and below 1.5",
        holds=slope > 1.5 > _slope(lam, start),
    )


def _shrinks(ds: Any) -> Claim:
    whole = whole_lambdas(ds)
    mean = shrinkage(ds, "flow")[whole].mean(axis=1)
    return judge(
        "The larger lambda, the smaller the effective initialisation, on average over the features, while no weight goes through 0",
        f"{PPF}: momentum shrinks alpha",
        predicted="mean of log alpha falls, at every step up",
        measured=f"log alpha lost {_listed(mean, '.4f')} at lambda {_listed(ds['lam'].values[whole])}",
        tolerance="every one above the one before, the first above 0",
        holds=whole.sum() > 2 and mean[0] > 0 and np.all(np.diff(mean) > 0),
    )


def _first_order(ds: Any) -> Claim:
    lam, squares = ds["lam"].values[:3], ds["still_squares"].values
    off = _norm(shrinkage(ds, "flow")[:3] / lam[:, None] - squares) / _norm(squares)
    slope = _slope(lam, off)
    return judge(
        "At small lambda every feature's log alpha loses lambda int (X^T r / n)^2 dt, the integral being the gradient flow's",
        FIRST,
        predicted="relative difference -> 0 as lambda",
        measured=f"{_listed(off)} at lambda {_listed(lam)}: slope {slope:.2f}",
        tolerance="slope at least .8",
        holds=slope > 0.8,
    )


def _moves(ds: Any) -> Claim:
    lam, derivative = ds["lam"].values[:3], ds["still_derivative"].values
    moved = (ds["flow_selected"].values[:3] - ds["still_selected"].values[None]) / lam[:, None]
    off = _norm(moved - derivative) / _norm(derivative)
    slope = _slope(lam, off)
    return judge(
        "And the solution moves as that says, by the derivative of the programme in log alpha",
        FIRST,
        predicted="relative difference -> 0 as lambda",
        measured=f"{_listed(off)}: slope {slope:.2f}",
        tolerance="slope at least .8",
        holds=slope > 0.8,
    )


def apart(ds: Any, name: str) -> np.ndarray:
    """Distance of the discrete methods' solutions from those of the flows, (method, momentum, level)."""
    flow = ds["flow_selected"].values[:3] if name == "ours" else ds["printed_selected"].values
    return _norm(ds["discrete_selected"].values - flow)


def _orders(ds: Any, name: str) -> tuple[np.ndarray, str]:
    """Slopes in lambda, (method, momentum), and words."""
    gaps, lam = apart(ds, name), ds["lam"].values[:3]
    slopes = np.array([[_slope(lam, row) for row in rows] for rows in gaps])
    words = "; ".join(
        f"{NAMES[str(method)]} {_listed(row, '.2f')} (distance {_listed(gap[:, 0], '.1e')})"
        for method, row, gap in zip(ds["method"].values, slopes, gaps, strict=True)
    )
    return slopes, words


def _follows(ds: Any) -> Claim:
    slopes, words = _orders(ds, "ours")
    return judge(
        "Discrete heavy ball and Nesterov select the solution of the flow with our lambda, to second order in gamma",
        OURS,
        predicted=f"distance of solutions: slope 2 in gamma at fixed b, b = {_listed(ds['momentum'].values)}",
        measured=f"slopes {words} at the smallest",
        tolerance="every slope above 1.5",
        holds=np.all(slopes > 1.5),
        reason="lambda is another one",
    )


def _printed(ds: Any) -> Claim:
    slopes, words = _orders(ds, "printed")
    factor = (apart(ds, "printed") / apart(ds, "ours"))[:, :, 0]
    return judge(
        "Control: with the printed lambda, gamma / (1 - b)^2, to first order only",
        f"{PPF}: lambda = gamma / (1 - b)^2, the limit b -> 1",
        predicted="slope 1",
        measured=f"slopes {words}; at least {factor.min():.0f} times as far as with ours at the smallest lambda",
        tolerance="every slope below 1.5, every distance at least 5 times ours",
        holds=np.all(slopes < 1.5) and factor.min() > 5,
        control=True,
    )


def _ratios(ds: Any) -> Claim:
    lost = shrinkage(ds, "discrete").sum(axis=-1)
    ours = lost / shrinkage(ds, "flow")[:3].sum(axis=-1)
    printed = lost / shrinkage(ds, "printed").sum(axis=-1)
    factor = ds["lam"].values[:3] / ds["printed_lam"].values
    off, wrong = np.abs(ours - 1)[..., 0].max(), np.abs(printed / factor - 1)[..., 0].max()
    shown = "; ".join(
        f"{NAMES[str(m)]} {_listed(row[:, 0], '.3f')} (predicted {_listed(f[:, 0], '.3f')})"
        for m, row, f in zip(ds["method"].values, printed, factor, strict=True)
    )
    return judge(
        "log alpha of the discrete methods falls as much as the flow's with our lambda; the printed one is off by its factor at small b",
        OURS,
        predicted="ratio of shrinkages 1; with the printed lambda (1 + b)/2 for heavy ball, (1 - b + 2 b^2)/2 for Nesterov",
        measured=f"ours 1 to {off:.1e}; printed {shown}, b = {_listed(ds['momentum'].values)}, smallest lambda",
        tolerance="1%; 1% of the factor",
        holds=off < 0.01 and wrong < 0.01,
        reason="lambda is off by another factor",
    )


def _spread(solutions: np.ndarray) -> np.ndarray:
    """Largest distance between two solutions along the first axis, for every other one but the last."""
    return _norm(solutions[:, None] - solutions[None, :]).max(axis=(0, 1))


def _intrinsic(ds: Any) -> Claim:
    solutions, lam = ds["discrete_selected"].values, ds["lam"].values[:3]
    everything = solutions.reshape(-1, *solutions.shape[2:])
    spread = _spread(everything)
    moved = _norm(everything - ds["still_selected"].values).mean(axis=0)
    slope = _slope(lam, spread)
    return judge(
        "lambda is intrinsic: pairs (gamma, b) of one lambda, heavy ball and Nesterov alike, select one solution to first order",
        f"{PPF}: lambda defines the path; with our lambda",
        predicted="spread of the solutions: slope 2 in lambda, while they move from the gradient flow's with slope 1",
        measured=f"spread {_listed(spread)}: slope {slope:.2f}; moved {_listed(moved)}: slope {_slope(lam, moved):.2f}; spread over moved {_listed(spread / moved, '.1%')}",
        tolerance="slope of the spread above 1.5, of the motion below 1.5",
        holds=slope > 1.5 > _slope(lam, moved),
        reason="lambda is not all that matters to first order",
    )


def _not_intrinsic(ds: Any) -> Claim:
    moved = ds["same_selected"].values - ds["still_selected"].values[None]
    ratio = float(_spread(ds["same_selected"].values) / _norm(moved).mean())
    lams = ds["same_lam"].values
    return judge(
        "Control: pairs of one gamma are as far apart as they have moved",
        f"{PPF}: gamma alone does not define the path",
        predicted=f"motion in proportion to lambda, here {_listed(lams / lams[0], '.3g')}",
        measured=f"moved by {_listed(_norm(moved))}, in proportion {_listed(_norm(moved) / _norm(moved)[0], '.3g')}; spread {ratio:.0%} of the mean motion",
        tolerance="spread above half of the mean motion",
        holds=ratio > 0.5,
        control=True,
    )


def _rejects_half(successes: int, count: int) -> bool:
    """Whether more than half of the successes is sure, by the one-sided binomial test at .5%."""
    from scipy.stats import binom

    return bool(binom.sf(successes - 1, count, 0.5) < 0.005)


def _support(ds: Any) -> Claim:
    share, even = ds["centred_share"].values, config_of(ds, "sparsity") / config_of(ds, "many_d")
    return judge(
        "Inertia shrinks alpha most where the solution is large: share of the shrinkage that falls on the truth's support, centred inputs",
        "the gradient X^T r / n is largest on the support; Even, Pesme, Gunasekar, Flammarion 2023 for gradient descent",
        predicted=f"above {even:.0%}, the support's share of the features",
        measured=f"median {np.median(share):.0%}, least {share.min():.0%} of {share.size} problems; shifted inputs {np.median(ds['shifted_share'].values):.0%}",
        tolerance="more than twice that on more than half of the problems, binomial test at .5%",
        holds=_rejects_half(int(np.sum(share > 2 * even)), share.size),
    )


def _sparser(ds: Any, kind: str) -> Claim:
    norm, error = ds[f"{kind}_l1_slope"].values, ds[f"{kind}_error_slope"].values
    count, fewer, nearer = norm.size, int(np.sum(norm < 0)), int(np.sum(error < 0))
    inputs = "centred inputs" if kind == "centred" else f"inputs of mean {config_of(ds, 'shift'):g}"
    return judge(
        f"The larger lambda the sparser the solution and the smaller its error, {inputs}, to first order in lambda",
        f"{PPF}: small lambda helps to recover sparse solutions, as alpha falls",
        predicted="l1 norm and error fall as lambda leaves 0",
        measured=f"l1 norm falls on {fewer}, the error on {nearer} of {count} problems; median d log error / d lambda {np.median(error):+.2f}",
        tolerance="each on more than half, binomial test at .5%",
        holds=_rejects_half(fewer, count) and _rejects_half(nearer, count),
        must_hold=False,
        reason="alpha falls, but unevenly: where the solution is large",
    )


def _even(ds: Any) -> Claim:
    counts = {kind: int(np.sum(ds[f"{kind}_even_slope"].values < 0)) for kind in ("centred", "shifted")}
    count = ds.sizes["problem"]
    return judge(
        "Control: the same mean shrinkage, spread evenly over the features, lowers the error",
        "Woodworth et al. 2020: alpha -> 0 is the minimum l1 norm",
        predicted="the error falls",
        measured=f"on {counts['centred']} of {count} problems with centred inputs, on {counts['shifted']} with shifted ones",
        tolerance="each on more than half, binomial test at .5%",
        holds=all(_rejects_half(value, count) for value in counts.values()),
        control=True,
        reason="a smaller alpha does not help on these problems",
    )


def _ladder(ds: Any) -> Claim:
    beta, lam = ds["flow_selected"].values, ds["lam"].values
    error = np.square(beta - ds["beta_star"].values).sum(axis=1)
    norm = np.abs(beta).sum(axis=1)
    still = ds["still_selected"].values
    return judge(
        "On the one problem of the flows, beyond first order: error and l1 norm fall with lambda",
        f"{PPF}; centred inputs",
        predicted="both fall",
        measured=f"error {np.square(still - ds['beta_star'].values).sum():.3f} without momentum, {_listed(error, '.3f')} at lambda {_listed(lam)}; l1 norm {np.abs(still).sum():.3f}, {_listed(norm, '.3f')}",
        tolerance="every one below the one before",
        holds=np.all(np.diff(error) < 0) and np.all(np.diff(norm) < 0),
        must_hold=False,
        reason="as on most problems with centred inputs",
    )


def _sgd(ds: Any, parts: tuple[str, ...]) -> tuple[np.ndarray, float, float]:
    """Shrinkage of SGD over a sum of parts, less 1, at both step sizes; extrapolated to 0, and its standard error, seeds being paired."""
    measured, predicted = ds["sgd_shrinkage"].values, sum(ds[f"sgd_{part}"].values for part in parts)
    off = (measured - predicted) / np.nanmean(predicted, axis=1, keepdims=True)
    limit = 2 * off[1] - off[0]
    limit = limit[np.isfinite(limit)]
    return np.nanmean(off, axis=1), float(limit.mean()), float(limit.std(ddof=1) / np.sqrt(limit.size))


def _stochastic(ds: Any) -> Claim:
    off, limit, error = _sgd(ds, ("noise", "inertia"))
    plain = np.nanmean(ds["sgd_shrinkage"].values, axis=1) / np.nanmean(ds["sgd_plain"].values, axis=1)
    b = config_of(ds, "sgd_momentum")
    return judge(
        f"SGD with momentum ({b:g}) shrinks alpha by the noise of step size gamma / (1 - b) and by its inertia",
        "first order in gamma: (gamma/(1-b)) (X^2)^T int r^2 / 2n + (gamma b/(1-b)^2) int (X^T r/n)^2, of which SGD has the first at b = 0",
        predicted="relative difference -> 0 as gamma",
        measured=f"mean over the features: {_listed(off, '+.3f')} at gamma / (1 - b) = {_listed(ds['rate'].values)}, extrapolated to 0 {limit:+.3f} +- {error:.3f}; "
        f"{_listed(plain, '.2f')} times SGD's without momentum at that step size",
        tolerance=f"{SURE} standard errors",
        holds=abs(limit) < SURE * error,
        reason="momentum does something else to first order",
    )


def _no_inertia(ds: Any) -> Claim:
    off, limit, error = _sgd(ds, ("noise",))
    return judge(
        "Control: without the inertia, as if momentum only made the step larger, the same prediction is rejected",
        "SGD of step size gamma / (1 - b)",
        predicted="off",
        measured=f"{_listed(off, '+.3f')}, extrapolated {limit:+.3f} +- {error:.3f}",
        tolerance="above 10 standard errors",
        holds=abs(limit) > 10 * error,
        control=True,
    )
