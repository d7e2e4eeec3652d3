"""The discrete algorithms that the flows model, with the same clock as the flows.

One iteration pulls the cotangent `-gamma s l'/n` back to the weights, where s are
random weights of the examples, with mean 1. It moves the weights along the result
plainly, with momentum, or by an Optax transformation. One solver runs all algorithms,
and each of its steps is one iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_whole
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.flow import check_momentum
from sgfbias.core.iteration import Iteration, IterationTerm
from sgfbias.core.optax_keys import draws_keys
from sgfbias.core.sampling import check_against, check_batch
from sgfbias.core.schedule import Clock, as_scheduled


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
    def draws_examples(self):
        return self.batch_size is not None or self.label_noise is not None

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
        return IterationTerm(self, coordinates, problem, key, offset)

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
