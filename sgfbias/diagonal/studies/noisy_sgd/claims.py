"""The claims of the study, judged from its dataset alone. Those here are about the
solution: where the runs end, how far isotropic noise moves it, and how its error
changes.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.noisy_sgd import TIGHT, Config
from sgfbias.diagonal.studies.noisy_sgd.residual import (
    in_mirror_coordinates,
    in_weights_coordinates,
)
from sgfbias.diagonal.studies.noisy_sgd.shared import P21, SSD, SURE, plus_minus
from sgfbias.diagonal.theory.isotropic import mean_residual_square
from sgfbias.study import Claim, claim, not_applicable
from sgfbias.study.statistics import finite, listed, log_slope, mean, mean_and_error

LIKE = "gain_inside"
FIRST = "expansion of the program to first order in its offset"
SECOND = "expansion of the program to second order in its offset and first order in log alpha"
# A predicted effect of so many standard errors lies outside the 99% interval of its
# estimate with probability 99%.
SEEN = 5


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims say how far the theorem is broken, what replaces it, how far the
    solution moves, and how its error changes.
    """
    parts = (
        in_mirror_coordinates(ds, config),
        in_weights_coordinates(ds, config),
        [_endpoint(ds)],
        _distance(ds, config),
        _error(ds),
        _balance(ds),
        [_lost(ds)],
    )
    return [each for part in parts for each in part]


def _endpoint(ds: xr.Dataset) -> Claim:
    there = ds["loss"].values < TIGHT
    statement = (
        "Every seed that has converged is at the program's solution with alpha_inf from "
        "int L and with the offset, at every sigma"
    )
    if not there.any(axis=1).all():
        return not_applicable(statement, SSD, f"at some sigma no seed reaches a loss of {TIGHT:g}")
    worst, shift = (
        np.max(np.where(there, ds["gap"].values, 0.0)),
        np.nanmedian(np.sqrt(ds["distance_square"].values), axis=1),
    )
    return claim(
        statement,
        SSD,
        predicted="distance 0",
        measured=f"largest distance {worst:.1e}; by sigma, {listed(there.sum(axis=1), 'g')} of "
        f"{there.shape[1]} seeds have converged. Leaving out the offset moves the solution by a "
        f"median distance of {shift[1]:.1e} to {shift[-1]:.2f}",
        tolerance=f"distance 1e-6 for every seed with a loss below {TIGHT:g}",
        holds=worst < 1e-6,
        reason="alpha_inf from int L and the offset do not determine the solution",
    )


def _distance(ds: xr.Dataset, config: Config) -> list[Claim]:
    sigma, square = ds["sigma"].values[1:], ds["distance_square"].values[1:]
    predicted, root = ds["response_square"].values[1], np.sqrt(np.nanmean(square, axis=1))
    scale = np.nanmean(predicted)
    middle, error = mean_and_error((square[0] - predicted) / scale)
    next_order = mean_residual_square(
        1, config.step_size, sigma[0], np.nanmean(ds["loss_integral"].values[1])
    )
    slope, whole = log_slope(sigma[:3], root[:3]), log_slope(sigma[-2:], root[-2:])
    return [
        claim(
            f"At small sigma ({sigma[0]:g}), the solution moves as far as the variance of the "
            "offset predicts",
            FIRST,
            predicted="mean square distance 16 gamma sigma^2 int L |d beta / d offset|^2 = "
            f"{scale:.2e}",
            measured=f"ratio to the prediction {1 + middle:.4f} +- {error:.4f}",
            tolerance=f"{SURE} standard errors plus the variance of the offset, {next_order:.4f}, "
            "for the next order",
            holds=abs(middle) < SURE * error + next_order,
            reason="the solution responds to its offset in another way",
        ),
        claim(
            "The distance from the theorem's solution grows with sigma",
            FIRST,
            predicted="a distance in proportion to sigma while it is small",
            measured=f"root mean square distance by sigma: {listed(root, '.3g')}; exponent "
            f"{slope:.3f} over the three smallest sigmas, {whole:.2f} over the two largest",
            tolerance="exponent 0.9 to 1.1 over the three smallest sigmas, and a distance that "
            "increases throughout",
            holds=0.9 < slope < 1.1 and np.all(np.diff(root) > 0),
            main=True,
        ),
    ]


def _effect(
    statement: str,
    where: str,
    difference: np.ndarray,
    predicted: float,
    ds: xr.Dataset,
    words: str = "",
    *,
    main: bool = False,
) -> Claim:
    """The claim that isotropic noise changes the mean error in the direction that
    theory predicts to first order in sigma^2.

    **Arguments:**

    - `difference`: (sigmas above 0, seeds). The change of the error of every seed.
    - `predicted`: what theory predicts for its mean, divided by sigma^2.
    - `words`: what was measured besides, in words.
    """
    sigma, scale = ds["sigma"].values[-2:], np.nanmean(ds["error"].values[0])
    rows = [finite(row) / scale for row in difference[-2:]]
    errors = np.array([mean_and_error(row)[1] for row in rows])
    expected = predicted / scale * np.square(sigma)
    if not np.all(np.abs(expected) > SEEN * errors):
        return not_applicable(
            statement,
            where,
            f"the effect that theory predicts on this problem, {listed(expected, '+.2%')} of the "
            f"error at the two largest sigmas, is not above {SEEN} standard errors, "
            f"{listed(SEEN * errors, '.2%')}, at both",
        )
    found, up = [mean(row) for row in rows], predicted > 0
    return claim(
        statement,
        where,
        predicted=f"the error {'rises' if up else 'falls'}, by about {listed(expected, '+.1%')} at "
        "the two largest sigmas, without the next order",
        measured=f"mean relative change of the error {listed(found, '+.1%')}{words}",
        tolerance="99% interval on this side of 0 at the two largest sigmas",
        holds=all((each.low > 0) if up else (each.high < 0) for each in found),
        main=main,
        reason="the error does not change as the derivatives of the selected solution say",
    )


