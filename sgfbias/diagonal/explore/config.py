"""What the explorer computes: the values behind its controls, and their bounds."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

ALPHAS = (1e-6, 10.0)


@dataclasses.dataclass(frozen=True)
class ExploreConfig:
    """A stochastic gradient flow on a diagonal linear network, small enough to be
    recomputed whenever a slider moves.
    """

    alpha: float = 0.01
    """Scale of the initialisation, w_+ = w_- = alpha."""
    step_size: float = 0.1
    """Step size gamma of SGD, which is also the solver's step."""
    noise: Literal["mean-loss", "label", "none"] = "mean-loss"
    """Noise of the flow: "mean-loss" is SGD's own, "label" is label noise for the first
    label_steps steps and SGD's own afterwards, "none" is gradient flow.
    """
    strength: float = 1.0
    """With mean-loss noise: its variance relative to batches of 1, that is 1/b for
    batches of b. With label noise: delta.
    """
    label_steps: int = 100
    """Number of steps with label noise."""
    steps: int = 400
    """Number of steps before landing, in addition to the steps with label noise."""
    n: int = 40
    """Number of examples."""
    d: int = 100
    """Number of features."""
    sparsity: int = 5
    """Number of non-zero entries of the truth."""
    seeds: int = 64
    """Number of seeds."""
    problem_seed: int = 0
    """Random seed from which the problem is drawn."""

    def check(self) -> None:
        """Check that all values make sense.

        **Raises:** `ValueError` naming the first value that does not.
        """
        if not ALPHAS[0] <= self.alpha <= ALPHAS[1]:
            raise ValueError(
                f"alpha must be between {ALPHAS[0]:g} and {ALPHAS[1]:g}, but is {self.alpha}"
            )
        for name in ("step_size", "strength"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(
                    f"{name} must be positive and finite, but is {getattr(self, name)}"
                )
        if self.noise not in ("mean-loss", "label", "none"):
            raise ValueError(f"noise must be mean-loss, label or none, but is {self.noise!r}")
        for name, least in (
            ("label_steps", 4),
            ("steps", 4),
            ("n", 1),
            ("sparsity", 1),
            ("seeds", 2),
            ("problem_seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        if self.n >= self.d:
            raise ValueError(
                f"n must be below d = {self.d}, but is {self.n}: with that many examples at most "
                "one solution fits them all, and there is nothing to select"
            )
        if self.sparsity > self.d:
            raise ValueError(f"sparsity must be at most d = {self.d}, but is {self.sparsity}")

    @property
    def noise_step_size(self) -> float:
        """The gamma that multiplies the noise: with mean-loss noise gamma times
        strength, otherwise gamma.
        """
        return self.step_size * (self.strength if self.noise == "mean-loss" else 1.0)
