"""The package's random numbers inside a kernel: Threefry-2x32 (Salmon et al. 2011), normals and fair signs, bit for bit those of `jax.random`.

`jax.random` cannot be called inside a kernel, so its default generator (with `jax_threefry_partitionable`) is written out on 32-bit words here.
Only operations that every kernel language has are used: a rotation is a product and a quotient by powers of 2, which compilers make shifts.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Words = tuple[Any, Any]

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA

# Giles 2010, "Approximating the erfinv function", single precision: for w = -log(1 - x^2) below 5 in w - 2.5, above in sqrt(w) - 3.
CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047, 1.00167406, 2.83297682)


def word(value: int) -> Any:
    """A constant of 32 bits."""
    return jnp.uint32(value)


def _rotated(x: Any, places: int) -> Any:
    return (x * word(1 << places)) | (x // word(1 << (32 - places)))


def threefry(key: Words, counter: Words) -> Words:
    """Threefry-2x32 with 20 rounds: two words from a key of two words and a counter of two words, each an array of any one shape."""
    schedule = (*key, key[0] ^ key[1] ^ word(PARITY))
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for block in range(5):
        for places in ROTATIONS[block % 2]:
            x = x + y
            y = x ^ _rotated(y, places)
        x, y = x + schedule[(block + 1) % 3], y + (schedule[(block + 2) % 3] + word(block + 1))
    return x, y


def folded(key: Words, number: Any) -> Words:
    """`jax.random.fold_in` with a number of 32 bits."""
    return threefry(key, (jnp.zeros_like(number), number))


def bits(key: Words, index: Any) -> Any:
    """Entry `index` of `jax.random.bits` of a shape that holds it."""
    first, second = threefry(key, (jnp.zeros_like(index), index))
    return first ^ second


def normal(random: Any) -> Any:
    """The float32 that `jax.random.normal` makes of random bits."""
    unit = jax.lax.bitcast_convert_type((random // word(1 << 9)) | word(0x3F800000), jnp.float32) - jnp.float32(1)
    least = np.nextafter(np.float32(-1), np.float32(0))
    x = jnp.maximum(unit * (np.float32(1) - least) + least, least)
    # In the tails the rounding of x^2 is the larger part of 1 - x^2, and shared with `jax.random`: the minimum, which changes no
    # value, keeps compilers from fusing product and difference into one operation that rounds once.
    w = -jnp.log(jnp.float32(1) - jnp.minimum(x * x, jnp.float32(1)))
    central = w < 5
    w = jnp.where(central, w - jnp.float32(2.5), square_root(w) - jnp.float32(3))
    value = jnp.where(central, jnp.float32(CENTRE[0]), jnp.float32(TAIL[0]))
    for near, far in zip(CENTRE[1:], TAIL[1:], strict=True):
        value = jnp.where(central, jnp.float32(near), jnp.float32(far)) + value * w
    return np.sqrt(np.float32(2)) * (value * x)


def square_root(x: Any) -> Any:
    """The root of a number, 0 for one that is not positive."""
    positive = x > 0
    return jnp.where(positive, x * jax.lax.rsqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x))


def sign(random: Any, mask: Any) -> Any:
    """1 where the bit of `mask` is set in a random word, else -1: `sgfbias.core.brownian.fair_signs` takes bit i % 32 of word i // 32."""
    return jnp.where((random & mask) != 0, jnp.float32(1), jnp.float32(-1))
