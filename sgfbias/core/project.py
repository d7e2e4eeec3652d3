"""What an algorithm does to the network after every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_real, check_positive


class Sphere(eqx.Module):
    """Scales the weights to a given norm, as `project=` of an algorithm.

    All chosen arrays together, as one vector, get the Euclidean norm `radius`. A vector
    of zeros has no direction, and becomes NaN, so that the seed is marked.

    **Arguments:**

    - `radius`: a positive number.
    - `where`: a function of the network that returns the array or the sequence of
      arrays to be scaled, as in `equinox.tree_at`. Default: all floating-point arrays.

    **Raises:** `ValueError` for a radius that is not positive, and in `simulate` for a
    `where` that chooses nothing.
    """

    radius: Array
    where: Callable[[Any], Any] | None = None

    def __init__(self, radius: Any, where: Any = None):
        self.radius = as_real(radius, "radius")
        check_positive(self.radius, "radius")
        if where is not None and not callable(where):
            raise ValueError(
                "`where` must be a function of the network that returns its arrays, such as "
                f"lambda network: network.weight, but is {where!r}"
            )
        self.where = where

    def __call__(self, network: Any) -> Any:
        """The network on the sphere."""
        chosen = network if self.where is None else self.where(network)
        arrays = [leaf for leaf in jax.tree.leaves(chosen) if eqx.is_inexact_array(leaf)]
        if not arrays:
            raise ValueError(
                f"`where` of the Sphere chooses no floating-point array of {type(network).__name__}"
            )
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in arrays))
        factor = self.radius.astype(norm.dtype) / norm

        def scaled(leaf: Any) -> Any:
            return leaf * factor if eqx.is_inexact_array(leaf) else leaf

        if self.where is None:
            return jax.tree.map(scaled, network)
        return eqx.tree_at(
            lambda tree: jax.tree.leaves(self.where(tree)), network, replace_fn=scaled
        )


def check_project(project: Any) -> Any:
    """Return the argument `project` of an algorithm.

    **Raises:** `ValueError` for anything but None or a function.
    """
    if project is not None and (isinstance(project, type) or not callable(project)):
        raise ValueError(
            "`project` must be a function network -> network, which is applied after every step, "
            f"such as Sphere(1.0), but is {project!r}"
        )
    return project


def projected(project: Any, coordinates: Any, position: Any) -> Any:
    """The position after `project` has been applied to its network.

    **Raises:** `ValueError` if the function fails, or returns another kind of network.
    """
    asked = "`project` must be a function network -> network"
    network = coordinates.decode(position)
    name = type(network).__name__
    try:
        moved = project(network)
    except Exception as error:  # a user's function can raise anything
        raise ValueError(
            f"{asked}, but on a {name} it raises {type(error).__name__}: {error}"
        ) from error
    before: Any = jax.tree.structure(network)
    same = before == jax.tree.structure(moved)
    pairs = list(zip(jax.tree.leaves(network), jax.tree.leaves(moved), strict=same)) if same else []
    if not same or any(jnp.shape(a) != jnp.shape(b) for a, b in pairs if eqx.is_array(a)):
        raise ValueError(
            f"{asked} of the same structure and shapes, but on a {name} it returns another"
        )
    moving = {id(leaf) for leaf in jax.tree.leaves(coordinates.encode(network))}
    if any(a is not b and id(a) not in moving for a, b in pairs if eqx.is_inexact_array(a)):
        raise ValueError(
            f"`project` changes arrays of {name} that are frozen (`trainable`): it may change "
            "trainable arrays only, which Sphere(radius, where=) can choose"
        )
    return coordinates.encode(moved)
