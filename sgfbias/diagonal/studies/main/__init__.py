"""Which solution do SGD and its flow select on one problem, and did theory predict
it?
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sgfbias.study import Count, NotNegative, Positive, PositiveOrAuto, Seed, SeededConfig

SECONDS = 60
REFERENCES = {
    "pesme2021": "the stochastic flow, Theorem 1 and figures 1 to 3",
    "even2023": "the exact evolution law of SGD, with its offset",
    "sander2024": "isotropic noise, the negative control",
    "li2017": "the stochastic modified equation of SGD",
}
# Steps of the flow in the check in weights coordinates, in units of gamma.
WIDTHS = (1.0, 0.25, 0.0625)
# Step sizes at which SGD and the two flows are compared, in units of gamma.
LAW_STEPS = (1.0, 0.25)
LAWS = {"mean_loss": "mean-loss", "per_sample": "per-sample"}


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """The solutions that SGD and its flow select on a diagonal linear network are
    compared with what the theorem predicts.
    """

    seeds: Count = 256
    """Number of seeds of SGD and of each flow."""
    alpha: Positive = 0.01
    """Scale alpha of the initialisation, w_+ = w_- = alpha."""
    step_size: PositiveOrAuto = "auto"
    """Step size gamma of GD, SGD and the flow; "auto" tries several and takes the
    largest at which SGD and its flow converge.
    """
    steps: Count = 100_000
    """Number of iterations of GD and SGD, and of steps of the flow at dt = gamma."""
    n: Count = 40
    """Number of examples of the drawn problem."""
    d: Count = 100
    """Number of features of the drawn problem."""
    sparsity: Count = 5
    """Number of non-zero entries of the drawn truth beta_star."""
    problem_seed: int = 0
    """Random seed from which the problem is drawn."""
    data: Path | None = None
    """A .npz file with X (n, d), y (n,) and optionally beta_star (d,), or a .csv file
    with a column y, used instead of a drawn problem; None draws one.
    """
    first_seed: Seed = 0
    """Number of the first seed; the others follow it. A run depends only on the number
    of its seed.
    """
    weights_seeds: Count = 64
    """Number of seeds of the check of Theorem 1 in weights coordinates."""
    weights_steps: Count = 500
    """Length of the check of Theorem 1 in weights coordinates, in SGD steps."""
    early_steps: Count = 1000
    """Number of steps after which the flow's limit is predicted from the unfinished
    runs ("landing early"), to test the error estimate of that prediction.
    """
    compare_steps: Count = 2500
    """Number of SGD steps after which SGD, the mean-loss flow and the per-sample flow
    are compared in distribution; at step size gamma/4 four times as many are taken.
    """
    isotropic: NotNegative = 0.5
    """Strength sigma of the isotropic noise that the negative control adds to the
    flow's own noise; at 0 nothing is added and the control cannot succeed.
    """

    @property
    def own_data(self) -> bool:
        """Whether the problem is a user's own, read from `data`."""
        return self.data is not None


QUICK = Config(
    seeds=64,
    alpha=0.05,
    step_size=0.05,
    steps=3000,
    n=20,
    d=50,
    sparsity=3,
    weights_seeds=32,
    weights_steps=200,
    early_steps=500,
    compare_steps=500,
)
