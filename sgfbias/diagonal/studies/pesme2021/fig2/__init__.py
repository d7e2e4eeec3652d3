"""Figure 2 of Pesme et al. 2021: does a larger loss integral go with a smaller
validation error?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.diagonal.studies.pesme2021.common import LEAST_SEEDS, FigureConfig
from sgfbias.study import AtLeast, Positive

NAME = "pesme2021.fig2"
SECONDS = 70
REFERENCES = {"pesme2021": "figure 2", "even2023": "the exact evolution law of SGD"}
WORDS = {"sgd": "SGD", "sgf": "the flow"}


@dataclasses.dataclass(frozen=True)
class Config(FigureConfig):
    """Figure 2 of Pesme et al. 2021: the larger the loss integral of a run, the smaller
    its validation error.
    """

    seeds: Annotated[int, AtLeast(LEAST_SEEDS)] = 512
    """Number of seeds of SGD and of the flow; a rank correlation needs many."""
    alpha: Positive = 0.1
    """Scale alpha of the initialisation, w_+ = w_- = alpha."""
    steps: Annotated[int, AtLeast(4)] = 20_000
    """Number of iterations of GD and SGD, and of steps of the flow at dt = gamma. The
    paper takes 1e5, but at alpha = 0.1 the runs converge long before.
    """
    scheme_seeds: Annotated[int, AtLeast(LEAST_SEEDS)] = 64
    """Number of seeds simulated by the paper's own scheme, Euler's method in the
    weights, with dt = gamma/10 and with steps four times as long.
    """
    scheme_steps: Annotated[int, AtLeast(4)] = 4_000
    """Length of the runs by the paper's own scheme, in SGD steps of length gamma."""


QUICK = Config(seeds=128, steps=6000, n=30, d=60, sparsity=4, scheme_steps=5000)
PAPER = Config(steps=100_000, scheme_steps=100_000)
