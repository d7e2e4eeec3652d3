"""The set-up that the studies of this system share: the drawn problem, the network
before training and the step size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.stepsize import find_step_size, predicted_edge
from sgfbias.study.frame import Log, silent


def draw(config: Any, **changes: Any) -> tuple[SparseRegression, DiagonalNetwork]:
    """The problem and the network, in float64, of a config with `n`, `d`, `sparsity`,
    `data_seed` and `alpha`.

    **Arguments:**

    - `config`: the config of a study.
    - `changes`: values of these five that the config lacks, or that replace the
      config's.
    """
    value = {
        name: changes.get(name, getattr(config, name, None))
        for name in ("n", "d", "sparsity", "alpha")
    }
    seed = changes["problem_seed"] if "problem_seed" in changes else config.data_seed()
    key = jax.random.key(seed)
    problem = SparseRegression.sample(
        key, n=value["n"], d=value["d"], sparsity=value["sparsity"], dtype=jnp.float64
    )
    return problem, DiagonalNetwork.init(alpha=value["alpha"], d=value["d"], dtype=jnp.float64)


def step_size(
    config: Any,
    problem: SparseRegression,
    network: DiagonalNetwork,
    log: Log = silent,
    **options: Any,
) -> float:
    """The step size gamma of the config. If it is "auto", the largest gamma for which
    SGD and its flow converge; `options` are passed to `find_step_size`.

    **Raises:** `ValueError` if no step size is found for which they converge.
    """
    if config.step_size != "auto":
        return float(config.step_size)
    log("step size: looking near the predicted edge for the largest at which all settle")
    edge = predicted_edge(problem)
    gamma, tried = find_step_size(problem, network, edge=edge, **options)
    above = [probe.step_size for probe in tried if probe.step_size > gamma]
    log(f"gamma = {gamma:.4g} is the largest tried at which all probes of SGD and its flow settle")
    if above:
        log(f"  at {min(above):.4g}, the next larger one, some do not")
    if edge is not None:
        upper = f" to {min(above) / edge:.2f}" if above else ""
        log(
            f"  second moments are predicted to fall below {edge:.4g}; the edge that the trials "
            f"confirm is {gamma / edge:.2f}{upper} times that"
        )
    return gamma
