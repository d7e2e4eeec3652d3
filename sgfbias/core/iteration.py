"""One iteration of a discrete algorithm, as a solver and a term of Diffrax.

An iteration draws its examples, perturbs them if the problem says so, pulls the
cotangent `-gamma s l'/n` back to the weights, where s are random weights of the
examples, adds the gradient of the penalty, moves the weights by the algorithm's rule,
and projects them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import diffrax as dfx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from sgfbias.core.brownian import (
    LABEL_STREAM,
    PERTURBATION_STREAM,
    SAMPLING_REFRESH_STREAM,
    SAMPLING_START_STREAM,
    SAMPLING_STREAM,
    SECOND_STREAM,
    TRANSFORMATION_STREAM,
)
from sgfbias.core.coordinates import AbstractCoordinates, WithMemory
from sgfbias.core.problem import Problem
from sgfbias.core.project import projected
from sgfbias.core.rules import Point
from sgfbias.core.sampling import Draw, signs
from sgfbias.core.schedule import value_at
from sgfbias.core.term import with_penalty


class Iteration(dfx.AbstractSolver):
    """A solver whose step is one iteration of a discrete algorithm.

    The memories of the algorithm (a momentum, an Optax state, the mask of its examples)
    are the solver's state.
    """

    term_structure: ClassVar[Any] = dfx.AbstractTerm
    interpolation_cls: ClassVar[Any] = dfx.LocalLinearInterpolation

    def order(self, terms):
        """None, as an algorithm does not approximate an equation."""
        return None

    def init(self, terms, t0, t1, y0, args):
        """The memories of the algorithm before the first iteration."""
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
        """The memories of the rule and of the sampling before the first iteration from
        the state `y`.
        """
        dynamics = self.dynamics
        memory: Any = ()
        if not dynamics.rule.observed:
            key = self._stream(TRANSFORMATION_STREAM)
            memory = dynamics.rule.start(self._moving(y[0])[0], key)
        if dynamics.sampling is None or dynamics.l > 1:
            return memory, ()
        network, key = self.coordinates.decode(y[0]), self._stream(SAMPLING_START_STREAM)
        return memory, dynamics.sampling.start(self.problem, network, key)

    def iterate(self, t0: Array, y: Any, memory: Any) -> Any:
        """The state and the memories after the iteration at solver time `t0`."""
        dynamics, problem, coordinates = self.dynamics, self.problem, self.coordinates
        (position, integral), dtype = y, problem.dtype
        step = self.offset + jnp.round(t0).astype(jnp.int32)
        clock = dynamics.clock
        draw, sampled = self._draw(memory[1], position, step)
        clean, targets = (
            (problem.inputs, problem.targets)
            if draw.index is None
            else (problem.inputs[draw.index], problem.targets[draw.index])
        )
        inputs = self._perturbed(step, position, clean, targets)
        outputs, vjp = coordinates.linearise(position, inputs)
        if dynamics.sampling is not None and dynamics.l == 1:
            derivatives = problem.loss.derivative(outputs, targets)
            sampled = dynamics.sampling.learn(sampled, draw, derivatives)
        position, kept = self._moved(position, memory[0], step, draw, inputs, targets, outputs, vjp)
        whole = dynamics.integral != "batch" and draw.index is not None
        if whole or problem.perturb is not None:
            clean, targets = (problem.inputs, problem.targets) if whole else (clean, targets)
            outputs = coordinates.linearise(y[0], clean)[0]
        losses = problem.loss(outputs, targets)
        if dynamics.integral == "examples":
            summed = losses
        else:
            summed = _mean(losses, draw if dynamics.integral == "batch" else Draw())
        return (position, integral + summed * clock.span(step, dtype)), (kept, sampled)

    def _stream(self, stream: int) -> Array | None:
        """The key of this seed for one purpose, or None for a run without keys."""
        return None if self.key is None else jax.random.fold_in(self.key, stream)

    def _moving(self, tree: Any) -> tuple[Any, Any]:
        """What the rule moves in a position or a tangent, and the rest."""
        coordinates = self.coordinates
        if isinstance(coordinates, WithMemory):
            tree, coordinates = tree[0], coordinates.base
        return (tree, None) if self.dynamics.rule.linear else coordinates.split(tree)

    def _moved(
        self,
        position: Any,
        memory: Any,
        step: Array,
        draw: Draw,
        inputs: Array,
        targets: Array,
        outputs: Array,
        vjp: Any,
    ) -> tuple[Any, Any]:
        """The position and the memory of the rule after the iteration `step`."""
        dynamics, problem, coordinates = self.dynamics, self.problem, self.coordinates
        rule = dynamics.rule
        gamma, iteration = dynamics.clock.gamma(step, problem.dtype), dynamics.clock.iteration(step)
        factor = rule.factor(gamma)
        slope, scale = self._slopes(step, outputs, targets)
        tangent = vjp(self._weighed(slope, draw, factor))
        by = 1.0 if factor is None else factor if dynamics.l == 1 else factor / dynamics.l
        tangent = with_penalty(tangent, coordinates, problem, position, by, iteration)

        parameters, rest = self._moving(position)
        gradient, book = self._moving(tangent)
        if rule.observed:
            memory = position[1]
        linear = (
            0 * slope
            if dynamics.label_noise is None
            else slope - problem.loss.derivative(outputs, targets)
        )

        def objective(f: Array, position: Any) -> Array:
            """The loss of the outputs `f`, to which noisy labels add a linear term, and
            the penalty at `position`.
            """
            if rule.logarithmic:
                return log_mean(problem.loss.log(f, targets))
            value = _mean(problem.loss(f, targets), draw)
            if draw.weight is None and draw.valid is None:
                value = value + jnp.sum(linear * f) / f.shape[0]
            else:
                value = value + _mean(jnp.sum(linear * f, axis=tuple(range(1, f.ndim))), draw)
            if problem.penalty is None:
                return value
            return value + problem.penalised(coordinates.decode(position), iteration)

        def joined(parameters: Any, rest: Any, memory: Any) -> Any:
            base = coordinates.base if isinstance(coordinates, WithMemory) else coordinates
            whole = parameters if rule.linear else base.join(parameters, rest)
            return (whole, memory) if rule.observed else whole

        def of_parameters(p: Any) -> Array:
            whole = joined(p, rest, memory)
            return objective(coordinates.linearise(whole, inputs)[0], whole)

        value = objective(outputs, position)
        point = Point(parameters, gamma, iteration, value, of_parameters)
        change, memory = rule.update(gradient, memory, scale, point)
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes precisions
            parameters = optax.apply_updates(parameters, change)
        if rest is not None:
            span = gamma if not rule.logarithmic else gamma * jnp.exp(scale)
            rest = jax.tree.map(lambda a, b: a - span * b, rest, book)
        moved = joined(parameters, rest, memory)
        if dynamics.project is not None:
            moved = projected(dynamics.project, coordinates, moved)
        return moved, () if rule.observed else memory

    def _weighed(self, slope: Array, draw: Draw, factor: Any) -> Array:
        """The cotangent of the iteration: the derivatives, with the weights of their
        examples and the factor of the rule.
        """
        dynamics = self.dynamics
        shape = (-1, *(1,) * (slope.ndim - 1))
        if draw.valid is not None:
            slope = jnp.where(draw.valid.reshape(shape), slope, 0)
        if draw.weight is not None:
            weight = draw.weight.astype(slope.dtype)
            weight = weight if factor is None else weight * (factor / dynamics.l)
            return slope * weight.reshape(shape)
        if dynamics.rule.logarithmic:
            return slope
        count = (
            slope.shape[0] // (1 if dynamics.l == 1 else 2)
            if draw.valid is None
            else jnp.maximum(jnp.sum(draw.valid), 1).astype(slope.dtype)
        )
        return slope / count if factor is None else slope * (factor / (count * dynamics.l))

    def _perturbed(self, step: Array, position: Any, inputs: Array, targets: Array) -> Array:
        """The examples of iteration `step` as the problem's rule changes them."""
        if self.problem.perturb is None:
            return inputs
        key = jax.random.fold_in(self._stream(PERTURBATION_STREAM), step)
        return self.problem.perturbed(self.coordinates.decode(position), inputs, targets, key)

    def _draw(self, memory: Any, position: Any, step: Array) -> tuple[Draw, Any]:
        """The examples of iteration `step`, twice as many for SVAG, and the memory of
        the sampling.
        """
        sampling, problem = self.dynamics.sampling, self.problem
        if sampling is None:
            return Draw(), memory
        stream = self._stream(SAMPLING_STREAM)
        if self.dynamics.l > 1:
            pair = [
                sampling.draw((), key, step, problem.n)[0].index
                for key in (stream, self._stream(SECOND_STREAM))
            ]
            return Draw(jnp.concatenate(pair)), memory
        if sampling.every is not None:
            key = jax.random.fold_in(self._stream(SAMPLING_REFRESH_STREAM), step)
            memory = jax.lax.cond(
                (step % sampling.every == 0) & (step > 0),
                lambda old: sampling.refresh(old, self.coordinates.decode(position), problem, key),
                lambda old: old,
                memory,
            )
        return sampling.draw(memory, stream, step, problem.n)

    def _slopes(self, step: Array, outputs: Array, targets: Array) -> tuple[Array, Any]:
        """The per-example derivatives, with label noise and SVAG's coefficients, and
        the logarithm of what they have to be multiplied by.

        For a logarithmic rule they are those of the logarithm of the mean loss.
        """
        dynamics, dtype = self.dynamics, self.problem.dtype
        loss = self.problem.loss
        if dynamics.rule.logarithmic:
            logs = loss.log(outputs, targets)
            share = jax.nn.softmax(logs)
            slope = loss.log_derivative(outputs, targets)
            return slope * share.reshape(-1, *(1,) * (slope.ndim - 1)), log_mean(logs)
        slope = loss.derivative(outputs, targets)
        if dynamics.label_noise is not None:
            delta = value_at(dynamics.label_noise, dynamics.clock.iteration(step), dtype)
            slope = slope + delta * signs(self._stream(LABEL_STREAM), step, outputs.shape, dtype)
        if dynamics.l == 1:
            return slope, 0.0
        root = math.sqrt(2 * dynamics.l - 1)
        coefficients = jnp.repeat(
            jnp.asarray([(1 + root) / 2, (1 - root) / 2], dtype), outputs.shape[0] // 2
        )
        return slope * coefficients.reshape(-1, *(1,) * (slope.ndim - 1)), 0.0

    # Diffrax checks that a term has these methods, but `Iteration` calls `iterate`.
    def contr(self, t0, t1, **kwargs):
        return t1 - t0

    def vf(self, t, y, args):
        return y

    def prod(self, vf, control):
        return vf


def _mean(values: Array, draw: Draw) -> Array:
    """The mean of a number of every drawn example, with the weights of the draw."""
    if draw.valid is not None:
        values = jnp.where(draw.valid, values, 0)
    if draw.weight is not None:
        return jnp.sum(draw.weight.astype(values.dtype) * values)
    if draw.valid is None:
        return jnp.mean(values)
    return jnp.sum(values) / jnp.maximum(jnp.sum(draw.valid), 1).astype(values.dtype)


def log_mean(logs: Array) -> Array:
    """The logarithm of the mean of numbers, given their logarithms (n,)."""
    return jax.nn.logsumexp(logs) - jnp.log(jnp.asarray(logs.shape[0], logs.dtype))
