"""The claims about figure 2, computed from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.stats import kendalltau, rankdata

from sgfbias.diagonal.studies.pesme2021 import common
from sgfbias.diagonal.studies.pesme2021.common import LEAST_SEEDS, P21
from sgfbias.diagonal.studies.pesme2021.fig2 import WORDS, Config
from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.statistics import Estimate, estimate, jointly_finite, listed, log_slope, median

FIGURE = f"{P21}, figure 2"
ORDER = "rank correlation"
FEW = f"fewer than {LEAST_SEEDS} seeds converged"


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims: SGD and the flow have larger loss integrals and smaller errors than
    gradient descent, single runs follow the evolution laws, and the paper's ratios.
    """
    ratio = "Two SGD runs have loss integrals 1.4 and 3.1 times gradient descent's"
    errors = "Gradient descent's error is 13 and 144 times the errors of two SGD runs"
    return [
        common.none_lost(ds, WORDS),
        *(_larger(ds, name, word) for name, word in WORDS.items()),
        *(
            common.below(ds, name, word, FIGURE, unless=common.no_effect(ds, name))
            for name, word in WORDS.items()
        ),
        _flow_order(ds),
        *_curve(ds),
        _sgd_order(ds),
        *_which_law(ds),
        _identity(ds),
        common.printed(
            ratio, FIGURE, said=2.1, sample=_integrals(ds, "sgd"), ours="ratio of int L"
        ),
        common.printed(
            errors,
            FIGURE,
            said=(13 * 144) ** 0.5,
            sample=float(common.final(ds, "gd")) / common.final(ds, "sgd"),
            ours="ratio of the errors",
        ),
    ]


def _integrals(ds: xr.Dataset, name: str) -> np.ndarray:
    """The ratio of every seed's loss integral to gradient descent's."""
    return common.final(ds, name, "loss_integral") / float(common.final(ds, "gd", "loss_integral"))


def _larger(ds: xr.Dataset, name: str, word: str) -> Claim:
    sample = _integrals(ds, name)
    middle = median(sample, lost=0.0)
    return claim(
        f"The median loss integral of {word} is larger than gradient descent's",
        FIGURE,
        predicted="ratio above 1",
        measured=f"median ratio {middle:.3g}; above 1 for {np.mean(sample > 1):.1%} of "
        f"{sample.size} seeds",
        tolerance="99% interval of the median above 1",
        holds=middle.low > 1,
        reason="noise did not slow the decrease of the loss",
    )


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis."""
    one, other = (
        ranks - ranks.mean(axis=-1, keepdims=True)
        for ranks in (rankdata(v, axis=-1) for v in (a, b))
    )
    return np.sum(one * other, axis=-1) / np.sqrt(
        np.sum(one**2, axis=-1) * np.sum(other**2, axis=-1)
    )


def correlation(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Spearman's rank correlation of two paired samples."""
    return estimate(spearman, a, b, paired=True)


def _flow_order(ds: xr.Dataset) -> Claim:
    statement = (
        "Among the flow's seeds a larger loss integral goes with a smaller error, simulated by "
        "Euler's method in the weights, which does not use the theorem"
    )
    integral, error = jointly_finite(ds["weights_loss_integral"], ds["weights_validation_error"])
    if integral.size < LEAST_SEEDS:
        return not_applicable(statement, FIGURE, FEW)
    said = float(
        spearman(integral, np.interp(integral, ds["point"].values, ds["curve_error"].values))
    )
    if said > -0.99:
        return not_applicable(
            statement,
            FIGURE,
            f"on the part of the curve where the seeds end the error does not fall: {ORDER} "
            f"{said:.2f}",
        )
    found = correlation(integral, error)
    return claim(
        statement,
        f"{FIGURE}; Theorem 1: all seeds end on one curve, along which the error falls",
        predicted=f"{ORDER} {said:.3f} along the curve of Theorem 1",
        measured=f"{ORDER} {found:.3f} of {integral.size} seeds",
        tolerance="interval below -0.8: the scheme's steps are finite, and scatter alpha",
        holds=found.high < -0.8,
        main=True,
        reason="the error is not a function of the loss integral",
    )


def _sgd_order(ds: xr.Dataset) -> Claim:
    statement = "Among SGD's seeds a larger loss integral goes with a smaller error"
    integral, error = jointly_finite(
        common.final(ds, "sgd", "loss_integral"), common.final(ds, "sgd")
    )
    if integral.size < LEAST_SEEDS:
        return not_applicable(statement, FIGURE, FEW, must_hold=False)
    found, agree = (
        correlation(integral, error),
        (1 - kendalltau(integral, error).statistic) / 2,
    )
    return claim(
        statement,
        f"{FIGURE}, two runs",
        predicted="rank correlation clearly below 0; Theorem 1 gives -1 for the mean-loss flow, "
        "and says nothing of SGD",
        measured=f"rank correlation {found:.2f} of {integral.size} seeds; {agree:.0%} of the "
        "pairs of runs are ordered as the paper's pair",
        tolerance="interval below -0.2",
        holds=found.high < -0.2,
        must_hold=False,
        reason="between runs on one problem the loss integral alone hardly predicts SGD's error "
        "at this step size",
    )


