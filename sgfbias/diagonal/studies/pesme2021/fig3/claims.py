"""The claims about figure 3, computed from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.pesme2021 import common
from sgfbias.diagonal.studies.pesme2021.common import LEAST_SEEDS, P21
from sgfbias.diagonal.studies.pesme2021.fig3 import DRAWN, FEW, FIGURE, FINEST, QUIET, Config
from sgfbias.study import Claim, claim, control, not_applicable
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import (
    estimate,
    finite,
    jointly_finite,
    kolmogorov,
    listed,
    log_slope,
    median,
)

SCHEME = f"{P21}: the paper's Euler scheme in w, dt = gamma/10"
# The ranges of two samples of 5 normal values miss each other with probability of about
# 1/2 if their means differ by so many standard deviations. Whether they overlap is
# tested only if the gap that the evolution laws predict differs from this by a factor.
APART, CLEARLY = 2.3, 1.5


def overlap(a: np.ndarray, b: np.ndarray, drawn: int = DRAWN) -> float:
    """Probability that the ranges of two draws have a point in common, where `drawn`
    values are drawn from each of two samples with replacement.
    """

    def apart(low: np.ndarray, high: np.ndarray) -> float:
        """Probability that all values of `low` are below the least of `high`."""
        rank, size = np.arange(len(high)), len(high)
        least = ((size - rank) / size) ** drawn - ((size - 1 - rank) / size) ** drawn
        return float(
            np.sum(
                least
                * (np.searchsorted(np.sort(low), np.sort(high), side="left") / len(low)) ** drawn
            )
        )

    return 1 - apart(a, b) - apart(b, a)


# `overlap` along the last axis.
overlaps = np.vectorize(overlap, signature="(n),(m)->()")


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims: bundles and distributions of SGD and the flow agree, noise lowers the
    error, and the paper's scheme breaks the equation of `w_+ w_-`.
    """
    ratio = float(common.final(ds, "gd")) / common.final(ds, "sgd")
    return [
        common.none_lost(
            ds, {"sgd": "SGD", "sgf": "the flow", "weights": "the flow by Euler in w"}
        ),
        *_bundles(ds),
        common.alike(ds, FIGURE, main=True),
        common.below(ds, "sgd", "SGD", FIGURE, unless=common.no_effect(ds, "sgd")),
        common.below(ds, "sgf", "the flow", FIGURE, unless=common.no_effect(ds, "sgf")),
        _same_law(ds),
        *_invariant(ds),
        *_schemes(ds),
        common.printed(
            "Gradient descent's final error is 19 to 54 times SGD's",
            FIGURE,
            said=(19 * 54) ** 0.5,
            sample=ratio,
            ours="ratio of the errors",
        ),
    ]


def _bundles(ds: xr.Dataset) -> list[Claim]:
    statement = (
        f"The bundles of runs overlap: the ranges of {DRAWN} final errors of SGD and {DRAWN} of "
        "the flow, drawn at random, have a point in common"
    )
    quieter = (
        f"the ranges of {DRAWN} final errors of SGD and {DRAWN} of the flow with 1/{QUIET} of the "
        "noise probably have no point in common"
    )
    control_statement = f"{CONTROL}{quieter}"
    unless = common.no_effect(ds, "sgd") or common.many_lost(ds, "sgd", "sgf", "quiet")
    if unless:
        return [not_applicable(text, FIGURE, unless) for text in (statement, control_statement)]
    sgd, sgf, quiet = (finite(common.final(ds, name)) for name in ("sgd", "sgf", "quiet"))
    gaps = {name: _gap(ds, name) for name in ("sgf", "quiet")}
    shared, other = (estimate(overlaps, sample, sgd, draws=1000) for sample in (sgf, quiet))
    outside = min(
        float(np.mean(common.final(ds, name) < float(common.final(ds, "gd"))))
        for name in ("sgd", "sgf")
    )
    late = ds["step"].values >= 10
    through = np.mean(
        overlaps(*(ds[f"{name}_validation_error"].values.T[late] for name in ("sgd", "sgf"))) >= 0.5
    )
    words = "the evolution laws predict a gap of {:.2f} standard deviations between the bundles"
    return [
        not_applicable(statement, FIGURE, f"{words.format(gaps['sgf'])}, so they may miss")
        if gaps["sgf"] > APART / CLEARLY
        else claim(
            statement,
            FIGURE,
            predicted=f"{words.format(gaps['sgf'])}; at {APART} the probability is 1/2, and "
            "0.992 if both have one distribution",
            measured=f"probability {shared:.2f}; it is above 0.5 at {through:.0%} of the recorded "
            f"times from step 10; at least {outside:.0%} of the seeds of each are below gradient "
            "descent",
            # The laws are of first order: at a large gamma the gap is larger.
            tolerance="interval not below 0.5, as it is in the control",
            holds=shared.high > 0.5,
            main=True,
            reason="at this step size five runs of each are probably distinguishable",
        ),
        not_applicable(
            control_statement, FIGURE, f"{words.format(gaps['quiet'])}, so they may overlap"
        )
        if gaps["quiet"] < APART * CLEARLY
        else control(
            quieter,
            FIGURE,
            predicted=words.format(gaps["quiet"]),
            measured=f"probability of a common point {other:.3f}",
            tolerance="interval below 0.5, where the claim about the flow would fail",
            holds=other.high < 0.5,
            main=True,
            reason="five runs of each do not distinguish the amounts of noise",
        ),
    ]


def _gap(ds: xr.Dataset, name: str) -> float:
    """The difference of the logarithms of the errors that the evolution laws predict
    for SGD and for the runs `name`, divided by their mean standard deviation over the
    seeds.
    """
    scatter = [np.std(np.log(finite(common.final(ds, which)))) for which in ("sgd", name)]
    return float(abs(np.log(common.predicted_ratio(ds, name, "sgd"))) / np.mean(scatter))


