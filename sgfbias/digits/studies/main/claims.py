"""The claims of the study, computed from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias import Status
from sgfbias.digits.studies.main import COMPARED, ENSEMBLES, LATE, Config
from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import (
    Estimate,
    finite,
    kolmogorov,
    mean_and_error,
    resampler,
    variance_ratio,
)

SOURCE = f"{source('li2017')}; {source('li2021')}"
LEARNED = 0.5  # the test accuracy of a network that has learned; guessing has 0.1
# The means of the flow and of SGD are compared if the 99% interval of their difference
# is +- at most this share of the effect of the noise.
RESOLVED = 1 / 3


def _late(ds: xr.Dataset, name: str) -> np.ndarray:
    """Averages over the last quarter of a run, (seeds,) without non-finite ones.

    For gradient descent the shape is (1,).
    """
    values = np.asarray(ds[name].values, np.float64)
    late = values[..., ds["time"].values >= LATE * ds["time"].values[-1]].mean(axis=-1)
    return finite(late) if late.ndim else late[None]


def _difference(sample: np.ndarray, reference: np.ndarray) -> Estimate:
    """The difference of two means, with a 99% interval from the normal distribution.

    A reference with a single value has no error.
    """
    mean, error = mean_and_error(sample)
    other, other_error = (
        mean_and_error(reference) if reference.size > 1 else (float(reference[0]), 0.0)
    )
    width = 2.58 * np.hypot(error, other_error)
    return Estimate(mean - other, mean - other - width, mean - other + width)


def _width(difference: Estimate) -> float:
    """Half the length of the interval of a difference."""
    return (difference.high - difference.low) / 2


def _largest(difference: Estimate) -> float:
    """The largest absolute value in the interval of a difference."""
    return max(abs(difference.low), abs(difference.high))


def _chance(a: np.ndarray, b: np.ndarray, draws: int = 4000) -> tuple[float, float]:
    """The Kolmogorov distance of two samples, and how often chance gives one as large.

    The second number is the fraction of `draws` random relabellings of the samples.
    """
    joint, rng = np.concatenate([a, b]), resampler()
    shuffled = np.stack([rng.permutation(joint) for _ in range(draws)])
    distance = float(kolmogorov(a, b))
    return distance, float(
        np.mean(kolmogorov(shuffled[:, : a.size], shuffled[:, a.size :]) >= distance - 1e-12)
    )


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The noise matters, and the flow with exact noise explains its effect.

    As a control, runs of SGD that are displaced by the effect of the noise are told
    from the flow's. Whether mean-loss noise explains the effect, too, depends on the
    network and the images, so this only informs.
    """
    lost = {name: ds[f"{name}_status"].values == Status.NON_FINITE for name in ENSEMBLES}
    means = {name: finite(_late(ds, f"{name}_test_accuracy")) for name in ("sgd", "flow")}
    accuracy = {name: float(v.mean()) if v.size else 0.0 for name, v in means.items()}
    return [
        claim(
            "SGD and the flow with exact noise learn, and no seed diverges",
            SOURCE,
            predicted="test accuracy far above the 10% of guessing",
            measured=", ".join(f"{ENSEMBLES[name]} {v:.1%}" for name, v in accuracy.items())
            + f"; non-finite seeds of {config.seeds}: "
            + ", ".join(f"{ENSEMBLES[name]} {bad.sum()}" for name, bad in lost.items()),
            tolerance=f"accuracies above {LEARNED:.0%}; no non-finite seed of SGD and of the flow",
            holds=min(accuracy.values()) > LEARNED and not (lost["sgd"] | lost["flow"]).any(),
        ),
        *_compared(ds, "test_loss"),
        *_compared(ds, "test_accuracy"),
        _resolved(ds),
        _spread(ds),
    ]


def _resolved(ds: xr.Dataset) -> Claim:
    """The claim that the flow's solver step is small enough."""
    coarse, flow, sgd = (_late(ds, f"{name}_test_loss") for name in ("coarse", "flow", "sgd"))
    statement = "The flow is resolved: its mean test loss at dt = gamma equals that at gamma/4"
    where = "the weak order 1 of Euler's method"
    if min(coarse.size, flow.size, sgd.size) < 2:
        return not_applicable(statement, where, "fewer than two seeds are finite", must_hold=False)
    effect = abs(float(sgd.mean() - _late(ds, "gd_test_loss")[0]))
    off = _difference(coarse, flow)
    return claim(
        statement,
        where,
        predicted="a difference of 0 as dt -> 0",
        measured=f"difference {off:+.4f}; the effect of the noise is {effect:.4f}",
        tolerance="99% interval within half the effect of the noise",
        holds=_largest(off) < effect / 2,
        must_hold=False,
    )


def _spread(ds: xr.Dataset) -> Claim:
    """The claim that the flow spreads as much as SGD."""
    sgd, flow, other = (_late(ds, f"{name}_test_loss") for name in COMPARED)
    statement = "The test loss spreads over seeds as much for the flow as for SGD"
    if min(sgd.size, flow.size, other.size) < 2:
        return not_applicable(statement, SOURCE, "fewer than two seeds are finite", must_hold=False)
    exact, mean_loss = (variance_ratio(v, sgd).map(np.sqrt) for v in (flow, other))
    return claim(
        statement,
        SOURCE,
        predicted="a ratio of 1 as gamma -> 0",
        measured="ratio of the flow's standard deviation to SGD's: "
        f"exact noise {exact:.2f}, mean-loss noise {mean_loss:.2f}",
        tolerance="99% bootstrap interval of the ratio with exact noise contains 1",
        holds=exact.contains(1),
        must_hold=False,
    )


