"""Closed forms of a wide deep ReLU network at its Gaussian start.

The network is `DeepReLU.init`: weights from N(0, 2/m), a read-out of +1 and -1, and
inputs of norm 1. All functions take arrays or numbers, and are exact in the limit of
infinite width unless they say otherwise.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, as_whole, check_positive, is_concrete


def arc_cosine_0(correlation: Any) -> Array:
    """`k0(r) = 1 - arccos(r)/pi`: twice the probability that two normal numbers of
    correlation r are both positive (Cho, Saul 2009).
    """
    r = jnp.clip(as_float_array(correlation, "correlation"), -1, 1)
    return 1 - jnp.arccos(r) / jnp.pi


def arc_cosine_1(correlation: Any) -> Array:
    """`k1(r) = (sqrt(1 - r^2) + r (pi - arccos r))/pi = 2 E max(z, 0) max(z', 0)` for
    standard normal z, z' of correlation r (Cho, Saul 2009).
    """
    r = jnp.clip(as_float_array(correlation, "correlation"), -1, 1)
    return (jnp.sqrt(1 - r**2) + r * (jnp.pi - jnp.arccos(r))) / jnp.pi


def correlations(inputs: Any, depth: Any) -> tuple[Array, ...]:
    """The inner products `rho_l` of the outputs of the layers l = 0, ..., L.

    `rho_0 = x . x'` and `rho_l = k1(rho_{l-1})`.

    **Arguments:**

    - `inputs`: (n, d), of norm 1.
    - `depth`: L, the number of hidden layers.

    **Returns:** L + 1 matrices (n, n).

    **Raises:** `ValueError` for inputs that do not have norm 1.
    """
    x = as_float_array(inputs, "inputs")
    depth = as_whole(depth, "depth")
    norms = np.linalg.norm(np.asarray(x), axis=-1) if is_concrete(x) else np.ones(1)
    if x.ndim != 2 or not np.allclose(norms, 1, atol=1e-4):
        raise ValueError(
            "`inputs` must be rows of norm 1, (n, d), as the closed forms are for such inputs, but "
            f"have shape {x.shape} and norms from {norms.min():.3g} to {norms.max():.3g}"
        )
    found = [x @ x.T]
    for _ in range(depth):
        found.append(arc_cosine_1(found[-1]))
    return tuple(found)


def layer_kernels(inputs: Any, depth: Any) -> tuple[Array, ...]:
    """The parts `K_l / m` of the tangent kernel, one for each hidden layer.

    `K_l / m = (1/2) rho_{l-1} prod_{k=l..L} k0(rho_{k-1})`, with 1/2 on the diagonal.
    A network of width m differs from them by about 1/sqrt(m).

    **Arguments:** those of `correlations`.

    **Returns:** L matrices (n, n).

    **Raises:** `ValueError` as `correlations` does.
    """
    rho = correlations(inputs, depth)
    found, product = [], jnp.full_like(rho[0], 0.5)
    for previous in reversed(rho[:-1]):
        product = product * arc_cosine_0(previous)
        found.append(previous * product)
    return tuple(reversed(found))


def output_covariance(inputs: Any, depth: Any) -> Array:
    """The covariance `rho_L - 1/pi` of the outputs at the start, (n, n).

    Half of the read-out is -1, so that the mean of the last layer cancels; the variance
    is 1 - 1/pi.

    **Arguments:** those of `correlations`.

    **Raises:** `ValueError` as `correlations` does.
    """
    return correlations(inputs, depth)[-1] - 1 / jnp.pi


def norm_variance(layer: Any, width: Any) -> Array:
    """The variance `(1 + 5/m)^l - 1` of `|x_l|^2`, whose mean is 1, exactly at every
    width.

    **Arguments:**

    - `layer`: l, from 0.
    - `width`: m.

    **Raises:** `ValueError` for a width that is not positive.
    """
    layer, width = _together(layer=layer, width=width)
    check_positive(width, "width")
    check_positive(layer, "layer", zero_allowed=True)
    return (1 + 5 / width) ** layer - 1


def near_zero_fraction(bound: Any, width: Any, *, norm: Any = 1.0) -> Array:
    """The probability `erf(b sqrt(m) / (2 |x|))` that a pre-activation is between -b
    and b, exactly at every width.

    **Arguments:**

    - `bound`: b, at least 0.
    - `width`: m, the number of units of the layer.
    - `norm`: |x|, the norm of the layer's inputs.

    **Raises:** `ValueError` for a negative bound, and for a width or a norm that is not
    positive.
    """
    bound, width, norm = _together(bound=bound, width=width, norm=norm)
    check_positive(bound, "bound", zero_allowed=True)
    check_positive(width, "width")
    check_positive(norm, "norm")
    return erf(bound * jnp.sqrt(width) / (2 * norm))


def _together(**values: Any) -> list[Array]:
    """Numbers and arrays in one precision, which is that of the arrays."""
    arrays = {name: as_float_array(value, name) for name, value in values.items()}
    given = [a.dtype for name, a in arrays.items() if not isinstance(values[name], int | float)]
    dtype = functools.reduce(jnp.promote_types, given) if given else jnp.result_type(float)
    return [a.astype(dtype) for a in arrays.values()]
