"""The linear model, for which the limits are known."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Linear(eqx.Module):
    """`f(x) = <w, x>`, or `W x` for several classes.

    **Arguments:**

    - `w`: (d,), or (C, d) for C classes.
    """

    w: Float[Array, "*c d"]

    def __init__(self, w: Any):
        self.w = jnp.asarray(w)

    def __call__(self, x: Array) -> Array:
        return self.w @ x
