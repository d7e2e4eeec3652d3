"""The flows' Diffrax terms: drift and noise share one pass over the data."""

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


class Stride(eqx.Module):
    """What one solver step moves with: flow time, Brownian increments, and the step size and noise of its iteration."""

    time: Array
    dB: Any
    step_size: Array
    noise: AbstractNoise


def gradient_step(coordinates: AbstractCoordinates, problem: Problem, y: Any, dt: Array) -> Any:
    """`(-grad L dt as a tangent, L dt)` at a state `(position, integral)`."""
    outputs, pull = coordinates.linearise(y[0], problem.inputs)
    cotangent = problem.loss.derivative(outputs, problem.targets) * (-dt / problem.n)
    return pull(cotangent), jnp.mean(problem.loss(outputs, problem.targets)) * dt


class FlowTerm(dfx.AbstractTerm):
    """Drift and noise in one product: the cotangent of a step is `-(l'/n) dt + root dB`, pulled back once.

    The state is `(position, integral)`, with `integral` the running loss integral `int L dt`.
    """

    noise: AbstractNoise
    coordinates: AbstractCoordinates
    problem: Problem
    path: Any  # a StepBrownianPath
    clock: Clock
    offset: Array
    stratonovich: bool = eqx.field(static=True)
    order: int = eqx.field(static=True)

    def contr(self, t0, t1, **kwargs):
        stride = self.stride(self.offset + jnp.round(t0).astype(jnp.int32))
        root = safe_sqrt(stride.time)
        dB = jax.tree.map(lambda z: z * root, self.path.evaluate(t0, t1))
        return eqx.tree_at(lambda s: (s.time, s.dB), stride, (stride.time * (t1 - t0), dB), is_leaf=lambda x: x is None)

    def stride(self, step: Any) -> Stride:
        """The step without its Brownian increments; schedules are constant over it."""
        dtype = self.problem.dtype
        noise = self.noise.at(self.clock.iteration(step))
        return Stride(self.clock.span(step, dtype), None, self.clock.gamma(step, dtype), noise)

    def vf_prod(self, t, y, args, control):
        return self._increment(y, control)

    def drift_prod(self, t: Any, y: Any, args: Any, control: Stride) -> Any:
        """The step without its noise."""
        return self._increment(y, eqx.tree_at(lambda s: s.dB, control, None, is_leaf=lambda x: x is None))

    def drift_and_noise(self, t: Any, y: Any, args: Any, control: Stride) -> tuple[Any, Any]:
        """Both parts of a step, whose sum it is, from one evaluation of the model."""
        still = eqx.tree_at(lambda s: s.dB, control, None, is_leaf=lambda x: x is None)
        evaluated = self.coordinates.linearise(y[0], self.problem.inputs)
        drift = self._increment(y, still, evaluated)
        return drift, (self.diffusion(y[0], control.dB, control, evaluated), jnp.zeros_like(drift[1]))

    # Diffrax's runge-kutta and euler steps only ask for `vf_prod`; the pair below keeps the interface whole.
    def vf(self, t, y, args):
        return y

    def prod(self, vf, control):
        return self._increment(vf, control)

    def drift(self, y: Any) -> Any:
        """Drift per step, as a state; for step sizes and noise that do not vary."""
        return self._increment(y, self.stride(self.offset))

    def _increment(self, y: Any, stride: Stride, evaluated: Any = None) -> Any:
        position, _ = y
        dt, dB, step_size, noise = stride.time, stride.dB, stride.step_size, stride.noise
        problem, coordinates = self.problem, self.coordinates
        outputs, pull = coordinates.linearise(position, problem.inputs) if evaluated is None else evaluated
        derivatives = problem.loss.derivative(outputs, problem.targets)
        cotangent = derivatives * (-dt / problem.n)
        features = None
        if dB is not None:
            kick = noise.root(derivatives, step_size, dB)
            cotangent = cotangent if kick.examples is None else cotangent + kick.examples
            features = kick.features
        step = pull(cotangent)
        if features is not None:
            step = add(step, coordinates.pull_features(position, features))
        if coordinates.curved:
            covariance = noise.covariance(derivatives, step_size)
            step = add(step, scale(coordinates.drift_correction(position, problem.inputs, covariance), dt))
        if self.order == 2:
            step = add(step, scale(coordinates.second_order_drift(position, problem, step_size), dt))
        if self.stratonovich:
            step = add(step, scale(self._ito_to_stratonovich(position, stride), -dt))
        return step, jnp.mean(problem.loss(outputs, problem.targets)) * dt

    def diffusion(self, position: Any, dB: Any, stride: Stride, evaluated: Any = None) -> Any:
        """The noise part alone: the tangent of Brownian increments `dB`."""
        outputs, pull = self.coordinates.linearise(position, self.problem.inputs) if evaluated is None else evaluated
        derivatives = self.problem.loss.derivative(outputs, self.problem.targets)
        kick = stride.noise.root(derivatives, stride.step_size, dB)
        step = pull(jnp.zeros_like(outputs) if kick.examples is None else kick.examples)
        return step if kick.features is None else add(step, self.coordinates.pull_features(position, kick.features))

    def basis(self) -> Any:
        """One unit Brownian increment per row."""
        zeros = jax.tree.map(lambda s: jnp.zeros(s, self.path.dtype), self.path.shape, is_leaf=is_shape)
        flat, unravel = jax.flatten_util.ravel_pytree(zeros)
        return jax.vmap(unravel)(jnp.eye(flat.size, dtype=self.path.dtype))

    def _ito_to_stratonovich(self, position: Any, stride: Stride) -> Any:
        """`1/2 sum_k D[g_k] g_k`, one forward product per Brownian coordinate; subtracted from the Itô drift."""
        if not jax.tree.leaves(self.path.shape, is_leaf=is_shape):  # no noise
            return jax.tree.map(jnp.zeros_like, position)

        def one(e):
            direction = self.diffusion(position, e, stride)
            return jax.jvp(lambda p: self.diffusion(p, e, stride), (position,), (direction,))[1]

        return jax.tree.map(lambda v: 0.5 * jnp.sum(v, axis=0), jax.vmap(one)(self.basis()))

    def split(self) -> dfx.MultiTerm:
        """Drift and dense diffusion apart, for the Diffrax solvers that want both (Milstein, Euler-Heun)."""
        return dfx.MultiTerm(dfx.ODETerm(lambda t, y, args: self.drift(y)), _DenseDiffusion(self))


