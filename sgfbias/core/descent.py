"""The discrete algorithms that the flows model, with the same clock as the flows.

One iteration pulls the cotangent `-gamma s l'/n` back to the weights, where s are
random weights of the examples, with mean 1. It moves the weights along the result
plainly, with momentum, or by an Optax transformation. One solver runs all algorithms,
and each of its steps is one iteration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from sgfbias.core.brownian import (
    LABEL_STREAM,
    SAMPLING_STREAM,
    SECOND_STREAM,
    TRANSFORMATION_STREAM,
)
from sgfbias.core.checks import as_whole
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.flow import check_momentum
from sgfbias.core.optax_keys import draws_keys, reseed
from sgfbias.core.problem import Problem
from sgfbias.core.sampling import check_against, check_batch, sample_batch, signs
from sgfbias.core.schedule import Clock, as_scheduled, value_at


class AbstractDescent(AbstractDynamics):
    """An iteration of the weights: its examples, its label noise, and its update rule.

    The public subclasses set these options for full batches, for minibatches, for two
    minibatches with coefficients (SVAG), and for an Optax transformation.
    """

    step_size: Any
    label_noise: Any
    momentum: Array | None
    transformation: Any
    # None: all examples.
    batch_size: int | None = eqx.field(static=True)
    sampling: str = eqx.field(static=True)
    nesterov: bool = eqx.field(static=True)
    l: int = eqx.field(static=True)
    integral: str = eqx.field(static=True)

    def __init__(
        self,
        step_size: Any,
        *,
        batch_size: Any = None,
        sampling: str = "with_replacement",
        label_noise: Any = None,
        momentum: Any = None,
        nesterov: bool = False,
        l: int = 1,
        transformation: Any = None,
        integral: str = "full",
    ):
        self.step_size = as_scheduled(step_size, "step_size")
        if label_noise is not None:
            label_noise = as_scheduled(label_noise, "label_noise", zero_allowed=True)
        self.label_noise = label_noise
        self.momentum = None if momentum is None else check_momentum(momentum)
        if nesterov and momentum is None:
            raise ValueError("nesterov=True needs a momentum, e.g. momentum=0.9")
        self.batch_size = None if batch_size is None else check_batch(batch_size, sampling)
        if integral not in ("full", "batch", "examples"):
            raise ValueError(
                f"`integral` must be 'full', 'batch' or 'examples', but is {integral!r}"
            )
        self.sampling, self.nesterov, self.l = sampling, nesterov, l
        self.transformation, self.integral = transformation, integral

    @property
    def is_stochastic(self):
        return (
            self.batch_size is not None
            or self.label_noise is not None
            or draws_keys(self.transformation)
        )

    @property
    def is_flow(self):
        return False

    @property
    def clock(self):
        factor = 1.0 if self.momentum is None else 1 / (1 - self.momentum)
        ratio = None if self.l == 1 else jnp.asarray([1, self.l], jnp.int32)
        return Clock(self.step_size, factor=factor if self.l == 1 else factor / self.l, ratio=ratio)

    def default_solver(self, dtype, size):
        return Iteration()

    def build(self, coordinates, problem, position, key, offset, solver):
        if not isinstance(solver, Iteration):
            raise ValueError(
                f"{type(self).__name__} is a discrete algorithm, not an equation, so `solver` must "
                f"be left out, but is {solver!r}"
            )
        return _IterationTerm(self, coordinates, problem, key, offset)

    def check(self, n: int) -> None:
        """Refuse batches that do not fit n examples.

        **Raises:** `ValueError` that says what fits.
        """
        if self.batch_size is not None:
            check_against(self.batch_size, self.sampling, n)

    def schedules(self):
        return (*super().schedules(), *((self.label_noise,) if callable(self.label_noise) else ()))

    def rows_per_step(self, n):
        # Integrating the loss of all examples takes a pass over all n in every
        # iteration.
        return n if self.batch_size is None or self.integral != "batch" else self.batch_size

    def integral_shape(self, n):
        return (n,) if self.integral == "examples" else ()


class GradientDescent(AbstractDescent):
    """`w <- w - gamma grad L(w)`, in the weights.

    One iteration takes a flow time of gamma, or of `gamma / (1 - b)` with momentum b.

    **Arguments:**

    - `step_size`: gamma > 0, or a schedule: any function of the iteration, for example
      one of Optax. Without momentum the iteration is stable for gamma below 2 / (the
      largest eigenvalue of the Hessian of L).
    - `momentum`: b in [0, 1), or None. Heavy ball: `t <- grad L + b t`, then
      `w <- w - gamma t`. `MomentumFlow.following` gives the flow that follows it.
    - `nesterov`: True for `w <- w - gamma (grad L + b t)` with the new t. This is
      Nesterov's method, written for the points at which it takes gradients.
    - `label_noise`: delta >= 0, or a schedule. Every iteration adds `+-delta` to every
      `l'_i`, with a fair random sign, which makes the algorithm stochastic. At loss
      scale 1/4 this is `+-2 delta` on the target.

    **Raises:** `ValueError` for a number outside these ranges, and for `nesterov=True`
    without a momentum.
    """

    def __init__(
        self,
        step_size: Any,
        *,
        momentum: Any = None,
        nesterov: bool = False,
        label_noise: Any = None,
    ):
        super().__init__(step_size, momentum=momentum, nesterov=nesterov, label_noise=label_noise)


class StochasticGradientDescent(AbstractDescent):
    """`w <- w - gamma/b sum_{i in batch} grad l_i(w)`, in the weights.

    One iteration takes a flow time of gamma, or of `gamma / (1 - momentum)`.

    **Arguments:**

    - `step_size`: gamma > 0, or a schedule: any function of the iteration.
    - `batch_size`: b, a whole number from 1 to n.
    - `sampling`: `"with_replacement"`; `"without_replacement"`, with distinct examples
      within a batch; or `"random_reshuffling"`, with a new order of the data each
      epoch, in which examples that do not fill a batch are left out.
    - `momentum`, `nesterov`: as in `GradientDescent`.
    - `label_noise`: as in `GradientDescent`, with an independent sign per drawn
      example.
    - `integral`: which loss `loss_integral` sums before each iteration, always with the
      clean labels. `"full"`: the loss of all examples, at the cost of one forward pass
      over the data per iteration. `"batch"`: the loss of the batch, an unbiased
      estimate at no cost. `"examples"`: the loss of every example, so that
      `final["example_integral"]` has the n sums and `loss_integral` is their mean.

    **Raises:** `ValueError` for numbers that are not positive, for a batch size that is
    not whole, and in `simulate` for a batch size above n.
    """

    def __init__(
        self,
        step_size: Any,
        batch_size: Any = 1,
        *,
        sampling: str = "with_replacement",
        momentum: Any = None,
        nesterov: bool = False,
        label_noise: Any = None,
        integral: str = "full",
    ):
        check_batch(batch_size, sampling)
        super().__init__(
            step_size,
            batch_size=batch_size,
            sampling=sampling,
            momentum=momentum,
            nesterov=nesterov,
            label_noise=label_noise,
            integral=integral,
        )


class SVAG(AbstractDescent):
    """`w <- w - gamma/l [ (1 + sqrt(2l-1))/2 g_1 + (1 - sqrt(2l-1))/2 g_2 ]` with
    independent minibatch gradients g_1 and g_2.

    This is the stochastic variance amplified gradient of Li, Malladi, Arora 2021 (arXiv
    2102.12470), eq. (4). The mean and the covariance of a step are 1/l of SGD's, like
    those of the flow with SGD's exact noise over a time gamma / l. As l grows, the
    iteration converges to that flow; l = 1 is SGD. One iteration takes a flow time of
    `gamma / l`.

    **Arguments:**

    - `step_size`: gamma > 0, or a schedule. A schedule counts iterations of SGD, each
      of which takes l iterations of SVAG.
    - `l`: a whole number >= 1.
    - `batch_size`, `label_noise`, `integral`: as in `StochasticGradientDescent`.
    - `sampling`: `"with_replacement"` or `"without_replacement"`.

    **Raises:** `ValueError` for a number outside these ranges, and for random
    reshuffling, whose minibatches are not independent.
    """

    references: ClassVar[Mapping[str, str]] = {"li2021": "stochastic variance amplified gradient"}

    def __init__(
        self,
        step_size: Any,
        l: int,
        batch_size: Any = 1,
        *,
        sampling: str = "with_replacement",
        label_noise: Any = None,
        integral: str = "full",
    ):
        l = as_whole(l, "l", most=2**20)
        if sampling == "random_reshuffling":
            raise ValueError(
                "SVAG needs independent minibatches: sampling must be 'with_replacement' or "
                "'without_replacement'"
            )
        check_batch(batch_size, sampling)
        super().__init__(
            step_size,
            batch_size=batch_size,
            sampling=sampling,
            label_noise=label_noise,
            l=l,
            integral=integral,
        )


class OptaxDescent(AbstractDescent):
    """An Optax transformation of the gradient of all examples, or of a minibatch.

    **Arguments:**

    - `transformation`: any `optax.GradientTransformation`, e.g. `optax.adam(1e-3)`. It
      contains its own step size, and sees the trainable weights only. Random keys in
      its state (such as those of `optax.add_noise`) are replaced by keys drawn from the
      key of the seed, so that seeds differ. A line search (such as `optax.lbfgs`) is
      given the loss of the drawn examples, with their noisy labels.
    - `step_size`: the flow time of one iteration, a number or a schedule. For
      `optax.sgd(gamma)` this is gamma, and with momentum b it is `gamma / (1 - b)`. If
      no flow is known, 1 makes flow time count iterations.
    - `batch_size`: a whole number from 1 to n, or None for all examples.
    - `sampling`, `label_noise`, `integral`: as in `StochasticGradientDescent`.

    **Raises:** `ValueError` for anything that is not such a transformation, for numbers
    that are not positive, and in `simulate` for a batch size above n.
    """

    references: ClassVar[Mapping[str, str]] = {"optax2020": "the transformation of the gradient"}

    def __init__(
        self,
        transformation: Any,
        step_size: Any,
        batch_size: Any = None,
        *,
        sampling: str = "with_replacement",
        label_noise: Any = None,
        integral: str = "full",
    ):
        if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
            raise ValueError(
                "`transformation` must be an optax.GradientTransformation such as "
                f"optax.adam(1e-3), but is {transformation!r}"
            )
        super().__init__(
            step_size,
            batch_size=batch_size,
            sampling=sampling,
            label_noise=label_noise,
            transformation=transformation,
            integral=integral,
        )


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


def _own(terms: Any) -> _IterationTerm:
    """The `_IterationTerm` inside the wrapper with the direction of time, which Diffrax
    passes to a solver.
    """
    return getattr(terms, "term", terms)


class _IterationTerm(dfx.AbstractTerm):
    """The term of a discrete algorithm, with absolute iteration `offset` at time 0."""

    dynamics: AbstractDescent
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
        inputs, targets = (
            (problem.inputs, problem.targets)
            if index is None
            else (problem.inputs[index], problem.targets[index])
        )
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
                position, memory, vjp(slope / count), gamma, inputs, targets, outputs, noise
            )
        elif dynamics.momentum is not None:
            b = dynamics.momentum.astype(dtype)
            downhill = vjp(slope * (-1 / count))
            memory = jax.tree.map(lambda g, m: g + b * m, downhill, memory)
            moved = (
                jax.tree.map(lambda g, m: g + b * m, downhill, memory)
                if dynamics.nesterov
                else memory
            )
            position = jax.tree.map(lambda w, m: w + gamma * m, position, moved)
        else:
            position = jax.tree.map(jnp.add, position, vjp(slope * (-gamma / (count * dynamics.l))))
        if dynamics.integral != "batch" and index is not None:
            outputs, targets = coordinates.linearise(y[0], problem.inputs)[0], problem.targets
        losses = problem.loss(outputs, targets)
        summed = losses if dynamics.integral == "examples" else jnp.mean(losses)
        return (position, integral + summed * clock.span(step, dtype)), memory

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
    ) -> tuple[Any, Any]:
        """The position and the Optax state after one update by the transformation."""
        parameters, rest = self.coordinates.split(position)
        gradient, book = self.coordinates.split(gradient)

        def objective(f: Array) -> Array:
            """The loss of the outputs `f`, to which noisy labels add a linear term."""
            return jnp.mean(self.problem.loss(f, targets)) + jnp.sum(noise * f) / f.shape[0]

        def value_fn(p: Any) -> Array:
            return objective(self.coordinates.linearise(self.coordinates.join(p, rest), inputs)[0])

        update = optax.with_extra_args_support(self.dynamics.transformation).update
        with jax.numpy_dtype_promotion("standard"):
            value = objective(outputs)
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
