"""The claims of the study, from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.alpha_shape import MOST_LOST, TRAINED, Config
from sgfbias.study import Claim, claim, control, source
from sgfbias.study.statistics import Estimate, estimate, jointly_finite, log_ratio

SHAPE = (
    f"{source('pesme2021', 'theorem 1: the limit minimises phi_alpha')}; "
    f"{source('woodworth2020')}: hence the shape of alpha matters"
)
HERE = "held-out tasks"
# The share of the training gain that held-out tasks must keep if a shape was learned.
KEPT = 0.5
# The largest probability at which finding the support does not pass for chance.
CHANCE = 1e-3
# A task counts as recovered if its error is below this share of |beta*|^2.
RECOVERED = 1e-2


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Judge that the learned alpha is better on held-out tasks because it found the
    support, and that it is not better where the support is another or is not shared.
    """
    elsewhere = log_ratio(ds["held_elsewhere_learned"], ds["held_elsewhere_uniform"], lost_as=-1)
    gain, half, words = _carried_over(ds, "", lost_as=1)
    vain_gain, vain_half, vain_words = _carried_over(ds, "scattered_", lost_as=-1)
    return [
        _all_landed(ds),
        _better(
            ds,
            "uniform",
            "On tasks never seen, the learned alpha beats the best uniform alpha",
            words=f"the best uniform alpha is {_uniform(ds)}",
        ),
        _better(
            ds,
            "l1",
            "On tasks never seen, the learned alpha beats the minimum l1 solution, which is the "
            "limit of ever smaller uniform alphas",
        ),
        _support(ds),
        claim(
            "What was learned is the shape, not the tasks: held-out tasks keep more than half of "
            f"the training gain, although {ds['support'].size} numbers were fitted",
            HERE,
            predicted="the same mean log ratio of the errors on held-out as on training tasks, "
            "apart from what a search over so few tasks overfits",
            measured=words,
            tolerance="a gain in training, and the interval of the last number below 0",
            holds=gain < 0 and half.high < 0,
            main=True,
            reason="the alphas fit accidents of the training tasks",
        ),
        _better(
            ds,
            "oracle",
            "On tasks never seen, the learned alpha does as well as one large and one small alpha "
            "that are set with the support known",
            below=1.25,
        ),
        _gradient(ds),
        control(
            "on held-out tasks with another support the learned alpha is worse than the best "
            "uniform alpha",
            SHAPE,
            predicted="geometric mean of the ratio of the errors above 1",
            measured="ratio "
            + elsewhere.shown(f"worse on {np.mean(elsewhere.values > 0):.0%} of the tasks"),
            tolerance="paired interval of the ratio above 1",
            holds=elsewhere.ratio.low > 1,
            main=True,
        ),
        control(
            "learned on tasks without a shared support, alpha only memorises these tasks: less "
            "than half of the training gain carries over to held-out tasks",
            HERE,
            predicted="no gain on held-out tasks, since by symmetry there is no shape to learn",
            measured=vain_words,
            tolerance="a gain in training, and the interval of the last number above 0",
            holds=vain_gain < 0 and vain_half.low > 0,
            reason="the gain on tasks with a shared support may not be due to the support",
        ),
    ]


def _uniform(ds: xr.Dataset) -> str:
    """The best uniform alpha in words, with a note if it is at an end of the grid."""
    value, grid = float(np.exp(ds["log_alpha_uniform"].values[0])), ds["alpha"].values
    ends = [
        word
        for word, end in (("smallest", grid[0]), ("largest", grid[-1]))
        if np.isclose(value, end)
    ]
    return f"{value:.1e}" + "".join(f" (the {word} of the grid)" for word in ends)


def _all_landed(ds: xr.Dataset) -> Claim:
    """The claim that hardly a task is lost, in the tests and during the searches."""
    columns = (
        *(f"{tasks}_{name}" for name in TRAINED for tasks in ("train", "held")),
        "held_oracle",
    )
    lost = {name: ~np.isfinite(ds[name].values) for name in columns}
    some = ", ".join(
        f"{name.replace('_', ' ')} {bad.sum()} of {bad.size}"
        for name, bad in lost.items()
        if bad.any()
    )
    searched = max(
        int(ds[f"{name}_excluded"].values.max()) for name in ("search", "scattered_search")
    )
    return claim(
        "Nearly all tasks have a limit: hardly any run diverges or is still on a plateau",
        HERE,
        predicted="no task is lost",
        measured=f"lost in the tests: {some or 'none'}; lost in an iteration of the searches: at "
        f"most {searched} of {ds['task'].size}",
        tolerance=f"at most {MOST_LOST:.0%} of any set of tasks",
        holds=max(searched / ds["task"].size, *(bad.mean() for bad in lost.values())) <= MOST_LOST,
        reason="the claims about the remaining tasks may not hold for all tasks; use a smaller "
        "step_size or more steps",
    )


