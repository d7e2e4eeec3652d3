"""Losses of two classes: their targets are -1 and 1."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float, check_positive, is_concrete
from sgfbias.core.loss import (
    AbstractLoss,
    check_same_shape,
    log_softplus,
    log_softplus_derivative,
)


class AbstractTwoClassLoss(AbstractLoss):
    """A loss of two classes, with one output `f_i` per example.

    Targets have the shape of the outputs, and are -1 and 1, or 0 and 1, or booleans.
    """

    lower_bound: ClassVar[float | None] = 0.0

    def signs(self, outputs: Array, targets: Array) -> Array:
        """The class of each example as -1 or 1."""
        return jnp.where(targets > 0, 1, -1).astype(outputs.dtype)

    def check_targets(self, targets):
        if is_concrete(targets):
            values = set(np.unique(np.asarray(targets)).tolist())
            if not (values <= {-1, 1} or values <= {0, 1}):
                shown = ", ".join(f"{v:g}" for v in sorted(values)[:5])
                raise ValueError(
                    f"{type(self).__name__} needs labels -1 and 1, or 0 and 1, but the targets "
                    f"take the values {shown}"
                )

    def check(self, outputs, targets):
        check_same_shape(self, outputs, targets)
        if np.prod(outputs.shape[1:], dtype=int) != 1:
            raise ValueError(
                f"{type(self).__name__} needs one output per example, but the outputs have shape "
                f"{outputs.shape}; for several classes use SoftmaxCrossEntropyLoss()"
            )


class LogisticLoss(AbstractTwoClassLoss):
    """`log(1 + exp(-s_i f_i))` for two classes, with one output `f_i` per example.

    `s_i` is the class of example i, -1 or 1. Targets have the shape of the outputs, and
    are -1 and 1, or 0 and 1, or booleans.

    **Raises:** `ValueError`, in `Problem` or `simulate`, for other targets or outputs.
    """

    def __call__(self, outputs, targets):
        return jnp.logaddexp(
            jnp.zeros((), outputs.dtype), -self.signs(outputs, targets) * outputs
        ).reshape(outputs.shape[0])

    def derivative(self, outputs, targets):
        signs = self.signs(outputs, targets)
        return -signs * jax.nn.sigmoid(-signs * outputs)

    def log(self, outputs, targets):
        s = -self.signs(outputs, targets) * outputs
        return log_softplus(s).reshape(outputs.shape[0])

    def log_derivative(self, outputs, targets):
        signs = self.signs(outputs, targets)
        return -signs * log_softplus_derivative(-signs * outputs)


class ExponentialLoss(AbstractTwoClassLoss):
    """`exp(-s_i f_i)` for two classes, with one output `f_i` per example.

    `s_i` is the class of example i, -1 or 1. Targets have the shape of the outputs, and
    are -1 and 1, or 0 and 1, or booleans.

    **Raises:** `ValueError`, in `Problem` or `simulate`, for other targets or outputs.
    """

    def __call__(self, outputs, targets):
        return jnp.exp(self.log(outputs, targets))

    def derivative(self, outputs, targets):
        signs = self.signs(outputs, targets)
        return -signs * jnp.exp(-signs * outputs)

    def log(self, outputs, targets):
        return (-self.signs(outputs, targets) * outputs).reshape(outputs.shape[0])

    def log_derivative(self, outputs, targets):
        return -self.signs(outputs, targets)


class SquaredHingeLoss(AbstractTwoClassLoss):
    """`max(margin - s_i f_i, 0)^2 / 2` for two classes, with one output `f_i` per
    example.

    `s_i` is the class of example i, -1 or 1. With margin 0 it counts how far an example
    is on the wrong side, as in the perceptron. Targets have the shape of the outputs,
    and are -1 and 1, or 0 and 1, or booleans. Its second derivative jumps at the
    margin.

    **Arguments:**

    - `margin`: a number >= 0.

    **Raises:** `ValueError` for a margin that is negative or not finite, and, in
    `Problem` or `simulate`, for other targets or outputs.
    """

    margin: float = 0.0

    def __check_init__(self):
        if is_concrete(self.margin):
            check_positive(as_float(self.margin, "margin"), "margin", zero_allowed=True)

    def __call__(self, outputs, targets):
        short = jax.nn.relu(self.margin - self.signs(outputs, targets) * outputs)
        return (jnp.square(short) / 2).reshape(outputs.shape[0])

    def derivative(self, outputs, targets):
        signs = self.signs(outputs, targets)
        return -signs * jax.nn.relu(self.margin - signs * outputs)
