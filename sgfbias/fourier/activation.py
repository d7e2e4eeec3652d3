"""Activation functions, on vectors of units and entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Activation(eqx.Module):
    """An activation function that maps vectors of preactivations.

    **Arguments:**

    - `function`: it maps a number if `scalar`, and otherwise a vector (m,). With
      parameters and `scalar`, it has one copy of them for each unit, on the first axis.
    - `scalar`: whether `function` maps numbers, as that of `eqx.nn.MLP` does.
    """

    function: Callable
    scalar: bool = eqx.field(static=True, default=False)

    @property
    def name(self) -> str:
        """What the function is called where it was written."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, z: Float[Array, "*n m"]) -> Float[Array, "*n m"]:
        if not self.scalar:
            return jnp.vectorize(self.function, signature="(m)->(m)")(z)
        if any(map(eqx.is_array, jax.tree.leaves(self.function))):
            units = eqx.filter_vmap(lambda function, value: function(value))
            return jnp.vectorize(lambda vector: units(self.function, vector), signature="(m)->(m)")(
                z
            )
        return jax.vmap(self.function)(z.ravel()).reshape(z.shape)


def pointwise(activation: Activation, m: int) -> Callable[[Array], Array] | None:
    """The activation as a function of arrays of any shape, or None if it acts on whole
    vectors, or has parameters.

    A function of vectors is tried on some: it acts on each entry alone if it maps them
    one by one to the same numbers.
    """
    function = activation.function
    if any(map(eqx.is_array, jax.tree.leaves(function))):
        return None
    if activation.scalar:
        return _entrywise(function)
    with jax.ensure_compile_time_eval():
        vector = jnp.asarray(np.random.default_rng(0).normal(size=m))
        try:
            together = np.asarray(function(vector))
            alone = np.concatenate([np.asarray(function(vector[i : i + 1])) for i in range(m)])
        except (TypeError, ValueError):
            return None
    if together.shape != (m,) or not np.allclose(together, alone, rtol=1e-5, atol=1e-6):
        return None
    return _entrywise(lambda value: function(value[None])[0])


def _entrywise(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function of numbers as one of arrays of any shape.

    It is mapped along every axis, and not along one axis of all entries: XLA then makes
    one loop of the function and of what its argument is computed from.
    """

    def of_array(z: Array) -> Array:
        mapped = function
        for _ in range(z.ndim):
            mapped = jax.vmap(mapped)
        return mapped(z)

    return of_array
