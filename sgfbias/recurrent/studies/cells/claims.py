"""What the study `recurrent-cells` claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from sgfbias.recurrent.studies.cells import (
    ARMS,
    FACTORS,
    FACTORS_OF,
    LEVEL,
    LINEAR,
    OWN,
    RADII,
    SCALES,
    Config,
)
from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.statistics import LogRatio, arrow, listed, log_ratio, span

COHEN = source("cohenkarlik2022")
HERE = "measured here"
ORDERS = 0.8  # the rank correlation above which one number orders cells as another does
DRAWN = "the sequences are a user's own, and these are the drawn tasks"


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Mixed lengths move the length to which a cell holds where it has to remember;
    they do not help a linear network, which a penalty on the tail does.
    """
    return [
        *_memory(ds, config),
        _adding(ds, config),
        _sine(ds),
        _penalty(ds),
        _radius(ds),
        _closed_form(ds, config),
        _own(ds, config),
        *_scaled(ds, config),
        *_gain(ds, config),
        _mixed_linear(ds),
        _lagged(ds, config),
        _gain_at_once(ds),
    ]


def _losses(ds: xr.Dataset, task: str) -> Any:
    """The losses of both arms of a task, (seeds, lengths), or None without it."""
    names = list(ds["task"].values)
    return None if task not in names else ds["loss"].values[names.index(task)]


def _horizons(ds: xr.Dataset, task: str) -> np.ndarray:
    """The horizons of both arms of a task, (arms, seeds)."""
    return ds["horizon"].values[list(ds["task"].values).index(task)]


def _memory(ds: xr.Dataset, config: Config) -> list[Claim]:
    first = "Trained to copy at one length, the cell holds to that length only"
    second = "Mixed lengths up to the same one move that length for copying"
    losses = _losses(ds, "copy")
    if losses is None:
        return [not_applicable(text, HERE, DRAWN) for text in (first, second)]
    one, mixed = _horizons(ds, "copy")
    gain = log_ratio(losses[0][:, 1], losses[1][:, 1], lost_as=-1)
    k = config.length
    return [
        claim(
            first,
            COHEN,
            predicted="nothing in training says what the cell does at later steps",
            measured=f"lengths to which it holds {listed(one, '.0f')}; losses at length {2 * k} "
            f"{span(losses[0][:, 1])} of the variance, at {k} {span(losses[0][:, 0], '.1e')}",
            tolerance=f"a median of {k}, at which the loss is below {LEVEL:g} of the variance",
            holds=np.median(one) == k and np.median(losses[0][:, 1]) > LEVEL,
            main=True,
        ),
        claim(
            second,
            HERE,
            predicted="a cell that is right at many lengths has learned to hold a value",
            measured=f"lengths to which it holds {listed(mixed, '.0f')}; loss at length {2 * k} "
            f"times smaller: {gain.shown()}",
            tolerance=f"a median of {2 * k} or more, and an interval above 10",
            holds=np.median(mixed) >= 2 * k and gain.ratio.low > 10,
            main=True,
        ),
    ]


def _adding(ds: xr.Dataset, config: Config) -> Claim:
    text = "Mixed lengths lower the loss of adding at twice the length of training"
    losses = _losses(ds, "adding")
    if losses is None:
        return not_applicable(text, HERE, DRAWN)
    gain = log_ratio(losses[0][:, 1], losses[1][:, 1], lost_as=-1)
    one, mixed = _horizons(ds, "adding")
    return claim(
        text,
        HERE,
        predicted="as for copying",
        measured=f"times smaller {gain.shown()}; lengths to which the cell holds "
        f"{listed(one, '.0f')}, with mixed lengths {listed(mixed, '.0f')}",
        tolerance="interval above 1",
        holds=gain.ratio.low > 1,
    )


def _sine(ds: xr.Dataset) -> Claim:
    text = "A noisy sine is followed at all lengths without mixing: its memory may be short"
    losses = _losses(ds, "sine")
    if losses is None:
        return not_applicable(text, HERE, DRAWN)
    ratio = losses[0][:, -1] / losses[0][:, 0]
    return claim(
        text,
        HERE,
        predicted="the same loss, as the last steps suffice",
        measured=f"loss at length {ds['length'].values[-1]} over that in training {span(ratio)}; "
        f"with mixed lengths {span(losses[1][:, -1] / losses[1][:, 0])}",
        tolerance="a median of at most 2 for one length",
        holds=np.median(ratio) <= 2,
    )


def _late(ds: xr.Dataset, first: str, second: str) -> LogRatio:
    """The loss on the longest sequences of linear networks of one arm over those of
    another, at the largest radius.
    """
    late = ds["linear_loss"].values[:, -1, :, -1]
    return log_ratio(late[LINEAR.index(first)], late[LINEAR.index(second)], lost_as=-1)


