"""What a network may declare to the engine besides its outputs.

Of any other Equinox module the engine uses the outputs only.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.direct import direct


class AbstractNetwork(eqx.Module):
    """A network that declares its own observables or coordinates.

    Subclassing is the only way to declare them. In a plain Equinox module a method that
    happens to have one of these names is ignored. A subclass must define `__call__`;
    all other methods have a default that declares nothing.
    """

    # Keys of the bibliography -> what they are cited for.
    references: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """The output on one example."""

    def predict(self, inputs: Array) -> Array:
        """The outputs on many examples, (n, ...).

        A subclass may override it if one matrix product is faster than a map over the
        examples.
        """
        return jax.vmap(self)(inputs)

    def coordinates(
        self, name: str | None, problem: Any, dynamics: Any
    ) -> AbstractCoordinates | None:
        """The coordinates called `name` in which the network moves.

        The name None asks for the best coordinates. The result None stands for the
        weights, in which any module can move.

        **Raises:** `ValueError` for a name that the network does not have.
        """
        return None

    def trainable(self) -> Any:
        """Which arrays are parameters: a PyTree of True and False that fits the
        network, a prefix of one, or a function of an array, as in `simulate`; or None,
        the default, for all floating-point arrays.

        The others are frozen, unless `trainable=` of a run says otherwise. A network
        that wraps another one forwards what that one declares.
        """
        return None

    def observables(self) -> dict[str, Callable[[Any], Array]]:
        """The observables of the network: name -> function of the network.

        Those that are scalars are recorded along a run by default.
        """
        return {}

    def with_path_sums(self) -> AbstractNetwork:
        """The same network, with observables that are summed along the path of a run,
        see `Record`.

        **Raises:** `ValueError` if the network has none.
        """
        raise ValueError(
            f"{type(self).__name__} sums nothing along its path: leave out `path_sums` of Record"
        )

    def always_recorded(self) -> tuple[str, ...]:
        """The observables that are recorded whatever else is asked for."""
        return ()

    def dims(self) -> dict[str, tuple[str, ...]]:
        """The names of the dimensions of the observables that are not scalars."""
        return {}

    def units(self) -> dict[str, str]:
        """The units of the observables."""
        return {}


def evaluate(network: Any, inputs: Array) -> Any:
    """The outputs of `network` on `inputs`, (n, ...), in the precision of the inputs.

    A model may compute in another precision, such as bfloat16.
    """
    if isinstance(network, AbstractNetwork):
        return network.predict(inputs)

    def in_precision(leaf: Any) -> Any:
        real = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(inputs.dtype) if real else leaf

    return jax.tree.map(in_precision, jax.vmap(network)(inputs))


def declares(network: Any, what: str) -> dict[str, Any]:
    """What a network declares as its `observables`, `dims` or `units`.

    A plain module declares nothing.
    """
    return getattr(direct(network), what)() if isinstance(network, AbstractNetwork) else {}


def declared_trainable(network: Any) -> Any:
    """Which arrays of a network are its parameters by its own declaration, or None if
    it declares nothing.
    """
    return direct(network).trainable() if isinstance(network, AbstractNetwork) else None


def always_recorded(network: Any) -> tuple[str, ...]:
    """The observables of a network that are recorded whatever else is asked for."""
    return direct(network).always_recorded() if isinstance(network, AbstractNetwork) else ()


def with_path_sums(network: Any) -> AbstractNetwork:
    """The network with observables that are summed along the path of a run.

    **Raises:** `ValueError` if it has none.
    """
    if not isinstance(network, AbstractNetwork):
        raise ValueError(
            f"{type(network).__name__} sums nothing along its path: leave out `path_sums` of "
            "Record, which is for a DiagonalNetwork"
        )
    return network.with_path_sums()
