"""Coordinate systems, which say what a flow moves.

Drift and noise are written once, as cotangents on the outputs of the network.
Coordinates turn a cotangent into a motion of their position.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.deprecated import accept_old_name, renamed_method
from sgfbias.core.noise import Covariance


class AbstractCoordinates(eqx.Module):
    """Coordinates on a family of networks.

    A position is any PyTree of arrays, and a tangent has the structure of a position. A
    cotangent `c` on the outputs moves the position by the tangent `vjp(c)`. `features`
    is the number of input features on which isotropic noise can act, or None if there
    are none.
    """

    features: eqx.AbstractVar[int | None]
    name: ClassVar[str] = "weights"
    # Keys of the bibliography -> what they are cited for.
    references: ClassVar[Mapping[str, str]] = {}
    # Whether Itô's formula adds a drift in these coordinates.
    curved: ClassVar[bool] = False
    # Whether one step of many seeds multiplies the inputs with all seeds at once.
    shares_inputs: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        accept_old_name(cls, "pull_features", "vjp_features")

    @abc.abstractmethod
    def encode(self, network: Any) -> Any:
        """The position of `network`."""

    @abc.abstractmethod
    def decode(self, position: Any) -> Any:
        """The network at `position`, the inverse of `encode`."""

    def memory(self, position: Any) -> Any:
        """The inner state of the dynamics in `position`, or None if there is none."""
        return None

    def split(self, position: Any) -> tuple[Any, Any]:
        """The parameters in `position`, and the rest, which is only kept track of (None
        if there is no rest).
        """
        return position, None

    def join(self, parameters: Any, rest: Any) -> Any:
        """The position made of `parameters` and `rest`, the inverse of `split`."""
        return parameters

    @abc.abstractmethod
    def linearise(self, position: Any, inputs: Array) -> tuple[Array, Callable[[Array], Any]]:
        """The outputs on `inputs`, and the linear map `vjp` from a cotangent on those
        outputs to a tangent.
        """

    def gradient(self, position: Any, function: Callable[[Any], Array]) -> Any:
        """The gradient of a scalar function of the network, as a tangent.

        **Raises:** `ValueError` in coordinates other than the model's own weights.
        """
        raise ValueError(
            f"`penalty` is for models that move in their own weights, and {type(self).__name__} "
            "is another kind of coordinates: put the penalty into a model that is a plain "
            "Equinox module, or leave it out"
        )

    def drift_correction(self, position: Any, inputs: Array, covariance: Covariance) -> Any:
        """The drift per unit of flow time that Itô's formula adds in curved
        coordinates, for the covariance rate `covariance` of the cotangent.
        """
        raise ValueError(f"{type(self).__name__} is not curved, so it has no drift correction")

    def vjp_features(self, position: Any, cotangent: Array) -> Any:
        """The tangent by which a cotangent on the input features moves `position`.

        Only isotropic noise has such a cotangent.
        """
        raise ValueError(
            f"{type(self).__name__} has no feature channel, so IsotropicNoise is not available "
            "for this network: use MeanLossNoise, PerSampleNoise or MinibatchNoise"
        )

    @renamed_method("vjp_features")
    def pull_features(self, position: Any, cotangent: Array) -> Any:
        """The deprecated name of `vjp_features`."""

    def second_order_drift(self, position: Any, problem: Any, step_size: Array) -> Any:
        """`-grad(gamma/4 |grad L|^2)` as a tangent, with gamma = `step_size`.

        This is the extra drift of the second-order modified equation (Li, Tai, E 2017).
        """
        raise ValueError(
            f"{type(self).__name__} has no second-order modified equation; use order=1 or "
            "coordinates='weights'"
        )

    def fused(
        self, dynamics: Any, problem: Any, solver: Any, keys: Array, *, interpret: bool
    ) -> Any:
        """The `AbstractFused` kernel of such a run, or a string that says why there is
        none.

        `interpret` asks for a kernel that runs on any device, slowly.
        """
        return f"there is no kernel for {type(self).__name__}"


class WithMemory(AbstractCoordinates):
    """The position of `base`, and the inner state that `flow` adds to it.

    The flow moves both; see `memory` of `AbstractDeterministicFlow`.
    """

    base: AbstractCoordinates
    flow: Any
    features: int | None = eqx.field(static=True)

    def __init__(self, base: AbstractCoordinates, flow: Any):
        self.base, self.flow, self.features = base, flow, base.features

    def encode(self, network):
        start = self.base.encode(network)
        return start, self.flow.memory(start)

    def decode(self, position):
        return self.base.decode(position[0])

    def memory(self, position):
        return position[1]

    def linearise(self, position, inputs):
        outputs, vjp = self.base.linearise(position[0], inputs)
        return outputs, lambda cotangent: (
            vjp(cotangent),
            jax.tree.map(jnp.zeros_like, position[1]),
        )

    def gradient(self, position, function):
        still = jax.tree.map(jnp.zeros_like, position[1])
        return self.base.gradient(position[0], function), still
