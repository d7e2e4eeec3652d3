"""The claims about the solutions that momentum selects: where it shrinks alpha, what
this does to sparsity and error, and what it adds to SGD's noise.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.momentum import KINDS, Config
from sgfbias.diagonal.studies.momentum.quantities import PPF
from sgfbias.study import Claim, claim, control, source
from sgfbias.study.statistics import listed, mean_and_error, sign_test

HALF = "more than half of all problems, by a binomial test at 0.5%"
# A difference of fewer standard errors counts as chance.
SURE = 3.3


def _most(condition: np.ndarray) -> bool:
    """Whether a condition (problem,) holds on more than half of all problems by the
    one-sided binomial test at 0.5%.
    """
    return bool(condition.sum() >= sign_test(condition.size, level=0.005))


def support(ds: xr.Dataset, config: Config) -> Claim:
    """Inertia shrinks alpha most where the solution is large."""
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


def sparser(ds: xr.Dataset, config: Config, kind: str) -> Claim:
    """A larger lambda selects a sparser and better solution, on inputs of one kind."""
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


def evenly(ds: xr.Dataset) -> Claim:
    """The same shrinkage, spread evenly, lowers the error."""
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


def ladder(ds: xr.Dataset) -> Claim:
    """Error and l1 norm fall beyond first order, too."""
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


def stochastic(ds: xr.Dataset, config: Config) -> Claim:
    """Momentum adds inertia to the noise of SGD."""
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


def no_inertia(ds: xr.Dataset) -> Claim:
    """The noise alone does not predict the decrease of log alpha."""
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
