"""Quantities that are added up along a run, as the loss integral is: integrals of
functions of the network over flow time, and sums over the iterations of an algorithm.

They join the state of a run beside the loss integral, by terms around its own terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.cached import shapes_of
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.schedule import Clock


class Totals(NamedTuple):
    """What a state has in the place of its loss integral if more is added up.

    - `loss`: the loss integral.
    - `own`: the integrals and the sums so far, by name.
    """

    loss: Array
    own: dict[str, Array]


class Along(eqx.Module):
    """The integrals and sums that a run records.

    - `integrals`: functions of the network, integrated over flow time.
    - `sums`: functions of the network before an iteration and of the iteration's change
      of its parameters, added up.
    """

    integrals: dict[str, Callable]
    sums: dict[str, Callable]

    def shapes(self, coordinates: AbstractCoordinates, network: Any) -> dict[str, Any]:
        """The shapes of all values, by name.

        **Raises:** `ValueError` for values that are no real arrays.
        """
        change = shapes_of(_parameters, coordinates, network) if self.sums else None
        return {
            **{name: _shape(name, f, network) for name, f in self.integrals.items()},
            **{name: _shape(name, f, network, change) for name, f in self.sums.items()},
        }

    def start(self, coordinates: AbstractCoordinates, network: Any, loss: Array) -> Totals:
        """All totals before the first step, given the loss integral there."""
        shapes = self.shapes(coordinates, network)
        return Totals(loss, {name: jnp.zeros(s.shape, loss.dtype) for name, s in shapes.items()})

    def joined(
        self,
        terms: Any,
        coordinates: AbstractCoordinates,
        clock: Clock | None,
        offset: Array,
        dtype: Any,
    ) -> Any:
        """The terms of a run whose state has `Totals`, made from the terms of the run.

        **Arguments:**

        - `terms`: what `AbstractDynamics.build` returned.
        - `clock`: the clock of the run, None for an adaptive solver.
        - `offset`: the absolute step at solver time 0.
        - `dtype`: the precision.
        """
        if isinstance(terms, dfx.MultiTerm):
            parts = [self.joined(t, coordinates, clock, offset, dtype) for t in terms.terms]
            return dfx.MultiTerm(*parts)
        if isinstance(terms, dfx.ODETerm):
            # Steps that differ in flow time do not come with an ODE.
            unit = jnp.ones((), dtype) if clock is None else clock.span(offset, dtype)
            return dfx.ODETerm(_Field(terms, self, coordinates, unit))
        if hasattr(terms, "iterate"):
            return _Iterations(terms, self, coordinates, clock, offset)
        kind = _Flow if hasattr(terms, "drift_and_noise") else _Diffusion
        return kind(terms, self, coordinates, clock, offset)

    def increments(self, coordinates: AbstractCoordinates, position: Any, span: Array) -> Any:
        """What the flow time `span` at a position adds to the integrals, by name."""
        network = coordinates.decode(position)
        return {
            name: _value(f, network).astype(span.dtype) * span for name, f in self.integrals.items()
        }


def loss_integral(integral: Any) -> Array:
    """The loss integral of a state."""
    return integral.loss if isinstance(integral, Totals) else integral


def own_totals(integral: Any) -> Mapping[str, Array]:
    """The integrals and sums of a state that the user asked for."""
    return integral.own if isinstance(integral, Totals) else {}


def _shape(name: str, function: Callable, *arguments: Any) -> Any:
    """The shape and dtype of a value."""
    value = shapes_of(function, *arguments)
    if isinstance(value, jax.ShapeDtypeStruct | int | float | complex | np.ndarray):
        value = shapes_of(jnp.asarray, value)
        if not jnp.issubdtype(value.dtype, jnp.complexfloating):
            return value
        given = f"has dtype {value.dtype}"
    else:
        given = f"is {type(value).__name__}"
    raise ValueError(
        f"{name!r} of Record must be a real number or an array of them, but {given}: record real "
        "arrays, each under a name of its own"
    )


def _value(function: Callable, *arguments: Any) -> Array:
    return jnp.asarray(function(*arguments))


def _parameters(coordinates: AbstractCoordinates, network: Any) -> Any:
    return coordinates.split(coordinates.encode(network))[0]


class _Field(eqx.Module):
    """The vector field of an ODE with integrals."""

    inner: Any
    along: Along
    coordinates: AbstractCoordinates
    unit: Array

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        step, loss = self.inner.vf(t, _plain(y), args)
        return step, Totals(loss, self.along.increments(self.coordinates, y[0], self.unit))


class _Joined(dfx.AbstractTerm):
    """A term around the term of a run."""

    inner: Any
    along: Along
    coordinates: AbstractCoordinates
    clock: Clock | None
    offset: Array

    def contr(self, t0, t1, **kwargs):
        return self.inner.contr(t0, t1, **kwargs)


class _Diffusion(_Joined):
    """The diffusion as a matrix, which does not move the integrals."""

    def vf(self, t, y, args):
        step, loss = self.inner.vf(t, _plain(y), args)
        width = jax.tree.leaves(step)[0].shape[-1]
        own = {name: jnp.zeros((*v.shape, width), v.dtype) for name, v in y[1].own.items()}
        return step, Totals(loss, own)

    def prod(self, vf, control):
        return jax.tree.map(lambda m: m @ control, vf)


class _Flow(_Joined):
    """The term of a stochastic flow, drift and noise in one, with integrals."""

    def vf(self, t, y, args):
        return y

    def prod(self, vf, control):
        return self.vf_prod(None, vf, None, control)

    def vf_prod(self, t, y, args, control):
        return self._with(self.inner.vf_prod(t, _plain(y), args, control), y, control)

    def drift_prod(self, t: Any, y: Any, args: Any, control: Any) -> Any:
        """The change of the state in a step without its noise."""
        return self._with(self.inner.drift_prod(t, _plain(y), args, control), y, control)

    def drift_and_noise(self, t: Any, y: Any, args: Any, control: Any) -> tuple[Any, Any]:
        """The two parts whose sum is the change of the state in a step."""
        drift, (noise, loss) = self.inner.drift_and_noise(t, _plain(y), args, control)
        still = Totals(loss, jax.tree.map(jnp.zeros_like, y[1].own))
        return self._with(drift, y, control), (noise, still)

    def _with(self, change: Any, y: Any, control: Any) -> Any:
        step, loss = change
        return step, Totals(loss, self.along.increments(self.coordinates, y[0], control.time))


class _Iterations(_Joined):
    """The term of a discrete algorithm with integrals and sums."""

    def remember(self, y: Any) -> Any:
        """The memory of the algorithm before its first iteration from the state `y`."""
        return self.inner.remember(_plain(y))

    def iterate(self, t0: Array, y: Any, memory: Any) -> Any:
        """The state and the memory after the iteration at solver time `t0`."""
        (new, loss), memory = self.inner.iterate(t0, _plain(y), memory)
        coordinates, (position, totals) = self.coordinates, y
        assert self.clock is not None
        step = self.offset + jnp.round(t0).astype(jnp.int32)
        span = self.clock.span(step, loss.dtype)
        added = self.along.increments(coordinates, position, span)
        if self.along.sums:
            change = jax.tree.map(
                jnp.subtract, coordinates.split(new)[0], coordinates.split(position)[0]
            )
            network = coordinates.decode(position)
            added |= {
                name: _value(f, network, change).astype(loss.dtype)
                for name, f in self.along.sums.items()
            }
        own = {name: total + added[name] for name, total in totals.own.items()}
        return (new, Totals(loss, own)), memory

    def vf(self, t, y, args):
        return y

    def prod(self, vf, control):
        return vf


def _plain(y: Any) -> Any:
    """The state without the user's own totals."""
    return y[0], y[1].loss
