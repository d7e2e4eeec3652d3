"""The claims of the study, from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.saddle_to_saddle import Config
from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.statistics import arrow, log_slope, median, span

# A rest is called lasting if it lasts this many relaxation times, and if all other
# coordinates are below e^-20 at its start. Half way through it the distance to the
# saddle has fallen to about e^-10.
LASTING = 20.0
# The relative distance to the saddle that is tolerated there. The factor 10 stands for
# an unknown constant.
NEAR = 10 * np.exp(-LASTING / 2)
# A jump time is mispredicted if its relative error is above this.
MISSED = 0.01
PF23 = source("pesme2023", "theorem 2 and algorithm 1")
ORDER = "derived: t_k = Lambda tau_k + c_k + exponentially small, Lambda = log(1/alpha)"


def scales(ds: xr.Dataset) -> np.ndarray:
    """`Lambda = log(1/alpha)` of every alpha, the coarse alpha first: (decades,)."""
    return ds["decades"].values * np.log(10)


def known(ds: xr.Dataset) -> np.ndarray:
    """Whether a problem has this jump and it is not padding: (problem, jump)."""
    return np.isfinite(ds["predicted_time"].values)


def relative_errors(ds: xr.Dataset) -> np.ndarray:
    """Relative errors of `t_k / Lambda` as an estimate of `tau_k`, for the jumps of all
    problems: (jumps, decades).
    """
    errors = np.abs(
        ds["time"].values / scales(ds)[:, None] / ds["predicted_time"].values[:, None] - 1
    )
    return errors.transpose(0, 2, 1)[known(ds)]


def growth(ds: xr.Dataset) -> np.ndarray:
    """`(t_k(alpha_2) - t_k(alpha_1)) / (Lambda_2 - Lambda_1)`, where alpha_1 and
    alpha_2 are the two smallest alphas: (problem, jump).
    """
    scale, time = scales(ds), ds["time"].values
    with np.errstate(invalid="ignore"):
        return (time[:, -1] - time[:, -2]) / (scale[-1] - scale[-2])


def lasting(ds: xr.Dataset, level: int) -> np.ndarray:
    """Whether the flow rests at a saddle for `LASTING` relaxation times of that saddle,
    while no other coordinate is near its bound, at the alpha of index `level`, as the
    theory predicts it: (problem, saddle).
    """
    both = np.minimum(ds["relaxations"].values[:, level], ds["clearance"].values[:, level])
    return np.nan_to_num(both, nan=0.0) >= LASTING


def due(ds: xr.Dataset) -> np.ndarray:
    """Whether all rests before a jump are lasting, so that the jump must come near its
    predicted time: (problem, alpha, jump), without the coarse alpha.
    """
    levels = range(1, ds.sizes["decades"])
    rests = np.stack([lasting(ds, level) for level in levels], axis=1)
    return np.cumprod(rests, axis=-1)[..., :-1].astype(bool) & known(ds)[:, None]


def separate(ds: xr.Dataset) -> np.ndarray:
    """Whether all rests before a jump and the rest after it are lasting, so that the
    effect of earlier jumps is exponentially small: (problem, jump).
    """
    return np.cumprod(lasting(ds, -2), axis=1)[:, 1:].astype(bool)


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Judge that the limit describes the flow at small alphas, that it does not at a
    large one, and that simpler algorithms mispredict the flow.
    """
    lost, never = ds["lost"].values > 0, np.isinf(ds["time"].values[:, 1:])
    expected, left_out = due(ds), int(ds["left_out"].values.sum())
    every = known(ds).sum() * len(config.decades)
    missing, gap = int(np.sum(never & expected)), ds["l1_gap"].values
    completes = claim(
        "Every run completes, and no jump is missing after rests that are predicted to last",
        PF23,
        predicted="no run is lost, and no jump is missing whose earlier rests all last "
        f"{LASTING:g} relaxation times",
        measured=f"{lost.sum()} of {lost.size} runs lost; {missing} of {expected.sum()} such "
        f"jumps missing, and {never.sum()} of all {every}; {left_out} later jumps would need more "
        "than most_steps and are left out",
        tolerance="none",
        holds=not lost.any() and missing == 0,
        reason="the solver gave up, or a predicted jump did not happen",
    )
    # The other claims are about the problems without a lost run.
    if not lost.any(axis=1).all():
        ds = ds.isel(problem=~lost.any(axis=1))
    return [
        completes,
        _saddles(ds, config),
        *_times(ds),
        claim(
            "The last saddle of the algorithm is the interpolator of least l1 norm",
            f"{PF23}; the interpolator comes from a linear program",
            predicted="the two are the same",
            measured=f"relative distance at most {gap.max():.0e} over {len(gap)} problems",
            tolerance="below 1e-8",
            holds=np.all(gap < 1e-8),
            main=True,
        ),
        *_controls(ds, config),
    ]


