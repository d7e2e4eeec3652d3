"""How do step sizes up to the edge of stability change the recovery of a sparse truth,
for gradient descent and for SGD?

The gain is the amount by which training shrinks alpha. For gradient descent it is
uneven over the coordinates and harms recovery; for SGD it is even and helps. Every
algorithm is run at step sizes from far below its edge of stability to beyond it. At the
end of a run, the selection program is solved with the gain and the offset of that run.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.study import AtLeast, Count, Positive, SeededConfig, source

NAME = "edge-of-stability"
SECONDS = 50
E23 = source("even2023")
REFERENCES = {"even2023": "the gain of gradient descent and SGD, and the edge of stability"}
PER_OCTAVE = 4  # number of step sizes per octave
LAW_EVERY = 2  # every second step size is also run by the independent recursion


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Towards the edge of stability, gradient descent recovers a sparse truth worse and
    SGD recovers it better, because the gain is uneven over the coordinates for gradient
    descent and even for SGD.
    """

    draws: Annotated[int, AtLeast(4)] = 16
    """Number of drawn problems."""
    seeds: Count = 4
    """Number of seeds of SGD on each problem."""
    batch_sizes: tuple[int, ...] = (1, 2, 4)
    """Batch sizes of SGD: 1, 2, 4 and so on, at least two of them."""
    octaves_up: Annotated[int, AtLeast(0)] = 3
    """Exponent of the largest step size, which is 2 to this power over |beta*|_1. Every
    algorithm must diverge there.
    """
    octaves_down: Annotated[int, AtLeast(2)] = 4
    """Exponent of the smallest step size, which is 2 to minus this power over
    |beta*|_1. There are four step sizes per octave.
    """
    steps: Annotated[int, AtLeast(100)] = 10_000
    """Number of iterations of a run, an even number. The selection program is solved at
    the end.
    """
    alpha: Positive = 0.1
    """Scale alpha of the initialisation in the paper's convention, u = sqrt(2) alpha
    and v = 0. For `DiagonalNetwork` it corresponds to the scale alpha / sqrt(2).
    """
    mean: Positive = 4.0
    """Mean of the uncentred inputs, in standard deviations."""
    octaves_uncentred: Annotated[int, AtLeast(0)] = 3
    """Number of octaves by which the step sizes on uncentred inputs are smaller,
    because the mean adds one direction of large curvature.
    """
    n: Annotated[int, AtLeast(2)] = 20
    """Number of examples."""
    d: int = 30
    """Number of features."""
    sparsity: Count = 3
    """Number of non-zero entries of the truth beta*."""
    problem_seed: int = 0
    """Seed from which the problems are drawn."""

    def check(self) -> None:
        self.check_choice()
        self.check_above("d", "sparsity")
        if self.steps % 2:
            raise ValueError(f"steps must be even, but is {self.steps}")
        if len(self.batch_sizes) < 2 or self.batch_sizes != tuple(
            2**k for k in range(len(self.batch_sizes))
        ):
            raise ValueError(
                "batch_sizes must be 1, 2, 4 and so on, at least two of them, but are "
                f"{self.batch_sizes}"
            )
        if self.batch_sizes[-1] > self.n:
            raise ValueError(
                f"batch_sizes must be at most n = {self.n}, but are {self.batch_sizes}"
            )


QUICK = Config(draws=16, seeds=1, batch_sizes=(1, 2), steps=6000)


# The defaults have the size of figure 1 of the paper, (n, d, s, alpha) = (20, 30, 3,
# 0.1). The published size differs only by more problems and longer runs.
PAPER = Config(draws=64, seeds=16, steps=100_000)
