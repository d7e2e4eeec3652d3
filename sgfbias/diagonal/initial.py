"""Checks of the initialisation of a diagonal network, with the errors for values that
are refused.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import (
    as_float_array,
    as_whole,
    check_finite,
    check_positive,
    check_shape,
    is_concrete,
)


def initial_log_alpha(alpha: Any, log_alpha: Any, d: int | None, dtype: Any) -> Float[Array, " d"]:
    """`log alpha`, shape (d,), of an initialisation given as `alpha` or as `log_alpha`,
    each a scalar or (d,).

    **Raises:** `ValueError` as `DiagonalNetwork.init` does.
    """
    if (alpha is None) == (log_alpha is None):
        raise ValueError(
            f"give either `alpha` or `log_alpha`, but got alpha={alpha}, log_alpha={log_alpha}"
        )
    if alpha is not None:
        alpha = as_float_array(alpha, "alpha")
        if is_concrete(alpha) and not (np.asarray(alpha) > 0).all():
            bad = (
                np.asarray(alpha)[~(np.asarray(alpha) > 0)].ravel()[0]
                if alpha.ndim
                else alpha.item()
            )
            raise ValueError(
                f"`alpha` must be positive, but is {bad}: at w = 0 the gradient vanishes and "
                "nothing moves (for an alpha too small for a float give log_alpha)"
            )
        check_positive(alpha, "alpha")
        value = jnp.log(alpha)
    else:
        value = as_float_array(log_alpha, "log_alpha")
        check_finite(value, "log_alpha")
    if value.ndim > 1:
        raise ValueError(f"alpha must be a scalar or have shape (d,), but has shape {value.shape}")
    if d is None:
        if value.ndim == 0:
            raise ValueError(
                "a scalar alpha needs the number of features d, for example "
                "DiagonalNetwork.init(alpha=0.01, d=100)"
            )
        d = value.shape[0]
    d = as_whole(d, "d")
    if value.ndim == 1:
        check_shape(value, "alpha", (d,))
    return jnp.broadcast_to(value.astype(value.dtype if dtype is None else dtype), (d,))


def positive_weights(
    plus: Any, minus: Any, *, signed: bool = False
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """The absolute values of the weights `plus` and `minus` of an initialisation. With
    `signed` the weights may be negative.

    **Raises:** `ValueError` for weights that are 0, not finite, or different in shape,
    and without `signed` for negative weights.
    """
    plus, minus = as_float_array(plus, "plus"), as_float_array(minus, "minus")
    if plus.ndim != 1:
        raise ValueError(f"`plus` must have shape (d,), but has shape {plus.shape}")
    check_shape(minus, "minus", plus.shape)
    for name, value in (("plus", plus), ("minus", minus)):
        check_finite(value, name)
        if (
            is_concrete(value)
            and not ((np.asarray(value) != 0) if signed else (np.asarray(value) > 0)).all()
        ):
            raise ValueError(
                f"the weights `{name}` must be {'non-zero' if signed else 'positive'}: "
                "where w = 0 nothing ever moves"
            )
    return (jnp.abs(plus), jnp.abs(minus)) if signed else (plus, minus)


def check_features(network: Any, problem: Any) -> None:
    """Check that the problem has as many features as the network.

    **Raises:** `ValueError` with both numbers if they differ.
    """
    if problem.inputs.ndim != 2 or problem.inputs.shape[1] != network.d:
        raise ValueError(
            f"the network has d = {network.d} features, so the problem's inputs must have shape "
            f"(n, {network.d}), but have shape {problem.inputs.shape}"
        )
