"""The perceptron on a sphere with random labels: its fluctuations and responses, and
replicas of its solutions, for many masks at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.descent import StochasticGradientDescent
from sgfbias.core.masks import PersistentMask
from sgfbias.core.problem import Problem
from sgfbias.core.project import Sphere
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.two_class import SquaredHingeLoss
from sgfbias.meanfield.report import Force
from sgfbias.meanfield.system import Linear, weights_of


class Tasks(eqx.Module):
    """Data sets with random labels, each with a start on the sphere of radius sqrt(d).

    - `inputs`: (sets, n, d), divided by sqrt(d).
    - `targets`: (sets, n), -1 or 1.
    - `start`: (sets, d).

    A member of the batch, as under `jax.vmap`, has no axis of sets.
    """

    inputs: Array
    targets: Array
    start: Array

    @classmethod
    def draw(
        cls, generator: np.random.Generator, sets: int, alpha: float, d: int, dtype: Any = "float32"
    ) -> Tasks:
        """Normal inputs with `alpha d` random labels, and a uniform start, for every
        set.
        """
        n = round(alpha * d)
        start = generator.normal(size=(sets, d))
        start *= math.sqrt(d) / np.linalg.norm(start, axis=-1, keepdims=True)
        arrays = (
            generator.normal(size=(sets, n, d)) / math.sqrt(d),
            generator.choice([-1.0, 1.0], (sets, n)),
            start,
        )
        return cls(*(jnp.asarray(v, dtype) for v in arrays))

    def weights(
        self,
        mask: PersistentMask,
        step: float,
        looks: tuple[int, ...],
        keys: Array,
        penalty: Any = None,
    ) -> Array:
        """Weights on one data set after the numbers of steps `looks`, of one run for
        each key, (keys, looks, d).
        """
        n, d = self.inputs.shape
        with jax.ensure_compile_time_eval():  # recorded times need the value of the step size
            sgd = StochasticGradientDescent(step * n, sampling=mask, project=Sphere(math.sqrt(d)))
        problem = Problem(self.inputs, self.targets, loss=SquaredHingeLoss(), penalty=penalty)
        runs = simulate(
            sgd,
            Linear(self.start),
            problem,
            keys=keys,
            steps=looks[-1],
            record=Record({"weights": weights_of}, step * n * np.asarray(looks)),
        )
        return runs["weights"][:, -len(looks) :]


def fluctuations(
    tasks: Tasks,
    masks: PersistentMask,
    step: float,
    looks: tuple[int, ...],
    keys: Array,
    signs: Array,
) -> tuple[Array, Array]:
    """How far runs move after the first of the times `looks`, and their response to a
    force from then on, for every mask and data set.

    The response is the derivative of the same run in the strength of a constant force,
    exact for its random numbers.

    **Arguments:**

    - `tasks`: the data sets.
    - `masks`: masks stacked along a leading axis.
    - `step`: the step size for the sum of the losses.
    - `looks`: (lags,) increasing numbers of steps.
    - `keys`: (sets,) the keys of the runs.
    - `signs`: (sets, d) the directions of the force.

    **Returns:** the drop `|w_t - w_w|^2 / (2 d)` and the response per dimension, both
    (masks, sets, lags).
    """
    n, d = tasks.inputs.shape[1:]

    def one(task: Tasks, key: Array, sign: Array, mask: PersistentMask) -> tuple[Array, Array]:
        def run(size: Array) -> Array:
            return task.weights(mask, step, looks, key[None], Force(size, sign, looks[0]))[0]

        zero = jnp.zeros((), sign.dtype)
        weights, moved = jax.jvp(run, (zero,), (jnp.ones_like(zero),))
        drop = jnp.sum(jnp.square(weights - weights[0]), axis=-1) / (2 * d)
        # The force acts on the mean of the losses, and the step size is for their sum.
        return drop, moved @ sign / (n * d)

    return _everywhere(one, (tasks, keys, signs), masks)


def solutions(
    tasks: Tasks, masks: PersistentMask, step: float, steps: int, keys: Array
) -> tuple[Array, Array]:
    """Where replicas end, for every mask and data set.

    **Arguments:**

    - `tasks`, `masks`, `step`: as in `fluctuations`.
    - `steps`: the number of steps.
    - `keys`: (sets, 2) the keys of two replicas.

    **Returns:** the distance `|w1 - w2|^2 / d`, (masks, sets), and the gaps
    `y w . x / sqrt(d)`, (masks, sets, 2, n).
    """

    def one(task: Tasks, pair: Array, mask: PersistentMask) -> tuple[Array, Array]:
        weights = task.weights(mask, step, (steps,), pair)[:, 0]
        apart = jnp.mean(jnp.square(weights[0] - weights[1]))
        return apart, task.targets * (weights @ task.inputs.T)

    return _everywhere(one, (tasks, keys), masks)


def _everywhere(one: Callable[..., Any], own: tuple[Any, ...], masks: PersistentMask) -> Any:
    """`one(*own, mask)` for every mask and data set, compiled as one program."""
    by_set = jax.vmap(one, (*(0 for _ in own), None))
    by_mask = jax.vmap(by_set, (*(None for _ in own), 0))
    return jax.jit(by_mask)(*own, masks)
