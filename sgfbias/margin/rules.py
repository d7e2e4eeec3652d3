"""The update rules of adaptive algorithms in a frame that moves with the loss, so that
they go on where the loss underflows.

With the gradient `g = L grad log L` of the mean loss, moments are kept in units of the
loss: `m = L M` and `v = L^2 U`. From one iteration to the next these units change by
the ratio of the losses, which is computed from their logarithms.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_float, is_concrete
from sgfbias.core.references import merge
from sgfbias.core.rules import AbstractRule
from sgfbias.core.schedule import as_number
from sgfbias.margin.conditioners import (
    AbstractConditioner,
    Moment,
    RMSProp,
    exponential,
    of_product,
)
from sgfbias.margin.kinks import LATEST

# Steps whose size is the gain in nu that they intend are tried again at half of it if
# they gain less than this share, and otherwise grow.
SHARE, SHRINK, GROW = 0.5, 0.5, 1.15


class AbstractMarginRule(AbstractRule):
    """A rule in a frame that moves with the loss."""

    # Keys of the bibliography -> what they are cited for.
    references: ClassVar[Mapping[str, str]] = {"wang2021": "the conditioned algorithms"}
    logarithmic: ClassVar[bool] = True
    observed: ClassVar[bool] = True

    @abc.abstractmethod
    def conditioner(self, memory: Any, log_loss: Array) -> Array:
        """h, flat, up to a factor that all weights share."""


class Moments(NamedTuple):
    """The memory of `Adam` and its like.

    - `average`: of the gradient of nu, for the gaps.
    - `first`, `second`: M and U, like the parameters.
    - `taken`: the number of iterations.
    - `log_loss`: log L of the last iteration, the units of M and U.
    """

    average: Any
    first: Any
    second: Any
    taken: Array
    log_loss: Array


class _Moving(AbstractMarginRule):
    """A rule with averages of the gradient and of its square."""

    def init(self, parameters):
        dtype = jax.tree.leaves(parameters)[0].dtype
        zeros = jax.tree.map(jnp.zeros_like, parameters)
        number = jnp.zeros((), dtype)
        return Moments(zeros, zeros, zeros, number, number)

    def _advanced(self, gradient: Any, memory: Moments, scale: Any, b1: Any, b2: Any) -> Moments:
        """The memory with the gradient of log L taken in."""
        log_loss = jnp.asarray(scale, memory.log_loss.dtype)
        units = jnp.where(memory.taken > 0, exponential(memory.log_loss - log_loss), 0)
        return Moments(
            _latest(memory.average, gradient),
            jax.tree.map(lambda m, g: b1 * units * m + (1 - b1) * g, memory.first, gradient),
            jax.tree.map(
                lambda v, g: b2 * units * (units * v) + (1 - b2) * jnp.square(g),
                memory.second,
                gradient,
            ),
            memory.taken + 1,
            log_loss,
        )


class Adam(_Moving):
    """`w <- w - lr m^ / (sqrt(v^) + eps)` with the averages m of g and v of g^2, both
    corrected for their start, as `optax.adam`.

    With eps = 0 it goes on for ever. Otherwise it comes to rest where the square root
    of v falls below eps, as it does in any program.

    **Arguments:**

    - `b1`, `b2`: the decays, in [0, 1).
    - `eps`: at least 0, outside the square root.

    **Raises:** `ValueError` for numbers out of these ranges.
    """

    b1: Array
    b2: Array
    eps: Array

    @property
    def references(self) -> Mapping[str, str]:
        """Keys of the bibliography -> what they are cited for."""
        if is_concrete(self.eps) and float(self.eps) == 0:
            return {"zhang2024": "the direction of Adam without eps"}
        return super().references

    def __init__(self, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 0.0):
        for value, name in ((b1, "b1"), (b2, "b2")):
            if is_concrete(value) and not 0 <= as_float(value, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, but is {value}")
        if is_concrete(eps) and not as_float(eps, "eps") >= 0:
            raise ValueError(f"`eps` must be at least 0, but is {eps}")
        self.b1, self.b2, self.eps = (
            as_number(value, name, zero_allowed=True).astype(jnp.result_type(float))
            for value, name in ((b1, "b1"), (b2, "b2"), (eps, "eps"))
        )

    def _root(self, memory: Moments) -> Any:
        """`(sqrt(v^) + eps) / L`."""
        dtype = memory.taken.dtype
        b2, small = self.b2.astype(dtype), _over_loss(self.eps, memory.log_loss)
        correction = 1 - b2 ** jnp.maximum(memory.taken, 1)
        return jax.tree.map(lambda v: jnp.sqrt(v / correction) + small, memory.second)

    def conditioner(self, memory, log_loss):
        return _inverse(self._root(memory))

    def update(self, gradient, memory, scale, point):
        dtype = memory.taken.dtype
        b1, b2 = self.b1.astype(dtype), self.b2.astype(dtype)
        memory = self._advanced(gradient, memory, scale, b1, b2)
        correction = 1 - b1**memory.taken

        def one(m: Array, root: Array) -> Array:
            return -point.step_size * _ratio(m / correction, root)

        return jax.tree.map(one, memory.first, self._root(memory)), memory


class _RootMeanSquare(_Moving):
    """`w <- w - lr g / sqrt(v + eps)` with the average v of g^2, as `optax.rmsprop`
    with `eps_in_sqrt=True`.
    """

    decay: Array
    eps: Array

    def _root(self, memory: Moments) -> Any:
        small = _over_loss(jnp.sqrt(self.eps), memory.log_loss)
        return jax.tree.map(lambda v: jnp.hypot(jnp.sqrt(v), small), memory.second)

    def conditioner(self, memory, log_loss):
        return _inverse(self._root(memory))

    def update(self, gradient, memory, scale, point):
        decay = self.decay.astype(memory.taken.dtype)
        memory = self._advanced(gradient, memory, scale, jnp.zeros_like(decay), decay)

        def one(g: Array, root: Array) -> Array:
            return -point.step_size * _ratio(g, root)

        return jax.tree.map(one, gradient, self._root(memory)), memory


class Averaged(NamedTuple):
    """The memory of `Sign`: the `average` of the gradient of nu, for the gaps."""

    average: Any


class Sign(AbstractMarginRule):
    """`w <- w - lr sign(g)`: sign descent, which is Adam without decays and eps."""

    references: ClassVar[Mapping[str, str]] = {"zhang2024": "the direction without eps"}

    def init(self, parameters):
        return Averaged(jax.tree.map(jnp.zeros_like, parameters))

    def conditioner(self, memory, log_loss):
        return jnp.ones_like(jax.flatten_util.ravel_pytree(memory.average)[0])

    def update(self, gradient, memory, scale, point):
        step = jax.tree.map(lambda g: -point.step_size * jnp.sign(g), gradient)
        return step, Averaged(_latest(memory.average, gradient))


class Scaled(NamedTuple):
    """The memory of loss-scaled steps.

    - `average`: of the gradient of nu, for the gaps.
    - `squares`: what the conditioner remembers, `b = log(1 + V/eps)`.
    - `width`: the next width, in units of the step size.
    """

    average: Any
    squares: Any
    width: Array


class LossScaled(AbstractMarginRule):
    """`w <- w + s h G / N` with the gradient G of nu, `N = sum h G^2`, and s the gain
    in nu that is intended: Euler's method for `MarginFlow`.

    s begins at the step size. Where nu gains less than half of it, the step is not
    taken, and s is halved; otherwise it grows by 15%. So kinks are no obstacle.

    **Arguments:**

    - `base`: the conditioner h, `Identity()` or `AdaGrad(eps)`.
    """

    base: AbstractConditioner

    @property
    def references(self) -> Mapping[str, str]:
        """Keys of the bibliography -> what they are cited for."""
        return merge(super().references, self.base.references)

    def init(self, parameters):
        dtype = jax.tree.leaves(parameters)[0].dtype
        return Scaled(
            jax.tree.map(jnp.zeros_like, parameters),
            self.base.start(parameters),
            jnp.ones((), dtype),
        )

    def conditioner(self, memory, log_loss):
        # These conditioners do not look at the gradient, only at its structure.
        now = Moment(-log_loss, 1, jnp.zeros_like(log_loss))
        factor = self.base.factor(memory.squares, memory.average, now)
        return jax.flatten_util.ravel_pytree(factor)[0] / self.base.scale(log_loss.dtype)

    def update(self, gradient, memory, scale, point):
        G = jax.tree.map(jnp.negative, gradient)
        dtype = memory.width.dtype
        # Only e^(-nu) / n = L enters.
        now = Moment(-jnp.asarray(scale, dtype), 1, jnp.zeros((), dtype))
        factor = self.base.factor(memory.squares, G, now)
        along = jax.tree.map(jnp.multiply, factor, G)
        speed = jax.tree.reduce(
            jnp.add, jax.tree.map(lambda a, b: jnp.sum(a * b), along, G), jnp.zeros((), dtype)
        )
        width = memory.width * point.step_size
        step = jax.tree.map(lambda v: width * v / speed, along)
        tried = point.objective(jax.tree.map(jnp.add, point.parameters, step))
        keep = point.value - tried >= SHARE * width
        rate = self.base.rate(memory.squares, G, now, speed)
        squares = jax.tree.map(
            lambda b, v: jnp.where(keep, b + jnp.log1p(width * v), b), memory.squares, rate
        )
        later = Scaled(
            _latest(memory.average, gradient),
            squares,
            memory.width * jnp.where(keep, GROW, SHRINK).astype(dtype),
        )
        return jax.tree.map(lambda v: jnp.where(keep, v, 0), step), later


def as_rule(given: Any) -> AbstractMarginRule:
    """A rule, from a rule of this module or from a conditioner.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(given, AbstractMarginRule):
        return given
    if isinstance(given, RMSProp):
        return _RootMeanSquare(given.decay, given.eps)
    if isinstance(given, AbstractConditioner) and math.isinf(given.widest):
        return LossScaled(given)
    raise ValueError(
        "`rule` must be Adam(b1, b2, eps), Sign(), RMSProp(decay, eps), AdaGrad(eps) or "
        f"Identity(), but is {given!r}; AdamNoMomentum(decay, eps) is Adam(0.0, decay, eps), whose "
        "eps is outside the square root"
    )


def _latest(average: Any, gradient: Any) -> Any:
    """The average of the gradient of nu, which is minus that of log L."""
    return jax.tree.map(lambda a, g: (1 - LATEST) * a - LATEST * g, average, gradient)


def _over_loss(eps: Array, log_loss: Array) -> Array:
    """`eps / L` by one exponent, as L alone may be out of the range of floats."""
    there = eps > 0
    exponent = jnp.log(jnp.where(there, eps, 1)).astype(log_loss.dtype) - log_loss
    return jnp.where(there, of_product(exponent), 0)


def _ratio(value: Array, root: Array) -> Array:
    """The quotient, and 0 where the root is 0, as the gradient then always was."""
    return jnp.where(root > 0, value / jnp.where(root > 0, root, 1), 0)


def _inverse(root: Any) -> Array:
    """1 over the roots, flat, in units of the largest; roots of 0 count as tiny."""
    flat = jax.flatten_util.ravel_pytree(root)[0]
    top = jnp.max(flat)
    small = jnp.sqrt(jnp.finfo(flat.dtype).tiny)
    return 1 / jnp.maximum(flat / jnp.where(top > 0, top, 1), small)
