"""Where is this run of SGD going, and how early can one know? The limits predicted by
`land` are compared with the ends of long runs of the same seeds.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.study import Above, AtLeast, Between, Count, Positive, SeededConfig

NAME = "land-sgd"
SECONDS = 45
REFERENCES = {
    "pesme2021": "the stochastic flow and its noise, section 2.2 and Theorem 1",
    "even2023": "the exact evolution law of SGD, with its offset",
    "sander2024": "isotropic noise, the negative control",
}
# The lengths of the runs that are landed, in units of `steps`.
LADDER = (1, 3, 10)
# The random dynamics, in the order of the dataset's axis `dynamics`.
DYNAMICS = {
    "sgd": "SGD with batches of 1",
    "replaced": "SGD with larger batches drawn with replacement",
    "distinct": "SGD with larger batches drawn without replacement",
    "mean_loss": "the mean-loss flow",
    "per_sample": "the per-sample flow",
}
# Those whose offset moves.
DISCRETE = ("sgd", "replaced", "distinct")


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """SGD, its flows and gradient descent are landed early, and the predicted limits
    are compared with the limits of the same seeds.
    """

    seeds: Annotated[int, AtLeast(32)] = 256
    """Number of seeds of every random algorithm and flow."""
    steps: Count = 200
    """Number of iterations after which the runs are landed first. They are landed again
    after 3 and 10 times as many.
    """
    long_steps: Count = 12_000
    """Number of iterations of the long runs, whose ends are taken as the limits. At
    least 30 times `steps`.
    """
    share: Annotated[float, Above(0), Between(0, 1)] = 0.4
    """Step size gamma of all dynamics, as a share of the largest at which the second
    moments of the residuals decay under per-sample noise, at the solution of gradient
    flow.
    """
    alpha: Positive = 0.1
    """Scale alpha of the initialisation, w_+ = w_- = alpha."""
    batch_size: Annotated[int, AtLeast(2)] = 4
    """Size of the larger batches."""
    isotropic: Positive = 0.5
    """Strength sigma of the isotropic noise that a negative control adds to the flow's
    own noise.
    """
    n: Count = 40
    """Number of examples of the drawn problem."""
    d: Count = 100
    """Number of features of the drawn problem."""
    sparsity: Count = 5
    """Number of non-zero entries of the drawn truth beta_star."""
    problem_seed: int = 0
    """Random seed from which the problem is drawn."""

    def check(self) -> None:
        if self.long_steps < 3 * LADDER[-1] * self.steps:
            raise ValueError(
                f"long_steps must be at least 30 times steps = {self.steps}, but is "
                f"{self.long_steps}"
            )
        if self.n >= self.d:
            raise ValueError(
                f"n must be below d = {self.d}, so that many solutions fit the data, but is "
                f"{self.n}"
            )
        if self.batch_size > self.n:
            raise ValueError(f"batch_size must be at most n = {self.n}, but is {self.batch_size}")
        if self.sparsity > self.d:
            raise ValueError(f"sparsity must be at most d = {self.d}, but is {self.sparsity}")


QUICK = Config(seeds=64, n=20, d=50, sparsity=3)
