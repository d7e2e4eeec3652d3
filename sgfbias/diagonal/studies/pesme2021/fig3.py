"""Figure 3 of Pesme et al. 2021: do the bundles of runs of SGD and of its flow overlap,
and is the paper's own scheme for the flow as accurate as the mirror system?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from sgfbias import (
    DiagonalNetwork,
    GradientDescent,
    Record,
    SparseRegression,
    StochasticGradientDescent,
    StochasticGradientFlow,
    simulate,
)
from sgfbias.diagonal.setup import draw, step_size
from sgfbias.diagonal.studies.pesme2021 import common
from sgfbias.diagonal.studies.pesme2021.common import LEAST_SEEDS, P21, FigureConfig
from sgfbias.diagonal.theory.effective import euler_scatter
from sgfbias.study import AtLeast, Claim, Columns, Log, claim, control, not_applicable
from sgfbias.study.claim import CONTROL
from sgfbias.study.plotting import COLOURS, Figure, distribution, finish, line, panels
from sgfbias.study.statistics import (
    estimate,
    finite,
    jointly_finite,
    kolmogorov,
    listed,
    log_slope,
    median,
)

NAME = "pesme2021.fig3"
SECONDS = 90
REFERENCES = {"pesme2021": "figure 3"}
FIGURE = f"{P21}, figure 3"
SCHEME = f"{P21}: the paper's Euler scheme in w, dt = gamma/10"
# The paper shows so many runs of each kind.
DRAWN = 5
# The control divides the step size in the noise covariance by this factor.
QUIET = 16
# The ranges of two samples of 5 normal values miss each other with probability of about
# 1/2 if their means differ by so many standard deviations. Whether they overlap is
# tested only if the gap that the evolution laws predict differs from this by a factor.
APART, CLEARLY = 2.3, 1.5
# The reference on the same Brownian path takes so many steps per SGD step.
FINEST = 40
# Steps dt of Euler's method in the weights, in units of gamma.
WIDTHS = {"weights 2": 0.5, "weights 10": 0.1, "weights 40": 0.025}
SCHEMES = WIDTHS | {"mirror 1": 1.0, "mirror 10": 0.1}
FEW = f"fewer than {LEAST_SEEDS} seeds converged"


@dataclasses.dataclass(frozen=True)
class Config(FigureConfig):
    """Figure 3 of Pesme et al. 2021: runs of the flow look like runs of SGD, and
    neither looks like gradient descent.
    """

    scheme_steps: Annotated[int, AtLeast(4)] = 10_000
    """Length of the runs by the paper's own scheme, in SGD steps; each takes 10 Euler
    steps in the weights.
    """
    path_steps: Annotated[int, AtLeast(8)] = 1_000
    """Length of the runs that compare schemes on one Brownian path, in SGD steps."""


QUICK = Config(alpha=0.03, steps=6000, n=30, d=60, sparsity=4, scheme_steps=300, path_steps=200)


PAPER = Config(scheme_steps=100_000)


def measure(config: Config, log: Log) -> Columns:
    """Simulate gradient descent, SGD, the flow, the flow with less noise and the flow
    by the paper's scheme, and compare schemes on one Brownian path.
    """
    problem, network = draw(config)
    gamma, keys = step_size(config, problem, network, log), config.keys(0, config.seeds)
    log(f"gradient descent, SGD and the flow: {config.seeds} seeds x {config.steps:,} iterations")
    gd = simulate(GradientDescent(gamma), network, problem, steps=config.steps)
    out = common.columns(config, gamma, gd)
    common.add_runs(out, "gd", gd)
    common.add_laws(
        out, problem, network, gamma, config.steps, flows={"sgf": 1.0, "quiet": 1 / QUIET}
    )
    dynamics = {
        "sgd": StochasticGradientDescent(gamma),
        "sgf": StochasticGradientFlow(gamma),
        "quiet": StochasticGradientFlow(gamma / QUIET, dt=gamma),
    }
    for name, each in dynamics.items():
        common.add_runs(
            out, name, simulate(each, network, problem, keys=keys, steps=config.steps), log=log
        )
    log(
        f"the paper's scheme: Euler in the weights, dt = gamma/10, {config.scheme_steps:,} SGD "
        "steps"
    )
    record = Record(times=np.asarray(gd.times)[np.asarray(gd.steps) <= config.scheme_steps])
    euler = StochasticGradientFlow(gamma, dt=gamma / 10)
    weights = simulate(
        euler,
        network,
        problem,
        keys=keys,
        steps=10 * config.scheme_steps,
        coordinates="weights",
        record=record,
    )
    common.add_runs(out, "weights", weights, time="scheme_time", log=log)
    out.axes["scheme_time"] = np.asarray(weights.times)
    log(
        f"comparing schemes on one Brownian path, {config.path_steps:,} SGD steps; the "
        f"reference is the mirror system with dt = gamma/{FINEST}"
    )
    _paths(out, config, problem, network, gamma, keys)
    return out


def _paths(
    out: Columns,
    config: Config,
    problem: SparseRegression,
    network: DiagonalNetwork,
    gamma: float,
    keys: Array,
) -> None:
    """Add how far the schemes are from the reference, and by how much Euler's method in
    the weights breaks the equation `log(w_+ w_-) = 2 log alpha - 4 gamma h int L`.
    """

    def go(width: float, coordinates: str) -> Any:
        flow = StochasticGradientFlow(gamma, dt=gamma * width, brownian_dt=gamma / FINEST)
        record, steps = (
            Record(times=gamma * np.arange(config.path_steps + 1)),
            round(config.path_steps / width),
        )
        return simulate(
            flow, network, problem, keys=keys, steps=steps, coordinates=coordinates, record=record
        )

    reference = go(1 / FINEST, "mirror")
    runs = {name: go(width, name.split()[0]) for name, width in SCHEMES.items()}

    def add(name: str, axis: str, values: dict[str, Array], units: str) -> None:
        """Add one row per scheme, NaN where the scheme or the reference diverged."""
        rows = [
            jnp.where(runs[which].diverged | reference.diverged, jnp.nan, value)
            for which, value in values.items()
        ]
        out.add(f"path_{name}", (axis, "seed"), jnp.stack(rows), units)

    # The reference is the mirror system. Distances from a fine solution by Euler's
    # method in the weights show that this choice does not decide.
    for name, fine in (("distance", reference), ("distance_weights", runs[f"weights {FINEST}"])):
        beta = jnp.where(fine.diverged[:, None], jnp.nan, fine.final["beta"])
        add(
            name,
            "scheme",
            {k: jnp.linalg.norm(v.final["beta"] - beta, axis=1) for k, v in runs.items()},
            "target / input",
        )
    total = reference.final["loss_integral"]
    add(
        "integral",
        "scheme",
        {k: v.final["loss_integral"] / total - 1 for k, v in runs.items()},
        "relative",
    )
    breaks, predicted = {}, {}
    for name, width in WIDTHS.items():
        law = (
            2 * network.log_alpha
            - 4 * gamma * problem.h * runs[name].final["loss_integral"][:, None]
        )
        breaks[name] = jnp.sqrt(
            jnp.mean(jnp.square((2 * runs[name].final["log_alpha"] - law) / problem.h), axis=1)
        )
        predicted[name] = euler_scatter(
            runs[name]["loss"][:, :-1], step_size=gamma, dt=gamma * width, spacing=gamma
        )
    add("break", "width", breaks, "log weight per h")
    add("break_predicted", "width", predicted, "log weight per h")
    out.add(
        "path_scheme",
        ("scheme",),
        np.array(list(SCHEMES), dtype=object),
        "scheme and steps per SGD step",
    )
    out.add("path_width", ("width",), list(WIDTHS.values()), "gamma")


def overlap(a: np.ndarray, b: np.ndarray, drawn: int = DRAWN) -> float:
    """Probability that the ranges of two draws have a point in common, where `drawn`
    values are drawn from each of two samples with replacement.
    """

    def apart(low: np.ndarray, high: np.ndarray) -> float:
        """Probability that all values of `low` are below the least of `high`."""
        rank, size = np.arange(len(high)), len(high)
        least = ((size - rank) / size) ** drawn - ((size - 1 - rank) / size) ** drawn
        return float(
            np.sum(
                least
                * (np.searchsorted(np.sort(low), np.sort(high), side="left") / len(low)) ** drawn
            )
        )

    return 1 - apart(a, b) - apart(b, a)


# `overlap` along the last axis.
overlaps = np.vectorize(overlap, signature="(n),(m)->()")


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims: bundles and distributions of SGD and the flow agree, noise lowers the
    error, and the paper's scheme breaks the equation of `w_+ w_-`.
    """
    ratio = float(common.final(ds, "gd")) / common.final(ds, "sgd")
    return [
        common.none_lost(
            ds, {"sgd": "SGD", "sgf": "the flow", "weights": "the flow by Euler in w"}
        ),
        *_bundles(ds),
        common.alike(ds, FIGURE),
        common.below(ds, "sgd", "SGD", FIGURE, unless=common.no_effect(ds, "sgd")),
        common.below(ds, "sgf", "the flow", FIGURE, unless=common.no_effect(ds, "sgf")),
        _same_law(ds),
        *_invariant(ds),
        *_schemes(ds),
        common.printed(
            "Gradient descent's final error is 19 to 54 times SGD's",
            FIGURE,
            said=(19 * 54) ** 0.5,
            sample=ratio,
            ours="ratio of the errors",
        ),
    ]


