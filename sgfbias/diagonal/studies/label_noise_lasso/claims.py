"""The claims of the study are judged from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.label_noise_lasso import Config
from sgfbias.diagonal.studies.label_noise_lasso.averages import (
    at,
    away,
    bound_ratios,
    constants,
    distance,
    half_width,
    law_constants,
    level,
    quantile,
    room,
    runs_of,
    separation,
    solution,
    unsettled,
    window_errors,
)
from sgfbias.diagonal.theory.lasso import descent_constant
from sgfbias.study import Claim, claim, control, not_applicable
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import (
    Estimate,
    arrow,
    listed,
    log_slope,
    mean_difference,
    mean_t,
)

LAW = (
    "derived from u / T -> 4 gamma h (delta^2 + mean L) sign(beta) and u = -4 int grad L dt + "
    "martingale, where u = arcsinh(beta / 2 alpha^2)"
)
STATED = (
    "the Lasso derived for the flow: min over b of |X (b - b*)|^2 / (4n) + "
    "gamma (delta^2 + mean L) <h, |b|>"
)
PER_SAMPLE = (
    "derived from mean log(1 - gamma g) = 0 for the factors 1 - gamma g by which SGD multiplies "
    "the weights"
)


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The time averages of the flow satisfy the optimality conditions of one Lasso and
    of no other. The time averages of SGD satisfy them with SGD's own penalty.
    """
    flows, lost, gap = runs_of(ds), int(ds["lost"].values.sum()), float(ds["gap"].values.max())
    certified = claim(
        "No run diverges, and the duality gap certifies every Lasso solution",
        "duality gap",
        predicted="0 diverged runs and gap 0",
        measured=f"{lost} of {ds['lost'].size} runs diverged; the largest gap is {gap:.0e} of the "
        "loss at 0",
        tolerance="0 runs and a gap of 1e-10",
        holds=lost == 0 and gap < 1e-10,
    )
    return [
        certified,
        *_conditions(flows),
        *_solutions(ds, flows),
        *_controls(ds, flows),
        *_of_descent(runs_of(ds, discrete=True)),
    ]


def _conditions(flows: list[xr.Dataset]) -> list[Claim]:
    found = [mean_t(law_constants(run), tests=len(flows)) for run in flows]
    ratios = [bound_ratios(run)[:, solution(run) == 0].T for run in flows]
    off = [mean_t(row, tests=len(rows)) for rows in ratios for row in rows]
    return [
        claim(
            "Flow: on the support of the Lasso solution, |mean X^T r / n|_i is "
            "2 gamma h_i (delta^2 + mean L)",
            LAW,
            predicted="ratio of |mean X^T r / n|_i to gamma h_i (delta^2 + mean L), averaged over "
            "the support, equal to 2 at every gamma and delta",
            measured=f"ratio {listed(found, '.3f')} {at(flows)}",
            tolerance=f"2 within the 99% intervals over seeds, corrected for {len(flows)} tests",
            holds=all(each.contains(2) for each in found),
            main=True,
        ),
        claim(
            "Flow: off the support of the Lasso solution, |mean X^T r / n|_i is at most "
            "2 gamma h_i (delta^2 + mean L)",
            LAW,
            predicted="ratio to this bound at most 1",
            measured="the largest mean ratio of a coordinate is "
            f"{max(each.value for each in off):.3f}",
            tolerance="lower end of every coordinate's 99% interval over seeds at most 1",
            holds=all(each.low <= 1 for each in off),
        ),
    ]


