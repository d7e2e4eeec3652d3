"""Figure 3 of Pesme et al. 2021: do the bundles of runs of SGD and of its flow overlap,
and is the paper's own scheme for the flow as accurate as the mirror system?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.diagonal.studies.pesme2021.common import LEAST_SEEDS, P21, FigureConfig
from sgfbias.study import AtLeast

NAME = "pesme2021.fig3"
SECONDS = 90
REFERENCES = {"pesme2021": "figure 3"}
FIGURE = f"{P21}, figure 3"
# The paper shows so many runs of each kind.
DRAWN = 5
# The control divides the step size in the noise covariance by this factor.
QUIET = 16
# The reference on the same Brownian path takes so many steps per SGD step.
FINEST = 40
# Steps dt of Euler's method in the weights, in units of gamma.
WIDTHS = {"weights 2": 0.5, "weights 10": 0.1, "weights 40": 0.025}
SCHEMES = WIDTHS | {"mirror 1": 1.0, "mirror 10": 0.1}
FEW = f"fewer than {LEAST_SEEDS} seeds converged"


@dataclasses.dataclass(frozen=True)
class Config(FigureConfig):
    """Figure 3 of Pesme et al. 2021: runs of the flow look like runs of SGD, and
    neither looks like gradient descent.
    """

    scheme_steps: Annotated[int, AtLeast(4)] = 10_000
    """Length of the runs by the paper's own scheme, in SGD steps; each takes 10 Euler
    steps in the weights.
    """
    path_steps: Annotated[int, AtLeast(8)] = 1_000
    """Length of the runs that compare schemes on one Brownian path, in SGD steps."""


QUICK = Config(alpha=0.03, steps=6000, n=30, d=60, sparsity=4, scheme_steps=300, path_steps=200)
PAPER = Config(scheme_steps=100_000)
