"""Which runs can be landed, and the law of their noise near convergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.algorithm import AbstractDescent
from sgfbias.core.checks import is_concrete, shown
from sgfbias.core.descent import SVAG, GradientDescent, StochasticGradientDescent
from sgfbias.core.flow import GradientFlow, StochasticGradientFlow
from sgfbias.core.noise import (
    AbstractNoise,
    IsotropicNoise,
    LabelNoise,
    MeanLossNoise,
    MinibatchNoise,
    NoNoise,
    PerSampleNoise,
    SumOfNoises,
)
from sgfbias.core.sampling import RandomReshuffling, WithReplacement, is_independent
from sgfbias.core.schedule import value_at
from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.moments import NoiseLaw

# A label noise counts as switched off if it is 0 at the end of the run and at so many
# times that number of iterations.
LATER = (1, 2, 3, 5, 10, 100, 1000, 100_000)


class Law(NamedTuple):
    """What the rest of a run follows.

    - `step_size`: gamma of the mean-loss law, or 0 for a gradient flow.
    - `moments`: the law of the second moments, or None for the mean-loss law, whose
      remaining loss integral has a closed form.
    - `discrete`: whether the offset moves along the run.
    - `traced`: whether the landing is being traced, so that it may be differentiated.
    """

    step_size: Any
    moments: NoiseLaw | None = None
    discrete: bool = False
    traced: bool = True


def law_of(runs: Trajectory) -> Law:
    """The law of the rest of runs that can be landed.

    **Raises:** `ValueError` for all other runs, which says why.
    """
    if not isinstance(runs, Trajectory):
        raise ValueError(f"`runs` must be what simulate returns, but is {shown(runs)}")
    dynamics = runs.dynamics
    if not isinstance(runs.network, DiagonalNetwork) or not isinstance(
        runs.problem, SparseRegression
    ):
        raise ValueError(
            "landing is derived for a DiagonalNetwork on a SparseRegression, but these runs are "
            f"of a {type(runs.network).__name__} on a {type(runs.problem).__name__}; simulate "
            "until the loss has converged (stop=...)"
        )
    if runs.own_starts:
        raise ValueError(
            "landing follows the curve of solutions from one start, and every seed of these runs "
            "has a start of its own: land the runs of one start at a time, or simulate until the "
            "loss has converged and select"
        )
    if runs.coordinates == "weights" and not dynamics.weights_only:
        raise ValueError(
            "in weights coordinates log alpha carries the solver's error, so landing on it would "
            "hide that error: use coordinates='mirror' or 'log'"
        )
    if isinstance(dynamics, GradientFlow):
        return Law(0.0)
    if isinstance(dynamics, AbstractDescent):
        moments = _descent(runs, dynamics)
        # Without noise log alpha hardly leaves the start of the mean-loss curve.
        return Law(0.0 if dynamics.sampling is None else dynamics.step_size, moments, True)
    if not isinstance(dynamics, StochasticGradientFlow):
        raise ValueError(
            f"the remaining shrinkage of {type(dynamics).__name__} is not derived, so its runs "
            "cannot be landed: the weights also carry a velocity, which is not part of a "
            "trajectory. Simulate until the loss has converged (stop=...); then the final log "
            "alpha and offset give the solution: "
            "select(problem, runs.final['log_alpha'][i], offset=runs.final['offset'][i])"
        )
    return _flow(runs, dynamics)


def _flow(runs: Trajectory, dynamics: StochasticGradientFlow) -> Law:
    parts = [
        part
        for whole in _parts(dynamics.noise)
        for part in _without_labels(whole, runs)
        if not isinstance(part, NoNoise)
    ]
    if not parts and dynamics.order == 1:
        return Law(0.0)
    if dynamics.is_scheduled:
        raise ValueError(
            "the remaining shrinkage is derived for a constant step size, but step_size is a "
            "schedule: continue from runs.networks with a constant one and land that, or "
            "simulate until the loss has converged (stop=...)"
        )
    if dynamics.order != 1:
        raise ValueError(
            f"the remaining shrinkage under the order-{dynamics.order} flow is not derived, "
            "because its drift contains second derivatives of the loss, so these runs cannot be "
            "landed: simulate until the loss has converged (stop=...) and use "
            "select(problem, runs.final['log_alpha'][i])"
        )
    for part in parts:
        if not isinstance(part, MeanLossNoise | PerSampleNoise | MinibatchNoise):
            raise ValueError(
                f"the remaining shrinkage under {type(part).__name__} is not derived: landing "
                "needs a noise whose covariance is known to be quadratic in the residuals. "
                "Simulate until the loss has converged (stop=...) and use "
                "select(problem, runs.final['log_alpha'][i])"
            )
    if len(parts) == 1 and isinstance(parts[0], MeanLossNoise):
        return Law(dynamics.step_size)
    n, dtype = runs.problem.n, runs.problem.dtype
    gamma = jnp.asarray(dynamics.step_size, dtype) * runs.problem.time_scale
    law = law_of_noise(parts, gamma, n)
    euler = runs.solver == "Euler"
    width = (dynamics.step_size if dynamics.dt is None else dynamics.dt) if euler else 0
    width = jnp.asarray(width, dtype) * runs.problem.time_scale
    return Law(dynamics.step_size, law._replace(width=width))


def law_of_noise(parts: Sequence[AbstractNoise], gamma: Array, n: int) -> NoiseLaw:
    """The law of second moments under a sum of mean-loss, per-sample and minibatch
    noises, in continuous time, for the step size `gamma` at loss scale 1/4.
    """
    sample, mean, cross = (jnp.zeros_like(gamma) for _ in range(3))
    for part in parts:
        if isinstance(part, MeanLossNoise):
            mean = mean + gamma / (4 * n)
        elif isinstance(part, PerSampleNoise):
            sample = sample + gamma / (4 * n)
        elif isinstance(part, MinibatchNoise):
            factor = gamma * part.factor(n, gamma.dtype)
            sample, cross = sample + factor / (4 * n), cross + factor / (4 * n**2)
    return NoiseLaw(sample, mean, cross, jnp.zeros_like(gamma), jnp.zeros_like(gamma))


def law_of_batches(dynamics: AbstractDescent, gamma: Array, n: int) -> NoiseLaw:
    """The law of second moments under a discrete algorithm without momentum and with
    independent batches, for the step size `gamma` at loss scale 1/4.
    """
    width = gamma / dynamics.l
    if dynamics.sampling is None:
        return law_of_noise((), gamma, n)._replace(width=width, drift=width)
    replace = type(dynamics.sampling) is WithReplacement or dynamics.batch_size == 1
    noise = MinibatchNoise(dynamics.batch_size, replace)
    return law_of_noise((noise,), gamma, n)._replace(width=width, drift=width)


def _descent(runs: Trajectory, dynamics: AbstractDescent) -> NoiseLaw:
    name = type(dynamics).__name__
    if not isinstance(dynamics, GradientDescent | StochasticGradientDescent | SVAG):
        raise ValueError(
            f"the remaining shrinkage of {name} is not derived, because its transformation of the "
            "gradient leaves the law of log alpha: simulate until the loss has converged"
        )
    if dynamics.momentum is not None:
        raise ValueError(
            f"the remaining shrinkage of {name} with momentum is not derived, because the rest of "
            "the run also depends on the velocity, which is not part of a trajectory: simulate "
            "until the loss has converged (stop=...); then "
            "select(problem, runs.final['log_alpha'][i], offset=runs.final['offset'][i])"
        )
    if not is_independent(dynamics.sampling) and not isinstance(
        dynamics.sampling, RandomReshuffling
    ):
        raise ValueError(
            f"the remaining shrinkage under {type(dynamics.sampling).__name__} is not derived: it "
            "is for batches of the given size that are independent of each other. Use "
            "sampling='with_replacement', or simulate until the loss has converged (stop=...)"
        )
    if not is_independent(dynamics.sampling):
        raise ValueError(
            "the remaining shrinkage under random reshuffling is not derived, because the batches "
            "of an epoch depend on each other: use sampling='without_replacement', or simulate "
            "until the loss has converged (stop=...)"
        )
    if callable(dynamics.step_size):
        raise ValueError(
            "the remaining shrinkage is derived for a constant step size, but step_size is a "
            "schedule: continue from runs.networks with a constant one and land that, or "
            "simulate until the loss has converged (stop=...)"
        )
    if dynamics.label_noise is not None and not _is_off(dynamics.label_noise, runs):
        raise ValueError(
            "label noise is on, so the algorithm never settles and there is no limit to land on: "
            "continue from runs.networks without label noise and land that"
        )
    n, dtype = runs.problem.n, runs.problem.dtype
    gamma = jnp.asarray(dynamics.step_size, dtype) * runs.problem.time_scale
    return law_of_batches(dynamics, gamma, n)


def _parts(noise: AbstractNoise) -> tuple[AbstractNoise, ...]:
    return noise.parts if isinstance(noise, SumOfNoises) else (noise,)


def _without_labels(noise: AbstractNoise, runs: Trajectory) -> tuple[AbstractNoise, ...]:
    """What is left of a noise once its label noise has been switched off."""
    if isinstance(noise, IsotropicNoise):
        raise ValueError(
            "isotropic noise leaves the row space of the data, so the limit is not the "
            "theorem's: simulate until convergence"
        )
    if not isinstance(noise, LabelNoise):
        return (noise,)
    if not _is_off(noise.delta, runs):
        raise ValueError(
            "label noise is on, so the flow never settles and there is no limit to land on: "
            "continue from runs.networks with MeanLossNoise() and land that"
        )
    return (MeanLossNoise(),) if noise.mean_loss else ()


def _is_off(level: Any, runs: Trajectory) -> bool:
    """Whether a level of label noise is 0 at the end of the run and at all times tried
    after it.
    """
    if not callable(level):
        return is_concrete(level) and float(level) == 0
    if not is_concrete(runs.steps):
        raise ValueError(
            "whether a schedule of label noise has reached 0 cannot be seen while the run is being "
            "traced: land outside jit, vmap and grad, or continue from runs.networks without "
            "label noise and land that"
        )
    last = 0 if runs.steps is None else int(runs.steps[-1])
    iterations = [
        min(int(runs.dynamics.clock.iteration(jnp.int32(last))) * k, 2**31 - 1) for k in LATER
    ]
    values = [value_at(level, jnp.int32(k), jnp.result_type(float)) for k in iterations]
    return all(is_concrete(value) and float(value) == 0 for value in values)
