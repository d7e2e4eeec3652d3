"""Is it the scale, the shape or the support of the noise that matters? One problem is
solved under every noise model.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.study import AtLeast, Count, Positive, SeededConfig

NAME = "noise-anatomy"
SECONDS = 50
REFERENCES = {
    "pesme2021": "the noise models and Theorem 1",
    "sander2024": "isotropic noise, which is the negative control",
    "li2017": "the stochastic modified equation of SGD",
}
# Noise model in the dataset's axis `noise` -> what it is called in texts.
LABELS = {
    "none": "no noise",
    "mean-loss": "mean-loss noise",
    "per-sample": "per-sample noise",
    "minibatch": "exact noise of batch 1",
    "minibatch-4": "exact noise of batch 4 without replacement",
    "label": "label noise for a while",
    "sum": "exact noise of batch 1 plus label noise",
    "isotropic": "mean-loss plus isotropic noise",
}
OUTSIDE = "isotropic"  # the one noise that leaves the span of the rows of X
WIDTHS = (1.0, 0.25, 0.0625)  # dt / gamma of the runs in weights coordinates


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """One problem is solved under every noise model, to see which models keep the bias
    theorem and which effective alpha and validation error each leads to.
    """

    seeds: Annotated[int, AtLeast(8)] = 256
    """Number of seeds of the long runs, for every noise model."""
    steps: Count = 10_000
    """Number of iterations of the long runs, which are in mirror coordinates."""
    step_size: Positive = 0.05
    """Step size gamma of the flow."""
    alpha: Positive = 0.1
    """Initialisation scale of the diagonal network."""
    n: Annotated[int, AtLeast(5)] = 20
    """Number of examples. Batches of 4 need more than 4 of them."""
    d: Count = 50
    """Number of features."""
    sparsity: Count = 3
    """Number of non-zero entries of the truth beta*."""
    problem_seed: int = 0
    """Seed from which the problem is drawn."""
    delta: Positive = 0.3
    """Level of the label noise, which is added to every derivative of the loss. It is
    half of what is added to the label.
    """
    delta_steps: Count = 500
    """Number of iterations for which the label noise is on, from the start of a run."""
    isotropic: Positive = 0.5
    """Scale sigma of the isotropic noise."""
    weights_seeds: Annotated[int, AtLeast(8)] = 64
    """Number of seeds of the short runs in weights coordinates, which test the
    theorem.
    """
    weights_steps: Count = 300
    """Number of iterations of the short runs in weights coordinates."""


QUICK = Config(seeds=64, steps=1500, n=10, d=25, weights_steps=100)
