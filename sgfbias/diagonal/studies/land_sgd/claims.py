"""The claims of the study, judged from its dataset alone. Those here are about the
answer as a whole: it is nearer to the limit, and its estimate covers its error.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.stats import binom

from sgfbias.diagonal.studies.land_sgd import DYNAMICS, Config
from sgfbias.diagonal.studies.land_sgd.parts import (
    gradient_descent,
    isotropic,
    laws,
    rest,
    without_feedback,
    without_offset,
)
from sgfbias.diagonal.studies.land_sgd.rungs import DERIVED, SHORT, Rung, judged
from sgfbias.study import Claim, claim, control, few_lost, not_applicable
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import listed, log_ratio, median, span

COVERED, LARGEST = 0.9, 30


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The corrected answer is nearer to each seed's own limit than the others, the
    estimate covers its error, and each part of the prediction is needed.
    """
    rungs = judged(ds)
    return [
        few_lost(
            "Hardly any seed diverges at this share of the edge of mean-square stability",
            DERIVED,
            {DYNAMICS[name]: ds["status"].sel(dynamics=name) for name in DYNAMICS}
            | {"isotropic noise": ds["isotropic_status"]},
        ),
        _ahead(ds, rungs),
        _closer(rungs),
        _covers(rungs),
        _covers_the_uncorrected(rungs),
        _size(rungs),
        rest(rungs),
        without_feedback(rungs),
        *laws(ds, rungs),
        without_offset(ds, rungs),
        gradient_descent(ds),
        isotropic(ds, rungs),
    ]


def _ahead(ds: xr.Dataset, rungs: list[Rung]) -> Claim:
    statement = (
        "SGD's own limit is known long before SGD is there: the corrected answer at the first "
        "length is closer to it than the iterate after 3 times as many iterations"
    )
    if not rungs or rungs[0].name != "sgd" or rungs[0].steps != ds["steps"].values[0]:
        return not_applicable(statement, DERIVED, SHORT)
    early, late = rungs[0].data, ds.sel(dynamics="sgd").isel(rung=1)
    ratio = log_ratio(early["corrected"], late["iterate"].isel(seed=early["seed"]), lost_as=1)
    first = [median(early[key] / early["size"]).value for key in ("iterate", "landed", "corrected")]
    return claim(
        statement,
        DERIVED,
        predicted="ratio of the distances from the limit below 1",
        measured=f"ratio {ratio.shown()}; median distances relative to the limit's length after "
        f"{rungs[0].steps:,} iterations: the iterate {first[0]:.1e}, landed {first[1]:.1e}, "
        f"corrected {first[2]:.1e}",
        tolerance="99% interval of the geometric mean below 1",
        holds=ratio.ratio.high < 1,
        main=True,
        reason="the correction is not that accurate",
    )


def _closer(rungs: list[Rung]) -> Claim:
    statement = (
        "For every algorithm and flow the correction by the expected rest brings the landed "
        "solution closer to the limit"
    )
    if not rungs:
        return not_applicable(statement, DERIVED, SHORT)
    ratios = [
        log_ratio(rung.data["corrected"], rung.data["landed"], lost_as=1).ratio for rung in rungs
    ]
    worst = max(range(len(rungs)), key=lambda k: ratios[k].high)
    return claim(
        statement,
        DERIVED,
        predicted="ratio of the distances, corrected over landed, below 1: of the order of what "
        "single paths scatter around their mean",
        measured=f"geometric means {span([r.value for r in ratios])} over {len(rungs)} runs; "
        f"largest {ratios[worst]:.2g} for {rungs[worst].told}",
        tolerance="99% interval below 1, for all",
        holds=all(ratio.high < 1 for ratio in ratios),
        main=True,
        reason="the expected rest is wrong",
    )


def _shares(rungs: list[Rung], of: str) -> tuple[np.ndarray, np.ndarray]:
    """The shares of seeds whose error `of` the estimate covers, and the least that a
    coverage of 90% leaves room for, at a level of 1% in all.
    """
    counts = np.array([int(np.sum(r.data[of] <= r.data["estimate"])) for r in rungs])
    sizes = np.array([r.data.sizes["seed"] for r in rungs])
    return counts / sizes, binom.ppf(0.01 / len(rungs), sizes, COVERED) / sizes


def _covers(rungs: list[Rung]) -> Claim:
    statement = "The error estimate covers the true error of at least 90% of the seeds"
    if not rungs:
        return not_applicable(statement, DERIVED, SHORT)
    shares, least = _shares(rungs, "corrected")
    worst = int(np.argmin(shares))
    return claim(
        statement,
        DERIVED,
        predicted="at least 90% covered, after every length",
        measured=f"{span(shares, '.0%')} covered in {len(rungs)} runs, the fewest for "
        f"{rungs[worst].told}",
        tolerance=f"at least {span(least, '.0%')}, which is 90% less the chance of the sample, "
        "level 1% in all",
        holds=(shares >= least).all(),
        main=True,
        reason="the estimate leaves something out",
    )


def _covers_the_uncorrected(rungs: list[Rung]) -> Claim:
    statement = "the estimate does not cover the error of the answer without the correction"
    if not rungs:
        return not_applicable(CONTROL + statement, DERIVED, SHORT)
    own = [rung for rung in rungs if rung.name != "mean_loss"]
    if not own:
        return not_applicable(CONTROL + statement, DERIVED, SHORT)
    shares, least = _shares(own, "landed")
    return control(
        statement,
        DERIVED,
        predicted="fewer covered than the claim allows",
        measured=f"{span(shares, '.0%')} covered in {len(own)} runs, those of the mean-loss flow "
        "left out, whose estimate is the whole correction",
        tolerance=f"below {span(least, '.0%')} in more than half of these runs",
        holds=np.mean(shares < least) > 0.5,
        main=True,
        reason="the estimate is so large that it covers anything",
    )


def _size(rungs: list[Rung]) -> Claim:
    statement = (
        "The error estimate is not much larger than the error: at most 30 times in the median, "
        "for SGD and the per-sample flow"
    )
    own = [rung for rung in rungs if rung.name != "mean_loss"]
    if not own:
        return not_applicable(statement, DERIVED, SHORT)
    sizes = np.array([np.median(r.data["estimate"] / r.data["corrected"]) for r in own])
    others = [
        float(np.median(r.data["estimate"] / r.data["corrected"]))
        for r in rungs
        if r.name == "mean_loss"
    ]
    return claim(
        statement,
        DERIVED,
        predicted="a median ratio of some standard deviations",
        measured=f"median ratios {span(sizes)}, the largest for {own[int(sizes.argmax())].told}"
        + (f"; for the mean-loss flow {listed(others)}" if others else ""),
        tolerance=f"at most {LARGEST}",
        holds=(sizes <= LARGEST).all(),
        reason="the estimate is far too careful",
    )
