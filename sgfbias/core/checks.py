"""Checks on what a user hands in: each error says what was given, what was expected and what to do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(tree: Any) -> bool:
    """Whether no leaf of `tree` is being traced by jit, grad or vmap."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def numpy_for(arrays: Any) -> Any:
    """NumPy for arrays that have values, on which small JAX operations would each cost a compilation; JAX for traced ones."""
    return np if is_concrete(arrays) else jnp


def as_float_array(value: Any, name: str) -> jax.Array:
    """`value` as a floating-point JAX array; integers are promoted, complex and other types refused."""
    if isinstance(value, list | tuple) and np.asarray(value).dtype.kind not in "fiubc":
        raise ValueError(f"`{name}` must be an array of numbers, but has entries that are not")
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of numbers, but is {type(value).__name__}: {error}") from error
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_:
        array = array.astype(jnp.result_type(float))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"`{name}` must be real numbers, but has dtype {array.dtype}")
    return array


def check_finite(array: Any, name: str) -> None:
    """Refuse NaN and infinity, saying how many and where the first one is."""
    if not is_concrete(array) or not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    bad = ~np.isfinite(np.asarray(array))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"`{name}` must be finite, but {int(bad.sum())} of {bad.size} entries are NaN or infinite (the first at index {first}); "
            "remove or impute them"
        )


def check_shape(array: Any, name: str, shape: tuple[int, ...]) -> None:
    """Refuse any other shape than `shape`."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"`{name}` must have shape {tuple(shape)}, but has shape {tuple(array.shape)}")


def check_positive(value: Any, name: str, *, zero_allowed: bool = False) -> None:
    """Refuse a value (scalar or array) that is not finite and positive."""
    if not is_concrete(value):
        return
    numbers = np.asarray(value)
    good = np.isfinite(numbers) & ((numbers >= 0) if zero_allowed else (numbers > 0))
    if not good.all():
        wanted = "non-negative" if zero_allowed else "positive"
        shown = numbers.item() if numbers.ndim == 0 else numbers[~good].ravel()[0]
        raise ValueError(f"`{name}` must be {wanted} and finite, but is {shown}")
