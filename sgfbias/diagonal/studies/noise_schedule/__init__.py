"""When should a budget of label noise be spent? A schedule learned by gradients through
the flow is compared with constants and pulses.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.study import AtLeast, Count, Positive, SeededConfig

NAME = "noise-schedule"
SECONDS = 190
REFERENCES = {
    "pesme2021": "label noise, section 5.3",
    "li2017": "the stochastic modified equation of SGD",
    "optax2020": "the optimiser of the search for the schedule",
}
# The schedules that are compared, in the order of the dataset's axis `rule`.
RULES = ("learned", "constant", "pulse", "none", "uniform", "reversed")
# The cost of one value with its gradient, in runs without a gradient. It sets how many
# seeds a grid may use. Measured at the default size: 7.5 on one core, and 9.5 on two,
# which the few training seeds do not fill. It is rounded up in the grids' favour.
GRADIENT_RUNS = 10
# A mean over seeds is used only if at most this share of the seeds diverged.
MOST_LOST = 0.05


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """A schedule delta(t) of label noise is learned that minimises the validation error
    of the last iterate while int delta^2 dt stays within a budget.
    """

    budget: Positive = 25.0
    """Budget of label noise, the largest allowed value of int delta^2 dt over a run."""
    pieces: Annotated[int, AtLeast(2)] = 8
    """Number of pieces of equal length into which the run is divided. The label noise
    delta is constant on each.
    """
    steps: Count = 1000
    """Number of iterations of a run, a multiple of pieces. The validation error of the
    last iterate is minimised.
    """
    step_size: Positive = 0.05
    """Step size gamma of the flow, which is also the flow time of one iteration."""
    alpha: Positive = 0.1
    """Initialisation scale of the diagonal network. It should be so large that
    shrinking it lowers the error.
    """
    n: Count = 20
    """Number of examples. Every seed draws its own problem and Brownian path."""
    d: Count = 50
    """Number of features."""
    sparsity: Count = 3
    """Number of non-zero entries of the truth beta* of every problem."""
    train: Annotated[int, AtLeast(8)] = 128
    """Number of training seeds, on which the schedule is learned. The grid searches use
    more seeds, so that each costs as much as the learning.
    """
    held_out: Annotated[int, AtLeast(8)] = 512
    """Number of held-out seeds, on which all schedules are compared."""
    iterations: Count = 30
    """Largest number of Adam steps in the search for the schedule."""
    learning_rate: Positive = 0.3
    """Learning rate of Adam. It acts on logits, whose softmax gives each piece's share
    of the budget.
    """
    grid: Annotated[int, AtLeast(3)] = 24
    """Number of constant schedules in the grid search, from 0 to the one that spends
    the whole budget.
    """

    def check(self) -> None:
        self.check_whole("steps", "pieces")
        self.check_choice()
        if self.sparsity > self.d:
            raise ValueError(f"sparsity must be at most d = {self.d}, but is {self.sparsity}")

    @property
    def time(self) -> float:
        """Flow time of a run."""
        return self.steps * self.step_size


QUICK = Config(
    budget=20.0,
    pieces=4,
    steps=200,
    step_size=0.1,
    alpha=0.3,
    n=10,
    d=20,
    sparsity=2,
    train=96,
    held_out=256,
    iterations=8,
    learning_rate=0.5,
    grid=5,
)
