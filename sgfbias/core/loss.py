"""Per-example losses: value, derivative in the outputs, and the targets they take."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Inexact, Shaped

from sgfbias.core.checks import is_concrete


class AbstractLoss(eqx.Module):
    """A per-example loss `l(f_i, y_i)`; only its value and its derivative in the output `f_i` are used.

    `lower_bound`: a number that no loss is below, if one is known; then a run within rounding of it counts as converged. None, the default
    for losses that users write, leaves that to `simulate(..., stop=)`.
    """

    lower_bound: ClassVar[float | None] = None

    @abc.abstractmethod
    def __call__(self, outputs: Inexact[Array, "n *c"], targets: Shaped[Array, "n *t"]) -> Float[Array, " n"]:
        """Loss of each example, shape (n,)."""

    def derivative(self, outputs: Inexact[Array, "n *c"], targets: Shaped[Array, "n *t"]) -> Inexact[Array, "n *c"]:
        """Derivative `l'(f_i, y_i)` of each example's loss in its own outputs, shape of `outputs`."""
        return jax.grad(lambda f: jnp.sum(self(f, targets)))(outputs)

    def check_targets(self, targets: Array) -> None:
        """Refuse targets this loss cannot use.

        **Raises:** `ValueError` with what it can.
        """
        return None

    def check(self, outputs: jax.ShapeDtypeStruct, targets: Array) -> None:
        """Refuse outputs that do not fit the targets, and a loss that is not one number per example.

        **Raises:** `ValueError` with what was expected.
        """
        try:
            losses = jax.eval_shape(self, outputs, targets).shape
        except (TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
            raise ValueError(
                f"the loss {type(self).__name__} cannot be evaluated on outputs of shape {outputs.shape} and targets of shape {targets.shape}: "
                f"{error}"
            ) from error
        if losses != outputs.shape[:1]:
            raise ValueError(
                f"a loss must return one number per example, shape {outputs.shape[:1]}, but {type(self).__name__} returns shape {losses}; "
                "the mean over examples is taken for you"
            )
        _check_separate(self, outputs, targets)


def _check_separate(loss: AbstractLoss, outputs: jax.ShapeDtypeStruct, targets: Array) -> None:
    """Refuse a loss whose value for one example depends on another's output, such as one of a batch's ranks or contrasts."""
    if outputs.shape[0] < 2 or not is_concrete((loss, targets)):
        return
    wave = jnp.cos(jnp.arange(np.prod(outputs.shape), dtype=outputs.dtype)).reshape(outputs.shape)
    tangent = jnp.zeros_like(wave).at[0].set(1)
    # A loss of probabilities or of positive outputs is looked at where it is defined, in the second place.
    for at in (wave, 0.5 + 0.4 * wave):
        _, moved = jax.jvp(lambda f: loss(f, targets), (at,), (tangent,))
        if not is_concrete(moved):
            return  # the loss has closed over something that is being traced
        others = np.asarray(moved)[1:]
        if np.isfinite(moved).all():
            break
    if np.any(np.isfinite(others) & (others != 0)):
        raise ValueError(
            f"{type(loss).__name__} is not a per-example loss: changing the output of example 0 changes the loss of "
            f"{int(np.count_nonzero(others))} others. Noise and minibatches are defined for a mean over examples of l(f_i, y_i) only"
        )


def _same_shape(loss: AbstractLoss, outputs: jax.ShapeDtypeStruct, targets: Array) -> None:
    if outputs.shape != targets.shape:
        raise ValueError(
            f"with {type(loss).__name__} the targets must have the shape of the model's outputs, {outputs.shape}, but have shape {targets.shape}"
        )


class SquaredLoss(AbstractLoss):
    """`scale * |f_i - y_i|^2`, summed over outputs.

    The default scale 1/4 makes the mean over examples `L = 1/(4n) sum_i (f_i - y_i)^2`, the convention of Pesme, Pillaud-Vivien,
    Flammarion 2021 (arXiv 2106.09524); papers that write 1/(2n) use scale 1/2. Targets: real, the shape of the outputs.
    """

    lower_bound: ClassVar[float | None] = 0.0
    scale: float = 0.25

    def __call__(self, outputs, targets):
        squares = jnp.square(outputs - targets) * self.scale
        return squares if squares.ndim == 1 else jnp.sum(squares, axis=tuple(range(1, squares.ndim)))

    def derivative(self, outputs, targets):
        return (outputs - targets) * (2 * self.scale)

    def check_targets(self, targets):
        if not jnp.issubdtype(targets.dtype, jnp.floating):
            raise ValueError(
                f"a squared loss needs real targets, but they have dtype {targets.dtype}: for class labels use "
                "loss=SoftmaxCrossEntropyLoss() or LogisticLoss(), or one-hot targets (jax.nn.one_hot); for numbers that happen to be whole, "
                "cast them to float"
            )

    def check(self, outputs, targets):
        _same_shape(self, outputs, targets)


class LogisticLoss(AbstractLoss):
    """`log(1 + exp(-s_i f_i))` for two classes, one output per example. Targets: -1 and 1, or 0 and 1, or booleans, shape of the outputs."""

    lower_bound: ClassVar[float | None] = 0.0

    def _signs(self, outputs: Array, targets: Array) -> Array:
        return jnp.where(targets > 0, 1, -1).astype(outputs.dtype)

    def __call__(self, outputs, targets):
        return jnp.logaddexp(jnp.zeros((), outputs.dtype), -self._signs(outputs, targets) * outputs).reshape(outputs.shape[0])

    def derivative(self, outputs, targets):
        signs = self._signs(outputs, targets)
        return -signs * jax.nn.sigmoid(-signs * outputs)

    def check_targets(self, targets):
        if is_concrete(targets):
            values = set(np.unique(np.asarray(targets)).tolist())
            if not (values <= {-1, 1} or values <= {0, 1}):
                shown = ", ".join(f"{v:g}" for v in sorted(values)[:5])
                raise ValueError(f"LogisticLoss needs labels -1 and 1, or 0 and 1, but the targets take the values {shown}")

    def check(self, outputs, targets):
        _same_shape(self, outputs, targets)
        if np.prod(outputs.shape[1:], dtype=int) != 1:
            raise ValueError(
                f"LogisticLoss needs one output per example, but the outputs have shape {outputs.shape}; for several classes use "
                "SoftmaxCrossEntropyLoss()"
            )


class SoftmaxCrossEntropyLoss(AbstractLoss):
    """`-log softmax(f_i)[y_i]` for C classes. Outputs: logits (n, C). Targets: whole numbers (n,) from 0 to C - 1, or probabilities (n, C)."""

    lower_bound: ClassVar[float | None] = 0.0

    def __call__(self, outputs, targets):
        if jnp.issubdtype(targets.dtype, jnp.integer):
            return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        return optax.softmax_cross_entropy(outputs, targets)

    def derivative(self, outputs, targets):
        chance = jax.nn.softmax(outputs, axis=-1)
        if jnp.issubdtype(targets.dtype, jnp.integer):
            return chance - jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
        return chance * jnp.sum(targets, axis=-1, keepdims=True) - targets

    def check(self, outputs, targets):
        if len(outputs.shape) != 2 or outputs.shape[1] < 2:
            raise ValueError(
                f"SoftmaxCrossEntropyLoss needs logits of shape (n, classes), at least two, but the model's outputs have shape {outputs.shape}"
            )
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            if targets.shape != outputs.shape:
                hint = "; class labels must be whole numbers: labels.astype(int)" if targets.ndim == 1 else ""
                raise ValueError(
                    f"SoftmaxCrossEntropyLoss with real targets needs probabilities of the outputs' shape {outputs.shape}, but the targets "
                    f"have shape {targets.shape}{hint}"
                )
            return
        if targets.shape != outputs.shape[:1]:
            raise ValueError(
                f"SoftmaxCrossEntropyLoss needs labels of shape {outputs.shape[:1]}, but the targets have shape {targets.shape}"
            )
        if is_concrete(targets):
            low, high = int(np.min(np.asarray(targets))), int(np.max(np.asarray(targets)))
            if low < 0 or high >= outputs.shape[1]:
                raise ValueError(
                    f"the labels must be from 0 to {outputs.shape[1] - 1}, as the model has {outputs.shape[1]} outputs, but go from {low} to {high}"
                )


class PerExampleLoss(AbstractLoss):
    """A function `(output_i, target_i) -> scalar` of one example, mapped over the examples."""

    function: Callable[[Array, Array], Any]

    def __call__(self, outputs, targets):
        return jax.vmap(self.function)(outputs, targets)

    def check(self, outputs, targets):
        try:
            super().check(outputs, targets)
        except ValueError as error:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise ValueError(
                f"`loss` as a function must map one example's output, shape {outputs.shape[1:]}, and target, shape {targets.shape[1:]}, "
                f"to a scalar; with {name}: {error}"
            ) from error


def as_loss(loss: Any) -> AbstractLoss:
    """`loss=` of a problem: an `AbstractLoss`, a function of one example, or None for the squared loss.

    **Raises:** `ValueError` for anything else.
    """
    if loss is None:
        return SquaredLoss()
    if isinstance(loss, AbstractLoss):
        return loss
    if callable(loss) and not isinstance(loss, type):
        return PerExampleLoss(loss)
    raise ValueError(
        f"`loss` must be a loss such as SquaredLoss() or SoftmaxCrossEntropyLoss(), or a function of one output and one target, but is {loss!r}"
    )
