"""The claims of the study are judged from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.convergence import (
    BEYOND,
    FALL,
    NOISES,
    P21,
    SAFE,
    SAFE_FLOW,
    Config,
)
from sgfbias.study import Claim, claim, control
from sgfbias.study.statistics import arrow, finite, listed, log_slope, mean_t, power_law, span

LEMMA = f"{P21}, Lemma 2"
MOMENTS = "derived here: the radius of the noise's feedback on second moments, theory/edge.py"
NOTHING = "the test of the identity shows nothing"


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The identity holds along paths, its martingale stays within its bound as often as
    promised, the bounds of the guarantee hold, and SGD and the flows converge below the
    predicted edge and not far above.
    """
    return [
        *_identity(ds),
        *_event(ds, config),
        *_bounds(ds, config),
        *_shares(ds, config),
        *_batches(ds, config),
    ]


def _rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(values), axis=-1))


def _identity(ds: xr.Dataset) -> list[Claim]:
    widths, gap = ds["width"].values, ds["gap"].values
    average, square = np.abs(gap.mean(axis=1)), _rms(gap)
    size = _rms(ds["martingale"].values)
    order = power_law(widths, average, gap.std(axis=1, ddof=1) / np.sqrt(gap.shape[1]))
    rows = [
        claim(
            "Along every path V is what the identity says: in the mean over the seeds the gap "
            "falls at first order in dt",
            LEMMA,
            predicted="slope 1",
            measured=f"mean gap {arrow(average)} at dt/gamma = 1, 1/4, 1/16, slope "
            f"{order:.2f}; the martingale has size {size:.2g}",
            tolerance="the interval meets 0.8 to 1.2, and is at most 1 wide",
            holds=order.low <= 1.2 and order.high >= 0.8 and order.high - order.low <= 1,
            main=True,
            reason="the mean gap does not fall with dt as a weak error of first order",
        ),
        claim(
            "On single paths the gap of the identity falls, too",
            LEMMA,
            predicted="strong order 1/2, the order of Euler's scheme, or more while the mean "
            "dominates",
            measured=f"root mean square {arrow(square)}, slope {log_slope(widths, square):.2f}",
            tolerance="slope at least 0.4",
            holds=log_slope(widths, square) >= 0.4,
            reason="the gap of single paths does not fall with dt",
        ),
    ]
    for name, words in (
        ("gap_sign", "with the martingale's sign reversed the gap does not fall"),
        (
            "gap_beta",
            "with a beta* that does not solve the equations, 1.1 times one that does, the gap does "
            "not fall",
        ),
    ):
        wrong = _rms(ds[name].values)
        rows.append(
            control(
                words,
                LEMMA,
                predicted="slope 0",
                measured=f"root mean square {arrow(wrong)}, {wrong[-1] / square[-1]:.0f} times the "
                "gap of the identity",
                tolerance="slope below 0.2, and at least 5 times the gap of the identity",
                holds=log_slope(widths, wrong) < 0.2 and wrong[-1] >= 5 * square[-1],
                reason=NOTHING,
            )
        )
    return rows


def _event(ds: xr.Dataset, config: Config) -> list[Claim]:
    S, variation = ds["martingale"].values, ds["variation"].values
    excess = mean_t(np.square(S) - variation).map(lambda x: x / variation.mean() + 1)
    # Half of the probability of the event is what the lemma allows.
    outside = float(np.mean(ds["bound_ratio"].values > 1))
    half = float(np.mean(ds["bound_ratio"].values > 0.5))
    most, seeds = config.event / 2, len(S)
    # The 99% quantile of a frequency whose probability is the largest allowed.
    room = 2.33 * np.sqrt(most * (1 - most) / seeds)
    return [
        claim(
            "S is a martingale with the stated quadratic variation: E S^2 = E <S> = "
            "4 gamma E int L^2",
            LEMMA,
            predicted="ratio 1",
            measured=f"ratio {excess:.3f}",
            tolerance="1 within the 99% interval",
            holds=excess.contains(1.0),
            reason="the square of the martingale is not its quadratic variation in the mean",
        ),
        claim(
            f"At all times |S| <= a + ln(4/p) <S> / (2 a), with probability at least 1 - p/2, at "
            f"p = {config.event:g} and the a for which this is tight",
            f"{P21}, Lemma 3",
            predicted=f"at most {most:.1%} of the seeds leave this bound",
            measured=f"{outside:.2%} of {seeds:,} seeds leave it",
            tolerance=f"at most {most:.1%}, and {room:.2%} for the number of seeds",
            holds=outside <= most + room,
            reason="more seeds leave the bound than the lemma allows",
        ),
        control(
            "half the bound is left by more seeds than the lemma allows for the whole",
            f"{P21}, Lemma 3",
            predicted=f"more than {most:.1%}",
            measured=f"{half:.1%} of the seeds",
            tolerance=f"more than {most:.1%}",
            holds=half > most,
            reason="the bound is so loose that no path comes near it",
        ),
    ]