def _curve(ds: xr.Dataset) -> list[Claim]:
    statement = (
        "The flow, simulated by Euler's method in the weights, ends at the minimiser that Theorem "
        "1 predicts from its own loss integral, on the fibre of its iterate"
    )
    wrong = "with half the exponent, alpha exp(-gamma h int L), the minimiser is another"
    where = f"{P21}, Theorem 1: alpha exp(-2 gamma h int L)"
    distances = jointly_finite(
        *ds["weights_curve_distance"].values, *ds["weights_half_distance"].values
    )
    if distances[0].size < LEAST_SEEDS:
        return [not_applicable(text, where, FEW) for text in (statement, f"Control: {wrong}")]
    widths, middle = ds["scheme"].values, [np.median(sample) for sample in distances]

    def order(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
        return np.log(np.median(coarse, axis=-1) / np.median(fine, axis=-1)) / np.log(
            widths[0] / widths[-1]
        )

    own, half = (estimate(order, *distances[k : k + 2], paired=True) for k in (0, 2))
    shown = [
        f"median distance {middle[k]:.1e} at dt = gamma/2.5, {middle[k + 1]:.1e} at gamma/10: "
        f"slope {slope:.2f}"
        for k, slope in ((0, own), (2, half))
    ]
    return [
        claim(
            statement,
            where,
            predicted="the distance tends to 0 with dt, at strong order 1/2 or more",
            measured=f"{shown[0]}; remaining loss {np.nanmedian(ds['weights_loss'].values):.0e}",
            tolerance="interval of the slope above 0, and slope above 1/4, which is halfway "
            "between the order 1/2 and a distance that stays",
            holds=own.low > 0 and own.value > 0.25,
            main=True,
            reason="the seeds do not approach the minimiser",
        ),
        control(
            wrong,
            where,
            predicted="the distance does not fall with dt",
            measured=f"{shown[1]}; at gamma/10 {middle[3] / middle[1]:.0f} times the distance with "
            "the theorem's exponent",
            tolerance="interval of the slope below 1/4, and more than 3 times that distance",
            holds=half.high < 0.25 and middle[3] > 3 * middle[1],
            main=True,
            reason="the distance does not distinguish the two exponents",
        ),
    ]


def _off(errors: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Median distance of the logarithms of two paired samples, along the last axis."""
    return np.median(np.abs(np.log(errors / predicted)), axis=-1)


def _which_law(ds: xr.Dataset) -> list[Claim]:
    statement = (
        "Run by run, SGD's error is that of the solution which its own evolution law selects, "
        "from the alpha_inf and the offset of its path"
    )
    less = (
        "Run by run, SGD's error is closer to that of this solution than to those of the solutions "
        "selected by a part of the path: without the offset, with alpha_inf from the examples' "
        "loss integrals, or with alpha_inf from int L alone"
    )
    where = source("even2023")
    error, own, *parts = jointly_finite(
        common.final(ds, "sgd"),
        *(ds[f"sgd_{name}_error"].values for name in ("own", "alpha", "per_sample", "mean_loss")),
    )
    if error.size < LEAST_SEEDS:
        return [not_applicable(text, where, FEW) for text in (statement, less)]
    order = correlation(error, own)
    scatter = float(_off(own, np.median(own)))
    off = estimate(lambda a, b: _off(a, b) / scatter, error, own, paired=True)
    ratios = [
        estimate(lambda a, b, c: _off(a, b) / _off(a, c), error, part, own, paired=True)
        for part in parts
    ]
    return [
        claim(
            statement,
            where,
            predicted="both errors agree when the runs have converged: rank correlation 1, and "
            "distance 0",
            measured=f"rank correlation {order:.3f}; median |log(error / selected error)| "
            f"{off:.3f} times the median deviation of the logarithms over the seeds, which is "
            f"{scatter:.2f}",
            tolerance="interval of the correlation above 0.9, interval of the distance below 1/4",
            holds=order.low > 0.9 and off.high < 0.25,
            main=True,
            reason="the runs have not converged, or the evolution law does not hold",
        ),
        claim(
            less,
            where,
            predicted="ratios of the median distances above 1",
            measured=f"ratios {listed(ratios, '.1f')}",
            tolerance="all three intervals above 1",
            holds=all(ratio.low > 1 for ratio in ratios),
            main=True,
            reason="the runs have not converged, or a part of the path determines the error",
        ),
    ]


def _identity(ds: xr.Dataset) -> Claim:
    flow = float(ds["flow_integral"])
    off = np.abs(ds["gd_integrals"].values / flow - 1)
    order = log_slope(ds["width"], off)
    return claim(
        "Gradient descent's loss integral tends to half of the increase of the potential",
        f"{P21}, section 4: int L = [phi(beta_inf) - phi(0)] / 2, where the 1/2 is not printed",
        predicted=f"int L = {flow:.4g}, with an error of first order in gamma",
        measured=f"relative error {listed(off, '.2%')} at gamma, gamma/2, gamma/4, slope "
        f"{order:.2f}; without the 1/2 the error is "
        f"{abs(float(ds['gd_integrals'][-1]) / flow / 2 - 1):.0%}",
        tolerance="slope between 0.8 and 1.3",
        holds=0.8 < order < 1.3,
        reason="the difference does not vanish with the step size",
    )
