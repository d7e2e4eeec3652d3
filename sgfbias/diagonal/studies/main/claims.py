"""The claims of the main study, computed from its dataset alone.

A diverged seed counts as infinitely wrong in medians of validation errors and is
excluded from distances.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sgfbias import Status
from sgfbias.diagonal.studies.main import LAWS, Config
from sgfbias.diagonal.studies.main.limits import early, early_sgd
from sgfbias.study import Claim, claim, control, few_lost, not_applicable, source
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import (
    arrow,
    estimate,
    finite,
    jointly_finite,
    log_slope,
    median,
)

P21, E23 = source("pesme2021"), source("even2023")
FLOWS = {"sgf": "the flow", "sgd": "SGD"}
DIVERGED = (Status.STALLED, Status.NON_FINITE)
# A comparison of distributions needs at least so many seeds.
LEAST_SEEDS = 32
FEW = f"fewer than {LEAST_SEEDS} seeds did not diverge"


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The runs converge, Theorem 1 and SGD's evolution law predict which solutions they
    select, these have smaller errors than GD's, and the error estimate of an early
    prediction of the limit covers its error.
    """
    return [
        few_lost(
            "SGD and its flow converge at this step size",
            f"{P21}, section 6",
            {"SGD": ds["sgd_status"], "the flow": ds["sgf_status"]},
            reason="the step size is too large for this problem; give a smaller one, or "
            "step_size auto",
        ),
        *_weights(ds),
        *_mirror(ds),
        *_sgd(ds, config),
        *(_below(ds, name) for name in FLOWS),
        *_laws(ds, config),
        *(early(ds, name) for name in ("corrected", "landed")),
        *early_sgd(ds),
    ]


def _weights(ds: xr.Dataset) -> list[Claim]:
    statement = (
        "Theorem 1 holds in weights coordinates: at time T the iterate minimises phi_alpha_T "
        "over all beta with the same outputs X beta, with alpha_T computed from int L"
    )
    fails, where, sander = (
        "with isotropic noise added, the iterate stays away from this minimiser as dt falls",
        f"{P21}, Theorem 1 and eq. (8)",
        f"after {source('sander2024')}",
    )
    widths, seeds = ds["dt"].values, ds.sizes["weights_seed"]
    gaps, broken = (
        np.array(jointly_finite(*ds[f"{name}_gap"].values)) for name in ("weights", "isotropic")
    )
    if (left := gaps.shape[1]) < 8:
        reason = f"only {left} of {seeds} seeds stay finite under Euler steps in the weights"
        return [
            not_applicable(statement, where, reason),
            not_applicable(CONTROL + fails, sander, reason),
        ]
    # A strong order is an order in the mean square. The worst seed may have none at the
    # given dt: close to the stability edge a single path may still change completely.
    middle, square = np.median(gaps, axis=1), np.sqrt(np.mean(np.square(gaps), axis=1))
    rows = [
        claim(
            f"{statement}, {which}",
            where,
            predicted="the relative distance to the minimiser tends to 0 with dt, at strong "
            "order 1/2 or higher",
            measured=f"relative distance {arrow(values)} at dt/gamma = 1, 1/4, 1/16, slope "
            f"{log_slope(widths, values):.2f}; {seeds - left} of {seeds} seeds diverged",
            tolerance="slope at least 0.4",
            holds=log_slope(widths, values) >= 0.4,
            main=values is square,
            reason="the distance does not fall with dt",
        )
        for which, values in (
            ("for the median seed", middle),
            ("in the mean square over the seeds", square),
        )
    ]
    if not broken.size:
        return [
            *rows,
            not_applicable(CONTROL + fails, sander, "every seed of the control diverged"),
        ]
    stays = np.median(broken, axis=1)
    slope = log_slope(widths, stays)
    return [
        *rows,
        control(
            fails,
            sander,
            predicted="the relative distance does not fall with dt",
            measured=f"median distance {arrow(stays)}, slope {slope:.2f}; at the smallest dt "
            f"{stays[-1] / middle[-1]:.0f} times the distance without isotropic noise",
            tolerance="slope below 0.2, and at least 5 times the distance without isotropic noise",
            main=True,
            holds=slope < 0.2 and stays[-1] >= 5 * middle[-1],
            reason="the distance falls with isotropic noise too, so the test of Theorem 1 shows "
            "nothing",
        ),
    ]


