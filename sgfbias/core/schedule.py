"""Hyperparameters that vary along a run, and the clock that turns steps into flow time.

A schedule is any function of the number of the iteration, 0, 1, 2, ..., so any Optax schedule. Flows read it at the whole iteration they
are in: iteration k of the algorithm and the piece of the flow that models it have one step size and take one flow time.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import check_positive, is_concrete, numpy_for


def as_number(value: Any, name: str, *, zero_allowed: bool = False) -> Array:
    """A positive scalar hyperparameter as an array, so that changing it does not recompile.

    **Raises:** `ValueError` if it is not a scalar, not finite or not positive.
    """
    array = jnp.asarray(value, dtype=jnp.result_type(float))
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be a scalar, but has shape {array.shape}; run several values with jax.vmap or a loop")
    check_positive(array, name, zero_allowed=zero_allowed)
    return array


def as_scheduled(value: Any, name: str, *, zero_allowed: bool = False) -> Any:
    """A positive number, or a schedule, which is any function of the iteration.

    **Raises:** `ValueError` for a number as `as_number`, and for a schedule that does not return a non-negative scalar at iteration 0.
    """
    if not callable(value):
        return as_number(value, name, zero_allowed=zero_allowed)
    try:
        first = jnp.asarray(_call(value, jnp.int32(0)))
    except TypeError as error:
        raise ValueError(
            f"`{name}` as a schedule must be a function of the iteration, e.g. optax.cosine_decay_schedule(0.1, 1000): {error}"
        ) from error
    if first.ndim != 0:
        raise ValueError(f"`{name}` as a schedule must return a scalar, but at iteration 0 it returns shape {first.shape}")
    check_positive(first, f"{name}(0)", zero_allowed=True)
    return value


def value_at(value: Any, iteration: Array, dtype: Any) -> Array:
    """A number or a schedule at an iteration."""
    return jnp.asarray(_call(value, iteration) if callable(value) else value).astype(dtype)


def _call(schedule: Any, iteration: Array) -> Any:
    with jax.numpy_dtype_promotion("standard"):  # schedules divide whole numbers by whole numbers
        return schedule(iteration)


class UntilTime(eqx.Module):
    """The constant step size gamma, but for the last of `steps` steps, which ends at flow time `t1`: a run of fixed time whatever gamma.

    `StochasticGradientDescent(UntilTime(gamma, t1=10.0, steps=200))` differentiated in gamma is the derivative at fixed time of the iterates,
    joined by straight lines; with gamma alone it is the one at fixed steps, whose flow time moves along. With momentum b a step of gamma takes
    `gamma / (1 - b)` of flow time, and `t1` is still the sum of step sizes.

    **Arguments:** `step_size`: gamma > 0. `t1`: the sum of all step sizes. `steps`: how many, a whole number.

    **Raises:** `ValueError` if the last step is not between 0 and 2 gamma. Where gamma is being traced that cannot be told, and the step
    is NaN instead, which marks the run as non-finite.
    """

    step_size: Array
    t1: Array
    steps: int = eqx.field(static=True)

    def __init__(self, step_size: Any, *, t1: Any, steps: int):
        self.step_size, self.t1 = as_number(step_size, "step_size"), as_number(t1, "t1")
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
            raise ValueError(f"`steps` must be a whole number >= 1, but is {steps!r}")
        self.steps = int(steps)
        if is_concrete((self.step_size, self.t1)) and not bool(jnp.isfinite(self(jnp.int32(steps - 1)))):
            gamma, end = float(self.step_size), float(self.t1)
            raise ValueError(
                f"{steps} steps of {gamma:g} cannot end at t1={end:g}: the last one would be {end - (steps - 1) * gamma:g} long, and must be "
                f"between 0 and {2 * gamma:g}; take steps={max(round(end / gamma), 1)}"
            )

    def __call__(self, iteration: Array) -> Array:
        """The step size of an iteration."""
        last = self.t1 - (self.steps - 1) * self.step_size
        last = jnp.where((last >= 0) & (last <= 2 * self.step_size), last, jnp.nan)
        return jnp.where(iteration == self.steps - 1, last, self.step_size)


class Clock(eqx.Module):
    """Flow time of solver steps.

    - `step_size`: of the iteration, a number or a schedule. `width`: flow time per solver step where that is constant, else None.
    - `factor`: without `width`, a step takes `step_size * factor` of flow time. `ratio`: iterations per solver step, None for one, a
      whole numerator and denominator, or a real number.
    """

    step_size: Any
    width: Array | None
    factor: Any
    ratio: Any

    def __init__(self, step_size: Any, *, width: Array | None = None, factor: Any = 1.0, ratio: Any = None):
        self.step_size, self.factor, self.ratio = step_size, factor, ratio
        scheduled = callable(step_size)
        given = scheduled or width is not None
        self.width = width if given else step_size if isinstance(factor, float) and factor == 1 else step_size * factor

    def iteration(self, step: Array) -> Array:
        """The whole iteration that solver step `step` belongs to."""
        if self.ratio is None:
            return step
        if self.ratio.ndim == 0:
            return jnp.floor(step.astype(self.ratio.dtype) * self.ratio + 1e-4).astype(jnp.int32)
        up, down = self.ratio
        return (step // down) * up + (step % down) * up // down

    def gamma(self, step: Array, dtype: Any) -> Array:
        """Step size of the iteration that solver step `step` belongs to."""
        return value_at(self.step_size, self.iteration(step), dtype)

    def span(self, step: Array, dtype: Any) -> Array:
        """Flow time that solver step `step` takes."""
        if self.width is not None:
            return jnp.asarray(self.width).astype(dtype)
        return self.gamma(step, dtype) * jnp.asarray(self.factor, dtype)

    def times(self, steps: np.ndarray, dtype: Any) -> Any:
        """Flow time at the beginning of each of the given increasing steps; a schedule's are summed in float64 where they are concrete."""
        if self.width is not None:
            host = numpy_for(self.width)
            return host.asarray(steps, dtype) * host.asarray(self.width, dtype)
        spans = _spans(self, int(steps[-1]), dtype)
        if is_concrete(spans):
            return np.concatenate([[0.0], np.cumsum(np.asarray(spans, np.float64))])[steps]
        return jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(spans)])[steps]


@eqx.filter_jit
def _spans(clock: Clock, count: int, dtype: Any) -> Array:
    return jax.vmap(lambda k: clock.span(k, dtype))(jnp.arange(count, dtype=jnp.int32))


def iterations_per_step(dt: Any, step_size: Any) -> Array:
    """`dt / step_size`: a numerator and a denominator, (2,) whole numbers, as arrays so that another dt does not recompile; a real number
    while one of them is being traced, or beyond 1/4096."""
    if is_concrete((dt, step_size)):
        fraction = Fraction(float(dt) / float(step_size)).limit_denominator(4096)
        if fraction and abs(float(fraction) * float(step_size) / float(dt) - 1) < 1e-6:
            return jnp.asarray([fraction.numerator, fraction.denominator], jnp.int32)
    return jnp.asarray(dt / step_size, jnp.float32)
