"""The claims of the study are judged from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.noise_schedule import GRADIENT_RUNS, MOST_LOST, Config
from sgfbias.study import Claim, claim, control, source
from sgfbias.study.statistics import LogRatio, estimate, geometric_mean, log_ratio

LABELS = source("pesme2021", "section 5.3")
PAIRED = "held-out problems, with the same path for both schedules"
KEPT = 0.5  # the share of the training gain that held-out problems must keep
DIFFERENCE = 1e-5  # relative tolerance of the derivatives
ROUNDING = 1e-9  # relative tolerance of the budget


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The learned schedule keeps its budget, beats the best constant on held-out
    problems, and is worse when it is run backwards in time.
    """
    reverse = _ratio(ds, "reversed", "learned", lost_as=-1)
    pulse = ds["delta"].sel(rule="pulse").values
    end = np.count_nonzero(pulse) * config.time / pulse.size
    return [
        _budget(ds, config),
        _beats_constant(ds),
        _generalises(ds),
        _gradient(ds),
        control(
            "the learned schedule backwards in time, which spends the same budget, is worse",
            f"{LABELS}: the labels shrink log alpha as much, but no time is left to converge "
            "afterwards",
            predicted="ratio of errors, backwards over the learned schedule, above 1",
            measured=f"{_shown(reverse)}; over the best constant, "
            f"{_shown(_ratio(ds, 'reversed', 'constant'))}",
            tolerance="99% interval of the first ratio above 1",
            holds=reverse.ratio.low > 1,
            main=True,
            reason="it does not matter when the budget is spent",
        ),
        _informs(
            "The learned schedule is better than the best pulse, which keeps delta constant and "
            "then switches it off: more than two numbers are worth learning",
            PAIRED,
            _ratio(ds, "learned", "pulse"),
            f"the best pulse has delta = {pulse[0]:.3g} until time {end:.3g}; its grid cost "
            f"{float(ds['cost'].sel({'method': 'pulse'})):.2g} seed-steps",
            reason="the interval reaches 1, so a pulse may do as well",
        ),
        _informs(
            "The learned schedule is better than no label noise",
            LABELS,
            _ratio(ds, "learned", "none"),
            reason="the interval reaches 1, so label noise may be of no use here",
        ),
        _lost(ds),
    ]


def _ratio(
    ds: xr.Dataset, first: str, second: str, *, prefix: str = "", lost_as: int = 1
) -> LogRatio:
    """Log ratios of the validation errors under two schedules, seed by seed."""
    errors = ds[f"{prefix}error"]
    return log_ratio(errors.sel(rule=first), errors.sel(rule=second), lost_as=lost_as)


def _shown(ratio: LogRatio, *words: str) -> str:
    """The ratio with its interval and its number of seeds, as text."""
    return "ratio " + ratio.shown(f"{ratio.values.size} seeds", *words)


def _informs(statement: str, where: str, ratio: LogRatio, *words: str, reason: str) -> Claim:
    """A claim that the ratio is below 1, which may fail without breaking the study."""
    return claim(
        statement,
        where,
        predicted="ratio of errors, learned schedule over the other, below 1",
        measured=_shown(ratio, *words),
        tolerance="99% interval below 1",
        holds=ratio.ratio.high < 1,
        must_hold=False,
        reason=reason,
    )


