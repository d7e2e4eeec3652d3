"""Claims of the study `noisy-sgd`, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, bootstrap, judge, not_applicable
from sgfbias.core.provenance import config_of

SSD = "Sander, Sylvestre, Durmus 2024, diagonal linear networks"
ITO = "Itô's isometry for 4 sigma sqrt(gamma) int sqrt(L) dB', projected off the rows"
FIRST = "first order of the programme in its offset"
SECOND = "second order of the programme in its offset, first in log alpha"
TIGHT = 1e-14  # loss from which a seed is at its limit to 1e-6
SURE = 3.3  # standard errors; with five of them, 99.5% for all together


def claims(ds: Any) -> list[Claim]:
    """The study's claims."""
    return [
        _identity(ds),
        _wrong_constants(ds),
        _identity_in_weights(ds),
        _kept(ds, "mean-loss"),
        _kept(ds, "label"),
        _not_kept(ds),
        _law(ds),
        _offset_in_weights(ds),
        _no_offset_in_weights(ds),
        _endpoint(ds),
        _linear(ds),
        _grows(ds),
        _alone(ds),
        _undone(ds),
        _inside(ds),
        _net(ds),
        _balance(ds),
        _lost(ds),
    ]


def _expected(ds: Any) -> np.ndarray:
    """`16 (d - rank X) gamma sigma^2 int L` of every run, (sigma, seed)."""
    rate = 16 * int(ds.attrs["outside"]) * float(config_of(ds, "step_size"))
    return rate * np.square(ds["sigma"].values)[:, None] * ds["loss_integral"].values


def _score(difference: np.ndarray) -> tuple[float, float]:
    """Mean and standard error over the seeds that are known."""
    known = difference[np.isfinite(difference)]
    return float(known.mean()), float(known.std(ddof=1) / np.sqrt(known.size))


def _excess(ds: Any, factor: float = 1.0) -> list[tuple[float, float]]:
    """Per sigma > 0: the mean squared residual over what is expected, less 1, and its standard error."""
    residual, expected = ds["residual_square"].values, factor * _expected(ds)
    rows = []
    for r, e in zip(residual[1:], expected[1:], strict=True):
        mean, error = _score(r - e)
        rows.append((mean / np.nanmean(e), error / np.nanmean(e)))
    return rows


def _identity(ds: Any) -> Claim:
    rows = _excess(ds)
    size = np.sqrt(np.nanmean(ds["residual_square"].values, axis=1))
    still = np.nanmax(ds["residual_square"].values[0]) ** 0.5
    worst = max(abs(mean) / error for mean, error in rows)
    return judge(
        "The residual of the theorem, arcsinh(beta / 2 alpha_inf^2) off the rows of X, has the mean square that theory says, at every sigma",
        ITO,
        predicted="E |residual|^2 = 16 (d - n) gamma sigma^2 E int L, exactly; 0 at sigma = 0",
        measured=f"root mean square {size[1]:.3f} to {size[-1]:.2f}; over the prediction, squared: "
        + ", ".join(f"{1 + mean:.3f} +- {error:.3f}" for mean, error in rows)
        + f"; at sigma = 0 at most {still:.0e}",
        tolerance=f"{SURE} standard errors of the paired difference, every sigma; rounding, 1e-9, at sigma = 0",
        holds=worst < SURE and still < 1e-9,
        reason="the noise has another strength than stated, or another part of it lies off the rows",
    )


def _wrong_constants(ds: Any) -> Claim:
    outside, d = int(ds.attrs["outside"]), int(config_of(ds, "d"))
    found = {
        "4 in place of 16, one sign of the weights only": _excess(ds, 0.25),
        "d in place of d - n, the noise in the rows counted": _excess(ds, d / outside),
    }
    scores = {name: min(abs(mean) / error for mean, error in rows) for name, rows in found.items()}
    return judge(
        "Control: other constants in the same formula are rejected",
        ITO,
        predicted="off by far more than the statistical error",
        measured="; ".join(f"{name}: off by at least {score:.0f} standard errors" for name, score in scores.items()),
        tolerance="above 5, every sigma",
        holds=min(scores.values()) > 5,
        control=True,
        reason="too few seeds to tell the constants apart",
    )


def _ladder(ds: Any, name: str, noise: str) -> tuple[np.ndarray, float]:
    """Medians over the seeds at every width, and their slope in dt."""
    median = np.nanmedian(ds[f"weights_{name}"].sel(noise=noise).values, axis=1)
    return median, float(np.polyfit(np.log(ds["dt"].values), np.log(median), 1)[0])


