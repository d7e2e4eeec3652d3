"""The examples that an iteration draws.

They depend only on the key of the seed and on the absolute number of the iteration.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_whole

Sampling = Literal["with_replacement", "without_replacement", "random_reshuffling"]


def sample_batch(
    stream: Array, step: Array, batch_size: int, n: int, sampling: str = "with_replacement"
) -> Array:
    """The indices (batch_size,) of the examples that iteration `step` draws.

    - `"with_replacement"`: the examples are independent and uniform.
    - `"without_replacement"`: the examples are distinct within a batch, and batches are
      independent.
    - `"random_reshuffling"`: every epoch of `n // batch_size` iterations has a new
      permutation of the examples, and leaves out the last `n % batch_size` of it.

    The last two draw a permutation of n at every iteration, at a cost of O(n log n),
    except for batches of one without replacement.
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
    """Return the batch size as an int.

    **Raises:** `ValueError` unless the batch size is a whole number >= 1 and `sampling`
    is one of the three of `sample_batch`.
    """
    count = as_whole(batch_size, "batch_size")
    if sampling not in get_args(Sampling):
        raise ValueError(
            f"`sampling` must be one of {', '.join(map(repr, get_args(Sampling)))}, but is "
            f"{sampling!r}"
        )
    return count


def check_against(batch_size: int, sampling: str, n: int) -> None:
    """Refuse batches that are larger than the data.

    With replacement they would be legitimate mathematics, but they are never intended.

    **Raises:** `ValueError` that says what is possible.
    """
    if batch_size > n:
        raise ValueError(
            f"`batch_size` must be at most n = {n}, the number of examples, but is {batch_size}; "
            "to use all examples at every iteration, take GradientDescent"
        )


def signs(stream: Array, step: Array, shape: tuple[int, ...], dtype: object) -> Array:
    """Random signs of iteration `step`, +1 and -1 with equal probabilities."""
    heads = jax.random.bernoulli(jax.random.fold_in(stream, step), shape=shape)
    return jnp.where(heads, 1, -1).astype(dtype)
