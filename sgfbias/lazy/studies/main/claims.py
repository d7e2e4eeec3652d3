"""What the study `lazy` claims."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.lazy.scaling import exponent
from sgfbias.lazy.studies.main import BATCH, MOST_STEPS, Config
from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.statistics import Estimate, arrow, span

ZOU, CHIZAT = source("zou2018"), source("chizat2019")
# From this width on, or from the largest if all are smaller, a network is called wide.
WIDE = 256
# The rate of the paper's bound is looked for if the largest width is at least this.
VERY_WIDE = 2048


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Networks stay near their start, by what the kernel at the start predicts, for
    every loss; with outputs of the scale 1/sqrt(m) they do not.
    """
    return [
        _reached(ds, config),
        _exponents(ds),
        _linearised(ds),
        _losses(ds),
        _flips(ds),
        _rate_of_flips(ds),
        _drift(ds),
        _identity(ds),
        *_floors(ds),
        _sgd(ds),
        *_mean_field(ds),
    ]


def wide(ds: xr.Dataset) -> np.ndarray:
    """Which widths are wide, (widths,)."""
    width = ds["width"].values
    return width >= min(WIDE, width[-1])


def whole(rows: np.ndarray) -> np.ndarray:
    """Distances of all parameters from those of the layers, along the last axis."""
    return np.sqrt(np.sum(np.square(rows), axis=-1))


def names(ds: xr.Dataset) -> list[str]:
    """The names of the losses."""
    return [str(name) for name in ds["loss_name"].values]


def each(ds: xr.Dataset, words: list[str]) -> str:
    """One text for each loss, in a row."""
    return "; ".join(f"{name} {word}" for name, word in zip(names(ds), words, strict=True))


def exponents(ds: xr.Dataset, rows: np.ndarray) -> list[Estimate]:
    """The exponents of rows (losses, widths, seeds) in the width."""
    return [exponent(ds["width"].values.astype(float), row) for row in rows]


def _reached(ds: xr.Dataset, config: Config) -> Claim:
    runs = [
        ds["steps"].values[:, wide(ds)],
        ds["sgd_distance"].values[wide(ds)],
        ds["mean_field_distance"].values[wide(ds)],
    ]
    lost = sum(int(np.isnan(rows).sum()) for rows in runs)
    return claim(
        "Every run of a wide network reaches the loss",
        ZOU,
        predicted="no run is lost",
        measured=f"{lost} of {sum(rows.size for rows in runs)} runs do not reach {config.loss:g} "
        f"in {MOST_STEPS:,} steps; gradient descent takes {span(ds['steps'].values, '.0f')} steps",
        tolerance="none",
        holds=lost == 0,
    )


def _exponents(ds: xr.Dataset) -> Claim:
    found = exponents(ds, whole(ds["distance"].values))
    return claim(
        "The distance from the start falls with the width, about as its root, for every loss",
        ZOU,
        predicted="slope -1/2 as the width grows; the kernel divided by the width still grows at "
        "these widths, which makes it flatter",
        measured=each(ds, [f"{e:.2f}" for e in found]),
        tolerance="interval of every slope between -1 and 0, and part of it in [-0.6, -0.35]",
        holds=all(-1 < e.low < -0.35 and -0.6 < e.high < 0 for e in found),
        main=True,
    )


def ratios(ds: xr.Dataset) -> np.ndarray:
    """The distances over those of the linearised networks, (losses, widths, seeds)."""
    return whole(ds["distance"].values) / whole(ds["predicted"].values)


def _linearised(ds: xr.Dataset) -> Claim:
    ratio = ratios(ds)[:, -1]
    return claim(
        "At the largest width the distance is that of the linearised network, sqrt(a^T K a), for "
        "every loss",
        ZOU,
        predicted="a ratio of 1 as the width grows",
        measured=each(ds, [span(row, ".3f") for row in ratio]),
        tolerance="within 10% for every network",
        holds=np.all(np.abs(ratio - 1) < 0.1),
        main=True,
    )


def _losses(ds: xr.Dataset) -> Claim:
    measured, predicted = (whole(ds[name].values)[:, -1] for name in ("distance", "predicted"))
    ratio, wanted = measured / measured[0], predicted / predicted[0]
    return claim(
        "How the distances of the losses differ is what their kernel training says: the squared "
        "hinge loss needs the smallest margins for this loss, and the smallest distance",
        ZOU,
        predicted="; ".join(
            f"{name} {span(row, '.3f')}"
            for name, row in zip(names(ds)[1:], wanted[1:], strict=True)
        )
        + " times the distance of the logistic loss",
        measured="; ".join(
            f"{name} {span(row, '.3f')}" for name, row in zip(names(ds)[1:], ratio[1:], strict=True)
        ),
        tolerance="each ratio within 5% at the largest width, and that of the squared hinge loss "
        "below 0.9",
        holds=np.all(np.abs(ratio / wanted - 1) < 0.05) and np.all(ratio[-1] < 0.9),
    )