def _shown(median: np.ndarray, slope: float) -> str:
    return " -> ".join(f"{v:.1e}" for v in median) + f" at dt/gamma = 1, 1/4, 1/16: slope {slope:.2f}"


def _identity_in_weights(ds: Any) -> Claim:
    rate = 16 * int(ds.attrs["outside"]) * float(config_of(ds, "step_size")) * float(config_of(ds, "weights_sigma")) ** 2
    values = ds.sel(noise="isotropic")
    difference = values["weights_residual_square"].values - rate * values["weights_loss_integral"].values
    scale = rate * np.nanmean(values["weights_loss_integral"].values[-1])
    mean, error = _score(difference[-1] / scale)
    left, _ = _score((difference[-1] - difference[-2]) / scale)
    return judge(
        f"The same in weights coordinates, where nothing holds by construction, alpha from int L alone; sigma = {config_of(ds, 'weights_sigma'):g}",
        ITO,
        predicted="mean square over the prediction 1, as dt -> 0",
        measured=f"{1 + mean:.3f} +- {error:.3f} at dt = gamma/16, {left:+.4f} from a quarter of that many steps",
        # At strong order 1/2 what is left at dt is at most the change from 4 dt to dt.
        tolerance=f"{SURE} standard errors, and the change from dt = gamma/4",
        holds=abs(mean) < SURE * error + abs(left),
        reason="the residual is not that of the isotropic noise",
    )


def _kept(ds: Any, noise: str) -> Claim:
    median, slope = _ladder(ds, "residual_square", noise)
    name = {"mean-loss": "SGD's own noise (mean-loss)", "label": "Label noise"}[noise]
    return judge(
        f"{name} keeps the theorem: its residual in weights coordinates is Euler's error only",
        "Pesme, Pillaud-Vivien, Flammarion 2021, theorem 1" + (", section 5.3" if noise == "label" else ""),
        predicted="squared residual -> 0 with dt, order >= 1",
        measured=_shown(median, slope),
        tolerance="slope >= .8",
        holds=slope >= 0.8,
        reason="this noise leaves the span of the rows",
    )


def _not_kept(ds: Any) -> Claim:
    median, slope = _ladder(ds, "residual_square", "isotropic")
    others = max(_ladder(ds, "residual_square", noise)[0][-1] for noise in ("mean-loss", "label"))
    return judge(
        "Control: with isotropic noise the same residual stays",
        SSD,
        predicted="slope 0",
        measured=_shown(median, slope) + f"; {median[-1] / others:.0f} times the largest of the others",
        tolerance="slope < .2 and at least 10 times",
        holds=slope < 0.2 and median[-1] > 10 * others,
        control=True,
    )


def _law(ds: Any) -> Claim:
    values, sigma = ds.sel(noise="isotropic"), float(config_of(ds, "weights_sigma"))
    off = values["weights_shrinkage"].values - values["weights_shrinkage_law"].values
    mean, error = _score(off[-1])
    left, _ = _score(off[-1] - off[-2])
    added = 2 * float(config_of(ds, "step_size")) * sigma**2 * np.nanmean(values["weights_loss_integral"].values[-1])
    return judge(
        "Isotropic noise shrinks alpha on top of SGD's own: log alpha loses 2 gamma (h + sigma^2) int L, weights coordinates",
        SSD,
        predicted=f"mean shrinkage {np.nanmean(values['weights_shrinkage_law'].values[-1]):.4f}, of which {added:.4f} by the isotropic noise",
        measured=f"off by {mean:+.1e} +- {error:.0e} at dt = gamma/16, {left:+.1e} from a quarter of that many steps",
        tolerance=f"{SURE} standard errors, and the change from dt = gamma/4; together less than half of the isotropic part",
        holds=abs(mean) < SURE * error + abs(left) < added / 2,
        reason="the isotropic noise shrinks alpha by another amount",
    )


def _offset_in_weights(ds: Any) -> Claim:
    median, slope = _ladder(ds, "gap", "isotropic")
    return judge(
        "With the offset that the noise of its path leaves, the programme predicts the iterate on its fibre, weights coordinates",
        SSD + ": argmin of the Bregman divergence from a perturbed reference point",
        predicted="relative gap -> 0 with dt, strong order >= 1/2",
        measured=_shown(median, slope),
        tolerance="slope >= .4",
        holds=slope >= 0.4,
        reason="the reference point is another one",
    )


