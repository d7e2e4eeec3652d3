"""Coordinate systems: what a flow moves. The physics (drift, noise, loss) is written once, in cotangents; coordinates carry it out."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.network import AbstractNetwork, evaluate
from sgfbias.core.noise import Covariance


class AbstractCoordinates(eqx.Module):
    """A chart on the networks. `position` is any PyTree of arrays; a cotangent `c` moves it by `pull(c)`.

    Tangents have the structure of a position. `features` is the number of input features on which isotropic noise can act, or None.
    """

    features: eqx.AbstractVar[int | None]
    references: ClassVar[Mapping[str, str]] = {}  # keys of the bibliography -> what they are cited for
    curved: ClassVar[bool] = False  # whether Itô's formula adds a drift in this chart
    shares_inputs: ClassVar[bool] = False  # whether a step of many seeds is matrix products of the inputs with all of them at once

    @abc.abstractmethod
    def encode(self, network: Any) -> Any:
        """The position of a network."""

    @abc.abstractmethod
    def decode(self, position: Any) -> Any:
        """The network at a position."""

    def split(self, position: Any) -> tuple[Any, Any]:
        """The parameters, and what is only book-keeping (None where there is none)."""
        return position, None

    def join(self, parameters: Any, rest: Any) -> Any:
        """The position of both."""
        return parameters

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

    def fused(self, dynamics: Any, problem: Any, solver: Any, keys: Array, *, interpret: bool) -> Any:
        """The `AbstractFused` kernel of such a run, or the reason, a string, why there is none; `interpret`: to be run on any device."""
        return f"there is none for {type(self).__name__}"


class Weights(AbstractCoordinates):
    """The parameters themselves, for any Equinox module: the position is its trainable floating-point arrays, the rest is frozen.

    The flow is an Itô equation in the parameters, so there is no correction; `pull` is one vector-Jacobian product. With `microbatch = m`
    the outputs are computed m examples at a time and again when a cotangent is pulled back, so that memory holds the activations of m
    examples only, at the price of a second forward pass.

    **Raises:** `ValueError` if nothing is trainable, or the selection does not fit the network.
    """

    name: ClassVar[str] = "weights"
    frozen: Any
    dtype: Any = eqx.field(static=True)
    microbatch: int | None = eqx.field(static=True)
    features: int | None = None

    def __init__(self, network: Any, dtype: Any, *, trainable: Any = True, microbatch: int | None = None):
        self.frozen, self.features, self.dtype = cast(_frozen_part(network, trainable), dtype), None, dtype
        if microbatch is not None and (not isinstance(microbatch, int | np.integer) or microbatch < 1):
            raise ValueError(f"`microbatch` must be a whole number of examples >= 1, but is {microbatch!r}")
        self.microbatch = microbatch

    def encode(self, network):
        # The frozen part says which arrays move: those it lacks.
        moving = jax.tree.map(lambda own, kept: own if kept is None else None, network, self.frozen, is_leaf=lambda x: x is None)
        return cast(moving, self.dtype)

    def decode(self, position):
        return eqx.combine(position, self.frozen)

    def outputs(self, position: Any, inputs: Array) -> Array:
        """The network's outputs (n, ...)."""

        def piece(p: Any, x: Array) -> Array:
            return evaluate(self.decode(p), x)

        n, m = inputs.shape[0], self.microbatch
        if m is None or m >= n:
            return piece(position, inputs)
        again = jax.checkpoint(piece)
        head = inputs[: n - n % m].reshape(n // m, m, *inputs.shape[1:])
        done = jax.lax.map(lambda x: again(position, x), head)
        done = done.reshape(n - n % m, *done.shape[2:])
        return done if n % m == 0 else jnp.concatenate([done, again(position, inputs[n - n % m :])])

    def linearise(self, position, inputs):
        outputs, pull = jax.vjp(lambda p: self.outputs(p, inputs), position)
        return outputs, lambda cotangent: pull(cotangent)[0]

    def second_order_drift(self, position, problem, step_size):
        return modified_drift(lambda p: jnp.mean(problem.loss(self.outputs(p, problem.inputs), problem.targets)), position, step_size)


def modified_drift(risk: Callable[[Any], Array], weights: Any, step_size: Array) -> Any:
    """`-grad(gamma/4 |grad L|^2) = -gamma/2 (hess L) grad L` in weights, one forward over one reverse product."""
    gradient = jax.grad(risk)(weights)
    _, curved = jax.jvp(jax.grad(risk), (weights,), (gradient,))
    return jax.tree.map(lambda v: -0.5 * step_size * v, curved)


def check_real(network: Any) -> None:
    """Refuse complex parameters.

    **Raises:** `ValueError` naming the dtype.
    """
    for leaf in jax.tree.leaves(network):
        if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"the parameters must be real, but {type(network).__name__} has one of dtype {leaf.dtype}: keep real and imaginary parts as two "
                "arrays and put them together in __call__"
            )


