"""Transformations of Optax that were made in the same way count as one.

JAX knows a compiled program by the identity of the functions in it, and every call of
`optax.adam(1e-3)` makes new functions. A notebook's cell that is run again, or a loop
that makes its optimiser inside, would compile every time.
"""

from __future__ import annotations

import types
from collections import deque
from typing import Any

import optax

KNOWN: deque[Any] = deque(maxlen=64)
DEEPEST = 30  # functions within functions
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def first_of_its_kind(transformation: Any) -> Any:
    """The first transformation that was made like this one, which may be this one.

    Only functions of Optax are compared. A transformation that holds another function,
    such as a schedule of the user, or an array, is returned as it is.
    """
    for known in KNOWN:
        if _same(known, transformation):
            return known
    KNOWN.append(transformation)
    return transformation


def _same(a: Any, b: Any, depth: int = 0) -> bool:
    """Whether two values were made in the same way: equal numbers, and functions of one
    code whose closures are the same.
    """
    if a is b:
        return True
    if type(a) is not type(b) or depth > DEEPEST:
        return False
    if isinstance(a, types.FunctionType):
        return (
            a.__code__ is b.__code__
            and a.__module__.split(".")[0] == optax.__name__
            and _same(_held(a), _held(b), depth + 1)
        )
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_same(x, y, depth + 1) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and _same(list(a.values()), list(b.values()), depth + 1)
    # As texts, 0.0 and -0.0 differ.
    return isinstance(a, PLAIN) and repr(a) == repr(b)


def _held(function: types.FunctionType) -> tuple[Any, ...]:
    """What a function holds besides its code: its defaults and its closure."""
    cells = function.__closure__ or ()
    try:
        closure = [cell.cell_contents for cell in cells]
    except ValueError:  # a cell that is still empty
        closure = list(cells)
    return function.__defaults__, function.__kwdefaults__, closure
