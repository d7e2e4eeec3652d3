"""One iteration of a discrete algorithm, as a solver and a term of Diffrax.

An iteration draws its examples, perturbs them if the problem says so, pulls the
cotangent `-gamma s l'/n` back to the weights, where s are random weights of the
examples, adds the gradient of the penalty, and updates the weights by the algorithm's
rule.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from sgfbias.core.brownian import (
    LABEL_STREAM,
    PERTURBATION_STREAM,
    SAMPLING_STREAM,
    SECOND_STREAM,
    TRANSFORMATION_STREAM,
)
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.optax_keys import reseed
from sgfbias.core.problem import Problem
from sgfbias.core.sampling import sample_batch, signs
from sgfbias.core.schedule import value_at
from sgfbias.core.term import with_penalty


class Iteration(dfx.AbstractSolver):
    """A solver whose step is one iteration of a discrete algorithm.

    The memory of the algorithm (a momentum, an Optax state) is the solver's state.
    """

    term_structure: ClassVar[Any] = dfx.AbstractTerm
    interpolation_cls: ClassVar[Any] = dfx.LocalLinearInterpolation

    def order(self, terms):
        """None, as an algorithm does not approximate an equation."""
        return None

    def init(self, terms, t0, t1, y0, args):
        """The memory of the algorithm before the first iteration."""
        return _own(terms).remember(y0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """Take one iteration from the state `(weights, loss integral)`."""
        y1, solver_state = _own(terms).iterate(t0, y0, solver_state)
        return y1, None, {"y0": y0, "y1": y1}, solver_state, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The vector field, which Diffrax asks for but iterations do not use."""
        return terms.vf(t0, y0, args)


def _own(terms: Any) -> IterationTerm:
    """The `IterationTerm` inside the wrapper with the direction of time, which Diffrax
    passes to a solver.
    """
    return getattr(terms, "term", terms)


