"""The claims of the study weak-error, and its picture, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, judge, not_applicable
from sgfbias.plotting import COLOURS, new_figure, tidy

LTE = "Li, Tai, E 2019"
FLOWS = {
    "exact-1": ("exact", 1),
    "exact-2": ("exact", 2),
    "none-1": ("none", 1),
    "mean-loss-1": ("mean-loss", 1),
    "mean-loss-2": ("mean-loss", 2),
}
LABELS = {
    "exact-1": "exact noise, order 1",
    "exact-2": "exact noise, order 2",
    "none-1": "no noise",
    "mean-loss-1": "mean-loss noise, order 1",
    "mean-loss-2": "mean-loss noise, order 2",
}
NETWORK_FLOWS = ("exact-1", "exact-2", "mean-loss-1")
LAWS = ("sgd", "per-sample", "exact-2", "exact-1", "mean-loss-1")
CLOSED_STEPS = 0.2 / 2.0 ** np.arange(6)


def _slope(step_sizes: np.ndarray, errors: np.ndarray) -> Any:
    """Slope between the two smallest step sizes (the last ones); broadcasts over leading axes."""
    ratio = np.abs(errors[..., -2]) / np.abs(errors[..., -1])
    return np.log(ratio) / np.log(step_sizes[-2] / step_sizes[-1])


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    return [*_closed_claims(ds), *_simulated_claims(ds), *_network_claims(ds), *_law_claims(ds)]


def _closed_claims(ds: Any) -> list[Claim]:
    steps = ds["closed_step"].values
    slope = {name: float(_slope(steps, ds["closed_error"].sel(flow=name).values)) for name in FLOWS}
    sgd = ds["closed_sgd_variance"].values
    ratio = {name: ds["closed_variance"].sel(flow=name).values / sgd for name in FLOWS}
    rate = float(_slope(steps, ratio["exact-1"] - 1))
    where = "least squares, closed forms, mean loss at time 2"

    def order(name: str, expected: int, statement: str, *, control: bool = False, must_hold: bool = True) -> Claim:
        return judge(
            f"{statement} ({where})",
            LTE,
            predicted=f"slope {expected}",
            measured=f"slope {slope[name]:.3f}",
            tolerance="0.1",
            holds=abs(slope[name] - expected) < 0.1,
            control=control,
            must_hold=must_hold,
            reason="the modified equation does not follow SGD at this order",
        )

    return [
        order("exact-1", 1, "The first-order flow with exact noise follows SGD to first weak order"),
        order("exact-2", 2, "The second-order flow with exact noise follows SGD to second weak order"),
        order("mean-loss-2", 1, "Control: the second-order drift with mean-loss noise is back at first order", control=True),
        order("none-1", 1, "Control: no noise has slope 1 as well, so slope 1 says nothing about noise", control=True, must_hold=False),
        order("mean-loss-1", 1, "Control: so has mean-loss noise", control=True, must_hold=False),
        judge(
            "The variance of the weights over gamma is SGD's as gamma -> 0 with exact noise (least squares, closed forms)",
            LTE,
            predicted="ratio 1, approached linearly",
            measured=f"ratio {ratio['exact-1'][-1]:.4f} at gamma = {steps[-1]:g}; |ratio - 1| falls with slope {rate:.2f}",
            tolerance="slope within .1 of 1",
            holds=abs(rate - 1) < 0.1 and abs(ratio["exact-1"][-1] - 1) < 0.05,
            reason="the covariance is not SGD's",
        ),
        judge(
            "Control: with mean-loss noise, or none, it is not",
            LTE,
            predicted="another limit; 0",
            measured=f"ratio {ratio['mean-loss-1'][-1]:.3f}; {ratio['none-1'][-1]:.3f}",
            tolerance="off by more than 20%; below 1e-6",
            holds=abs(ratio["mean-loss-1"][-1] - 1) > 0.2 and abs(ratio["none-1"][-1]) < 1e-6,
            control=True,
        ),
    ]


def _simulated_claims(ds: Any) -> list[Claim]:
    mean, error, predicted = (ds[f"simulated_{k}"].values for k in ("mean", "error", "predicted"))
    off = np.abs(mean - predicted) / error
    crossed = np.abs(mean[1] - predicted[2]) / error[1]
    names = ("SGD", "order 1", "order 2")
    return [
        judge(
            f"Simulated means agree with the closed forms of the same schemes (least squares, gamma = {CLOSED_STEPS[0]:g})",
            "linear moment equations",
            predicted="0 standard errors",
            measured=", ".join(f"{name} {o:.1f}" for name, o in zip(names, off, strict=True)) + " standard errors",
            tolerance="4",
            holds=off.max() < 4,
            reason="the simulation and the closed form are not of the same process",
        ),
        judge(
            "Control: the order-1 sample does not agree with the order-2 closed form",
            "linear moment equations",
            predicted="many standard errors",
            measured=f"{crossed:.1f} standard errors",
            tolerance="above 4",
            holds=crossed > 4,
            control=True,
            must_hold=False,
        ),
    ]


def _mean_gap(a: np.ndarray, b: np.ndarray, draws: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Difference of means along the last axis, and draws of it from its normal law (the samples are independent and large)."""
    gap = np.nanmean(a, axis=-1) - np.nanmean(b, axis=-1)
    error = np.sqrt(np.nanvar(a, axis=-1) / a.shape[-1] + np.nanvar(b, axis=-1) / b.shape[-1])
    return gap, gap + error * np.random.default_rng(0).normal(size=(draws, *gap.shape))


