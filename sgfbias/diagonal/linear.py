"""The base class of the networks of this folder: one linear predictor `beta`, in
several parametrisations.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from sgfbias.core.network import AbstractNetwork


class AbstractLinearNetwork(AbstractNetwork):
    """`f(x) = <beta, x>`, where `beta` (d,) is a function of the weights.

    A subclass declares `beta` and, in `logs`, the further attributes to observe, each
    of shape (d,).
    """

    # Attributes of the network that are observables besides beta: name -> units.
    logs: ClassVar[dict[str, str]] = {}

    @property
    @abc.abstractmethod
    def beta(self) -> Float[Array, " d"]:
        """The linear predictor, (d,)."""

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Output on one example."""
        return x @ self.beta

    def predict(self, inputs: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Outputs on many examples."""
        return inputs @ self.beta

    def observables(self) -> dict[str, Callable[[Any], Array]]:
        """`beta` and the attributes named in `logs`, each of shape (d,)."""
        return {name: reader(name) for name in ("beta", *self.logs)}

    def dims(self) -> dict[str, tuple[str, ...]]:
        """Dimension names of the observables."""
        return dict.fromkeys(("beta", *self.logs), ("feature",))

    def units(self) -> dict[str, str]:
        """Units of the observables."""
        return {"beta": "target / input", **self.logs}


class Read(eqx.Module):
    """A function that reads one attribute. Two readers of the same name are equal, so a
    second run of the same shape does not compile again.
    """

    name: str = eqx.field(static=True)

    def __call__(self, network: AbstractLinearNetwork) -> Array:
        return getattr(network, self.name)


@functools.lru_cache(maxsize=64)
def reader(name: str) -> Read:
    """The function that reads the attribute `name`."""
    return Read(name)
