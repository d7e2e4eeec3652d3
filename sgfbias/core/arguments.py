"""The arguments of `simulate`, checked and completed: each error says what was given, what was expected and what to do instead."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import check_positive, is_concrete
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.problem import Problem
from sgfbias.core.schedule import Clock, UntilTime
from sgfbias.core.traced import shapes_of

DEFAULT_TOLERANCE = 1e-14


def check_model(network: Any, problem: Problem) -> None:
    """Refuse a model whose outputs do not fit inputs, loss and targets.

    **Raises:** `ValueError` with what does not.
    """
    try:
        outputs = shapes_of(problem.outputs, network)
    except (TypeError, ValueError, RuntimeError) as error:  # the last: dropout without a key
        raise ValueError(
            f"the model {type(network).__name__} cannot be evaluated on one example of shape {problem.inputs.shape[1:]} "
            f"({problem.dtype}): {error}"
        ) from error
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise ValueError(f"the model {type(network).__name__} must return one array per example, but returns {type(outputs).__name__}")
    problem.loss.check(jax.ShapeDtypeStruct(outputs.shape, problem.dtype), problem.targets)


def run_keys(dynamics: AbstractDynamics, keys: Any) -> Array | None:
    """The keys of a run: needed where it is random, refused where it is not.

    **Raises:** `ValueError` with what to write.
    """
    name = type(dynamics).__name__
    if dynamics.is_stochastic:
        if keys is None:
            raise ValueError(f"{name} is random and needs keys: write keys=sgfbias.seeds(0, 256) for 256 seeds")
        return check_keys(keys)
    if keys is not None:
        raise ValueError(f"{name} is deterministic, every seed would be the same: leave `keys` out")
    return None


def converged_below(problem: Problem, least: float | None, stop: float | None) -> float | None:
    """Loss at or below which a seed counts as converged; None if nothing is known of the least loss.

    **Raises:** `ValueError` for a `stop` that no run can reach.
    """
    floor = problem.resolution()
    if stop is None:
        least = problem.loss.lower_bound if least is None else least
        return (
            None if least is None else least + max(DEFAULT_TOLERANCE, 100 * floor, 100 * float(jnp.finfo(problem.dtype).eps) * abs(least))
        )
    if problem.loss.lower_bound is None:
        if not math.isfinite(stop):
            raise ValueError(f"`stop` must be a finite loss, but is {stop}")
        return float(stop)
    check_positive(stop, "stop")
    if stop < floor:
        raise ValueError(
            f"stop={stop:g} is below the loss that {jnp.dtype(problem.dtype).name} can resolve on these targets (about {floor:.1e}), so no "
            "seed would ever stop; use a larger `stop`, or float64 data with jax.config.update('jax_enable_x64', True)"
        )
    return float(stop)


def count_steps(steps: Any, t1: Any, dynamics: Any, clock: Clock) -> int:
    """Number of solver steps, from `steps` or `t1`.

    **Raises:** `ValueError` unless exactly one of them is given and makes sense.
    """
    if (steps is None) == (t1 is None):
        raise ValueError(f"give either `steps` or `t1`, but got steps={steps}, t1={t1}")
    if steps is None:
        check_positive(t1, "t1")
        if clock.width is None:
            raise ValueError("with a schedule of step sizes the steps take different times: give `steps` instead of `t1`")
        ratio = float(t1) / float(clock.width)
        whole = round(ratio)
        # A whole number of steps up to rounding of dt (float32 without x64), else the next one.
        steps = max(1, whole if abs(ratio - whole) <= min(1e-6 + 2e-7 * ratio, 0.49) else math.ceil(ratio))
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"`steps` must be a whole number >= 1, but is {steps!r}")
    if isinstance(clock.step_size, UntilTime) and clock.ratio is None and steps != clock.step_size.steps:
        raise ValueError(
            f"the step size ends after {clock.step_size.steps} iterations (UntilTime), but the run has {steps}: give both the same `steps`"
        )
    substeps = getattr(dynamics, "substeps", None)
    fine = steps * (1 if substeps is None or not is_concrete(substeps) else int(substeps))
    if fine >= 2**31:
        raise ValueError(f"`steps` times dt/brownian_dt must stay below 2^31, but is {fine:,}")
    return int(steps)
