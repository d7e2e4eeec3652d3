"""Hyperparameters that vary along a run, and the clock that turns steps into flow time.

A schedule is any function of the number of the iteration, 0, 1, 2, ..., such as one of
Optax. A flow evaluates it at the whole iteration that it models at the time. Iteration
k of the algorithm and the piece of the flow that models it therefore have the same step
size, and take the same flow time.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_real, as_whole, check_positive, is_concrete, numpy_for

# The iterations at which a schedule is evaluated at once.
MOST_AT_ONCE = 2**20


def as_number(value: Any, name: str, *, zero_allowed: bool = False) -> Array:
    """Return a positive scalar hyperparameter as an array.

    As an array it can change without a new compilation.

    **Raises:** `ValueError` if it is not a scalar, not finite or not positive. With
    `zero_allowed` it may be 0.
    """
    array = as_real(value, name, more="; run several values with jax.vmap or a loop")
    check_positive(array, name, zero_allowed=zero_allowed)
    return array


def as_scheduled(value: Any, name: str, *, zero_allowed: bool = False) -> Any:
    """Return a positive number as an array, or a schedule as it is.

    **Raises:** `ValueError` for a number that `as_number` refuses, and for a schedule
    that does not return a non-negative scalar at iteration 0.
    """
    if not callable(value):
        return as_number(value, name, zero_allowed=zero_allowed)
    try:
        first = jnp.asarray(_call(value, jnp.int32(0)))
    except Exception as error:
        raise ValueError(
            f"`{name}` as a schedule must be a function of the iteration, e.g. "
            f"optax.cosine_decay_schedule(0.1, 1000), but calling it at iteration 0 failed: {error}"
        ) from error
    if first.ndim != 0:
        raise ValueError(
            f"`{name}` as a schedule must return a scalar, but at iteration 0 it returns shape "
            f"{first.shape}"
        )
    check_positive(first, f"{name}(0)", zero_allowed=True)
    return value


def value_at(value: Any, iteration: Array, dtype: Any) -> Array:
    """The value of a number or a schedule at an iteration."""
    return jnp.asarray(_call(value, iteration) if callable(value) else value).astype(dtype)


def _call(schedule: Any, iteration: Array) -> Any:
    """The value of a schedule at an iteration."""
    # Schedules divide integers by integers, which strict type promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        return schedule(iteration)


class UntilTime(eqx.Module):
    """The constant step size gamma, except for the last step, which ends at time `t1`.

    It is a schedule for runs of a fixed final time whatever gamma. A derivative of
    `StochasticGradientDescent(UntilTime(gamma, t1=10.0, steps=200))` in gamma is at a
    fixed time, of the path that joins the iterates by straight lines. With the number
    gamma as the step size, a derivative is at a fixed number of steps, so that the
    final time changes with gamma.

    **Arguments:**

    - `step_size`: gamma > 0.
    - `t1`: positive. The sum of all step sizes, which is the final flow time. With
      momentum b a step of gamma takes a flow time of `gamma / (1 - b)`, but `t1` is
      still the sum of the step sizes.
    - `steps`: a whole number >= 1. The number of steps.

    **Raises:** `ValueError` if the last step is not between 0 and 2 gamma. If gamma is
    being traced this cannot be checked. The last step is then NaN, which marks the run
    as non-finite.
    """

    step_size: Array
    t1: Array
    steps: int = eqx.field(static=True)

    def __init__(self, step_size: Any, *, t1: Any, steps: int):
        self.step_size, self.t1 = as_number(step_size, "step_size"), as_number(t1, "t1")
        self.steps = steps = as_whole(steps, "steps")
        if is_concrete((self.step_size, self.t1)) and not bool(
            jnp.isfinite(self(jnp.int32(steps - 1)))
        ):
            gamma, end = float(self.step_size), float(self.t1)
            raise ValueError(
                f"{steps} steps of {gamma:g} cannot end at t1={end:g}: the last one would be "
                f"{end - (steps - 1) * gamma:g} long, but must be between 0 and {2 * gamma:g}; "
                f"take steps={max(round(end / gamma), 1)}"
            )

    def __call__(self, iteration: Array) -> Array:
        """The step size at `iteration`."""
        last = self.t1 - (self.steps - 1) * self.step_size
        last = jnp.where((last >= 0) & (last <= 2 * self.step_size), last, jnp.nan)
        return jnp.where(iteration == self.steps - 1, last, self.step_size)


class Clock(eqx.Module):
    """The clock of a run, which gives the flow time of every solver step.

    - `step_size`: the step size of the iteration, a number or a schedule.
    - `width`: the flow time per solver step if it is constant, or None.
    - `factor`: without `width`, a step takes a flow time of `step_size * factor`.
    - `ratio`: the iterations per solver step: a numerator and a denominator, (2,) whole
      numbers, or a real number, or None for one.
    """

    step_size: Any
    width: Array | None
    factor: Any
    ratio: Any

    def __init__(
        self, step_size: Any, *, width: Array | None = None, factor: Any = 1.0, ratio: Any = None
    ):
        self.step_size, self.factor, self.ratio = step_size, factor, ratio
        scheduled = callable(step_size)
        given = scheduled or width is not None
        self.width = (
            width
            if given
            else step_size
            if isinstance(factor, float) and factor == 1
            else step_size * factor
        )

    def iteration(self, step: Array) -> Array:
        """The whole iteration that solver step `step` belongs to."""
        if self.ratio is None:
            return step
        if self.ratio.ndim == 0:
            return jnp.floor(step.astype(self.ratio.dtype) * self.ratio + 1e-4).astype(jnp.int32)
        up, down = self.ratio
        return (step // down) * up + (step % down) * up // down

    def gamma(self, step: Array, dtype: Any) -> Array:
        """The step size of the iteration that solver step `step` belongs to."""
        return value_at(self.step_size, self.iteration(step), dtype)

    def span(self, step: Array, dtype: Any) -> Array:
        """The flow time that solver step `step` takes."""
        if self.width is not None:
            return jnp.asarray(self.width).astype(dtype)
        return self.gamma(step, dtype) * jnp.asarray(self.factor, dtype)

    def times(self, steps: np.ndarray, dtype: Any) -> Any:
        """The flow time at which each of the given increasing `steps` begins.

        The step sizes of a schedule are summed in float64, unless they are traced.
        """
        if self.width is not None:
            host = numpy_for(self.width)
            return host.asarray(steps, dtype) * host.asarray(self.width, dtype)
        spans = _spans(self, int(steps[-1]), dtype)
        if is_concrete(spans):
            return np.concatenate([[0.0], np.cumsum(np.asarray(spans, np.float64))])[steps]
        return jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(spans)])[steps]


def check_schedule(schedule: Any, name: str, iterations: int) -> None:
    """Refuse a schedule that is negative, NaN or infinite anywhere in a run.

    **Arguments:**

    - `schedule`: a function of the iteration that closes over no traced values. Its
      value is a number, or a PyTree of numbers.
    - `name`: what it is called in an error.
    - `iterations`: the number of iterations of the run.

    **Raises:** `ValueError` that names the first such iteration, and the value there.
    """
    for start in range(0, iterations, MOST_AT_ONCE):
        # A few sizes only, so that runs of other lengths are not compiled again.
        count = min(MOST_AT_ONCE, 1 << max(iterations - start - 1, 63).bit_length())
        found = _scheduled(schedule, jnp.int32(start), count)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            values = np.asarray(leaf)[: iterations - start]
            bad = ~(np.isfinite(values) & (values >= 0))
            if bad.any():
                first = int(np.argwhere(bad)[0][0])
                raise ValueError(
                    f"`{name}{jax.tree_util.keystr(path)}` as a schedule must be non-negative and "
                    f"finite in every iteration, but at iteration {start + first} it is "
                    f"{values[first]}"
                )


@eqx.filter_jit
def _scheduled(schedule: Any, start: Array, count: int) -> Any:
    """The values of a schedule at `count` iterations from `start`."""

    def at(k: Array) -> Any:
        leaves = jax.tree.map(jnp.asarray, _call(schedule, k))
        return eqx.filter(leaves, lambda leaf: jnp.issubdtype(leaf.dtype, jnp.number))

    return jax.vmap(at)(start + jnp.arange(count, dtype=jnp.int32))


@eqx.filter_jit
def _spans(clock: Clock, count: int, dtype: Any) -> Array:
    """The flow times that the first `count` solver steps take."""
    return jax.vmap(lambda k: clock.span(k, dtype))(jnp.arange(count, dtype=jnp.int32))


def iterations_per_step(dt: Any, step_size: Any) -> Array:
    """The ratio `dt / step_size` for a `Clock`, as an array.

    It is a numerator and a denominator, (2,) whole numbers. It is a real number if `dt`
    or `step_size` is being traced, or if no denominator up to 4096 gives the ratio. As
    an array it can change without a new compilation.
    """
    if is_concrete((dt, step_size)):
        fraction = Fraction(float(dt) / float(step_size)).limit_denominator(4096)
        if (
            0 < fraction.numerator < 2**31
            and abs(float(fraction) * float(step_size) / float(dt) - 1) < 1e-6
        ):
            return jnp.asarray([fraction.numerator, fraction.denominator], jnp.int32)
    return jnp.asarray(dt / step_size, jnp.float32)
