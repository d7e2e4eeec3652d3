"""How closely do the modified equations follow SGD? The study measures the errors of
means and variances of observables against the step size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from sgfbias import (
    MinibatchNoise,
    PerSampleNoise,
    StochasticGradientDescent,
    StochasticGradientFlow,
)
from sgfbias.study import AtLeast, Count, Positive, SeededConfig

NAME = "weak-error"
SECONDS = 190
REFERENCES = {
    "li2019": "weak order of the modified equations; the closed forms",
    "li2017": "the second-order drift",
    "pesme2021": "the mean-loss model, eq. (3), and per-sample noise, appendix E.1",
    "even2023": "the equation that the product of the weights w_+ w_- obeys under SGD",
}
# The flows that are compared with SGD: their noise and their order.
ORDERS = (("exact", 1), ("exact", 2), ("none", 1), ("mean-loss", 1), ("mean-loss", 2))
FLOWS = {f"{noise}-{order}": (noise, order) for noise, order in ORDERS}
# The flows that are simulated on the diagonal network.
NETWORK_FLOWS = ("exact-1", "exact-2", "mean-loss-1")
# The algorithms whose log alpha is compared feature by feature, made from a step size.
LAWS: dict[str, Callable[[float], Any]] = {
    "sgd": lambda gamma: StochasticGradientDescent(gamma, integral="batch"),
    "per-sample": lambda gamma: StochasticGradientFlow(gamma, PerSampleNoise()),
    "exact-2": lambda gamma: StochasticGradientFlow(gamma, MinibatchNoise(1), order=2),
    "exact-1": lambda gamma: StochasticGradientFlow(gamma, MinibatchNoise(1)),
    "mean-loss-1": StochasticGradientFlow,
}
# The step sizes of the closed forms on least squares.
CLOSED_STEPS = 0.2 / 2.0 ** np.arange(6)


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """SGD is compared with its modified equations on least squares and on a diagonal
    network.
    """

    seeds: Annotated[int, AtLeast(2)] = 32_768
    """Number of seeds of every simulated algorithm at each step size, on least squares
    and on the diagonal network.
    """
    step_size: Positive = 0.08
    """Largest step size gamma on the diagonal network; a half and a quarter of it are
    run as well.
    """
    time: Positive = 4.0
    """Flow time at which SGD and the flows are compared on the diagonal network; it
    must be a whole multiple of step_size.
    """
    alpha: Positive = 0.3
    """Initialisation scale of the diagonal network; the per-feature comparison of log
    alpha always starts from 0.1.
    """
    law_seeds: Annotated[int, AtLeast(2)] = 512
    """Number of seeds of the per-feature comparison of log alpha."""
    law_step_size: Positive = 0.0025
    """Step size of the per-feature comparison of log alpha."""
    law_steps: Count = 8000
    """Number of iterations of the per-feature comparison of log alpha."""
    problem_seed: int = 3
    """Seed of the random sparse regression problem, which has n = 6 examples, d = 12
    features and 3 non-zero coefficients.
    """
    relative: bool = False
    """Whether the step sizes and the time on the network are divided by the largest
    <x_j^2, |beta*|> of an example j, and least squares has a largest |x_j|^2 of 2.6.
    Problems of any size are then equally far from the edge of stability.
    """

    def check(self) -> None:
        self.check_whole("time", "step_size")


QUICK = Config(
    seeds=4096,
    step_size=0.16,
    time=8.0,
    law_seeds=256,
    law_step_size=0.005,
    law_steps=5000,
    relative=True,
)
