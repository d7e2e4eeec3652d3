"""Figure 5 of Pesme et al. 2021: does gradient descent from the effective
initialisation of an SGD run end where that run ended?
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias import DiagonalNetwork, GradientDescent, Status, StochasticGradientDescent, simulate
from sgfbias.diagonal.setup import draw, step_size
from sgfbias.diagonal.studies.pesme2021 import common
from sgfbias.diagonal.studies.pesme2021.alphas import if_converged
from sgfbias.diagonal.studies.pesme2021.common import P21, FigureConfig
from sgfbias.diagonal.theory.fibre import minimisers_on_fibres
from sgfbias.diagonal.theory.selection import select_many
from sgfbias.study import Claim, Columns, Log, claim, control, not_applicable, source
from sgfbias.study.claim import CONTROL
from sgfbias.study.plotting import COLOURS, Figure, distribution, finish, panels, quantile_band
from sgfbias.study.statistics import jointly_finite, median

NAME = "pesme2021.fig5"
SECONDS = 40
REFERENCES = {"pesme2021": "figure 5", "even2023": "the exact evolution law of SGD"}
FIGURE = f"{P21}, figure 5"
OTHERS = {
    "half": "log alpha shrunk half as much, sqrt(alpha alpha_inf)",
    "twice": "log alpha shrunk twice as much, alpha_inf^2 / alpha",
}


@dataclasses.dataclass(frozen=True)
class Config(FigureConfig):
    """Figure 5 of Pesme et al. 2021: gradient descent from SGD's effective
    initialisation alpha_inf ends where SGD ended.
    """


# At n = 40, d = 80 and 4 non-zero entries the sparse truth is recovered, and this step
# size is well below the largest stable one, for nearly all problems that are drawn.
QUICK = Config(alpha=0.04, steps=8000, step_size=0.04, n=40, d=80, sparsity=4)


PAPER = Config(seeds=256)


def measure(config: Config, log: Log) -> Columns:
    """Simulate gradient descent, SGD, and gradient descent from the alpha_inf of every
    seed, and compute where the evolution laws say that they end and where gradient flow
    ends from other initialisations.
    """
    problem, network = draw(config)
    gamma = step_size(config, problem, network, log)
    log(f"gradient descent and SGD, {config.seeds} seeds x {config.steps:,} iterations")
    gd = simulate(GradientDescent(gamma), network, problem, steps=config.steps)
    sgd = simulate(
        StochasticGradientDescent(gamma),
        network,
        problem,
        keys=config.keys(0, config.seeds),
        steps=config.steps,
    )
    bad, column = sgd.diverged, sgd.diverged[:, None]
    start = jnp.broadcast_to(network.log_alpha, (config.seeds, problem.d))
    own = jnp.where(column, start, sgd.final["log_alpha"])
    offset, beta = (jnp.where(column, 0, sgd.final[name]) for name in ("offset", "beta"))
    rules = {
        "start": start,
        "own": own,
        "theorem": start
        - 2 * gamma * jnp.where(bad, 0, sgd.final["loss_integral"])[:, None] * problem.h,
        "half": (start + own) / 2,
        "twice": 2 * own - start,
        "shuffled": own[:, np.random.default_rng(config.root_seed).permutation(problem.d)],
    }
    out = common.columns(config, gamma, gd, rule=list(rules))
    common.add_runs(out, "gd", gd)
    common.add_runs(out, "sgd", sgd, log=log)

    def again(log_alpha: Any) -> Any:
        moved = DiagonalNetwork.init(log_alpha=log_alpha, d=problem.d, dtype=jnp.float64)
        runs = simulate(GradientDescent(gamma), moved, problem, steps=config.steps)
        return runs.series, runs.final, runs.status

    log(f"gradient descent from the alpha_inf of every seed, {config.steps:,} iterations")
    series, final, status = jax.jit(jax.vmap(again))(own)
    bad = bad | (status == Status.STALLED) | (status == Status.NON_FINITE)
    column = bad[:, None]
    out.add("again_status", ("seed",), status, "1")
    for quantity, units in common.units_of(problem).items():
        out.add(f"again_{quantity}", ("seed", "time"), series[quantity], units)
        out.add(
            f"again_final_{quantity}", ("seed",), jnp.where(bad, jnp.nan, final[quantity]), units
        )

    def distance(a: Any, b: Any) -> Any:
        return jnp.where(bad, jnp.nan, jnp.linalg.norm(a - b, axis=1))

    log("solutions that the evolution laws select")
    # The evolution laws are exact on the set of all beta with the outputs of the last
    # iterate, so the remaining loss does not matter.
    laws = (
        (
            jnp.where(column, 0, final["beta"]),
            jnp.where(column, start, final["log_alpha"]),
            jnp.where(column, 0, final["offset"]),
        ),
        (beta, own, offset),
    )
    exact = [minimisers_on_fibres(problem, *law).beta for law in laws]
    out.add("again_distance", ("seed",), distance(final["beta"], beta), "target / input")
    out.add("gd_distance", ("seed",), distance(gd.final["beta"], beta), "target / input")
    out.add("again_predicted", ("seed",), distance(*exact), "target / input")
    end = select_many(problem, own, offset=offset).beta
    # The runs end, after infinitely many steps, at the solutions that their final alpha
    # and offset select; how much loss remains does not matter for these either.
    for name, log_alpha, moved in (
        ("again", *laws[0][1:]),
        ("gd", gd.final["log_alpha"][None], gd.final["offset"][None]),
    ):
        ends = select_many(problem, log_alpha, offset=moved).beta
        out.add(f"{name}_end_distance", ("seed",), distance(ends, end), "target / input")
    out.add(
        "rule_distance",
        ("rule", "seed"),
        [distance(select_many(problem, law).beta, end) for law in rules.values()],
        "target / input",
    )
    out.add("shrinkage", ("seed", "feature"), jnp.where(column, jnp.nan, start - own), "log weight")
    return out


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims: gradient descent from alpha_inf ends where SGD ended, up to the
    offsets of their evolution laws; from other initialisations it does not.
    """
    gd, sgd, again = (common.final(ds, name) for name in ("gd", "sgd", "again"))
    rule = {str(name): ds["rule_distance"].sel(rule=name).values for name in ds["rule"].values}
    printed = (
        (
            "Gradient descent's error from alpha is 9 times SGD's",
            2.6e-2 / 3e-3,
            gd / sgd,
            common.READING,
        ),
        ("Gradient descent's error from alpha_inf is SGD's", 3.1e-3 / 3e-3, again / sgd, 1.1),
    )
    converged = common.none_lost(ds, {"sgd": "SGD", "again": "gradient descent from alpha_inf"})
    return if_converged(
        converged,
        lambda: [
            common.below(ds, "sgd", "SGD", FIGURE),
            common.below(ds, "again", "gradient descent from alpha_inf", FIGURE),
            _further(
                "Gradient descent from alpha_inf ends closer to where SGD ends than gradient "
                "descent from alpha does",
                f"{FIGURE}; solutions that the evolution laws select",
                ds["again_end_distance"],
                ds["gd_end_distance"],
                predicted="closer; SGD's offset and gradient descent's own shrinkage remain",
                main=True,
                reason="SGD's offset, or gradient descent's own shrinkage, is not small at this "
                "gamma",
            ),
            _accounted(ds),
            *(
                _further(
                    "gradient flow from another initialisation than alpha_inf ends further from "
                    f"SGD's solution: {words}",
                    f"{FIGURE}; solutions of gradient flow",
                    rule["own"],
                    rule[name],
                    kind=control,
                    main=name == "half",
                    predicted="further than from alpha_inf",
                    reason="SGD's solution does not distinguish this initialisation from alpha_inf",
                )
                for name, words in OTHERS.items()
            ),
            # On some problems only the amount by which alpha shrank counts, and not on
            # which features.
            _further(
                "Gradient flow from alpha_inf ends closer to SGD's solution than gradient flow "
                "from alpha_inf with its features permuted",
                f"{FIGURE}; solutions of gradient flow",
                rule["own"],
                rule["shuffled"],
                predicted="closer, if it matters on which features alpha shrank",
                must_hold=False,
                reason="SGD's solution does not distinguish the features on which alpha shrank",
            ),
            _further(
                "Gradient flow from alpha exp(-2 gamma h int L), with SGD's own int L, ends closer "
                "to SGD's solution than gradient flow from alpha",
                f"{P21}, Theorem 1, which holds for the mean-loss flow",
                rule["theorem"],
                rule["start"],
                predicted="several times closer",
                must_hold=False,
                reason="at this step size SGD's noise is not the mean-loss model's",
            ),
            _further(
                "The error of gradient descent from alpha_inf is closer to SGD's than the error of "
                "gradient descent from alpha, seed by seed in logarithms",
                FIGURE,
                np.abs(np.log(again / sgd)),
                np.abs(np.log(gd / sgd)),
                predicted="|log(error / SGD's error)| smaller",
                main=True,
                reason="the offsets change the error at this gamma",
            ),
            *(
                common.printed(
                    what, FIGURE, said=said, sample=ours, ours="ratio of the errors", factor=factor
                )
                for what, said, ours, factor in printed
            ),
        ],
    )


