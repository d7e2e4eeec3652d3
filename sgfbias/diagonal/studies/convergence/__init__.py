"""Up to which step size do SGD and its flow converge, what does theory guarantee, and
where is the edge really?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.study import AtLeast, Between, Count, Positive, SeededConfig, source

NAME = "convergence"
SECONDS = 70
P21 = source("pesme2021")
REFERENCES = {"pesme2021": "the convergence guarantee, Theorem 1 and Lemmas 2 to 7"}
WIDTHS = (1.0, 0.25, 0.0625)  # dt / gamma of the runs of the identity
# Fractions of the predicted edge between which the claims leave room.
SAFE, SAFE_FLOW, BEYOND = 0.6, 0.4, 2.0
FALL = 100  # a seed has converged if its loss fell by this factor
NOISES = ("SGD", "SGD in batches of 4", "per-sample flow", "mean-loss flow")
OTHERS = ("mean-loss flow", "gradient descent")  # edges that are not SGD's own
SHOWN = 5  # paths in the picture


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """The identity behind the convergence guarantee along simulated paths, the bounds
    of the guarantee, and the shares of seeds that converge at step sizes around the
    predicted edge of stability.
    """

    sizes: tuple[tuple[Count, Count, Count], ...] = (
        (20, 40, 3),
        (40, 100, 5),
        (15, 60, 2),
        (30, 40, 8),
    )
    """Sizes (n, d, sparsity) of the problems: numbers of examples, of features, and of
    entries of the truth that are not zero.
    """
    scales: tuple[Positive, ...] = (1.0, 1.0, 2.0, 0.5)
    """Factors of the targets, one for every problem."""
    fractions: tuple[Positive, ...] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.0)
    """Step sizes in units of the predicted edge, increasing; 0.4, 0.6 and 2 must be
    among them.
    """
    edge_seeds: Annotated[int, AtLeast(8)] = 64
    """Number of seeds for every problem, noise and step size."""
    horizon: Positive = 150.0
    """Length of these runs, in flow time over the edge of the mean-loss flow."""
    per_iteration: Count = 8
    """Number of solver steps of a flow per step of SGD in these runs."""
    batches: tuple[Count, ...] = (1, 2, 4, 8, 16)
    """Batch sizes at which the growth of SGD's edge is tested on the last problem,
    increasing from 1.
    """
    alpha: Positive = 0.05
    """Scale alpha of the initialisation, in units of the root of the least l1 norm of a
    solution, so that problems of all sizes are equally far in the rich regime.
    """
    identity_seeds: Annotated[int, AtLeast(16)] = 256
    """Number of seeds of the runs on which the identity is computed at three widths."""
    event_seeds: Annotated[int, AtLeast(64)] = 4096
    """Number of seeds of the runs that count how often the martingale leaves its
    bound.
    """
    identity_fraction: Positive = 0.1
    """Step size of the runs of the identity, in units of the mean-loss flow's edge."""
    identity_time: Positive = 75.0
    """Length of the runs of the identity, in flow time over the edge."""
    event: Annotated[float, Between(0.0, 1.0)] = 0.1
    """The martingale leaves its bound with a probability of at most half of this."""
    probability: Annotated[float, Between(0.5, 1.0)] = 0.95
    """Probability of the guarantee."""
    bound_seeds: Count = 16
    """Number of seeds of the runs at the guaranteed step size."""
    problem_seed: int = 0
    """Seed from which the problems are drawn."""

    def check(self) -> None:
        if len(self.scales) != len(self.sizes) or not self.sizes:
            raise ValueError(
                "sizes and scales must be as many, and at least one, but are "
                f"{len(self.sizes)} and {len(self.scales)}"
            )
        for n, d, sparsity in self.sizes:
            if not sparsity <= n < d:
                raise ValueError(
                    f"sizes must have sparsity <= n < d, but one is {(n, d, sparsity)}"
                )
        needed = {SAFE, SAFE_FLOW, BEYOND}
        if list(self.fractions) != sorted(set(self.fractions)) or not needed <= set(self.fractions):
            raise ValueError(
                f"fractions must increase and have {SAFE_FLOW}, {SAFE} and {BEYOND} among them, "
                f"but are {self.fractions}"
            )
        if (
            len(self.batches) < 2
            or self.batches[0] != 1
            or list(self.batches) != sorted(set(self.batches))
            or self.batches[-1] > self.sizes[-1][0]
        ):
            raise ValueError(
                "batches must be at least two numbers that increase from 1 to at most the n of the "
                f"last problem, {self.sizes[-1][0]}, but are {self.batches}"
            )


QUICK = Config(
    sizes=((20, 40, 3), (15, 30, 4), (20, 40, 6), (15, 30, 6)),
    scales=(1.0, 2.0, 1.0, 0.5),
    fractions=(0.4, 0.6, 1.0, 1.5, 2.0),
    per_iteration=4,
    batches=(1, 4, 15),
    identity_seeds=64,
    event_seeds=1024,
    bound_seeds=8,
)
