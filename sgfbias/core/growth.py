"""How fast two nearby runs on one path of the noise come apart: what makes pathwise gradients useless, measured."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate


class TangentGrowth(NamedTuple):
    """`exponent` (seeds,): the finite-time Lyapunov exponent, per unit of flow time. `time`: the flow time of the run; their product is the
    logarithm of the factor by which the tangent grew."""

    exponent: Float[Array, "*seeds"]
    time: Float[Array, ""]


def tangent_growth(
    dynamics: Any, network: Any, problem: Any, *, steps: int, keys: Array | None = None, direction: Any = None, **options: Any
) -> TangentGrowth:
    """`log(|v(T)| / |v(0)|) / T`, the finite-time Lyapunov exponent of each seed, per unit of flow time.

    v is the derivative of the network in its own initial arrays along one direction, carried along the seed's run (one forward derivative).
    Negative: runs forget where they started. Positive over the whole run: gradients through it grow as exp of this times T, and their mean
    over seeds is soon that of a few. The arrays are those that the network is held in, for a `DiagonalNetwork` logarithms.

    **Arguments:** as `simulate`, fixed steps only. `direction`: a network of the same structure; default a random one.

    **Returns:** a `TangentGrowth`; the exponent is infinite or NaN for a seed that is not finite.

    **Raises:** `ValueError` as `simulate`, or for an adaptive solver.
    """
    if dynamics.clock is None:
        raise ValueError(f"tangent growth needs fixed steps: give {type(dynamics).__name__} a `dt`")
    moving, rest = eqx.partition(network, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(moving)
    if direction is None:
        drawn = [
            jax.random.normal(key, leaf.shape, leaf.dtype)
            for key, leaf in zip(jax.random.split(jax.random.key(0), len(leaves)), leaves, strict=True)
        ]
        direction = jax.tree.unflatten(structure, drawn)
    else:
        direction = eqx.filter(direction, eqx.is_inexact_array)

    def end(start: Any) -> Any:
        runs = simulate(dynamics, eqx.combine(start, rest), problem, keys=keys, steps=steps, record=Record(times=2), **options)
        return eqx.filter(runs.networks, eqx.is_inexact_array), runs.times[-1]

    (_, time), (tangent, _) = jax.jvp(end, (moving,), (direction,))
    lead = 0 if keys is None or keys.ndim == 0 else 1

    def square(tree: Any, keep: int) -> Array:
        parts = [jnp.sum(jnp.square(leaf), axis=tuple(range(keep, leaf.ndim))) for leaf in jax.tree.leaves(tree)]
        return sum(parts[1:], start=parts[0])

    return TangentGrowth(jnp.log(square(tangent, lead) / square(direction, 0)) / (2 * time), time)
