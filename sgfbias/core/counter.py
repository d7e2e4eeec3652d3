"""Random numbers by counter: number j of step k is a function of the key and (k, j) alone, one cipher block each.

`jax.random` would derive a key per step first, and on a CPU runs the cipher as a loop over arrays in memory; written out here it fuses with
what uses it, which takes two fifths off a normal (`benchmarks/NOTES.md`). The cipher is Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror,
Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), the one of `jax.random`'s default keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def _rotated(word: Array, places: int) -> Array:
    return (word << jnp.uint32(places)) | (word >> jnp.uint32(32 - places))


def threefry(
    key: tuple[Array, Array], first: Array, second: Array, rotated: Callable[[Array, int], Array] = _rotated
) -> tuple[Array, Array]:
    """The block of two words of the counter `(first, second)`, uint32 arrays of one shape; `rotated`: to the left, where there are no shifts."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY))
    first, second = first + schedule[0], second + schedule[1]
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            first = first + second
            second = first ^ rotated(second, turn)
        first, second = first + schedule[(group + 1) % 3], second + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return first, second


def normals(key: Array, number: Array, shape: tuple[int, ...]) -> Array:
    """Standard normals of the step `number`, float32: by the inverse of their distribution from 24 bits each, on a grid symmetric about 0."""
    if not _is_threefry(key):
        return jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32)
    data = jax.random.key_data(key)
    place = jnp.asarray(np.arange(math.prod(shape), dtype=np.uint32).reshape(shape))
    words, _ = threefry((data[0], data[1]), jnp.broadcast_to(jnp.asarray(number).astype(jnp.uint32), shape), place)
    odd = (jax.lax.bitcast_convert_type(words, jnp.int32) >> 7) | 1  # -2^24 + 1, ..., -1, 1, ..., 2^24 - 1
    return jnp.float32(math.sqrt(2)) * jax.lax.erf_inv(odd.astype(jnp.float32) * jnp.float32(2**-24))


def fair_signs(key: Array, number: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Independent +1 and -1 of the step `number`, equally likely, 32 from a random word."""
    count = math.prod(shape)
    if _is_threefry(key):
        # JAX's own cipher, a loop that keeps its words in memory: written out, it would be worked out again for every sign.
        blocks = -(-count // 64)
        counters = jnp.concatenate([jnp.full((blocks,), number).astype(jnp.uint32), jnp.arange(blocks, dtype=jnp.uint32)])
        words = jax.extend.random.threefry_2x32(jax.random.key_data(key), counters)
    else:
        words = jax.random.bits(jax.random.fold_in(key, number), (-(-count // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & jnp.uint32(1)
    return (2 * bits.astype(dtype) - 1).reshape(-1)[:count].reshape(shape)


def _is_threefry(key: Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"
