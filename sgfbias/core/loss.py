"""Per-example losses, their derivatives in the outputs, and checks of their targets."""

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

from sgfbias.core.checks import as_float, check_positive, is_concrete


class AbstractLoss(eqx.Module):
    """A per-example loss `l(f_i, y_i)` of an output `f_i` and a target `y_i`.

    Only its value, its logarithm and their derivatives in the output are used. A
    subclass defines `__call__`, and may define a faster `derivative`, forms of `log`
    and `log_derivative` that hold where the loss underflows, checks of outputs and
    targets, and `lower_bound`, a number below which the loss cannot fall. A run whose
    loss is within rounding of the lower bound counts as converged. With None, the
    default, `simulate(..., stop=)` must say which loss counts as converged.
    """

    lower_bound: ClassVar[float | None] = None

    @abc.abstractmethod
    def __call__(
        self, outputs: Inexact[Array, "n *c"], targets: Shaped[Array, "n *t"]
    ) -> Float[Array, " n"]:
        """The loss of each example, shape (n,)."""

    def derivative(
        self, outputs: Inexact[Array, "n *c"], targets: Shaped[Array, "n *t"]
    ) -> Inexact[Array, "n *c"]:
        """The derivative `l'(f_i, y_i)` of each example's loss in its own outputs.

        It has the shape of `outputs`.
        """
        return jax.grad(lambda f: jnp.sum(self(f, targets)))(outputs)

    def log(
        self, outputs: Inexact[Array, "n *c"], targets: Shaped[Array, "n *t"]
    ) -> Float[Array, " n"]:
        """The logarithm `log l(f_i, y_i)` of each example's loss, shape (n,).

        It is taken of the value, so it is -inf where the value is 0. The losses of
        classification have forms of their own, which hold where the value underflows.
        """
        return jnp.log(self(outputs, targets))

    def log_derivative(
        self, outputs: Inexact[Array, "n *c"], targets: Shaped[Array, "n *t"]
    ) -> Inexact[Array, "n *c"]:
        """The derivative `d log l_i / d f_i = l'_i / l_i` in the outputs, of their
        shape. See `log`.
        """
        value = self(outputs, targets)
        slope = self.derivative(outputs, targets)
        return slope / value.reshape(value.shape + (1,) * (slope.ndim - 1))

    def check_targets(self, targets: Array) -> None:
        """Refuse targets that this loss cannot use.

        **Raises:** `ValueError` that says which targets it can use.
        """
        return None

    def check(self, outputs: jax.ShapeDtypeStruct, targets: Array) -> None:
        """Refuse outputs that do not fit the targets, and a loss that does not return
        one number per example.

        **Raises:** `ValueError` that says what was expected.
        """
        try:
            losses = jax.eval_shape(self, outputs, targets).shape
        except (TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
            raise ValueError(
                f"the loss {type(self).__name__} cannot be evaluated on outputs of shape "
                f"{outputs.shape} and targets of shape {targets.shape}: {error}"
            ) from error
        if losses != outputs.shape[:1]:
            raise ValueError(
                f"a loss must return one number per example, shape {outputs.shape[:1]}, but "
                f"{type(self).__name__} returns shape {losses}; do not average over examples, the "
                "mean is taken for you"
            )
        _check_separate(self, outputs, targets)


def _check_separate(loss: AbstractLoss, outputs: jax.ShapeDtypeStruct, targets: Array) -> None:
    """Refuse a loss in which the loss of one example depends on the output of another.

    Ranking losses and contrastive losses are of this kind.
    """
    if outputs.shape[0] < 2 or not is_concrete((loss, targets)):
        return
    wave = jnp.cos(jnp.arange(np.prod(outputs.shape), dtype=outputs.dtype)).reshape(outputs.shape)
    tangent = jnp.zeros_like(wave).at[0].set(1)
    # All entries of the second point lie between 0 and 1, where a loss of probabilities
    # or of positive outputs is defined.
    for at in (wave, 0.5 + 0.4 * wave):
        _, moved = jax.jvp(lambda f: loss(f, targets), (at,), (tangent,))
        if not is_concrete(moved):
            return  # The loss has closed over something that is being traced.
        others = np.asarray(moved)[1:]
        if np.isfinite(moved).all():
            break
    if np.any(np.isfinite(others) & (others != 0)):
        raise ValueError(
            f"{type(loss).__name__} is not a per-example loss: changing the output of example 0 "
            f"changes the loss of {int(np.count_nonzero(others))} others. Noise and minibatches "
            "are defined only for a mean of l(f_i, y_i) over examples"
        )


def check_same_shape(loss: AbstractLoss, outputs: jax.ShapeDtypeStruct, targets: Array) -> None:
    """Refuse targets that do not have the shape of the outputs."""
    if outputs.shape != targets.shape:
        raise ValueError(
            f"with {type(loss).__name__} the targets must have the shape of the model's outputs, "
            f"{outputs.shape}, but have shape {targets.shape}"
        )


class SquaredLoss(AbstractLoss):
    """`scale * |f_i - y_i|^2`, summed over the outputs of an example.

    Targets are real and have the shape of the outputs.

    **Arguments:**

    - `scale`: positive. The default 1/4 makes the mean over examples
      `L = 1/(4n) sum_i (f_i - y_i)^2`, the convention of Pesme, Pillaud-Vivien,
      Flammarion 2021 (arXiv 2106.09524). Use 1/2 for papers that write 1/(2n).

    **Raises:** `ValueError` for a scale that is not positive and finite, and, in
    `Problem` or `simulate`, for targets of another kind.
    """

    lower_bound: ClassVar[float | None] = 0.0
    scale: float = 0.25

    def __check_init__(self):
        if is_concrete(self.scale):
            check_positive(as_float(self.scale, "scale"), "scale")

    def __call__(self, outputs, targets):
        squares = jnp.square(outputs - targets) * self.scale
        return (
            squares if squares.ndim == 1 else jnp.sum(squares, axis=tuple(range(1, squares.ndim)))
        )

    def derivative(self, outputs, targets):
        return (outputs - targets) * (2 * self.scale)

    def check_targets(self, targets):
        if not jnp.issubdtype(targets.dtype, jnp.floating):
            raise ValueError(
                f"a squared loss needs real targets, but they have dtype {targets.dtype}: for "
                "class labels use loss=SoftmaxCrossEntropyLoss() or LogisticLoss(), or one-hot "
                "targets (jax.nn.one_hot); numbers that happen to be whole must be cast to float"
            )

    def check(self, outputs, targets):
        check_same_shape(self, outputs, targets)


def log_softplus(s: Array) -> Array:
    """`log log(1 + e^s)`, also where `log(1 + e^s)` underflows.

    For s < -30 it is `s - e^s/2` up to `e^(2s)`, which is below rounding in float64.
    """
    low = s < -30
    # The branch that is not taken must have a finite derivative, too.
    near, far = jnp.where(low, 0, s), jnp.where(low, s, -30)
    return jnp.where(low, far - jnp.exp(far) / 2, jnp.log(jax.nn.softplus(near)))


def log_softplus_derivative(s: Array) -> Array:
    """`d log log(1 + e^s) / ds`, which is 1 - e^s/2 for s < -30."""
    low = s < -30
    near, far = jnp.where(low, 0, s), jnp.where(low, s, -30)
    return jnp.where(low, 1 - jnp.exp(far) / 2, jax.nn.sigmoid(near) / jax.nn.softplus(near))


class SoftmaxCrossEntropyLoss(AbstractLoss):
    """`-log softmax(f_i)[y_i]` for C classes.

    Outputs are logits of shape (n, C) with C >= 2. Targets are class labels, whole
    numbers from 0 to C - 1 of shape (n,), or probabilities of shape (n, C).

    **Raises:** `ValueError`, in `simulate`, for other outputs or targets.
    """

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

    def _excess(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        """With class labels: `s_i = log sum_j e^(f_ij - f_iy)` over the other classes
        j, (n,), and its derivative in the outputs, (n, C).
        """
        own = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
        others = jnp.where(own > 0, -jnp.inf, outputs)
        s = jax.nn.logsumexp(others, axis=-1) - jnp.sum(own * outputs, axis=-1)
        return s, jax.nn.softmax(others, axis=-1) - own

    def log(self, outputs, targets):
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            return super().log(outputs, targets)
        return log_softplus(self._excess(outputs, targets)[0])

    def log_derivative(self, outputs, targets):
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            return super().log_derivative(outputs, targets)
        s, slope = self._excess(outputs, targets)
        return log_softplus_derivative(s)[:, None] * slope

    def check(self, outputs, targets):
        if len(outputs.shape) != 2 or outputs.shape[1] < 2:
            raise ValueError(
                "SoftmaxCrossEntropyLoss needs logits of shape (n, classes) for at least two "
                f"classes, but the model's outputs have shape {outputs.shape}"
            )
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            if targets.shape != outputs.shape:
                hint = (
                    "; class labels must be whole numbers: labels.astype(int)"
                    if targets.ndim == 1
                    else ""
                )
                raise ValueError(
                    "SoftmaxCrossEntropyLoss with real targets needs probabilities of the "
                    f"outputs' shape {outputs.shape}, but the targets have shape "
                    f"{targets.shape}{hint}"
                )
            return
        if targets.shape != outputs.shape[:1]:
            raise ValueError(
                f"SoftmaxCrossEntropyLoss needs labels of shape {outputs.shape[:1]}, but the "
                f"targets have shape {targets.shape}"
            )
        if is_concrete(targets):
            low, high = int(np.min(np.asarray(targets))), int(np.max(np.asarray(targets)))
            if low < 0 or high >= outputs.shape[1]:
                raise ValueError(
                    f"the labels must be from 0 to {outputs.shape[1] - 1}, as the model has "
                    f"{outputs.shape[1]} outputs, but they go from {low} to {high}"
                )


class PerExampleLoss(AbstractLoss):
    """A loss given by a function `(output_i, target_i) -> scalar` of one example."""

    function: Callable[[Array, Array], Any]

    def __call__(self, outputs, targets):
        return jax.vmap(self.function)(outputs, targets)

    def check(self, outputs, targets):
        try:
            super().check(outputs, targets)
        except ValueError as error:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise ValueError(
                f"`loss` as a function must map one example's output, shape {outputs.shape[1:]}, "
                f"and target, shape {targets.shape[1:]}, to a scalar, but {name} does not: {error}"
            ) from error


def as_loss(loss: Any) -> AbstractLoss:
    """The `AbstractLoss` that the argument `loss` of a problem stands for.

    It may be an `AbstractLoss`, a function of one example, or None for the squared
    loss.

    **Raises:** `ValueError` for anything else.
    """
    if loss is None:
        return SquaredLoss()
    if isinstance(loss, AbstractLoss):
        return loss
    if callable(loss) and not isinstance(loss, type):
        return PerExampleLoss(loss)
    given = repr(loss)
    if isinstance(loss, type):
        given = f"the class {loss.__name__}; write {loss.__name__}()"
    raise ValueError(
        "`loss` must be a loss such as SquaredLoss() or SoftmaxCrossEntropyLoss(), or a "
        f"function of one output and one target, but is {given}"
    )
