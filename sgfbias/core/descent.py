"""The discrete algorithms the flows model, on the flows' clock: one iteration is `step_size` units of flow time.

An iteration moves the weights by `pull(-gamma s l'/n)` with random example weights s of mean 1, which is an Euler step of a term whose
increment depends on the integer step only; so the same engine runs flows and algorithms.
"""

from __future__ import annotations

from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import SAMPLING_STREAM
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.flow import AbstractDynamics, as_number
from sgfbias.core.problem import Problem


class GradientDescent(AbstractDynamics):
    """`w <- w - gamma grad L(w)`, in the weights.

    **Arguments:** `step_size`: gamma > 0.
    """

    step_size: Array

    def __init__(self, step_size: Any):
        self.step_size = as_number(step_size, "step_size")

    @property
    def is_stochastic(self):
        return False

    @property
    def is_flow(self):
        return False

    @property
    def unit(self):
        return self.step_size

    def build(self, coordinates, problem, position, key, offset, solver):
        _refuse_solver(self, solver)
        return _IterationTerm(coordinates, problem, self.step_size.astype(problem.dtype), None, offset, 0, "full")


class StochasticGradientDescent(AbstractDynamics):
    """`w <- w - gamma/b sum_{i in batch} grad l_i(w)`, in the weights, the batch drawn with replacement at every step.

    **Arguments:**

    - `step_size`: gamma > 0. `batch_size`: b >= 1.
    - `integral`: what `loss_integral` sums before each iteration: `"full"`, the loss on all examples (one forward pass over the data per
      iteration); `"batch"`, the loss on the batch, an unbiased estimate that costs nothing; `"examples"`, every example's own loss, of
      which `final["example_integral"]` keeps the n sums and `loss_integral` is the mean.
    """

    step_size: Array
    batch_size: int = eqx.field(static=True)
    integral: str = eqx.field(static=True)

    def __init__(self, step_size: Any, batch_size: Any = 1, *, integral: Literal["full", "batch", "examples"] = "full"):
        self.step_size = as_number(step_size, "step_size")
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number >= 1, but is {batch_size!r}")
        if integral not in ("full", "batch", "examples"):
            raise ValueError(f"`integral` must be 'full', 'batch' or 'examples', but is {integral!r}")
        self.batch_size, self.integral = int(batch_size), integral

    @property
    def is_flow(self):
        return False

    @property
    def unit(self):
        return self.step_size

    def build(self, coordinates, problem, position, key, offset, solver):
        _refuse_solver(self, solver)
        stream = jax.random.fold_in(key, SAMPLING_STREAM)
        gamma = self.step_size.astype(problem.dtype)
        return _IterationTerm(coordinates, problem, gamma, stream, offset, self.batch_size, self.integral)


def sample_batch(stream: Array, step: Array, batch_size: int, n: int) -> Array:
    """Indices (batch_size,) of iteration `step`, uniform with replacement: a function of the absolute step only."""
    return jax.random.randint(jax.random.fold_in(stream, step), (batch_size,), 0, n)


class _IterationTerm(dfx.AbstractTerm):
    coordinates: AbstractCoordinates
    problem: Problem
    gamma: Array
    stream: Array | None
    offset: Array
    batch_size: int = eqx.field(static=True)  # 0: all examples
    integral: str = eqx.field(static=True)

    def contr(self, t0, t1, **kwargs):
        if self.stream is None:
            return ()
        step = self.offset + jnp.round(t0).astype(jnp.int32)
        return sample_batch(self.stream, step, self.batch_size, self.problem.n)

    def vf_prod(self, t, y, args, control):
        position, _ = y
        problem, index = self.problem, control
        inputs, targets = problem.inputs, problem.targets
        if self.stream is not None:
            inputs, targets = inputs[index], targets[index]
        outputs, pull = self.coordinates.linearise(position, inputs)
        step = pull(problem.loss.derivative(outputs, targets) * (-self.gamma / inputs.shape[0]))
        if self.integral != "batch" and self.stream is not None:
            outputs, targets = self.coordinates.linearise(position, problem.inputs)[0], problem.targets
        losses = problem.loss(outputs, targets)
        return step, (losses if self.integral == "examples" else jnp.mean(losses)) * self.gamma

    def vf(self, t, y, args):
        return y

    def prod(self, vf, control):
        return self.vf_prod(None, vf, None, control)


def _refuse_solver(dynamics: AbstractDynamics, solver: Any) -> None:
    if not isinstance(solver, dfx.Euler):
        raise ValueError(f"{type(dynamics).__name__} is an iteration, not an equation: `solver` must be left out, but is {solver!r}")