def _penalty(ds: xr.Dataset) -> Claim:
    ratio = _late(ds, "one length", "tail penalty")
    fits = ds["linear_loss"].values[:, -1, :, 0]
    return claim(
        "A penalty on the tail makes a linear network hold",
        COHEN,
        predicted="a small loss at all lengths",
        measured=f"loss at length {ds['length'].values[-1]} times smaller than without it: "
        f"{ratio.shown()}, at radius {RADII[-1]:g}; losses in training "
        f"{span(fits[2][np.isfinite(fits[2])], '.1e')}, without it {span(fits[0], '.1e')}",
        tolerance="a geometric mean above 100, and an interval above 1",
        holds=ratio.ratio.value > 100 and ratio.ratio.low > 1,
        main=True,
    )


def _radius(ds: xr.Dataset) -> Claim:
    late = np.median(ds["linear_loss"].values[0, ..., -1], axis=1)
    return claim(
        "A linear network errs the more on long sequences the larger its start",
        COHEN,
        predicted="what lies beyond the length of training is inherited from the start",
        measured=f"median losses at length {ds['length'].values[-1]} {arrow(late)} at radii "
        f"{listed(RADII)}",
        tolerance=f"at radius {RADII[-1]:g} at least 100 times that at {RADII[0]:g}",
        holds=late[-1] > 100 * late[0],
    )


def _closed_form(ds: xr.Dataset, config: Config) -> Claim:
    text = "The closed form of the error at all lags is the loss on long sequences"
    if "linear_predicted" not in ds:
        return not_applicable(text, "derived here", DRAWN)
    found = ds["linear_loss"].values[:2, -1, :, -1] / ds["linear_predicted"].values[:2, -1]
    # The mean of n squared normal errors has the relative error sqrt(2/n).
    bound = 4 * np.sqrt(2 / config.tests)
    return claim(
        text,
        "derived here",
        predicted="the sum over lags of |h_j - h*_j|^2, for white inputs",
        measured=f"ratios measured over predicted {span(found, '.3f')}, radius {RADII[-1]:g}",
        tolerance=f"within {bound:.2f} of 1, four standard errors of a mean over "
        f"{config.tests} sequences",
        holds=np.all(np.abs(found - 1) < bound),
    )


