"""The model and the data: only what `sgfbias.core` lacks belongs here."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.loss import SquaredLoss
from sgfbias.core.problem import Problem


class Mean(eqx.Module):
    """The model `f(x) = w`, which predicts the same number for every example.

    **Arguments:**

    - `w`: (), the prediction.
    """

    w: Float[Array, ""]

    def __call__(self, x: Any) -> Array:
        return self.w


def draw(key: Array, *, n: int) -> tuple[Problem, Mean]:
    """A problem of n standard normal targets, and the model at w = 0.

    **Arguments:**

    - `key`: one key of `jax.random.key`.
    - `n`: the number of examples, at least 2.

    **Raises:** `ValueError` for fewer than 2 examples, which have no variance.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, so that the targets differ, but is {n}")
    targets = jax.random.normal(key, (n,))
    problem = Problem(jnp.zeros((n, 1)), targets, loss=SquaredLoss(0.5))
    return problem, Mean(jnp.zeros(()))