class _DenseDiffusion(dfx.AbstractTerm):
    """The diffusion as a matrix per position leaf, last axis the Brownian coordinate; linear in itself, as Milstein needs."""

    term: FlowTerm

    def contr(self, t0, t1, **kwargs):
        # Flat, in step units; the matrix carries the square root of the flow time per step.
        return jax.flatten_util.ravel_pytree(self.term.path.evaluate(t0, t1))[0]

    def vf(self, t, y, args):
        position, integral = y
        stride = self.term.stride(self.term.offset)
        columns = jax.vmap(lambda e: self.term.diffusion(position, e, stride))(self.term.basis())
        matrix = jax.tree.map(lambda m: jnp.moveaxis(m, 0, -1) * jnp.sqrt(stride.time), columns)
        width = jax.tree.leaves(matrix)[0].shape[-1]
        return matrix, jnp.zeros((*integral.shape, width), integral.dtype)

    def prod(self, vf, control):
        return jax.tree.map(lambda m: m @ control, vf)


def takes_one_term(solver: Any) -> bool:
    """Whether a solver works on the fused term.

    **Raises:** `ValueError` for a solver that converges to no SDE, or that needs Lévy areas.
    """
    name = type(solver).__name__
    if isinstance(solver, dfx.AbstractSRK):
        raise ValueError(
            f"{name} needs space-time Lévy areas, which a path keyed by the step does not have, and additive or commutative noise, which "
            "SGD's is not; use diffrax.Euler() (Itô), or diffrax.Heun(), diffrax.EulerHeun() (Stratonovich, drift corrected for you)"
        )
    if not isinstance(solver, dfx.AbstractItoSolver | dfx.AbstractStratonovichSolver):
        raise ValueError(
            f"{name} converges to neither the Itô nor the Stratonovich solution of a stochastic flow; use diffrax.Euler(), "
            "diffrax.ItoMilstein(), diffrax.Heun() or diffrax.EulerHeun(); ODE solvers are for GradientFlow"
        )
    if isinstance(solver, dfx.ReversibleHeun):
        raise ValueError(
            "ReversibleHeun is not available: it averages vector fields and carries them between steps, and diverges on this noise; "
            "use diffrax.Heun() or diffrax.EulerHeun(), which converge to the same solution"
        )
    return typing.get_origin(solver.term_structure) is not dfx.MultiTerm


def add(a: Any, b: Any) -> Any:
    """Sum of two tangents."""
    return jax.tree.map(jnp.add, a, b)


def scale(tree: Any, factor: Array) -> Any:
    """A tangent times a number."""
    return jax.tree.map(lambda v: v * factor, tree)
