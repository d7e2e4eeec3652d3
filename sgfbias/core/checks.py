"""Checks of user input.

Every error says what was given, what was expected and what to do.
"""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

try:
    # JAX has no public name for this. Without it the answer is found by tracing, which
    # takes a millisecond.
    from jax._src.core import trace_state_clean as _outside
except ImportError:  # pragma: no cover

    def _outside() -> bool:
        return False


def outside_traces() -> bool:
    """Whether it is known that no function is being traced, so that no value is."""
    return _outside()


def is_concrete(tree: Any) -> bool:
    """Whether no leaf of `tree` is being traced by jit, grad or vmap."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def numpy_for(arrays: Any) -> Any:
    """Return `jax.numpy` if some of the arrays are traced, and `numpy` otherwise.

    On arrays that have values NumPy is faster, as every small JAX operation would cost
    a compilation.
    """
    return np if is_concrete(arrays) else jnp


def on_device(tree: Any) -> Any:
    """The tree with JAX arrays in the place of NumPy's, by one transfer for all."""
    leaves, structure = jax.tree.flatten(tree)
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray | np.generic)]
    given = [leaves[k] for k in places]
    moved = jax.device_put(given) if outside_traces() else [jnp.asarray(leaf) for leaf in given]
    for k, leaf in zip(places, moved, strict=True):
        leaves[k] = leaf
    return jax.tree.unflatten(structure, leaves)


def shown(value: Any) -> str:
    """A value that was given, for an error: what it is, in a few words."""
    if isinstance(value, str):
        return f"the word {value!r}"
    if isinstance(value, bool | int | float | complex | None):
        return repr(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__name__} of dtype {value.dtype} and shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def as_numbers(value: Any, name: str, wanted: str = "an array of numbers") -> jax.Array:
    """Convert `value` to a JAX array of numbers: real, complex, whole or booleans.

    Arrays of other byte orders, of long doubles and of Python's numbers are converted.
    `wanted` is what an error says the value must be.

    **Raises:** `ValueError` for anything else, and for numbers that are too large for
    the precision in use.
    """
    if isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return value
    if isinstance(value, list | tuple) and any(
        isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)
    ):
        try:
            return jnp.asarray(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`{name}` must be {wanted}, but is {type(value).__name__}: {error}"
            ) from error
    return jnp.asarray(as_host_numbers(value, name, wanted))


def as_host_numbers(value: Any, name: str, wanted: str = "an array of numbers") -> np.ndarray:
    """The same for a value that is no JAX array, as a NumPy array.

    Inside a function that is compiled JAX would trace the conversion.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be {wanted}, but is {type(value).__name__}: {error}"
        ) from error
    if array.dtype == object:
        if not all(isinstance(entry, numbers.Real) for entry in array.ravel()):
            raise ValueError(
                f"`{name}` must be {wanted}, but is {shown(value)}"
                f"{_odd_columns(value, array) or _for_words(array)}"
            )
        array = array.astype(np.float64)
    if array.dtype.kind not in "fiubc" and not jnp.issubdtype(array.dtype, jnp.number):
        raise ValueError(f"`{name}` must be {wanted}, but is {shown(value)}{_for_words(array)}")
    if array.dtype in (np.longdouble, np.clongdouble):
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    native = array.astype(array.dtype.newbyteorder("="))
    kind = jax.dtypes.canonicalize_dtype(native.dtype)
    with np.errstate(over="ignore"):
        kept = native.astype(kind)
    whole = native.dtype.kind in "iu"
    lost = (kept != native) if whole else np.isfinite(native) & ~np.isfinite(kept)
    if lost.any():
        raise ValueError(
            f"`{name}` has entries that {kind.name} cannot hold, such as {native[lost].flat[0]}; "
            "rescale them, or write jax.config.update('jax_enable_x64', True) first"
        )
    return kept


def _for_words(array: np.ndarray) -> str:
    """What to do with an array of words, which are often names of classes."""
    if array.ndim == 1 and all(isinstance(entry, str) for entry in array.ravel()):
        return "; for names of classes write numpy.unique(names, return_inverse=True)[1]"
    return ""


def _odd_columns(value: Any, array: np.ndarray) -> str:
    """The columns of a table, such as a DataFrame of pandas, that are not numbers."""
    names = getattr(value, "columns", None)
    if names is None or array.ndim != 2 or len(names) != array.shape[1]:
        return ""
    odd = [
        str(name)
        for name, column in zip(names, array.T, strict=True)
        if not all(isinstance(entry, numbers.Real) for entry in column)
    ]
    return f" whose columns {', '.join(odd[:5])} are not numbers; drop or encode these"


def as_float_array(value: Any, name: str) -> jax.Array:
    """Convert `value` to a floating-point JAX array.

    Integers and booleans are promoted.

    **Raises:** `ValueError` for complex numbers and any other type.
    """
    if not isinstance(value, jax.Array):
        found = np.asarray(value) if not isinstance(value, list | tuple) else None
        if found is not None and found.dtype.kind in "iu":
            value = found.astype(np.float64)  # any whole number fits
    array = as_numbers(value, name)
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_:
        array = array.astype(jnp.result_type(float))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"`{name}` must be real numbers, but has dtype {array.dtype}")
    return array


def as_real(value: Any, name: str, *, more: str = "") -> jax.Array:
    """Convert a real number to a floating-point array of shape ().

    `more` is what to do instead of giving several numbers.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be a number, but is {value}")
    if not isinstance(value, int | float | np.number | np.ndarray | jax.Array) or isinstance(
        value, complex | np.complexfloating
    ):
        raise ValueError(f"`{name}` must be a number, but is {shown(value)}")
    if isinstance(value, int):
        try:
            value = float(value)
        except OverflowError as error:
            raise ValueError(f"`{name}` is too large: {value}") from error
    array = as_numbers(value, name)
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be a scalar, but has shape {array.shape}{more}")
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.issubdtype(
        array.dtype, jnp.complexfloating
    ):
        raise ValueError(f"`{name}` must be a real number, but is {shown(value)}")
    return array.astype(jnp.result_type(float))


