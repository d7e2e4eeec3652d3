"""As alpha -> 0, does gradient flow jump between saddles when and where the algorithm
of the limit says? The study runs the flow at alphas down to 1e-120.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias import study
from sgfbias.study import Above, AtLeast, Between, Count, Positive

NAME = "saddle-to-saddle"
SECONDS = 20
REFERENCES = {
    "pesme2023": "the saddles, the jump times and the algorithm that finds them piece by piece"
}


@dataclasses.dataclass(frozen=True)
class Config(study.SeededConfig):
    """Gradient flow runs from tiny initialisations on several problems; its jump times,
    visited saddles, dual path and limit are compared with the algorithm's.
    """

    problems: Annotated[int, AtLeast(2)] = 8
    """Number of random problems; their seeds are problem_seed, problem_seed + 1, ..."""
    decades: tuple[Positive, ...] = (10.0, 20.0, 60.0, 120.0)
    """Exponents k of the initialisations alpha = 10^-k: at least three increasing
    numbers. The solver works with log alpha, so that large exponents do not underflow.
    """
    coarse: Positive = 2.0
    """Exponent k of the control alpha = 10^-k, at which alpha is not small; it must be
    below the first of decades.
    """
    n: Count = 10
    """Number of examples n of every problem, below d."""
    d: Count = 25
    """Number of features d of every problem."""
    sparsity: Count = 3
    """Number of non-zero coefficients of every true predictor."""
    problem_seed: int = 0
    """Seed of the first random problem."""
    shown: Annotated[int, AtLeast(0)] = 4
    """Index, from 0 to problems - 1, of the problem whose loss and coefficients are
    stored over time and shown in the picture.
    """
    points: Annotated[int, AtLeast(200)] = 2000
    """Number of recorded times of a run. Every run is repeated twice with as many
    times, which lie closer and closer around the jumps.
    """
    most_steps: Annotated[float, AtLeast(100.0)] = 100_000.0
    """Number of solver steps that a run may need, as predicted from the path before the
    run. A path that would need more at the smallest alpha, because its last jumps come
    very late, is followed only as far as this number of steps reaches.
    """
    rtol: Annotated[float, Above(1e-14), Between(0.0, 1e-6, closed=True)] = 1e-9
    """Relative tolerance of the adaptive solver, above 1e-14 and at most 1e-6; its
    absolute tolerance is a hundredth of that.
    """

    def check(self) -> None:
        if len(self.decades) < 3 or list(self.decades) != sorted(set(self.decades)):
            raise ValueError(
                f"decades must be at least 3 increasing numbers, but are {self.decades}"
            )
        if self.coarse >= self.decades[0]:
            raise ValueError(
                f"coarse must be below the first of decades, which is {self.decades[0]}, but is "
                f"{self.coarse}"
            )
        if self.shown >= self.problems:
            raise ValueError(
                f"shown must be the index of a problem, from 0 to {self.problems - 1}, but is "
                f"{self.shown}"
            )
        self.check_choice()


QUICK = Config(problems=6, decades=(20.0, 80.0, 240.0), points=1000, most_steps=10_000.0)


# The paper shows single runs with a few features. The large version of this study has
# more problems, more features and a smaller alpha.
PAPER = Config(
    problems=32, decades=(10.0, 20.0, 60.0, 120.0, 240.0), n=20, d=50, sparsity=5, points=4000
)