def _solutions(ds: xr.Dataset, flows: list[xr.Dataset]) -> list[Claim]:
    statement = "Flow: the time average is the Lasso solution"
    gaps = np.array([distance(run, solution(run))[0] for run in flows])
    allowed = np.array([room(run, len(flows)) for run in flows])
    apart = np.array([separation(run, 2) for run in flows])
    slow = unsettled(flows)
    shares = gaps / [np.linalg.norm(solution(run) - run["truth"].values) for run in flows]
    errors = window_errors(ds)[~ds["discrete"].values]
    exponents = log_slope(ds["window"].values, errors)
    same = (
        claim(
            statement,
            STATED,
            predicted="distance 0, up to the scatter of the seeds and the influence of the start",
            measured=f"distance {listed(gaps, '.4f')}, which is {listed(shares, '.1%')} of the "
            "distance between the Lasso solution and the truth",
            tolerance=f"{listed(allowed, '.4f')}: standard errors of the mean over seeds times "
            f"Student's t at 99%, corrected for {len(flows)} tests, plus a third of the change of "
            "the mean since a quarter of the run",
            holds=np.all(gaps < allowed),
            main=True,
            reason="small coordinates settle last, so a longer run is needed",
        )
        if np.all(apart > allowed) and not slow
        else not_applicable(
            statement,
            STATED,
            slow
            or f"the time averages are known to {listed(allowed, '.4f')} only, and the Lasso "
            f"solution moves by {listed(apart, '.4f')} if the penalty doubles; use more seeds",
        )
    )
    single = (
        "Flow: the time average of a single seed approaches the Lasso solution as T^-1/2 or "
        "faster, where T is its length",
        "central limit theorem; the influence of the start falls as 1 / T",
    )
    return [
        same,
        claim(
            *single,
            predicted="exponent -1/2, and nearer to -1 while the start still has influence",
            measured=f"exponents {listed(exponents, '.2f')}; root mean square distance in the "
            f"first run {arrow(errors[0], '.3f')}",
            tolerance="every exponent below -0.4",
            holds=np.all(exponents < -0.4),
        )
        if not slow
        else not_applicable(*single, slow),
        _known_loss(ds, flows),
    ]


def _known_loss(ds: xr.Dataset, flows: list[xr.Dataset]) -> Claim:
    each, power = ds["loss"].values[:, -1], ds["gamma"].values * ds["delta"].values ** 2
    predicted, ratio = ds["predicted_loss"].values, each.mean(axis=1) / ds["predicted_loss"].values
    # The covariance over time, and for SGD also that of the squared residuals and the
    # features over the examples, are both neglected, and both of this relative size.
    sizes = predicted / ds["delta"].values ** 2
    neglected = sizes * np.where(ds["discrete"].values, 2, 1)
    error = (
        quantile(flows[0], len(ratio))
        * each.std(axis=1, ddof=1)
        / np.sqrt(each.shape[1])
        / predicted
    )
    naive = each.mean(axis=1) / (power * (np.abs(ds["truth"].values) @ ds["h"].values))
    aside = np.array([distance(run, run["predicted_lasso"].values)[0] for run in flows])
    # How far the solution moves if the penalty changes by the neglected share.
    moved = np.array([size * separation(run, 2) for size, run in zip(sizes, flows, strict=False)])
    allowed = np.array([room(run, len(flows)) for run in flows]) + moved
    statement = (
        "The mean loss, and with it the Lasso solution, is known without a run: mean L = "
        "(L(b) + gamma delta^2 S) / (1 - gamma S), up to terms of relative order gamma S"
    )
    where = (
        "derived from the stationarity of sum |beta|, without the covariance of L and "
        "<h, |beta|>; S = tr K (I - dt K)^-1, K = X diag|b| X^T / n"
    )
    slow = unsettled(flows)
    if sizes.max() > 0.25 or slow:
        return not_applicable(
            statement,
            where,
            slow
            or f"mean L / delta^2, which is predicted to be up to {sizes.max():.2f}, must be at "
            "most 0.25 for the neglected covariance to be small; use smaller step sizes",
        )
    return claim(
        statement,
        where,
        predicted="ratio of the measured to the predicted mean loss 1, up to that covariance",
        measured=f"ratio {listed(ratio, '.3f')} for the {len(ratio)} pairs (gamma, delta); to the "
        f"rougher prediction gamma delta^2 <h, |b*|> it is {naive.min():.2f} to "
        f"{naive.max():.2f}. The flows' time averages are {listed(aside, '.4f')} away from the "
        "predicted Lasso solution",
        tolerance=f"ratio within {listed(neglected + error, '.3f')} of 1, which is the predicted "
        "mean L / delta^2 for the neglected covariance (twice as much for SGD, which has another "
        "one over the examples) plus the 99% interval over seeds, corrected for "
        f"{len(ratio)} tests; distances {listed(allowed, '.4f')}, from the scatter of the "
        "seeds, the start, and the same share of the move of the solution at twice the penalty",
        holds=np.all(np.abs(ratio - 1) < neglected + error) and np.all(aside < allowed),
        main=True,
    )


