"""What the discrete algorithms share: an iteration, with the clock of the flows.

One iteration pulls the cotangent `-gamma s l'/n` back to the weights, where s are
random weights of the examples, with mean 1. It moves the weights along the result by an
update rule: plainly, with momentum, by an Optax transformation, or by a rule of the
user. One solver runs all algorithms, and each of its steps is one iteration.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.coordinates import WithMemory
from sgfbias.core.direct import direct
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.iteration import Iteration, IterationTerm
from sgfbias.core.project import check_project
from sgfbias.core.rules import AbstractRule, Momentum
from sgfbias.core.sampling import AbstractSampling
from sgfbias.core.schedule import Clock, as_scheduled
from sgfbias.core.weights import Weights


class AbstractDescent(AbstractDynamics):
    """An iteration of the weights: its examples, its label noise, and its update rule.

    The public subclasses set these options for full batches, for minibatches, for two
    minibatches with coefficients (SVAG), for an Optax transformation, and for a rule of
    the user.
    """

    step_size: Any
    label_noise: Any
    rule: AbstractRule
    # None: all examples.
    sampling: AbstractSampling | None
    project: Any
    l: int = eqx.field(static=True)
    integral: str = eqx.field(static=True)

    def __init__(
        self,
        step_size: Any,
        rule: AbstractRule,
        *,
        sampling: AbstractSampling | None = None,
        label_noise: Any = None,
        project: Any = None,
        l: int = 1,
        integral: str = "full",
    ):
        self.step_size = as_scheduled(step_size, "step_size")
        if label_noise is not None:
            label_noise = as_scheduled(label_noise, "label_noise", zero_allowed=True)
        self.label_noise = label_noise
        if integral not in ("full", "batch", "examples"):
            raise ValueError(
                f"`integral` must be 'full', 'batch' or 'examples', but is {integral!r}"
            )
        self.rule, self.sampling, self.project = rule, sampling, check_project(project)
        self.l, self.integral = l, integral

    @property
    def batch_size(self) -> int | None:
        """The number of examples of an iteration, or None for all of them."""
        return None if self.sampling is None else self.sampling.batch_size

    @property
    def momentum(self) -> Array | None:
        """The momentum b, or None for another rule."""
        return self.rule.momentum if isinstance(self.rule, Momentum) else None

    @property
    def nesterov(self) -> bool:
        """Whether the momentum is Nesterov's."""
        return isinstance(self.rule, Momentum) and self.rule.nesterov

    @property
    def is_stochastic(self):
        return self.draws_examples or self.rule.is_stochastic

    @property
    def draws_examples(self):
        return self.sampling is not None or self.label_noise is not None

    @property
    def is_flow(self):
        return False

    @property
    def moves_along_gradients(self):
        return self.rule.linear

    @property
    def clock(self):
        factor = 1.0 if self.momentum is None else 1 / (1 - self.momentum)
        ratio = None if self.l == 1 else jnp.asarray([1, self.l], jnp.int32)
        return Clock(self.step_size, factor=factor if self.l == 1 else factor / self.l, ratio=ratio)

    def default_solver(self, dtype, size):
        return Iteration()

    def state_coordinates(self, coordinates):
        if not self.rule.observed:
            return coordinates
        return WithMemory(coordinates, _Kept(self.rule, coordinates))

    def build(self, coordinates, problem, position, key, offset, solver):
        if not isinstance(solver, Iteration):
            raise ValueError(
                f"{type(self).__name__} is a discrete algorithm, not an equation, so `solver` must "
                f"be left out, but is {solver!r}"
            )
        base = coordinates.base if isinstance(coordinates, WithMemory) else coordinates
        if self.project is not None and not isinstance(base, Weights):
            raise ValueError(
                "`project` is for models that move in their own weights, and "
                f"{type(base).__name__} is another kind of coordinates: leave it out"
            )
        if self.rule.logarithmic and problem.penalty is not None:
            raise ValueError(
                f"{type(self.rule).__name__} moves along the gradient of log L, to which a penalty "
                "on L cannot be added: leave out the penalty of the problem"
            )
        return IterationTerm(self, coordinates, problem, key, offset)

    def check(self, n: int) -> None:
        """Refuse batches that do not fit n examples.

        **Raises:** `ValueError` that says what fits.
        """
        if self.sampling is not None:
            direct(self.sampling).check(n)

    def schedules(self):
        return (*super().schedules(), *((self.label_noise,) if callable(self.label_noise) else ()))

    def rows_per_step(self, n):
        # Integrating the loss of all examples takes a pass over all n in every
        # iteration.
        return n if self.batch_size is None or self.integral != "batch" else self.batch_size

    def integral_shape(self, n):
        return (n,) if self.integral == "examples" else ()


class _Kept(eqx.Module):
    """The memory of a rule at the start, for coordinates that hold it."""

    rule: AbstractRule
    coordinates: Any

    def memory(self, position: Any) -> Any:
        """The memory before the first iteration from `position`."""
        return self.rule.init(position if self.rule.linear else self.coordinates.split(position)[0])