def _bundles(ds: xr.Dataset) -> list[Claim]:
    statement = (
        f"The bundles of runs overlap: the ranges of {DRAWN} final errors of SGD and {DRAWN} of "
        "the flow, drawn at random, have a point in common"
    )
    quieter = (
        f"the ranges of {DRAWN} final errors of SGD and {DRAWN} of the flow with 1/{QUIET} of the "
        "noise probably have no point in common"
    )
    control_statement = f"{CONTROL}{quieter}"
    unless = common.no_effect(ds, "sgd") or common.many_lost(ds, "sgd", "sgf", "quiet")
    if unless:
        return [not_applicable(text, FIGURE, unless) for text in (statement, control_statement)]
    sgd, sgf, quiet = (finite(common.final(ds, name)) for name in ("sgd", "sgf", "quiet"))
    gaps = {name: _gap(ds, name) for name in ("sgf", "quiet")}
    shared, other = (estimate(overlaps, sample, sgd, draws=1000) for sample in (sgf, quiet))
    outside = min(
        float(np.mean(common.final(ds, name) < float(common.final(ds, "gd"))))
        for name in ("sgd", "sgf")
    )
    late = ds["step"].values >= 10
    through = np.mean(
        overlaps(*(ds[f"{name}_validation_error"].values.T[late] for name in ("sgd", "sgf"))) >= 0.5
    )
    words = "the evolution laws predict a gap of {:.2f} standard deviations between the bundles"
    return [
        not_applicable(statement, FIGURE, f"{words.format(gaps['sgf'])}, so they may miss")
        if gaps["sgf"] > APART / CLEARLY
        else claim(
            statement,
            FIGURE,
            predicted=f"{words.format(gaps['sgf'])}; at {APART} the probability is 1/2, and "
            "0.992 if both have one distribution",
            measured=f"probability {shared:.2f}; it is above 0.5 at {through:.0%} of the recorded "
            f"times from step 10; at least {outside:.0%} of the seeds of each are below gradient "
            "descent",
            # The laws are of first order: at a large gamma the gap is larger.
            tolerance="interval not below 0.5, as it is in the control",
            holds=shared.high > 0.5,
            reason="at this step size five runs of each are probably distinguishable",
        ),
        not_applicable(
            control_statement, FIGURE, f"{words.format(gaps['quiet'])}, so they may overlap"
        )
        if gaps["quiet"] < APART * CLEARLY
        else control(
            quieter,
            FIGURE,
            predicted=words.format(gaps["quiet"]),
            measured=f"probability of a common point {other:.3f}",
            tolerance="interval below 0.5, where the claim about the flow would fail",
            holds=other.high < 0.5,
            reason="five runs of each do not distinguish the amounts of noise",
        ),
    ]


