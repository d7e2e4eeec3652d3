"""The claims and the picture of the study of label-noise schedules, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, bootstrap, judge
from sgfbias.plotting import COLOURS, new_figure, tidy

RULES = ("learned", "constant", "pulse", "none", "uniform", "reversed")
LABELS = "Pesme, Pillaud-Vivien, Flammarion 2021, section 5.3"
PAIRED = "held-out problems, the same path for both"
CRN = "central difference with common random numbers"
MOST_LOST = 0.05  # part of the seeds that may be lost before the others no longer speak for all
OVERFIT = 0.5  # part of the gain in training that would be worth nothing if it were gone held out
DIFFERENCE = 1e-5
ROUNDING = 1e-9


def _mean(sample: Any) -> Any:
    return np.mean(sample, axis=-1)


def _log_ratio(ds: Any, first: str, second: str, *, prefix: str = "", lost_as: int = 1) -> tuple[np.ndarray, str]:
    """Logarithm of the ratio of two rules' errors, seed by seed, and words on the seeds that either lost.

    A lost seed speaks against the claim: it counts as the largest (`lost_as` 1) or the smallest (-1) ratio seen.
    """
    errors = ds[f"{prefix}error"]
    with np.errstate(all="ignore"):
        ratio = np.log(errors.sel(rule=first).values) - np.log(errors.sel(rule=second).values)
    known = np.isfinite(ratio)
    worst = (ratio[known].max() if lost_as > 0 else ratio[known].min()) if known.any() else 10.0 * lost_as
    count = int(np.sum(~known))
    return np.where(known, ratio, worst), f"; {count} of {known.size} lost, counted as the worst seen" if count else ""


def _middle(ds: Any, rule: str) -> float:
    """Geometric mean of the held-out errors that are finite."""
    with np.errstate(all="ignore"):
        logs = np.log(ds["error"].sel(rule=rule).values)
    return float(np.exp(logs[np.isfinite(logs)].mean())) if np.isfinite(logs).any() else float("nan")


def _compare(ds: Any, first: str, second: str, *, lost_as: int = 1) -> tuple[float, float, str]:
    """99% interval of the geometric mean of the ratio of errors, and words."""
    ratio, lost = _log_ratio(ds, first, second, lost_as=lost_as)
    low, high = np.exp(bootstrap(_mean, ratio))
    return float(low), float(high), f"{np.exp(ratio.mean()):.3g} (99% interval {low:.3g} to {high:.3g}; {ratio.size} seeds{lost})"


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    return [
        _budget(ds),
        _beats_constant(ds),
        _generalises(ds),
        _gradient(ds),
        _reversed(ds),
        _against(ds, "pulse", "It is better than the best pulse, delta constant and then off: more than two numbers are worth learning"),
        _against(ds, "none", "It is better than no label noise"),
        _lost(ds),
    ]


def _sums(ds: Any) -> Any:
    """int delta^2 dt of every rule, of its stored schedule."""
    return np.square(ds["delta"].values).sum(axis=1) * float(ds.attrs["time"]) / ds.sizes["piece"]


def _budget(ds: Any) -> Claim:
    budget, sums, spent = float(ds.attrs["budget"]), _sums(ds), ds["spent"].values
    off = np.abs(spent - sums[:, None])
    worst = float(np.max(np.where(np.isfinite(off), off, 0))) / budget
    over = float(np.nanmax(np.where(np.isfinite(spent), spent, np.nan))) / budget - 1 if np.isfinite(spent).any() else np.inf
    shares = ", ".join(f"{rule} {value / budget:.3f}" for rule, value in zip(ds["rule"].values, sums, strict=True))
    return judge(
        f"The budget is kept, int delta^2 dt at most {budget:g} in the time {float(ds.attrs['time']):g}: what the simulated log alpha lost beyond int L",
        f"{LABELS}: log alpha falls by 2 gamma h int (L + delta^2)",
        predicted="the integral of the schedule that was to be run, at most the budget",
        measured=f"parts of the budget: {shares}; the runs differ from them by up to {worst:.0e} and are above 1 by {max(over, 0):.0e}",
        tolerance=f"{ROUNDING:g} of the budget, every seed and schedule",
        holds=worst < ROUNDING and over < ROUNDING,
        reason="the flow had another amount of label noise than stated",
    )


def _beats_constant(ds: Any) -> Claim:
    _, high, words = _compare(ds, "learned", "constant")
    constant, levels = float(ds["delta"].sel(rule="constant").values[0]), ds["level"].values
    edge = " (an end of the grid)" if np.isclose(constant, (levels[0], levels[-1])).any() else ""
    cost = {str(name): float(value) for name, value in zip(ds["method"].values, ds["cost"].values, strict=True)}
    return judge(
        "Within the budget, the learned schedule beats the best constant of a grid search of the same cost: validation error of the iterate at the end",
        f"{LABELS}: label noise for a while lowers the error",
        predicted="geometric mean of the errors' ratio below 1",
        measured=f"{words}; geometric means {_middle(ds, 'learned'):.3g} and {_middle(ds, 'constant'):.3g}, delta = {constant:.3g}{edge}; "
        f"{cost['search']:.2g} seed-steps, a gradient counted as {ds.attrs['gradient_runs']} runs, and {cost['constant']:.2g}",
        tolerance="99% interval, paired, below 1, and the grid not cheaper",
        holds=high < 1 and cost["constant"] >= cost["search"],
        reason="the learned schedule is not better than the best constant" if high >= 1 else "the grid had less to spend",
    )


def _generalises(ds: Any) -> Claim:
    train, _ = _log_ratio(ds, "learned", "constant", prefix="train_", lost_as=-1)
    held, lost = _log_ratio(ds, "learned", "constant")
    gap = held.mean() - train.mean()
    low, high = bootstrap(lambda a, b: _mean(b) - _mean(a), train, held)
    reach = max(abs(low), abs(high))
    return judge(
        f"The schedule is not fitted to its {train.size} training problems: on held-out ones the gain over the constant is the same",
        "two-sample comparison; training problems and paths are other draws of the same law",
        predicted="difference of mean log ratios 0, up to what 1 number per piece can overfit",
        measured=f"mean log ratio {train.mean():.3f} in training, {held.mean():.3f} held out{lost}: difference {gap:+.3f} (99% interval {low:+.3f} to {high:+.3f})",
        tolerance=f"a gain in training; the interval contains 0 and reaches no further than {OVERFIT:g} of the gain",
        holds=train.mean() < 0 and low <= 0 <= high and reach <= OVERFIT * abs(train.mean()),
        reason="the gain in training is not that on held-out problems" if not low <= 0 <= high else "too few seeds to tell, or no gain",
    )


def _gradient(ds: Any) -> Claim:
    slope, difference = ds["slope"].values, ds["difference"].values
    known = np.isfinite(slope) & np.isfinite(difference)
    scale = np.sqrt(np.mean(np.square(slope), axis=1, where=known))
    with np.errstate(all="ignore"):
        off = np.max(np.where(known, np.abs(slope - difference), 0), axis=1) / scale
    value, norm = np.exp(ds["search_value"].values), ds["search_gradient_norm"].values
    best = int(np.nanargmin(value))
    return judge(
        "The search followed true gradients: every seed's derivative, at the start and at the schedule found, along random signs",
        CRN,
        predicted="equal up to the difference's own error, of fourth order",
        measured=f"off by up to {off[0]:.0e} and {off[1]:.0e} of the root mean square; {int(np.sum(~known))} of {known.size} not finite. In {value.size} "
        f"gradients the training error fell from {value[0]:.3g} to {value[best]:.3g}, the norm of the mean gradient from {norm[0]:.2g} to {norm[best]:.1g} "
        f"(largest seed's share of its square {ds['share'].values[0]:.2f} and {ds['share'].values[1]:.2f})",
        tolerance=f"{DIFFERENCE:g}; at most {MOST_LOST:.0%} not finite",
        holds=np.all(off < DIFFERENCE) and np.mean(~known) <= MOST_LOST,
        reason="derivatives of the outcome are wrong",
    )


def _reversed(ds: Any) -> Claim:
    low, _, words = _compare(ds, "reversed", "learned", lost_as=-1)
    _, _, constant = _compare(ds, "reversed", "constant")
    return judge(
        "Control: the learned schedule backwards in time, of the same budget, is worse",
        f"{LABELS}: the same shrinkage of log alpha by the labels, but no time to converge after it",
        predicted="ratio of errors to the learned schedule above 1",
        measured=f"{words}; to the best constant {constant}",
        tolerance="99% interval above 1",
        holds=low > 1,
        control=True,
        reason="when the budget is spent does not matter",
    )


def _against(ds: Any, rule: str, statement: str) -> Claim:
    _, high, words = _compare(ds, "learned", rule)
    if rule == "pulse":
        delta = ds["delta"].sel(rule="pulse").values
        end = np.count_nonzero(delta) * float(ds.attrs["time"]) / delta.size
        words += (
            f"; delta = {delta[0]:.3g} until {end:.3g}, {float(ds['cost'].values[list(ds['method'].values).index('pulse')]):.2g} seed-steps"
        )
    return judge(
        statement,
        LABELS if rule == "none" else PAIRED,
        predicted="ratio of errors below 1",
        measured=words,
        tolerance="99% interval below 1",
        holds=high < 1,
        must_hold=False,
        reason="a pulse does as well within the interval" if rule == "pulse" else "noise is of no use here",
    )


def _lost(ds: Any) -> Claim:
    lost = {str(rule): int(count) for rule, count in zip(ds["rule"].values, np.sum(~np.isfinite(ds["error"].values), axis=1), strict=True)}
    searched, size = int(ds["search_excluded"].values.max()), ds.sizes["train"]
    grids = int(max(ds["constant_lost"].values.max(), ds["pulse_lost"].values.max()))
    some = ", ".join(f"{rule} {count}" for rule, count in lost.items() if count)
    return judge(
        "No seed diverges",
        PAIRED,
        predicted="0",
        measured=f"of {ds.sizes['seed']} held out: {some or 'none'}; up to {searched} of {size} in an iteration of the search, up to {grids} at a point of the grids",
        tolerance="0",
        holds=not some and searched == 0 and grids == 0,
        must_hold=False,
        reason="lost seeds are left out of the search and the grids, and count against the claims",
    )


STYLES = {
    "learned": (COLOURS["sgf"], "-", "learned"),
    "constant": (COLOURS["gd"], "-", "best constant"),
    "pulse": (COLOURS["sgd"], "--", "best pulse"),
    "none": ("#999999", ":", "no label noise"),
    "uniform": ("#999999", "-.", "constant, all the budget"),
    "reversed": (COLOURS["control"], "-", "learned, backwards"),
}


def plot(ds: Any) -> Any:
    """The schedules, the search, and the held-out errors."""
    figure, axes = new_figure(1, 3, size=(15, 4.8))
    left, middle, right = axes[0]
    edges = np.append(ds["piece"].values, float(ds.attrs["time"]))
    for rule in ("constant", "pulse", "learned"):
        colour, style, _ = STYLES[rule]
        left.stairs(ds["delta"].sel(rule=rule).values, edges, baseline=None, color=colour, linestyle=style, linewidth=1.8)
    tidy(left, title=f"Label noise, ∫δ² dt at most {float(ds.attrs['budget']):g}", x="flow time", y="δ", x_scale="linear", y_scale="linear")
    left.set_ylim(bottom=0)
    value, error, at = ds["search_value"].values, ds["search_error"].values, ds["iteration"].values
    colour = STYLES["learned"][0]
    middle.fill_between(at, np.exp(value - 2 * error), np.exp(value + 2 * error), color=colour, alpha=0.15, linewidth=0)
    middle.plot(at, np.exp(value), color=colour, linewidth=1.8, marker="o", markersize=3)
    for rule in ("constant", "pulse"):
        logs = np.log(ds["train_error"].sel(rule=rule).values)
        middle.axhline(np.exp(logs[np.isfinite(logs)].mean()), color=STYLES[rule][0], linestyle=STYLES[rule][1])
    tidy(middle, title="The search, on its training seeds", x="iteration", y="error, geometric mean, 2 standard errors", x_scale="linear")
    for rule in RULES:
        colour, style, label = STYLES[rule]
        values = np.sort(ds["error"].sel(rule=rule).values)
        right.plot(values, np.arange(1, values.size + 1) / values.size, color=colour, linestyle=style, label=label, linewidth=1.6)
    tidy(right, title="Validation error of the iterate, held-out seeds", x="error", y="part of the seeds below", y_scale="linear")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=len(RULES), frameon=False, fontsize=9)
    return figure
