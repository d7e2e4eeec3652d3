"""The claims about the discrete methods: they follow the flow with our lambda, and this
number alone decides what they select.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.momentum import LEVELS, Config
from sgfbias.diagonal.studies.momentum.quantities import NAMES, PPF, apart, length, shrinkage
from sgfbias.study import Claim, claim, control
from sgfbias.study.statistics import listed, log_slope

OURS = (
    "our lambda is gamma (1 + b) / (2 (1 - b)^2) for heavy ball, and "
    "gamma (1 - b + 2 b^2) / (2 (1 - b)^2) for Nesterov"
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


def follow(small: xr.Dataset) -> Claim:
    """The discrete methods select what the flow selects, to second order in gamma."""
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
        main=True,
        reason="our lambda is not the right one",
    )


def printed_lambda(small: xr.Dataset) -> Claim:
    """With the printed lambda they do so to first order only."""
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


def ratio_of_lambdas(small: xr.Dataset, config: Config) -> Claim:
    """The decreases of log alpha have the ratio of the two lambdas."""
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
    return length(solutions[:, None] - solutions[None, :]).max(axis=(0, 1))


def intrinsic(small: xr.Dataset) -> Claim:
    """Pairs with the same lambda select the same solution to first order."""
    solutions = small["discrete_selected"].values.reshape(-1, *small["flow_selected"].shape)
    spread, moved = (
        _spread(solutions),
        length(solutions - small["still_selected"].values).mean(axis=0),
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
        main=True,
        reason="lambda is not all that matters to first order",
    )


def not_intrinsic(ds: xr.Dataset) -> Claim:
    """Pairs with the same gamma do not."""
    solutions, lams = ds["same_selected"].values, ds["same_lam"].values
    moved = length(solutions - ds["still_selected"].values)
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
        main=True,
    )
