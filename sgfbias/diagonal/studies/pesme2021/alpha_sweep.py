"""How does the final error of gradient descent, of SGD and of its flow depend on the
scale alpha of the initialisation?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import numpy as np
import xarray as xr

from sgfbias.diagonal.setup import draw, step_size
from sgfbias.diagonal.studies.pesme2021 import alphas
from sgfbias.study import (
    AtLeast,
    Claim,
    Columns,
    Count,
    InStore,
    Log,
    Positive,
    PositiveOrAuto,
    SeededConfig,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels

NAME = "alpha-sweep"
SECONDS = 80
REFERENCES = {
    "pesme2021": "figure 1, right; Theorem 1",
    "li2017": "the stochastic modified equation of SGD",
}
# Fields that say which cells the study has; a single cell does not use them.
NOT_OF_A_CELL = ("seeds", "alpha_low", "alpha_high", "levels", "root_seed")


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """The final errors of gradient descent, SGD and its flow are measured against
    alpha. Noise acts as a smaller initialisation, and helps most where alpha is small.
    """

    seeds: Annotated[int, AtLeast(8)] = 256
    """Number of seeds of SGD and of the flow at every alpha."""
    alpha_low: Positive = 1e-4
    """Smallest initialisation scale alpha."""
    alpha_high: Positive = 1e-1
    """Largest initialisation scale alpha."""
    levels: Annotated[int, AtLeast(3)] = 10
    """Number of alphas, spaced evenly in log alpha."""
    step_size: PositiveOrAuto = "auto"
    """Step size gamma; "auto" tries step sizes from the largest down and takes the
    first at which SGD and its flow converge at the largest alpha.
    """
    steps: Annotated[int, AtLeast(4)] = 10_000
    """Number of iterations of GD and SGD; then the solution that each run selects is
    computed from its final alpha and offset.
    """
    flow_steps: Annotated[int, AtLeast(4)] = 2_000
    """Number of steps of the flow at dt = gamma; then its limit is predicted."""
    alpha: Positive = 0.01
    """Initialisation scale of a single run; `sgfbias sweep` varies it. `sgfbias run`
    ignores it and takes alphas from alpha_low to alpha_high.
    """
    n: Count = 40
    """Number of examples."""
    d: Count = 100
    """Number of features."""
    sparsity: Count = 5
    """Number of non-zero entries of the truth beta_star."""
    problem_seed: int = 0
    """Random seed from which the problem is drawn."""

    def check(self) -> None:
        self.check_above("alpha_high", "alpha_low")


# At n = 40, d = 80 and 4 non-zero entries the sparse truth is recovered, and this step
# size is stable, for nearly all problems that are drawn.
QUICK = Config(
    seeds=64,
    alpha_low=0.003,
    alpha_high=0.05,
    levels=3,
    step_size=0.05,
    steps=8000,
    flow_steps=2000,
    n=40,
    d=80,
    sparsity=4,
)


def check_cell(config: Config) -> None:
    """Refuse a config whose step size is "auto", which a single cell cannot find.

    **Raises:** `ValueError` naming the field.
    """
    if config.step_size == "auto":
        raise ValueError(
            "a single cell needs a number as its step_size, but step_size is 'auto'; find one "
            "with sgfbias.diagonal.stepsize.find_step_size"
        )


def cell(config: Config, keys: jax.Array) -> dict[str, np.ndarray]:
    """The errors at the config's alpha, by seed; see `alphas.errors_at`.

    **Raises:** `ValueError` for a step size that is not a number.
    """
    check_cell(config)
    return alphas.errors_at(keys, alpha=config.alpha, config=config)


def measure(config: Config, log: Log) -> InStore:
    """Sweep alpha at one step size in the study's store, then run gradient descent at
    the same alphas.
    """
    problem, network = draw(config, alpha=config.alpha_high)
    gamma = step_size(config, problem, network, log)

    def complete(swept: xr.Dataset) -> Columns:
        log(f"gradient descent, {config.steps:,} iterations")
        out = Columns(seed=np.arange(config.seeds))
        out.attrs["step_size"] = repr(gamma)
        alphas.add_sweep(out, swept, problem, gamma, config.steps)
        return out

    return InStore(alphas.sweep(config, gamma, log), complete)


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims of the right panel of figure 1."""
    return alphas.claims(ds)


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw errors and their ratios to gradient descent's against alpha, with the middle
    90% of the seeds.
    """
    figure, (left, right) = panels(columns=2)
    alphas.draw_errors(left, ds)
    alphas.draw_errors(right, ds, relative=True)
    quiet = np.nanmedian(ds["quiet_error"].values, axis=1) / ds["gd_error"].values
    right.plot(
        ds["alpha"],
        quiet,
        "o--",
        color=COLOURS["control"],
        label="control: noise / 100",
        linewidth=1.2,
        markersize=3,
    )
    right.axhline(1, color=COLOURS["gd"], linewidth=1)
    finish(
        left, title="Error of the selected solution", x="α", y="$|\\beta_\\infty - \\beta^*|_2^2$"
    )
    finish(right, title="Ratio of the error to gradient descent's", x="α", y="ratio")
    return figure