def _same_law(ds: xr.Dataset) -> Claim:
    statement = (
        "The final errors of SGD and of the flow have one distribution: not even all their "
        "seeds distinguish them"
    )
    a, b = (finite(common.final(ds, name)) for name in ("sgd", "sgf"))
    if min(a.size, b.size) < LEAST_SEEDS:
        return not_applicable(statement, FIGURE, FEW, must_hold=False)
    distance, limit = float(kolmogorov(a, b)), 1.63 * np.sqrt(1 / a.size + 1 / b.size)
    return claim(
        statement,
        "two-sample Kolmogorov-Smirnov test; the flow has mean-loss noise, and follows SGD to "
        "weak order 1 in gamma",
        predicted=f"Kolmogorov distance below {limit:.2f}",
        measured=f"distance {distance:.2f}; standard deviation of the log error "
        f"{np.std(np.log(a)):.2f} for SGD, {np.std(np.log(b)):.2f} for the flow",
        tolerance="the critical value at 1%",
        holds=distance < limit,
        must_hold=False,
        reason="bundles may overlap without having one distribution: at a large gamma, enough "
        "seeds show the difference",
    )


def _known(ds: xr.Dataset, *names: str) -> np.ndarray:
    """Columns of the comparison on one Brownian path, (names, rows, seeds), restricted
    to the seeds that are finite in all of them.
    """
    rows = jointly_finite(*(row for name in names for row in ds[f"path_{name}"].values))
    return np.stack(rows).reshape(len(names), -1, rows[0].size)


def _rms(sample: np.ndarray) -> Any:
    return np.sqrt(np.mean(np.square(sample), axis=-1))


def _invariant(ds: xr.Dataset) -> list[Claim]:
    breaks = (
        "The paper's scheme breaks log(w_+ w_-) = 2 log alpha - 4 gamma h int L, the equation "
        "on which Theorem 1 rests, by the predicted amount"
    )
    falls = (
        "The error of log(w_+ w_-) under the paper's scheme falls as the square root of dt: "
        "ten times finer steps make it only 3 times smaller"
    )
    off, predicted = _known(ds, "break", "break_predicted")
    if off.shape[1] < LEAST_SEEDS:
        return [not_applicable(text, SCHEME, FEW) for text in (breaks, falls)]
    ratios, order = _rms(off) / _rms(predicted), log_slope(ds["path_width"], _rms(off))
    ratio = estimate(lambda a, b: _rms(a) / _rms(b), off[1], predicted[1], paired=True)
    allowed = abs(ratios[0] - 1) / 2
    return [
        claim(
            breaks,
            f"{SCHEME}; a step multiplies w_+ w_- by 1 - a^2, where a^2 has mean 4 gamma h L dt "
            "and standard deviation sqrt(2) times its mean",
            predicted="root mean square error over seeds and features, divided by h, "
            f"{_rms(predicted[1]):.3g} at dt = gamma/10",
            measured=f"{_rms(off[1]):.3g}; measured over predicted {ratio:.3f} at gamma/10, "
            f"{ratios[0]:.2f} at gamma/2, {ratios[2]:.2f} at gamma/40",
            tolerance=f"interval of the ratio at gamma/10 meets 1 +- {allowed:.2f}: half of the "
            "difference from 1 at gamma/2, as the prediction leaves out higher orders in dt",
            holds=ratio.low < 1 + allowed and ratio.high > 1 - allowed,
            main=True,
            reason="the scatter of single steps does not explain the scheme's error",
        ),
        claim(
            falls,
            SCHEME,
            predicted="slope 1/2 in dt",
            measured=f"error {listed(_rms(off))} at dt = gamma/2, gamma/10, gamma/40, slope "
            f"{order:.2f}",
            tolerance="slope between 0.4 and 0.75, which is halfway to a scheme of order 1",
            holds=0.4 < order < 0.75,
            reason="the scheme is not of strong order 1/2",
        ),
    ]


def _schemes(ds: xr.Dataset) -> list[Claim]:
    statements = {
        "mirror 10": "On one Brownian path and with dt = gamma/10 for both, the mirror system is "
        "closer to the fine solution than the paper's scheme is",
        "mirror 1": "On one Brownian path the mirror system with dt = gamma is closer to the fine "
        "solution than the paper's scheme with dt = gamma/10",
    }
    names, known = (
        [str(name) for name in ds["path_scheme"].values],
        _known(ds, "distance", "distance_weights", "integral"),
    )
    euler = names.index("weights 10")
    rows = []
    for name, statement in statements.items():
        if known.shape[-1] < LEAST_SEEDS:
            rows.append(not_applicable(statement, SCHEME, FEW, must_hold=name == "mirror 10"))
            continue
        (ours, turned, off), (theirs, theirs_turned, theirs_off) = (
            known[:, names.index(name)],
            known[:, euler],
        )
        ratio = median(theirs / ours)
        rows.append(
            claim(
                statement,
                SCHEME,
                predicted="|beta - beta_fine| of the paper's scheme over the mirror system's is "
                "above 1",
                measured=f"median ratio {ratio:.2f}, or {np.median(theirs_turned / turned):.2f} if "
                f"the fine solution is Euler's in w with dt = gamma/{FINEST}; median relative "
                f"error of int L {np.median(np.abs(theirs_off)):.1e} by the paper's scheme, "
                f"{np.median(np.abs(off)):.1e} by the mirror system",
                tolerance="interval of the ratio above 1",
                holds=ratio.low > 1,
                must_hold=name == "mirror 10",
                main=name == "mirror 10",
                reason="near the largest step size the mirror system, too, needs steps below gamma",
            )
        )
    return rows
