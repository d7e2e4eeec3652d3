"""Figure 5: gradient descent that starts from the effective initialisation of an SGD run lands where that run landed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias.core.brownian import seeds
from sgfbias.core.claim import Claim, judge, median_interval, not_applicable
from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.pesme2021 import common
from sgfbias.diagonal.pesme2021.common import P21, FigureConfig, Say
from sgfbias.diagonal.selection import select_many
from sgfbias.plotting import COLOURS, new_figure, tidy

FIGURE = f"{P21}, figure 5"
E23 = "Even, Pesme, Gunasekar, Flammarion 2023: the laws of SGD and of gradient descent, with their offsets"
OTHERS = {
    "half": "half as far down, sqrt(alpha alpha_inf)",
    "twice": "twice as far down, alpha_inf^2 / alpha",
    "shuffled": "alpha_inf of other features",
}


@dataclasses.dataclass(frozen=True)
class Fig5Config(FigureConfig):
    """Figure 5 of Pesme et al. 2021: gradient descent from SGD's effective initialisation lands where SGD landed."""


Config = Fig5Config
PAPER = Fig5Config(seeds=256)
REFERENCES = {
    "pesme2021": "figure 5",
    "even2023": "the exact law of SGD",
}


def run(config: Fig5Config, *, say: Say = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions time, seed, feature and rule (where the gradient flow lands from what).

    **Raises:** `ValueError` for values that make no sense, or if no step size converges.
    """
    config.check()
    with jax.enable_x64(True):
        problem, network = common.draw(config)
        gamma, keys, out = common.step_size(config, problem, network, say), seeds(0, config.seeds), Columns()
        say(f"gradient descent and SGD, {config.seeds} seeds x {config.steps:,} iterations")
        gd = simulate(GradientDescent(gamma), network, problem, steps=config.steps)
        sgd = simulate(StochasticGradientDescent(gamma), network, problem, keys=keys, steps=config.steps)
        common.add_runs(out, "gd", gd)
        common.add_runs(out, "sgd", sgd, say=say)
        bad = sgd.diverged
        start = jnp.broadcast_to(network.log_alpha, (config.seeds, problem.d))
        own = jnp.where(bad[:, None], start, sgd.final["log_alpha"])
        offset = jnp.where(bad[:, None], 0, sgd.final["offset"])
        beta = jnp.where(bad[:, None], jnp.nan, sgd.final["beta"])

        say(f"gradient descent from the alpha_inf of every seed, {config.steps:,} iterations")

        def again(log_alpha: Any) -> Any:
            runs = simulate(
                GradientDescent(gamma),
                DiagonalNetwork.init(log_alpha=log_alpha, d=problem.d, dtype=jnp.float64),
                problem,
                steps=config.steps,
            )
            return runs.series, runs.final

        series, final = jax.jit(jax.vmap(again))(own)
        for quantity in common.QUANTITIES:
            out.add(f"again_{quantity}", ("seed", "time"), series[quantity], "1")
            out.add(f"again_final_{quantity}", ("seed",), jnp.where(bad, jnp.nan, final[quantity]), "1")

        def distance(a: Any, b: Any) -> Any:
            return jnp.where(bad, jnp.nan, jnp.linalg.norm(a - b, axis=1))

        say("where the laws say they land")
        end = select_many(problem, own, offset=offset).beta
        # On their fibres at the end, where the laws are exact: what is left of the loss does not matter.
        fibre, here = (jnp.where(bad[:, None], 0, b) @ problem.X.T for b in (final["beta"], beta))
        mine = select_many(problem, final["log_alpha"], offset=final["offset"], targets=fibre).beta
        theirs = select_many(problem, own, offset=offset, targets=here).beta
        plain = [select_many(problem, law, targets=t).beta for law, t in ((final["log_alpha"], fibre), (own, here))]
        out.add("again_distance", ("seed",), distance(final["beta"], beta), "target / input")
        out.add("gd_distance", ("seed",), distance(gd.final["beta"][None], beta), "target / input")
        out.add("again_predicted", ("seed",), distance(mine, theirs), "target / input")
        out.add("again_plain", ("seed",), distance(*plain), "target / input")
        theorem = start - 2 * gamma * jnp.where(bad, 0, sgd.final["loss_integral"])[:, None] * problem.h
        shuffle = np.random.default_rng(0).permutation(problem.d)
        rules = {
            "start": start,
            "own": own,
            "theorem": theorem,
            "half": (start + own) / 2,
            "twice": 2 * own - start,
            "shuffled": own[:, shuffle],
        }
        landed = [distance(select_many(problem, log_alpha).beta, end) for log_alpha in rules.values()]
        out.add("rule_distance", ("rule", "seed"), jnp.stack(landed), "target / input")
        out.add("shrinkage", ("seed", "feature"), jnp.where(bad[:, None], jnp.nan, start - own), "log weight")
        return common.dataset(out, "pesme2021.fig5", config, gamma, gd, keys, rule=list(rules))


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    gd, sgd, again = (common.final(ds, name) for name in ("gd", "sgd", "again"))
    return [
        common.none_lost(ds, {"sgd": "SGD"}),
        common.below(ds, "sgd", "SGD", FIGURE),
        common.below(ds, "again", "gradient descent from alpha_inf", FIGURE),
        _nearer(ds),
        _accounted(ds),
        *(_wrong(ds, name) for name in OTHERS),
        _theorem(ds),
        _same_error(ds),
        common.printed("Gradient descent's error from alpha is 9 times SGD's", FIGURE, said=2.6e-2 / 3e-3, sample=gd / sgd, ours="ratio"),
        common.printed(
            "Gradient descent's error from alpha_inf is that of SGD",
            FIGURE,
            said=3.1e-3 / 3e-3,
            sample=again / sgd,
            ours="ratio",
            factor=1.1,
        ),
    ]


def _nearer(ds: Any) -> Claim:
    near, far = common.known(ds["again_distance"].values, ds["gd_distance"].values)
    statement = "Gradient descent from alpha_inf ends where SGD ended, rather than where gradient descent from alpha does"
    if near.size < common.LEAST_SEEDS:
        return not_applicable(statement, FIGURE, "too few seeds are left")
    low, high = median_interval(far / near)
    return judge(
        statement,
        FIGURE,
        predicted="nearer to SGD's iterate; the rest is of first order in gamma",
        measured=f"{np.median(far / near):.2f} times nearer (99% interval {low:.2f} to {high:.2f}); median distances {np.median(near):.2e} and {np.median(far):.2e}",
        tolerance="interval above 3",
        holds=low > 3,
        reason="SGD's offset, or gradient descent's own shrinkage, is not small at this gamma",
    )


def _accounted(ds: Any) -> Claim:
    real, predicted, plain = common.known(*(ds[f"again_{name}"].values for name in ("distance", "predicted", "plain")))
    statement = "What is left between the two is what their laws' offsets, and nothing else, say"
    if real.size < common.LEAST_SEEDS:
        return not_applicable(statement, E23, "too few seeds are left")
    off, without = np.abs(predicted / real - 1), np.abs(plain / real - 1)
    return judge(
        statement,
        E23,
        predicted="distance of the two programmes' solutions = distance of the iterates",
        measured=f"off by at most {off.max():.0e}; without the offsets by {np.median(without):.0%} (median)",
        tolerance="1e-5, and 1% or more without the offsets",
        holds=off.max() < 1e-5 and np.median(without) > 1e-2,
        reason="the iterates are not where their laws select",
    )


def _wrong(ds: Any, name: str) -> Claim:
    near, far = common.known(*(ds["rule_distance"].sel(rule=rule).values for rule in ("own", name)))
    control = f"Control: from another initialisation it lands further from SGD: {OTHERS[name]}"
    if near.size < common.LEAST_SEEDS:
        return not_applicable(control, FIGURE, "too few seeds are left", control=True)
    low, high = median_interval(far / near)
    return judge(
        control,
        f"{FIGURE}; gradient flow's solutions",
        predicted="further than from alpha_inf",
        measured=f"{np.median(far / near):.2f} times further (99% interval {low:.2f} to {high:.2f})",
        tolerance="interval above 1",
        holds=low > 1,
        # On some problems it is how far alpha went down that counts, not on which features.
        must_hold=name != "shuffled",
        control=True,
        reason="SGD's solution does not tell this initialisation from alpha_inf",
    )


def _theorem(ds: Any) -> Claim:
    start, near = common.known(*(ds["rule_distance"].sel(rule=rule).values for rule in ("start", "theorem")))
    statement = "So does gradient flow from alpha exp(-2 gamma h int L), with SGD's own int L"
    source = f"{P21}, theorem 1, which is the mean-loss flow's"
    if near.size < common.LEAST_SEEDS:
        return not_applicable(statement, source, "too few seeds are left")
    low, high = median_interval(start / near)
    return judge(
        statement,
        source,
        predicted="nearer to SGD's solution than from alpha",
        measured=f"{np.median(start / near):.2f} times nearer (99% interval {low:.2f} to {high:.2f})",
        tolerance="interval above 3",
        holds=low > 3,
        must_hold=False,
        reason="at this step size SGD's noise is not the mean-loss model's",
    )


def _same_error(ds: Any) -> Claim:
    sgd, again = common.known(common.final(ds, "sgd"), common.final(ds, "again"))
    statement = "Its error is SGD's rather than that from alpha (logarithms of the ratios, seed by seed)"
    if sgd.size < common.LEAST_SEEDS:
        return not_applicable(statement, FIGURE, "too few seeds are left")
    part = np.abs(np.log(again / sgd)) / np.abs(np.log(float(common.final(ds, "gd")) / sgd))
    low, high = median_interval(part)
    return judge(
        statement,
        FIGURE,
        predicted="0 of the way from SGD to gradient descent from alpha",
        measured=f"{np.median(part):.2f} of the way (99% interval {low:.2f} to {high:.2f}); ratio to SGD's {np.median(again / sgd):.2f}",
        tolerance="interval below half of the way",
        holds=high < 0.5,
        reason="the offsets change the error at this gamma",
    )


def plot(ds: Any) -> Any:
    """Errors against time; distances from where SGD landed; how much alpha shrank, by feature."""
    figure, axes = new_figure(1, 3, size=(15, 4.6))
    left, middle, right = axes[0]
    names = {
        "gd": ("gradient descent from α", COLOURS["gd"]),
        "sgd": ("SGD from α", COLOURS["sgd"]),
        "again": ("gradient descent from α∞", COLOURS["sgf"]),
    }
    common.curves(left, ds, "validation_error", names)
    tidy(left, title="Validation error", x="flow time", y=common.LABELS["validation_error"])
    labels = {
        "start": ("α", COLOURS["gd"], "-"),
        "half": ("half way to α∞", COLOURS["control"], "--"),
        "twice": ("twice as far", COLOURS["control"], ":"),
        "shuffled": ("α∞ of other features", COLOURS["control"], "-."),
        "theorem": ("α exp(−2γh∫L)", "#5aa469", "-"),
        "own": ("α∞", COLOURS["sgf"], "-"),
    }
    for rule, (label, colour, style) in labels.items():
        values = np.sort(ds["rule_distance"].sel(rule=rule).values)
        middle.plot(values, np.arange(1, values.size + 1) / values.size, color=colour, linestyle=style, label=f"from {label}")
    tidy(middle, title="Gradient flow's solution: distance from SGD's", x="|β − β of SGD|", y="share of seeds", y_scale="linear")
    shrunk = ds["shrinkage"].values
    order = np.argsort(np.nanmedian(shrunk, axis=0))[::-1]
    low, centre, high = np.nanquantile(shrunk[:, order], [0.05, 0.5, 0.95], axis=0)
    right.fill_between(np.arange(1, order.size + 1), low, high, color=COLOURS["sgd"], alpha=0.2, linewidth=0)
    right.plot(np.arange(1, order.size + 1), centre, color=COLOURS["sgd"], label="SGD, median and middle 90%")
    tidy(right, title="How much log α shrank", x="feature, by rank", y="log(α / α∞)", x_scale="linear", y_scale="linear")
    for panel in axes[0]:
        panel.legend(frameon=False, fontsize=8)
    return figure