def cast(network: Any, dtype: Any) -> Any:
    """The network with its floating-point arrays in this precision."""

    def one(leaf: Any) -> Any:
        return leaf.astype(dtype) if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, network)


def _of_array(chosen: Callable[[Any], Any], leaf: Any) -> Any:
    return eqx.is_inexact_array(leaf) and chosen(leaf)


def _frozen_part(network: Any, trainable: Any) -> Any:
    """The network with None in place of the arrays that move."""
    if callable(trainable) and not isinstance(trainable, eqx.Module):
        # Asked of arrays only: a model's other leaves are functions and settings.
        trainable = functools.partial(_of_array, trainable)
    try:
        chosen, frozen = eqx.partition(network, trainable)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            "`trainable` must be a PyTree of True and False that fits the network (a prefix will do), or a function of an array that returns "
            f"True or False, as equinox.partition takes: {error}"
        ) from error
    if not jax.tree.leaves(eqx.filter(chosen, eqx.is_inexact_array)):
        total = len(jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
        why = f"`trainable` leaves out all {total} of its floating-point arrays" if total else "it has no floating-point JAX array"
        raise ValueError(f"{type(network).__name__} has nothing to train: {why}")
    return eqx.combine(frozen, eqx.filter(chosen, eqx.is_inexact_array, inverse=True))


class Phase(AbstractCoordinates):
    """Positions and velocities: the position of `base`, and its derivative in flow time, which starts at 0."""

    base: AbstractCoordinates
    features: int | None = eqx.field(static=True)

    def __init__(self, base: AbstractCoordinates):
        self.base, self.features = base, base.features

    def encode(self, network):
        start = self.base.encode(network)
        return start, jax.tree.map(jnp.zeros_like, start)

    def decode(self, position):
        return self.base.decode(position[0])

    def linearise(self, position, inputs):
        outputs, pull = self.base.linearise(position[0], inputs)
        return outputs, lambda cotangent: (jax.tree.map(jnp.zeros_like, position[0]), pull(cotangent))


def coordinates_for(
    network: Any, problem: Any, dynamics: Any, name: str | None, *, trainable: Any = None, microbatch: int | None = None
) -> AbstractCoordinates:
    """The chart called `name` for this network (None: the network's choice, or its weights).

    **Raises:** `ValueError` naming the charts that exist.
    """
    own = network.coordinates(name, problem, dynamics) if isinstance(network, AbstractNetwork) else None
    if own is not None:
        for option, given in (("trainable", trainable), ("microbatch", microbatch)):
            if given is not None:
                raise ValueError(f"`{option}` is for models in their own weights; a {type(network).__name__} brings coordinates of its own")
        return own
    if name not in (None, "weights"):
        raise ValueError(f"{type(network).__name__} has only the coordinates 'weights', but coordinates={name!r} was asked for")
    return Weights(network, problem.dtype, trainable=True if trainable is None else trainable, microbatch=microbatch)