def _bounds(ds: xr.Dataset, config: Config) -> list[Claim]:
    where = f"{P21}, Theorem 1, Proposition 4, Lemmas 3 and 7"
    l1, integral = ds["reached_l1"].values, ds["reached_integral"].values
    bound, (low, high) = float(ds["bound_l1"]), ds["bound_integral"].values
    log_alpha, ends = ds["reached_log_alpha"].values, ds["bound_log_alpha"].values
    fall, gamma = ds["reached_loss"].values, float(ds["guaranteed"])
    edge = float(ds["flow_edge"])
    exact, law = float(ds["quiet_integral"]), float(ds["quiet_law"])
    return [
        claim(
            "At the guaranteed step size every seed converges and stays within the bound on "
            "|xi|_1, int L lies between its bounds, and so does every coordinate's effective alpha",
            where,
            predicted=f"|xi|_1 at most {bound:.3g}, int L from {low:.2g} to {high:.3g}, with "
            f"probability {config.probability:g}",
            measured=f"|xi|_1 at most {l1.max():.3g}, {bound / l1.max():.0f} times below its "
            f"bound; int L {span(integral, '.3g')}, {integral.min() / low:.1f} times above its "
            f"lower and {high / integral.max():.0f} times below its upper bound; the loss fell to "
            f"{fall.max():.0e} of the start's",
            tolerance="every seed within the bounds, and the loss below 1e-2 of the start's",
            holds=l1.max() <= bound
            and integral.min() >= low
            and integral.max() <= high
            and bool(np.all((log_alpha >= ends[0]) & (log_alpha <= ends[1])))
            and fall.max() < 1 / FALL,
            main=True,
            reason="a proved bound is broken, so the program or its constants are wrong",
        ),
        claim(
            "Without noise int L = (phi_alpha(beta_inf) - phi_alpha(0)) / 2, exactly",
            f"{P21}, section 4",
            predicted=f"{law:.6g}",
            measured=f"{exact:.6g}, relative difference {abs(exact / law - 1):.1e}",
            tolerance="1e-5, the tolerance of the solver along the path",
            holds=abs(exact / law - 1) <= 1e-5,
            reason="the flow has not converged, or the formula is wrong",
        ),
        claim(
            "The guaranteed step size is far below the predicted edge",
            where,
            predicted="a ratio above 1: the bounds are proved, and none is sharp",
            measured=f"guaranteed {gamma:.2g}, predicted edge {edge:.3g}, "
            f"{edge / gamma:,.0f} times as large",
            tolerance="above 1",
            holds=edge > gamma,
            must_hold=False,
            reason="the guarantee reaches beyond the edge of stability in the mean square",
        ),
    ]


def _at(config: Config, fraction: float) -> int:
    return config.fractions.index(fraction)


def _crossing(fractions: np.ndarray, shares: np.ndarray) -> float:
    """Where the share falls through one half, by linear interpolation: 0 if it lies
    below one half everywhere, and infinite if nowhere.
    """
    below = np.flatnonzero(shares < 0.5)
    if not below.size:
        return float("inf")
    if below[0] == 0:
        return 0.0
    k = below[0]
    part = (shares[k - 1] - 0.5) / (shares[k - 1] - shares[k])
    return float(fractions[k - 1] + part * (fractions[k] - fractions[k - 1]))


def _shown(crossing: float, fractions: np.ndarray) -> str:
    if np.isinf(crossing):
        return f"above {fractions[-1]:g}"
    return f"{crossing:.2f}" if crossing else f"below {fractions[0]:g}"


