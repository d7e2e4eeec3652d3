"""Claims and picture of the study `alpha-sweep`, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, judge, median_interval
from sgfbias.core.trajectory import Status
from sgfbias.plotting import COLOURS, new_figure, tidy

P21 = "Pesme, Pillaud-Vivien, Flammarion 2021, figure 1, right"
THEOREM = "Pesme, Pillaud-Vivien, Flammarion 2021, theorem 1: alpha_inf = alpha exp(-2 gamma h int L)"
LANDED = "difference to the solution half the iterations earlier"
NAMES = {"sgd": "SGD", "flow": "the flow"}


def medians(ds: Any, name: str) -> np.ndarray:
    """`(median, low, high)` by alpha with 99% intervals, (3, alpha); a seed that was lost counts as infinite."""
    rows = [np.where(np.isfinite(row), row, np.inf) for row in ds[f"{name}_error"].values]
    return np.array([(np.median(row), *median_interval(row)) for row in rows]).T


def claims(ds: Any) -> list[Claim]:
    """The study's claims."""
    return [
        _none_lost(ds),
        *(_below(ds, name) for name in NAMES),
        *(_increases(ds, name) for name in ("gd", *NAMES)),
        _gap(ds),
        _settled(ds),
        _alike(ds),
        _quiet(ds),
    ]


def _none_lost(ds: Any) -> Claim:
    lost = {word: np.isin(ds[f"{name}_status"].values, (Status.NON_FINITE, Status.STALLED)).sum(axis=1) for name, word in NAMES.items()}
    most = max(int(v.max()) for v in lost.values())
    return judge(
        "SGD and its flow converge at this step size, at every alpha",
        P21,
        predicted="no seed diverges",
        measured="; ".join(
            f"{word}: {int(v.sum())} of {v.size * ds.sizes['seed']:,}, at most {int(v.max())} at one alpha" for word, v in lost.items()
        ),
        tolerance="at most 5% of the seeds at any alpha",
        holds=most <= 0.05 * ds.sizes["seed"],
        reason="the step size is too large for some alpha",
    )


def _below(ds: Any, name: str) -> Claim:
    middle, _, high = medians(ds, name)
    ratio, upper = middle / ds["gd_error"].values, high / ds["gd_error"].values
    return judge(
        f"The solution that {NAMES[name]} selects is nearer to the truth than gradient descent's, at every alpha (median)",
        P21,
        predicted="ratio of errors below 1",
        measured=f"ratio {ratio.min():.2g} to {ratio.max():.2g}; largest upper end of a 99% interval {upper.max():.2g}",
        tolerance="every 99% interval below 1",
        holds=np.all(upper < 1),
    )


def _increases(ds: Any, name: str) -> Claim:
    if name == "gd":
        values = ds["gd_error"].values
        low = high = values
        word = "gradient descent"
    else:
        values, low, high = medians(ds, name)
        word = NAMES[name]
    return judge(
        f"The error of {word} increases with alpha",
        P21,
        predicted="every step up",
        measured=f"{values[0]:.1e} at {float(ds['alpha'][0]):.0e} to {values[-1]:.1e} at {float(ds['alpha'][-1]):.0e}; {int(np.sum(low[1:] > high[:-1]))} of {len(values) - 1} steps up",
        tolerance="every median's 99% interval above the one before" if name != "gd" else "every value above the one before",
        holds=np.all(low[1:] > high[:-1]),
    )


def _gap(ds: Any) -> Claim:
    """Decades between gradient descent and SGD."""
    alpha = ds["alpha"].values
    gap = np.log10(ds["gd_error"].values / medians(ds, "sgd")[0])
    small = int(np.argmin(np.abs(np.log(alpha / 1e-3))))
    return judge(
        "SGD is about 1 decade below gradient descent at the largest alpha and about 2 decades near alpha = 1e-3",
        P21 + "; read off another problem's plot",
        predicted="1 and 2",
        measured=f"{gap[-1]:.2f} at {alpha[-1]:.1e}, {gap[small]:.2f} at {alpha[small]:.1e}",
        tolerance="within a factor of 4, .6 decades",
        holds=abs(gap[-1] - 1) < 0.6 and abs(gap[small] - 2) < 0.6,
        must_hold=False,
        reason="the gap depends on the problem and on the step size",
    )


