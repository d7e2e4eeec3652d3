"""The coordinates of a model's own weights, and the choice of coordinates for a run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.direct import direct
from sgfbias.core.network import AbstractNetwork, declared_trainable, evaluate


class Weights(AbstractCoordinates):
    """The parameters of any Equinox module as coordinates.

    The position is the trainable floating-point arrays, and the rest is frozen. The
    flow is an Itô equation in the parameters, so there is no drift correction, and
    `vjp` is one vector-Jacobian product.

    **Arguments:**

    - `network`: an Equinox module.
    - `dtype`: the precision of the parameters.
    - `trainable`: which arrays move, as in `simulate`. Default: all floating-point
      arrays.
    - `microbatch`: m, a whole number >= 1, or None for all examples. The outputs are
      computed m examples at a time, and again when a cotangent is pulled back. Memory
      then holds the activations of m examples only, at the cost of a second forward
      pass.

    **Raises:** `ValueError` if nothing is trainable, if `trainable` does not fit the
    network, or if `microbatch` is not a whole number >= 1.
    """

    name: ClassVar[str] = "weights"
    frozen: Any
    dtype: Any = eqx.field(static=True)
    microbatch: int | None = eqx.field(static=True)
    features: int | None = None

    def __init__(
        self, network: Any, dtype: Any, *, trainable: Any = True, microbatch: int | None = None
    ):
        self.frozen, self.features, self.dtype = (
            cast(_frozen_part(network, trainable), dtype),
            None,
            dtype,
        )
        if microbatch is not None and (
            not isinstance(microbatch, int | np.integer) or microbatch < 1
        ):
            raise ValueError(
                f"`microbatch` must be a whole number of examples >= 1, but is {microbatch!r}"
            )
        self.microbatch = microbatch

    def encode(self, network):
        # The arrays that move are those which are None in the frozen part.
        moving = jax.tree.map(
            lambda own, kept: own if kept is None else None,
            network,
            self.frozen,
            is_leaf=lambda x: x is None,
        )
        return cast(moving, self.dtype)

    def decode(self, position):
        return eqx.combine(position, self.frozen)

    def outputs(self, position: Any, inputs: Array) -> Array:
        """The outputs (n, ...) of the network at `position` on `inputs`."""

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
        outputs, vjp = jax.vjp(lambda p: self.outputs(p, inputs), position)
        return outputs, lambda cotangent: vjp(cotangent)[0]

    def gradient(self, position, function):
        return jax.grad(lambda p: function(self.decode(p)))(position)

    def second_order_drift(self, position, problem, step_size, iteration=None):
        def risk(p: Any) -> Array:
            loss = jnp.mean(problem.loss(self.outputs(p, problem.inputs), problem.targets))
            if problem.penalty is None:
                return loss
            return loss + problem.penalised(self.decode(p), iteration)

        return modified_drift(risk, position, step_size)


def modified_drift(risk: Callable[[Any], Array], weights: Any, step_size: Array) -> Any:
    """`-grad(gamma/4 |grad L|^2) = -gamma/2 (hess L) grad L` in weights.

    The product with the Hessian is one forward over one reverse derivative.
    """
    gradient = jax.grad(risk)(weights)
    _, curved = jax.jvp(jax.grad(risk), (weights,), (gradient,))
    return jax.tree.map(lambda v: -0.5 * step_size * v, curved)


def check_real(network: Any) -> None:
    """Refuse complex parameters.

    **Raises:** `ValueError` that names the dtype.
    """
    for leaf in jax.tree.leaves(network):
        if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"the parameters must be real, but {type(network).__name__} has one of dtype "
                f"{leaf.dtype}: keep real and imaginary parts as two arrays and put them together "
                "in __call__"
            )


def cast(network: Any, dtype: Any) -> Any:
    """The network with its floating-point arrays in the precision `dtype`."""

    def one(leaf: Any) -> Any:
        return (
            leaf.astype(dtype)
            if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        )

    return jax.tree.map(one, network)


def _of_array(chosen: Callable[[Any], Any], leaf: Any) -> Any:
    """`chosen(leaf)` for a floating-point array, and False for any other leaf."""
    return eqx.is_inexact_array(leaf) and chosen(leaf)


def _frozen_part(network: Any, trainable: Any) -> Any:
    """The network with None in place of the arrays that move."""
    if callable(trainable) and not isinstance(trainable, eqx.Module):
        # The function is called for arrays only, as other leaves of a model are
        # functions and settings.
        trainable = functools.partial(_of_array, trainable)
    try:
        chosen, frozen = eqx.partition(network, trainable)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            "`trainable` must be a PyTree of True and False that fits the network (a prefix is "
            "enough), or a function of an array that returns True or False, as in "
            f"equinox.partition: {error}"
        ) from error
    if not jax.tree.leaves(eqx.filter(chosen, eqx.is_inexact_array)):
        total = len(jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
        why = (
            f"`trainable` leaves out all {total} of its floating-point arrays"
            if total
            else "it has no floating-point JAX array"
        )
        raise ValueError(f"{type(network).__name__} has nothing to train: {why}")
    return eqx.combine(frozen, eqx.filter(chosen, eqx.is_inexact_array, inverse=True))


class CoordinatesOf(eqx.Module):
    """The coordinates of the state as a function of the start.

    It is for runs in which every seed has its own start.
    """

    dynamics: Any
    problem: Any
    # The first start, whose functions and settings all starts share.
    first: Any
    name: str | None = eqx.field(static=True)
    trainable: Any = eqx.field(static=True)
    microbatch: int | None = eqx.field(static=True)

    def network(self, arrays: Any) -> Any:
        """The network with the arrays `arrays`."""
        return eqx.combine(arrays, self.first)

    def __call__(self, arrays: Any) -> AbstractCoordinates:
        """The coordinates of the start with the arrays `arrays`."""
        options = {"trainable": self.trainable, "microbatch": self.microbatch}
        return self.dynamics.state_coordinates(
            coordinates_for(self.network(arrays), self.problem, self.dynamics, self.name, **options)
        )


def coordinates_for(
    network: Any,
    problem: Any,
    dynamics: Any,
    name: str | None,
    *,
    trainable: Any = None,
    microbatch: int | None = None,
) -> AbstractCoordinates:
    """The coordinates called `name` of a network.

    With None, they are the network's choice, or its weights.

    **Raises:** `ValueError`, with the coordinates that exist, for another name. Also
    for `trainable` or `microbatch` with a network that declares its own coordinates.
    """
    own = (
        direct(network).coordinates(name, problem, dynamics)
        if isinstance(network, AbstractNetwork)
        else None
    )
    if own is not None:
        for option, given in (("trainable", trainable), ("microbatch", microbatch)):
            if given is not None:
                raise ValueError(
                    f"`{option}` is for models in their own weights, but {type(network).__name__} "
                    "has coordinates of its own: leave it out"
                )
        return own
    if name not in (None, "weights"):
        raise ValueError(
            f"{type(network).__name__} has only the coordinates 'weights', but "
            f"coordinates={name!r} was asked for"
        )
    trainable = declared_trainable(network) if trainable is None else trainable
    return Weights(
        network,
        problem.dtype,
        trainable=True if trainable is None else trainable,
        microbatch=microbatch,
    )
