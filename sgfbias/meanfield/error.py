"""Errors of a linear classifier on fresh examples, by integrals over one Gaussian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np
from jaxtyping import Array

NODES = 20_001


def upper_tail(x: Any) -> Array:
    """`Q(x)`, the probability that a standard normal number is above x."""
    return special.erfc(x / math.sqrt(2)) / 2


def class_error(
    overlap: Array,
    variance: Array,
    readout: Any,
    centres: Sequence[float],
    weights: Sequence[float],
    labels: Sequence[float],
) -> Array:
    """The probability that the sign of the readout of a fresh pre-activation is not the
    label. The pre-activation is `c m + sqrt(variance) z` with z standard normal.

    It is computed with 20,001 quantiles of z, so its error is about 1e-4, and its
    derivatives are 0.

    **Arguments:**

    - `overlap`: m, of any shape.
    - `variance`: of the shape of the overlap.
    - `readout`: a function of one pre-activation, or None.
    - `centres`, `weights`, `labels`: c, its probability, and the label, -1 or 1.
    """
    from scipy.special import ndtri

    z = jnp.asarray(ndtri((np.arange(NODES) + 0.5) / NODES), overlap.dtype)
    spread = jnp.sqrt(jnp.maximum(variance, 0))[..., None] * z
    error = jnp.zeros_like(overlap)
    for centre, weight, label in zip(centres, weights, labels, strict=True):
        r = centre * overlap[..., None] + spread
        outputs = r if readout is None else jnp.vectorize(readout)(r)
        error = error + weight * jnp.mean(jnp.sign(outputs) != label, axis=-1, dtype=error.dtype)
    return error


def door_error(overlap: Any, variance: Any, width: Any) -> Array:
    """The error of the readout `r^2 - L^2` on three clusters, in closed form.

    With `s = sqrt(2 variance)` it is
    `erfc(L/s)/2 + [erf((L-m)/s) + erf((L+m)/s)]/4`.

    **Arguments:**

    - `overlap`: m.
    - `variance`: w . Sigma w / d, positive.
    - `width`: L, the half width of the door.
    """
    s = jnp.sqrt(2 * variance)
    inside = special.erf((width - overlap) / s) + special.erf((width + overlap) / s)
    return special.erfc(width / s) / 2 + inside / 4