def _variance_ratio(a: np.ndarray, b: np.ndarray, draws: int = 1000) -> tuple[float, float, float]:
    """Ratio of variances with its 99% bootstrap interval."""
    rng = np.random.default_rng(0)
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]

    def resampled(v: np.ndarray) -> np.ndarray:
        return np.array([np.var(v[rng.integers(0, v.size, v.size)]) for _ in range(draws)])

    low, high = np.quantile(resampled(a) / resampled(b), [0.005, 0.995])
    return float(np.var(a) / np.var(b)), float(low), float(high)


def _network_claims(ds: Any) -> list[Claim]:
    steps, sgd = ds["step_size"].values, ds["network_sgd_shrinkage"].values
    gap, slope, interval = {}, {}, {}
    for name in NETWORK_FLOWS:
        gap[name], drawn = _mean_gap(ds["network_shrinkage"].sel(network_flow=name).values, sgd)
        slope[name] = float(_slope(steps, gap[name]))
        interval[name] = np.quantile(_slope(steps, drawn), [0.005, 0.995])
    where = "diagonal network, mean shrinkage of log alpha"

    def ladder(name: str) -> str:
        low, high = interval[name]
        shown = " -> ".join(f"{v:.1e}" for v in gap[name])
        return f"{shown}: slope {slope[name]:.2f} (99% interval {low:.2f} to {high:.2f})"

    error = ds["network_sgd_validation_error"].values[-1]
    of = {name: ds["network_validation_error"].sel(network_flow=name).values[-1] for name in NETWORK_FLOWS}
    exact, mean_loss = (_variance_ratio(of[name], error) for name in ("exact-2", "mean-loss-1"))
    lost = int(np.isnan(ds["network_shrinkage"].values).any(axis=(0, 1)).sum() + np.isnan(sgd).any(axis=0).sum())
    return [
        judge(
            f"The first-order flow with exact noise follows SGD to first weak order ({where})",
            LTE,
            predicted="slope 1 as gamma -> 0",
            measured=ladder("exact-1") + f"; {lost} seeds non-finite",
            tolerance="interval within .6 and 1.5",
            holds=interval["exact-1"][0] > 0.6 and interval["exact-1"][1] < 1.5,
            reason="not first order here, or too few seeds to tell",
        ),
        judge(
            f"The second-order flow with exact noise does to second ({where})",
            LTE,
            predicted="slope 2 or steeper before the limit",
            measured=ladder("exact-2"),
            tolerance="interval above 1.6",
            holds=interval["exact-2"][0] > 1.6,
            reason="not second order here, or too few seeds to tell",
        ),
        judge(
            "At the smallest step size its error is below a quarter of the first-order flow's",
            LTE,
            predicted="a share that falls with gamma",
            measured=f"{abs(gap['exact-2'][-1] / gap['exact-1'][-1]):.3f}",
            tolerance="0.25",
            holds=abs(gap["exact-2"][-1]) < 0.25 * abs(gap["exact-1"][-1]),
        ),
        judge(
            "The variance of the validation error is SGD's with exact noise (diagonal network, smallest step size)",
            LTE,
            predicted="ratio 1",
            measured=f"{exact[0]:.3f} (99% interval {exact[1]:.3f} to {exact[2]:.3f})",
            tolerance="interval within .85 and 1.15",
            holds=exact[1] > 0.85 and exact[2] < 1.15,
        ),
        judge(
            f"Control: with mean-loss noise it is not, though the mean has slope {slope['mean-loss-1']:.1f}",
            LTE,
            predicted="another ratio",
            measured=f"{mean_loss[0]:.3f} (99% interval {mean_loss[1]:.3f} to {mean_loss[2]:.3f})",
            tolerance="interval does not contain 1",
            holds=not mean_loss[1] <= 1 <= mean_loss[2],
            control=True,
        ),
    ]


