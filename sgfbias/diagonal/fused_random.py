"""Random numbers inside a kernel: those of the engine (`sgfbias.core.counter`) from the same words, by operations that kernel languages have.

`erf_inv` is not among them, so XLA's approximation of it is written out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Giles 2011, "Approximating the erfinv function", single precision: for w = -log(1 - x^2) below 5 in w - 2.5, above in sqrt(w) - 3.
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


def rotated(word: Any, places: int) -> Any:
    """To the left, by a product and a quotient with powers of 2, which compilers make shifts."""
    return (word * jnp.uint32(1 << places)) | (word // jnp.uint32(1 << (32 - places)))


def normal(random: Any) -> Any:
    """The float32 that `sgfbias.core.counter.normals` makes of random bits."""
    odd = jax.lax.bitcast_convert_type((random // jnp.uint32(1 << 7)) | jnp.uint32(1), jnp.int32)  # 25 bits, the first their sign
    odd = jnp.where(odd >= 1 << 24, odd - (1 << 25), odd)
    x = odd.astype(jnp.float32) * jnp.float32(2**-24)
    # In the tails the rounding of x^2 is the larger part of 1 - x^2, and shared with XLA's function: the minimum, which changes no
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
    """1 where the bit of `mask` is set in a random word, else -1: `sgfbias.core.counter.fair_signs` takes bit i % 32 of word i // 32."""
    return jnp.where((random & mask) != 0, jnp.float32(1), jnp.float32(-1))
