"""What the study `kernel-at-start` claims."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.lazy import near_zero_fraction, norm_variance
from sgfbias.lazy.studies.kernel_at_start import BAND, MOST_STEPS, NARROW, Config
from sgfbias.study import Claim, claim, control, source
from sgfbias.study.statistics import Estimate, arrow, mean_and_error, power_law

ZOU, CHO = source("zou2018"), source("cho2009")


def joint(tests: int) -> float:
    """How many standard errors `tests` normal numbers exceed with probability 1% in
    all.
    """
    from scipy.stats import norm

    return float(norm.ppf(1 - 0.01 / (2 * tests)))


def _deviations(rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means of columns, and how many standard errors they are from `wanted`."""
    means, errors = np.transpose([mean_and_error(column) for column in rows.T])
    return means, (means - wanted) / errors


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The closed forms hold within their errors, and wrong ones do not; the kernel's
    least eigenvalue grows with the distance of opposite labels, and training is
    shorter.
    """
    return [_kernel(ds), _ungated(ds), *_norms(ds), _near_zero(ds), *_outputs(ds), *_trained(ds)]


def error_slope(ds: xr.Dataset, name: str = "error") -> tuple[Estimate, np.ndarray, np.ndarray]:
    """The exponent of the kernel's error in the width, with its interval, and the
    errors: the root mean square over the layers, as means over seeds.
    """
    rms = np.sqrt(np.mean(np.square(ds[name].values), axis=2))
    means, errors = np.transpose([mean_and_error(row) for row in rms])
    return power_law(ds["width"].values, means, errors), means, errors


def _kernel(ds: xr.Dataset) -> Claim:
    slope, means, _ = error_slope(ds)
    return claim(
        "The parts K_l/m of the kernel approach their closed forms as 1/sqrt(m)",
        f"{ZOU}; {CHO}",
        predicted="slope -1/2 of the relative error in m",
        measured=f"relative error {arrow(means)}, slope {slope:.2f}",
        tolerance="interval of the slope within 0.1 of -1/2 or containing it; 0.1 is for the order "
        "after it",
        holds=slope.low - 0.1 < -0.5 < slope.high + 0.1,
        main=True,
    )


def _ungated(ds: xr.Dataset) -> Claim:
    slope, means, _ = error_slope(ds, "ungated_error")
    return control(
        "the error stays where it is for a closed form without the gates of the units",
        CHO,
        predicted="slope 0",
        measured=f"relative error {arrow(means)}, slope {slope:.2f}",
        tolerance="slope above -0.25",
        holds=slope.value > -0.25,
        main=True,
    )


def _norms(ds: xr.Dataset) -> list[Claim]:
    layers, norms = ds["layer"].values, ds["norm"].values.astype(np.float64)
    wanted = np.asarray(norm_variance(layers.astype(np.float32), NARROW))
    limit = joint(len(layers))
    variance, off = _deviations(np.square(norms - 1), wanted)
    # Weights from N(0, 1/m) are those from N(0, 2/m) divided by sqrt(2), and the layers
    # are homogeneous.
    halved, far = _deviations(np.square(norms / 2.0**layers - 1), wanted)
    tolerance = f"within {limit:.2f} standard errors in each layer (99% for all layers)"
    return [
        claim(
            f"The variance of |x_l|^2 is (1 + 5/m)^l - 1 at m = {NARROW}",
            ZOU,
            predicted=", ".join(f"{v:.4f}" for v in wanted),
            measured=", ".join(
                f"{v:.4f} ({z:+.1f} standard errors)" for v, z in zip(variance, off, strict=True)
            ),
            tolerance=tolerance,
            holds=np.all(np.abs(off) < limit),
            main=True,
        ),
        control(
            "weights from N(0, 1/m) miss the formula in every layer",
            ZOU,
            predicted="mean squares of |x_l|^2 - 1 near (1 - 2^-l)^2",
            measured=", ".join(
                f"{v:.3f} ({z:+.0f} standard errors)" for v, z in zip(halved, far, strict=True)
            ),
            tolerance=f"above {limit:.2f} standard errors in each layer",
            holds=np.all(np.abs(far) > limit),
        ),
    ]


def _near_zero(ds: xr.Dataset) -> Claim:
    excess = ds["near_zero_excess"].values.astype(np.float64)
    limit = joint(excess.shape[1])
    means, off = _deviations(excess, np.zeros(excess.shape[1]))
    expected = float(near_zero_fraction(BAND / np.sqrt(NARROW), NARROW))
    return claim(
        "The fraction of pre-activations in [-b, b] is erf(b sqrt(m) / (2 |x|)), for the norm |x| "
        "of the layer's inputs",
        ZOU,
        predicted=f"{expected:.4f} at b = {BAND}/sqrt(m) and |x| = 1",
        measured="excess "
        + ", ".join(
            f"{v:+.5f} ({z:+.1f} standard errors)" for v, z in zip(means, off, strict=True)
        ),
        tolerance=f"within {limit:.2f} standard errors in each layer (99% for all layers)",
        holds=np.all(np.abs(off) < limit),
    )


def _outputs(ds: xr.Dataset) -> list[Claim]:
    squares = np.square(ds["output"].values.astype(np.float64))
    mean, error = mean_and_error(squares)
    off = [(mean - wanted) / error for wanted in (1 - 1 / np.pi, 1.0)]
    limit = joint(1)
    where = "the mean of max(z, 0), which a read-out of +1 and -1 cancels"
    return [
        claim(
            "The variance of the output is 1 - 1/pi",
            where,
            predicted=f"{1 - 1 / np.pi:.4f}",
            measured=f"{mean:.4f} ({off[0]:+.1f} standard errors)",
            tolerance=f"within {limit:.2f} standard errors (99%)",
            holds=abs(off[0]) < limit,
        ),
        control(
            "the same test refuses the variance 1, that of a read-out of random signs",
            where,
            predicted="more standard errors from 1",
            measured=f"{off[1]:+.1f} standard errors",
            tolerance=f"more than {limit:.2f}",
            holds=abs(off[1]) > limit,
            reason="there are too few draws",
        ),
    ]


def _trained(ds: xr.Dataset) -> list[Claim]:
    least, steps = ds["least_eigenvalue"].values, ds["steps"].values
    lost = int(np.isnan(steps).sum())
    typical = np.exp(np.mean(np.log(np.where(np.isnan(steps), MOST_STEPS, steps)), axis=1))
    return [
        claim(
            "The least eigenvalue of the kernel grows with the distance of opposite labels",
            ZOU,
            predicted="0 at distance 0, as two equal rows are singular; it grows with the distance",
            measured=f"means {arrow(least.mean(axis=1))} at distances "
            f"{arrow(ds['distance'].values)}",
            tolerance="an increase from each distance to the next, in every data set",
            holds=np.all(np.diff(least, axis=0) > 0),
        ),
        claim(
            "It predicts the order of training times: gradient descent takes fewer steps where it "
            "is larger",
            ZOU,
            predicted="the opposite order",
            measured=f"steps (geometric means) {arrow(typical)}; {lost} of {steps.size} runs do "
            f"not reach the loss in {MOST_STEPS:,} steps",
            tolerance="fewer steps at each distance than at the one before, and no run lost",
            holds=lost == 0 and np.all(np.diff(typical) < 0),
            main=True,
        ),
    ]
