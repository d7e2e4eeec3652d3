"""What a network may tell the engine beyond its outputs; any other Equinox module is asked for its outputs only."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array

if TYPE_CHECKING:
    from sgfbias.core.coordinates import AbstractCoordinates


class AbstractNetwork(eqx.Module):
    """A network with observables, or coordinates, of its own. Subclassing is the only way to declare them.

    A plain Equinox module needs none of this: its methods are its own affair, whatever they are called. All methods but the first have a
    default that says nothing.
    """

    references: ClassVar[Mapping[str, str]] = {}  # keys of the bibliography -> what they are cited for

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """Output on one example."""

    def predict(self, inputs: Array) -> Array:
        """Outputs on many examples, (n, ...): where one product is faster than a map."""
        return jax.vmap(self)(inputs)

    def coordinates(self, name: str | None, problem: Any, dynamics: Any) -> AbstractCoordinates | None:
        """The chart called `name` (None: the best one) in which to move; None to be moved in its weights, as any module.

        **Raises:** `ValueError` for a name it does not have.
        """
        return None

    def observables(self) -> dict[str, Callable[[Any], Array]]:
        """What can be measured on it: name -> function of the network. Scalars are recorded along a run by default."""
        return {}

    def dims(self) -> dict[str, tuple[str, ...]]:
        """Dimension names of the observables that are not scalars."""
        return {}

    def units(self) -> dict[str, str]:
        """Units of the observables."""
        return {}


def evaluate(network: Any, inputs: Array) -> Any:
    """The network's outputs (n, ...)."""
    return network.predict(inputs) if isinstance(network, AbstractNetwork) else jax.vmap(network)(inputs)


def declares(network: Any, what: str) -> dict[str, Any]:
    """Its `observables`, `dims` or `units`; nothing for a plain module."""
    return getattr(network, what)() if isinstance(network, AbstractNetwork) else {}
