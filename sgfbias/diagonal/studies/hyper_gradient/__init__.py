"""Are gradients through the dynamics right, and does the implicit function theorem give
the gradients of the limit?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.study import AtLeast, Count, Positive, SeededConfig

NAME = "hyper-gradient"
SECONDS = 200
REFERENCES = {
    "pesme2021": "Theorem 1; mean-loss, per-sample and label noise",
    "li2017": "the stochastic modified equation of SGD",
    "sander2024": "isotropic noise",
    "kvaerno2004": "the implicit solver of the gradient flow",
    "optimistix2024": "the nonlinear equations of the solver's stages",
    "lineax2023": "the linear systems in these equations",
}
# The two cases that a control compares.
FIXED_STEPS, FIXED_TIME = "SGD, fixed steps: error", "SGD, fixed time: error"


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Gradients of every kind of outcome are compared with central differences, forward
    mode with reverse mode, and landed solutions with the limit.
    """

    seeds: Annotated[int, AtLeast(4)] = 16
    """Number of seeds in every comparison."""
    steps: Annotated[int, AtLeast(2)] = 200
    """Number of iterations of the runs that are compared with central differences."""
    step_size: Positive = 0.05
    """Step size gamma of SGD and of the flow."""
    alpha: Positive = 0.3
    """Initialisation scale alpha of the diagonal network."""
    n: Count = 10
    """Number of examples of the sparse regression problem."""
    d: Count = 25
    """Number of features of the sparse regression problem."""
    sparsity: Count = 3
    """Number of non-zero coefficients of the true predictor."""
    problem_seed: int = 0
    """Seed of the random problem."""
    landing_steps: tuple[Count, ...] = (100, 300, 1000)
    """Increasing numbers of iterations after which a run is landed on its limit and the
    landed solution is differentiated.
    """
    limit_steps: int = 20_000
    """Number of iterations of the run that is differentiated step by step as the
    reference for the limit. It must suffice for convergence and be above the last of
    landing_steps.
    """

    def check(self) -> None:
        if not self.landing_steps or list(self.landing_steps) != sorted(set(self.landing_steps)):
            raise ValueError(
                "landing_steps must be increasing whole numbers, at least one, but are "
                f"{self.landing_steps}"
            )
        if self.limit_steps <= self.landing_steps[-1]:
            raise ValueError(
                "limit_steps must be above the last of landing_steps, which is "
                f"{self.landing_steps[-1]}, but is {self.limit_steps}"
            )


QUICK = Config(seeds=4, steps=40, alpha=0.4, landing_steps=(150, 500), limit_steps=4000)
