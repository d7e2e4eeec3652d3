"""The claims and the picture of the study of alpha's shape, from its dataset alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, bootstrap, judge
from sgfbias.plotting import COLOURS, new_figure, tidy

SHAPE = (
    "Pesme, Pillaud-Vivien, Flammarion 2021, theorem 1: the limit minimises phi_alpha; Woodworth et al. 2020: so the shape of alpha counts"
)
PATHWISE = "pathwise derivative and implicit function theorem"
HERE = "held-out tasks"
MOST_LOST = 0.05  # part of the tasks that may be lost before the others no longer speak for all
KEPT = 0.5  # part of the gain that a shape worth learning carries over
CHANCE = 1e-3
RECOVERED = 1e-2  # of |beta*|^2


def _mean(sample: Any) -> Any:
    return np.mean(sample, axis=-1)


def _log_ratio(ds: Any, first: str, second: str, *, lost_as: int) -> tuple[np.ndarray, str]:
    """Logarithms of the ratio of two columns of errors, task by task, and words on the tasks that either lost.

    A lost task speaks against the claim: it counts as the largest (`lost_as` 1) or the smallest (-1) ratio seen.
    """
    ratio = np.log(ds[first].values) - np.log(ds[second].values)
    known = np.isfinite(ratio)
    worst = (ratio[known].max() if lost_as > 0 else ratio[known].min()) if known.any() else 10.0 * lost_as
    count = int(np.sum(~known))
    return np.where(known, ratio, worst), f" ({count} of {known.size} lost, counted as the worst seen)" if count else ""


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    return [
        _all_landed(ds),
        _better(ds, "uniform", f"The learned alpha beats the best uniform one, {_uniform(ds)}, on tasks never seen", SHAPE),
        _better(ds, "l1", "It beats the minimum l1 solution, which is the limit of ever smaller uniform alphas", SHAPE),
        _support(ds),
        _generalises(ds),
        _oracle(ds),
        _gradient(ds),
        _elsewhere(ds),
        _scattered(ds),
    ]


def _uniform(ds: Any) -> str:
    best, grid = float(np.exp(ds["log_alpha_uniform"].values[0])), ds["alpha"].values
    edge = np.isclose(best, (grid[0], grid[-1]))
    return f"{best:.1e}" + (f" (the {'smallest' if edge[0] else 'largest'} of the grid)" if edge.any() else "")


def _all_landed(ds: Any) -> Claim:
    columns = ("train_learned", "train_uniform", "held_learned", "held_uniform", "held_oracle", "train_scattered_learned",
               "train_scattered_uniform", "held_scattered_learned", "held_scattered_uniform")  # fmt: skip
    lost = {name: int(np.sum(~np.isfinite(ds[name].values))) for name in columns}
    some = ", ".join(f"{name.replace('_', ' ')} {count} of {ds[name].size}" for name, count in lost.items() if count)
    searched = max(int(ds[f"{name}_excluded"].values.max()) for name in ("search", "scattered_search"))
    share = max(searched / ds["task"].size, *(count / ds[name].size for name, count in lost.items()))
    return judge(
        "Tasks have a limit: hardly one diverges, or is still on a plateau",
        HERE,
        predicted="none lost",
        measured=f"lost: {some or 'none'}; up to {searched} of {ds['task'].size} during the searches",
        tolerance=f"at most {MOST_LOST:.0%} of any set of tasks",
        holds=share <= MOST_LOST,
        reason="what is said of the others may not hold of all: use a smaller step_size, or more steps",
    )


def _better(ds: Any, than: str, statement: str, source: str) -> Claim:
    ratio, lost = _log_ratio(ds, "held_learned", f"held_{than}", lost_as=1)
    low, high = np.exp(bootstrap(_mean, ratio))
    found = {name: np.mean(ds[f"held_{name}"].values < RECOVERED * ds["held_size"].values) for name in ("learned", than)}
    return judge(
        statement,
        source,
        predicted="geometric mean of the errors' ratio below 1",
        measured=f"{np.exp(ratio.mean()):.3g} (99% interval {low:.3g} to {high:.3g}); better on {np.mean(ratio < 0):.0%} of {ratio.size} tasks; "
        f"error below {RECOVERED:.0%} of |beta*|^2 on {found['learned']:.0%} instead of {found[than]:.0%}{lost}",
        tolerance="interval, paired, below 1",
        holds=high < 1,
        reason="the shape learned on the training tasks is of no use here",
    )


def _support(ds: Any) -> Claim:
    log_alpha, on = ds["log_alpha_learned"].values, ds["support"].values
    size = int(on.sum())
    top = int(on[np.argsort(-log_alpha, kind="stable")[:size]].sum())
    chance = sum(math.comb(size, k) * math.comb(on.size - size, size - k) for k in range(top, size + 1)) / math.comb(on.size, size)
    least, most = log_alpha[on].min(), log_alpha[~on].max()
    return judge(
        "It found the support, which it was never told: every alpha on it is above every alpha off it",
        SHAPE,
        predicted=f"the {size} largest of {on.size} are the support",
        measured=f"{top} of {size} (by chance {chance:.1g}); log alpha on it from {least:.2f}, off it up to {most:.2f}",
        tolerance=f"all, and by chance below {CHANCE:g}",
        holds=least > most and chance < CHANCE,
        reason="some alphas off the support are as large as those on it",
    )


def _kept(ds: Any, kind: str = "", *, lost_as: int = 1) -> tuple[float, float, float, str]:
    """The log ratio to the uniform alpha in training; that of held-out tasks less `KEPT` times it, 99% interval; and words.

    A difference, not the ratio of the two: a ratio has no interval to speak of where the gain in training is small.
    """
    train, lost = _log_ratio(ds, f"train_{kind}learned", f"train_{kind}uniform", lost_as=-lost_as)
    held, missed = _log_ratio(ds, f"held_{kind}learned", f"held_{kind}uniform", lost_as=lost_as)
    gap = bootstrap(lambda a, b: _mean(b) - _mean(a), train, held)
    low, high = bootstrap(lambda a, b: _mean(b) - KEPT * _mean(a), train, held)
    words = (
        f"mean log ratio to the uniform alpha {train.mean():.3f} in training{lost}, {held.mean():.3f} held out{missed}; "
        f"gap {held.mean() - train.mean():+.3f} (99% interval {gap[0]:+.3f} to {gap[1]:+.3f}); "
        f"held out less half of that in training {held.mean() - KEPT * train.mean():+.3f} ({low:+.3f} to {high:+.3f})"
    )
    return float(train.mean()), low, high, words


def _generalises(ds: Any) -> Claim:
    gain, _, high, words = _kept(ds)
    return judge(
        f"What was learned is the shape, not the tasks: held-out tasks keep most of the gain, with {ds['support'].size} numbers fitted",
        HERE,
        predicted="the log ratio held out is that in training, but for what a search over so few tasks overfits",
        measured=words,
        tolerance="a gain in training; more than half of it held out: interval of the last difference below 0",
        holds=gain < 0 and high < 0,
        reason="the alphas fit the training tasks' accidents",
    )


def _scattered(ds: Any) -> Claim:
    gain, low, _, words = _kept(ds, "scattered_", lost_as=-1)
    return judge(
        "Control: learned on tasks without a shared support, the gain in training is memory and does not carry over",
        HERE,
        predicted="no gain held out: by symmetry there is no shape to be learned",
        measured=words,
        tolerance="a gain in training; less than half of it held out: interval of the last difference above 0",
        holds=gain < 0 and low > 0,
        control=True,
        reason="the gain on shared supports may not be owed to the support",
    )


def _elsewhere(ds: Any) -> Claim:
    ratio, lost = _log_ratio(ds, "held_elsewhere_learned", "held_elsewhere_uniform", lost_as=-1)
    low, high = np.exp(bootstrap(_mean, ratio))
    return judge(
        "Control: on held-out tasks with another support the learned alpha is worse than the uniform one",
        SHAPE,
        predicted="geometric mean of the errors' ratio above 1",
        measured=f"{np.exp(ratio.mean()):.3g} (99% interval {low:.3g} to {high:.3g}); worse on {np.mean(ratio > 0):.0%}{lost}",
        tolerance="interval, paired, above 1",
        holds=low > 1,
        control=True,
    )


def _oracle(ds: Any) -> Claim:
    """Part of the way from the uniform alpha to a shape told the support, in mean log error."""
    told, lost = _log_ratio(ds, "held_learned", "held_oracle", lost_as=1)
    low, high = np.exp(bootstrap(_mean, told))
    return judge(
        "It does as well as one large and one small alpha set with the support known",
        SHAPE,
        predicted="geometric mean of the errors' ratio 1",
        measured=f"{np.exp(told.mean()):.3f} (99% interval {low:.3f} to {high:.3f}){lost}",
        tolerance="interval below 1.25",
        holds=high < 1.25,
        must_hold=False,
        reason="something of the support, or of the two levels, is not found",
    )


def _gradient(ds: Any) -> Claim:
    one, two = ds["slope_pathwise"].values, ds["slope_difference"].values
    known = np.isfinite(one) & np.isfinite(two)
    off = [float(np.linalg.norm((a - b)[k]) / np.linalg.norm(b[k])) if k.any() else np.inf for a, b, k in zip(one, two, known, strict=True)]
    return judge(
        "Gradients through simulation and landing agree with central differences, task by task along a random direction",
        PATHWISE,
        predicted="equal, up to the differences' own error",
        measured=f"relative difference {off[0]:.1e} at the start of the search, {off[1]:.1e} at its end; {int(known.sum())} of {known.size} compared",
        tolerance="below 1e-5 at both",
        holds=max(off) < 1e-5 and known.mean() >= 1 - MOST_LOST,
        reason="the search followed something that is not the gradient",
    )


def plot(ds: Any) -> Any:
    """The learned alphas, the search, and the laws of the error on held-out tasks."""
    figure, axes = new_figure(1, 3, size=(16, 5))
    panel, on, x = axes[0, 0], ds["support"].values, ds["coordinate"].values
    floor = float(min(ds["log_alpha_learned"].values.min(), ds["log_alpha_uniform"].values.min())) - 0.3
    for where, colour, label in ((~on, COLOURS["gd"], "off the support"), (on, COLOURS["sgd"], "on the support")):
        values = ds["log_alpha_learned"].values[where]
        panel.vlines(x[where], floor, values, color=colour, linewidth=1.2, alpha=0.6)
        panel.plot(x[where], values, "o", color=colour, markersize=5, label=label)
    panel.axhline(float(ds["log_alpha_uniform"].values[0]), color=COLOURS["sgf"], linestyle="--", linewidth=1.5, label="best uniform α")
    panel.set_ylim(bottom=floor)
    panel.plot(
        x, ds["log_alpha_scattered"].values, "x", color=COLOURS["control"], markersize=4, alpha=0.7, label="no shared support (control)"
    )
    tidy(panel, title="Learned log α, one per coordinate", x="coordinate", y="log α", x_scale="linear", y_scale="linear")

    panel = axes[0, 1]
    for name, colour, label in (
        ("search", COLOURS["sgd"], "training, shared support"),
        ("scattered_search", COLOURS["control"], "training, no shared support (control)"),
    ):
        value, error = ds[f"{name}_value"].values, ds[f"{name}_error"].values
        iteration = np.arange(value.size)
        panel.plot(iteration, np.exp(value), color=colour, label=label, linewidth=1.6)
        panel.fill_between(iteration, np.exp(value - 2 * error), np.exp(value + 2 * error), color=colour, alpha=0.15, linewidth=0)
    for name, colour, label in (
        ("held_learned", COLOURS["sgd"], "held out, shared support"),
        ("held_scattered_learned", COLOURS["control"], "held out, no shared support (control)"),
    ):
        level = float(np.exp(np.nanmean(np.log(ds[name].values))))
        panel.axhline(level, color=colour, linestyle=":", linewidth=1.6, label=label)
    tidy(panel, title="The search", x="iteration", y="geometric mean of the error, ±2 standard errors", x_scale="linear")

    panel = axes[0, 2]
    for name, colour, label, style in (
        ("held_learned", COLOURS["sgd"], "learned α", "-"),
        ("held_oracle", COLOURS["gd"], "support known", "--"),
        ("held_uniform", COLOURS["sgf"], "best uniform α", "-"),
        ("held_l1", COLOURS["sgf"], "minimum l1", ":"),
        ("held_elsewhere_learned", COLOURS["control"], "learned α, another support", "-"),
    ):
        values = np.sort(ds[name].values[np.isfinite(ds[name].values)])
        panel.step(
            values, np.arange(1, values.size + 1) / values.size, where="post", color=colour, linestyle=style, label=label, linewidth=1.6
        )
    tidy(panel, title="Held-out tasks", x="error |β − β*|²", y="distribution function", y_scale="linear")
    for panel, columns in zip(axes[0], (2, 2, 3), strict=True):
        panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns)
    return figure