def _controls(ds: xr.Dataset, flows: list[xr.Dataset]) -> list[Claim]:
    return [_other_penalties(flows), _without_loss(flows), _without_noise(ds, flows)]


def _other_penalties(flows: list[xr.Dataset]) -> Claim:
    pairs = [(run, factor) for run in flows for factor in (0, 2)]
    found = np.array([distance(run, solution(run, factor))[0] for run, factor in pairs])
    allowed = np.array([room(run, len(flows)) for run, _ in pairs])
    apart = np.array([separation(run, factor) for run, factor in pairs])
    seen = apart > 2 * allowed
    nearer = np.mean(
        [away(run, solution(run)) < away(run, solution(run, factor)) for run, factor in pairs]
    )
    statement = "half and twice the penalty are rejected where the scatter of the seeds allows it"
    if not seen.any():
        return not_applicable(
            CONTROL + statement,
            STATED,
            f"the solutions at half and twice the penalty are {listed(apart, '.4f')} away, but the "
            f"time averages are known to {listed(allowed, '.4f')} only; use more seeds or longer "
            "runs",
        )
    return control(
        statement,
        STATED,
        predicted="distances to the Lasso solutions at half and twice the penalty, "
        f"{at(flows)}: {listed(apart, '.4f')}",
        measured=f"distances {listed(found, '.4f')}; {nearer:.0%} of the single seeds are nearer "
        "to the solution at the right penalty",
        tolerance=f"every predicted distance that is above twice {listed(allowed, '.4f')}, what "
        f"the scatter and the start explain ({seen.sum()} of {len(seen)}), is measured to be above "
        "it",
        holds=np.all(found[seen] > allowed[seen]),
    )


def _without_loss(flows: list[xr.Dataset]) -> Claim:
    statement = "without the mean loss in the penalty, the ratio on the support is not 2"
    excess = [float(run["predicted_loss"] / run["delta"] ** 2) for run in flows]
    loud, most = flows[np.argmax(excess)], 2 * max(excess)
    without = mean_t(
        constants(loud, (loud["gamma"] * loud["delta"] ** 2 * loud["h"]).values, solution(loud))
    )
    if not most > 2 * half_width(without):
        return not_applicable(
            CONTROL + statement,
            LAW,
            f"the mean loss raises the ratio by {most:.3f}, which is less than the whole width of "
            f"its 99% interval over seeds, {2 * half_width(without):.3f}",
        )
    return control(
        statement,
        LAW,
        predicted=f"ratio {2 + most:.3f}",
        measured=f"ratio {without:.3f} {at([loud])}",
        tolerance="99% interval above 2",
        holds=without.low > 2,
    )


def _without_noise(ds: xr.Dataset, flows: list[xr.Dataset]) -> Claim:
    statement = (
        "without label noise, the time average is far from the Lasso solution and interpolates "
        "the data"
    )
    quiet, run = ds["quiet_beta"].values, flows[0]
    allowed, gram = room(run, 1), ds["gram"].values
    # An interpolating beta has the slopes 0. Its distance from b is at least that of
    # the slopes of b from 0, divided by the largest eigenvalue of X^T X / n.
    slope = np.linalg.norm(solution(run) @ gram - ds["pull"].values)
    least = float(slope / np.linalg.eigvalsh(gram)[-1])
    if not least > 2 * allowed:
        return not_applicable(
            CONTROL + statement,
            STATED,
            f"interpolating solutions are at least {least:.4f} away from the Lasso solution, and "
            f"the time average is known to {allowed:.4f} only",
        )
    elsewhere = np.linalg.norm(quiet - solution(run), axis=1)
    noisy, left = distance(run, solution(run))[0], np.linalg.norm(quiet @ gram - ds["pull"].values)
    left /= np.sqrt(len(quiet))
    return control(
        statement,
        STATED,
        predicted="no penalty: mean X^T r / n near 0, and a distance to the Lasso solution of at "
        f"least {least:.4f}",
        measured=f"distance to the Lasso solution at least {elsewhere.min():.4f} without label "
        f"noise and {noisy:.4f} with it; |X^T r / n| {left:.1e} without label noise and "
        f"{slope:.1e} at the Lasso solution",
        tolerance=f"every seed without label noise further away than {allowed:.4f}, what the "
        "scatter and the start explain, and its |X^T r / n| below a tenth",
        holds=elsewhere.min() > allowed and left < slope / 10,
        main=True,
    )


