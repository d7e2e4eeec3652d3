"""The claims of the study noise-anatomy, and its picture, from its dataset alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, judge, median_interval
from sgfbias.plotting import band, new_figure, tidy

P21 = "Pesme, Pillaud-Vivien, Flammarion 2021"
SSD = "after Sander, Sylvestre, Durmus 2024"
LABELS = {
    "none": "none",
    "mean-loss": "mean-loss",
    "per-sample": "per-sample",
    "minibatch": "exact, batch 1",
    "minibatch-4": "exact, batch 4 without replacement",
    "label": "label noise for a while",
    "sum": "exact, batch 1 + label noise",
    "isotropic": "mean-loss + isotropic",
}
SOURCES = {"label": f"{P21}, section 5.3", "isotropic": SSD, "per-sample": f"{P21}, appendix E.1"}


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    names = [str(name) for name in ds["noise"].values]
    return [
        *(_keeps(ds, name) for name in names if name != "isotropic"),
        _breaks(ds),
        *(_law(ds, name) for name in names),
        _wrong_law(ds),
        _noise_shrinks(ds),
        *_outcomes(ds),
    ]


def _ladder(ds: Any, name: str) -> tuple[np.ndarray, float, int]:
    """Median gaps over the seeds that survive at every width, their slope in dt, and how many those are."""
    gaps = ds["gap"].sel(noise=name).values
    alive = np.isfinite(gaps).all(axis=0)
    median = np.median(gaps[:, alive], axis=1) if alive.any() else np.full(len(gaps), np.nan)
    return median, float(np.polyfit(np.log(ds["dt"].values), np.log(median), 1)[0]) if alive.any() else np.nan, int(alive.sum())


def _shown(median: np.ndarray, slope: float, alive: int) -> str:
    return " -> ".join(f"{v:.1e}" for v in median) + f" at dt/gamma = 1, 1/4, 1/16: slope {slope:.2f}, {alive} seeds"


def _keeps(ds: Any, name: str) -> Claim:
    median, slope, alive = _ladder(ds, name)
    return judge(
        f"{LABELS[name]}: the iterate minimises phi_alpha_T on its fibre, alpha_T = sqrt(w_+ w_-), in weights coordinates",
        SOURCES.get(name, f"{P21}, Theorem 1"),
        predicted="relative gap -> 0 with dt, strong order >= 1/2",
        measured=_shown(median, slope, alive),
        tolerance="slope >= .4",
        holds=slope >= 0.4,
        reason="this noise leaves the span of the rows",
    )


def _breaks(ds: Any) -> Claim:
    median, slope, alive = _ladder(ds, "isotropic")
    others = max(_ladder(ds, str(name))[0][-1] for name in ds["noise"].values if name != "isotropic")
    return judge(
        "Control: noise with another support, isotropic, fails the same test",
        SSD,
        predicted="a gap that stays",
        measured=_shown(median, slope, alive) + f"; {median[-1] / others:.0f} times the largest of the others at the finest dt",
        tolerance="slope < .2 and at least 3 times",
        holds=slope < 0.2 and median[-1] > 3 * others,
        control=True,
    )


def _law(ds: Any, name: str) -> Claim:
    weights, law = ds["weights_shrinkage"].sel(noise=name).values, ds["law_shrinkage"].sel(noise=name).values
    alive = np.isfinite(weights)
    gap = weights[alive] - law[alive]
    scale = float(np.mean(law[alive]))
    error = float(np.std(gap, ddof=1) / np.sqrt(alive.sum()))
    # Euler's log(w_+ w_-) in weights has a bias of order dt against the law: dt/gamma = 1/16 of the shrinkage is generous.
    return judge(
        f"{LABELS[name]}: log alpha moves as its law says, weights coordinates against the law on the same path",
        SOURCES.get(name, f"{P21}, eq. (8)"),
        predicted=f"mean shrinkage {scale:.4f}",
        measured=f"off by {gap.mean():+.1e} (standard error {error:.1e})",
        tolerance="1/16 of the shrinkage, 3 standard errors and, without noise, 1/16 of gamma",
        holds=abs(gap.mean()) <= scale / 16 + 3 * error + (_config(ds, "step_size") / 16 if name == "none" else 0),
    )


def _wrong_law(ds: Any) -> Claim:
    weights, law = ds["weights_shrinkage"].sel(noise="minibatch").values, ds["law_shrinkage"].sel(noise="minibatch-4").values
    off = abs(np.nanmean(weights) / np.mean(law) - 1)
    return judge(
        "Control: the law of another scale does not fit: batches of 1 against the law of batches of 4",
        f"{P21}, eq. (8)",
        predicted="off by the ratio of the scales",
        measured=f"off by {off:.0%}",
        tolerance="above 50%",
        holds=off > 0.5,
        control=True,
    )


def _noise_shrinks(ds: Any) -> Claim:
    rows = {str(name): ds["weights_shrinkage"].sel(noise=name).values for name in ds["noise"].values}
    rows = {name: row[np.isfinite(row)] for name, row in rows.items()}
    error = {name: 3 * np.std(row, ddof=1) / np.sqrt(row.size) for name, row in rows.items()}
    still = float(np.mean(rows["none"]))
    least = min(float(np.mean(row) - error[name]) for name, row in rows.items() if name != "none")
    start = np.exp(float(ds.attrs["log_alpha_start"]))
    return judge(
        "Every noise lowers the effective initialisation sqrt(w_+ w_-), and without noise it stays: weights coordinates, the shorter runs",
        f"{P21}, Theorem 1",
        predicted=f"alpha = {start:g} without noise, as dt -> 0; less with any",
        measured=", ".join(f"{LABELS[name]} {start * np.exp(-np.mean(row)):.4f}" for name, row in rows.items()),
        tolerance="log alpha without noise within gamma/16; every other shrinkage, less 3 standard errors, above twice that without",
        holds=abs(still) < _config(ds, "step_size") / 16 and least > 2 * abs(still),
    )


def _config(ds: Any, name: str) -> float:
    return float(json.loads(ds.attrs["config"])[name])


def _outcomes(ds: Any) -> list[Claim]:
    start = float(ds.attrs["log_alpha_start"])
    names = [str(name) for name in ds["noise"].values]
    alpha = {name: float(np.exp(np.nanmean(ds["log_alpha"].sel(noise=name).values))) for name in names}
    error = {name: np.where(np.isfinite(v), v, np.inf) for name in names for v in [ds["landed_error"].sel(noise=name).values]}
    interval = {name: median_interval(error[name]) for name in names}
    listed = ", ".join(f"{LABELS[name]} {alpha[name]:.4f}" for name in names)
    n = _config(ds, "n")
    c_b = (n - 4) / (4 * (n - 1))
    shrinkage = {name: start - np.log(alpha[name]) for name in names}
    share = shrinkage["minibatch-4"] / shrinkage["minibatch"]
    inside = ("mean-loss", "per-sample", "minibatch")
    spread = max(alpha[name] for name in inside) / min(alpha[name] for name in inside)
    features = {name: np.nanmean(ds["log_alpha"].sel(noise=name).values, axis=0) for name in inside}
    differ = float(np.max(np.abs(features["mean-loss"] - features["per-sample"]) / (start - features["per-sample"])))

    def below(a: str, b: str, *, statement: str, source: str) -> Claim:
        (low, high), (low_b, high_b) = interval[a], interval[b]
        return judge(
            statement,
            source,
            predicted=f"median validation error of the selected solution below that of {LABELS[b]}",
            measured=f"{np.median(error[a]):.2e} (99% interval {low:.1e} to {high:.1e}) against {np.median(error[b]):.2e} ({low_b:.1e} to {high_b:.1e})",
            tolerance="the intervals do not touch",
            holds=high < low_b,
        )

    return [
        judge(
            "Effective alpha is in the order of the noises' scales: geometric means at the end of the long runs",
            f"{P21}, Theorem 1",
            predicted="label noise for a while < mean-loss; batches of 1 < batches of 4",
            measured=listed + " (without noise by construction)",
            tolerance="the order",
            holds=alpha["label"] < alpha["mean-loss"] and alpha["minibatch"] < alpha["minibatch-4"],
        ),
        below("mean-loss", "none", statement="Noise helps: mean-loss noise against none", source=f"{P21}, section 3"),
        below("minibatch", "minibatch-4", statement="Scale matters: batches of 1 against batches of 4", source=f"{P21}, section 2.2"),
        below(
            "label", "mean-loss", statement="Scale matters: label noise for a while against mean-loss noise", source=f"{P21}, section 5.3"
        ),
        judge(
            "Scale enters as c_b: shrinkage of log alpha under batches of 4 without replacement over that under batches of 1",
            "finite-population correction, c_b = (n - b) / (b (n - 1))",
            predicted=f"{c_b:.3f} as gamma -> 0",
            measured=f"{share:.3f}",
            tolerance="25%, for the loss integrals differ",
            holds=abs(share / c_b - 1) < 0.25,
            must_hold=False,
        ),
        judge(
            "Shape matters feature by feature, and little on average: mean-loss, per-sample and exact noise",
            f"{P21}, appendix E.1",
            predicted="one effective alpha on average",
            measured=f"geometric means within a factor {spread:.3f}; single features' shrinkage differs by up to {differ:.0%}",
            tolerance="factor 1.25; features differ by more than 10%",
            holds=spread < 1.25 and differ > 0.1,
            must_hold=False,
        ),
        judge(
            "Support matters: at the end of the long runs the isotropic flow is off its own minimiser, the others are on it",
            SSD,
            predicted="0 for the others, in mirror coordinates by construction",
            measured=f"isotropic, median {np.nanmedian(ds['fibre_gap'].sel(noise='isotropic').values):.1e}; others at most "
            + f"{max(np.nanmax(ds['fibre_gap'].sel(noise=name).values) for name in names if name != 'isotropic'):.1e}",
            tolerance="above 1e-3",
            holds=np.nanmedian(ds["fibre_gap"].sel(noise="isotropic").values) > 1e-3,
            control=True,
        ),
    ]


PALETTE = ("#4d4d4d", "#1b70b7", "#5aa9e6", "#d95f02", "#f0a35e", "#2a8f5b", "#7a5195", "#c23b8f")


def plot(ds: Any) -> Any:
    """Four panels: the theorem's gap against dt, effective alpha, validation error along the runs and of the selected solution."""
    figure, axes = new_figure(2, 2, size=(13, 8.2))
    names = [str(name) for name in ds["noise"].values]
    for name, colour in zip(names, PALETTE, strict=False):
        median, _, _ = _ladder(ds, name)
        style = "--" if name == "isotropic" else "-"
        axes[0, 0].plot(ds["dt"].values, median, style, marker="o", color=colour, label=LABELS[name])
        band(axes[1, 0], ds["time"].values, ds["validation_error"].sel(noise=name).values, colour=colour, label=LABELS[name])
    tidy(axes[0, 0], title="Distance from the theorem's solution, weights coordinates", x="dt / γ", y="relative gap, median")
    tidy(axes[1, 0], title="Validation error along the runs", x="flow time", y="validation error")
    for axis, values, title, x in (
        (
            axes[0, 1],
            [np.exp(np.nanmean(ds["log_alpha"].sel(noise=n).values, axis=1)) for n in names],
            "Effective initialisation",
            "α at the end",
        ),
        (
            axes[1, 1],
            [ds["landed_error"].sel(noise=n).values for n in names],
            "Error of the selected solution",
            "validation error",
        ),
    ):
        for row, (value, colour) in enumerate(zip(values, PALETTE, strict=False)):
            known = value[np.isfinite(value)]
            low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
            axis.plot([low, high], [row, row], color=colour, linewidth=4, alpha=0.5)
            axis.plot([middle], [row], "o", color=colour)
        tidy(axis, title=title + ", 5% to 95% of the seeds", x=x, y="", y_scale="linear")
        axis.set_yticks(range(len(names)), [LABELS[n] for n in names])
        axis.invert_yaxis()
    axes[1, 0].legend(frameon=False, fontsize=8, loc="lower left")  # its colours are those of every panel
    return figure
