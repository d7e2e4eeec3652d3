"""Sums over the corners of the cube {-1, +1}^d."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Numbers that are held at once while corners, samples or nodes are summed.
BLOCK = 2**21


def corners(d: int, dtype: jnp.dtype | type | None = None) -> Float[Array, "corners d"]:
    """All 2^d corners of the cube, one in each row. The first has only -1, the last
    only +1.
    """
    bits = (jnp.arange(2**d)[:, None] >> jnp.arange(d)[None]) & 1
    return (2 * bits - 1).astype(dtype or jnp.result_type(float))


def halves(weight: Float[Array, "m d"]) -> tuple[Float[Array, "high m"], Float[Array, "low m"]]:
    """Preactivations of the corners of the first d // 2 bits, and of the other bits.

    Each preactivation of the whole cube is a sum of one of the first and one of the
    second, so a sum over 2^d corners is a sum over pairs.

    **Returns:** arrays (2^u, m) and (2^(d - u), m), u = d // 2.
    """
    u = weight.shape[1] // 2
    first, second = (
        corners(part.shape[1], weight.dtype) @ part.T for part in (weight[:, :u], weight[:, u:])
    )
    return first, second


def cube_moments(
    weight: Float[Array, "m d"],
    bias: Float[Array, " m"],
    means: Float[Array, " d"],
    activation: Callable[[Array], Array],
) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
    """`E[act(w.x + b) x_i]` and `E[act(w.x + b)]` by enumeration of all 2^d inputs.

    **Arguments:**

    - `weight`: (m, d). One neuron in each row.
    - `bias`: (m,).
    - `means`: (d,). The mean of every bit; bits are independent.
    - `activation`: a function of preactivations (..., m).

    **Returns:** arrays (m, d) and (m,). The largest array that is held has about two
    million entries, or 2^(d/2) m if this is more.
    """
    u = weight.shape[1] // 2
    first, second = halves(weight)
    high, low = (corners(k, weight.dtype) for k in (u, weight.shape[1] - u))
    mass_high, mass_low = (
        jnp.prod((1 + mean * x) / 2, axis=1) for mean, x in ((means[:u], high), (means[u:], low))
    )

    def row(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, z, mass = inputs
        values = mass * mass_low[:, None] * activation(second + z + bias)
        total = values.sum(axis=0)
        return values, total[:, None] * x, total

    def add(sums: tuple[Array, Array, Array], inputs: tuple[Array, Array, Array]):
        parts = jax.vmap(row)(inputs)
        return tuple(a + b.sum(axis=0) for a, b in zip(sums, parts, strict=True)), None

    size = 2 ** max(0, min(u, int(math.log2(max(1, BLOCK // second.size)))))
    blocks = tuple(v.reshape(-1, size, *v.shape[1:]) for v in (high, first, mass_high))
    m = weight.shape[0]
    start = (jnp.zeros_like(second), jnp.zeros((m, u), weight.dtype), jnp.zeros_like(bias))
    (columns, left, total), _ = jax.lax.scan(add, start, blocks)
    return jnp.concatenate([left, columns.T @ low], axis=1), total
