"""To which length does a trained cell hold, and do mixed lengths in training, or a
penalty on the tail, move that length?
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from sgfbias.study import AtLeast, Between, Count, Positive, SeededConfig

NAME = "recurrent-cells"
PRECISION = "float32"
SECONDS = 150
REFERENCES = {"cohenkarlik2022": "networks that fit short sequences and fail on longer ones"}
ARMS = ("one length", "mixed lengths")
LINEAR = ("one length", "mixed lengths", "tail penalty")
RADII = (0.3, 0.9)  # spectral radii of the linear starts
FACTORS = (1, 2, 4, 8)  # lengths over that of training
LEAST = 2  # the shortest of mixed lengths
# A network holds while its loss is below this share of the variance of the target.
LEVEL = 0.1
EXAMPLES, BATCH = 4096, 32
LINEAR_EXAMPLES, LINEAR_RATE = 512, 5e-3
OWN = "own data"
# Cells of three kinds that return their last input, and the factors of their recurrent
# weights at the start; for linear cells, the spectral radius of many states.
FACTORS_OF = {
    "linear": (0.1, 0.5, 1.0, 1.3),
    "tanh": (0.3, 1.0, 4.0, 10.0),
    "gru": (0.3, 1.0, 4.0, 10.0),
}
SCALES = tuple((kind, factor) for kind, factors in FACTORS_OF.items() for factor in factors)
SCALED = 2  # the number of starts of each of them
# Starts of linear networks for each seed: the errors of some are a thousand times those
# of others.
LINEAR_STARTS = 6


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """A GRU is trained by Adam on copying, adding and a noisy sine, and a linear
    network on returning its last input, at one length and at mixed lengths up to it.
    """

    seeds: Annotated[int, AtLeast(2)] = 4
    """Number of networks of each kind."""
    length: Annotated[int, Between(6, 32, closed=True)] = 8
    """Largest length of the sequences of training, an even number."""
    hidden: Annotated[int, Between(4, 128, closed=True)] = 12
    """Number of hidden units, and of states of the linear networks."""
    steps: Count = 800
    """Number of iterations of Adam."""
    rate: Positive = 0.01
    """Learning rate of Adam for the cell."""
    tests: Annotated[int, AtLeast(32)] = 512
    """Number of test sequences at each length."""
    cell: str = "gru"
    """The cell: gru, lstm, or MODULE:FUNCTION for one of your own, a function of
    (inputs, hidden, key) that returns an Equinox module (input, state) -> state.
    """
    data: Path | None = None
    """A .npz file with sequences X (n, T, i) and targets y (n, T, o) or (n, o), or a
    .csv file with a series whose next line is predicted, in place of the drawn tasks;
    None draws them.
    """

    @property
    def own_data(self) -> bool:
        """Whether the sequences are a user's own, read from `data`."""
        return self.data is not None

    def check(self) -> None:
        if self.length % 2:
            raise ValueError(f"length must be even, but is {self.length}")
        if self.hidden <= self.length:
            raise ValueError(
                f"hidden must be above length = {self.length}, since the first lags of a linear "
                f"network with fewer states decide all others, but is {self.hidden}"
            )


QUICK = Config(seeds=3, steps=600, tests=256)
