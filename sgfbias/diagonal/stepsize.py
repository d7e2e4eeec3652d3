"""The largest step size for which SGD and its flow converge, found by trial runs near
the predicted edge of stability.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
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
from sgfbias.diagonal.theory.edge import stability_edge
from sgfbias.diagonal.theory.minimum_norm import minimum_l1

PROBE_ROOT = 0x50524F42  # The seeds of the probes are never those of a study.
RATIO = 0.85  # of neighbouring default candidates
LEAP = 16  # candidates that are skipped at a time in the search above: a factor of 13
MOST_LEAPS = 6
FALL = 0.1  # A seed has settled if its loss is below this fraction of the start's.


@dataclasses.dataclass(frozen=True)
class Probe:
    """The result at one step size: the fractions of the probe seeds that settled under
    SGD and under the flow, and whether the loss of some seed rose to twice its start.
    """

    step_size: float
    sgd_settled: float
    sgf_settled: float
    diverged: bool = False

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
    edge: float | None = None,
) -> tuple[float, list[Probe]]:
    """The largest tried step size for which every probe seed of SGD and of the
    mean-loss flow settles, while at the next larger one some seed does not.

    A seed settles if it does not diverge and its loss falls to a tenth of its value at
    the start. The default candidates are `2 / lambda_max(X^T X / n)` times powers of
    0.85. The first that is tried is the largest below the predicted edge, see
    `predicted_edge`. If it settles, larger ones are tried until one does not; if it
    does not, smaller ones until one does. If none of the 16 below it settles but the
    first does not diverge either, it is too slow, and larger ones are tried, each 13
    times the last. The gap is then halved down to neighbours.

    **Arguments:**

    - `probes`: number of probe seeds per candidate.
    - `steps`: steps per probe.
    - `candidates`: the step sizes to try, and no others, from the largest down; the
      first success is taken.
    - `label_noise`: the label noise of SGD and of the flow, a number or a schedule. The
      loss falls to a tenth only after the label noise is off.
    - `edge`: the predicted edge, if it has been computed already.

    **Returns:** the step size, and a `Probe` for each candidate that was tried.

    **Raises:** `ValueError` if no candidate converges. The message lists what was
    tried.
    """
    keys = seeds(0, probes, root=PROBE_ROOT)
    start = float(problem.risk(network))
    tried: list[Probe] = []
    noise = None if label_noise is None else LabelNoise(label_noise)

    def settled(dynamics: Any) -> tuple[float, bool]:
        runs = simulate(dynamics, network, problem, keys=keys, steps=steps)
        down = ~runs.diverged & (runs.final["loss"] <= FALL * start)
        # A run that is too short to leave the start counts as diverged in `runs`.
        return float(jnp.mean(down)), not bool(jnp.all(runs.final["loss"] <= 2 * start))

    def probe(gamma: float) -> Probe:
        sgd, lost = settled(
            StochasticGradientDescent(gamma, label_noise=label_noise, integral="examples")
        )
        flow = float("nan")
        if sgd == 1:  # The flow is tried only at step sizes at which SGD settles.
            flow, lost = settled(StochasticGradientFlow(gamma, noise))
        tried.append(Probe(float(gamma), sgd, flow, lost))
        return tried[-1]

    if candidates is None:
        found = _near(_first(problem, edge), probe)
        if found is not None:
            return found, tried
    else:
        for gamma in np.sort(np.asarray(candidates, np.float64))[::-1]:
            if probe(gamma).converged:
                return float(gamma), tried
    report = "\n  ".join(map(str, tried))
    raise ValueError(
        f"no step size was found at which SGD and its flow both settle within {steps} steps on "
        f"{probes} probe seeds; tried\n  {report}\n"
        "give one (step_size=...), or rescale the data"
    )


def predicted_edge(problem: SparseRegression) -> float | None:
    """The smaller of the edges of SGD and of its mean-loss flow in Euler's steps of
    gamma, at the solution of smallest l1 norm; None if there is no such solution.
    """
    dynamics = StochasticGradientDescent(1.0), StochasticGradientFlow(1.0)
    if not problem.interpolates:
        return None
    least = np.asarray(minimum_l1(problem))
    edge = min(stability_edge(problem, one, least).step_size for one in dynamics)
    return edge if math.isfinite(edge) else None


def _first(problem: SparseRegression, edge: float | None) -> float:
    """The default candidate to try first."""
    top = 2 * problem.n / float(np.linalg.norm(np.asarray(problem.X, np.float64), 2)) ** 2
    edge = predicted_edge(problem) if edge is None else edge
    return top if edge is None else top * RATIO ** math.ceil(math.log(edge / top, RATIO))


def _near(first: float, probe: Callable[[float], Probe]) -> float | None:
    """The largest step size on the grid `first / RATIO**k` that settles, as far as the
    tried ones tell: the next larger one does not.

    **Returns:** None if no tried one settles.
    """

    def at(k: int) -> float:
        return first / RATIO**k

    start = probe(first)
    if not start.converged:
        for k in range(1, 17):
            if probe(at(-k)).converged:
                return at(-k)
        return None if start.diverged else _above(start, probe)
    low, high, stride = 0, None, 1
    while high is None and low < MOST_LEAPS * LEAP:
        if probe(at(low + stride)).converged:
            low, stride = low + stride, 2 * stride
        else:
            high = low + stride
    while high is not None and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if probe(at(middle)).converged else (low, middle)
    return at(low)


def _above(first: Probe, probe: Callable[[float], Probe]) -> float | None:
    """The same where the step size of `first` is too slow to settle or to diverge. At
    most 6 + 4 are tried.

    **Returns:** None if no tried one settles.
    """
    low, high, good = 0, None, None

    def at(k: int) -> float:
        return first.step_size / RATIO**k

    for k in range(LEAP, (MOST_LEAPS + 1) * LEAP, LEAP):
        found = probe(at(k))
        if found.diverged or (good is not None and not found.converged):
            high = k
            break
        low, good = k, k if found.converged else good
    while high is not None and high - low > 1:
        middle = (low + high) // 2
        found = probe(at(middle))
        if found.converged:
            low = good = middle
        elif good is None and not found.diverged:
            low = middle  # still too slow
        else:
            high = middle
    return None if good is None else at(good)
