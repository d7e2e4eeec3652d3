"""Does a deep ReLU network start as the closed forms of infinite width say, and does
the least eigenvalue of its kernel predict how long training takes?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from sgfbias.study import AtLeast, Between, Positive, SeededConfig

NAME = "kernel-at-start"
PRECISION = "float32"
SECONDS = 80
REFERENCES = {
    "zou2018": "the network, its Gaussian start, and training that depends on the separation",
    "cho2009": "the arc-cosine kernels",
}
# The distances of the pairs of points with opposite labels.
DISTANCES = (0.1, 0.3, 0.6, 0.9)
# Pre-activations in [-b, b] are counted for b times the square root of the width:
BAND = 0.5
# Gradient descent stops at the latest after so many steps, of which so many are looked
# at; their ratio is 1.04.
MOST_STEPS, LOOKS = 8192, 240


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """The empirical tangent kernel, the norms of the layers and the outputs of networks
    at their start are compared with closed forms. Gradient descent then runs on pairs
    of points with opposite labels at four distances.
    """

    widths: tuple[Annotated[int, AtLeast(16)], ...] = (128, 512, 2048)
    """Widths of the networks whose kernel is computed, even and increasing."""
    seeds: Annotated[int, AtLeast(4)] = 5
    """Number of networks at each width, and of data sets at each distance."""
    examples: Annotated[int, Between(4, 64, closed=True)] = 24
    """Number of examples, an even number."""
    inputs: Annotated[int, Between(16, 512, closed=True)] = 24
    """Number of inputs of a network, of which the last one is a constant."""
    depth: Annotated[int, Between(2, 6, closed=True)] = 3
    """Number of hidden layers."""
    draws: Annotated[int, AtLeast(500)] = 4000
    """Number of networks of width 64 whose norms and outputs are compared with their
    laws.
    """
    trained: Annotated[int, AtLeast(64)] = 256
    """Width of the networks that gradient descent trains, an even number."""
    step: Positive = 4.0
    """Step size of gradient descent times the width."""
    loss: Annotated[float, Between(0.05, 0.6)] = 0.3
    """Logistic loss to which gradient descent trains."""

    def check(self) -> None:
        if len(self.widths) < 2 or any(np.diff(self.widths) <= 0):
            raise ValueError(f"widths must be two or more, increasing, but are {self.widths}")
        for name, value in (("widths", self.widths), ("trained", (self.trained,))):
            if any(width % 2 for width in value):
                raise ValueError(f"{name} must be even, but {name} has {value}")
        if self.examples % 2:
            raise ValueError(f"examples must be even, but is {self.examples}")


QUICK = Config(widths=(64, 256, 1024), seeds=4, draws=2000, trained=128)
NARROW = 64