def _saddles(ds: xr.Dataset, config: Config) -> Claim:
    """The claim that the flow rests at the predicted saddles at the smallest alpha."""
    gap, size = ds["saddle_gap"].values[:, -1][lasting(ds, -1)], ds["predicted_size"].values
    statement = f"At alpha = 1e-{config.decades[-1]:g} the flow rests at the predicted saddles"
    if gap.size == 0:
        return not_applicable(
            statement,
            PF23,
            f"at no rest of {LASTING:g} relaxation times are all other coordinates below "
            f"e^-{LASTING:g}; raise decades",
        )
    fewer = int(np.sum(np.nanmin(np.diff(size, axis=1), axis=1) <= 0))
    return claim(
        statement,
        PF23,
        predicted="the distance to the saddle is exponentially small half way through a rest; "
        "coordinates are also switched off",
        measured=f"{gap.size} of {int(np.isfinite(size).sum())} rests last {LASTING:g} "
        f"relaxation times with all other coordinates below e^-{LASTING:g}; half way through "
        f"them the distance has median {np.median(gap):.1e} "
        f"and maximum {gap.max():.1e}; a coordinate is switched off in {fewer} of {len(size)} "
        "problems",
        tolerance=f"at every such rest below 10 e^-{LASTING / 2:g} = {NEAR:.1e} of the last "
        "saddle's norm",
        holds=np.all(gap < NEAR),
        main=True,
    )


def _times(ds: xr.Dataset) -> list[Claim]:
    """The claims about the jump times and the dual path."""
    scale, errors = scales(ds), relative_errors(ds)[:, 1:]
    exponent, other = (
        median(log_slope(scale[1:], errors)),
        log_slope(scale[1:], np.log(scale[1:]) / scale[1:]),
    )
    first, constant = ds["predicted_time"].values[:, 0] * scale[-1], ds["first_constant"].values
    off = np.abs(ds["time"].values[:, -1, 0] - first - constant)
    gap = ds["dual_gap"].values[:, 1:]
    exponents, ends = log_slope(scale[1:], gap), gap[:, [0, -1]]
    room = 1e-4 + 10 * np.exp(-2 * scale[-1] * (1 - ds["rival"].values))
    return [
        claim(
            "The rescaled jump times t_k / Lambda, Lambda = log(1/alpha), approach the predicted "
            "tau_k with a relative error that falls as 1 / Lambda",
            ORDER,
            predicted="log-log slope -1 in Lambda; an error of log Lambda / Lambda would have "
            f"slope {other:.2f} over these alphas",
            measured=f"median slope of {len(errors)} jumps {exponent:.3f}; median error "
            f"{arrow(np.median(errors, axis=0), '.2%')}",
            tolerance="interval of the slope within -1.1 and -0.9",
            holds=exponent.low > -1.1 and exponent.high < -0.9,
            main=True,
        ),
        _growth(ds),
        claim(
            "The first jump's own constant is c_1 = log((sqrt 2 - 1) c / h) / (2 c): the jump "
            "comes at Lambda tau_1 + c_1, where c = max |X^T y / n| and h is the same "
            "coordinate's diagonal entry of X^T X / n",
            "derived: a single coordinate obeys a logistic equation",
            predicted=f"c_1 = {span(constant, '.3f')} of flow time over the problems; the jump "
            f"comes near Lambda tau_1, which is {first.min():.0f} or more",
            measured="gap between measured and predicted time: median "
            f"{np.median(off):.0e}, maximum {off.max():.0e}",
            tolerance="1e-4 of flow time for solver and interpolation, plus 10 alpha^(2 (1 - q)) "
            "with q = second largest / largest |X^T y|; every problem",
            holds=np.all(off < room),
        ),
        claim(
            "The dual variable follows the predicted broken line, uniformly in time, jumps "
            "included",
            PF23,
            predicted="the largest distance over time tends to 0; the variable itself reaches 0.5",
            measured="largest distance at the first and the last of decades: median "
            f"{arrow(np.median(ends, axis=0), '.2g')}, maximum "
            f"{arrow(ends.max(axis=0), '.2g')}; log-log slopes in Lambda "
            f"{span(exponents, '.2f')}",
            tolerance="the distance falls from every alpha to the next in every problem",
            holds=np.all(np.diff(gap, axis=1) < 0),
            main=True,
        ),
    ]


