"""Under label noise that never ends no run converges. Is the time average a Lasso
solution whose penalty is set by the noise?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.study import AtLeast, Count, Positive, SeededConfig

NAME = "label-noise-lasso"
SECONDS = 60
REFERENCES = {"pesme2021": "label noise and the effective initialisation under it"}
WINDOWS = (1 / 16, 1 / 4, 1.0)  # where the time averages end, as shares of the run
BURN_IN = 0.2  # the share at the beginning of every average's window that is left out
FACTORS = (0.5, 1.0, 2.0)  # multiples of the penalty at which the Lasso is solved


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Time averages of the flow and of SGD under persistent label noise are compared
    with Lasso solutions at several gamma and delta.
    """

    seeds: Annotated[int, AtLeast(8)] = 16
    """Number of seeds for every pair (gamma, delta)."""
    time: Positive = 8000.0
    """Length of the runs of the flow, in flow time."""
    sgd_time: Positive = 3000.0
    """Length of the runs of SGD, in flow time: number of steps times gamma."""
    flows: tuple[tuple[Positive, Positive], ...] = ((0.04, 1.0), (0.04, 0.7), (0.01, 2.0))
    """Pairs of step size gamma and label noise delta for the flow, at least two. Delta
    is the noise added to every derivative of the loss, half of what is added to the
    label.
    """
    descents: tuple[tuple[Positive, Positive], ...] = ((0.04, 1.0), (0.01, 2.0))
    """Pairs of step size gamma and label noise delta for SGD, at least two. Gamma must
    fall from pair to pair, and gamma delta^2 must be the same for all.
    """
    dt: Positive = 0.08
    """Flow time per solver step of the flow."""
    points: Annotated[int, AtLeast(320)] = 10_000
    """Number of evenly spaced times at which a run is recorded."""
    alpha: Positive = 0.1
    """Scale alpha of the initialisation."""
    n: Count = 20
    """Number of examples."""
    d: Count = 40
    """Number of features."""
    sparsity: Count = 3
    """Number of non-zero entries of the truth beta*."""
    problem_seed: int = 0
    """Seed from which the problem is drawn."""
    relative: bool = False
    """Whether step sizes, dt and times are divided by the size <h, |beta*|> of the
    problem, and delta is multiplied by it. Problems of any size then have similar
    ratios of noise, penalty and truth.
    """

    def check(self) -> None:
        for name in ("flows", "descents"):
            if len(getattr(self, name)) < 2:
                raise ValueError(
                    f"{name} must be at least 2 pairs (gamma, delta), but is {getattr(self, name)}"
                )
        gammas = [gamma for gamma, _ in self.descents]
        if (
            gammas != sorted(gammas, reverse=True)
            or len({round(gamma * delta**2, 9) for gamma, delta in self.descents}) > 1
        ):
            raise ValueError(
                "descents must be pairs (gamma, delta) with falling gamma and the same "
                f"gamma delta^2, but are {self.descents}"
            )
        self.check_choice()


QUICK = Config(
    seeds=128,
    time=2500.0,
    sgd_time=2400.0,
    flows=((0.12, 0.45), (0.06, 0.64)),
    descents=((0.12, 0.45), (0.03, 0.9)),
    dt=0.2,
    points=800,
    n=10,
    d=20,
    sparsity=2,
    relative=True,
)


PAPER = Config(
    seeds=64,
    time=60_000.0,
    sgd_time=40_000.0,
    n=40,
    d=100,
    sparsity=5,
    flows=((0.02, 1.0), (0.02, 0.7), (0.005, 2.0)),
    dt=0.04,
)
