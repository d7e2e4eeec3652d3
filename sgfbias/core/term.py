"""The Diffrax terms of the flows, in which drift and noise share one pass over the
data.
"""

from __future__ import annotations

import typing
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.brownian import is_shape
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.noise import AbstractNoise, safe_sqrt
from sgfbias.core.problem import Problem
from sgfbias.core.schedule import Clock


class StepControl(eqx.Module):
    """The control of one solver step.

    It has the flow time of the step, its Brownian increments (None for none), and the
    step size and the noise model of its iteration. It has the number of the iteration
    if the problem has a penalty.
    """

    time: Array
    dB: Any
    step_size: Array
    noise: AbstractNoise
    iteration: Array | None = None


def gradient_step(
    coordinates: AbstractCoordinates, problem: Problem, y: Any, dt: Array, step: Any
) -> Any:
    """The tangent `-grad (L + penalty) dt` and the number `L dt` at
    `y = (position, integral)`.

    `step` is given to the penalty.
    """
    outputs, vjp = coordinates.linearise(y[0], problem.inputs)
    cotangent = problem.loss.derivative(outputs, problem.targets) * (-dt / problem.n)
    tangent = with_penalty(vjp(cotangent), coordinates, problem, y[0], -dt, step)
    return tangent, jnp.mean(problem.loss(outputs, problem.targets)) * dt


def with_penalty(
    tangent: Any,
    coordinates: AbstractCoordinates,
    problem: Problem,
    position: Any,
    factor: Any,
    step: Any,
) -> Any:
    """The tangent plus `factor` times the gradient of the problem's penalty, if it has
    one.
    """
    if problem.penalty is None:
        return tangent
    gradient = coordinates.gradient(position, lambda network: problem.penalised(network, step))
    return add(tangent, scale(gradient, factor))


class FlowTerm(dfx.AbstractTerm):
    """The term of a stochastic flow, with drift and noise in one product.

    The cotangent of a step is `-(l'/n) dt + S dB`, where S is the square root of the
    covariance of the noise, and it is pulled back once. The state is
    `(position, integral)`, where `integral` is the running loss integral `int L dt`.
    """

    noise: AbstractNoise
    coordinates: AbstractCoordinates
    problem: Problem
    # A StepBrownianPath.
    path: Any
    clock: Clock
    offset: Array
    stratonovich: bool = eqx.field(static=True)
    order: int = eqx.field(static=True)

    def contr(self, t0, t1, **kwargs):
        control = self.control(self.offset + jnp.round(t0).astype(jnp.int32))
        root = safe_sqrt(control.time)
        dB = jax.tree.map(lambda z: z * root, self.path.evaluate(t0, t1))
        return eqx.tree_at(
            lambda s: (s.time, s.dB),
            control,
            (control.time * (t1 - t0), dB),
            is_leaf=lambda x: x is None,
        )

    def control(self, step: Any) -> StepControl:
        """The control of `step` without Brownian increments.

        Schedules are constant during a step.
        """
        dtype = self.problem.dtype
        iteration = self.clock.iteration(step)
        noise = self.noise.at(iteration)
        counted = None if self.problem.penalty is None else iteration
        span, gamma = self.clock.span(step, dtype), self.clock.gamma(step, dtype)
        return StepControl(span, None, gamma, noise, counted)

    def vf_prod(self, t, y, args, control):
        return self._increment(y, control)

    def drift_prod(self, t: Any, y: Any, args: Any, control: StepControl) -> Any:
        """The change of the state in a step without its noise."""
        return self._increment(
            y, eqx.tree_at(lambda s: s.dB, control, None, is_leaf=lambda x: x is None)
        )

    def drift_and_noise(self, t: Any, y: Any, args: Any, control: StepControl) -> tuple[Any, Any]:
        """The two parts whose sum is the change of the state in a step.

        They come from one evaluation of the model.
        """
        still = eqx.tree_at(lambda s: s.dB, control, None, is_leaf=lambda x: x is None)
        evaluated = self.coordinates.linearise(y[0], self.problem.inputs)
        drift = self._increment(y, still, evaluated)
        return drift, (
            self.diffusion(y[0], control.dB, control, evaluated),
            jnp.zeros_like(drift[1]),
        )

    # Diffrax's Runge-Kutta and Euler steps only call `vf_prod`. `vf` and `prod`
    # complete the interface.
    def vf(self, t, y, args):
        return y

    def prod(self, vf, control):
        return self._increment(vf, control)

    def drift(self, t: Any, y: Any) -> Any:
        """The drift per step, as a state, if step size and noise do not vary."""
        now = self.offset + jnp.floor(t).astype(jnp.int32)
        return self._increment(
            y, self.control(self.offset if self.problem.penalty is None else now)
        )

    def _increment(self, y: Any, control: StepControl, evaluated: Any = None) -> Any:
        """The change of the state in a step.

        `evaluated` is the result of `linearise` at the position, if it is known.
        """
        position, _ = y
        dt, dB, step_size, noise = control.time, control.dB, control.step_size, control.noise
        problem, coordinates = self.problem, self.coordinates
        outputs, vjp = (
            coordinates.linearise(position, problem.inputs) if evaluated is None else evaluated
        )
        derivatives = problem.loss.derivative(outputs, problem.targets)
        cotangent = derivatives * (-dt / problem.n)
        features = None
        if dB is not None:
            increment = noise.sqrt_covariance(derivatives, step_size, dB)
            cotangent = cotangent if increment.examples is None else cotangent + increment.examples
            features = increment.features
        step = with_penalty(vjp(cotangent), coordinates, problem, position, -dt, control.iteration)
        if features is not None:
            step = add(step, coordinates.vjp_features(position, features))
        if coordinates.curved:
            covariance = noise.covariance(derivatives, step_size)
            step = add(
                step, scale(coordinates.drift_correction(position, problem.inputs, covariance), dt)
            )
        if self.order == 2:
            # Coordinates that can have a penalty are told the iteration.
            counted = () if problem.penalty is None else (control.iteration,)
            drift = coordinates.second_order_drift(position, problem, step_size, *counted)
            step = add(step, scale(drift, dt))
        if self.stratonovich:
            step = add(step, scale(self._ito_to_stratonovich(position, control), -dt))
        return step, jnp.mean(problem.loss(outputs, problem.targets)) * dt

    def diffusion(self, position: Any, dB: Any, control: StepControl, evaluated: Any = None) -> Any:
        """The noise of a step alone: the tangent of Brownian increments `dB`."""
        outputs, vjp = (
            self.coordinates.linearise(position, self.problem.inputs)
            if evaluated is None
            else evaluated
        )
        derivatives = self.problem.loss.derivative(outputs, self.problem.targets)
        increment = control.noise.sqrt_covariance(derivatives, control.step_size, dB)
        step = vjp(jnp.zeros_like(outputs) if increment.examples is None else increment.examples)
        return (
            step
            if increment.features is None
            else add(step, self.coordinates.vjp_features(position, increment.features))
        )

    def basis(self) -> Any:
        """All unit Brownian increments, one per row."""
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s, self.path.dtype), self.path.shape, is_leaf=is_shape
        )
        flat, unravel = jax.flatten_util.ravel_pytree(zeros)
        return jax.vmap(unravel)(jnp.eye(flat.size, dtype=self.path.dtype))

    def _ito_to_stratonovich(self, position: Any, control: StepControl) -> Any:
        """`1/2 sum_k D[g_k] g_k`, by which the Itô drift exceeds the Stratonovich
        drift.

        g_k is the noise along Brownian coordinate k, and each takes one forward
        product.
        """
        # Without noise the two are equal.
        if not jax.tree.leaves(self.path.shape, is_leaf=is_shape):
            return jax.tree.map(jnp.zeros_like, position)

        def one(e):
            direction = self.diffusion(position, e, control)
            return jax.jvp(lambda p: self.diffusion(p, e, control), (position,), (direction,))[1]

        return jax.tree.map(lambda v: 0.5 * jnp.sum(v, axis=0), jax.vmap(one)(self.basis()))

    def split(self) -> dfx.MultiTerm:
        """Drift and dense diffusion as two terms, for the Diffrax solvers that need
        both (Milstein, Euler-Heun).
        """
        return dfx.MultiTerm(
            dfx.ODETerm(lambda t, y, args: self.drift(t, y)), _DenseDiffusion(self)
        )


