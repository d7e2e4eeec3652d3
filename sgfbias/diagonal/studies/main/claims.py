"""The claims of the main study, computed from its dataset alone. Those here are about
errors of the selected solutions.

A diverged seed counts as infinitely wrong in medians of validation errors and is
excluded from distances.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.main import LAWS, Config
from sgfbias.diagonal.studies.main.limits import early, early_sgd
from sgfbias.diagonal.studies.main.theorem import (
    DIVERGED,
    FEW,
    FLOWS,
    LEAST_SEEDS,
    P21,
    in_mirror_coordinates,
    in_weights_coordinates,
    of_sgd,
)
from sgfbias.study import Claim, claim, few_lost, not_applicable
from sgfbias.study.statistics import estimate, finite, median


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
        *in_weights_coordinates(ds),
        *in_mirror_coordinates(ds),
        *of_sgd(ds, config),
        *(_below(ds, name) for name in FLOWS),
        *_laws(ds, config),
        *(early(ds, name) for name in ("corrected", "landed")),
        *early_sgd(ds),
    ]


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
