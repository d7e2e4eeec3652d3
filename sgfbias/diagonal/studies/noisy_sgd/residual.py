"""The claims about the theorem's residual: isotropic noise breaks the theorem as much
as predicted, and SGD's own noise keeps it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.noisy_sgd import Config
from sgfbias.diagonal.studies.noisy_sgd.shared import P21, SSD, SURE, plus_minus
from sgfbias.diagonal.theory.isotropic import mean_residual_square
from sgfbias.study import Claim, claim, control
from sgfbias.study.statistics import arrow, log_slope, mean_and_error

ITO = "Itô's isometry for 4 sigma sqrt(gamma) int sqrt(L) dB', projected outside the row space of X"
KEEPS = {
    "mean-loss": ("SGD's own noise (mean-loss)", P21),
    "label": ("Label noise", f"{P21}, section 5.3"),
}


def excess(ds: xr.Dataset, config: Config, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The relative difference between the mean squared residual and `factor` times its
    expected value, and its standard error, each (sigmas above 0,).
    """
    sigma, integral = ds["sigma"].values[1:, None], ds["loss_integral"].values[1:]
    expected = factor * mean_residual_square(
        int(ds.attrs["outside"]), config.step_size, sigma, integral
    )
    off = (ds["residual_square"].values[1:] - expected) / np.nanmean(
        expected, axis=1, keepdims=True
    )
    means, errors = np.transpose([mean_and_error(row) for row in off])
    return means, errors


def extrapolated(difference: np.ndarray) -> tuple[float, float, float]:
    """The mean and its standard error at the smallest dt, and the change of the mean
    from 4 times that dt, for values (dt, seed).

    At strong order 1/2 the error that remains at the smallest dt is at most the change.
    """
    return *mean_and_error(difference[-1]), mean_and_error(difference[-1] - difference[-2])[0]


