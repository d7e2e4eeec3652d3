"""Does SGD on the mean of some data end with the variance that theory predicts?"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import numpy as np
import xarray as xr

from sgfbias import StochasticGradientDescent, simulate
from sgfbias.fourier.problem import draw
from sgfbias.fourier.theory import flow_variance, stationary_variance
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Log,
    Seed,
    SeededConfig,
    claim,
    control,
    finals,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, distribution, finish, panels
from sgfbias.study.statistics import Estimate, estimate

SECONDS = 5
REFERENCES = {"li2017": "the stochastic modified equation of SGD"}
TOLERANCE = 0.15  # of the predicted variance


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """SGD on the mean of n numbers, held against its stationary variance."""

    seeds: Annotated[int, AtLeast(16)] = 4096
    """Number of SGD runs."""
    step_size: Annotated[float, Between(0.0, 1.0)] = 0.5
    """Step size gamma of SGD."""
    n: Annotated[int, AtLeast(2)] = 16
    """Number of examples."""
    problem_seed: Seed = 0
    """Chooses among the data of one root seed."""


QUICK = Config(seeds=1024)


def measure(config: Config, log: Log) -> Columns:
    """The end of every run, and the mean and the variance of the data."""
    problem, network = draw(jax.random.key(config.data_seed()), n=config.n)
    steps = round(20 / config.step_size)
    log(f"SGD, {config.seeds:,} seeds x {steps} steps")
    sgd = StochasticGradientDescent(config.step_size)
    keys = config.keys(0, config.seeds)
    runs = simulate(sgd, network, problem, keys=keys, steps=steps)
    out = Columns(seed=np.arange(config.seeds))
    out.add("end", ("seed",), finals(runs, runs.networks.w)[0], "target")
    out.add("target_mean", (), problem.targets.mean(), "target")
    out.add("target_variance", (), problem.targets.var(), "target^2")
    return out


def ratio(ds: xr.Dataset, predicted: float) -> Estimate:
    """The variance of the ends over a predicted one, with its 99% interval."""
    return estimate(lambda v: np.var(v, axis=-1) / predicted, ds["end"].values)


def within(ratio: Estimate) -> bool:
    """Whether the whole interval lies within the tolerance of 1."""
    return ratio.low > 1 - TOLERANCE and ratio.high < 1 + TOLERANCE


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The variance is the predicted one; the formula for small steps is another."""
    spread = float(ds["target_variance"])
    exact = ratio(ds, stationary_variance(config.step_size, spread))
    small = ratio(ds, flow_variance(config.step_size, spread))
    tolerance = f"the 99% interval of the ratio lies within {TOLERANCE:.0%} of 1"
    return [
        claim(
            "The variance of SGD's end over seeds is gamma s^2 / (2 - gamma)",
            "fixed point of the variance recursion",
            predicted="ratio 1",
            measured=f"ratio {exact:.3f}",
            tolerance=tolerance,
            holds=within(exact),
            reason="the runs are too short, or too few seeds were run",
        ),
        control(
            "the variance gamma s^2 / 2 of the flow does not describe SGD at this step size",
            source("li2017"),
            predicted=f"ratio {2 / (2 - config.step_size):.3f}",
            measured=f"ratio {small:.3f}",
            tolerance=f"not so: {tolerance}",
            holds=not within(small),
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """The distribution of SGD's ends, and the mean of the data."""
    figure, (panel,) = panels(columns=1)
    distribution(panel, ds["end"], colour=COLOURS["sgd"], label=f"SGD, {config.seeds} seeds")
    mean = float(ds["target_mean"])
    panel.axvline(mean, color=COLOURS["gd"], linestyle="--", label="mean of the data")
    finish(
        panel,
        title="Where SGD ends",
        x="w",
        y="distribution function",
        x_scale="linear",
        y_scale="linear",
    )
    return figure
