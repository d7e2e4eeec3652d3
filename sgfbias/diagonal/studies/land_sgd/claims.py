"""The claims of the study are judged from its dataset alone.

A rung of the ladder of lengths is judged if the limit is known well enough there and
there is still something to predict. Both are decided without the errors: from the loss
that the long run has at its end relative to that at the rung, from how far the landed
solution is from the iterate, and from how far the correction moves it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import binom

from sgfbias.diagonal.studies.land_sgd import DISCRETE, DYNAMICS, Config
from sgfbias.study import Claim, claim, control, few_lost, not_applicable, source
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import Estimate, arrow, listed, log_ratio, mean, median, span

P21, E23 = source("pesme2021"), source("even2023")
DERIVED = "the linear equation of the second moments, derived here"
# What is left at the end of the long run, relative to the rung: the loss, to which the
# rest of log alpha is proportional. The errors that are judged are at least a
# thousandth of the landed ones.
MOST_LEFT = 1e-6
# The correction must move the solution by more than rounding, and the iterate must be
# closer to the landed solution than that is to 0: relative to the limit's length.
LEAST_SHIFT, MOST_AWAY = 1e-8, 0.5
COVERED, LARGEST = 0.9, 30
SHORT = "the long runs end too early, or the short runs too late, to judge any of the rungs"


class Rung(NamedTuple):
    """What is judged of one kind of runs after one length, for the seeds that end."""

    name: str
    steps: int
    data: xr.Dataset

    @property
    def told(self) -> str:
        return f"{self.name} after {self.steps:,}"


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
        _rest(rungs),
        _without_feedback(rungs),
        *_laws(ds, rungs),
        _offset(ds, rungs),
        _descent(ds),
        _isotropic(ds, rungs),
    ]


def judged(ds: xr.Dataset) -> list[Rung]:
    """The rungs that can be judged, with only the seeds that reach their limits."""
    found = []
    for name in DYNAMICS:
        for rung, steps in enumerate(ds["steps"].values):
            data = ds.sel(dynamics=name).isel(rung=rung)
            data = data.isel(seed=np.flatnonzero(np.isfinite(data["landed"].values)))
            if data.sizes["seed"] >= 2 and _can_be_judged(
                *(data[key].values for key in ("left", "shift", "step_left", "size"))
            ):
                found.append(Rung(name, int(steps), data))
    return found


def _can_be_judged(left: np.ndarray, shift: np.ndarray, away: np.ndarray, size: np.ndarray) -> bool:
    return bool(
        np.median(left) < MOST_LEFT
        and np.median(shift / size) > LEAST_SHIFT
        and np.median(away / size) < MOST_AWAY
    )


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


class Ratio(NamedTuple):
    """The fall of log alpha relative to a prediction, the mean over seeds, and by how
    much the feedback changes that prediction.
    """

    rung: Rung
    mean: Estimate
    feedback: float


def _ratios(rungs: list[Rung], key: str) -> list[Ratio]:
    """The ratios of those runs whose seeds scatter so little that the interval of a
    true prediction, which may be off by half of its width, lies within half of the
    feedback.
    """
    found = []
    for rung in rungs:
        fell, expected, unfed = (rung.data[k].values for k in ("fell", "expected", "unfed"))
        feedback = float(np.mean(expected / unfed) - 1)
        scatter = mean(fell / expected)
        if scatter.high - scatter.low < feedback / 2:
            found.append(Ratio(rung, mean(fell / rung.data[key].values), feedback))
    return found


def _rest(rungs: list[Rung]) -> Claim:
    statement = (
        "The mean fall of log alpha in the rest of the runs is the one that the linear equation "
        "predicts, within half of what the noise's feedback on the residuals adds"
    )
    ratios = _ratios(rungs, "expected")
    if not rungs:
        return not_applicable(statement, DERIVED, SHORT)
    off = np.array([max(abs(r.mean.low - 1), abs(r.mean.high - 1)) / r.feedback for r in ratios])
    said = "the seeds scatter too much to see the feedback in any of the runs"
    if ratios:
        worst = ratios[int(off.argmax())]
        said = (
            f"ratios {span([r.mean.value for r in ratios], '.3f')} in the {len(ratios)} of "
            f"{len(rungs)} runs in which leaving out the feedback would show beyond the scatter "
            f"of the seeds; the interval furthest away, {worst.mean.low:.3f} to "
            f"{worst.mean.high:.3f}, is that of {worst.rung.told}, where the feedback adds "
            f"{worst.feedback:.1%}"
        )
    return claim(
        statement,
        DERIVED,
        predicted="mean ratio of the fall to its prediction 1",
        measured=said,
        tolerance="99% interval within 1 plus or minus half of what the feedback adds, in at "
        "least half of the runs and all in which this could be seen",
        holds=(off <= 0.5).all() and 2 * len(ratios) >= len(rungs),
        main=True,
        reason="the equation, or its solution, is wrong, or there are too few seeds",
    )


def _without_feedback(rungs: list[Rung]) -> Claim:
    statement = (
        "without the feedback of the noise on the residuals, the predicted fall of log alpha is "
        "too small by the predicted factor"
    )
    ratios = _ratios(rungs, "unfed")
    if not ratios:
        return not_applicable(CONTROL + statement, DERIVED, SHORT)
    off = np.array([(r.mean.low - 1) / r.feedback for r in ratios])
    apart = max(abs(r.mean.value / (1 + r.feedback) - 1) for r in ratios)
    return control(
        statement,
        DERIVED,
        predicted=f"mean ratios {span([1 + r.feedback for r in ratios], '.3f')}",
        measured=f"mean ratios {span([r.mean.value for r in ratios], '.3f')} in {len(ratios)} "
        f"runs; they differ from their predictions by up to {apart:.1%}",
        tolerance="99% interval above 1 plus half of what the feedback adds, for all",
        holds=(off > 0.5).all(),
        reason="the feedback makes no difference, so the test shows nothing",
    )


def _laws(ds: xr.Dataset, rungs: list[Rung]) -> list[Claim]:
    statements = (
        "Under per-sample noise log alpha falls feature by feature as the per-sample law "
        "predicts, within half of its distance from the mean-loss law",
        "by the mean-loss law the fall under per-sample noise is off feature by feature",
    )
    where = f"{P21}, appendix E.1, and {DERIVED}"
    keys = {(rung.name, rung.steps) for rung in rungs}
    fell, own, other, error = (
        ds[f"feature_{name}"].values for name in ("fell", "own_law", "mean_loss_law", "error")
    )
    # Three standard errors of the mean over seeds must not reach the tolerance.
    seen = 3 * _rms(error / own) < _rms(own / other - 1) / 2
    known = [
        k for k, steps in enumerate(ds["steps"].values) if ("per_sample", steps) in keys and seen[k]
    ]
    if not known:
        reason = f"{SHORT}, or the seeds scatter too much to tell the two laws apart"
        return [
            not_applicable(statements[0], where, reason),
            not_applicable(CONTROL + statements[1], where, reason),
        ]
    fell, own, other = fell[known], own[known], other[known]
    right, wrong, apart = (_rms(a / b - 1) for a, b in ((fell, own), (fell, other), (own, other)))
    measured = "root mean square over features of the relative difference {} after {}"
    lengths = listed(ds["steps"].values[known], ",.0f")
    row = {"predicted": f"0, where the laws differ by {listed(apart)}"}
    return [
        claim(
            statements[0],
            where,
            **row,
            measured=measured.format(listed(right), lengths),
            tolerance="half of the difference between the laws",
            holds=(right < apart / 2).all(),
            reason="the law is wrong, or there are too few seeds",
        ),
        control(
            statements[1],
            where,
            predicted=f"{listed(apart)}, the difference between the laws",
            measured=measured.format(listed(wrong), lengths),
            tolerance="more than half of the difference between the laws",
            holds=(wrong > apart / 2).all(),
            reason="the laws cannot be told apart here",
        ),
    ]


def _rms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(rows), axis=-1))


def _offset(ds: xr.Dataset, rungs: list[Rung]) -> Claim:
    statement = (
        "without its offset, the solution that SGD's log alpha selects stays away from the limit"
    )
    known = [rung for rung in rungs if rung.name in DISCRETE]
    if not known:
        return not_applicable(CONTROL + statement, E23, SHORT)
    last = {rung.name: rung for rung in known}
    without, landed = (
        {name: float(np.median(rung.data[key])) for name, rung in last.items()}
        for key in ("selected", "landed")
    )
    first = {name: float(np.median(ds["selected"].sel(dynamics=name)[0])) for name in last}
    stays = {name: without[name] / first[name] for name in last}
    return control(
        statement,
        E23,
        predicted="a distance that does not fall, as the offset has settled",
        measured=f"at the last length judged {span(list(stays.values()))} of the distance at the "
        f"first, and {span([without[name] / landed[name] for name in last])} times the distance "
        "of the landed solution, offset included",
        tolerance="at least 10 times the landed distance, and at least half of the first one, for "
        "all three kinds of batches",
        holds=all(stays[name] >= 0.5 and without[name] >= 10 * landed[name] for name in last),
        reason="the offset makes no difference here, so it is not tested",
    )


def _descent(ds: xr.Dataset) -> Claim:
    statement = (
        "Gradient descent is landed too: the correction brings its limit closer after every "
        "length, and the estimate covers the error"
    )
    known = [
        k
        for k in range(ds.sizes["rung"])
        if _can_be_judged(
            *(ds[f"gd_{key}"].values[k] for key in ("left", "shift", "step_left")),
            ds["gd_size"].values,
        )
    ]
    if not known:
        return not_applicable(statement, DERIVED, SHORT)
    landed, corrected, bound, fell, expected = (
        ds[f"gd_{key}"].values[known]
        for key in ("landed", "corrected", "estimate", "fell", "expected")
    )
    return claim(
        statement,
        DERIVED,
        predicted="distances below those without the correction and below the estimate",
        measured=f"distance of the landed solution {arrow(landed)}, corrected {arrow(corrected)}, "
        f"estimate {arrow(bound)}; fall of log alpha over its prediction "
        f"{listed(fell / expected, '.4f')}",
        tolerance="at every length",
        holds=(corrected < landed).all() and (corrected <= bound).all(),
        reason="the equation is wrong even without noise",
    )


def _isotropic(ds: xr.Dataset, rungs: list[Rung]) -> Claim:
    where = f"after {source('sander2024')}"
    statement = (
        "isotropic noise leaves the span of the examples, so `land` refuses it, and told that it "
        "is the mean-loss flow, it stays away from the limit"
    )
    last = [rung for rung in rungs if rung.name == "mean_loss"]
    if not last:
        return not_applicable(CONTROL + statement, where, SHORT)
    at = int(np.flatnonzero(ds["steps"].values == last[-1].steps)[0])
    forced = np.nanmedian(ds["isotropic_forced"].values, axis=-1)
    own = float(np.median(last[-1].data["corrected"]))
    refusal = ds.attrs["isotropic_refusal"]
    return control(
        statement,
        where,
        predicted="a refusal, and a distance that does not fall",
        measured=f"refused: {refusal or 'no'}; median distance {arrow(forced[: at + 1])}, at the "
        f"last length judged {forced[at] / own:.1e} times that of the mean-loss flow",
        tolerance="a refusal, and a distance of at least half of the first and 100 times the "
        "mean-loss flow's",
        holds=bool(refusal) and forced[at] >= 0.5 * forced[0] and forced[at] >= 100 * own,
        reason="the theorem would hold with isotropic noise too, so its refusal is not needed",
    )