def _budget(ds: xr.Dataset, config: Config) -> Claim:
    sums = np.square(ds["delta"].values).sum(axis=1) * config.time / config.pieces / config.budget
    spent = ds["spent"].values / config.budget
    known = np.isfinite(spent)
    worst = np.abs(spent - sums[:, None])[known].max() if known.any() else np.inf
    over = spent[known].max() - 1 if known.any() else np.inf
    shares = ", ".join(
        f"{rule} {value:.3f}" for rule, value in zip(ds["rule"].values, sums, strict=True)
    )
    return claim(
        f"The budget is kept: int delta^2 dt is at most {config.budget:g} in the flow time "
        f"{config.time:g}, as the fall of log alpha beyond int L shows",
        f"{LABELS}: log alpha falls by 2 gamma h int (L + delta^2) dt",
        predicted="label noise in the runs equal to the integral of the schedule, and at most "
        "the budget",
        measured=f"shares of the budget that the schedules spend: {shares}; the runs differ from "
        f"these shares by up to {worst:.0e} and exceed the budget by {max(over, 0):.0e} of it; "
        f"{np.sum(~known)} of {known.size} runs diverged and are not compared",
        tolerance=f"{ROUNDING:g} of the budget, for every schedule and every seed that did not "
        f"diverge; at most {MOST_LOST:.0%} of the runs not compared",
        holds=worst < ROUNDING and over < ROUNDING and np.mean(~known) <= MOST_LOST,
        reason="the flow had another amount of label noise than the schedule says",
    )


def _beats_constant(ds: xr.Dataset) -> Claim:
    ratio, levels = _ratio(ds, "learned", "constant"), ds["level"].values
    search, grid = (float(ds["cost"].sel({"method": name})) for name in ("search", "constant"))
    constant = float(ds["delta"].sel(rule="constant").values[0])
    edge = " (an end of the grid)" if np.isclose(constant, (levels[0], levels[-1])).any() else ""
    learned, best = (geometric_mean(ds["error"].sel(rule=rule)) for rule in ("learned", "constant"))
    return claim(
        "Within the budget, the learned schedule beats the best constant of a grid search that "
        "costs as much: the validation error of the last iterate is smaller",
        f"{LABELS}: label noise for a while lowers the error",
        predicted="geometric mean of the ratio of errors, learned over constant, below 1",
        measured=_shown(
            ratio,
            f"geometric mean error {learned:.3g} with the learned schedule and {best:.3g} with "
            f"the constant delta = {constant:.3g}{edge}",
            f"the search cost {search:.2g} seed-steps, with a gradient counted as "
            f"{GRADIENT_RUNS} runs, and the grid {grid:.2g}",
        ),
        tolerance="99% interval of the paired ratio below 1, and a grid that is not cheaper than "
        "the search",
        holds=ratio.ratio.high < 1 and grid >= search,
        main=True,
        reason="the learned schedule is not better than the best constant"
        if ratio.ratio.high >= 1
        else "the grid search had a smaller budget of computing than the search",
    )


def _generalises(ds: xr.Dataset) -> Claim:
    train, held = (
        _ratio(ds, "learned", "constant", prefix="train_", lost_as=-1),
        _ratio(ds, "learned", "constant"),
    )
    gain = float(train.values.mean())
    gap, kept = (
        estimate(
            lambda a, b: np.mean(b, axis=-1) - part * np.mean(a, axis=-1), train.values, held.values
        )
        for part in (1, KEPT)
    )
    shown = (
        f"mean log ratio of errors, learned over constant: {gain:.3f} in training, "
        f"{held.values.mean():.3f} held out"
    )
    return claim(
        f"The schedule is not fitted to its {train.values.size} training problems: on held-out "
        "problems it keeps more than half of its gain over the constant",
        "two-sample comparison; training and held-out problems and paths are independent draws "
        "from one distribution",
        predicted="equal mean log ratios in training and held out, up to what one learned number "
        "per piece can overfit",
        measured="; ".join(
            filter(
                None,
                (
                    shown,
                    _named("in training", train),
                    _named("held out", held),
                    f"difference {gap:+.3f}",
                    f"held-out mean minus half of the training mean {kept:+.3f}",
                ),
            )
        ),
        tolerance="a gain in training, and the 99% interval of the last number below 0",
        holds=gain < 0 and kept.high < 0,
        main=True,
        reason="there is no gain in training, there are too few seeds to decide, or the gain in "
        "training differs from the gain on held-out problems",
    )


