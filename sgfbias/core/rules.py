"""Update rules: how an algorithm moves the parameters, given a gradient."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from sgfbias.core.optax_keys import draws_keys, reseed


class Point(NamedTuple):
    """Where an iteration stands when its rule is asked for the step.

    - `parameters`: the trainable parameters before the iteration.
    - `step_size`: the step size gamma of the iteration.
    - `iteration`: the number of the iteration, as schedules count it.
    - `value`: the loss of the drawn examples with the penalty, or its logarithm for a
      rule that is `logarithmic`.
    - `objective`: the same as a function of the parameters, for rules that try a step.
    """

    parameters: Any
    step_size: Array
    iteration: Array
    value: Array
    objective: Callable[[Any], Array]


class AbstractRule(eqx.Module):
    """A rule by which an algorithm moves the parameters.

    A subclass defines `update`, and `init` if it has a memory. Any PyTree of arrays can
    be a memory. `RuleDescent(rule, step_size)` is the algorithm.
    """

    # Whether the step is linear in the gradients. What coordinates only keep track of
    # then moves by the same rule.
    linear: ClassVar[bool] = False
    # Whether the rule is given the gradient of log L and `scale = log L`, so that it
    # can go on where the loss L underflows.
    logarithmic: ClassVar[bool] = False
    # Whether the memory is a part of the state, which observables of the dynamics see.
    observed: ClassVar[bool] = False

    @property
    def is_stochastic(self) -> bool:
        """Whether the rule draws random numbers."""
        return False

    def init(self, parameters: Any) -> Any:
        """The memory before the first iteration, a PyTree of arrays."""
        return ()

    def start(self, parameters: Any, key: Array | None) -> Any:
        """The memory before the first iteration of a seed with the key `key`, for rules
        that draw random numbers.
        """
        return self.init(parameters)

    def factor(self, step_size: Array) -> Any:
        """A number by which gradients are multiplied before `update` is given them, or
        None. It saves a product with every parameter.
        """
        return None

    @abc.abstractmethod
    def update(self, gradient: Any, memory: Any, scale: Any, point: Point) -> tuple[Any, Any]:
        """The step that is added to the parameters, and the memory after it.

        **Arguments:**

        - `gradient`: the gradient of the loss L of the drawn examples, with the
          structure of the parameters. With `logarithmic`, that of log L.
        - `memory`: the memory before.
        - `scale`: the logarithm of the number by which `gradient` has to be multiplied
          to give that of L. It is 0.0, or log L with `logarithmic`.
        - `point`: where the iteration stands.
        """


class Plain(AbstractRule):
    """`w <- w - gamma g`."""

    linear: ClassVar[bool] = True

    def factor(self, step_size):
        return -step_size

    def update(self, gradient, memory, scale, point):
        return gradient, memory


class Momentum(AbstractRule):
    """Heavy ball, `t <- g + b t` and `w <- w - gamma t`, or Nesterov's method,
    `w <- w - gamma (g + b t)` with the new t.
    """

    linear: ClassVar[bool] = True
    momentum: Array
    nesterov: bool = eqx.field(static=True, default=False)

    def factor(self, step_size):
        return -1.0

    def init(self, parameters):
        return jax.tree.map(jnp.zeros_like, parameters)

    def update(self, gradient, memory, scale, point):
        b = self.momentum.astype(point.step_size.dtype)
        memory = jax.tree.map(lambda g, m: g + b * m, gradient, memory)
        along = jax.tree.map(lambda g, m: g + b * m, gradient, memory) if self.nesterov else memory
        return jax.tree.map(lambda m: point.step_size * m, along), memory


class Transformed(AbstractRule):
    """The updates of an Optax transformation, which contains its own step size."""

    transformation: Any

    @property
    def is_stochastic(self):
        return draws_keys(self.transformation)

    def start(self, parameters, key):
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes precisions
            memory = self.transformation.init(parameters)
        # An Optax state may hold the weights (lookahead does), and must own a copy.
        memory = jax.tree.map(lambda leaf: leaf + 0 if eqx.is_inexact_array(leaf) else leaf, memory)
        return memory if key is None else reseed(memory, key)

    def update(self, gradient, memory, scale, point):
        update = optax.with_extra_args_support(self.transformation).update
        with jax.numpy_dtype_promotion("standard"):
            return update(
                gradient,
                memory,
                point.parameters,
                value=point.value,
                grad=gradient,
                value_fn=point.objective,
            )
