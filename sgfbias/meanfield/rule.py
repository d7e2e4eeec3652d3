"""What moves: descent with random masks of the examples, and where it starts."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_real, check_positive, is_concrete


class MaskedDescent(eqx.Module):
    """`w <- w - eta [lambda w + sum_mu s_mu L'(y_mu, r_mu) x_mu / sqrt(d)]`.

    The sum over examples is no mean, and s is a mask with values 0 and 1/b, whose mean
    is 1. With independent masks this is SGD whose batches contain every example with
    probability b. The papers call masks with memory "persistent".

    **Arguments:**

    - `step_size`: eta > 0. The algorithms of the core, which take means over examples,
      have the step size `eta n`.
    - `mask`: `sgfbias.BernoulliMask(b)`, `sgfbias.PersistentMask(b, persistence=q)`, or
      None for all examples at every step.
    - `ridge`: lambda >= 0.
    - `sphere`: whether w is divided by `|w| / sqrt(d)` after every step. Without ridge
      only.

    **Raises:** `ValueError` for numbers outside these ranges, for a mask of another
    kind, and for a ridge on the sphere.

    Mignacco, Urbani 2022 (arXiv 2112.10852).
    """

    step_size: Array
    mask: Any
    ridge: Array
    sphere: bool = eqx.field(static=True)

    def __init__(self, step_size: Any, mask: Any = None, *, ridge: Any = 0.0, sphere: bool = False):
        self.step_size = as_real(step_size, "step_size")
        check_positive(self.step_size, "step_size")
        if mask is not None and not callable(getattr(mask, "path", None)):
            raise ValueError(
                "`mask` must be BernoulliMask(fraction), PersistentMask(fraction, persistence=), "
                f"or None for all examples at every step, but is {mask!r}"
            )
        self.mask = mask
        self.ridge = as_real(ridge, "ridge")
        check_positive(self.ridge, "ridge", zero_allowed=True)
        if not isinstance(sphere, bool):
            raise ValueError(f"`sphere` must be True or False, but is {sphere!r}")
        self.sphere = sphere
        if sphere and is_concrete(self.ridge) and self.ridge != 0:
            raise ValueError(
                "on the sphere the norm of w is fixed, so that a ridge changes nothing but the "
                f"step size: leave out `ridge`, which is {float(self.ridge):g}"
            )

    @property
    def fraction(self) -> Any:
        """The mean share b of the examples in a step."""
        return 1.0 if self.mask is None else self.mask.fraction

    def path(self, key: Array, n: int, steps: int) -> Array:
        """The weights (steps, n) of the examples in every step."""
        if self.mask is None:
            return jnp.ones((steps, n))
        return self.mask.path(key, n, steps)


class Start(eqx.Module):
    """Where w starts: `w = m v / (|v|^2/d) + sqrt(R0) g` with g standard normal.

    **Arguments:**

    - `overlap`: m = w . v / d.
    - `variance`: R0 >= 0, the part of `|w|^2 / d` without the overlap.

    **Raises:** `ValueError` for a variance that is negative.
    """

    overlap: Array
    variance: Array

    def __init__(self, overlap: Any = 0.0, variance: Any = 0.0):
        self.overlap = as_real(overlap, "overlap")
        self.variance = as_real(variance, "variance")
        check_positive(self.variance, "variance", zero_allowed=True)