def _no_offset_in_weights(ds: Any) -> Claim:
    median, slope = _ladder(ds, "gap_without", "isotropic")
    finest = _ladder(ds, "gap", "isotropic")[0][-1]
    return judge(
        "Control: without the offset it does not",
        SSD,
        predicted="a gap that stays",
        measured=_shown(median, slope) + f"; {median[-1] / finest:.0f} times the gap with it",
        tolerance="slope < .2 and at least 10 times",
        holds=slope < 0.2 and median[-1] > 10 * finest,
        control=True,
    )


def _endpoint(ds: Any) -> Claim:
    there = ds["loss"].values < TIGHT
    statement = "Every seed that has converged is at the programme's solution with alpha_inf from int L and the offset, at every sigma"
    if not there.any(axis=1).all():
        return not_applicable(statement, SSD, f"at some sigma no seed reaches a loss of {TIGHT:g}")
    worst = np.max(np.where(there, ds["gap"].values, 0.0))
    shift = np.sqrt(ds["distance_square"].values)
    return judge(
        statement,
        SSD,
        predicted="the same point",
        measured=f"largest distance {worst:.1e}; {' '.join(str(int(v)) for v in there.sum(axis=1))} of {there.shape[1]} seeds have converged; without the "
        f"offset the median distance is {np.nanmedian(shift[1]):.1e} to {np.nanmedian(shift[-1]):.2f}",
        tolerance=f"1e-6 where the loss is below {TIGHT:g}",
        holds=worst < 1e-6,
        reason="the law of alpha or the offset is not what decides",
    )


def _linear(ds: Any) -> Claim:
    at, sigma = 1, float(ds["sigma"].values[1])
    square, predicted = ds["distance_square"].values[at], ds["response_square"].values[at]
    scale = np.nanmean(predicted)
    mean, error = _score((square - predicted) / scale)
    next_order = 16 * float(config_of(ds, "step_size")) * sigma**2 * np.nanmean(ds["loss_integral"].values[at])
    return judge(
        f"At small sigma ({sigma:g}) the solution is moved as far as the noise's variance alone says",
        FIRST,
        predicted=f"mean square distance 16 gamma sigma^2 int L |d beta / d offset|^2 = {scale:.2e}",
        measured=f"over the prediction: {1 + mean:.4f} +- {error:.4f}",
        tolerance=f"{SURE} standard errors, and the variance of the offset, {next_order:.4f}, for the next order",
        holds=abs(mean) < SURE * error + next_order,
        reason="the solution responds otherwise to its offset",
    )


def _grows(ds: Any) -> Claim:
    sigma, root = ds["sigma"].values[1:], np.sqrt(np.nanmean(ds["distance_square"].values[1:], axis=1))
    slope = float(np.polyfit(np.log(sigma[:3]), np.log(root[:3]), 1)[0])
    whole = float(np.polyfit(np.log(sigma[-2:]), np.log(root[-2:]), 1)[0])
    return judge(
        "The distance from the theorem's solution grows with sigma",
        FIRST,
        predicted="in proportion to sigma, while it is small",
        measured=f"root mean square {', '.join(f'{v:.3g}' for v in root)}: slope {slope:.3f} over the three smallest, {whole:.2f} at the end",
        tolerance="slope .9 to 1.1 over the three smallest, and increasing throughout",
        holds=0.9 < slope < 1.1 and np.all(np.diff(root) > 0),
    )


