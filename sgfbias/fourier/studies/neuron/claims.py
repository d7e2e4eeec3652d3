"""What the study `fourier-neuron` claims."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.fourier.studies.neuron import OTHERS, Config
from sgfbias.study import Claim, claim, control, source
from sgfbias.study.statistics import mean_t

RAVIV = source("raviv2021")
OWN = "the definition, by enumeration"
ROUNDING = 1e-11


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Identities and bounds hold for every neuron. How the paths compare is a mean over
    neurons.
    """
    reached, norm = ds["distance_reached"].values, ds["distance_norm"].values
    before, others = ds["distance_before"].values, ds["distance_others"].values
    off = np.abs(reached - norm).max()
    return [
        claim(
            "A stabilised neuron has the mean l_p distance |t|_p, for p = 1, 1.5, 2 and 4",
            RAVIV,
            predicted="the value of Hoelder's inequality",
            measured=f"largest difference {off:.1e} over {norm.shape[1]} neurons",
            tolerance=f"rounding, {ROUNDING:.0e}",
            holds=off < ROUNDING,
            main=True,
        ),
        claim(
            "No other weights have a larger mean l_p distance",
            RAVIV,
            predicted="never above |t|_p",
            measured=f"of {OTHERS} other weights of each neuron and the old ones, the best has "
            f"{np.max(np.maximum(others, before) / norm):.4f} of |t|_p",
            tolerance=f"rounding, {ROUNDING:.0e}",
            holds=np.max(np.maximum(others, before) - norm) < ROUNDING,
        ),
        *_one_norm(ds),
        claim(
            "Chow parameters have the signs of the weights, whatever the threshold",
            RAVIV,
            predicted="no bit of another sign",
            measured=f"{int(ds['sign_mismatches'].sum())} bits of another sign",
            tolerance="none",
            holds=int(ds["sign_mismatches"].sum()) == 0,
        ),
        *_disagreements(ds, config),
        *_paths(ds),
        *_quadrature(ds),
    ]


def _one_norm(ds: xr.Dataset) -> list[Claim]:
    """The mean l1 distance before and after."""
    before, after = (ds[f"distance_{name}"].sel(p=1.0).values for name in ("before", "reached"))
    room = ds["gain_bound"].values - (after - before)
    factor = mean_t(after / before)
    two = ds["distance_reached"].sel(p=2.0) / ds["distance_before"].sel(p=2.0)
    return [
        claim(
            "The mean l1 distance grows by at most d - |w|_1/|w|_inf, the gain by which neurons "
            "are chosen",
            RAVIV,
            predicted="never more",
            measured=f"it grows by {np.mean(after - before):.2f} in the mean, to {factor:.2f} "
            f"times what it was; the smallest distance from the bound is {room.min():.2f}",
            tolerance=f"rounding, {ROUNDING:.0e}",
            holds=room.min() > -ROUNDING and factor.low > 1,
        ),
        control(
            "for p = 2 a neuron is nearly its own stabilised one, and its mean distance grows "
            "little",
            RAVIV,
            predicted="a factor near 1",
            measured=f"it grows to {float(two.mean()):.3f} times what it was",
            tolerance="a tenth of the growth for p = 1",
            holds=float(two.mean()) - 1 < (factor.value - 1) / 10,
        ),
    ]


def _disagreements(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The exact disagreement, Sheppard's formula and the bound."""
    exact, gaussian, bound = (
        {name: ds[f"{name}_{kind}"].values for name in ("normal", "big")}
        for kind in ("exact", "gaussian", "bound")
    )
    room = min(np.min(bound[name] - exact[name]) for name in exact)
    off = mean_t(exact["normal"] - gaussian["normal"])
    above = np.mean(exact["big"] > gaussian["big"])
    return [
        claim(
            "The bound on the disagreement of old and new labels is never exceeded",
            OWN,
            predicted="exact value at most the bound",
            measured="exact and bound in the mean: "
            + ", ".join(
                f"{words} {np.mean(exact[name]):.3f} and {np.mean(bound[name]):.3f}"
                for name, words in (("normal", "normal weights"), ("big", "one big weight"))
            )
            + f"; the smallest distance is {room:.1e}",
            tolerance="rounding",
            holds=room > -ROUNDING,
            main=True,
        ),
        claim(
            "For normal weights Sheppard's formula has the mean disagreement",
            source("odonnell2014"),
            predicted=f"{np.mean(gaussian['normal']):.4f}",
            measured=f"{np.mean(exact['normal']):.4f}, difference {off:.4f}",
            tolerance="interval of the difference within 1/d, the order of the first correction "
            "of the normal law for a symmetric sum of d bits",
            holds=max(abs(off.low), abs(off.high)) < 1 / config.d,
        ),
        control(
            "Sheppard's formula is no bound: neurons with one big weight exceed it",
            source("odonnell2014"),
            predicted="exceeded, since one bit is far from normal",
            measured=f"exceeded by {above:.0%} of the neurons, {np.mean(exact['big']):.3f} against "
            f"{np.mean(gaussian['big']):.3f} in the mean",
            tolerance="by more than half of them",
            holds=above > 0.5,
            main=True,
        ),
    ]


def _paths(ds: xr.Dataset) -> list[Claim]:
    """How many labels are kept along the three paths."""
    clip = ds["agreement_clip"].values
    rows = []
    for name, words in (("power", "powers |w|^s"), ("shift", "shifted weights |w| + c")):
        other = ds[f"agreement_{name}"].values
        gain = mean_t((clip - other).mean(axis=0), tests=2)
        middle = clip.shape[0] // 2
        rows.append(
            claim(
                f"At equal mean distance, clipped weights keep more labels than {words}",
                "the largest cosine with w for given norms",
                predicted="more, in the mean over neurons and distances",
                measured=f"more by {gain:.4f}; half-way {clip[middle].mean():.3f} against "
                f"{other[middle].mean():.3f}; as many or more in "
                f"{np.mean(clip >= other - 1e-9):.0%} of the cases",
                tolerance="99% interval of the mean above 0",
                holds=gain.low > 0,
                main=name == "power",
            )
        )
    return rows


def _quadrature(ds: xr.Dataset) -> list[Claim]:
    """Chow parameters of the sigmoid by quadrature."""
    error, wrong = ds["quadrature_error"].values, ds["unbiased_error"].values
    return [
        claim(
            "The Chow parameters of sigmoid neurons by quadrature are those by enumeration, for "
            "biased bits",
            OWN,
            predicted="no difference",
            measured=f"largest difference {error.max():.1e}",
            tolerance=f"rounding, {ROUNDING:.0e}",
            holds=error.max() < ROUNDING,
            main=True,
        ),
        control(
            "the biases of the bits matter: unbiased bits have other Chow parameters",
            OWN,
            predicted="a difference far above rounding for every neuron",
            measured=f"smallest difference {wrong.min():.1e}",
            tolerance="above 1e-6 for every neuron",
            holds=wrong.min() > 1e-6,
        ),
    ]
