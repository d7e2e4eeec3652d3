"""What is read off a state: the observables, the final network, whether all is finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.problem import Problem
from sgfbias.core.tiles import over_groups, over_members


class Observe(eqx.Module):
    """The observables of a state `(position, integral)`, with the built-in ones."""

    chart: AbstractCoordinates
    problem: Problem
    functions: dict[str, Callable]
    last: bool = eqx.field(static=True, default=False)  # at the end, not along the way

    def __call__(self, state: Any) -> dict[str, Array]:
        position, integral = state
        network = self.chart.decode(position)
        outputs = self.chart.linearise(position, self.problem.inputs)[0]
        loss = jnp.mean(self.problem.loss(outputs, self.problem.targets))
        values = {"loss": loss, "loss_integral": jnp.mean(integral)}
        if integral.ndim and self.last:
            values["example_integral"] = integral
        return values | {name: jnp.asarray(f(network)) for name, f in self.functions.items()}


def all_finite(tree: Any) -> Array:
    """Whether every number of a PyTree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@eqx.filter_jit
def finish_runs(finish: Observe, y: Any, batched: bool, group: int | None = None) -> Any:
    """`(values at the end, final network, whether all is finite)` of one state, or of a batch of them, `group` at a time."""

    def one(y: Any) -> Any:
        network = eqx.filter(finish.chart.decode(y[0]), eqx.is_array)  # a model's functions are no output of a map
        return finish(y), network, all_finite(y)

    if group is not None:
        return over_groups(one, group, y)
    return over_members(one, y) if batched else one(y)
