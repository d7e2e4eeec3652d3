"""The claims of the study are judged from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.noise_anatomy import LABELS, OUTSIDE, Config
from sgfbias.study import Claim, claim, control, source
from sgfbias.study.statistics import arrow, log_slope, mean_and_error, median

P21 = source("pesme2021")
THEOREM = f"{P21}, theorem 1"
SANDER = f"after {source('sander2024')}"
SOURCES = {"label": f"{P21}, section 5.3", OUTSIDE: SANDER, "per-sample": f"{P21}, appendix E.1"}
# Relative distance that counts as 0 where it is 0 by construction.
ROUNDING = 1e-8
INSIDE = tuple(name for name in LABELS if name != OUTSIDE)


def by_noise(ds: xr.Dataset, variable: str) -> dict[str, np.ndarray]:
    """The values of a variable by the name of the noise model."""
    return dict(zip(map(str, ds["noise"].values), ds[variable].values, strict=True))


def ladders(ds: xr.Dataset) -> dict[str, tuple[np.ndarray, float, str]]:
    """For every noise model, the median gaps at every width, their exponent in dt, and
    both as text. Only seeds that are finite at every width count.
    """
    found = {}
    for name, gaps in by_noise(ds, "gap").items():
        kept = gaps[:, np.isfinite(gaps).all(axis=0)]
        middle = np.median(kept, axis=1) if kept.size else np.full(len(gaps), np.nan)
        slope = log_slope(ds["dt"], middle)
        found[name] = (
            middle,
            slope,
            f"median gap {arrow(middle)} at dt/gamma = 1, 1/4, 1/16; exponent {slope:.2f}; "
            f"{kept.shape[1]} seeds",
        )
    return found


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Noise in the span of the rows keeps Theorem 1, and isotropic noise does not.
    Under every noise log alpha follows its evolution equation. Scale and support of
    the noise matter.
    """
    return [
        *_theorem(ds),
        *(_law(ds, config, name) for name in LABELS),
        _wrong_law(ds),
        _noise_shrinks(ds, config),
        *_ends(ds, config),
    ]


def _theorem(ds: xr.Dataset) -> list[Claim]:
    found = ladders(ds)
    gap, slope, words = found[OUTSIDE]
    others = max(found[name][0][-1] for name in INSIDE)
    return [
        *(
            claim(
                f"Under {LABELS[name]}, the iterate minimises phi_alpha_T on its fibre, where "
                "alpha_T = sqrt(w_+ w_-), in weights coordinates",
                SOURCES.get(name, THEOREM),
                predicted="relative gap -> 0 with dt, of strong order 1/2 or more",
                measured=found[name][2],
                tolerance="exponent of the gap in dt at least 0.4",
                holds=found[name][1] >= 0.4,
                main=name == "minibatch",
                reason="this noise leaves the span of the rows",
            )
            for name in INSIDE
        ),
        control(
            "noise with another support, isotropic noise, fails the same test",
            SANDER,
            predicted="a gap that stays as dt falls",
            measured=f"{words}; at the smallest dt it is {gap[-1] / others:.0f} times the largest "
            "gap of the other noises",
            tolerance="exponent below 0.2, and more than 3 times the other gaps",
            holds=slope < 0.2 and gap[-1] > 3 * others,
            main=True,
        ),
    ]


def _law(ds: xr.Dataset, config: Config, name: str) -> Claim:
    weights, law = (
        by_noise(ds, variable)[name] for variable in ("weights_shrinkage", "law_shrinkage")
    )
    off, error = mean_and_error(weights - law)
    scale = float(np.mean(law[np.isfinite(weights)]))
    # In weights coordinates, an Euler step with the relative change a of a weight
    # multiplies w_+ w_- by 1 - a^2. The part of a^2 that comes from the drift is the
    # whole shrinkage of the runs without noise. The part of the noise differs from the
    # equation by a term of order dt relative to it, and dt / gamma = 1/16.
    drift = 0.0 if name == "none" else float(np.nanmean(by_noise(ds, "weights_shrinkage")["none"]))
    return claim(
        f"Under {LABELS[name]}, log alpha follows its evolution equation: it shrinks in weights "
        "coordinates as the equation says on the same path",
        SOURCES.get(name, f"{P21}, eq. (8)"),
        predicted=f"mean shrinkage of log alpha {scale:.4f}"
        + ("" if name == "none" else f", and {drift:.1e} by Euler steps of the drift alone"),
        measured=f"differs from the equation by {off:+.1e} (standard error {error:.1e})",
        tolerance="dt = gamma / 16 for the error of the Euler steps"
        if name == "none"
        else "less the shrinkage without noise: sum of 1/16 of the shrinkage, since dt / gamma is "
        "1/16, and of 3 standard errors",
        holds=abs(off - drift)
        <= scale / 16 + 3 * error + (config.step_size / 16 if name == "none" else 0),
        main=name == "minibatch",
    )


def _wrong_law(ds: xr.Dataset) -> Claim:
    off = abs(
        np.nanmean(by_noise(ds, "weights_shrinkage")["minibatch"])
        / np.mean(by_noise(ds, "law_shrinkage")["minibatch-4"])
        - 1
    )
    return control(
        "the evolution equation of another scale does not fit: log alpha under batches of 1 "
        "does not follow the equation for batches of 4",
        f"{P21}, eq. (8)",
        predicted="shrinkages that differ by the ratio of the scales",
        measured=f"the shrinkages differ by {off:.0%}",
        tolerance="more than 50%",
        holds=off > 0.5,
    )


