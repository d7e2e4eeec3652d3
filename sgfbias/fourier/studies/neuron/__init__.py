"""How far from its threshold does stabilisation move the inputs of a neuron, and how
many labels does this change?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from sgfbias.study import AtLeast, Between, NotNegative, SeededConfig

NAME = "fourier-neuron"
SECONDS = 25
REFERENCES = {
    "raviv2021": "stabilised neurons, their mean distance and their disagreement",
    "odonnell2014": "Chow parameters, Sheppard's formula for the disagreement of half spaces",
}
POWERS = (1.0, 1.5, 2.0, 4.0)
OTHERS = 16  # other weights with which each stabilised neuron is compared
PATHS = {"clip": "clipped", "power": "powers", "shift": "shifted"}
# Distances at which the paths are compared, as fractions of the way from w to sgn(w).
WAY = np.linspace(0.1, 0.9, 9)


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Random neurons of few bits, for which everything is computed by enumeration."""

    neurons: Annotated[int, AtLeast(20)] = 200
    """Number of neurons with normal weights, and of neurons with one big weight."""
    d: Annotated[int, Between(7, 16, closed=True)] = 15
    """Number of bits, from 7 to 16."""
    threshold: NotNegative = 0.5
    """Standard deviation of the thresholds of the normal neurons, as a fraction of the
    2-norm of their weights.
    """


QUICK = Config(neurons=60, d=12)
