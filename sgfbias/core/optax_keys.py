"""Random keys in the state of an Optax transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def _keys_in(memory: Any) -> list[bool]:
    """Whether each leaf of an Optax state is a random key, in old or new style."""

    def is_key(leaf: Any) -> bool:
        if not hasattr(leaf, "dtype"):
            return False
        return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or (
            leaf.dtype == jnp.uint32 and leaf.shape == (2,)
        )

    return [is_key(leaf) for leaf in jax.tree.leaves(memory)]


def draws_keys(transformation: Any) -> bool:
    """Whether the state of an Optax transformation holds random keys.

    A transformation that cannot be initialised on a plain array counts as not random.
    """
    if transformation is None:
        return False
    try:
        with jax.numpy_dtype_promotion("standard"):
            return any(_keys_in(jax.eval_shape(transformation.init, jnp.zeros(1))))
    except (TypeError, ValueError, AttributeError, KeyError):
        return False


def reseed(memory: Any, key: Array) -> Any:
    """The Optax state `memory` with its random keys replaced by keys from `key`."""
    leaves, structure = jax.tree.flatten(memory)
    for place, drawn in enumerate(_keys_in(memory)):
        if drawn:
            old, fresh = leaves[place], jax.random.fold_in(key, place)
            if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
                words = jax.random.bits(fresh, jax.random.key_data(old).shape, jnp.uint32)
                leaves[place] = jax.random.wrap_key_data(words, impl=jax.random.key_impl(old))
            else:
                leaves[place] = jax.random.bits(fresh, old.shape, jnp.uint32)
    return jax.tree.unflatten(structure, leaves)
