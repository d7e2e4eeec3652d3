"""Data and loss, and the per-example derivatives along which every algorithm moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Shaped

from sgfbias.core.checks import as_float_array, as_numbers, check_finite, is_concrete
from sgfbias.core.jacobian import Jacobian, jacobian
from sgfbias.core.loss import AbstractLoss, as_loss
from sgfbias.core.network import evaluate


class Problem(eqx.Module):
    """`L(network) = 1/n sum_i l(f(x_i), y_i)`, the mean loss of n examples.

    **Arguments:**

    - `inputs`: (n, ...), real. Their precision, float32 or float64, is that of the
      computation.
    - `targets`: (n, ...), real numbers or class labels, as the loss needs them.
    - `loss`: an `AbstractLoss`, or a function `(output_i, target_i) -> scalar` of one
      example. Default `SquaredLoss()`.
    - `perturb`: a rule that changes the examples of every iteration before their loss
      is taken, or None. It is any callable `(network, inputs, targets, key) -> inputs`
      that maps the examples of one iteration, (b, ...), to as many of the same shape
      and dtype, such as an augmentation or an adversary. The key is drawn for each
      seed and iteration. Derivatives do not pass through the rule. Losses that a run
      records, and their integral, are those of the unchanged examples.
    - `penalty`: a function `(network, step) -> scalar` that is added to the loss of
      which all dynamics take the gradient, without noise, or None. In a discrete
      algorithm and in a stochastic flow, `step` is the whole iteration 0, 1, 2, ..., as
      schedules count it. In a deterministic flow it is a real number: the time in
      solver steps, or the flow time of an adaptive solver. A penalty is for models that
      move in their own weights. A run records it as `penalty`. The recorded `loss`, and
      its integral, are without it.

    **Raises:** `ValueError` if there is no example, if the numbers of inputs and
    targets differ, if an entry is NaN or infinite, if the inputs have less than 32
    bits, if the loss cannot use the targets, or if `perturb` or `penalty` is not
    callable.
    """

    # Whether the examples are data. In a subclass with False the mean over examples is
    # an expectation in another form, and the examples have no noise.
    sampled: ClassVar[bool] = True
    inputs: Inexact[Array, "n ..."]
    targets: Shaped[Array, "n ..."]
    loss: AbstractLoss
    perturb: Any = None
    penalty: Any = None

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        loss: Any = None,
        perturb: Any = None,
        penalty: Any = None,
    ):
        inputs = as_float_array(inputs, "inputs")
        targets = as_numbers(
            targets, "targets", "an array of numbers, class labels as whole numbers"
        )
        if inputs.ndim == 0 or targets.ndim == 0:
            raise ValueError(
                "`inputs` and `targets` must have a leading axis of examples, but have shapes "
                f"{inputs.shape} and {targets.shape}"
            )
        if inputs.shape[0] == 0:
            raise ValueError(
                "a problem needs at least one example (n >= 1), but `inputs` has shape "
                f"{inputs.shape}"
            )
        if inputs.shape[0] != targets.shape[0]:
            raise ValueError(
                "`inputs` and `targets` must have the same number of examples, but have shapes "
                f"{inputs.shape} and {targets.shape}"
            )
        if jnp.finfo(inputs.dtype).bits < 32:
            raise ValueError(
                f"`inputs` have dtype {inputs.dtype}, but the computation uses the precision of "
                "the inputs, and steps are counted in it, so it must be float32 or float64; write "
                "inputs.astype('float32')"
            )
        check_finite(inputs, "inputs")
        check_finite(targets, "targets")
        if jnp.issubdtype(targets.dtype, jnp.floating):
            targets = targets.astype(inputs.dtype)
        self.inputs, self.targets = inputs, targets
        self.loss = as_loss(loss)
        self.loss.check_targets(targets)
        if perturb is not None and (isinstance(perturb, type) or not callable(perturb)):
            raise ValueError(
                "`perturb` must be a function (network, inputs, targets, key) -> inputs, which "
                f"changes the examples of an iteration, but is {perturb!r}"
            )
        self.perturb = perturb
        if penalty is not None and (isinstance(penalty, type) or not callable(penalty)):
            raise ValueError(
                "`penalty` must be a function (network, step) -> scalar, which is added to the "
                f"loss, but is {penalty!r}"
            )
        self.penalty = penalty

    @property
    def n(self) -> int:
        """The number of examples."""
        return self.inputs.shape[0]

    @property
    def dtype(self) -> Any:
        """The precision of the computation, which is that of the inputs."""
        return self.inputs.dtype

    def outputs(self, network: Any, inputs: Array | None = None) -> Any:
        """The outputs (n, ...) of `network` on `inputs`, by default on the problem's
        own inputs.
        """
        return evaluate(network, self.inputs if inputs is None else inputs)

    def perturbed(self, network: Any, inputs: Array, targets: Array, key: Array) -> Array:
        """The examples `inputs` as `perturb` changes them for one iteration.

        Derivatives do not pass through the change. Without a rule they are unchanged.

        **Arguments:**

        - `network`: the network before the iteration.
        - `inputs`, `targets`: the examples of the iteration, (b, ...).
        - `key`: the key of this seed and iteration.

        **Raises:** `ValueError` if the rule fails, or returns another shape or dtype.
        """
        if self.perturb is None:
            return inputs
        asked = "must be a function (network, inputs, targets, key) -> inputs"
        try:
            changed = self.perturb(network, inputs, targets, key)
        except Exception as error:  # a user's rule can raise anything
            raise ValueError(
                f"`perturb` {asked}, but on {inputs.shape[0]} examples it raises "
                f"{type(error).__name__}: {error}"
            ) from error
        shape, dtype = getattr(changed, "shape", None), getattr(changed, "dtype", None)
        if shape != inputs.shape or dtype != inputs.dtype:
            given = type(changed).__name__ if shape is None else f"shape {shape} and dtype {dtype}"
            raise ValueError(
                f"`perturb` {asked} of the same shape {inputs.shape} and dtype {inputs.dtype}, "
                f"but returns {given}"
            )
        return jax.lax.stop_gradient(changed)

    def penalised(self, network: Any, step: Any) -> Array:
        """The value of `penalty` on `network` at `step`, a scalar in the precision of
        the computation. It is 0 if there is no penalty.

        **Raises:** `ValueError` if the penalty fails, or does not return a real scalar.
        """
        if self.penalty is None:
            return jnp.zeros((), self.dtype)
        asked = "must be a function (network, step) -> scalar"
        try:
            value = self.penalty(network, step)
        except Exception as error:  # a user's penalty can raise anything
            raise ValueError(
                f"`penalty` {asked}, but on a {type(network).__name__} it raises "
                f"{type(error).__name__}: {error}"
            ) from error
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if isinstance(value, int | float):
            shape, dtype = (), jnp.result_type(float)
        if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            given = (
                type(value).__name__ if shape is None else f"a value of shape {shape} and {dtype}"
            )
            raise ValueError(f"`penalty` {asked} in floating point, but returns {given}")
        return jnp.asarray(value, self.dtype)

    def jacobian(self, network: Any, *, trainable: Any = None, microbatch: Any = None) -> Jacobian:
        """The Jacobian of the outputs (n, ...) in the parameters of `network`, as a
        linear operator that is never formed.

        **Arguments:**

        - `network`: an Equinox module.
        - `trainable`: which arrays are parameters, as in `simulate`. Default: what the
          network declares, or all floating-point arrays.
        - `microbatch`: the number of examples that are evaluated at a time, or None for
          all.

        **Raises:** `ValueError` for a network without trainable parameters, and for a
        `microbatch` that is not a whole number >= 1.
        """
        return jacobian(
            network,
            self.inputs,
            self.outputs,
            self.dtype,
            trainable=trainable,
            microbatch=microbatch,
        )

    def residuals(self, network: Any) -> Array:
        """The residuals `f(x_i) - y_i`, shape (n, ...)."""
        return self.outputs(network) - self.targets

    def risk(self, network: Any) -> Array:
        """The training loss `L`, a scalar."""
        return jnp.mean(self.loss(self.outputs(network), self.targets))

    def log_risk(self, network: Any) -> Array:
        """The logarithm `log L` of the training loss, a scalar.

        With a loss of classification it is finite also where `L` underflows to 0.
        """
        logs = self.loss.log(self.outputs(network), self.targets)
        return jax.nn.logsumexp(logs) - jnp.log(jnp.asarray(self.n, logs.dtype))

    def derivatives(self, network: Any) -> Array:
        """The per-example derivatives `l'_i` of the loss in the outputs, (n, ...)."""
        return self.loss.derivative(self.outputs(network), self.targets)

    def observables(self, network: Any) -> dict[str, Callable[[Any], Array]]:
        """The observables of this problem besides the loss: name -> function of a
        network such as `network`.
        """
        return {}

    def dims(self) -> dict[str, tuple[str, ...]]:
        """The names of the dimensions of the observables that are not scalars."""
        return {}

    def units(self) -> dict[str, str]:
        """The units of the observables by name, for stores and plots."""
        return {}

    def check_network(self, network: Any) -> None:
        """Refuse a network for which this problem makes no sense.

        It is asked once in every run, after the shapes have been checked. If every seed
        has its own start, the first one is given.

        **Raises:** `ValueError` that says what to do.
        """
        return None

    def least_loss(self, network: Any) -> float | None:
        """The least mean loss that a network such as `network` can reach on these data,
        or None if it is not known.
        """
        return None

    def resolution(self) -> float:
        """The loss below which the rounding of the outputs hides any further decrease.

        This is `eps^2` times the mean square of the targets, and 0 if they are not real
        numbers or are being traced.
        """
        if not is_concrete((self.inputs, self.targets)) or not jnp.issubdtype(
            self.targets.dtype, jnp.inexact
        ):
            return 0.0
        eps = float(jnp.finfo(self.dtype).eps)
        scale = float(np.mean(np.square(np.asarray(self.targets, dtype=np.float64))))
        return eps**2 * scale