def _better(
    ds: xr.Dataset, than: str, statement: str, *, below: float = 1, words: str = ""
) -> Claim:
    """The claim that the learned alpha's errors on held-out tasks, divided by those of
    the alpha `than`, have a geometric mean below `below`. If `below` is not 1, the
    claim only informs. `words` is added to what was measured.
    """
    ratio = log_ratio(ds["held_learned"], ds[f"held_{than}"], lost_as=1)
    learned, others = (
        np.mean(ds[f"held_{name}"].values < RECOVERED * ds["held_size"].values)
        for name in ("learned", than)
    )
    better = f"better on {np.mean(ratio.values < 0):.0%} of {ratio.values.size} tasks"
    return claim(
        statement,
        SHAPE,
        predicted=f"geometric mean of the ratio of the errors {'below 1' if below == 1 else '1'}",
        measured="ratio "
        + ratio.shown(
            better,
            f"error below {RECOVERED:.0%} of |beta*|^2 on {learned:.0%} of the tasks instead of "
            f"{others:.0%}",
            *filter(None, [words]),
        ),
        tolerance=f"paired interval of the ratio below {below:g}",
        holds=ratio.ratio.high < below,
        main=below == 1,
        must_hold=below == 1,
        reason="the alpha learned on the training tasks is not that good on held-out tasks",
    )


def _support(ds: xr.Dataset) -> Claim:
    """The claim that the largest learned alphas are those on the support."""
    from scipy.stats import hypergeom

    log_alpha, on = ds["log_alpha_learned"].values, ds["support"].values
    size = int(on.sum())
    top = int(on[np.argsort(-log_alpha, kind="stable")[:size]].sum())
    chance = float(hypergeom.sf(top - 1, on.size, size, size))
    least, most = log_alpha[on].min(), log_alpha[~on].max()
    return claim(
        "The search found the support, which it was never told: every learned alpha on the "
        "support is above every alpha off it",
        SHAPE,
        predicted=f"the {size} largest of {on.size} alphas are those on the support",
        measured=f"{top} of the {size} largest alphas are on the support (probability by chance "
        f"{chance:.1g}); log alpha is at least {least:.2f} on it and at most {most:.2f} off it",
        tolerance=f"all on the support, and the probability by chance below {CHANCE:g}",
        holds=least > most and chance < CHANCE,
        main=True,
        reason="some alphas off the support are as large as those on it, or there are too few "
        "coordinates to exclude chance",
    )


def _carried_over(ds: xr.Dataset, kind: str, *, lost_as: int) -> tuple[float, Estimate, str]:
    """The mean log ratio of the learned alpha's errors to the uniform alpha's on
    training tasks; an `Estimate` of the same on held-out tasks minus `KEPT` times it;
    and both in words.

    The two are subtracted and not divided, because their ratio has no useful interval
    if the gain in training is small.
    """
    train, held = (
        log_ratio(
            ds[f"{tasks}_{kind}learned"], ds[f"{tasks}_{kind}uniform"], lost_as=sign * lost_as
        )
        for tasks, sign in (("train", -1), ("held", 1))
    )
    gap, half = (
        estimate(
            lambda a, b: np.mean(b, axis=-1) - part * np.mean(a, axis=-1), train.values, held.values
        )
        for part in (1, KEPT)
    )
    shown = [
        f"{ratio.values.mean():.3f} {where}" + (f" ({ratio.words()})" if ratio.lost else "")
        for ratio, where in ((train, "in training"), (held, "held out"))
    ]
    words = (
        "mean log ratio of the errors to those of the best uniform alpha: "
        f"{', '.join(shown)}; difference {gap:+.3f}; held-out mean minus half of the training "
        f"mean {half:+.3f}"
    )
    return float(train.values.mean()), half, words


def _gradient(ds: xr.Dataset) -> Claim:
    """The claim that the gradients that the search follows are right."""
    pairs = [
        jointly_finite(a, b)
        for a, b in zip(ds["slope_pathwise"].values, ds["slope_difference"].values, strict=True)
    ]
    off = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) if b.size else np.inf for a, b in pairs]
    compared, total = sum(b.size for _, b in pairs), ds["slope_pathwise"].size
    return claim(
        "Gradients through simulation and landing agree with central differences, task by task "
        "along a random direction",
        "pathwise derivative and implicit function theorem",
        predicted="equal up to the error of the central differences",
        measured=f"relative gap {off[0]:.1e} at the start of the search, {off[1]:.1e} at "
        f"its end; {compared} of {total} derivatives compared",
        tolerance="below 1e-5 at the start and at the end",
        holds=max(off) < 1e-5 and compared / total >= 1 - MOST_LOST,
        reason="the search followed something other than the gradient",
    )
