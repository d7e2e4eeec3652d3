"""Losses of two classes whose derivative is a power of the loss."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float, is_concrete
from sgfbias.core.loss import AbstractLoss


class PowerLoss(AbstractLoss):
    """A decreasing loss `l(z)` of the margin `z = y f` with `-l' = min(1, l^p)`.

    Zou, Cao, Zhou, Gu 2018 treat losses that decrease to 0, are smooth, and have
    `-l' >= min(a, b l^p)` for positive constants a, b, p. The logistic loss is one,
    with p = 1: its derivative is `-l' = 1 - e^{-l}`, which is concave in l, hence at
    least `min(1/2, l / (2 log 2))`. The losses of this class have equality with
    a = b = 1:

    - for z < 0, `l = 1 - z`, where `-l' = 1`;
    - for z >= 0 and p = 1, `l = e^{-z}`, where `-l' = l`: the exponential loss,
      continued by its tangent so that it is smooth;
    - for z >= 0 and p < 1, `l = max(1 - (1 - p) z, 0)^{1/(1-p)}`, where `-l' = l^p`.
      With p = 1/2 it is the squared hinge loss `max(1 - z/2, 0)^2`, continued by its
      tangent.

    The second derivative is 0 for z < 0 and `p l^{2p - 1}` for z > 0, which is at most
    p because l <= 1 there and p is at least 1/2. So the derivative has the Lipschitz
    constant p, as smoothness asks.

    **Arguments:**

    - `power`: p, from 1/2 to 1.

    **Raises:** `ValueError` for a power outside of this range, and, in `Problem` or
    `simulate`, for targets that are not -1 and 1, or not one output per example.
    """

    references: ClassVar[dict[str, str]] = {"zou2018": "the family of losses"}
    lower_bound: ClassVar[float | None] = 0.0
    power: Array

    def __init__(self, power: Any = 1.0):
        if is_concrete(power):
            power = as_float(power, "power")
            if not 0.5 <= power <= 1:
                raise ValueError(
                    f"`power` must be from 1/2 to 1, where the loss is smooth, but is {power:g}"
                )
        self.power = jnp.asarray(power, jnp.result_type(float))

    @property
    def smoothness(self) -> float:
        """The largest second derivative, p."""
        return float(self.power)

    def _falling(self, margin: Array, exponent: Array) -> Array:
        """`l^exponent` for z >= 0; 1 for z < 0."""
        q = 1 - self.power.astype(margin.dtype)
        z = jnp.maximum(margin, 0)
        base = jnp.maximum(1 - q * z, 0)
        # The limit of base^{1/q} as q falls to 0 is e^{-z}.
        safe = jnp.where(base > 0, base, 1)
        root = jnp.log(safe) / jnp.where(q > 0, q, 1)
        log = jnp.where(q > 0, root, -z)
        return jnp.where(base > 0, jnp.exp(exponent * log), 0)

    def __call__(self, outputs, targets):
        margin = targets.astype(outputs.dtype) * outputs
        one = jnp.ones((), outputs.dtype)
        return (self._falling(margin, one) - jnp.minimum(margin, 0)).reshape(outputs.shape[0])

    def derivative(self, outputs, targets):
        signs = targets.astype(outputs.dtype)
        return -signs * self._falling(signs * outputs, self.power.astype(outputs.dtype))

    def check_targets(self, targets):
        if is_concrete(targets) and not np.all(np.abs(np.asarray(targets)) == 1):
            raise ValueError(
                "PowerLoss needs labels -1 and 1, but the targets take the values "
                + ", ".join(f"{v:g}" for v in np.unique(np.asarray(targets))[:5])
            )

    def check(self, outputs, targets):
        if outputs.shape != targets.shape or np.prod(outputs.shape[1:], dtype=int) != 1:
            raise ValueError(
                "PowerLoss needs one output per example and targets of the same shape, but the "
                f"outputs have shape {outputs.shape} and the targets {targets.shape}"
            )
