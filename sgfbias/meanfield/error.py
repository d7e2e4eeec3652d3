"""Errors of a linear classifier on fresh examples, by integrals over Gaussians."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np
from jaxtyping import Array

NODES = 20_001
POINTS = 2**13


def upper_tail(x: Any) -> Array:
    """`Q(x)`, the probability that a standard normal number is above x."""
    return special.erfc(x / math.sqrt(2)) / 2


def sign_error(overlap: Array, variance: Array) -> Array:
    """The probability that the sign of a fresh pre-activation is not its label y, for
    pre-activations `y m + sqrt(variance) z` with z standard normal: `Q(m /
    sqrt(variance))`. Without variance it is 0, 1/2 or 1, by the sign of m.

    **Arguments:**

    - `overlap`: m, of any shape.
    - `variance`: of the shape of the overlap.
    """
    known = variance > 0
    spread = jnp.sqrt(jnp.where(known, variance, 1))
    certain = jnp.where(overlap > 0, jnp.inf, jnp.where(overlap < 0, -jnp.inf, 0.0))
    return upper_tail(jnp.where(known, overlap / spread, certain.astype(overlap.dtype)))


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


@functools.cache
def _points(outputs: int) -> np.ndarray:
    """Quasi-random standard normal points (`POINTS`, K), from a Sobol sequence."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    uniform = qmc.Sobol(outputs, scramble=False).random(POINTS) + 0.5 / POINTS
    return np.asarray(ndtri(uniform))


def _wrong(outputs: Array, labels: Array) -> Array:
    """Whether outputs (points,), or (points, K), stand for another class. A positive
    output stands for all labels but 0, if it is the only one.
    """
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return (outputs.reshape(-1) > 0) != (labels > 0)
    return outputs.argmax(axis=-1) != labels


def wrong_classes(
    overlap: Array, covariance: Array, readout: Any, centres: Array, chances: Array
) -> Array:
    """The probability that the class of a fresh example is not that of its largest
    output. With a single output a positive one stands for all labels but 0.

    The pre-activations of class c are normal with mean `m c` and the covariance. Their
    average is over 8,192 quasi-random points, whose error is about 1e-3, and its
    derivatives are 0.

    **Arguments:**

    - `overlap`: m, (..., K, M).
    - `covariance`: w . Sigma w / d, (..., K, K).
    - `readout`: a function of the K pre-activations, or None.
    - `centres`: (C, M), the means of the classes 0, ..., C - 1.
    - `chances`: (C,), their probabilities.
    """
    overlap, covariance = jax.lax.stop_gradient((overlap, covariance))
    outputs, directions = overlap.shape[-2:]
    dtype = overlap.dtype
    normal = jnp.asarray(_points(outputs), dtype)

    def error(ends: tuple[Array, Array]) -> Array:
        m, spread = ends
        values, vectors = jnp.linalg.eigh(spread)
        noise = normal @ (vectors * jnp.sqrt(jnp.maximum(values, 0))).T

        def of_class(centre: Array, label: Array) -> Array:
            r = m @ centre + noise
            found = r if readout is None else jax.vmap(readout)(r)
            return jnp.mean(_wrong(found, label), dtype=dtype)

        each = jax.vmap(of_class)(centres.astype(dtype), jnp.arange(centres.shape[0]))
        return jnp.sum(each * chances.astype(dtype))

    flat = overlap.reshape(-1, outputs, directions), covariance.reshape(-1, outputs, outputs)
    return jax.lax.map(error, flat).reshape(overlap.shape[:-2])


def against_teacher(
    overlap: Array, covariance: Array, readout: Any, label: Any, label_noise: Array
) -> Array:
    """The error on fresh examples whose labels are a function of standard normal
    pre-activations h of a teacher: for whole numbers the share whose largest output is
    not that of the label, for labels -1 and 1 the share of outputs of another sign, and
    else the mean squared difference of label and output.

    The pre-activations of the model are `m h` and a normal rest. Their average is over
    8,192 quasi-random points, whose error is about 1e-3, and its derivatives are 0.

    **Arguments:**

    - `overlap`: m, (..., K, M).
    - `covariance`: w . w / d, (..., K, K), of which the overlap is a part.
    - `readout`: a function of the K pre-activations, or None.
    - `label`: a function of the M pre-activations of the teacher.
    - `label_noise`: the standard deviation of the noise of labels that are numbers.
    """
    overlap, covariance, noise = jax.lax.stop_gradient((overlap, covariance, label_noise))
    outputs, directions = overlap.shape[-2:]
    dtype = overlap.dtype
    normal = jnp.asarray(_points(directions + outputs), dtype)
    along, rest = normal[:, :directions], normal[:, directions:]
    y = jax.lax.stop_gradient(jax.vmap(label)(along))
    signs = jnp.all(jnp.abs(y) == 1) & (noise == 0)

    def error(ends: tuple[Array, Array]) -> Array:
        m, spread = ends
        values, vectors = jnp.linalg.eigh(spread - m @ m.T)
        r = along @ m.T + rest @ (vectors * jnp.sqrt(jnp.maximum(values, 0))).T
        found = r if readout is None else jax.vmap(readout)(r)
        if jnp.issubdtype(y.dtype, jnp.integer):
            return jnp.mean(_wrong(found, y), dtype=dtype)
        found = found.reshape(y.size, -1)
        wrong = jnp.mean(jnp.sign(found) != jnp.sign(y)[:, None], dtype=dtype)
        square = jnp.mean(jnp.square(found - y[:, None])) + jnp.square(noise).astype(dtype)
        return jnp.where(signs, wrong, square).astype(dtype)

    flat = overlap.reshape(-1, outputs, directions), covariance.reshape(-1, outputs, outputs)
    return jax.lax.map(error, flat).reshape(overlap.shape[:-2])


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
