"""Which solution does momentum select, and does it depend on the step size and the
momentum through one number lambda alone?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from sgfbias.study import AtLeast, Between, Count, NotNegative, Positive, SeededConfig

NAME = "momentum"
SECONDS = 50
REFERENCES = {
    "papazov2024": "the momentum flow and its evolution law",
    "even2023": "where the gradient of gradient descent is large",
    "woodworth2020": "the limit of small alpha",
}
# The discrete methods, with the value of `nesterov` that selects each.
METHODS = {"heavy ball": False, "nesterov": True}
# The discrete methods are run at the first so many lambdas of the flows.
LEVELS = 3
# The inputs of the many problems.
KINDS = ("centred", "shifted")


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """The momentum flow lambda w'' + w' + grad L = 0 is compared with discrete momentum
    methods: its evolution law, the right lambda, and which solutions it selects.
    """

    lams: tuple[Positive, ...] = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
    """Values of lambda of the momentum flows, in units of flow time: at least five, in
    increasing order. The discrete methods are run at the first three.
    """
    momenta: tuple[NotNegative, ...] = (0.0, 0.5, 0.8)
    """Values of the momentum b of the discrete methods: at least two, the first one 0,
    all below 1. Their step sizes follow from lambda and b.
    """
    time: Positive = 100.0
    """Flow time of every flow and discrete method on the single problem."""
    dt: Positive = 0.001
    """Time step of the momentum flows and of gradient flow, solved by Heun's method; at
    most a fifth of the smallest lambda.
    """
    records: Annotated[int, AtLeast(50)] = 1000
    """Number of times, spaced evenly in log time, at which the flows are recorded to
    compute the integrals of their evolution law.
    """
    alpha: Positive = 0.1
    """Scale alpha of the initialisation, w_+ = w_- = alpha, on the single problem."""
    n: Count = 10
    """Number of examples of the single problem."""
    d: Count = 25
    """Number of features of the single problem."""
    sparsity: Count = 3
    """Number of non-zero entries of the truth beta_star, on all problems."""
    problem_seed: int = 2
    """Random seed from which the single problem is drawn; the many problems are drawn
    from the next one.
    """
    problems: Annotated[int, AtLeast(8)] = 48
    """Number of problems with centred inputs, and as many with shifted inputs, on which
    the effect of momentum on sparsity is measured to first order in lambda.
    """
    many_n: Count = 20
    """Number of examples of each of the many problems."""
    many_d: Count = 30
    """Number of features of each of the many problems."""
    many_alpha: Positive = 0.01
    """Scale alpha of the initialisation on the many problems."""
    shift: float = 1.0
    """Mean of the inputs of the problems with shifted inputs."""
    seeds: Annotated[int, AtLeast(16)] = 128
    """Number of seeds of SGD with and without momentum."""
    sgd_rates: tuple[Positive, Positive] = (0.02, 0.01)
    """Two values of step size / (1 - momentum) for SGD; the second must be half the
    first.
    """
    sgd_momentum: Annotated[float, Between(0, 1)] = 0.8
    """Momentum b of SGD, between 0 and 1."""

    def check(self) -> None:
        if len(self.lams) < 5 or list(self.lams) != sorted(set(self.lams)):
            raise ValueError(
                f"lams must be at least five increasing positive numbers, but are {self.lams}"
            )
        if self.dt > self.lams[0] / 5:
            raise ValueError(
                f"dt must be at most a fifth of the smallest lambda, {self.lams[0] / 5:g}, but "
                f"is {self.dt}"
            )
        if len(self.momenta) < 2 or self.momenta[0] != 0 or max(self.momenta) >= 1:
            raise ValueError(
                "momenta must be at least two numbers from 0 to below 1, the first one 0, but "
                f"are {self.momenta}"
            )
        if not np.isclose(self.sgd_rates[0], 2 * self.sgd_rates[1]):
            raise ValueError(
                f"sgd_rates must be a positive number and its half, but are {self.sgd_rates}"
            )
        self.check_choice()
        self.check_choice("many_n", "many_d")


QUICK = Config(
    lams=(0.01, 0.02, 0.04, 0.08, 1.28),
    momenta=(0.0, 0.6),
    time=40.0,
    dt=0.002,
    records=600,
    alpha=0.2,
    n=6,
    d=14,
    problem_seed=0,
    problems=24,
    many_n=10,
    many_d=16,
    seeds=64,
    sgd_rates=(0.01, 0.005),
)


PAPER = Config(problems=256, many_n=40, many_d=100, seeds=1024, records=2000)
