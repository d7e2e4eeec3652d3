"""Can the shape of the initialisation be learned, one alpha per coordinate, by
gradients through training, on tasks with a shared support?

The search sees nothing but the log error of the landed flow on its training tasks. The
alpha that it finds is tested on tasks it has never seen, against the best uniform
alpha, the minimum l1 solution and an alpha that was given the support; and as controls
on tasks with another support, or without a shared one.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.study import AtLeast, Count, Positive, Seed, SeededConfig

NAME = "alpha-shape"
SECONDS = 90
REFERENCES = {
    "pesme2021": "theorem 1: the limit minimises phi_alpha",
    "woodworth2020": "the shape of alpha matters",
    "li2017": "the stochastic modified equation of SGD",
    "optax2020": "Adam, the optimiser of the search",
}
# The alphas that are tested on the training tasks as well as on held-out tasks.
TRAINED = ("learned", "uniform", "scattered_learned", "scattered_uniform")
# The largest share of lost tasks at which the other tasks still speak for all.
MOST_LOST = 0.05


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """One alpha per coordinate is learned on sparse regression tasks that share their
    support, and is tested on tasks never seen.
    """

    tasks: Annotated[int, AtLeast(8)] = 64
    """Number of training tasks. Each has its own Gaussian inputs, values on the
    support, observation noise and Brownian path.
    """
    held_out: Annotated[int, AtLeast(8)] = 256
    """Number of held-out tasks, on which the learned alpha is tested."""
    n: Count = 15
    """Number of examples per task, below d. The default is so small that no uniform
    alpha does well.
    """
    d: Count = 50
    """Number of features, and hence of alphas that are learned."""
    sparsity: Count = 5
    """Number of coordinates in the support that all tasks share, at most d / 2."""
    noise: Positive = 0.05
    """Standard deviation of the observation noise. Without it errors could come near 0,
    where their logarithm would reward ever smaller alphas.
    """
    step_size: Positive = 0.02
    """Step size gamma of the flow. The solver's step is dt = 2 gamma, which is well
    inside the stability limit for all alphas but the largest.
    """
    steps: Annotated[int, AtLeast(4)] = 800
    """Number of solver steps before a run is landed on its limit."""
    alpha_low: Positive = 1e-3
    """Smallest alpha of the search and of the grid. If it is much smaller than the
    default, runs are still on a plateau when they are landed.
    """
    alpha_high: Positive = 2.0
    """Largest alpha of the search and of the grid, above alpha_low."""
    levels: Annotated[int, AtLeast(3)] = 16
    """Number of uniform alphas on the grid, log-spaced from alpha_low to alpha_high."""
    iterations: Count = 40
    """Largest number of steps of Adam in the search."""
    learning_rate: Positive = 0.2
    """Learning rate of Adam, in the unconstrained variables that the search maps to
    alphas between alpha_low and alpha_high.
    """
    problem_seed: Seed = 1
    """Seed of the supports and of the training and held-out tasks."""

    def check(self) -> None:
        self.check_above("alpha_high", "alpha_low")
        self.check_choice()
        if 2 * self.sparsity > self.d:
            raise ValueError(
                f"sparsity must be at most d / 2 = {self.d / 2:g}, so that a second, disjoint "
                f"support exists, but is {self.sparsity}"
            )


QUICK = Config(
    tasks=24,
    held_out=256,
    n=8,
    d=20,
    sparsity=3,
    step_size=0.04,
    steps=600,
    alpha_low=0.02,
    alpha_high=1.0,
    levels=5,
    iterations=15,
    learning_rate=0.4,
)