def _change(ds: Any, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """99% interval of the mean of a paired difference, over the mean error without isotropic noise."""
    difference = (first - second)[np.isfinite(first - second)] / np.nanmean(ds["error"].values[0])
    return bootstrap(lambda v: np.mean(v, axis=-1), difference)


def _alone(ds: Any) -> Claim:
    error = ds["error_without"].values
    rows = [_change(ds, row, error[0]) for row in error[1:]]
    return judge(
        "The smaller alpha alone would lower the error: programme at alpha_inf without the offset, against sigma = 0",
        SSD + ": the implicit bias is amplified",
        predicted="below, and further with sigma",
        measured="mean change, 99% intervals: " + ", ".join(f"{low:+.1%} to {high:+.1%}" for low, high in rows),
        tolerance="interval below 0 at the three largest sigma, the mean falling there",
        holds=all(high < 0 for _, high in rows[-3:]) and np.all(np.diff(np.nanmean(error, axis=1)[-3:]) < 0),
    )


def _undone(ds: Any) -> Claim:
    rows = [_change(ds, row, start) for row, start in zip(ds["error"].values[1:], ds["error_without"].values[1:], strict=True)]
    return judge(
        "The perturbed reference point raises the error: the solution selected, against the programme without the offset",
        SECOND,
        predicted="above, as sigma^2",
        measured="mean change, 99% intervals: " + ", ".join(f"{low:+.1%} to {high:+.1%}" for low, high in rows),
        tolerance="interval above 0 at the two largest sigma",
        holds=all(low > 0 for low, _ in rows[-2:]),
    )


def _inside(ds: Any) -> Claim:
    rows = [_change(ds, row, other) for row, other in zip(ds["error_inside"].values[1:], ds["error"].values[1:], strict=True)]
    against = [_change(ds, row, ds["error"].values[0]) for row in ds["error_inside"].values[1:]]
    return judge(
        "SGD's own noise does better with as much shrinkage per unit of loss: mean-loss noise of step size gamma (1 + sigma^2 / mean h) against both noises",
        "Pesme, Pillaud-Vivien, Flammarion 2021, theorem 1",
        predicted="its error below",
        measured="mean change, 99% intervals: "
        + ", ".join(f"{low:+.1%} to {high:+.1%}" for low, high in rows[-2:])
        + f" at the two largest sigma; against sigma = 0 {against[-1][0]:+.1%} to {against[-1][1]:+.1%} at the largest",
        tolerance="interval below 0 at the two largest sigma",
        holds=all(high < 0 for _, high in rows[-2:]),
        reason="where the noise lies does not matter for the error",
    )


def _net(ds: Any) -> Claim:
    sigma, error = ds["sigma"].values, ds["error"].values
    # The first-order part has mean 0: taken out, the seeds' spread is smaller and the mean the same.
    reduced = error - error[0] - ds["first_order"].values
    scale = np.square(sigma) * np.nanmean(error[0])
    shown = [tuple(v / scale[k] for v in _score(reduced[k])) for k in range(1, len(sigma))]
    cost, gain = float(np.nanmean(ds["cost"].values)), float(np.nanmean(ds["gain"].values))
    predicted = (cost - gain) / np.nanmean(error[0])
    middle = len(shown) // 2
    mean, spread = shown[middle]
    return judge(
        "Altogether isotropic noise raises the error here: what the reference point costs is more than what the smaller alpha gains",
        SECOND,
        predicted=f"mean relative change over sigma^2 {predicted:+.3f}: cost {cost / np.nanmean(error[0]):.3f}, gain {gain / np.nanmean(error[0]):.3f}",
        measured=", ".join(f"{m:+.3f} +- {e:.3f}" for m, e in shown),
        tolerance=f"at sigma = {sigma[1 + middle]:g} within {SURE} standard errors and sigma^2 of it, for the next order",
        holds=abs(mean - predicted) < SURE * spread + sigma[1 + middle] ** 2 * abs(predicted),
        must_hold=False,
        reason="the change of int L by the noise is left out",
    )


def _balance(ds: Any) -> Claim:
    cost, gain, alphas = ds["many_cost"].values, ds["many_gain"].values, ds["alpha"].values
    raised = np.mean(cost > gain, axis=1)
    ratio = np.median(cost, axis=1) / np.median(gain, axis=1)
    listed = ", ".join(f"{share:.0%} ({r:.1f}) at {alpha:g}" for share, r, alpha in zip(raised, ratio, alphas, strict=True))
    return judge(
        "It does on most problems, whatever alpha: cost against gain to first order in sigma^2, without simulation",
        SECOND,
        predicted="none: a mechanism, not a theorem",
        measured=f"of {cost.shape[1]} problems the error rises on (median cost over median gain), by alpha: {listed}",
        tolerance="on more than half, at every alpha",
        holds=np.all(raised > 0.5),
        must_hold=False,
        reason="at some alpha the shrinkage wins on as many problems",
    )


def _lost(ds: Any) -> Claim:
    lost = np.sum(~np.isfinite(ds["error"].values), axis=1)
    inside = np.sum(~np.isfinite(ds["error_inside"].values), axis=1)
    weights = int(np.sum(~np.isfinite(ds["weights_residual_square"].values)))
    return judge(
        "No seed diverges",
        "statuses of the runs",
        predicted="0",
        measured=f"by sigma {', '.join(map(str, lost))}; noise in the rows {', '.join(map(str, inside))}; in weights {weights}; of {ds.sizes['seed']}",
        tolerance="at most 2% of the seeds at any sigma",
        holds=max(lost.max(), inside.max()) <= 0.02 * ds.sizes["seed"] and weights == 0,
        reason="the step size is too large for this much noise",
    )