def in_mirror_coordinates(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The residual has the predicted mean square, with these constants only."""
    off, errors = excess(ds, config)
    size, still = (
        np.sqrt(np.nanmean(ds["residual_square"].values, axis=1)),
        np.nanmax(ds["residual_square"].values[0]) ** 0.5,
    )
    factors = {
        "4 in place of 16 (one sign of the weights only)": 0.25,
        "d in place of d - n (noise in the row space counted)": config.d / int(ds.attrs["outside"]),
    }
    scores = {
        name: np.min(np.abs(np.divide(*excess(ds, config, factor))))
        for name, factor in factors.items()
    }
    return [
        claim(
            "The theorem's residual, the part of arcsinh(beta / 2 alpha_inf^2) outside the row "
            "space of X, has the mean square that theory predicts at every sigma",
            ITO,
            predicted="E |residual|^2 = 16 (d - n) gamma sigma^2 E int L, exactly; 0 at sigma = 0",
            measured=f"root mean square residual {size[1]:.3f} to {size[-1]:.2f}; ratio of the "
            f"mean square to the prediction, by sigma: {plus_minus(1 + off, errors)}; residual "
            f"at sigma = 0 at most {still:.0e}",
            tolerance=f"{SURE} standard errors of the paired difference at every sigma above 0; "
            "1e-9 at sigma = 0, for rounding",
            holds=np.all(np.abs(off) < SURE * errors) and still < 1e-9,
            main=True,
            reason="the noise has another strength than stated, or another part of it is outside "
            "the row space",
        ),
        control(
            "other constants in the same formula are rejected",
            ITO,
            predicted="differences far above the statistical error",
            measured="; ".join(
                f"{name}: differs by at least {score:.0f} standard errors"
                for name, score in scores.items()
            ),
            tolerance="more than 5 standard errors at every sigma",
            holds=min(scores.values()) > 5,
            reason="there are too few seeds to distinguish the constants",
        ),
    ]


class ByWidth(NamedTuple):
    """Medians over the seeds at every dt, their exponent in dt, and both as text."""

    medians: np.ndarray
    slope: float
    words: str


def by_width(ds: xr.Dataset, name: str, noise: str = "isotropic") -> ByWidth:
    """The dependence on dt of a quantity of the runs in weights coordinates.

    **Arguments:**

    - `name`: the variable without its prefix `weights_`.
    - `noise`: the noise model, as in the dataset's axis `noise`.
    """
    medians = np.nanmedian(ds[f"weights_{name}"].sel(noise=noise).values, axis=1)
    slope = log_slope(ds["dt"].values, medians)
    return ByWidth(
        medians, slope, f"median {arrow(medians)} at dt/gamma = 1, 1/4, 1/16; exponent {slope:.2f}"
    )


def _stays(
    statement: str,
    predicted: str,
    found: ByWidth,
    other: float,
    words: str,
    *,
    main: bool = False,
) -> Claim:
    """The control that a quantity does not fall with dt and ends far above `other`."""
    return control(
        statement,
        SSD,
        predicted=predicted,
        measured=f"{found.words}; at the smallest dt it is {found.medians[-1] / other:.0f} times "
        f"{words}",
        tolerance="exponent below 0.2, and more than 10 times",
        holds=found.slope < 0.2 and found.medians[-1] > 10 * other,
        main=main,
    )


def in_weights_coordinates(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The residual is the same where it does not hold by construction."""
    noisy, gamma, sigma = ds.sel(noise="isotropic"), config.step_size, config.weights_sigma
    integral, law = noisy["weights_loss_integral"].values, noisy["weights_shrinkage_law"].values
    expected = mean_residual_square(int(ds.attrs["outside"]), gamma, sigma, integral)
    square, error, left = extrapolated(
        (noisy["weights_residual_square"].values - expected) / np.nanmean(expected[-1])
    )
    shrunk, shrunk_error, shrunk_left = extrapolated(noisy["weights_shrinkage"].values - law)
    added = 2 * gamma * sigma**2 * np.nanmean(integral[-1])
    kept, stays = (
        {noise: by_width(ds, "residual_square", noise) for noise in KEEPS},
        by_width(ds, "residual_square"),
    )
    gap, largest = by_width(ds, "gap"), max(each.medians[-1] for each in kept.values())
    return [
        claim(
            "The residual has the same mean square in weights coordinates, where this does not "
            f"hold by construction, with alpha_inf from int L alone; sigma = {sigma:g}",
            ITO,
            predicted="ratio of the mean square to the prediction -> 1 as dt -> 0",
            measured=f"ratio {1 + square:.3f} +- {error:.3f} at dt = gamma/16, a change of "
            f"{left:+.4f} from dt = gamma/4",
            tolerance=f"{SURE} standard errors plus the change from dt = gamma/4, together less "
            "than a quarter of the prediction",
            holds=abs(square) < SURE * error + abs(left) < 0.25,
            reason="the residual does not come from the isotropic noise, or the step widths are "
            "too large or the seeds too few to tell",
        ),
        *(
            claim(
                f"{name} keeps the theorem: the residual in weights coordinates is only the error "
                "of Euler's scheme",
                where,
                predicted="squared residual -> 0 with dt, of order 1 or more",
                measured=kept[noise].words,
                tolerance="exponent at least 0.8",
                holds=kept[noise].slope >= 0.8,
                main=noise == "mean-loss",
                reason="this noise leaves the span of the rows",
            )
            for noise, (name, where) in KEEPS.items()
        ),
        _stays(
            "with isotropic noise, the same residual stays as dt falls",
            "squared residual with exponent 0 in dt",
            stays,
            largest,
            "the largest of the other noises",
            main=True,
        ),
        claim(
            "Isotropic noise shrinks alpha on top of SGD's own noise: in weights coordinates, "
            "log alpha falls by 2 gamma (h + sigma^2) int L",
            SSD,
            predicted=f"mean shrinkage of log alpha {np.nanmean(law[-1]):.4f}, of which "
            f"{added:.4f} by the isotropic noise",
            measured=f"differs by {shrunk:+.1e} +- {shrunk_error:.0e} at dt = gamma/16, a change "
            f"of {shrunk_left:+.1e} from dt = gamma/4",
            tolerance=f"{SURE} standard errors plus the change from dt = gamma/4, together less "
            "than half of the isotropic part",
            holds=abs(shrunk) < SURE * shrunk_error + abs(shrunk_left) < added / 2,
            reason="the isotropic noise shrinks alpha by another amount",
        ),
        claim(
            "With the offset that the noise of the path leaves, the program predicts the iterate "
            "on its fibre, in weights coordinates",
            f"{SSD}: the solution minimises a Bregman divergence from a perturbed reference point",
            predicted="relative gap -> 0 with dt, of strong order 1/2 or more",
            measured=gap.words,
            tolerance="exponent at least 0.4",
            holds=gap.slope >= 0.4,
            reason="the reference point is another one",
        ),
        _stays(
            "without the offset, the program does not predict the iterate on its fibre",
            "a relative gap that stays as dt falls",
            by_width(ds, "gap_without"),
            gap.medians[-1],
            "the gap with the offset",
        ),
    ]
