"""Models made from a model: its linearisation, and its output scaled."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_float
from sgfbias.core.network import AbstractNetwork, declared_trainable


class Linearised(AbstractNetwork):
    """`f(x; w0) + J(x) (w - w0)`, with the derivative J at w0: the linearised model.

    - `model`: the model with the parameters w, which move.
    - `start`: the model with w0, frozen.
    """

    model: Any
    start: Any

    def __call__(self, x: Array) -> Array:
        parameters, rest = eqx.partition(self.start, eqx.is_inexact_array)
        now = eqx.filter(self.model, eqx.is_inexact_array)
        change = jax.tree.map(jnp.subtract, now, parameters)
        value, linear = jax.jvp(lambda w: eqx.combine(w, rest)(x), (parameters,), (change,))
        return value + linear

    def trainable(self) -> Any:
        """The parameters of the model that it declares itself, or all."""
        return _forwarded(self)


class Rescaled(AbstractNetwork):
    """`alpha (f(x; w) - f(x; w0))`, or `alpha f(x; w)` without centring (Chizat,
    Oyallon, Bach 2019).

    - `model`: the model with the parameters w, which move.
    - `start`: the model with w0, frozen; None without centring.
    - `scale`: alpha, frozen.
    """

    model: Any
    start: Any
    scale: Array

    def __call__(self, x: Array) -> Array:
        output = self.model(x)
        centred = output if self.start is None else output - self.start(x)
        return self.scale.astype(output.dtype) * centred

    def trainable(self) -> Any:
        """The parameters of the model that it declares itself, or all."""
        return _forwarded(self)


def linearise(model: Any) -> Linearised:
    """The model `f(x; w0) + J(x) (w - w0)`, linear in its parameters w, at w = w0.

    It is trained by `simulate` as any model, and its tangent kernel stays what it is.

    **Arguments:**

    - `model`: an Equinox module that maps one example to its output; its parameters are
      w0. What it declares as `trainable` is kept.

    **Raises:** `ValueError` if it is not callable.
    """
    _check_model(model)
    return Linearised(model, model)


def rescale(model: Any, alpha: Any, *, centred: bool = True) -> Rescaled:
    """The model `alpha (f(x; w) - f(x; w0))` at w = w0.

    With a large alpha small changes of w change the outputs much, and training is lazy;
    with a small alpha features are learned (Chizat, Oyallon, Bach 2019). The step size
    for the same change of the outputs is proportional to 1/alpha^2.

    **Arguments:**

    - `model`: an Equinox module that maps one example to its output.
    - `alpha`: the scale, positive.
    - `centred`: whether f(x; w0) is subtracted. Without, the model is `alpha f(x; w)`.

    **Raises:** `ValueError` if the model is not callable, and for an alpha that is not
    positive and finite.
    """
    _check_model(model)
    alpha = as_float(alpha, "alpha")
    if not 0 < alpha < float("inf"):
        raise ValueError(f"`alpha` must be positive and finite, but is {alpha}")
    return Rescaled(model, model if centred else None, jnp.asarray(alpha, jnp.result_type(float)))


def _check_model(model: Any) -> None:
    if not callable(model):
        raise ValueError(
            "`model` must be an Equinox module that maps one example to its output, but is "
            f"{type(model).__name__}"
        )


def _forwarded(wrapper: Any) -> Any:
    """Which arrays of a wrapper are parameters: those of its model only."""
    own = declared_trainable(wrapper.model)
    if own is None:
        own = True
    if callable(own) and not isinstance(own, eqx.Module):
        chosen = own
        own = jax.tree.map(lambda x: eqx.is_array(x) and bool(chosen(x)), wrapper.model)
    frozen = jax.tree.map(lambda _: False, wrapper)
    return eqx.tree_at(lambda w: w.model, frozen, own)