def _settled(ds: Any) -> Claim:
    change = np.abs(np.log(ds["sgd_error"].values / ds["sgd_half_error"].values))
    middle = np.nanmedian(change, axis=1)
    spread = np.array([np.diff(np.nanquantile(np.log(row), [0.25, 0.75]))[0] for row in ds["sgd_error"].values])
    return judge(
        "SGD has run long enough: the solution it selects has settled",
        LANDED,
        predicted="0, as alpha stops shrinking",
        measured=f"median change of the error over the last half of the iterations up to {np.max(middle):.2%}, where seeds' quartiles lie {spread.min():.0%} apart or more",
        tolerance="a tenth of the distance between the seeds' quartiles, at every alpha",
        holds=np.all(middle < 0.1 * spread),
        reason="more iterations are needed",
    )


def _alike(ds: Any) -> Claim:
    ratio = medians(ds, "flow")[0] / medians(ds, "sgd")[0]
    gap = ds["gd_error"].values / medians(ds, "sgd")[0]
    return judge(
        "The flow predicts SGD: its error is nearer to SGD's than gradient descent's is, at every alpha",
        THEOREM,
        predicted="the ratio of medians tends to 1 as gamma falls; this is the largest gamma",
        measured=f"flow over SGD {ratio.min():.2f} to {ratio.max():.2f}; gradient descent over SGD {gap.min():.1f} to {gap.max():.1f}",
        tolerance="|log ratio| below half of gradient descent's",
        holds=np.all(np.abs(np.log(ratio)) < 0.5 * np.abs(np.log(gap))),
    )


def _quiet(ds: Any) -> Claim:
    middle = medians(ds, "quiet")[0] / ds["gd_error"].values
    shown = medians(ds, "flow")[0] / ds["gd_error"].values
    return judge(
        "Control: with a hundredth of the noise the flow ends where gradient descent ends",
        THEOREM,
        predicted="ratio of errors near 1",
        measured=f"ratio {middle.min():.3f} to {middle.max():.3f}, with all the noise {shown.min():.2g} to {shown.max():.2g}",
        tolerance="at every alpha at most a tenth of the way, in logarithms",
        holds=np.all(np.abs(np.log(middle)) < 0.1 * np.abs(np.log(shown))),
        control=True,
        reason="something else than the noise lowers the error",
    )


def plot(ds: Any) -> Any:
    """Errors and how far below gradient descent they are, against alpha, with the middle 90% of the seeds."""
    figure, axes = new_figure(1, 2, size=(11.5, 4.4))
    left, right = axes[0]
    alpha, gd = ds["alpha"].values, ds["gd_error"].values
    left.plot(alpha, gd, "s-", color=COLOURS["gd"], label="gradient descent", linewidth=1.5, markersize=4)
    for name, colour, label in (("sgd", COLOURS["sgd"], "SGD"), ("flow", COLOURS["sgf"], "its flow, landed")):
        values = ds[f"{name}_error"].values
        low, high = np.nanquantile(values, [0.05, 0.95], axis=1)
        for panel, scale in ((left, 1.0), (right, gd)):
            panel.fill_between(alpha, low / scale, high / scale, color=colour, alpha=0.2, linewidth=0)
            panel.plot(
                alpha,
                np.nanmedian(values, axis=1) / scale,
                "o-",
                color=colour,
                label=f"{label}, {ds.sizes['seed']} seeds",
                linewidth=1.5,
                markersize=4,
            )
    right.plot(
        alpha,
        np.nanmedian(ds["quiet_error"].values, axis=1) / gd,
        "o--",
        color=COLOURS["control"],
        label="control: noise / 100",
        linewidth=1.2,
        markersize=3,
    )
    right.axhline(1, color=COLOURS["gd"], linewidth=1)
    tidy(left, title="Error of the selected solution", x="α", y="$|\\beta_\\infty - \\beta^*|_2^2$")
    tidy(right, title="The same over gradient descent's", x="α", y="ratio")
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=8)
    return figure