def _further(
    statement: str,
    where: str,
    near: Any,
    far: Any,
    *,
    kind: Any = claim,
    **words: Any,
) -> Claim:
    """The claim that the median over seeds of `far / near` is above 1, where both are
    distances (seeds,).
    """
    near, far = jointly_finite(near, far)
    if near.size < common.LEAST_SEEDS:
        return not_applicable(
            f"{CONTROL if kind is control else ''}{statement}",
            where,
            f"fewer than {common.LEAST_SEEDS} seeds converged",
        )
    times = median(far / near)
    return kind(
        statement,
        where,
        measured=f"ratio of the distances {times:.2f}; median distances {np.median(near):.2e} "
        f"and {np.median(far):.2e}",
        tolerance="99% interval of the median ratio above 1",
        holds=times.low > 1,
        **words,
    )


def _accounted(ds: xr.Dataset) -> Claim:
    """The claim that the evolution laws are exact, with a check that the test would
    notice if the offset were left out.
    """
    statement = (
        "The offsets of both evolution laws account for the whole distance that remains between "
        "gradient descent from alpha_inf and SGD"
    )
    where = source("even2023", "evolution laws of SGD and gradient descent, with their offsets")
    real, predicted, whole, missed = jointly_finite(
        *(ds[f"again_{name}"] for name in ("distance", "predicted", "end_distance")),
        ds["rule_distance"].sel(rule="own"),
    )
    if real.size < common.LEAST_SEEDS:
        return not_applicable(statement, where, f"fewer than {common.LEAST_SEEDS} seeds converged")
    off, share = np.abs(predicted / real - 1), np.median(missed / whole)
    return claim(
        statement,
        where,
        predicted="the distance between the minimisers of both laws is that between the iterates",
        measured=f"relative difference at most {off.max():.0e}; without its offset SGD's law "
        f"misses where SGD ends by {share:.0%} of the distance that remains there (median)",
        tolerance="at most 1e-5, and above 1% without the offset",
        holds=off.max() < 1e-5 and share > 1e-2,
        main=True,
        reason="the iterates are not the minimisers of their evolution laws, or the offset is too "
        "small to be seen",
    )


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw errors against time, distances from SGD's solution, and by feature how much
    log alpha shrank.
    """
    figure, (left, middle, right) = panels(columns=3, size=(15, 4.6))
    names = {
        "gd": ("gradient descent from α", COLOURS["gd"]),
        "sgd": ("SGD from α", COLOURS["sgd"]),
        "again": ("gradient descent from α∞", COLOURS["sgf"]),
    }
    common.curves(left, ds, "validation_error", names)
    finish(left, title="Validation error", x="flow time", y=common.LABELS["validation_error"])
    labels = {
        "start": ("α", COLOURS["gd"], "-"),
        "half": ("√(α α∞)", COLOURS["control"], "--"),
        "twice": ("α∞² / α", COLOURS["control"], ":"),
        "shuffled": ("α∞, features permuted", COLOURS["control"], "-."),
        "theorem": ("α exp(−2γh∫L)", "#5aa469", "-"),
        "own": ("α∞", COLOURS["sgf"], "-"),
    }
    for rule, (label, colour, style) in labels.items():
        distribution(
            middle,
            ds["rule_distance"].sel(rule=rule),
            colour=colour,
            label=f"from {label}",
            style=style,
        )
    finish(
        middle,
        title="Gradient flow's solution: distance from SGD's",
        x="|β − β of SGD|",
        y="share of seeds",
        y_scale="linear",
        room=0.35,
        legend="upper left",
    )
    shrunk = ds["shrinkage"].values.T
    order = np.argsort(np.nanmedian(shrunk, axis=1))[::-1]
    rank = np.arange(1, order.size + 1)
    quantile_band(
        right,
        rank,
        shrunk[order],
        colour=COLOURS["sgd"],
        label="SGD, median and middle 90%",
        style="-",
    )
    finish(
        right,
        title="How much log α shrank",
        x="feature, by rank",
        y="log(α / α∞)",
        x_scale="linear",
        y_scale="linear",
    )
    return figure
