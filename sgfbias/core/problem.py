"""Data and loss: what is to be fitted, and the per-example derivatives every algorithm moves along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Shaped

from sgfbias.core.checks import as_float_array, check_finite, is_concrete
from sgfbias.core.loss import AbstractLoss, as_loss
from sgfbias.core.network import evaluate


class Problem(eqx.Module):
    """`n` examples and a loss; the quantity minimised is the mean `L(network) = 1/n sum_i l(f(x_i), y_i)`.

    **Arguments:** `inputs` (n, ...), `targets` (n, ...), `loss`: an `AbstractLoss`, or a function `(output_i, target_i) -> scalar` of one
    example; default `SquaredLoss()`.

    **Raises:** `ValueError` if there is no example, the leading sizes disagree, an entry is NaN or infinite, or the loss cannot use such
    targets.
    """

    inputs: Inexact[Array, "n ..."]
    targets: Shaped[Array, "n ..."]
    loss: AbstractLoss

    def __init__(self, inputs: Any, targets: Any, *, loss: Any = None):
        inputs = as_float_array(inputs, "inputs")
        try:
            targets = jnp.asarray(targets)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`targets` must be an array of numbers, class labels as whole numbers, but cannot be made one: {error}"
            ) from error
        if inputs.ndim == 0 or targets.ndim == 0:
            raise ValueError(
                f"`inputs` and `targets` must have a leading axis of examples, but have shapes {inputs.shape} and {targets.shape}"
            )
        if inputs.shape[0] == 0:
            raise ValueError(f"a problem needs at least one example (n >= 1), but `inputs` has shape {inputs.shape}")
        if inputs.shape[0] != targets.shape[0]:
            raise ValueError(
                f"`inputs` and `targets` must have the same number of examples, but have shapes {inputs.shape} and {targets.shape}"
            )
        if jnp.finfo(inputs.dtype).bits < 32:
            raise ValueError(
                f"`inputs` have dtype {inputs.dtype}, which sets the precision of the computation, and that must be float32 or float64: steps are "
                "counted in it; write inputs.astype('float32')"
            )
        check_finite(inputs, "inputs")
        check_finite(targets, "targets")
        if jnp.issubdtype(targets.dtype, jnp.floating):
            targets = targets.astype(inputs.dtype)
        self.inputs, self.targets = inputs, targets
        self.loss = as_loss(loss)
        self.loss.check_targets(targets)

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.inputs.shape[0]

    @property
    def dtype(self) -> Any:
        """Precision of the computation: that of the inputs."""
        return self.inputs.dtype

    def outputs(self, network: Any, inputs: Array | None = None) -> Any:
        """The network's outputs (n, ...) on `inputs` (default: the problem's own)."""
        return evaluate(network, self.inputs if inputs is None else inputs)

    def residuals(self, network: Any) -> Array:
        """`f(x_i) - y_i`, shape (n, ...)."""
        return self.outputs(network) - self.targets

    def risk(self, network: Any) -> Array:
        """The training loss `L`, a scalar."""
        return jnp.mean(self.loss(self.outputs(network), self.targets))

    def derivatives(self, network: Any) -> Array:
        """Per-example derivatives `l'_i` of the loss in the outputs, shape (n, ...)."""
        return self.loss.derivative(self.outputs(network), self.targets)

    def observables(self, network: Any) -> dict[str, Callable[[Any], Array]]:
        """What this problem can measure on such a network besides its loss: name -> function of the network."""
        return {}

    def dims(self) -> dict[str, tuple[str, ...]]:
        """Dimension names of the observables that are not scalars."""
        return {}

    def units(self) -> dict[str, str]:
        """Units of the observables by name, for stores and plots."""
        return {}

    def least_loss(self, network: Any) -> float | None:
        """The least mean loss that such a network can reach on these data; None if that is not known."""
        return None

    def resolution(self) -> float:
        """Loss below which rounding of the outputs hides any further decrease, about `eps^2` times the loss of a zero output."""
        if not is_concrete((self.inputs, self.targets)) or not jnp.issubdtype(self.targets.dtype, jnp.inexact):
            return 0.0
        eps = float(jnp.finfo(self.dtype).eps)
        scale = float(np.mean(np.square(np.asarray(self.targets, dtype=np.float64))))
        return eps**2 * scale