def _gap(ds: xr.Dataset, name: str) -> float:
    """The difference of the logarithms of the errors that the evolution laws predict
    for SGD and for the runs `name`, divided by their mean standard deviation over the
    seeds.
    """
    scatter = [np.std(np.log(finite(common.final(ds, which)))) for which in ("sgd", name)]
    return float(abs(np.log(common.predicted_ratio(ds, name, "sgd"))) / np.mean(scatter))


def _same_law(ds: xr.Dataset) -> Claim:
    statement = (
        "The final errors of SGD and of the flow have one distribution: not even all their "
        "seeds distinguish them"
    )
    a, b = (finite(common.final(ds, name)) for name in ("sgd", "sgf"))
    if min(a.size, b.size) < LEAST_SEEDS:
        return not_applicable(statement, FIGURE, FEW, must_hold=False)
    distance, limit = float(kolmogorov(a, b)), 1.63 * np.sqrt(1 / a.size + 1 / b.size)
    return claim(
        statement,
        "two-sample Kolmogorov-Smirnov test; the flow has mean-loss noise, and follows SGD to "
        "weak order 1 in gamma",
        predicted=f"Kolmogorov distance below {limit:.2f}",
        measured=f"distance {distance:.2f}; standard deviation of the log error "
        f"{np.std(np.log(a)):.2f} for SGD, {np.std(np.log(b)):.2f} for the flow",
        tolerance="the critical value at 1%",
        holds=distance < limit,
        must_hold=False,
        reason="bundles may overlap without having one distribution: at a large gamma, enough "
        "seeds show the difference",
    )