def _mirror(ds: xr.Dataset) -> list[Claim]:
    where = f"{P21}, Theorem 1; strong convexity of phi"
    statement = (
        "Theorem 1 holds in mirror coordinates: the iterate is within the Bregman bound of the "
        "solution that the program selects at alpha_T"
    )
    at_start = "the iterate is not within the bound of the solution at the initial alpha"
    ratio, broken = (
        finite(ds[f"sgf_distance{name}"].values / ds[f"sgf_bound{name}"].values)
        for name in ("", "_start")
    )
    if not ratio.size:
        return [
            not_applicable(words, where, "every seed diverged")
            for words in (statement, CONTROL + at_start)
        ]
    euclidean = finite(ds["sgf_distance_euclidean"])
    unsolved = max(
        float(np.nanmax(ds[f"sgf_{name}"].values))
        for name in ("feasibility", "stationarity", "duality_gap")
    )
    return [
        claim(
            statement,
            where,
            predicted="distance at most the bound, for every seed",
            measured=f"largest ratio of distance to bound {ratio.max():.2f}; Euclidean distance "
            f"{np.median(euclidean):.1e} (median), {euclidean.max():.1e} (worst)",
            tolerance="ratio at most 1 (+1e-6)",
            holds=(ratio <= 1 + 1e-6).all(),
            main=True,
            reason="some iterate is further from the predicted solution than its residual allows",
        ),
        control(
            at_start,
            where,
            predicted="distance above the bound",
            measured=f"median ratio of distance to bound {np.median(broken):.1f}, above 1 for "
            f"{np.mean(broken > 1):.0%} of the seeds",
            tolerance="ratio above 1 for more than half of the seeds",
            holds=np.mean(broken > 1) > 0.5,
            must_hold=False,
            reason="the runs are too short, or the noise is too weak, for the bound to "
            "distinguish the two solutions",
        ),
        claim(
            "The program is solved for every seed: its solution is feasible and stationary, and "
            "its duality gap is 0",
            "KKT conditions",
            predicted="all three errors are 0",
            measured=f"largest relative error {unsolved:.1e}",
            tolerance="at most 1e-9",
            holds=unsolved <= 1e-9,
            reason="the dual solver did not converge for some seed",
        ),
    ]


def _sgd(ds: xr.Dataset, config: Config) -> list[Claim]:
    statement = (
        "SGD's own evolution law holds: the iterate minimises D_phi(., beta_0) over all beta "
        "with the same outputs, with the alpha_K and the offset that its steps have left"
    )
    without = "without the offset, the iterate is not the minimiser"
    gap, broken = finite(ds["sgd_gap"]), finite(ds["sgd_gap_no_offset"])
    if not gap.size:
        return [
            not_applicable(words, E23, "every SGD seed diverged")
            for words in (statement, CONTROL + without)
        ]
    return [
        claim(
            statement,
            E23,
            predicted="relative distance to the minimiser 0",
            measured=f"relative distance {np.median(gap):.1e} (median), {gap.max():.1e} (worst)",
            tolerance="at most 1e-8",
            holds=gap.max() <= 1e-8,
            main=True,
            reason="rounding errors are large"
            if config.own_data
            else "rounding errors are large, or the evolution law is wrong",
        ),
        control(
            without,
            E23,
            predicted="relative distance above 0",
            measured=f"median relative distance {np.median(broken):.1e}",
            tolerance="at least 1e4 times the distance with the offset",
            holds=np.median(broken) >= 1e4 * np.median(gap),
            reason="the offset makes no difference here, so the test shows nothing",
        ),
        *(
            _nearer(ds, config, law, where)
            for law, where in (("mean_loss", "Theorem 1"), ("per_sample", "appendix E.1"))
        ),
    ]