def _error(ds: xr.Dataset) -> list[Claim]:
    error, without, inside = (
        ds[name].values for name in ("error", "error_without", "error_inside")
    )
    cost, gain, gain_inside = (np.nanmean(ds[name].values) for name in ("cost", "gain", LIKE))
    # The part of the error that is linear in the offset has mean 0 exactly. Subtracting
    # it reduces the spread of the seeds and leaves the mean as it is.
    reduced = (error - ds["first_order"].values)[1:]
    against = mean(finite(inside[-1] - error[0]) / np.nanmean(error[0]))
    return [
        _effect(
            "The smaller alpha alone changes the error in the predicted direction: it lowers the "
            "error of the program's solution without the offset where a smaller alpha does",
            f"{SSD}: the implicit bias is amplified",
            without[1:] - without[0],
            -gain,
            ds,
        ),
        _effect(
            "The perturbed reference point changes the error in the predicted direction: it "
            "raises the error of the selected solution where the error is convex in the offset",
            SECOND,
            reduced - without[1:],
            cost,
            ds,
            main=True,
        ),
        _effect(
            "SGD's own noise with as much shrinkage per unit of loss, mean-loss noise of step size "
            "gamma (1 + sigma^2 / mean h), does better than both noises where its gain exceeds "
            "theirs to first order, and worse elsewhere",
            P21,
            inside[1:] - reduced,
            gain - cost - gain_inside,
            ds,
            f"; compared with sigma = 0, {against:+.1%} at the largest sigma",
        ),
    ]


def _balance(ds: xr.Dataset) -> list[Claim]:
    sigma, error, start = (
        ds["sigma"].values[1:],
        ds["error"].values,
        np.nanmean(ds["error"].values[0]),
    )
    # The first-order part has mean 0. Subtracting it reduces the spread of the seeds
    # and leaves the mean as it is.
    reduced = (error - error[0] - ds["first_order"].values)[1:] / (np.square(sigma) * start)[
        :, None
    ]
    found, errors = np.transpose([mean_and_error(row) for row in reduced])
    cost, gain = (np.nanmean(ds[name].values) / start for name in ("cost", "gain"))
    k, net = len(sigma) // 2, cost - gain
    costs, gains = ds["many_cost"].values, ds["many_gain"].values
    raised, ratio = (
        np.mean(costs > gains, axis=1),
        np.median(costs, axis=1) / np.median(gains, axis=1),
    )
    shares = ", ".join(
        f"{share:.0%} ({r:.1f}) at alpha = {alpha:g}"
        for share, r, alpha in zip(raised, ratio, ds["alpha"].values, strict=True)
    )
    return [
        claim(
            "Altogether, isotropic noise raises the error here: the perturbed reference point "
            "costs more than the smaller alpha gains",
            SECOND,
            predicted=f"mean relative change of the error over sigma^2 {net:+.3f}, the cost "
            f"{cost:.3f} minus the gain {gain:.3f}",
            measured=f"by sigma: {plus_minus(found, errors, '+.3f')}",
            tolerance=f"at sigma = {sigma[k]:g}, {SURE} standard errors plus sigma^2 times the "
            "prediction, for the next order",
            holds=abs(found[k] - net) < SURE * errors[k] + sigma[k] ** 2 * abs(net),
            must_hold=False,
            reason="theory neglects the change of int L by the noise",
        ),
        claim(
            "On most problems isotropic noise raises the error, at every alpha: the cost exceeds "
            "the gain to first order in sigma^2, computed without simulation",
            SECOND,
            predicted="no prediction: this is a mechanism, not a theorem",
            measured=f"share of {costs.shape[1]} problems on which the error rises (and median "
            f"cost over median gain): {shares}",
            tolerance="more than half of the problems at every alpha",
            holds=np.all(raised > 0.5),
            must_hold=False,
            reason="at some alpha the gain is at least the cost on half of the problems or more",
        ),
    ]


def _lost(ds: xr.Dataset) -> Claim:
    lost, inside, weights = (
        np.sum(~np.isfinite(ds[name].values), axis=-1)
        for name in ("error", "error_inside", "weights_residual_square")
    )
    return claim(
        "No seed is lost: none diverges, and none in mirror coordinates settles above the loss 0",
        "statuses of the runs",
        predicted="0 lost seeds",
        measured=f"of {ds.sizes['seed']} seeds, lost by sigma: {listed(lost, 'g')}; with the "
        f"noise in the span of the rows: {listed(inside, 'g')}; in weights coordinates, of "
        f"{ds.sizes['weights_seed']} seeds at three step widths: "
        + ", ".join(
            f"{row.sum()} ({name})" for name, row in zip(ds["noise"].values, weights, strict=True)
        ),
        tolerance="none in any run, since leaving out a seed would bias the means",
        holds=lost.sum() + inside.sum() + weights.sum() == 0,
        reason="the step size is too large for this much noise",
    )
