"""Data and loss: what is to be fitted, and the per-example derivatives every algorithm moves along."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Shaped

from sgfbias.core.checks import as_float_array, check_finite, is_concrete


class AbstractLoss(eqx.Module):
    """A per-example loss `l(f_i, y_i)`; only its value and its derivative in the output `f_i` are used."""

    @abc.abstractmethod
    def __call__(self, outputs: Inexact[Array, "n *c"], targets: Shaped[Array, "n *t"]) -> Float[Array, " n"]:
        """Loss of each example, shape (n,)."""

    def derivative(self, outputs: Inexact[Array, "n *c"], targets: Shaped[Array, "n *t"]) -> Inexact[Array, "n *c"]:
        """Derivative `l'(f_i, y_i)` of each example's loss in its own outputs, shape of `outputs`."""
        return jax.grad(lambda f: jnp.sum(self(f, targets)))(outputs)


class SquaredLoss(AbstractLoss):
    """`scale * |f_i - y_i|^2`, summed over outputs.

    The default scale 1/4 makes the mean over examples `L = 1/(4n) sum_i (f_i - y_i)^2`, the convention of Pesme, Pillaud-Vivien,
    Flammarion 2021 (arXiv 2106.09524); papers that write 1/(2n) use scale 1/2.
    """

    scale: float = 0.25

    def __call__(self, outputs, targets):
        squares = jnp.square(outputs - targets) * self.scale
        return squares if squares.ndim == 1 else jnp.sum(squares, axis=tuple(range(1, squares.ndim)))

    def derivative(self, outputs, targets):
        return (outputs - targets) * (2 * self.scale)


class Problem(eqx.Module):
    """`n` examples and a loss; the quantity minimised is the mean `L(network) = 1/n sum_i l(f(x_i), y_i)`.

    **Arguments:** `inputs` (n, ...), `targets` (n, ...), `loss` an `AbstractLoss`.

    **Raises:** `ValueError` if there is no example, the leading sizes disagree, or an entry is NaN or infinite.
    """

    inputs: Inexact[Array, "n ..."]
    targets: Shaped[Array, "n ..."]
    loss: AbstractLoss

    def __init__(self, inputs: Any, targets: Any, *, loss: AbstractLoss | None = None):
        inputs = as_float_array(inputs, "inputs")
        targets = jnp.asarray(targets)
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
        check_finite(inputs, "inputs")
        check_finite(targets, "targets")
        if jnp.issubdtype(targets.dtype, jnp.floating):
            targets = targets.astype(inputs.dtype)
        self.inputs, self.targets = inputs, targets
        self.loss = SquaredLoss() if loss is None else loss

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.inputs.shape[0]

    @property
    def dtype(self) -> Any:
        """Precision of the computation: that of the inputs."""
        return self.inputs.dtype

    def outputs(self, network: Any, inputs: Array | None = None) -> Array:
        """The network's outputs (n, ...) on `inputs` (default: the problem's own)."""
        inputs = self.inputs if inputs is None else inputs
        predict = getattr(network, "predict", None)
        return jax.vmap(network)(inputs) if predict is None else predict(inputs)

    def residuals(self, network: Any) -> Array:
        """`f(x_i) - y_i`, shape (n, ...)."""
        return self.outputs(network) - self.targets

    def risk(self, network: Any) -> Array:
        """The training loss `L`, a scalar."""
        return jnp.mean(self.loss(self.outputs(network), self.targets))

    def derivatives(self, network: Any) -> Array:
        """Per-example derivatives `l'_i` of the loss in the outputs, shape (n, ...)."""
        return self.loss.derivative(self.outputs(network), self.targets)

    def observables(self) -> dict[str, Callable[[Any], Array]]:
        """What this problem can measure on a network besides its loss: name -> function of the network."""
        return {}

    def units(self) -> dict[str, str]:
        """Units of the observables by name, for stores and plots."""
        return {}

    def loss_floor(self) -> float:
        """Loss below which rounding of the outputs hides any further decrease, about `eps^2` times the loss of a zero output."""
        if not is_concrete((self.inputs, self.targets)) or not jnp.issubdtype(self.targets.dtype, jnp.inexact):
            return 0.0
        eps = float(jnp.finfo(self.dtype).eps)
        scale = float(np.mean(np.square(np.asarray(self.targets, dtype=np.float64))))
        return eps**2 * scale
