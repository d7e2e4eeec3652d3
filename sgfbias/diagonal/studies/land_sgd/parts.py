"""The claims about the parts of the prediction, each of which is needed: the noise's
feedback, the law of the noise model, and the offset.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.land_sgd import DISCRETE
from sgfbias.diagonal.studies.land_sgd.rungs import DERIVED, SHORT, Rung, can_be_judged
from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import Estimate, arrow, listed, mean, span

P21, E23 = source("pesme2021"), source("even2023")


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


def rest(rungs: list[Rung]) -> Claim:
    """The mean fall of log alpha in the rest of a run is the predicted one."""
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


def without_feedback(rungs: list[Rung]) -> Claim:
    """Without the feedback of the noise the prediction is too small."""
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


def laws(ds: xr.Dataset, rungs: list[Rung]) -> list[Claim]:
    """Per-sample noise follows its own law, and not the mean-loss law."""
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


def without_offset(ds: xr.Dataset, rungs: list[Rung]) -> Claim:
    """Without its offset the selected solution stays away from the limit."""
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


def gradient_descent(ds: xr.Dataset) -> Claim:
    """The limit of gradient descent is known early, too."""
    statement = (
        "Gradient descent is landed too: the correction brings its limit closer after every "
        "length, and the estimate covers the error"
    )
    known = [
        k
        for k in range(ds.sizes["rung"])
        if can_be_judged(
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


def isotropic(ds: xr.Dataset, rungs: list[Rung]) -> Claim:
    """Isotropic noise is refused, and for a reason."""
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
