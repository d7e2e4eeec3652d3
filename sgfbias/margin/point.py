"""Weights to look at: those at the end of a run or of a model, their geometry, and the
derivatives of their margins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.network import declared_trainable
from sgfbias.core.problem import Problem
from sgfbias.core.trajectory import Trajectory
from sgfbias.core.weights import Weights, cast
from sgfbias.margin.geometry import GEOMETRIES
from sgfbias.margin.objective import check_classification, margins_of, nu_and_gradient


class Point(NamedTuple):
    """Weights to look at, with the problem, their coordinates and their position.

    `conditioner` is h, and `gradient` the gradient of nu averaged over the last steps,
    both flat, if the run has them; otherwise they are None.
    """

    problem: Problem
    coordinates: Weights
    position: Any
    conditioner: np.ndarray | None
    gradient: np.ndarray | None


def point_of(run: Any, problem: Problem | None, trainable: Any, *, verb: str) -> Point:
    """The weights at the end of a run, or those of a model.

    `verb` is the function that asks, for messages.

    **Raises:** `ValueError` that says what to give.
    """
    h = gradient = None
    if isinstance(run, Trajectory):
        if problem is not None:
            raise ValueError("a run has its own problem: leave `problem` out")
        if jnp.ndim(run.status):
            raise ValueError(
                f"`{verb}` takes a single run, but there is an axis of seeds: give the network of "
                "one seed and the problem"
            )
        network, problem = run.networks, run.problem
        if "conditioner" in run.final:
            h = np.asarray(run.final["conditioner"], np.float64)
        if "mean_gradient" in run.final:
            gradient = np.asarray(run.final["mean_gradient"], np.float64)
    else:
        network = run
        if not isinstance(problem, Problem):
            raise ValueError(f"{verb}(model, problem) needs the Problem that the model classifies")
    check_classification(problem)
    network = cast(network, problem.dtype)
    trainable = declared_trainable(network) if trainable is None else trainable
    coordinates = Weights(
        network, problem.dtype, trainable=True if trainable is None else trainable
    )
    position = coordinates.encode(network)
    count = sum(leaf.size for leaf in jax.tree.leaves(position))
    if h is not None and h.size != count:
        raise ValueError(
            f"the run moved {h.size} of {count} weights: give trainable= as in simulate"
            if h.size < count
            else f"the run moved {h.size} weights, but trainable= names {count} of them: give "
            "trainable= as in simulate"
        )
    return Point(problem, coordinates, position, h, gradient)


def geometry_of(geometry: Any, at: Point) -> tuple[str, Any]:
    """The name of a geometry, and its norm as `norm` takes it."""
    if isinstance(geometry, str):
        if geometry not in GEOMETRIES:
            raise ValueError(
                f"`geometry` must be 'l2', 'linf', 'metric' or the numbers 1/h, but is {geometry!r}"
            )
        if geometry != "metric":
            return geometry, geometry
        if at.conditioner is None:
            raise ValueError(
                "geometry='metric' needs the conditioner of a run of MarginFlow: give such a run, "
                "or the numbers 1/h as the geometry"
            )
        return "metric", jnp.asarray(1 / at.conditioner)
    metric = np.asarray(geometry, np.float64)
    count = sum(leaf.size for leaf in jax.tree.leaves(at.position))
    if metric.shape != (count,) or not (np.isfinite(metric) & (metric > 0)).all():
        raise ValueError(
            f"a metric must have one positive number for each of the {count} weights, but has "
            f"shape {metric.shape}"
        )
    return "metric", jnp.asarray(metric)


def check_fitted(q: np.ndarray) -> float:
    """The least margin.

    **Raises:** `ValueError` if it is not positive, with the example.
    """
    least = float(q.min())
    if not least > 0:
        hardest = int(np.argmin(q.reshape(len(q), -1).min(axis=1)))
        raise ValueError(
            f"the data are not fitted: q_min = {least:.3g} for example {hardest}; the margin is "
            "defined once all are"
        )
    return least


def flat(position: Any) -> np.ndarray:
    """The numbers of a position, (P,), in the order of its arrays."""
    return np.asarray(jax.flatten_util.ravel_pytree(position)[0], np.float64)


def derivatives(at: Point, position: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The margins, their gradients (one row for each), and the gradient of nu."""
    found = _derivatives(at.coordinates, position, at.problem)
    q, rows, gradient = (np.asarray(part, np.float64) for part in found)
    return q, rows.reshape(q.size, -1), gradient


@eqx.filter_jit
def _derivatives(
    coordinates: Weights, position: Any, problem: Problem
) -> tuple[Array, Array, Array]:
    start, unravel = jax.flatten_util.ravel_pytree(position)

    def q(w: Array) -> Array:
        return margins_at(coordinates, unravel(w), problem)

    _, gradient = nu_and_gradient(coordinates.linearise, position, problem)
    return q(start), jax.jacrev(q)(start), jax.flatten_util.ravel_pytree(gradient)[0]


@eqx.filter_jit
def margins_at(coordinates: Weights, position: Any, problem: Problem) -> Array:
    """The margins in a position."""
    outputs = coordinates.outputs(position, problem.inputs)
    return margins_of(problem.loss, outputs, problem.targets)
