"""Measures how fast two nearby runs with the same noise move apart.

If they move apart fast, gradients along single paths of the noise are useless.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.starts import has_starts


class TangentGrowth(NamedTuple):
    """The growth of the tangents along some runs.

    - `exponent`: (seeds,): the finite-time Lyapunov exponent, per unit of flow time.
    - `time`: the flow time of the runs. exp(exponent × time) is the factor by which the
      norm of the tangent grew.
    """

    exponent: Float[Array, "*seeds"]
    time: Float[Array, ""]


def tangent_growth(
    dynamics: Any,
    network: Any,
    problem: Any,
    *,
    steps: int,
    keys: Array | None = None,
    direction: Any = None,
    **options: Any,
) -> TangentGrowth:
    """`log(|v(T)| / |v(0)|) / T`, the finite-time Lyapunov exponent of each seed.

    The tangent v(t) is the derivative of the network's arrays at time t with respect to
    its initial arrays, along one direction. It is computed along the run of the seed
    (one forward derivative). The arrays are those that the network stores; a
    `DiagonalNetwork` stores logarithms.

    If the exponent is negative, runs forget where they started. If it is positive,
    gradients through a run of length T grow like exp(exponent × T), and a few seeds
    soon dominate their mean.

    **Arguments:**

    - `dynamics`, `network`, `problem`, `steps`, `keys` and further options: as for
      `simulate`. The steps must be fixed, and the network must be a single one.
    - `direction`: the initial tangent v(0), as a network of the same structure; by
      default a random direction, the same at every call.

    **Returns:** a `TangentGrowth`. The exponent is infinite or NaN for a seed that is
    not finite.

    **Raises:** `ValueError` for an adaptive solver, for a network with one start for
    each seed, and in the same cases as `simulate`.
    """
    if has_starts(network):
        raise ValueError(
            "tangent growth needs the same start for all seeds, but the network has one start for "
            "each seed; call it once for each start"
        )
    if dynamics.clock is None:
        raise ValueError(f"tangent growth needs fixed steps; give {type(dynamics).__name__} a `dt`")
    moving, rest = eqx.partition(network, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(moving)
    if direction is None:
        drawn = [
            jax.random.normal(key, leaf.shape, leaf.dtype)
            for key, leaf in zip(
                jax.random.split(jax.random.key(0), len(leaves)), leaves, strict=True
            )
        ]
        direction = jax.tree.unflatten(structure, drawn)
    else:
        direction = eqx.filter(direction, eqx.is_inexact_array)

    def end(start: Any) -> Any:
        runs = simulate(
            dynamics,
            eqx.combine(start, rest),
            problem,
            keys=keys,
            steps=steps,
            record=Record(times=2),
            **options,
        )
        return eqx.filter(runs.networks, eqx.is_inexact_array), runs.times[-1]

    (_, time), (tangent, _) = jax.jvp(end, (moving,), (direction,))
    lead = 0 if keys is None or keys.ndim == 0 else 1

    def square(tree: Any, keep: int) -> Array:
        parts = [
            jnp.sum(jnp.square(leaf), axis=tuple(range(keep, leaf.ndim)))
            for leaf in jax.tree.leaves(tree)
        ]
        return sum(parts[1:], start=parts[0])

    return TangentGrowth(jnp.log(square(tangent, lead) / square(direction, 0)) / (2 * time), time)