def as_float(value: Any, name: str) -> float:
    """Convert a real number that determines how a run is made to a float.

    **Raises:** `ValueError` for anything else, and for a traced value.
    """
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"`{name}` must be a number, and cannot be traced by jit or grad")
    # NumPy, because JAX would trace the conversion inside a function that is compiled.
    if isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.extended):
        value = np.asarray(value)
    if isinstance(value, bool | np.bool_ | complex | np.complexfloating) or not isinstance(
        value, int | float | np.number | np.ndarray
    ):
        raise ValueError(f"`{name}` must be a number, but is {shown(value)}")
    if np.ndim(value) != 0:
        raise ValueError(f"`{name}` must be a scalar, but has shape {np.shape(value)}")
    if isinstance(value, np.ndarray) and value.dtype.kind not in "fiu":
        raise ValueError(f"`{name}` must be a number, but is {shown(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"`{name}` is too large: {value}") from error


def as_whole(value: Any, name: str, *, least: int = 1, most: int | None = None) -> int:
    """Convert a whole number to an int; 1e4 and 0-dimensional arrays are accepted.

    **Raises:** `ValueError` for anything else, and below `least` or above `most`.
    """
    wanted = f"a whole number >= {least}" + ("" if most is None else f" and <= {most:,}")
    number = value
    if isinstance(value, np.ndarray | np.generic | jax.Array) and np.ndim(value) == 0:
        if not is_concrete(value):
            raise ValueError(f"`{name}` must be {wanted}, and cannot be traced by jit or grad")
        number = value.item()
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"`{name}` must be {wanted}, but is {shown(value)}")
    if number < least or (most is not None and number > most):
        raise ValueError(f"`{name}` must be {wanted}, but is {number}")
    return number


def whole_number(word: str) -> int:
    """The whole number that a word stands for, such as `100000` or `1e5`.

    **Raises:** `ValueError` if it stands for none.
    """
    try:
        return int(word)
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError as error:
        raise ValueError(f"{word!r} is not a whole number") from error
    if not number.is_integer():
        raise ValueError(f"{word} is not a whole number")
    return int(number)


def check_finite(array: Any, name: str) -> None:
    """Refuse NaN and infinity, and report how many there are and where the first is."""
    if not is_concrete(array) or not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    bad = ~np.isfinite(np.asarray(array))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"`{name}` must be finite, but {int(bad.sum())} of {bad.size} entries are NaN or "
            f"infinite (the first at index {first}); remove or impute them"
        )


def check_shape(array: Any, name: str, shape: tuple[int, ...], *, more: str = "") -> None:
    """Refuse an array whose shape is not `shape`. `more` says why it must be this."""
    if tuple(array.shape) != tuple(shape):
        flat = tuple(array.shape) == (*shape, 1)
        raise ValueError(
            f"`{name}` must have shape {tuple(shape)}{more}, but has shape {tuple(array.shape)}"
            + (f"; write {name}[..., 0]" if flat else "")
        )


def check_positive(value: Any, name: str, *, zero_allowed: bool = False) -> None:
    """Refuse a scalar or array that is not finite and positive (or 0, if
    `zero_allowed`).
    """
    if not is_concrete(value):
        return
    values = np.asarray(value) if isinstance(value, jax.Array) else as_host_numbers(value, name)
    if values.dtype.kind == "c":
        raise ValueError(f"`{name}` must be real, but is {shown(value)}")
    good = np.isfinite(values) & ((values >= 0) if zero_allowed else (values > 0))
    if not good.all():
        wanted = "non-negative" if zero_allowed else "positive"
        # As text, a number of float32 has the digits that it was given with.
        first = str(values[~good].ravel()[0])
        raise ValueError(f"`{name}` must be {wanted} and finite, but is {first}")