def _named(where: str, ratio: LogRatio) -> str:
    """The number of lost pairs and where they were lost; an empty text if none were."""
    return f"{where} {ratio.words()}" if ratio.lost else ""


def _gradient(ds: xr.Dataset) -> Claim:
    slope, difference = ds["slope"].values, ds["difference"].values
    known = np.isfinite(slope) & np.isfinite(difference)
    count = np.maximum(known.sum(axis=1), 1)
    scale = np.sqrt(np.sum(np.square(np.where(known, slope, 0)), axis=1) / count)
    with np.errstate(all="ignore"):
        gaps, doubts = (
            np.where(known, v, 0) / scale[:, None]
            for v in (
                np.abs(slope - difference),
                np.nan_to_num(ds["doubt"].values, nan=np.inf, posinf=np.inf),
            )
        )
    off = np.where(known.any(axis=1), gaps.max(axis=1), np.inf)
    coarse = known & ~(doubts <= DIFFERENCE)
    # The estimate of the error holds for small widths only, so twice it is allowed.
    close = np.all(gaps[known] <= DIFFERENCE + 2 * doubts[known])
    value, norm, share = (
        np.exp(ds["search_value"].values),
        ds["search_gradient_norm"].values,
        ds["share"].values,
    )
    best = int(np.argmin(np.where(np.isfinite(value), value, np.inf)))
    return claim(
        "The search followed true gradients: at the start and at the schedule found, every "
        "seed's derivative along a direction of random signs equals the central difference",
        "central difference with common random numbers",
        predicted="equal derivatives, up to the error of the central difference, which half the "
        "width shows",
        measured=f"derivatives differ by up to {off[0]:.0e} at the start and {off[1]:.0e} at the "
        f"schedule found, relative to their root mean square; {int(np.sum(~known))} of "
        f"{known.size} are not finite, and of {int(coarse.sum())} the central difference has a "
        f"larger error than {DIFFERENCE:g} (up to "
        f"{np.max(doubts, initial=0, where=known):.0e}). In {value.size} gradients the training "
        f"error fell from {value[0]:.3g} to {value[best]:.3g} and the norm of the mean gradient "
        f"from {norm[0]:.2g} to {norm[best]:.1g} (largest seed's share of the squared gradients: "
        f"{share[0]:.2f} at the start, {share[1]:.2f} at the schedule found)",
        tolerance=f"relative difference {DIFFERENCE:g} plus twice the seed's error of the central "
        f"difference; this error is larger than {DIFFERENCE:g}, or a derivative not finite, for "
        f"at most {MOST_LOST:.0%} of the derivatives",
        holds=known.any() and close and np.mean(~known | coarse) <= MOST_LOST,
        main=True,
        reason="the derivatives of the outcome are wrong",
    )


def _lost(ds: xr.Dataset) -> Claim:
    sets = {
        f"{rule} on {kind} seeds": np.sum(~np.isfinite(values)) / values.size
        for name, kind in (("error", "held-out"), ("train_error", "training"))
        for rule, values in zip(ds["rule"].values, ds[name].values, strict=True)
    }
    searched, *grids = (
        int(ds[name].values.max()) for name in ("search_excluded", "constant_lost", "pulse_lost")
    )
    some = ", ".join(f"{name} {share:.1%}" for name, share in sets.items() if share)
    return claim(
        "Hardly any seed diverges",
        PAIRED,
        predicted="no seed diverges",
        measured=f"diverged: {some or 'none'} of the {ds.sizes['seed']} held-out and "
        f"{ds.sizes['train']} training seeds; up to {searched} training seeds in one iteration of "
        f"the search; up to {max(grids)} seeds at one point of the grids",
        tolerance=f"at most {MOST_LOST:.0%} of the seeds, for every schedule and in every "
        "iteration of the search (a point of the grids that loses more is passed over)",
        holds=max(searched / ds.sizes["train"], *sets.values()) <= MOST_LOST,
        reason="the claims about the remaining seeds may not hold for all seeds; use a smaller "
        "step_size",
    )