def _law_claims(ds: Any) -> list[Claim]:
    mean = {name: ds["law_shrinkage"].sel(law=name).values for name in LAWS}
    noise = max(float((ds["law_error"].sel(law=name) / ds["law_shrinkage"].sel(law=name)).max()) for name in LAWS)
    ratio = {name: mean[name] / mean["sgd"] for name in LAWS if name != "sgd"}
    support = ds["law_support"].values
    # Two independent relative errors of at most `noise`: three standard errors of their ratio, over what is asked.
    sampling = 3 * np.sqrt(2) * noise
    slack = 0.02 + sampling

    def same(name: str, label: str) -> Claim:
        worst = float(np.abs(ratio[name] - 1).max())
        statement, source = (
            f"log alpha shrinks as in SGD, feature by feature: {label}",
            "Even, Pesme, Gunasekar, Flammarion 2023, product law",
        )
        if sampling > 0.02:
            return not_applicable(
                statement, source, f"too few seeds: three standard errors are {sampling:.1%}, more than the 2% to be tested"
            )
        return judge(
            statement,
            source,
            predicted="ratio 1 at every feature",
            measured=f"{ratio[name].min():.3f} to {ratio[name].max():.3f}",
            tolerance=f"2% and 3 standard errors, together {slack:.3f}",
            holds=worst < slack,
        )

    off = np.abs(ratio["mean-loss-1"] - 1).max()
    average = mean["mean-loss-1"].mean() / mean["sgd"].mean()
    short = float(ratio["exact-1"][support].min())
    return [
        same("per-sample", "the per-sample flow"),
        same("exact-2", "the second-order flow with exact noise"),
        judge(
            "Control: the mean-loss flow does so on average only",
            "Pesme, Pillaud-Vivien, Flammarion 2021, eq. (3)",
            predicted="ratio of means 1; of single features not",
            measured=f"mean {average:.3f}; features {ratio['mean-loss-1'].min():.2f} to {ratio['mean-loss-1'].max():.2f}",
            tolerance="mean within 15%, some feature off by more than 15%",
            holds=abs(average - 1) < 0.15 and off > 0.15,
            control=True,
        ),
        judge(
            "Control: the first-order flow with exact noise falls short on the support, by (gamma/2) int (X^T r / n)^2",
            LTE,
            predicted="below 1",
            measured=f"{short:.3f}",
            tolerance="below .9",
            holds=short < 0.9,
            control=True,
        ),
    ]


def plot(ds: Any) -> Any:
    """Three panels: errors of means, variances over gamma, and log alpha feature by feature."""
    figure, axes = new_figure(1, 3, size=(14, 4.4))
    styles = {
        "exact-1": (COLOURS["sgf"], "o", "-"),
        "exact-2": (COLOURS["sgd"], "s", "-"),
        "none-1": (COLOURS["gd"], "^", ":"),
        "mean-loss-1": (COLOURS["control"], "v", ":"),
        "mean-loss-2": (COLOURS["control"], "D", "--"),
    }
    steps = ds["closed_step"].values
    for name, (colour, marker, line) in styles.items():
        axes[0, 0].plot(steps, np.abs(ds["closed_error"].sel(flow=name)), line, marker=marker, color=colour, label=LABELS[name], ms=4)
        if name != "none-1":
            ratio = ds["closed_variance"].sel(flow=name).values / ds["closed_sgd_variance"].values
            axes[0, 1].plot(steps, ratio, line, marker=marker, color=colour, label=LABELS[name], ms=4)
    axes[0, 1].axhline(1, color="k", linewidth=0.8)
    tidy(axes[0, 0], title="Error of the mean loss\n(least squares, closed forms)", x="step size γ", y="|E L(flow) - E L(SGD)|")
    tidy(
        axes[0, 1], title="Variance of the weights over SGD's\n(least squares, closed forms)", x="step size γ", y="ratio", y_scale="linear"
    )
    names = {"per-sample": COLOURS["sgf"], "exact-2": COLOURS["sgd"], "exact-1": COLOURS["gd"], "mean-loss-1": COLOURS["control"]}
    labels = {"per-sample": "per-sample noise", **LABELS}
    for k, (name, colour) in enumerate(names.items()):
        ratio = ds["law_shrinkage"].sel(law=name).values / ds["law_shrinkage"].sel(law="sgd").values
        axes[0, 2].plot(np.arange(ratio.size) + 0.08 * k, ratio, "osDv"[k], color=colour, label=labels[name], ms=5)
    axes[0, 2].axhline(1, color="k", linewidth=0.8)
    tidy(
        axes[0, 2],
        title="Shrinkage of log α over SGD's\n(diagonal network, smallest γ)",
        x="feature",
        y="ratio",
        x_scale="linear",
        y_scale="linear",
    )
    for panel in axes[0]:
        panel.legend(frameon=False, fontsize=8)
    return figure