def _of_descent(runs: list[xr.Dataset]) -> list[Claim]:
    gammas, aims = [float(run["gamma"]) for run in runs], []
    # The predicted ratios to the flow's penalty: SGD's own penalty over the flow's on
    # the support, times the constant of SGD.
    others = []
    for run, gamma in zip(runs, gammas, strict=True):
        b, delta = solution(run), float(run["delta"])
        aims.append(descent_constant(b, run["h"], run["fourth"], step_size=gamma, delta=delta))
        own = gamma * (run["sample_h"].values @ np.abs(b))
        others.append(aims[-1] * own / (level(run).mean() * (run["h"].values @ np.abs(b))))
    values = [
        constants(run, run["gamma"].values * run["sample_h"].values, run["sample_lasso"].values)
        for run in runs
    ]
    found = [mean_t(each, tests=len(runs)) for each in values]
    widened = [
        Estimate(each.value, each.low - (aim - 2), each.high + (aim - 2))
        for each, aim in zip(found, aims, strict=True)
    ]
    return [
        claim(
            "SGD: the time average solves the Lasso whose penalty has mean_j x_ji^2 r_j^2 / 4, "
            "with each example's own squares, in place of h_i mean L",
            PER_SAMPLE,
            predicted="ratio of |mean X^T r / n|_i to this penalty on the support: "
            f"{listed(aims, '.3f')}",
            measured=f"ratio {listed(found, '.3f')} {at(runs)}",
            tolerance="predictions within the 99% intervals over seeds, corrected for "
            f"{len(runs)} tests, and widened by the prediction minus 2, for the order after it",
            holds=all(each.contains(aim) for each, aim in zip(widened, aims, strict=True)),
            main=True,
        ),
        *_flows_penalty(runs, aims, others),
    ]


def _flows_penalty(runs: list[xr.Dataset], aims: list[float], others: list[float]) -> list[Claim]:
    """SGD compared with the flow's penalty: `aims` are the constants of SGD, and
    `others` the predicted ratios to the flow's penalty, by run.
    """
    first, final = law_constants(runs[0]), law_constants(runs[-1])
    constant, (rise, error) = mean_t(first), mean_difference(first, final)
    gaps = [distance(run, solution(run))[0] for run in runs]
    nearest = distance(runs[0], runs[0]["sample_lasso"].values)[0]
    falls = (
        "SGD: as gamma falls at fixed gamma delta^2, the ratio of |mean X^T r / n|_i to the "
        "flow's penalty, which has the mean loss, falls towards 2"
    )
    other = "at the largest gamma, the flow's penalty with the mean loss is not SGD's"
    expected, wide = others[0] - others[-1], half_width(constant)
    return [
        claim(
            falls,
            LAW,
            predicted=f"ratio {arrow(others, '.3f')}, a fall by {expected:.3f}",
            measured=f"ratio {first.mean():.3f} -> {final.mean():.3f}, a fall by {rise:.3f} +- "
            f"{error:.3f}; distance to the flow's Lasso solution {arrow(gaps, '.3f')} {at(runs)}",
            tolerance="a fall of more than 2 standard errors",
            holds=rise > 2 * error,
        )
        if expected > 4.5 * error
        else not_applicable(
            falls,
            LAW,
            f"the ratio falls by {expected:.3f} according to theory, which is less than 4.5 "
            f"standard errors over seeds, {4.5 * error:.3f}",
        ),
        control(
            other,
            PER_SAMPLE,
            predicted=f"ratio to the flow's penalty {others[0]:.3f}, above {aims[0]:.3f}",
            measured=f"ratio {constant:.3f}; distance to the flow's Lasso solution {gaps[0]:.3f}, "
            f"to SGD's own {nearest:.3f}",
            tolerance=f"99% interval above {aims[0]:.3f}",
            holds=constant.low > aims[0],
        )
        if others[0] - aims[0] > 2 * wide
        else not_applicable(
            CONTROL + other,
            PER_SAMPLE,
            f"the two penalties differ by {others[0] - aims[0]:.3f} in the ratio, which is less "
            f"than the whole width of its 99% interval over seeds, {2 * wide:.3f}",
        ),
    ]