def _noise_shrinks(ds: xr.Dataset, config: Config) -> Claim:
    rows = {name: mean_and_error(row) for name, row in by_noise(ds, "weights_shrinkage").items()}
    still = abs(rows["none"][0])
    least = min(
        shrinkage - 3 * error for name, (shrinkage, error) in rows.items() if name != "none"
    )
    return claim(
        "Every noise lowers the effective initialisation sqrt(w_+ w_-), and without noise it "
        "stays the same: short runs in weights coordinates",
        THEOREM,
        predicted=f"effective alpha {config.alpha:g} without noise, as dt -> 0, and less with any "
        "noise",
        measured="effective alpha: "
        + ", ".join(
            f"{LABELS[name]} {config.alpha * np.exp(-shrinkage):.4f}"
            for name, (shrinkage, _) in rows.items()
        ),
        tolerance="without noise, log alpha within gamma / 16 of its start; with noise, a "
        "shrinkage that is 3 standard errors above twice the shrinkage without noise",
        holds=still < config.step_size / 16 and least > 2 * still,
    )


def _ends(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims on the ends of the long runs."""
    log_alpha, off_fibre = by_noise(ds, "log_alpha"), by_noise(ds, "fibre_gap")
    shrinkage = {
        name: float(np.log(config.alpha) - np.nanmean(values)) for name, values in log_alpha.items()
    }
    alpha = {name: float(np.exp(np.nanmean(values))) for name, values in log_alpha.items()}
    error = {name: median(values) for name, values in by_noise(ds, "landed_error").items()}
    correction = (config.n - 4) / (4 * (config.n - 1))
    share = shrinkage["minibatch-4"] / shrinkage["minibatch"]
    shapes = [alpha[name] for name in ("mean-loss", "per-sample", "minibatch")]
    features = {
        name: np.log(config.alpha) - np.nanmean(log_alpha[name], axis=0)
        for name in ("mean-loss", "per-sample")
    }
    outside = float(np.nanmedian(off_fibre[OUTSIDE]))
    inside = float(max(np.nanmax(off_fibre[name]) for name in INSIDE))
    differ = float(np.max(np.abs(features["mean-loss"] / features["per-sample"] - 1)))

    def below(statement: str, where: str, lower: str, upper: str) -> Claim:
        return claim(
            statement,
            f"{P21}, section {where}",
            predicted="median validation error of the selected solution lower under "
            f"{LABELS[lower]} than under {LABELS[upper]}",
            measured=f"median {error[lower]:.2e} and {error[upper]:.2e}",
            tolerance="99% intervals of the two medians that do not overlap",
            holds=error[lower].high < error[upper].low,
            must_hold=False,
            reason="alpha shrinks unevenly over the features, most where the residual is large; "
            "the theorem promises a sparser solution where it shrinks evenly, and not a better one",
        )

    return [
        claim(
            "At the end of the long runs, the effective alpha is in the order of the noises' "
            "scales: the larger the scale, the smaller is alpha",
            THEOREM,
            predicted="label noise for a while < mean-loss noise; batches of 1 < batches of 4",
            measured="geometric means: "
            + ", ".join(f"{LABELS[name]} {value:.4f}" for name, value in alpha.items())
            + " (with no noise by construction)",
            tolerance="this order",
            holds=alpha["label"] < alpha["mean-loss"] and alpha["minibatch"] < alpha["minibatch-4"],
            main=True,
        ),
        below(
            "Noise helps: the selected solution has a lower error with mean-loss noise than "
            "without noise",
            "3",
            "mean-loss",
            "none",
        ),
        below(
            "Scale matters: the selected solution has a lower error with batches of 1 than with "
            "batches of 4",
            "2.2",
            "minibatch",
            "minibatch-4",
        ),
        below(
            "Scale matters: the selected solution has a lower error with label noise for a while "
            "than with mean-loss noise alone",
            "5.3",
            "label",
            "mean-loss",
        ),
        claim(
            "Scale enters through c_b: log alpha shrinks under batches of 4 without replacement "
            "c_4 times as much as under batches of 1",
            "finite-population correction, c_b = (n - b) / (b (n - 1))",
            predicted=f"ratio of the shrinkages {correction:.3f} as gamma -> 0",
            measured=f"ratio {share:.3f}",
            tolerance="25% of the prediction, because the loss integrals differ",
            holds=abs(share / correction - 1) < 0.25,
            must_hold=False,
        ),
        claim(
            "Shape matters for single features, but little on average: mean-loss, per-sample and "
            "exact noise of batch 1 lead to nearly the same effective alpha",
            f"{P21}, appendix E.1",
            predicted="the same effective alpha on average over features",
            measured=f"geometric means within a factor {max(shapes) / min(shapes):.3f}; the "
            "shrinkage of a single feature differs by up to "
            f"{differ:.0%} between mean-loss and per-sample noise",
            tolerance="factor below 1.25, and some feature that differs by more than 10%",
            holds=max(shapes) / min(shapes) < 1.25 and differ > 0.1,
            must_hold=False,
        ),
        control(
            "support matters: at the end of the long runs, the iterate under isotropic noise is "
            "away from the minimiser on its fibre, and under the other noises it is there",
            SANDER,
            predicted="relative gap above 0 under isotropic noise; 0 under the others, by "
            "construction of mirror coordinates",
            measured=f"median gap {outside:.1e} under isotropic noise; at most {inside:.1e} under "
            "the others",
            tolerance="median gap under isotropic noise above 1e-3, every other one below "
            f"{ROUNDING:g}, which allows for rounding and for the error of the program's solver",
            holds=outside > 1e-3 and inside < ROUNDING,
        ),
    ]
