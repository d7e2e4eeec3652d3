"""A start of its own for every seed.

It is given to `simulate` in place of the network, as `Drawn(make)` or
`Stacked(networks)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import START_STREAM, seeds
from sgfbias.core.checks import is_concrete
from sgfbias.core.tiles import map_seeds


class Drawn(eqx.Module):
    """Every seed starts from its own network `make(key)`, which is drawn from its key.

    For example, this trains 512 networks in one call:

        make = lambda key: eqx.nn.MLP(2, 1, 32, 1, key=key)
        sgf.simulate(flow, sgf.Drawn(make), problem, keys=sgf.seeds(0, 512), steps=1000)

    The start and the run of a seed do not depend on which other seeds run beside it.
    With `Drawn`, deterministic dynamics take keys, too. The random numbers of a start
    are independent of those of its run.

    **Arguments:**

    - `make`: a function of a typed key that returns a network, with the same classes,
      functions and shapes for every key.

    **Raises:** `ValueError` if `make` is not callable.
    """

    make: Any = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not callable(self.make):
            raise ValueError(
                "Drawn takes a function of a key that returns a network, but was given "
                f"{type(self.make).__name__}"
            )


class Stacked(eqx.Module):
    """Every seed starts from its own network, which is given.

    **Arguments:**

    - `networks`: one network whose arrays have a leading axis of seeds, such as
      `equinox.filter_vmap(make)(keys)` or `runs.networks`; or a sequence of networks of
      one structure, which are stacked.

    **Raises:** `ValueError` for networks of different structures, and for arrays whose
    leading axes differ.
    """

    networks: Any

    def __init__(self, networks: Any):
        networks = _stacked(networks) if isinstance(networks, list | tuple) else _of_jax(networks)
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(networks) if eqx.is_array(leaf)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                "the arrays of stacked networks must have one leading axis of seeds, but their "
                "leading axes are "
                f"{', '.join(str(size[0] if size else 'none') for size in sorted(sizes)) or 'none'}"
            )
        self.networks = networks

    @property
    def count(self) -> int:
        """The number of networks."""
        return next(leaf.shape[0] for leaf in jax.tree.leaves(self.networks) if eqx.is_array(leaf))


class Starts(NamedTuple):
    """The starts of a run.

    - `first`: the first network, for its shapes and functions.
    - `arrays`: the arrays of all networks, stacked, or None if they are to be drawn.
    - `make`: the function that draws them, or None if they are given.
    """

    first: Any
    arrays: Any = None
    make: Callable[[Array], Any] | None = None


def has_starts(network: Any) -> bool:
    """Whether `network` stands for a start of every seed."""
    return isinstance(network, Drawn | Stacked)


def starts_of(
    start: Drawn | Stacked, keys: Array | None, *, is_stochastic: bool
) -> tuple[Starts, Array]:
    """The starts of a run, and its keys.

    Only stacked starts of a deterministic run need no keys, and are given some.

    **Raises:** `ValueError` for missing keys, and for a number of keys that differs
    from the number of stacked networks.
    """
    if isinstance(start, Drawn):
        if keys is None:
            raise ValueError(
                "every seed's start is drawn from its key, so keys are needed: write "
                "keys=sgfbias.seeds(0, 256) for 256 seeds"
            )
        own = jnp.atleast_1d(_start_keys(keys))
        first = start.make(own[0])
        if not callable(first):
            raise ValueError(
                "`make` of Drawn must return a network, a callable module, but returned "
                f"{type(first).__name__}"
            )
        if is_concrete(keys):
            return Starts(first, make=start.make), keys
        # Traced keys, as inside a map over seeds, have no tile, so the starts are drawn
        # here.
        drawn = jax.vmap(lambda key: eqx.filter(start.make(key), eqx.is_array))(own)
        return Starts(first, arrays=drawn), keys
    if keys is None and is_stochastic:
        raise ValueError(
            f"the dynamics are random and need keys: write keys=sgfbias.seeds(0, {start.count}), "
            "one for each of the networks"
        )
    keys = seeds(0, start.count) if keys is None else keys
    if keys.shape != (start.count,):
        raise ValueError(
            f"there must be one key for each of the {start.count} stacked networks, but `keys` "
            f"has shape {keys.shape}"
        )
    arrays = eqx.filter(start.networks, eqx.is_array)
    first = eqx.combine(jax.tree.map(lambda leaf: leaf[0], arrays), start.networks)
    return Starts(first, arrays=arrays), keys


def draw(make: Callable[[Array], Any], keys: Array) -> Any:
    """Draw the arrays of the networks of a tile of seeds, (seeds, ...).

    This is not compiled as one program, as values that `make` closes over may change
    between two runs.
    """
    return map_seeds(lambda key: eqx.filter(make(key), eqx.is_array), _start_keys(keys))


def _start_keys(keys: Array) -> Array:
    """The keys of the starts, a separate stream of the key of every seed."""
    fold = jax.random.fold_in
    return (
        fold(keys, START_STREAM)
        if keys.ndim == 0
        else jax.vmap(lambda key: fold(key, START_STREAM))(keys)
    )


def _of_jax(network: Any) -> Any:
    """The network with JAX arrays in place of NumPy arrays.

    NumPy arrays would be taken for settings rather than parameters.
    """
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, network
    )


def _stacked(networks: Any) -> Any:
    """Stack networks of one structure into one network with a leading axis."""
    if not networks:
        raise ValueError("Stacked needs at least one network, but the sequence is empty")
    parts = [eqx.partition(_of_jax(network), eqx.is_array) for network in networks]
    if not all(eqx.tree_equal(parts[0][1], rest) for _, rest in parts):
        raise ValueError(
            "stacked networks must have one structure, but they differ in their classes, "
            "functions, settings or number of arrays"
        )
    for place, leaves in enumerate(
        zip(*(jax.tree.leaves(arrays) for arrays, _ in parts), strict=True)
    ):
        if len({leaf.shape for leaf in leaves}) > 1:
            raise ValueError(
                f"stacked networks must have arrays of one shape, but array {place} has the shapes "
                f"{sorted({leaf.shape for leaf in leaves})}"
            )
    arrays = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arrays for arrays, _ in parts))
    return eqx.combine(arrays, parts[0][1])