def _shares(ds: xr.Dataset, config: Config) -> list[Claim]:
    shares, fractions = ds["share"].values, ds["fraction"].values
    safe, beyond = _at(config, SAFE), _at(config, BEYOND)
    discrete, flows = shares[:, :2], shares[:, 2:]
    quiet = _at(config, SAFE_FLOW)
    where = np.array([[_crossing(fractions, row) for row in rows] for rows in shares])
    each = "; ".join(
        f"{noise} {', '.join(_shown(value, fractions) for value in column)}"
        for noise, column in zip(NOISES, where.T, strict=True)
    )
    other = ds["other_share"].values.mean(axis=0)
    return [
        claim(
            f"SGD converges at {SAFE} times the predicted edge",
            MOMENTS,
            predicted="second moments fall, and nearly every seed converges",
            measured=f"{discrete[:, :, safe].mean():.1%} of all seeds, at least "
            f"{discrete[:, :, safe].min():.0%} on every problem, in batches of 1 and of 4",
            tolerance="at least 95% of all seeds",
            holds=discrete[:, :, safe].mean() >= 0.95,
            main=True,
            reason="seeds are lost below the predicted edge",
        ),
        claim(
            f"SGD does not converge at {BEYOND:g} times the predicted edge",
            MOMENTS,
            predicted="second moments grow, and few seeds converge",
            measured=f"{discrete[:, :, beyond].mean():.1%} of all seeds converge, at most "
            f"{discrete[:, :, beyond].max():.0%} on any problem",
            tolerance="at most 10% of all seeds",
            holds=discrete[:, :, beyond].mean() <= 0.1,
            main=True,
            reason="the predicted edge is too low, or the truth has one large entry, where single "
            "paths fall far beyond it",
        ),
        claim(
            f"The flows converge at {SAFE_FLOW} times the predicted edge",
            MOMENTS,
            predicted="nearly every seed converges; the flows' tails are heavier than SGD's",
            measured=f"{flows[:, :, quiet].mean():.1%} of all seeds, at least "
            f"{flows[:, :, quiet].min():.0%} on every problem",
            tolerance="at least 95% of all seeds",
            holds=flows[:, :, quiet].mean() >= 0.95,
            reason="seeds are lost below the predicted edge",
        ),
        claim(
            "Half of the seeds converge near the predicted edge, whatever the noise",
            MOMENTS,
            predicted="at about the edge; how near depends on the problem and on the tails",
            measured=f"in units of the edge, problem by problem: {each}",
            tolerance=f"from {SAFE} to {BEYOND:g} for every problem and noise",
            holds=where.min() >= SAFE and where.max() <= BEYOND,
            must_hold=False,
            reason="on some problem the tails hide the edge",
        ),
        control(
            f"{SAFE} times the edge of another noise model is not safe for SGD",
            MOMENTS,
            predicted="fewer than 95% of the seeds converge",
            measured=f"{other[0]:.0%} at {SAFE} times the mean-loss flow's edge, {other[1]:.0%} at "
            f"{SAFE} times gradient descent's, which has no noise",
            tolerance="below 95% with both",
            holds=other.max() < 0.95,
            main=True,
            reason="on these problems the noise models have nearly the same edge",
        ),
    ]


def _batches(ds: xr.Dataset, config: Config) -> list[Claim]:
    edges, shares = ds["batch_edge"].values, ds["batch_share"].values
    batches = ds["batch"].values
    growth, last = edges / edges[0], int(batches[-1])
    linear = float(finite(ds["linear_share"].values)[0])
    return [
        claim(
            "SGD's edge grows with the batch size until it saturates, as predicted",
            MOMENTS,
            predicted=f"edges {listed(growth, '.2f')} times that of batches of 1, at b = "
            f"{listed(batches, '.0f')}",
            measured=f"{listed(shares[:, 0], '.0%')} of the seeds converge at {SAFE} times these, "
            f"{listed(shares[:, 1], '.0%')} at {BEYOND:g} times",
            tolerance="at least 95% and at most 10% of all seeds",
            holds=shares[:, 0].mean() >= 0.95 and shares[:, 1].mean() <= 0.1,
            reason="at some batch size the predicted edge is off",
        ),
        control(
            f"by the linear scaling rule, b times the edge of batches of 1, batches of {last} have "
            "another edge",
            MOMENTS,
            predicted=f"at {SAFE} times {last} times the edge of batches of 1 few seeds converge",
            measured=f"{linear:.0%} of the seeds",
            tolerance="below 95%",
            holds=linear < 0.95,
            reason="the largest batch is too small for saturation to show",
        ),
    ]