class IterationTerm(dfx.AbstractTerm):
    """The term of a discrete algorithm, with absolute iteration `offset` at time 0."""

    dynamics: Any
    coordinates: AbstractCoordinates
    problem: Problem
    key: Array | None
    offset: Array

    def remember(self, y: Any) -> Any:
        """The memory of the algorithm before its first iteration from the state `y`."""
        parameters, _ = self.coordinates.split(y[0])
        if self.dynamics.transformation is not None:
            # Optax mixes precisions.
            with jax.numpy_dtype_promotion("standard"):
                memory = self.dynamics.transformation.init(parameters)
            # An Optax state may hold the weights (lookahead does), and must own a copy.
            memory = jax.tree.map(
                lambda leaf: leaf + 0 if eqx.is_inexact_array(leaf) else leaf, memory
            )
            return (
                memory
                if self.key is None
                else reseed(memory, jax.random.fold_in(self.key, TRANSFORMATION_STREAM))
            )
        return () if self.dynamics.momentum is None else jax.tree.map(jnp.zeros_like, y[0])

    def iterate(self, t0: Array, y: Any, memory: Any) -> Any:
        """The state and the memory after the iteration at solver time `t0`."""
        dynamics, problem, coordinates = self.dynamics, self.problem, self.coordinates
        (position, integral), dtype = y, problem.dtype
        step = self.offset + jnp.round(t0).astype(jnp.int32)
        clock = dynamics.clock
        gamma = clock.gamma(step, dtype)
        index = self._batch(step)
        clean, targets = (
            (problem.inputs, problem.targets)
            if index is None
            else (problem.inputs[index], problem.targets[index])
        )
        inputs = self._perturbed(step, position, clean, targets)
        outputs, vjp = coordinates.linearise(position, inputs)
        slope = self._slopes(step, outputs, targets)
        count = dynamics.batch_size or problem.n
        if dynamics.transformation is not None:
            noise = (
                0 * slope
                if dynamics.label_noise is None
                else slope - problem.loss.derivative(outputs, targets)
            )
            position, memory = self._transformed(
                position,
                memory,
                self._penalised(vjp(slope / count), position, 1.0, step),
                gamma,
                inputs,
                targets,
                outputs,
                noise,
                step,
            )
        elif dynamics.momentum is not None:
            b = dynamics.momentum.astype(dtype)
            downhill = self._penalised(vjp(slope * (-1 / count)), position, -1.0, step)
            memory = jax.tree.map(lambda g, m: g + b * m, downhill, memory)
            moved = (
                jax.tree.map(lambda g, m: g + b * m, downhill, memory)
                if dynamics.nesterov
                else memory
            )
            position = jax.tree.map(lambda w, m: w + gamma * m, position, moved)
        else:
            moved = vjp(slope * (-gamma / (count * dynamics.l)))
            moved = self._penalised(moved, position, -gamma / dynamics.l, step)
            position = jax.tree.map(jnp.add, position, moved)
        whole = dynamics.integral != "batch" and index is not None
        if whole or problem.perturb is not None:
            clean, targets = (problem.inputs, problem.targets) if whole else (clean, targets)
            outputs = coordinates.linearise(y[0], clean)[0]
        losses = problem.loss(outputs, targets)
        summed = losses if dynamics.integral == "examples" else jnp.mean(losses)
        return (position, integral + summed * clock.span(step, dtype)), memory

    def _penalised(self, tangent: Any, position: Any, factor: Any, step: Array) -> Any:
        """The tangent plus `factor` times the gradient of the penalty, if there is
        one.
        """
        iteration = self.dynamics.clock.iteration(step)
        return with_penalty(tangent, self.coordinates, self.problem, position, factor, iteration)

    def _perturbed(self, step: Array, position: Any, inputs: Array, targets: Array) -> Array:
        """The examples of iteration `step` as the problem's rule changes them."""
        if self.problem.perturb is None:
            return inputs
        key = jax.random.fold_in(jax.random.fold_in(self.key, PERTURBATION_STREAM), step)
        return self.problem.perturbed(self.coordinates.decode(position), inputs, targets, key)

    def _batch(self, step: Array) -> Array | None:
        """The indices of the drawn examples, (b,), or (2 b,) for SVAG; None for all."""
        dynamics = self.dynamics
        if dynamics.batch_size is None:
            return None
        streams = [SAMPLING_STREAM] if dynamics.l == 1 else [SAMPLING_STREAM, SECOND_STREAM]
        drawn = [
            sample_batch(
                jax.random.fold_in(self.key, s),
                step,
                dynamics.batch_size,
                self.problem.n,
                dynamics.sampling,
            )
            for s in streams
        ]
        return drawn[0] if dynamics.l == 1 else jnp.concatenate(drawn)

    def _slopes(self, step: Array, outputs: Array, targets: Array) -> Array:
        """The per-example derivatives, with label noise and SVAG's coefficients."""
        dynamics, dtype = self.dynamics, self.problem.dtype
        slope = self.problem.loss.derivative(outputs, targets)
        if dynamics.label_noise is not None:
            delta = value_at(dynamics.label_noise, dynamics.clock.iteration(step), dtype)
            slope = slope + delta * signs(
                jax.random.fold_in(self.key, LABEL_STREAM), step, outputs.shape, dtype
            )
        if dynamics.l == 1:
            return slope
        root = math.sqrt(2 * dynamics.l - 1)
        coefficients = jnp.repeat(
            jnp.asarray([(1 + root) / 2, (1 - root) / 2], dtype), outputs.shape[0] // 2
        )
        return slope * coefficients.reshape(-1, *(1,) * (slope.ndim - 1))

    def _transformed(
        self,
        position: Any,
        memory: Any,
        gradient: Any,
        gamma: Array,
        inputs: Array,
        targets: Array,
        outputs: Array,
        noise: Array,
        step: Array,
    ) -> tuple[Any, Any]:
        """The position and the Optax state after one update by the transformation."""
        parameters, rest = self.coordinates.split(position)
        gradient, book = self.coordinates.split(gradient)

        iteration = self.dynamics.clock.iteration(step)

        def objective(f: Array, position: Any) -> Array:
            """The loss of the outputs `f`, to which noisy labels add a linear term, and
            the penalty at `position`.
            """
            value = jnp.mean(self.problem.loss(f, targets)) + jnp.sum(noise * f) / f.shape[0]
            if self.problem.penalty is None:
                return value
            return value + self.problem.penalised(self.coordinates.decode(position), iteration)

        def value_fn(p: Any) -> Array:
            whole = self.coordinates.join(p, rest)
            return objective(self.coordinates.linearise(whole, inputs)[0], whole)

        update = optax.with_extra_args_support(self.dynamics.transformation).update
        with jax.numpy_dtype_promotion("standard"):
            value = objective(outputs, position)
            updates, memory = update(
                gradient, memory, parameters, value=value, grad=gradient, value_fn=value_fn
            )
            parameters = optax.apply_updates(parameters, updates)
        rest = jax.tree.map(lambda a, b: a - gamma * b, rest, book)
        return self.coordinates.join(parameters, rest), memory

    # Diffrax checks that a term has these methods, but `Iteration` calls `iterate`.
    def contr(self, t0, t1, **kwargs):
        return t1 - t0

    def vf(self, t, y, args):
        return y

    def prod(self, vf, control):
        return vf
