"""The discrete algorithms the flows model, on the flows' clock.

An iteration pulls one cotangent back to the weights, `-gamma s l'/n` with random example weights s of mean 1, and moves along it plainly,
with momentum, or by an Optax transformation. One solver runs them all: a solver step is an iteration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from sgfbias.core.brownian import LABEL_STREAM, SAMPLING_STREAM, SECOND_STREAM, TRANSFORMATION_STREAM
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.flow import check_momentum
from sgfbias.core.problem import Problem
from sgfbias.core.sampling import check_against, check_batch, sample_batch, signs
from sgfbias.core.schedule import Clock, as_scheduled, value_at


class AbstractDescent(AbstractDynamics):
    """An iteration in the weights: which examples, which labels, and what is done with the gradient.

    The public classes below choose: full batch, minibatches, two minibatches with coefficients (SVAG), an Optax transformation.
    """

    step_size: Any
    label_noise: Any
    momentum: Array | None
    transformation: Any
    batch_size: int | None = eqx.field(static=True)  # None: all examples
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
        self.label_noise = None if label_noise is None else as_scheduled(label_noise, "label_noise", zero_allowed=True)
        self.momentum = None if momentum is None else check_momentum(momentum)
        if nesterov and momentum is None:
            raise ValueError("nesterov=True needs a momentum, e.g. momentum=0.9")
        self.batch_size, self.sampling = None if batch_size is None else check_batch(batch_size, sampling), sampling
        if integral not in ("full", "batch", "examples"):
            raise ValueError(f"`integral` must be 'full', 'batch' or 'examples', but is {integral!r}")
        self.nesterov, self.l, self.transformation, self.integral = nesterov, l, transformation, integral

    @property
    def is_stochastic(self):
        return self.batch_size is not None or self.label_noise is not None or _draws(self.transformation)

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
            raise ValueError(f"{type(self).__name__} is an iteration, not an equation: `solver` must be left out, but is {solver!r}")
        return _IterationTerm(self, coordinates, problem, key, offset)

    def check(self, n: int) -> None:
        """Refuse batches that do not fit n examples.

        **Raises:** `ValueError` with what does.
        """
        if self.batch_size is not None:
            check_against(self.batch_size, self.sampling, n)


class GradientDescent(AbstractDescent):
    """`w <- w - gamma grad L(w)`, in the weights; one iteration is gamma units of flow time, `gamma / (1 - b)` with momentum b.

    **Arguments:**

    - `step_size`: gamma > 0, or a schedule, any function of the iteration (of Optax, for one).
    - `momentum`: b in [0, 1). Heavy ball: `t <- grad L + b t`, `w <- w - gamma t`. `nesterov`: `w <- w - gamma (grad L + b t)` with the
      new t, which is Nesterov's method followed at the points where it takes gradients. The flow of both is `MomentumFlow.following`.
    - `label_noise`: delta >= 0 or a schedule; every `l'_i` gets a fair `+-delta` at every iteration, which at loss scale 1/4 is `+-2 delta`
      on the target. Makes the algorithm stochastic.
    """

    def __init__(self, step_size: Any, *, momentum: Any = None, nesterov: bool = False, label_noise: Any = None):
        super().__init__(step_size, momentum=momentum, nesterov=nesterov, label_noise=label_noise)


class StochasticGradientDescent(AbstractDescent):
    """`w <- w - gamma/b sum_{i in batch} grad l_i(w)`, in the weights; one iteration is gamma units of flow time.

    **Arguments:**

    - `step_size`, `momentum`, `nesterov`, `label_noise` (independent per drawn example): as in `GradientDescent`.
    - `batch_size`: from 1 to n. `sampling`: `"with_replacement"`, `"without_replacement"` (distinct within a batch), or
      `"random_reshuffling"` (a new order each epoch; what does not fill a batch is left out of that epoch).
    - `integral`: what `loss_integral` sums before each iteration: `"full"`, the loss on all examples (one forward pass over the data per
      iteration); `"batch"`, the loss on the batch, an unbiased estimate that costs nothing; `"examples"`, every example's own loss, of
      which `final["example_integral"]` keeps the n sums and `loss_integral` is the mean. Always with the clean labels.

    **Raises:** `ValueError` for numbers that are not positive, a batch size that is not whole or (in `simulate`) above n.
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
    """`w <- w - gamma/l [ (1 + sqrt(2l-1))/2 g_1 + (1 - sqrt(2l-1))/2 g_2 ]`, g_1 and g_2 independent minibatch gradients.

    Stochastic variance amplified gradient, Li, Malladi, Arora 2021 (arXiv 2102.12470), eq. (4): the mean of a step falls by l and its
    covariance too, as those of the flow with SGD's exact noise over time gamma / l, to which it converges. l = 1 is SGD. One iteration is
    `gamma / l` units of flow time.

    **Arguments:** `l`: a whole number >= 1. The others as in `StochasticGradientDescent`; a schedule counts iterations of SGD, of which
    each takes l of these.
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
        if isinstance(l, bool) or not isinstance(l, int | np.integer) or l < 1:
            raise ValueError(f"`l` must be a whole number >= 1, but is {l!r}")
        if sampling == "random_reshuffling":
            raise ValueError("SVAG needs independent minibatches: sampling must be 'with_replacement' or 'without_replacement'")
        check_batch(batch_size, sampling)
        super().__init__(step_size, batch_size=batch_size, sampling=sampling, label_noise=label_noise, l=int(l), integral=integral)


class OptaxDescent(AbstractDescent):
    """Any `optax.GradientTransformation` on the gradient of all examples or of a minibatch.

    **Arguments:**

    - `transformation`: e.g. `optax.adam(1e-3)`; it contains its own step size. It sees the trainable weights only. Random keys in its
      state (as of `optax.add_noise`) are replaced by ones drawn from the seed's key, so that seeds differ. A line search (`optax.lbfgs`)
      gets the loss of the examples drawn, with their noisy labels.
    - `step_size`: the flow time of one iteration, a number or a schedule: for `optax.sgd(gamma)` that is gamma, with momentum b
      `gamma / (1 - b)`; where no flow is known, 1 makes flow time count iterations.
    - `batch_size`: None, all examples. `sampling`, `label_noise`, `integral`: as in `StochasticGradientDescent`.
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
                f"`transformation` must be an optax.GradientTransformation such as optax.adam(1e-3), but is {transformation!r}"
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
    """One iteration of a discrete algorithm per step; what it remembers (a momentum, an Optax state) is the solver's state."""

    term_structure: ClassVar[Any] = dfx.AbstractTerm
    interpolation_cls: ClassVar[Any] = dfx.LocalLinearInterpolation

    def order(self, terms):
        """None: an algorithm approximates nothing."""
        return None

    def init(self, terms, t0, t1, y0, args):
        """The memory before the first iteration."""
        return _own(terms).remember(y0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One iteration from the state `(weights, loss integral)`."""
        y1, solver_state = _own(terms).iterate(t0, y0, solver_state)
        return y1, None, {"y0": y0, "y1": y1}, solver_state, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The vector field; not used by iterations."""
        return terms.vf(t0, y0, args)


def _own(terms: Any) -> _IterationTerm:
    return getattr(terms, "term", terms)  # Diffrax hands over a wrapper that knows the direction of time


def _keys_in(memory: Any) -> list[bool]:
    """Which leaves of an Optax state are random keys, old style or new."""

    def is_key(leaf: Any) -> bool:
        if not hasattr(leaf, "dtype"):
            return False
        return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or (leaf.dtype == jnp.uint32 and leaf.shape == (2,))

    return [is_key(leaf) for leaf in jax.tree.leaves(memory)]


def _draws(transformation: Any) -> bool:
    """Whether a transformation draws random numbers of its own; one that needs particular parameters is taken not to."""
    if transformation is None:
        return False
    try:
        with jax.numpy_dtype_promotion("standard"):
            return any(_keys_in(jax.eval_shape(transformation.init, jnp.zeros(1))))
    except (TypeError, ValueError, AttributeError, KeyError):
        return False


def _reseed(memory: Any, key: Array) -> Any:
    """The state with its random keys drawn from `key`."""
    leaves, structure = jax.tree.flatten(memory)
    for place, drawn in enumerate(_keys_in(memory)):
        if drawn:
            old, fresh = leaves[place], jax.random.fold_in(key, place)
            if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
                words = jax.random.bits(fresh, jax.random.key_data(old).shape, jnp.uint32)
                leaves[place] = jax.random.wrap_key_data(words, impl=jax.random.key_impl(old))
            else:
                leaves[place] = jax.random.bits(fresh, old.shape, jnp.uint32)
    return jax.tree.unflatten(structure, leaves)


class _IterationTerm(dfx.AbstractTerm):
    dynamics: AbstractDescent
    coordinates: AbstractCoordinates
    problem: Problem
    key: Array | None
    offset: Array

    def remember(self, y: Any) -> Any:
        parameters, _ = self.coordinates.split(y[0])
        if self.dynamics.transformation is not None:
            # A copy of the weights inside the state (lookahead, say) must not be the weights themselves.
            with jax.numpy_dtype_promotion("standard"):  # Optax mixes precisions
                memory = self.dynamics.transformation.init(parameters)
            memory = jax.tree.map(lambda leaf: leaf + 0 if eqx.is_inexact_array(leaf) else leaf, memory)
            return memory if self.key is None else _reseed(memory, jax.random.fold_in(self.key, TRANSFORMATION_STREAM))
        return () if self.dynamics.momentum is None else jax.tree.map(jnp.zeros_like, y[0])

    def iterate(self, t0: Array, y: Any, memory: Any) -> Any:
        dynamics, problem, coordinates = self.dynamics, self.problem, self.coordinates
        (position, integral), dtype = y, problem.dtype
        step = self.offset + jnp.round(t0).astype(jnp.int32)
        clock = dynamics.clock
        gamma = clock.gamma(step, dtype)
        index = self._batch(step)
        inputs, targets = (problem.inputs, problem.targets) if index is None else (problem.inputs[index], problem.targets[index])
        outputs, pull = coordinates.linearise(position, inputs)
        slope = self._slopes(step, outputs, targets)
        count = dynamics.batch_size or problem.n
        if dynamics.transformation is not None:
            noise = 0 * slope if dynamics.label_noise is None else slope - problem.loss.derivative(outputs, targets)
            position, memory = self._transformed(position, memory, pull(slope / count), gamma, inputs, targets, outputs, noise)
        elif dynamics.momentum is not None:
            b = dynamics.momentum.astype(dtype)
            downhill = pull(slope * (-1 / count))
            memory = jax.tree.map(lambda g, m: g + b * m, downhill, memory)
            moved = jax.tree.map(lambda g, m: g + b * m, downhill, memory) if dynamics.nesterov else memory
            position = jax.tree.map(lambda w, m: w + gamma * m, position, moved)
        else:
            position = jax.tree.map(jnp.add, position, pull(slope * (-gamma / (count * dynamics.l))))
        if dynamics.integral != "batch" and index is not None:
            outputs, targets = coordinates.linearise(y[0], problem.inputs)[0], problem.targets
        losses = problem.loss(outputs, targets)
        summed = losses if dynamics.integral == "examples" else jnp.mean(losses)
        return (position, integral + summed * clock.span(step, dtype)), memory

    def _batch(self, step: Array) -> Array | None:
        """Indices of the drawn examples, (b,) or for SVAG (2 b,); None: all."""
        dynamics = self.dynamics
        if dynamics.batch_size is None:
            return None
        streams = [SAMPLING_STREAM] if dynamics.l == 1 else [SAMPLING_STREAM, SECOND_STREAM]
        drawn = [
            sample_batch(jax.random.fold_in(self.key, s), step, dynamics.batch_size, self.problem.n, dynamics.sampling) for s in streams
        ]
        return drawn[0] if dynamics.l == 1 else jnp.concatenate(drawn)

    def _slopes(self, step: Array, outputs: Array, targets: Array) -> Array:
        """Per-example derivatives, with noisy labels and SVAG's coefficients."""
        dynamics, dtype = self.dynamics, self.problem.dtype
        slope = self.problem.loss.derivative(outputs, targets)
        if dynamics.label_noise is not None:
            delta = value_at(dynamics.label_noise, dynamics.clock.iteration(step), dtype)
            slope = slope + delta * signs(jax.random.fold_in(self.key, LABEL_STREAM), step, outputs.shape, dtype)
        if dynamics.l == 1:
            return slope
        root = math.sqrt(2 * dynamics.l - 1)
        coefficients = jnp.repeat(jnp.asarray([(1 + root) / 2, (1 - root) / 2], dtype), outputs.shape[0] // 2)
        return slope * coefficients.reshape(-1, *(1,) * (slope.ndim - 1))

    def _transformed(
        self, position: Any, memory: Any, gradient: Any, gamma: Array, inputs: Array, targets: Array, outputs: Array, noise: Array
    ) -> tuple[Any, Any]:
        parameters, rest = self.coordinates.split(position)
        gradient, book = self.coordinates.split(gradient)

        def objective(f: Array) -> Array:
            """The function of the outputs whose gradient this is: noisy labels add a linear term."""
            return jnp.mean(self.problem.loss(f, targets)) + jnp.sum(noise * f) / f.shape[0]

        def value_fn(p: Any) -> Array:
            return objective(self.coordinates.linearise(self.coordinates.join(p, rest), inputs)[0])

        update = optax.with_extra_args_support(self.dynamics.transformation).update
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = update(gradient, memory, parameters, value=objective(outputs), grad=gradient, value_fn=value_fn)
            parameters = optax.apply_updates(parameters, updates)
        return self.coordinates.join(parameters, jax.tree.map(lambda a, b: a - gamma * b, rest, book)), memory

    # The interface Diffrax checks; iterations go through `iterate`.
    def contr(self, t0, t1, **kwargs):
        return t1 - t0

    def vf(self, t, y, args):
        return y

    def prod(self, vf, control):
        return vf
