"""What is computed from a state: observables, the final network, and finiteness."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.along import loss_integral, own_totals
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.problem import Problem
from sgfbias.core.products import Steady
from sgfbias.core.tiles import map_groups, map_seeds


class AbstractJoint(eqx.Module):
    """Several observables of a network that share what they compute.

    A subclass defines `__call__(network, names)`, which returns the observables with
    these names. `joint.observable(name)` is one of them, a function of the network. A
    run that records several of one joint object calls it once.
    """

    @abc.abstractmethod
    def __call__(self, network: Any, names: tuple[str, ...]) -> dict[str, Array]:
        """The observables called `names`, by name."""

    def observable(self, name: str) -> Callable[[Any], Array]:
        """The observable called `name`, as a function of the network."""
        return _One(self, name)


class _One(eqx.Module):
    """One of the observables of a joint object."""

    joint: AbstractJoint
    name: str = eqx.field(static=True)

    def __call__(self, network: Any) -> Array:
        return self.joint(network, (self.name,))[self.name]


class _Some(eqx.Module):
    """Some of the observables of a joint object, with the names of the record."""

    joint: AbstractJoint
    names: tuple[tuple[str, str], ...] = eqx.field(static=True)

    def __call__(self, network: Any) -> dict[str, Array]:
        found = self.joint(network, tuple(dict.fromkeys(own for _, own in self.names)))
        return {name: found[own] for name, own in self.names}


def together(functions: Mapping[str, Callable | None]) -> dict[str, Callable | None]:
    """The functions with those of one joint object as one function.

    It returns a dictionary, and its name has all their names. What is None stays so.
    """
    groups: dict[int, dict[str, _One]] = {}
    for name, function in functions.items():
        if isinstance(function, _One):
            groups.setdefault(id(function.joint), {})[name] = function
    found: dict[str, Callable | None] = {
        name: f for name, f in functions.items() if not isinstance(f, _One)
    }
    for members in groups.values():
        names = tuple((name, one.name) for name, one in members.items())
        found["/".join(members)] = _Some(next(iter(members.values())).joint, names)
    return found


def values_of(functions: Mapping[str, Any], network: Any) -> dict[str, Array]:
    """The values of functions of the network by name, with `together` or without."""
    values: dict[str, Array] = {}
    for name, function in functions.items():
        value = function(network)
        values |= value if isinstance(function, _Some) else {name: jnp.asarray(value)}
    return values


class Observe(NamedTuple):
    """Computes the observables of a state `(position, integral)`.

    They are the loss, the loss integral, other totals of the run, and `functions` of
    the network by name. None in the place of a function stands for the value of that
    name which the `dynamics` add.
    """

    coordinates: AbstractCoordinates
    problem: Problem
    functions: dict[str, Callable | None]
    # Whether the state is the last one of a run.
    last: bool = False
    # The dynamics, if they have observables.
    dynamics: Any = None

    def within(self, coordinates: AbstractCoordinates) -> Observe:
        """The same observables in other coordinates."""
        return self._replace(coordinates=coordinates)

    def __call__(self, state: Any, step: Any = None) -> dict[str, Array]:
        """The observables of `state`.

        `step` is what the penalty of the problem is given. Without it, the penalty is
        not among the observables.
        """
        position, totals = state
        integral = loss_integral(totals)
        network = self.coordinates.decode(position)
        outputs = self.coordinates.linearise(position, self.problem.inputs)[0]
        loss = jnp.mean(self.problem.loss(outputs, self.problem.targets))
        values = {"loss": loss, "loss_integral": jnp.mean(integral)}
        if step is not None and self.problem.penalty is not None:
            values["penalty"] = self.problem.penalised(network, step)
        if integral.ndim and self.last:
            values["example_integral"] = integral
        values |= own_totals(totals)
        values |= values_of(
            {name: f for name, f in self.functions.items() if f is not None}, network
        )
        if self.dynamics is not None:
            memory = self.coordinates.memory(position)
            own = self.dynamics.observables(network, self.problem, memory)
            values |= {
                name: jnp.asarray(own[name]) for name, f in self.functions.items() if f is None
            }
        return values


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys, as a model may hold."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_words(leaf: Any) -> Any:
    """The words of typed keys, which NumPy can join; other leaves as they are."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def keys_again(leaf: Any, like: Any) -> Any:
    """Typed keys of the kind of `like` from their words; other leaves as they are."""
    if not is_key(like) or leaf is None:
        return leaf
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(like))


def all_finite(tree: Any) -> Array:
    """Whether every number in the PyTree `tree` is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def finish_one(finish: Observe, y: Any) -> Any:
    """The values of one state at the end, its network, and whether it is finite."""
    # Only arrays can be the result of a map, and a model also has functions.
    network = eqx.filter(finish.coordinates.decode(y[0]), eqx.is_array)
    # What the user adds up says nothing about how a seed ended.
    finite = all_finite((y[0], loss_integral(y[1])))
    return finish(y), jax.tree.map(key_words, network), finite


@eqx.filter_jit
def finish_runs(
    finish: Observe,
    y: Any,
    batched: bool,
    group: int | None = None,
    coordinates_of: Any = None,
    starts: Any = None,
    how: Steady | None = None,
) -> Any:
    """The values at the end, the final network, and whether all numbers are finite.

    - `y`: the final state, or a batch of states if `batched`.
    - `group`: the number of states that are evaluated at a time; None for all.
    - `coordinates_of`, `starts`: if given, every state has the coordinates that
      `coordinates_of` makes from its own row of `starts`.
    - `how`: how matrix products are mapped over the states, see `map_seeds`.
    """

    def one(y: Any, start: Any = None) -> Any:
        return finish_one(finish if start is None else finish.within(coordinates_of(start)), y)

    if group is not None:
        return map_groups(one, group, y)
    if not batched:
        return one(y)
    rows = (y,) if starts is None else (y, starts)
    return map_seeds(one, *rows, how=how)