def _nearer(ds: xr.Dataset, config: Config, law: str, where: str) -> Claim:
    """The claim that a law predicts the selected solution more closely than gradient
    flow does. To first order in gamma, SGD follows the per-sample law. It follows the
    mean-loss law, that of the flow, only on average over the features, so for this law
    the claim informs.
    """
    ratio = median(finite(ds["sgd_distance_gradient_flow"]) / finite(ds[f"sgd_distance_{law}"]))
    return claim(
        f"The {LAWS[law]} evolution law of alpha, applied to SGD's own path, predicts SGD's "
        "selected solution more closely than gradient flow does",
        f"{P21}, {where}",
        predicted="distance to gradient flow's prediction over distance to this one above 1"
        + (", of order gamma^(-1/2)" if law == "per_sample" else ""),
        measured=f"median {ratio:.1f}",
        tolerance="interval above 1, where both predictions are equally close",
        holds=ratio.low > 1,
        must_hold=law == "per_sample",
        reason="SGD shrinks its initialisation too little here for the evolution law to matter"
        + ("" if config.own_data else ", or the law is wrong")
        if law == "per_sample"
        else "on this problem the noise of SGD differs too much from feature to feature for a "
        "law that holds only on average over the features",
    )


def _below(ds: xr.Dataset, name: str) -> Claim:
    statement, where = (
        f"The median final validation error of {FLOWS[name]} is below GD's",
        f"{P21}, figures 1 to 3",
    )
    if "gd_validation_error" not in ds:
        return not_applicable(
            statement, where, "the data have no beta_star, so there is no validation error"
        )
    if "beta_star" not in ds or np.count_nonzero(ds["beta_star"].values) > len(ds["y"]) / 2:
        return not_applicable(
            statement,
            where,
            "the truth is not sparse, and the theorem promises a sparser solution, not a better "
            "one",
        )
    gd = float(ds["gd_validation_error"].values[-1])
    error = median(
        np.where(
            np.isin(ds[f"{name}_status"], DIVERGED),
            np.inf,
            ds[f"{name}_validation_error"].values[:, -1],
        )
    )
    return claim(
        statement,
        where,
        predicted=f"below GD's {gd:.2e}",
        measured=f"median {error:.2e}",
        tolerance="interval below GD's error",
        holds=error.high < gd,
        main=name == "sgd",
        reason="the error is not lower at this alpha, step size and length: the noise is too "
        "weak, or the run is too short",
    )


