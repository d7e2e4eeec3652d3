"""Does the flow with exact noise end where SGD ends, in distribution, for a small
network on handwritten digits?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.digits.problem import IMAGES
from sgfbias.study import AtLeast, Between, Count, Positive, SeededConfig
from sgfbias.study.plotting import COLOURS

PRECISION = "float32"
SECONDS = 80
REFERENCES = {
    "li2017": "the stochastic modified equation of SGD",
    "li2021": "the flow with SGD's noise, and the conditions that it needs",
    "pesme2021": "mean-loss noise, eq. (3), with several outputs",
}
ENSEMBLES = {
    "sgd": "SGD",
    "flow": "flow, exact noise",
    "mean_loss": "flow, mean-loss noise",
    "coarse": "flow, exact noise, dt = gamma",
}
COMPARED = {"sgd": COLOURS["sgd"], "flow": COLOURS["sgf"], "mean_loss": COLOURS["control"]}
UNITS = {"loss": "loss", "test_loss": "loss", "test_accuracy": "1"}
LATE = 0.75  # runs are compared by their averages over the time after this fraction
TIMES = 60


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Train a small network on scikit-learn's digits by SGD and by the flow with exact
    noise, and compare the test losses and accuracies over seeds.
    """

    seeds: Annotated[int, AtLeast(8)] = 32
    """Number of seeds of SGD and of each flow. All of them start from the same
    network.
    """
    step_size: Positive = 0.05
    """Step size gamma of SGD and of the flow."""
    batch_size: Count = 4
    """Number of examples per SGD step, drawn with replacement."""
    steps: Count = 1200
    """Number of SGD steps, a multiple of 60. The flow with exact noise takes 4 solver
    steps per SGD step, and 1 in a second run.
    """
    train: Annotated[int, Between(10, IMAGES - 100, closed=True)] = 512
    """Number of training examples. The remaining images, at least 100 of 1797, are the
    test set.
    """
    hidden: Count = 32
    """Number of hidden units."""
    split_seed: int = 0
    """Seed of the split into training and test images, and of the initial network."""

    def check(self) -> None:
        if self.steps % TIMES:
            raise ValueError(f"steps must be a multiple of {TIMES}, but is {self.steps}")
        if self.batch_size > self.train:
            raise ValueError(
                f"batch_size must be at most train = {self.train}, but is {self.batch_size}"
            )


QUICK = Config(seeds=32, step_size=0.2, steps=240, train=128, hidden=8)