def _growth(ds: xr.Dataset) -> Claim:
    """The claim that the jump times grow by `tau_k` times Lambda, without terms that
    would change this slope.
    """
    scale, chosen, errors = (
        scales(ds),
        separate(ds),
        np.abs(growth(ds) / ds["predicted_time"].values - 1),
    )
    statement = (
        "Between the two smallest alphas the jump times grow by tau_k times the increase of "
        "Lambda and by nothing else"
    )
    if not chosen.any():
        return not_applicable(
            statement,
            ORDER,
            f"no jump has only rests of {LASTING:g} relaxation times before and after it; raise "
            "decades",
        )
    limit, every = scale[-1] ** -2, errors[known(ds) & np.isfinite(errors)]
    logarithm = np.log(scale[-1] / scale[-2]) / (scale[-1] - scale[-2])
    return claim(
        statement,
        ORDER,
        predicted="the slope of t_k in Lambda is tau_k; a term in 1 / Lambda would change it by "
        f"about {limit:.0e}, a term in log Lambda by a relative {logarithm:.0e} / tau_k",
        measured=f"relative error of the slope at {int(chosen.sum())} jumps with rests of "
        f"{LASTING:g} relaxation times before and after: median {np.median(errors[chosen]):.0e}, "
        f"maximum {errors[chosen].max():.0e}; at all {every.size} jumps: median "
        f"{np.median(every):.0e}, maximum {every.max():.0e}",
        tolerance=f"below Lambda^-2 = {limit:.1e} at every jump between such rests",
        holds=np.all(errors[chosen] < limit),
    )


def _controls(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The negative controls: a large alpha, and two simpler algorithms."""
    rests = np.isfinite(ds["predicted_size"].values[:, 1:])
    coarse, off = ds["saddle_gap"].values[:, 0, 1:][rests], np.median(relative_errors(ds)[:, 0])
    return [
        control(
            f"at alpha = 1e-{config.coarse:g} the flow does not rest at the saddles, and the "
            "jump times are off",
            PF23,
            predicted="the limit alpha -> 0 does not describe the flow",
            measured=f"half way through the rests, {int(np.sum(coarse < NEAR))} of {coarse.size} "
            f"positions are within {NEAR:.1e} of their saddle, the median distance is "
            f"{np.median(coarse):.2f}; the median error of the jump times is {off:.0%}",
            tolerance="under 5% of the positions within, and an error above 10%",
            holds=np.mean(coarse < NEAR) < 0.05 and off > 0.1,
        ),
        _pursuit(ds),
        _memoryless(ds),
    ]


def _pursuit(ds: xr.Dataset) -> Claim:
    """The control that a simpler algorithm does not predict the saddles."""
    statement = (
        "where the solutions of orthogonal matching pursuit, which takes the coordinate of "
        "largest gradient and keeps it, differ from the saddles, the flow does not rest at them"
    )
    # The flow is within NEAR of its saddle, so it must be further than 100 NEAR from a
    # solution that is 200 NEAR from the saddle.
    differ = lasting(ds, -1) & (ds["greedy_apart"].values > 200 * NEAR)
    if not differ.any():
        return not_applicable(
            f"Control: {statement}",
            PF23,
            "on problems as easy as these, pursuit and the algorithm agree",
        )
    gap, own = (ds[name].values[:, -1][differ] for name in ("greedy_gap", "saddle_gap"))
    return control(
        statement,
        PF23,
        predicted="pursuit has no memory of past gradients and switches no coordinate off",
        measured=f"in {int(differ.any(axis=1).sum())} of {len(differ)} problems, {gap.size} rests "
        f"of {LASTING:g} relaxation times have a saddle that differs from pursuit's solution by "
        f"more than {200 * NEAR:.2g}; the flow's distance from pursuit's solution is at least "
        f"{gap.min():.2g}, and from the saddle at most {own.max():.1e}",
        tolerance=f"further than {100 * NEAR:.2g} from pursuit's solution at every such rest",
        holds=np.all(gap > 100 * NEAR),
        main=True,
    )


def _memoryless(ds: xr.Dataset) -> Claim:
    """The control that the jump times need the memory in the dual variable."""
    statement = (
        "a dual variable that starts afresh from 0 at each saddle mispredicts every jump for which "
        "it predicts another time"
    )
    # The two predictions are known before the run.
    other = np.abs(ds["memoryless_time"].values / ds["predicted_time"].values - 1) > 2 * MISSED
    chosen = (separate(ds) & other)[:, 1:]
    if not chosen.any():
        return not_applicable(
            f"Control: {statement}",
            PF23,
            "no jump but the first has only lasting rests around it and another time",
        )
    errors, own = (
        np.abs(ds[name].values / growth(ds) - 1)[:, 1:][chosen]
        for name in ("memoryless_time", "predicted_time")
    )
    return control(
        statement,
        PF23,
        predicted=f"jump times that differ by more than {2 * MISSED:.0%} from the algorithm's, and "
        "so from the flow's",
        measured=f"relative error {span(errors, '.0%')} at {errors.size} such jumps with rests of "
        f"{LASTING:g} relaxation times before and after, where the algorithm's error is at most "
        f"{own.max():.0e}",
        tolerance=f"above {MISSED:.0%} at every such jump",
        holds=np.all(errors > MISSED),
    )
