"""The largest step size for which SGD and its flow converge, found by trial runs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from sgfbias.core.brownian import seeds
from sgfbias.core.descent import StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.noise import LabelNoise
from sgfbias.core.simulate import simulate
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression

PROBE_ROOT = 0x50524F42  # The seeds of the probes are never those of a study.
RATIO = 0.85  # of neighbouring default candidates
FALL = 0.1  # A seed has settled if its loss is below this fraction of the start's.


@dataclasses.dataclass(frozen=True)
class Probe:
    """The result at one step size: the fractions of the probe seeds that settled under
    SGD and under the flow.
    """

    step_size: float
    sgd_settled: float
    sgf_settled: float

    @property
    def converged(self) -> bool:
        """Whether every probe seed settled, under SGD and under the flow."""
        return self.sgd_settled == 1 and self.sgf_settled == 1

    def __str__(self) -> str:
        flow = "not tried" if math.isnan(self.sgf_settled) else f"{self.sgf_settled:.0%}"
        return f"{self.step_size:.4g}: probes that settle: SGD {self.sgd_settled:.0%}, SGF {flow}"


def find_step_size(
    problem: SparseRegression,
    network: DiagonalNetwork,
    *,
    probes: int = 128,
    steps: int = 3000,
    candidates: Any = None,
    label_noise: Any = None,
) -> tuple[float, list[Probe]]:
    """The largest candidate step size for which every probe seed of SGD and of the
    mean-loss flow settles.

    A seed settles if it does not diverge and its loss falls to a tenth of its value at
    the start. Candidates are tried from the largest down, and the first success is
    taken: nothing is assumed about the smaller ones.

    **Arguments:**

    - `probes`: number of probe seeds per candidate.
    - `steps`: steps per probe.
    - `candidates`: the step sizes to try. The default is 16 of them, from
      `2 / lambda_max(X^T X / n)` down by a factor of 0.85 each.
    - `label_noise`: the label noise of SGD and of the flow, a number or a schedule. The
      loss falls to a tenth only after the label noise is off.

    **Returns:** the step size, and a `Probe` for each candidate that was tried.

    **Raises:** `ValueError` if no candidate converges. The message lists what was
    tried.
    """
    if candidates is None:
        largest = 2 * problem.n / float(np.linalg.norm(np.asarray(problem.X, np.float64), 2)) ** 2
        candidates = largest * RATIO ** np.arange(16)
    keys = seeds(0, probes, root=PROBE_ROOT)
    start = float(problem.risk(network))
    tried: list[Probe] = []
    noise = None if label_noise is None else LabelNoise(label_noise)

    def settled(dynamics: Any) -> float:
        runs = simulate(dynamics, network, problem, keys=keys, steps=steps)
        return float(jnp.mean(~runs.diverged & (runs.final["loss"] <= FALL * start)))

    for gamma in np.sort(np.asarray(candidates, np.float64))[::-1]:
        sgd = settled(
            StochasticGradientDescent(gamma, label_noise=label_noise, integral="examples")
        )
        # The flow is tried only at step sizes at which SGD settles.
        tried.append(
            Probe(
                float(gamma),
                sgd,
                settled(StochasticGradientFlow(gamma, noise)) if sgd == 1 else float("nan"),
            )
        )
        if tried[-1].converged:
            return float(gamma), tried
    report = "\n  ".join(map(str, tried))
    raise ValueError(
        f"no step size was found at which SGD and its flow both settle within {steps} steps on "
        f"{probes} probe seeds; tried\n  {report}\n"
        "give one (step_size=...), or rescale the data"
    )