def _compared(ds: xr.Dataset, quantity: str) -> list[Claim]:
    """The claims that compare SGD with gradient descent and two flows in one
    quantity.

    Claims about the test accuracy that need an effect of the noise do not apply where
    this effect is not resolved. Whether the noise raises or lowers the accuracy of a
    given network is not a matter of theory.
    """
    label, loss = quantity.replace("_", " "), quantity == "test_loss"
    matters = f"The noise matters: SGD's mean {label} differs from gradient descent's"
    explains = f"The flow with exact noise explains the effect: its mean {label} equals SGD's"
    alike = f"The Kolmogorov distance of {label} shows no difference between SGD and the flow"
    seen = (
        f"the same distance of {label} shows the difference if SGD's runs are displaced by the "
        "effect of the noise, so that their mean is gradient descent's"
    )
    differs = (
        "The covariance of the noise matters: mean-loss noise of the same batch size is "
        f"distinguishable from SGD by its {label}"
    )
    mean_loss = source("pesme2021", "eq. (3), with several outputs")
    plain, sgd, flow, other = (_late(ds, f"{name}_{quantity}") for name in ("gd", *COMPARED))
    if not np.isfinite(plain).all() or min(sgd.size, flow.size, other.size) < 2:
        return [
            claim(
                statement,
                where,
                measured="fewer than two seeds are finite, or gradient descent is not",
                holds=False,
                must_hold=must,
            )
            for statement, where, must in (
                (matters, SOURCE, loss),
                (explains, SOURCE, True),
                (alike, SOURCE, False),
                (CONTROL + seen, SOURCE, True),
                (differs, mean_loss, False),
            )
        ]
    effect, near, far = _difference(sgd, plain), _difference(flow, sgd), _difference(other, sgd)
    (distance, chance), (far_distance, far_chance) = _chance(flow, sgd), _chance(other, sgd)
    moved_distance, moved_chance = _chance(flow, sgd - effect.value)
    size, width = abs(effect.value), _width(near)
    unresolved = (
        f"the interval of the difference between the flow and SGD, +-{width:.4f}, is not within "
        f"{RESOLVED:.0%} of the effect of the noise, {size:.4f}: use more seeds"
    )
    rows = [
        claim(
            matters,
            SOURCE,
            predicted="a difference other than 0",
            measured=f"difference {effect:+.4f}",
            tolerance="99% interval without 0",
            holds=effect.low > 0 or effect.high < 0,
            main=loss,
            must_hold=loss,
            reason="without an effect of the noise there is nothing for the flow to explain",
        )
    ]
    if width > RESOLVED * size:
        rows += [
            not_applicable(explains, SOURCE, unresolved),
            not_applicable(alike, SOURCE, unresolved, must_hold=False),
            not_applicable(CONTROL + seen, SOURCE, unresolved),
        ]
    else:
        rows += [
            claim(
                explains,
                SOURCE,
                predicted="a difference of 0 as gamma -> 0",
                measured=f"difference {near:+.4f}; SGD's from gradient descent {effect.value:+.4f}",
                tolerance="99% interval within half of SGD's difference from gradient descent",
                holds=_largest(near) < size / 2,
                main=True,
            ),
            claim(
                alike,
                SOURCE,
                predicted="two samples of one distribution as gamma -> 0",
                measured=f"distance {distance:.2f}; {chance:.1%} of relabellings give one as "
                f"large. {_displaced(flow, sgd, size)}",
                tolerance="above 1% of relabellings",
                holds=chance > 0.01,
                must_hold=False,
                reason="there are enough seeds to see the difference that a finite gamma makes",
            ),
            control(
                seen,
                SOURCE,
                predicted="two samples of different distributions",
                measured=f"distance {moved_distance:.2f}; {moved_chance:.1%} of relabellings give "
                "one as large",
                tolerance="below 1% of relabellings",
                holds=moved_chance < 0.01,
                main=loss,
                reason="there are too few seeds for the distance to show anything",
            ),
        ]
    return [
        *rows,
        claim(
            differs,
            mean_loss,
            predicted="another distribution, since this noise moves all outputs of all examples "
            "alike",
            measured=f"difference {far:+.4f}; distance {far_distance:.2f}; {far_chance:.1%} of "
            "relabellings give one as large",
            tolerance="below 1% of relabellings",
            holds=far_chance < 0.01,
            must_hold=False,
            reason="the seeds are too few, or the size of the noise matters here, but not its "
            "covariance",
        ),
    ]


def _displaced(flow: np.ndarray, sgd: np.ndarray, effect: float) -> str:
    """The displacements of SGD's sample at which the Kolmogorov distance from the
    flow's sample is no larger than by chance, in words.
    """
    shares = np.linspace(-1, 1, 17)
    kept = [share for share in shares if _chance(flow, sgd + share * effect, 1000)[1] > 0.01]
    return (
        f"Displacements of SGD's runs that the distance does not rule out: {min(kept):+.3f} to "
        f"{max(kept):+.3f} times the effect of the noise"
        if kept
        else "It rules out every displacement of SGD's runs by up to the effect of the noise"
    )
