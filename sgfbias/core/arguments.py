"""Checks of the arguments of `simulate`, and defaults for those that are left out.

Every error says what was given, what was expected and what to do instead.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.brownian import check_keys
from sgfbias.core.cached import shapes_of
from sgfbias.core.checks import as_float, as_whole, check_positive, shown
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.direct import direct
from sgfbias.core.dynamics import FLOW_TIME, AbstractDynamics
from sgfbias.core.problem import Problem
from sgfbias.core.schedule import Clock, UntilTime

DEFAULT_TOLERANCE = 1e-14


def check_model(network: Any, problem: Problem) -> None:
    """Refuse a model whose outputs do not fit the inputs, the loss or the targets.

    **Raises:** `ValueError` that says what does not fit.
    """
    try:
        outputs = shapes_of(_outputs, problem, network)
    except Exception as error:  # a user's model can raise anything
        coupled = "unbound axis name" in str(error)
        raise ValueError(
            f"the model {type(network).__name__} cannot be evaluated on one example of shape "
            f"{problem.inputs.shape[1:]} ({problem.dtype}): {error}"
            + (
                "; a layer couples the examples of a batch, as BatchNorm does in training: use "
                "eqx.nn.inference_mode(model), or LayerNorm or GroupNorm in its place"
                if coupled
                else ""
            )
        ) from error
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise ValueError(
            f"the model {type(network).__name__} must return one array per example, but returns "
            f"{type(outputs).__name__}"
        )
    direct(problem.loss).check(jax.ShapeDtypeStruct(outputs.shape, problem.dtype), problem.targets)
    direct(problem).check_network(network)


def _outputs(problem: Problem, network: Any) -> Any:
    """The outputs of `network` on the inputs of the problem."""
    return problem.outputs(network)


def check_sampled(dynamics: AbstractDynamics, problem: Problem) -> None:
    """Refuse noise of the examples for a problem whose examples are not data.

    **Raises:** `ValueError` that says what to do.
    """
    if not problem.sampled and (dynamics.draws_examples or problem.perturb is not None):
        given = type(dynamics).__name__ if dynamics.draws_examples else "`perturb`"
        raise ValueError(
            "this risk is an expectation: its examples are not data; use GradientFlow or "
            f"GradientDescent, or sample sequences ({type(problem).__name__} was given {given}, "
            "whose noise is that of examples)"
        )


def check_perturbation(dynamics: AbstractDynamics, network: Any, problem: Problem) -> None:
    """Refuse a rule `perturb` that does not fit the dynamics, the model or the data.

    **Raises:** `ValueError` that says what does not fit.
    """
    if problem.perturb is None:
        return
    if dynamics.is_flow:
        raise ValueError(
            f"`perturb` changes the examples of every iteration, and {type(dynamics).__name__} has "
            "no iterations: take StochasticGradientDescent, GradientDescent, SVAG or OptaxDescent, "
            "or write a change without random numbers into the model"
        )
    count = getattr(dynamics, "batch_size", None) or problem.n
    inputs, targets = (
        jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype)
        for a in (problem.inputs, problem.targets)
    )
    shapes_of(problem.perturbed, network, inputs, targets, jax.random.key(0))


def check_penalty(
    dynamics: AbstractDynamics, coordinates: AbstractCoordinates, network: Any, problem: Problem
) -> None:
    """Refuse a penalty that does not fit the coordinates or the model.

    **Raises:** `ValueError` that says what does not fit.
    """
    if problem.penalty is None:
        return
    if dynamics.clock_name != FLOW_TIME:
        raise ValueError(
            f"`penalty` is for dynamics in flow time, but {type(dynamics).__name__} runs by a "
            f"clock of its own, {dynamics.clock_name}: leave the penalty out, or use GradientFlow"
        )
    step = dynamics.penalty_step(jnp.int32(0), problem.dtype)

    def gradient(network: Any) -> Any:
        position = coordinates.encode(network)
        return coordinates.gradient(position, lambda network: problem.penalised(network, step))

    eqx.filter_eval_shape(gradient, network)


def run_keys(dynamics: AbstractDynamics, problem: Problem, keys: Any) -> Array | None:
    """Return the keys of a run, which only random dynamics and problems that perturb
    their examples need and accept.

    **Raises:** `ValueError` that says what to write.
    """
    name = type(dynamics).__name__
    if dynamics.is_stochastic or problem.perturb is not None:
        if keys is None:
            cause = name if dynamics.is_stochastic else "a problem with `perturb`"
            raise ValueError(
                f"{cause} is random and needs keys: write keys=sgfbias.seeds(0, 256) for 256 seeds"
            )
        return check_keys(keys)
    if keys is not None:
        raise ValueError(
            f"{name} is deterministic, so every seed would be the same: leave `keys` out"
        )
    return None


def converged_below(problem: Problem, least: float | None, stop: float | None) -> float | None:
    """The loss at or below which a seed counts as converged, or None if it is unknown.

    This is `stop` if it is given. Otherwise it is slightly above the least loss of the
    problem, `least`, or above the lower bound of the loss if `least` is None. It is
    unknown if neither is known, and if the problem has a penalty.

    **Raises:** `ValueError` for a `stop` that is not finite. If the loss has a lower
    bound, also for a `stop` that is not positive, or that this precision cannot
    resolve.
    """
    floor = direct(problem).resolution()
    stop = None if stop is None else as_float(stop, "stop")
    if stop is None and problem.penalty is not None:
        return None
    if stop is None:
        least = problem.loss.lower_bound if least is None else least
        if least is None:
            return None
        rounding = 100 * float(jnp.finfo(problem.dtype).eps) * abs(least)
        return least + max(DEFAULT_TOLERANCE, 100 * floor, rounding)
    if problem.loss.lower_bound is None:
        if not math.isfinite(stop):
            raise ValueError(f"`stop` must be a finite loss, but is {stop}")
        return stop
    check_positive(stop, "stop")
    if stop < floor:
        raise ValueError(
            f"stop={stop:g} is below the loss that {jnp.dtype(problem.dtype).name} can resolve "
            f"on these targets (about {floor:.1e}), so no seed would ever stop; use a larger "
            "`stop`, or float64 data with jax.config.update('jax_enable_x64', True)"
        )
    least_normal = float(jnp.finfo(problem.dtype).tiny)
    if stop < least_normal:
        raise ValueError(
            f"stop={stop:g} is below the smallest loss that {jnp.dtype(problem.dtype).name} can "
            f"hold ({least_normal:.1e}): smaller ones underflow to 0.0, which says nothing about "
            "how small they are; stop by a larger loss, and read problem.log_risk(network)"
        )
    return float(stop)


def count_steps(steps: Any, t1: Any, dynamics: AbstractDynamics, clock: Clock) -> int:
    """The number of solver steps of a run, from `steps` or from the flow time `t1`.

    **Raises:** `ValueError` unless exactly one of the two is given, and is valid. Also
    for `t1` with a schedule of step sizes, for another number of steps than an
    `UntilTime` has, and for 2^31 or more Brownian increments.
    """
    if (steps is None) == (t1 is None):
        steps, t1 = (None if value is None else shown(value) for value in (steps, t1))
        raise ValueError(f"give either `steps` or `t1`, but got steps={steps}, t1={t1}")
    if steps is None:
        t1 = as_float(t1, "t1")
        check_positive(t1, "t1")
        if clock.width is None:
            raise ValueError(
                "with a schedule of step sizes the steps take different flow times: give `steps` "
                "instead of `t1`"
            )
        ratio = float(t1) / float(clock.width)
        whole = round(ratio)
        # A ratio that is whole up to the rounding of dt (float32 without x64) is taken
        # as whole. Any other ratio is rounded up.
        is_whole = abs(ratio - whole) <= min(1e-6 + 2e-7 * ratio, 0.49)
        steps = max(1, whole if is_whole else math.ceil(ratio))
    steps = as_whole(steps, "steps")
    if (
        isinstance(clock.step_size, UntilTime)
        and clock.ratio is None
        and steps != clock.step_size.steps
    ):
        raise ValueError(
            f"the step size ends after {clock.step_size.steps} iterations (UntilTime), but the "
            f"run has {steps} steps: give both the same `steps`"
        )
    fine = direct(dynamics).brownian_steps(steps)
    if fine >= 2**31:
        many = f"{fine:,}" if fine < 10**15 else f"about 10^{len(str(fine)) - 1}"
        raise ValueError(
            f"`steps` times dt/brownian_dt must be below 2^31, but is {many}: take fewer steps, "
            "or a larger brownian_dt"
        )
    return steps
