"""What a student is held against: a number, finitely many lags, or a linear network."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, check_finite
from sgfbias.recurrent.linear import LinearRNN


def as_teacher(teacher: Any) -> Array | LinearRNN:
    """The teacher as its lags (K, o, i), beyond which it is 0, or as a `LinearRNN`.

    A number w is a teacher without memory, of one lag, one input and one output.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(teacher, LinearRNN):
        return teacher
    if isinstance(teacher, str | bool) or callable(teacher) or teacher is None:
        raise ValueError(
            "`teacher` must be a number, an array of lags (K, o, i), or a LinearRNN, but is "
            f"{teacher!r}"
        )
    lags = as_float_array(teacher, "teacher")
    check_finite(lags, "teacher")
    if lags.ndim == 0:
        return lags.reshape(1, 1, 1)
    if lags.ndim != 3 or 0 in lags.shape:
        raise ValueError(
            "`teacher` must be a number, an array of lags (K, o, i), or a LinearRNN, but is an "
            f"array of shape {tuple(lags.shape)}"
        )
    return lags


def first_lags(teacher: Array | LinearRNN, length: int) -> Array:
    """The lags 0, ..., `length` - 1 of a teacher, (length, o, i).

    **Raises:** `ValueError` for a teacher with fewer lags, other than one without
    memory.
    """
    if isinstance(teacher, LinearRNN):
        return teacher.impulse_response(length)
    if 1 < teacher.shape[0] < length:
        raise ValueError(
            f"the teacher has {teacher.shape[0]} lags, fewer than the length {length}: give "
            f"{length} lags or more, with zeros where it has no memory"
        )
    return padded(teacher, length)


def padded(lags: Array, length: int) -> Array:
    """The first `length` of some lags, with zeros beyond them."""
    missing = max(length - lags.shape[0], 0)
    return jnp.pad(lags, ((0, missing), (0, 0), (0, 0)))[:length]


def check_fits(student: LinearRNN, teacher: Array | LinearRNN) -> None:
    """Refuse a teacher with other inputs or outputs than the student.

    **Raises:** `ValueError` that names both.
    """
    has = (
        (teacher.C.shape[0], teacher.B.shape[1])
        if isinstance(teacher, LinearRNN)
        else tuple(teacher.shape[1:])
    )
    wanted = (student.C.shape[0], student.B.shape[1])
    if has != wanted:
        raise ValueError(
            f"the teacher has (outputs, inputs) = {has}, but the network has {wanted}: give the "
            "teacher as lags (K, o, i)"
        )
