"""Random numbers inside a kernel: the numbers of the engine (`sgfbias.core.counter`),
made from the same random words by operations that kernel languages have.

Kernel languages lack `erf_inv`, so XLA's approximation of it is written out here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Coefficients of Giles 2011, "Approximating the erfinv function", single precision.
# With w = -log(1 - x^2), CENTRE is a polynomial in w - 2.5 for w < 5, and TAIL is one
# in sqrt(w) - 3 above.
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
TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def rotated(word: Any, places: int) -> Any:
    """The word rotated to the left by `places` bits, as a product and a quotient with
    powers of 2, which compilers turn into shifts.
    """
    return (word * jnp.uint32(1 << places)) | (word // jnp.uint32(1 << (32 - places)))


def normal(random: Any) -> Any:
    """The float32 number that `sgfbias.core.counter.normals` makes of random bits."""
    # 25 bits, of which the first is the sign.
    odd = jax.lax.bitcast_convert_type((random // jnp.uint32(1 << 7)) | jnp.uint32(1), jnp.int32)
    odd = jnp.where(odd >= 1 << 24, odd - (1 << 25), odd)
    x = odd.astype(jnp.float32) * jnp.float32(2**-24)
    # In the tails the rounding error of x^2 dominates 1 - x^2, and XLA's function makes
    # the same error. The minimum changes no value; it keeps compilers from fusing the
    # product and the difference into one operation, which would round only once.
    w = -jnp.log(jnp.float32(1) - jnp.minimum(x * x, jnp.float32(1)))
    central = w < 5
    w = jnp.where(central, w - jnp.float32(2.5), square_root(w) - jnp.float32(3))
    value = jnp.where(central, jnp.float32(CENTRE[0]), jnp.float32(TAIL[0]))
    for near, far in zip(CENTRE[1:], TAIL[1:], strict=True):
        value = jnp.where(central, jnp.float32(near), jnp.float32(far)) + value * w
    return np.sqrt(np.float32(2)) * (value * x)


def square_root(x: Any) -> Any:
    """The square root of a positive number; 0 for other numbers."""
    positive = x > 0
    return jnp.where(
        positive, x * jax.lax.rsqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x)
    )


def sign(random: Any, mask: Any) -> Any:
    """1 where the bit `mask` of a random word is set, else -1.
    `sgfbias.core.counter.fair_signs` takes bit i % 32 of word i // 32 for example i.
    """
    return jnp.where((random & mask) != 0, jnp.float32(1), jnp.float32(-1))
