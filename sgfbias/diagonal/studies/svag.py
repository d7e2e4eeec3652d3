"""Does SGD with smaller steps and amplified variance, SVAG(l) for l = 1, 2, 4, 8, 16,
approach the flow?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias import (
    SVAG,
    MinibatchNoise,
    Record,
    StochasticGradientDescent,
    StochasticGradientFlow,
    simulate,
)
from sgfbias.diagonal.setup import draw
from sgfbias.study import (
    AtLeast,
    Claim,
    Columns,
    Log,
    Positive,
    SeededConfig,
    claim,
    control,
    finals,
    not_applicable,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, distribution, finish, panels, ticks
from sgfbias.study.statistics import arrow, kolmogorov, mean_difference, power_law

NAME = "svag"
SECONDS = 40
LMA = source("li2021")
REFERENCES = {
    "li2021": "SVAG",
    "pesme2021": "mirror coordinates, Lemma 1",
    "li2017": "the stochastic modified equation of SGD",
}
LADDER = (1, 2, 4, 8, 16)
UNITS = {"shrinkage": "log weight", "loss": "loss", "validation_error": "(target / input)^2"}
# Solver steps of the flow per SGD iteration. Means are extrapolated to infinitely many
# from so many and half as many.
FINE = 8


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """SVAG(l) is compared with the flow that has SGD's exact noise, which it approaches
    as l grows. SVAG(1) is SGD.
    """

    seeds: Annotated[int, AtLeast(16)] = 8192
    """Number of seeds of the flow, of SVAG(l) and of SGD."""
    step_size: Positive = 0.04
    """Step size gamma of the flow; SVAG(l) takes steps of gamma / l. At step sizes much
    above 0.04 single seeds dominate the means.
    """
    time: Positive = 4.0
    """Flow time at which the runs are compared; a whole multiple of step_size."""
    alpha: Positive = 0.3
    """Scale alpha of the initialisation, w_+ = w_- = alpha."""
    problem_seed: int = 3
    """Random seed from which the problem is drawn (n = 6, d = 12, 3 non-zero
    coefficients).
    """

    def check(self) -> None:
        self.check_whole("time", "step_size")


QUICK = Config(seeds=2048, time=2.0)


def measure(config: Config, log: Log) -> Columns:
    """Simulate the flow, SVAG(l), and SGD with steps of gamma / l.

    **Returns:** by seed, the final decrease of log alpha (averaged over the features),
    loss and validation error.
    """
    problem, network = draw(config, n=6, d=12, sparsity=3)
    gamma, out = config.step_size, Columns(l=np.asarray(LADDER), seed=np.arange(config.seeds))
    steps = round(config.time / gamma)

    def end(dynamics: Any, substeps: int = 1, first: int = 0) -> np.ndarray:
        keys = config.keys(first, first + config.seeds)
        runs = simulate(
            dynamics, network, problem, keys=keys, steps=steps * substeps, record=Record(times=2)
        )
        shrinkage = jnp.mean(network.log_alpha - runs.final["log_alpha"], axis=1)
        return finals(runs, shrinkage, runs.final["loss"], runs.final["validation_error"])

    log(f"flow with exact noise, {config.seeds:,} seeds")
    noise = MinibatchNoise(1)
    coarse, fine = (
        end(StochasticGradientFlow(gamma, noise, dt=gamma / m, brownian_dt=gamma / FINE), m)
        for m in (FINE // 2, FINE)
    )
    again = end(StochasticGradientFlow(gamma, noise, dt=gamma / FINE), FINE, config.seeds)
    ladder, plain = [], []
    for l in LADDER:
        log(f"SVAG({l}) and SGD at gamma/{l}, {config.seeds:,} seeds")
        ladder.append(end(SVAG(gamma, l, integral="batch"), l))
        plain.append(end(StochasticGradientDescent(gamma / l, integral="batch"), l))
    for k, (name, units) in enumerate(UNITS.items()):
        for which, values in (
            ("flow", 2 * fine - coarse),
            ("flow_path", fine),
            ("flow_again", again),
        ):
            out.add(f"{which}_{name}", ("seed",), values[k], units)
        for which, rows in (("svag", ladder), ("sgd", plain)):
            out.add(f"{which}_{name}", ("l", "seed"), [row[k] for row in rows], units)
    return out


def factor(shrinkage: Any) -> np.ndarray:
    """The factor `exp(-shrinkage)` by which alpha has shrunk, (..., seeds).

    The shrinkage has heavy tails, and single seeds may dominate its mean, or even
    overflow. The factor is a smooth function of it between 0 and 1, so its mean obeys
    the same theory with a small error. A seed that is not finite has the limit 0; one
    whose alpha has grown, which only too large steps cause, counts as 1.
    """
    values = np.asarray(shrinkage)
    return np.exp(-np.where(np.isfinite(values), np.maximum(values, 0.0), np.inf))


def gaps(ds: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean factor by which alpha shrinks under an algorithm minus the flow's, with
    standard errors, by l.
    """
    fine = ds["flow_path_shrinkage"].values
    # The dataset has 2 fine - coarse. The factor is extrapolated in the same way.
    flow = 2 * factor(fine) - factor(2 * fine - ds["flow_shrinkage"].values)
    gap, error = np.transpose(
        [mean_difference(factor(row), flow) for row in ds[f"{name}_shrinkage"].values]
    )
    return gap, error


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims: the difference between SVAG(l) and the flow falls as 1/l, that of SGD
    does not, and SVAG's distribution of the shrinkage approaches the flow's. There is
    no such claim about the validation error: its distribution under SGD is so near to
    the flow's that thousands of seeds do not tell them apart.
    """
    l, (gap, error), (plain, plain_error) = ds["l"].values, gaps(ds, "svag"), gaps(ds, "sgd")
    lost = int(sum(np.isnan(ds[f"svag_{quantity}"].values).any(axis=0).sum() for quantity in UNITS))
    return [
        _falls(l, gap, error, lost),
        control(
            "SGD with steps of gamma/l, without amplified variance, moves away from the flow",
            LMA,
            predicted="the difference grows with l, towards the flow's own shrinkage",
            measured=f"difference {arrow(plain)} (standard error at the last l "
            f"{plain_error[-1]:.0e})",
            tolerance="difference at the last l above 10 times SVAG's",
            holds=abs(plain[-1]) > 10 * abs(gap[-1]),
        ),
        _approaches(ds),
    ]


def _falls(l: np.ndarray, gap: np.ndarray, error: np.ndarray, lost: int) -> Claim:
    statement = (
        "SVAG(l) approaches the flow: the mean factor by which alpha shrinks differs from the "
        "flow's by an amount that falls as 1/l"
    )
    seen = np.abs(gap[0]) / l > 4 * error
    if seen.sum() < 3:
        return not_applicable(
            statement,
            LMA,
            f"the difference of SVAG(1), {abs(gap[0]):.1e}, divided by l must be above 4 standard "
            f"errors, {4 * error[2]:.0e}, up to l = {l[2]}; use more seeds or a larger step_size",
        )
    slope = power_law(l[seen], gap[seen], error[seen])
    return claim(
        statement,
        LMA,
        predicted="slope -1 in l",
        measured=f"difference {arrow(gap)} (standard error at the last l {error[-1]:.0e}), "
        f"slope {slope:.2f}; {lost} of the seeds are not finite, and count as the factor 0",
        tolerance="interval of the slope, over the l at which the difference at l = 1 divided by "
        f"l is above 4 standard errors ({seen.sum()} of {len(l)}), within 0.25 of -1 or containing "
        "it; 0.25 is for the order after it",
        holds=slope.low - 0.25 < -1 < slope.high + 0.25,
        reason="SVAG does not approach this flow",
    )


def _approaches(ds: xr.Dataset) -> Claim:
    from scipy.stats import kstwobign

    statement = "SVAG's distribution of the shrinkage approaches the flow's as l grows"
    first, again = ds["flow_path_shrinkage"], ds["flow_again_shrinkage"]
    noise = float(kstwobign.ppf(0.99) * np.sqrt(2 / first.size))
    rows = [_distance(row, first) for row in ds["svag_shrinkage"].values]
    if rows[0] < 2.5 * noise:
        return not_applicable(
            statement,
            LMA,
            f"SGD, which is l = 1, has a Kolmogorov distance of {rows[0]:.3f} from the flow; this "
            "is less than 2.5 times that of two samples of one distribution at the level 99%, "
            f"{noise:.3f}, so that SVAG cannot be told from SGD; use more seeds",
        )
    return claim(
        statement,
        LMA,
        predicted="Kolmogorov distance tends to 0 as l grows",
        measured="Kolmogorov distance "
        + ", ".join(f"{v:.3f} at l = {l}" for l, v in zip(LADDER, rows, strict=True))
        + f"; between two samples of the flow {_distance(again, first):.3f}",
        tolerance=f"distance at l = {LADDER[-1]} below half of that at l = 1, which is SGD; two "
        f"samples of one distribution stay below {noise:.3f} with probability 99%",
        holds=rows[-1] < rows[0] / 2,
    )


def _distance(a: Any, b: Any) -> float:
    """The Kolmogorov distance of two samples, in which a value that is not finite lies
    above all others.
    """
    first, second = (np.where(np.isfinite(v), v, np.inf) for v in (np.asarray(a), np.asarray(b)))
    return float(kolmogorov(first, second))


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the difference of the means against l, and the distributions of the
    shrinkage over the seeds.
    """
    figure, (left, right) = panels(columns=2)
    l = ds["l"].values
    for name, colour, label in (
        ("svag", COLOURS["sgd"], "SVAG(l)"),
        ("sgd", COLOURS["gd"], "SGD, step size γ/l"),
    ):
        gap, error = gaps(ds, name)
        left.errorbar(
            l, np.abs(gap), yerr=2 * error, marker="o", color=colour, label=label, capsize=2
        )
    left.plot(l, np.abs(gaps(ds, "svag")[0][0]) / l, "k:", linewidth=1, label="1/l")
    finish(
        left,
        title="Mean factor by which α shrinks: difference from the flow's",
        x="l",
        y="|difference|, bars: 2 standard errors",
    )
    ticks(left, l)
    for row, colour, k in zip(
        ds["svag_shrinkage"].values,
        ("#fdd0a2", "#fdae6b", "#fd8d3c", "#e6550d", "#a63603"),
        l,
        strict=True,
    ):
        distribution(right, row, colour=colour, label=f"SVAG({k})")
    distribution(right, ds["flow_path_shrinkage"], colour=COLOURS["sgf"], label="flow", style="--")
    right.set_xlim(0, float(np.nanquantile(ds["flow_path_shrinkage"], 0.99)))
    finish(
        right,
        title="Distribution of the shrinkage over seeds",
        x="shrinkage of log α",
        y="distribution function",
        x_scale="linear",
        y_scale="linear",
    )
    return figure
