"""Coordinate systems: what a flow moves. The physics (drift, noise, loss) is written once, in cotangents; coordinates carry it out."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.noise import Covariance


class AbstractCoordinates(eqx.Module):
    """A chart on the networks. `position` is any PyTree of arrays; a cotangent `c` moves it by `pull(c)`.

    Tangents have the structure of a position. `features` is the number of input features on which isotropic noise can act, or None.
    """

    features: eqx.AbstractVar[int | None]
    curved: ClassVar[bool] = False  # whether Itô's formula adds a drift in this chart

    @abc.abstractmethod
    def encode(self, network: Any) -> Any:
        """The position of a network."""

    @abc.abstractmethod
    def decode(self, position: Any) -> Any:
        """The network at a position."""

    @abc.abstractmethod
    def linearise(self, position: Any, inputs: Array) -> tuple[Array, Callable[[Array], Any]]:
        """Outputs on `inputs`, and `pull`: the linear map from a cotangent on those outputs to a tangent."""

    def drift_correction(self, position: Any, inputs: Array, covariance: Covariance) -> Any:
        """Itô's second-order term of a curved chart, per unit of time, for this covariance rate of the cotangent."""
        raise ValueError(f"{type(self).__name__} is not curved")

    def pull_features(self, position: Any, cotangent: Array) -> Any:
        """The tangent of a cotangent on the features, for isotropic noise."""
        raise ValueError(f"{type(self).__name__} has no feature channel: IsotropicNoise is not available for this network")

    def second_order_drift(self, position: Any, problem: Any, step_size: Array) -> Any:
        """`-grad(gamma/4 |grad L|^2)` as a tangent: the extra drift of the second-order modified equation (Li, Tai, E 2017)."""
        raise ValueError(f"{type(self).__name__} has no second-order modified equation; use order=1 or coordinates='weights'")


class Weights(AbstractCoordinates):
    """The parameters themselves, for any Equinox module: the position is its floating-point arrays.

    The flow is an Itô equation in the parameters, so there is no correction; `pull` is one vector-Jacobian product.
    """

    static: Any = eqx.field(static=True)
    features: int | None = None

    def __init__(self, network: Any):
        _, self.static = eqx.partition(network, eqx.is_inexact_array)
        self.features = None

    def encode(self, network):
        return eqx.filter(network, eqx.is_inexact_array)

    def decode(self, position):
        return eqx.combine(position, self.static)

    def _outputs(self, position: Any, inputs: Array) -> Array:
        network = self.decode(position)
        predict = getattr(network, "predict", None)
        return jax.vmap(network)(inputs) if predict is None else predict(inputs)

    def linearise(self, position, inputs):
        outputs, pull = jax.vjp(lambda p: self._outputs(p, inputs), position)
        return outputs, lambda cotangent: pull(cotangent)[0]

    def second_order_drift(self, position, problem, step_size):
        def risk(p):
            return jnp.mean(problem.loss(self._outputs(p, problem.inputs), problem.targets))

        gradient = jax.grad(risk)(position)
        _, curved = jax.jvp(jax.grad(risk), (position,), (gradient,))
        return jax.tree.map(lambda v: -0.5 * step_size * v, curved)


def coordinates_for(network: Any, problem: Any, dynamics: Any, name: str | None) -> AbstractCoordinates:
    """The chart called `name` for this network (None: the network's choice, or its weights).

    **Raises:** `ValueError` naming the charts that exist.
    """
    own = getattr(network, "coordinates", None)
    if own is not None:
        return own(name, problem, dynamics)
    if name not in (None, "weights"):
        raise ValueError(f"{type(network).__name__} has only the coordinates 'weights', but coordinates={name!r} was asked for")
    return Weights(network)
