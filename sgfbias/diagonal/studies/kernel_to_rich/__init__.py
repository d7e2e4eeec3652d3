"""How small must alpha be at each depth for the solution of least l1 norm, and how
large for the solution of least l2 norm?

From the kernel to the rich regime, gradient flow selects the minimum l2 solution at
large alpha and the minimum l1 solution at small alpha. The study measures both rates.
In the worst case alpha must be exponentially small at depth 2, but only polynomially
small at larger depths. Simulated gradient flows end on the solutions of the program.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from sgfbias import study
from sgfbias.study import AtLeast, Count, Positive, source

NAME = "kernel-to-rich"
SECONDS = 50
W20 = source("woodworth2020")
REFERENCES = {
    "woodworth2020": "the kernel and the rich regime, and how small alpha must be at each depth"
}
# Values of eps for which the paper's sufficient alphas are checked.
EPS = (0.1, 0.5)
# Relative tolerances of the simulated flows; each needs a compilation of its own.
TOLERANCES = (1e-9,)
# Values of alpha^exponent on the fixed problems, in the rich regime.
TARGETS = np.geomspace(1e-3, 1e-8, 6)
# Values of alpha^p over max |beta_l2|, in the kernel regime.
SCALES = np.array([4.0, 8.0, 16.0, 32.0])
# Values of alpha^{p-2} in the worst case, or of 1 / (2 ln(1/alpha)) at depth 2.
ORDERS = np.geomspace(0.1, 1e-3, 5)


@dataclasses.dataclass(frozen=True)
class Config(study.SeededConfig):
    """The selected solution has minimum l2 norm at large alpha and minimum l1 norm at
    small alpha. Both rates are measured; at depth 2 alpha must be exponentially small.
    """

    draws: Annotated[int, AtLeast(2)] = 8
    """Number of problems drawn for the transition and both limits."""
    levels: Annotated[int, AtLeast(4)] = 21
    """Number of alphas of the transition, spaced evenly in log alpha."""
    alpha_low: Positive = 1e-3
    """Smallest initialisation scale alpha of the transition."""
    alpha_high: Positive = 20.0
    """Largest initialisation scale alpha of the transition."""
    depths: tuple[int, ...] = (2, 3, 4)
    """Depths p of the network beta = w_+^p - w_-^p, in increasing order: 2 and at
    least one larger.
    """
    flow_alphas: tuple[Positive, ...] = (0.1, 0.5, 2.0)
    """Initialisation scales alpha at which gradient flow is simulated at every depth;
    at least one.
    """
    flow_time: Positive = 1e7
    """Flow time of the simulated gradient flows; it must be long enough to converge."""
    flow_n: Annotated[int, AtLeast(2)] = 10
    """Number of examples of the problem on which gradient flow is simulated. It is
    smaller than the others because the flow is stiff.
    """
    flow_d: int = 20
    """Number of features of the problem on which gradient flow is simulated."""
    n: Annotated[int, AtLeast(2)] = 20
    """Number of examples of the drawn problems."""
    d: int = 40
    """Number of features of the drawn problems; each is scaled to mean square 1, so
    that h = 1.
    """
    sparsity: Count = 3
    """Number of non-zero entries of the truth beta_star."""
    problem_seed: int = 0
    """Random seed from which all problems are drawn."""

    def check(self) -> None:
        self.check_above("alpha_high", "alpha_low")
        self.check_choice()
        self.check_choice("flow_n", "flow_d")
        if self.sparsity > min(self.d, self.flow_d):
            raise ValueError(
                f"sparsity must be at most d = {self.d} and flow_d = {self.flow_d}, but is "
                f"{self.sparsity}"
            )
        if (
            list(self.depths) != sorted(set(self.depths))
            or len(self.depths) < 2
            or self.depths[0] != 2
        ):
            raise ValueError(
                "depths must be increasing whole numbers, the first one 2 and at least two in "
                f"all, but are {self.depths}"
            )
        if not self.flow_alphas:
            raise ValueError("flow_alphas must be at least one number, but there is none")


QUICK = Config(
    draws=4,
    levels=8,
    depths=(2, 3),
    flow_alphas=(0.3,),
    flow_n=5,
    flow_d=10,
    n=12,
    d=24,
    sparsity=2,
    problem_seed=1,
)


# Figure 1 of the paper (sparse regression); its alphas are within the default range.
PAPER = Config(n=100, d=1000, sparsity=5, draws=4)