def _known(ds: xr.Dataset, *names: str) -> np.ndarray:
    """Columns of the comparison on one Brownian path, (names, rows, seeds), restricted
    to the seeds that are finite in all of them.
    """
    rows = jointly_finite(*(row for name in names for row in ds[f"path_{name}"].values))
    return np.stack(rows).reshape(len(names), -1, rows[0].size)


def _rms(sample: np.ndarray) -> Any:
    return np.sqrt(np.mean(np.square(sample), axis=-1))


def _invariant(ds: xr.Dataset) -> list[Claim]:
    breaks = (
        "The paper's scheme breaks log(w_+ w_-) = 2 log alpha - 4 gamma h int L, the equation "
        "on which Theorem 1 rests, by the predicted amount"
    )
    falls = (
        "The error of log(w_+ w_-) under the paper's scheme falls as the square root of dt: "
        "ten times finer steps make it only 3 times smaller"
    )
    off, predicted = _known(ds, "break", "break_predicted")
    if off.shape[1] < LEAST_SEEDS:
        return [not_applicable(text, SCHEME, FEW) for text in (breaks, falls)]
    ratios, order = _rms(off) / _rms(predicted), log_slope(ds["path_width"], _rms(off))
    ratio = estimate(lambda a, b: _rms(a) / _rms(b), off[1], predicted[1], paired=True)
    allowed = abs(ratios[0] - 1) / 2
    return [
        claim(
            breaks,
            f"{SCHEME}; a step multiplies w_+ w_- by 1 - a^2, where a^2 has mean 4 gamma h L dt "
            "and standard deviation sqrt(2) times its mean",
            predicted="root mean square error over seeds and features, divided by h, "
            f"{_rms(predicted[1]):.3g} at dt = gamma/10",
            measured=f"{_rms(off[1]):.3g}; measured over predicted {ratio:.3f} at gamma/10, "
            f"{ratios[0]:.2f} at gamma/2, {ratios[2]:.2f} at gamma/40",
            tolerance=f"interval of the ratio at gamma/10 meets 1 +- {allowed:.2f}: half of the "
            "difference from 1 at gamma/2, as the prediction leaves out higher orders in dt",
            holds=ratio.low < 1 + allowed and ratio.high > 1 - allowed,
            reason="the scatter of single steps does not explain the scheme's error",
        ),
        claim(
            falls,
            SCHEME,
            predicted="slope 1/2 in dt",
            measured=f"error {listed(_rms(off))} at dt = gamma/2, gamma/10, gamma/40, slope "
            f"{order:.2f}",
            tolerance="slope between 0.4 and 0.75, which is halfway to a scheme of order 1",
            holds=0.4 < order < 0.75,
            reason="the scheme is not of strong order 1/2",
        ),
    ]


