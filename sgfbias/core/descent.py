"""The discrete algorithms that the flows model, with the same clock as the flows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sgfbias.core.algorithm import AbstractDescent
from sgfbias.core.checks import as_whole, shown
from sgfbias.core.flow import check_momentum
from sgfbias.core.optax_same import first_of_its_kind
from sgfbias.core.rules import AbstractRule, Momentum, Plain, Transformed
from sgfbias.core.sampling import AbstractSampling, as_sampling, is_independent


def _rule(momentum: Any, nesterov: bool) -> AbstractRule:
    """The rule of gradient descent, with or without momentum.

    **Raises:** `ValueError` for a momentum outside [0, 1), and for `nesterov` without a
    momentum.
    """
    if momentum is not None:
        return Momentum(check_momentum(momentum), nesterov)
    if nesterov:
        raise ValueError("nesterov=True needs a momentum, e.g. momentum=0.9")
    return Plain()


def _some(sampling: Any, batch_size: Any) -> AbstractSampling | None:
    """The sampling of an algorithm that by default takes all examples."""
    if batch_size is None and isinstance(sampling, str):
        return None
    return as_sampling(sampling, batch_size)


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
    - `project`: a function of the network that returns the network after every step,
      such as `Sphere(1.0)`, or None.

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
        project: Any = None,
    ):
        super().__init__(
            step_size, _rule(momentum, nesterov), label_noise=label_noise, project=project
        )


class StochasticGradientDescent(AbstractDescent):
    """`w <- w - gamma/b sum_{i in batch} grad l_i(w)`, in the weights.

    One iteration takes a flow time of gamma, or of `gamma / (1 - momentum)`.

    **Arguments:**

    - `step_size`: gamma > 0, or a schedule: any function of the iteration.
    - `batch_size`: b, a whole number from 1 to n, by default 1.
    - `sampling`: `"with_replacement"`; `"without_replacement"`, with distinct examples
      within a batch; or `"random_reshuffling"`, with a new order of the data each
      epoch, in which examples that do not fill a batch are left out. Or an
      `AbstractSampling`, such as `PersistentMask(0.3, persistence=10)`, which says
      itself how many examples it draws, so that `batch_size` is left out.
    - `momentum`, `nesterov`, `project`: as in `GradientDescent`.
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
        batch_size: Any = None,
        *,
        sampling: Any = "with_replacement",
        momentum: Any = None,
        nesterov: bool = False,
        label_noise: Any = None,
        project: Any = None,
        integral: str = "full",
    ):
        super().__init__(
            step_size,
            _rule(momentum, nesterov),
            sampling=as_sampling(sampling, batch_size),
            label_noise=label_noise,
            project=project,
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
    - `batch_size`, `label_noise`, `project`, `integral`: as in
      `StochasticGradientDescent`.
    - `sampling`: `"with_replacement"` or `"without_replacement"`.

    **Raises:** `ValueError` for a number outside these ranges, for random reshuffling,
    whose minibatches are not independent, and for samplings with a memory.
    """

    references: ClassVar[Mapping[str, str]] = {"li2021": "stochastic variance amplified gradient"}

    def __init__(
        self,
        step_size: Any,
        l: int,
        batch_size: Any = None,
        *,
        sampling: Any = "with_replacement",
        label_noise: Any = None,
        project: Any = None,
        integral: str = "full",
    ):
        l = as_whole(l, "l", most=2**20)
        drawn = as_sampling(sampling, batch_size)
        if not is_independent(drawn):
            raise ValueError(
                "SVAG needs independent minibatches: sampling must be 'with_replacement' or "
                "'without_replacement'"
            )
        super().__init__(
            step_size,
            Plain(),
            sampling=drawn,
            label_noise=label_noise,
            project=project,
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
    - `sampling`, `label_noise`, `project`, `integral`: as in
      `StochasticGradientDescent`.

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
        sampling: Any = "with_replacement",
        label_noise: Any = None,
        project: Any = None,
        integral: str = "full",
    ):
        if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
            raise ValueError(
                "`transformation` must be an optax.GradientTransformation such as "
                f"optax.adam(1e-3), but is {transformation!r}"
            )
        super().__init__(
            step_size,
            Transformed(first_of_its_kind(transformation)),
            sampling=_some(sampling, batch_size),
            label_noise=label_noise,
            project=project,
            integral=integral,
        )


class RuleDescent(AbstractDescent):
    """An update rule of the user, on all examples or on minibatches.

    **Arguments:**

    - `rule`: an `AbstractRule`.
    - `step_size`: gamma > 0, or a schedule: what the rule is given as
      `point.step_size`, and the flow time of one iteration.
    - `batch_size`: a whole number from 1 to n, or None for all examples.
    - `sampling`, `label_noise`, `project`, `integral`: as in
      `StochasticGradientDescent`.

    **Raises:** `ValueError` for anything that is not a rule, for numbers that are not
    positive, for samples, label noise or a penalty with a rule that moves along the
    gradient of log L, and in `simulate` for a batch size above n.
    """

    def __init__(
        self,
        rule: Any,
        step_size: Any,
        batch_size: Any = None,
        *,
        sampling: Any = "with_replacement",
        label_noise: Any = None,
        project: Any = None,
        integral: str = "full",
    ):
        if not isinstance(rule, AbstractRule):
            raise ValueError(
                "`rule` must be an AbstractRule (sgfbias.core.rules), but is "
                f"{shown(rule)}; for a transformation of Optax take OptaxDescent"
            )
        drawn = _some(sampling, batch_size)
        if rule.logarithmic and (drawn is not None or label_noise is not None):
            raise ValueError(
                f"{type(rule).__name__} moves along the gradient of log L, which is that of the "
                "loss of all examples: leave out `batch_size`, `sampling` and `label_noise`"
            )
        super().__init__(
            step_size,
            rule,
            sampling=drawn,
            label_noise=label_noise,
            project=project,
            integral=integral,
        )
