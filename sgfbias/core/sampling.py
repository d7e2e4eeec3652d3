"""Which examples an iteration sees: a function of the seed's key and of the absolute number of the iteration only."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Sampling = Literal["with_replacement", "without_replacement", "random_reshuffling"]


def sample_batch(stream: Array, step: Array, batch_size: int, n: int, sampling: str = "with_replacement") -> Array:
    """Indices (batch_size,) of iteration `step`.

    - `with_replacement`: independent and uniform.
    - `without_replacement`: distinct within a batch; batches are independent.
    - `random_reshuffling`: a new permutation each epoch of `n // batch_size` iterations, which leaves out `n % batch_size` examples.

    The last two draw a permutation of n at every iteration, O(n log n), except for batches of one without replacement.
    """
    if sampling == "random_reshuffling":
        epoch, place = step // (n // batch_size), step % (n // batch_size)
        order = jax.random.permutation(jax.random.fold_in(stream, epoch), n)
        return jax.lax.dynamic_slice(order, (place * batch_size,), (batch_size,))
    key = jax.random.fold_in(stream, step)
    if sampling == "without_replacement" and batch_size > 1:
        return jax.random.permutation(key, n)[:batch_size]
    return jax.random.randint(key, (batch_size,), 0, n)


def check_batch(batch_size: object, sampling: str) -> int:
    """A batch size and a way of sampling.

    **Raises:** `ValueError` unless the batch size is a whole number >= 1 and the way is one of the three.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number >= 1, but is {batch_size!r}")
    if sampling not in get_args(Sampling):
        raise ValueError(f"`sampling` must be one of {', '.join(map(repr, get_args(Sampling)))}, but is {sampling!r}")
    return int(batch_size)


def check_against(batch_size: int, sampling: str, n: int) -> None:
    """Refuse batches larger than the data; with replacement they are legitimate mathematics, but never what was meant.

    **Raises:** `ValueError` with what is possible.
    """
    if batch_size > n:
        raise ValueError(
            f"`batch_size` must be at most n = {n}, the number of examples, but is {batch_size}; for all examples at every iteration use "
            "GradientDescent"
        )


def signs(stream: Array, step: Array, shape: tuple[int, ...], dtype: object) -> Array:
    """Fair signs of iteration `step`."""
    return jnp.where(jax.random.bernoulli(jax.random.fold_in(stream, step), shape=shape), 1, -1).astype(dtype)
