"""A cache of what tracing a function reveals, such as the shapes of its results.

Tracing a function can take longer than a short run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

_ANSWERS: dict[Any, Any] = {}
CAPACITY = 512


def cached(ask: Callable, function: Callable, *args: Any) -> Any:
    """Return `ask(function, *args)`, from the cache if it is known.

    Cached by function and by argument shapes and dtypes; unhashable arguments are not
    cached. The answer of `ask` must depend on arrays through their shapes and dtypes
    only, and must not depend on what `function` closes over.
    """
    leaves, structure = jax.tree.flatten((function, args))
    # 1 and True compare equal, in a structure as well as among the leaves. The text of
    # the structure and the types of the leaves keep them apart.
    key = (
        ask,
        jnp.result_type(float),
        structure,
        str(structure),
        tuple(
            (jax.Array, leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False))
            if eqx.is_array(leaf)
            else (type(leaf), leaf)
            for leaf in leaves
        ),
    )
    try:
        # The cache itself stands for an answer that is not known, as None may be one.
        answer = _ANSWERS.get(key, _ANSWERS)
    except TypeError:
        return ask(function, *args)
    if answer is _ANSWERS:
        answer = ask(function, *args)
        if len(_ANSWERS) >= CAPACITY:
            _ANSWERS.clear()
        _ANSWERS[key] = answer
    return answer


def forget() -> None:
    """Empty the cache."""
    _ANSWERS.clear()


def shapes_of(function: Callable, *args: Any) -> Any:
    """The shapes and dtypes of the result of `function`, as given by
    `equinox.filter_eval_shape`.
    """
    return cached(eqx.filter_eval_shape, function, *args)
