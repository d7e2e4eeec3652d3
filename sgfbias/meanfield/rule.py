"""What moves: descent with random masks of the examples, and where it starts."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, as_real, check_finite, check_positive, is_concrete


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
    - `sphere`: whether w is divided by `|w| / sqrt(d)` after every step, with several
      outputs the weights w_k of each output by `|w_k| / sqrt(d)`. Without ridge only.

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

    - `overlap`: m = w . v / d. With K outputs and M directions a matrix (K, M), whose
      entries are w_k . v_m / d.
    - `variance`: R0 >= 0, the part of `|w|^2 / d` without the overlap. With K outputs a
      covariance (K, K), or a number, which is that of each output.

    **Raises:** `ValueError` for a variance that is negative, or no covariance.
    """

    overlap: Array
    variance: Array

    def __init__(self, overlap: Any = 0.0, variance: Any = 0.0):
        self.overlap = _number_or_matrix(overlap, "overlap")
        self.variance = _number_or_matrix(variance, "variance")
        if self.variance.ndim == 0:
            check_positive(self.variance, "variance", zero_allowed=True)
        elif is_concrete(self.variance):
            check_covariance(np.asarray(self.variance))


def _number_or_matrix(value: Any, name: str) -> Array:
    """A number, or a matrix of finite numbers.

    **Raises:** `ValueError` for anything else.
    """
    if not isinstance(value, list | tuple) and np.ndim(value) == 0:
        return as_real(value, name)
    array = as_float_array(value, name).astype(jnp.result_type(float))
    if array.ndim != 2:
        raise ValueError(f"`{name}` must be a number or a matrix, but has shape {array.shape}")
    check_finite(array, name)
    return array


def check_covariance(matrix: np.ndarray) -> None:
    """Refuse a matrix that is no covariance of outputs.

    **Raises:** `ValueError` that says why it is none.
    """
    rows, columns = matrix.shape
    if rows != columns or not np.allclose(matrix, matrix.T, rtol=1e-5, atol=1e-8):
        raise ValueError("`variance` must be a symmetric matrix (K, K), or a number, but is not")
    least = float(np.linalg.eigvalsh(matrix.astype(np.float64)).min())
    if least < -1e-6 * max(1.0, float(np.abs(matrix).max())):
        raise ValueError(
            f"`variance` is a covariance of outputs, but has the negative eigenvalue {least:g}"
        )