class _DenseDiffusion(dfx.AbstractTerm):
    """The diffusion as one matrix per leaf of the position.

    The last axis is the Brownian coordinate. A product with the control is linear, as
    Milstein's method needs.
    """

    term: FlowTerm

    def contr(self, t0, t1, **kwargs):
        # The increments are flat and in units of steps. The matrix contains the square
        # root of the flow time per step.
        return jax.flatten_util.ravel_pytree(self.term.path.evaluate(t0, t1))[0]

    def vf(self, t, y, args):
        position, integral = y
        control = self.term.control(self.term.offset)
        columns = jax.vmap(lambda e: self.term.diffusion(position, e, control))(self.term.basis())
        matrix = jax.tree.map(lambda m: jnp.moveaxis(m, 0, -1) * jnp.sqrt(control.time), columns)
        width = jax.tree.leaves(matrix)[0].shape[-1]
        return matrix, jnp.zeros((*integral.shape, width), integral.dtype)

    def prod(self, vf, control):
        return jax.tree.map(lambda m: m @ control, vf)


def takes_one_term(solver: Any) -> bool:
    """Whether a solver takes the fused term rather than drift and diffusion apart.

    **Raises:** `ValueError` for a solver that converges to neither the Itô nor the
    Stratonovich solution, that needs Lévy areas, or that is `ReversibleHeun`.
    """
    name = type(solver).__name__
    if isinstance(solver, dfx.AbstractSRK):
        raise ValueError(
            f"{name} needs space-time Lévy areas, which the Brownian path of a run does not have, "
            "and additive or commutative noise, which SGD's is not; use diffrax.Euler() (Itô), or "
            "diffrax.Heun() or diffrax.EulerHeun() (Stratonovich, with the drift corrected for "
            "you)"
        )
    if not isinstance(solver, dfx.AbstractItoSolver | dfx.AbstractStratonovichSolver):
        raise ValueError(
            f"{name} converges to neither the Itô nor the Stratonovich solution of a stochastic "
            "flow; use diffrax.Euler(), diffrax.ItoMilstein(), diffrax.Heun() or "
            "diffrax.EulerHeun(); ODE solvers are for GradientFlow"
        )
    if isinstance(solver, dfx.ReversibleHeun):
        raise ValueError(
            "ReversibleHeun is not available: it averages vector fields and carries them from step "
            "to step, and diverges with this noise; use diffrax.Heun() or diffrax.EulerHeun(), "
            "which converge to the same solution"
        )
    return typing.get_origin(solver.term_structure) is not dfx.MultiTerm


def add(a: Any, b: Any) -> Any:
    """The sum of two tangents."""
    return jax.tree.map(jnp.add, a, b)


def scale(tree: Any, factor: Array | float) -> Any:
    """The tangent `tree` times a number."""
    return jax.tree.map(lambda v: v * factor, tree)