def _laws(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Comparisons of SGD with both flows as gamma falls. To first order in gamma, the
    per-sample flow shrinks log alpha as SGD does. The mean-loss flow shrinks it as if
    all examples had the same squared norm, so on average over the features it agrees
    with SGD only if the norms are uncorrelated with the loss integrals of the examples.
    The spread over the seeds is not compared: it is of higher order in gamma than what
    the flows approximate.
    """
    shrink = {
        name: (np.log(config.alpha) - ds[f"law_{name}_log_alpha"].values) for name in ("sgd", *LAWS)
    }
    mean = {name: values.mean(axis=2) for name, values in shrink.items()}
    # The mean-loss law, averaged over the features, applied to SGD's own path.
    gammas = float(ds.attrs["step_size"]) * ds["law_step"].values
    on_path = (
        2 * gammas[:, None] * ds["law_sgd_loss_integral"].values * np.square(ds["X"].values).mean()
    )
    law, own = finite(on_path[1]), finite(mean["sgd"][1])
    # Without seeds that converged the claims do not apply, and nothing is expected.
    expected = float(np.median(law) / np.median(own) - 1) if law.size and own.size else 0.0
    equally = "the mean of log alpha over the features equally"
    rows = [
        _alike(
            "As gamma falls, the mean-loss flow shrinks the mean of log alpha over the features as "
            "the mean-loss law applied to SGD's own path says",
            on_path,
            mean["mean_loss"],
        ),
        _alike(
            f"As gamma falls, SGD and the mean-loss flow shrink {equally}",
            mean["sgd"],
            mean["mean_loss"],
            predicted=f"the relative difference of the medians tends to {expected:+.1%}, and to 0 "
            "only if the norms of the examples are uncorrelated with their loss integrals",
            must_hold=False,
        ),
        _alike(
            f"As gamma falls, SGD and the per-sample flow shrink {equally}",
            mean["sgd"],
            mean["per_sample"],
        ),
    ]
    if "law_sgd_validation_error" in ds:
        errors = {name: ds[f"law_{name}_validation_error"].values for name in shrink}
        rows += [
            _alike(
                f"As gamma falls, SGD and the {word} flow end with the same median validation "
                "error",
                errors["sgd"],
                errors[law],
                must_hold=False,
            )
            for law, word in LAWS.items()
        ]
    return [*rows, _by_feature({name: values[1] for name, values in shrink.items()})]


def _alike(
    statement: str,
    reference: np.ndarray,
    flow: np.ndarray,
    *,
    predicted: str = "",
    must_hold: bool = True,
) -> Claim:
    """The claim that the medians of two samples agree to first order in gamma: their
    relative difference, extrapolated from gamma and gamma/4 to gamma = 0, is 0.

    Medians are compared and not means, since close to the stability edge a few seeds
    that nearly diverge dominate the mean.

    A difference `c gamma + q gamma^2` is extrapolated to `-q gamma^2 / 4`. This is at
    most a quarter of the difference at gamma, unless c and q have opposite signs.

    **Arguments:**

    - `reference`, `flow`: (2, seeds), the samples at gamma and at gamma/4.
    - `predicted`: what is predicted; by default that the difference tends to 0.
    """
    where = f"{P21}, section 2.2 and appendix E.1; weak order 1"
    samples = [finite(row) for pair in zip(reference, flow, strict=True) for row in pair]
    if min(sample.size for sample in samples) < LEAST_SEEDS:
        return not_applicable(statement, where, FEW, must_hold=must_hold)

    def off(one: np.ndarray, other: np.ndarray) -> Any:
        return np.median(other, axis=-1) / np.median(one, axis=-1) - 1

    def extrapolated(*four: np.ndarray) -> Any:
        return (4 * off(*four[2:]) - off(*four[:2])) / 3

    far, near, limit = off(*samples[:2]), off(*samples[2:]), estimate(extrapolated, *samples)
    lost = reference.size + flow.size - sum(sample.size for sample in samples)
    return claim(
        statement,
        where,
        predicted=predicted or "the relative difference of the medians tends to 0 with gamma",
        measured=f"relative difference of the medians {far:+.1%} at gamma, {near:+.1%} at gamma/4, "
        f"extrapolated to gamma = 0 {limit:+.1%}"
        + (f"; {lost} diverged seeds are left out" if lost else ""),
        tolerance="the interval of the extrapolation, widened by a quarter of the difference at "
        "gamma for the term of second order, contains 0",
        holds=limit.low - abs(far) / 4 <= 0 <= limit.high + abs(far) / 4,
        must_hold=must_hold,
        reason="the difference does not vanish with the step size",
    )


def _by_feature(shrink: dict[str, np.ndarray]) -> Claim:
    """The claim that the per-sample flow shrinks log alpha of each feature as SGD does.

    **Arguments:** `shrink`: by algorithm, (seeds, features), the decrease of log alpha
    at step size gamma/4.
    """
    statement = (
        "The per-sample flow shrinks log alpha as SGD does for every single feature, the "
        "mean-loss flow only on average over the features"
    )
    where = f"{P21}, appendix E.1"
    if min(np.isfinite(values).all(axis=1).sum() for values in shrink.values()) < LEAST_SEEDS:
        return not_applicable(statement, where, FEW, must_hold=False)
    means = {name: np.nanmean(values, axis=0) for name, values in shrink.items()}
    off = {law: float(np.median(np.abs(np.log(means[law] / means["sgd"])))) for law in LAWS}
    return claim(
        statement,
        where,
        predicted="for every feature E log(alpha/alpha_T) of SGD and of the per-sample flow "
        "agree to first order in gamma",
        measured="at gamma/4, |log ratio| to SGD's value, median over the features: per-sample "
        f"flow {off['per_sample']:.3f}, mean-loss flow {off['mean_loss']:.3f}",
        tolerance="per-sample flow at most 2/3 of mean-loss flow",
        holds=off["per_sample"] <= 2 / 3 * off["mean_loss"],
        must_hold=False,
        reason="the difference of second order in gamma, or the sampling error, is too large to "
        "see the agreement at this step size",
    )