def _schemes(ds: xr.Dataset) -> list[Claim]:
    statements = {
        "mirror 10": "On one Brownian path and with dt = gamma/10 for both, the mirror system is "
        "closer to the fine solution than the paper's scheme is",
        "mirror 1": "On one Brownian path the mirror system with dt = gamma is closer to the fine "
        "solution than the paper's scheme with dt = gamma/10",
    }
    names, known = (
        [str(name) for name in ds["path_scheme"].values],
        _known(ds, "distance", "distance_weights", "integral"),
    )
    euler = names.index("weights 10")
    rows = []
    for name, statement in statements.items():
        if known.shape[-1] < LEAST_SEEDS:
            rows.append(not_applicable(statement, SCHEME, FEW, must_hold=name == "mirror 10"))
            continue
        (ours, turned, off), (theirs, theirs_turned, theirs_off) = (
            known[:, names.index(name)],
            known[:, euler],
        )
        ratio = median(theirs / ours)
        rows.append(
            claim(
                statement,
                SCHEME,
                predicted="|beta - beta_fine| of the paper's scheme over the mirror system's is "
                "above 1",
                measured=f"median ratio {ratio:.2f}, or {np.median(theirs_turned / turned):.2f} if "
                f"the fine solution is Euler's in w with dt = gamma/{FINEST}; median relative "
                f"error of int L {np.median(np.abs(theirs_off)):.1e} by the paper's scheme, "
                f"{np.median(np.abs(off)):.1e} by the mirror system",
                tolerance="interval of the ratio above 1",
                holds=ratio.low > 1,
                must_hold=name == "mirror 10",
                reason="near the largest step size the mirror system, too, needs steps below gamma",
            )
        )
    return rows


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw loss and error against time, the distributions of the final errors, and the
    errors of the schemes on one Brownian path.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (left, right, errors, path) = panels(rows=2, columns=2, size=(12, 8))
    for panel, quantity in ((left, "loss"), (right, "validation_error")):
        common.curves(panel, ds, quantity, common.NAMES)
        levels = np.nanquantile(ds[f"weights_{quantity}"], [0.05, 0.5, 0.95], axis=0)
        for level, label in zip(levels, ("", "flow, Euler in w, dt = γ/10", ""), strict=True):
            line(
                panel,
                ds["scheme_time"].values,
                level,
                colour=COLOURS["control"],
                label=label,
                style="--",
            )
        finish(panel, title=common.TITLES[quantity], x="flow time", y=common.LABELS[quantity])
    for name, (label, colour) in (
        common.NAMES | {"quiet": (f"flow, noise of γ/{QUIET}", COLOURS["control"])}
    ).items():
        if name == "gd":
            errors.axvline(float(common.final(ds, name)), color=colour, label=label)
        else:
            distribution(errors, common.final(ds, name), colour=colour, label=label)
    finish(
        errors,
        title="Final validation errors",
        x=common.LABELS["validation_error"],
        y="share of seeds",
        y_scale="linear",
    )
    errors.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    errors.xaxis.set_minor_formatter(NullFormatter())
    widths, middle = (
        list(WIDTHS.values()),
        dict(zip(SCHEMES, np.nanmedian(ds["path_distance"], axis=1), strict=True)),
    )
    for name, style, colour, label in (
        ("break_predicted", ":", "black", "error of log(w₊w₋), predicted"),
        ("break", "o-", COLOURS["control"], "error of log(w₊w₋), Euler in w"),
    ):
        path.plot(
            widths,
            np.sqrt(np.nanmean(np.square(ds[f"path_{name}"]), axis=1)),
            style,
            color=colour,
            label=label,
        )
    for kind, colour, label in (
        ("weights", COLOURS["control"], "|β − fine solution|, Euler in w (median)"),
        ("mirror", COLOURS["sgf"], "|β − fine solution|, mirror system (median)"),
    ):
        chosen = [name for name in SCHEMES if name.startswith(kind)]
        path.plot(
            [SCHEMES[name] for name in chosen],
            [middle[name] for name in chosen],
            "s--",
            color=colour,
            label=label,
        )
    finish(path, title="Schemes on one Brownian path", x="dt / γ", y="error")
    return figure
