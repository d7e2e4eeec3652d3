"""The predicted edges of stability at which the slider of the step size is marked."""

from __future__ import annotations

import numpy as np

from sgfbias.core.descent import StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.diagonal.explore.config import ExploreConfig
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.edge import stability_edge


def edges(
    config: ExploreConfig, problem: SparseRegression, batch: int | None, at: np.ndarray
) -> dict[str, float]:
    """The values of the slider at which second moments cease to fall, by the name of
    the curve. There are none without noise.

    **Arguments:**

    - `batch`: the batch size of SGD, or None if SGD itself is not drawn.
    - `at`: (d,). The solution.
    """
    if config.noise == "none":
        return {}
    strength = config.noise_step_size / config.step_size
    # The flow's noise has `strength` times the slider's step size, its steps the whole.
    flow = StochasticGradientFlow(strength, dt=1.0)
    found = {"SGD's flow": stability_edge(problem, flow, at).step_size / strength}
    if batch is not None:
        found["SGD"] = stability_edge(problem, StochasticGradientDescent(1.0, batch), at).step_size
    return {name: edge for name, edge in found.items() if np.isfinite(edge)}