def _own(ds: xr.Dataset, config: Config) -> Claim:
    text = "On sequences of one's own mixed lengths do not shorten the length to which it holds"
    losses = _losses(ds, OWN)
    if losses is None:
        return not_applicable(text, HERE, "the sequences are drawn", must_hold=False)
    one, mixed = _horizons(ds, OWN)
    return claim(
        text,
        HERE,
        predicted="no shorter",
        measured=f"lengths to which the cell holds {listed(one, '.0f')}, with mixed lengths "
        f"{listed(mixed, '.0f')}; median losses "
        + "; ".join(
            f"{arm} {listed(np.median(rows, axis=0), '.2g')}"
            for arm, rows in zip(ARMS, losses, strict=True)
        )
        + f" of the variance at lengths {listed(ds['length'].values, '.0f')}",
        tolerance="medians over networks",
        holds=np.median(mixed) >= np.median(one),
        must_hold=False,
        main=True,
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation over networks; a constant orders nothing."""
    ranks = rankdata(a), rankdata(b)
    return 0.0 if min(map(np.ptp, ranks)) == 0 else float(np.corrcoef(*ranks)[0, 1])


def _scaled_losses(ds: xr.Dataset) -> np.ndarray:
    """The losses of the scaled cells, (cells, starts, ends); infinite where lost."""
    loss = ds["scaled_loss"].values.astype(np.float64)
    return np.where(np.isnan(loss), np.inf, loss)


def _scaled(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Larger recurrent weights at the start leave a linear cell that holds less far;
    whether also a GRU is told, and not claimed.
    """
    linear = "Larger recurrent weights at the start make a linear cell lose more on long sequences"
    gru = "Larger recurrent weights at the start make a GRU lose more on long sequences"
    if "scaled_loss" not in ds:
        return [
            not_applicable(linear, COHEN, DRAWN),
            not_applicable(gru, HERE, DRAWN, must_hold=False),
        ]
    loss = _scaled_losses(ds)
    ratio = dict(zip(SCALES, np.median(loss[..., 1] / loss[..., 0], axis=1), strict=True))

    def shown(kind: str) -> str:
        factors = FACTORS_OF[kind]
        of = arrow([ratio[kind, factor] for factor in factors])
        longest = FACTORS[-1] * config.length
        return f"loss at length {longest} over that in training {of} at {listed(factors)}"

    small = float(np.median(loss[SCALES.index(("linear", 0.1)), :, 1]))
    return [
        claim(
            linear,
            COHEN,
            predicted="what lies beyond the length of training is inherited from the start",
            measured=f"{shown('linear')} times the weights of radius 1; the former is "
            f"{small:.1e} at 0.1",
            tolerance="at 1 above 1000, and above 1000 times that at 0.1, where the former is "
            f"below {LEVEL:g}",
            holds=ratio["linear", 1.0] > 1000 * max(1, ratio["linear", 0.1]) and small < LEVEL,
        ),
        claim(
            gru,
            HERE,
            predicted="more, as for a linear cell",
            measured=f"{shown('gru')} times the usual weights",
            tolerance="at 4 above twice that at 1",
            holds=ratio["gru", 4.0] > 2 * ratio["gru", 1.0],
            must_hold=False,
        ),
    ]


def _gain(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The memory gain beyond the length of training says how large the loss on long
    sequences is, for linear cells, cells with one tanh, and GRUs alike.

    The gain at one late lag does not order cells as the ratio of their loss on long
    sequences to that in training does, which one may expect. The ratio of two networks
    with the same memory differs as their losses in training do: a linear cell is fitted
    to rounding, and a cell that is chaotic at its start is hardly fitted. And among
    cells that forget, the ratio is about 1, in whatever order chance puts them. So this
    is told, and not claimed.
    """
    text = (
        "The loss in training and the memory gain beyond it together order cells as their loss "
        "on long sequences does"
    )
    at = FACTORS[-1] * config.length // 2
    told = f"The memory gain at lag {at} orders cells as the ratio of these losses does"
    if "scaled_loss" not in ds:
        return [
            not_applicable(text, HERE, DRAWN),
            not_applicable(told, HERE, DRAWN, must_hold=False),
        ]
    loss, gain = _scaled_losses(ds), ds["scaled_gain"].values.astype(np.float64)
    first, last = np.moveaxis(loss, -1, 0)
    energy = np.sum(np.exp(2 * gain[..., config.length :]), axis=-1)
    both, alone = (_correlation(row, last) for row in (first + energy, first))
    ratio = _correlation(gain[..., at], last / first)
    return [
        claim(
            text,
            HERE,
            predicted="the loss in training plus the sum of the squared gains at later lags, for "
            "white inputs and a linear cell",
            measured=f"rank correlation over {last.size} networks of three kinds with the loss "
            f"at length {FACTORS[-1] * config.length} {both:.2f}; of the loss in training alone "
            f"{alone:.2f}",
            tolerance=f"above {ORDERS:g}, and above that of the loss in training by 0.1",
            holds=both > max(ORDERS, alone + 0.1),
        ),
        claim(
            told,
            HERE,
            predicted="a large gain, a large ratio",
            measured=f"rank correlation over {last.size} networks {ratio:.2f}",
            tolerance=f"above {ORDERS:g}",
            holds=ratio > ORDERS,
            must_hold=False,
            reason="the ratio also depends on how well a network is fitted",
        ),
    ]


def _gain_at_once(ds: xr.Dataset) -> Claim:
    text = "the memory gain at lag 0 does not order cells as their loss on long sequences does"
    if "scaled_loss" not in ds:
        return not_applicable(f"Control: {text}", HERE, DRAWN)
    found = _correlation(ds["scaled_gain"].values[..., 0], _scaled_losses(ds)[..., 1])
    return control(
        text,
        HERE,
        predicted="about the same gain, 1, for all cells that are fitted",
        measured=f"rank correlation {found:.2f}",
        tolerance=f"at most {ORDERS:g}",
        holds=found <= ORDERS,
    )


def _mixed_linear(ds: xr.Dataset) -> Claim:
    ratio = _late(ds, "mixed lengths", "tail penalty")
    little = _late(ds, "one length", "mixed lengths")
    return control(
        "mixed lengths up to that of training do much less for a linear network",
        HERE,
        predicted="less, as no sequence shows a later lag",
        measured=f"loss at length {ds['length'].values[-1]} times smaller than at one length: "
        f"{little.shown()}; over that with the penalty: {ratio.shown()}",
        tolerance="over that with the penalty: a geometric mean above 10, and an interval above 1",
        holds=ratio.ratio.value > 10 and ratio.ratio.low > 1,
        main=True,
    )


def _lagged(ds: xr.Dataset, config: Config) -> Claim:
    lag = config.length + config.length // 2
    text = "a cell does not hold on a task that needs a lag beyond its training"
    if "lagged_loss" not in ds:
        return not_applicable(f"Control: {text}", HERE, DRAWN)
    losses = ds["lagged_loss"].values
    return control(
        text,
        HERE,
        predicted="the loss of a constant, the variance of the target",
        measured=f"losses {span(losses)} of the variance at length {2 * config.length}, lag {lag}",
        tolerance="above 0.9 for every network",
        holds=np.all(losses > 0.9),
        main=True,
    )
