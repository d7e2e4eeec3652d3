"""Do wide networks train near their start, by the rates of a fixed kernel, for every
loss of the paper's family?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from sgfbias import LogisticLoss
from sgfbias.lazy import PowerLoss
from sgfbias.study import AtLeast, Between, Positive, SeededConfig

PRECISION = "float64"
SECONDS = 120
REFERENCES = {
    "zou2018": "the network, the data, the family of losses, and training near the start",
    "chizat2019": "the scale of the outputs, which decides whether training is lazy",
}
# Losses of the paper's family, with the largest second derivative of each.
LOSSES = {
    "logistic": (LogisticLoss(), 0.25),
    "exponential": (PowerLoss(1.0), 1.0),
    "squared hinge": (PowerLoss(0.5), 0.5),
}
# Gradient descent stops at the latest after so many steps, and is looked at after so
# many of them at most; their ratio is at most 1.08 from step 25 on.
MOST_STEPS, LOOKS = 1024, 100
SEPARATION, BATCH = 0.8, 6


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Gradient descent trains deep ReLU networks of several widths to one loss, with
    step sizes proportional to 1/width, for three losses. SGD, and networks whose
    outputs are divided by the root of the width, are run beside.
    """

    widths: tuple[Annotated[int, AtLeast(16)], ...] = (64, 128, 256, 512)
    """Widths of the networks, even and increasing."""
    seeds: Annotated[int, AtLeast(2)] = 3
    """Number of networks at each width."""
    examples: Annotated[int, Between(6, 64, closed=True)] = 24
    """Number of examples, at least the size of SGD's batches, 6."""
    inputs: Annotated[int, Between(8, 512, closed=True)] = 24
    """Number of inputs of the network, of which the last one is a constant."""
    depth: Annotated[int, Between(2, 6, closed=True)] = 3
    """Number of hidden layers."""
    step: Positive = 4.0
    """Step size of gradient descent times the width for the logistic loss. With another
    loss the step size is divided by four times its largest second derivative.
    """
    loss: Annotated[float, Between(0.02, 0.5)] = 0.1
    """Mean loss to which gradient descent trains."""
    problem_seed: int = 0
    """Random seed from which the examples are drawn."""

    def check(self) -> None:
        if len(self.widths) < 2 or any(np.diff(self.widths) <= 0):
            raise ValueError(f"widths must be two or more, increasing, but are {self.widths}")
        if any(width % 2 for width in self.widths):
            raise ValueError(f"widths must be even, but widths has {self.widths}")


QUICK = Config(widths=(64, 128, 256), seeds=3)
PAPER = Config(widths=(64, 128, 256, 512, 1024, 2048, 4096, 8192), seeds=10)
