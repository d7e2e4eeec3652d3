"""Counter-based random numbers: number j of step k depends on the key and (k, j) only.

One block of the cipher gives one normal number. `jax.random` would first derive a key
per step, and on a CPU it runs the cipher as a loop over arrays in memory. The cipher
written out here fuses with the code that uses its words, so that a normal number takes
two fifths less time (`benchmarks/NOTES.md`). The cipher is Threefry-2x32 with 20 rounds
(Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), which
`jax.random` uses with its default keys.
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
    """The 32-bit `word` rotated to the left by `places` bits."""
    return (word << jnp.uint32(places)) | (word >> jnp.uint32(32 - places))


def threefry(
    key: tuple[Array, Array],
    first: Array,
    second: Array,
    rotated: Callable[[Array, int], Array] = _rotated,
) -> tuple[Array, Array]:
    """The block of two words that belongs to the counter `(first, second)`.

    All words are uint32 arrays of one shape. `rotated` rotates a word to the left, and
    can be replaced where the language has no shifts.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY))
    first, second = first + schedule[0], second + schedule[1]
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            first = first + second
            second = first ^ rotated(second, turn)
        first, second = (
            first + schedule[(group + 1) % 3],
            second + schedule[(group + 2) % 3] + jnp.uint32(group + 1),
        )
    return first, second


def normals(key: Array, number: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers of the step `number`, in float32.

    Each comes from 24 random bits by the inverse of the distribution function. Its
    possible values are symmetric about 0.
    """
    if not _is_threefry(key):
        return jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32)
    data = jax.random.key_data(key)
    place = jnp.asarray(np.arange(math.prod(shape), dtype=np.uint32).reshape(shape))
    words, _ = threefry(
        (data[0], data[1]), jnp.broadcast_to(jnp.asarray(number).astype(jnp.uint32), shape), place
    )
    # The odd numbers -2^24 + 1, ..., -1, 1, ..., 2^24 - 1 are equally likely.
    odd = (jax.lax.bitcast_convert_type(words, jnp.int32) >> 7) | 1
    return jnp.float32(math.sqrt(2)) * jax.lax.erf_inv(
        odd.astype(jnp.float32) * jnp.float32(2**-24)
    )


def fair_signs(key: Array, number: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Independent signs of the step `number`, +1 and -1 with equal probabilities.

    Every random word gives 32 of them.
    """
    count = math.prod(shape)
    if _is_threefry(key):
        # JAX's own cipher is a loop that keeps its words in memory. `threefry` would be
        # fused, and evaluated again for every sign of a word.
        blocks = -(-count // 64)
        counters = jnp.concatenate(
            [jnp.full((blocks,), number).astype(jnp.uint32), jnp.arange(blocks, dtype=jnp.uint32)]
        )
        words = jax.extend.random.threefry_2x32(jax.random.key_data(key), counters)
    else:
        words = jax.random.bits(jax.random.fold_in(key, number), (-(-count // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & jnp.uint32(1)
    return (2 * bits.astype(dtype) - 1).reshape(-1)[:count].reshape(shape)


def _is_threefry(key: Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"