def _flips(ds: xr.Dataset) -> Claim:
    ratio = (ds["flips"].values[..., 0] / ds["density_flips"].values)[:, wide(ds)].mean(axis=-1)
    flips = ds["flips"].values[..., 0].mean(axis=-1)
    return claim(
        "In the first layer as many units switch as lie in the way of the change: its mean size "
        "times their density at zero",
        ZOU,
        predicted="mean |dw.x| sqrt(m / (4 pi))",
        measured="ratios "
        + each(ds, [span(row, ".2f") for row in ratio])
        + "; shares "
        + each(ds, [arrow(row, ".3f") for row in flips]),
        tolerance="mean over networks within 20% at every wide width, for every loss",
        holds=np.all(np.abs(ratio - 1) < 0.2),
    )


def _rate_of_flips(ds: xr.Dataset) -> Claim:
    statement = "The share of units that switch in the first layer falls as m^(-1/3)"
    if ds["width"].values[-1] < VERY_WIDE:
        return not_applicable(
            statement,
            ZOU,
            "the paper's bound is for widths that grow, and the largest here is below "
            f"{VERY_WIDE:,}; `--paper` goes to 8,192",
            must_hold=False,
        )
    found = exponents(ds, ds["flips"].values[..., 0])
    return claim(
        statement,
        ZOU,
        predicted="slope -1/3 in the paper's bound; -1/2 where the change of the weights is small "
        "against them",
        measured=each(ds, [f"{e:.2f}" for e in found]),
        tolerance="the interval of every slope contains -1/3",
        holds=all(e.low <= -1 / 3 <= e.high for e in found),
        must_hold=False,
    )


def _drift(ds: xr.Dataset) -> Claim:
    drift = ds["kernel_drift"].values
    found = exponents(ds, drift)
    slower = exponents(ds, whole(ds["distance"].values))
    return claim(
        "The relative change of the kernel falls with the width, faster than the distance",
        ZOU,
        predicted="a slope below that of the distance",
        measured=each(
            ds, [f"{e:.2f}, beside {s.value:.2f}" for e, s in zip(found, slower, strict=True)]
        ),
        tolerance="interval of every slope below 0, and the slope below that of the distance",
        holds=all(e.high < 0 and e.value < s.value for e, s in zip(found, slower, strict=True)),
        main=True,
    )


def _identity(ds: xr.Dataset) -> Claim:
    error = ds["identity_error"].values
    return claim(
        "The gradient of every layer is a quadratic form of its kernel, at all recorded steps: "
        "n^2 |grad_l L|^2 = u^T K_l u with u = -y l'",
        "the chain rule",
        predicted="equality",
        measured=f"errors at most {np.max(error):.1e} of the sum of the sizes of all terms",
        tolerance="1e-9, rounding",
        holds=np.all(error < 1e-9),
    )


def _floors(ds: xr.Dataset) -> list[Claim]:
    least = ds["floor"].values
    last = np.median(ds["typical_floor"].values[..., -1], axis=-1)
    growth = last[:, -1] / last[:, 0]
    return [
        claim(
            "The gradient stays above the floor of the least eigenvalue, for every loss: "
            "n^3 |grad_l L|^2 / (lambda_min(K_l) (sum |u|)^2) >= 1 at all recorded steps",
            ZOU,
            predicted="at least 1",
            measured=f"from {np.min(least):.2f}; in the last layer {np.min(least[..., -1]):.2f}",
            tolerance="1e-6, rounding of the eigenvalue",
            holds=np.all(least >= 1 - 1e-6),
            main=True,
        ),
        claim(
            "The floor is of the size of the gradient at every width",
            ZOU,
            predicted="a ratio in the last layer that does not grow with the width",
            measured=each(ds, [arrow(row, ".2f") for row in last]),
            tolerance="the median over steps and networks grows by at most half from the smallest "
            "to the largest width",
            holds=np.all(growth < 1.5),
        ),
    ]


def _sgd(ds: xr.Dataset) -> Claim:
    ratio = (ds["sgd_distance"].values / whole(ds["distance"].values)[0])[wide(ds)]
    return claim(
        "SGD ends as near to the start as gradient descent",
        ZOU,
        predicted="about the same distance",
        measured=f"SGD in batches of {BATCH}: {span(ratio, '.3f')} times gradient descent's",
        tolerance="at most 1.15 times, for every wide network",
        holds=np.all(ratio <= 1.15),
    )


def _mean_field(ds: xr.Dataset) -> list[Claim]:
    width = ds["width"].values.astype(float)
    distance, flips = (ds[f"mean_field_{name}"].values for name in ("distance", "flips"))
    slopes = [exponent(width, rows) for rows in (distance, flips)]
    return [
        control(
            "with outputs divided by sqrt(m) neither the distance nor the share of switched units "
            "falls with the width",
            CHIZAT,
            predicted="slopes 0",
            measured=f"distance {slopes[0]:.2f}; switched units {slopes[1]:.2f}",
            tolerance="both intervals contain 0 or lie above it",
            holds=all(slope.high > 0 for slope in slopes),
            main=True,
        ),
        control(
            "with outputs divided by sqrt(m) many units switch at every width",
            CHIZAT,
            predicted="a share that does not fall with the width",
            measured=f"shares {arrow(flips.mean(axis=1), '.2f')}",
            tolerance="above 10% for every network",
            holds=np.all(flips > 0.1),
        ),
    ]
