"""The conditioners h of the flow `dw/dt = -h grad L`, elementwise, in the clock nu.

With `g = grad L`, all but `Identity` have `h = (eps + V)^(-1/2)`, where V remembers the
squares of g. What is remembered is `b = log(1 + V/eps)`, so that
`h = eps^(-1/2) e^(-b/2)`, whose factor changes the time of the flow but not its path.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import is_concrete
from sgfbias.core.schedule import as_number

# Exponents are clamped here before they are exponentiated.
LARGEST_EXPONENT = 300.0
# The exponent of a whole product is clamped to this share of the largest one of the
# precision. What is left is for a squared gradient.
SHARE_OF_RANGE = 0.8
# The fastest relaxation of an average of squares, per unit of nu, that is followed.
# With the rate c at which the average forgets, it is c / |G|_1 before the crossover:
# faster for c > 100 |G|_1 only, where the average lags behind the square by less than
# 1%. After the crossover it is faster only where the average is below
# 1e-4 (c / |G|)^2 of eps.
FASTEST = 100.0
# Below this fraction of eps an average of squares is no longer followed.
NEGLIGIBLE = 1e-14


class Moment(eqx.Module):
    """Where a run is: nu, the number of examples, and the scaled flow time.

    `time` is `t e^(-nu) / (n sqrt(eps))`.
    """

    nu: Array
    n: int = eqx.field(static=True)
    time: Array


def exponential(x: Array) -> Array:
    """`e^x`, with the exponent clamped to the range of floats."""
    most = min(LARGEST_EXPONENT, 0.45 * math.log(float(jnp.finfo(x.dtype).max)))
    return jnp.exp(jnp.clip(x, -most, most))


def of_product(x: Array) -> Array:
    """`e^x` where x is the exponent of a whole product, such as `g^2 / eps`. Its
    factors may be out of the range of floats. x is clamped from above only, since a
    product that underflows is 0.
    """
    most = SHARE_OF_RANGE * math.log(float(jnp.finfo(x.dtype).max))
    return jnp.exp(jnp.minimum(x, most))


class AbstractConditioner(eqx.Module):
    """What multiplies the gradient of a flow, elementwise."""

    # Keys of the bibliography -> what they are cited for.
    references: ClassVar[Mapping[str, str]] = {"wang2021": "the flows of adaptive optimisers"}
    # Whether b is remembered.
    remembers: ClassVar[bool] = True
    # The widest explicit step in nu that follows what is remembered.
    widest: ClassVar[float] = math.inf

    def start(self, position: Any) -> Any:
        """b at the start, a PyTree like the position, of leaves without entries if
        nothing is remembered.
        """
        return jax.tree.map(
            jnp.zeros_like if self.remembers else (lambda leaf: jnp.zeros((0,), leaf.dtype)),
            position,
        )

    @abc.abstractmethod
    def scale(self, dtype: Any) -> Array:
        """The square root of eps."""

    def factor(self, memory: Any, gradient: Any, now: Moment) -> Any:
        """`sqrt(eps) h` for the gradient G of nu."""
        return jax.tree.map(lambda b: jnp.exp(-b / 2), memory)

    @abc.abstractmethod
    def rate(self, memory: Any, gradient: Any, now: Moment, speed: Array) -> Any:
        """`db/dnu`, where `speed` is `sqrt(eps) N`."""


class Identity(AbstractConditioner):
    """h = 1: gradient flow."""

    references: ClassVar[Mapping[str, str]] = {"lyu2020": "the margins of gradient flow"}
    remembers: ClassVar[bool] = False

    def scale(self, dtype):
        return jnp.ones((), dtype)

    def factor(self, memory, gradient, now):
        return jax.tree.map(jnp.ones_like, gradient)

    def rate(self, memory, gradient, now, speed):
        return memory


class AdaGrad(AbstractConditioner):
    """`h = (eps + V)^(-1/2)` with `dV/dt = g^2`, so V grows to a limit.

    **Arguments:**

    - `eps`: positive, inside the square root.

    **Raises:** `ValueError` for an eps that is not positive.
    """

    eps: Array

    def __init__(self, eps: Any = 1e-8):
        self.eps = _positive(eps)

    def scale(self, dtype):
        return jnp.sqrt(self.eps).astype(dtype)

    def rate(self, memory, gradient, now, speed):
        pace = of_product(-now.nu - jnp.log(self.scale(speed.dtype))) / (now.n * speed)
        return jax.tree.map(lambda b, g: pace * jnp.square(g) * jnp.exp(-b), memory, gradient)


class _Average(AbstractConditioner):
    """An exponential average of the squares of the gradient."""

    widest: ClassVar[float] = 1 / FASTEST
    decay: Array
    eps: Array
    step_size: Array

    def __init__(self, decay: Any = 0.9, eps: Any = 1e-8, *, step_size: Any = 1.0):
        self.eps = _positive(eps)
        self.decay = as_number(decay, "decay", zero_allowed=True)
        self.step_size = as_number(step_size, "step_size")
        if is_concrete(self.decay) and float(self.decay) >= 1:
            raise ValueError(f"`decay` must be at least 0 and below 1, but is {decay}")

    def scale(self, dtype):
        return jnp.sqrt(self.eps).astype(dtype)

    def _forgets(self, dtype: Any) -> Array:
        """c, the rate per unit of flow time at which V forgets."""
        return (1 - self.decay.astype(dtype)) / self.step_size.astype(dtype)

    def _square_unit(self, now: Moment, root: Array) -> Array:
        """`g^2 / eps` for a gradient of nu of 1."""
        return of_product(-2 * (now.nu + jnp.log(now.n * root)))

    def rate(self, memory, gradient, now, speed):
        # dV/dnu = k (g^2 - V) with k = c n e^nu / N.
        root = self.scale(speed.dtype)
        k = self._forgets(speed.dtype) * now.n * of_product(now.nu + jnp.log(root)) / speed
        k = jnp.minimum(k, FASTEST)
        small = self._square_unit(now, root)

        def one(b: Array, g: Array) -> Array:
            # The average and the square that it follows, both over eps.
            average, aim = jnp.expm1(b), jnp.square(g) * small
            matters = jnp.maximum(average, aim)
            slope = k * (aim - average) * (matters / (matters + NEGLIGIBLE))
            return slope * jnp.exp(-b)

        return jax.tree.map(one, memory, gradient)


class RMSProp(_Average):
    """`h = (eps + V)^(-1/2)` with `dV/dt = c (g^2 - V)`, `c = (1 - decay) / step_size`.

    As the loss falls V falls below eps, and h becomes constant.

    **Arguments:**

    - `decay`: in [0, 1). Default 0.9.
    - `eps`: positive, inside the square root. Default 1e-8.
    - `step_size`: positive, the flow time of one iteration of the algorithm. Default 1.

    **Raises:** `ValueError` for arguments out of these ranges.
    """


class AdamNoMomentum(_Average):
    """`RMSProp` with Adam's correction of the start: `V / (1 - e^(-c t))` in the place
    of V.

    **Arguments:** as for `RMSProp`.

    **Raises:** `ValueError` for arguments out of their ranges.
    """

    def factor(self, memory, gradient, now):
        root = self.scale(now.nu.dtype)
        elapsed = self._forgets(root.dtype) * now.time * root * now.n * exponential(now.nu)
        begun = elapsed > 1e-12
        share = jnp.where(begun, -jnp.expm1(-jnp.where(begun, elapsed, 1)), 1)
        small = self._square_unit(now, root)

        def one(b: Array, g: Array) -> Array:
            corrected = jnp.where(begun, jnp.expm1(b) / share, jnp.square(g) * small)
            return 1 / jnp.sqrt(1 + corrected)

        return jax.tree.map(one, memory, gradient)


def _positive(eps: Any) -> Array:
    """eps as an array.

    **Raises:** `ValueError` unless it is positive: no flow can have eps = 0.
    """
    if is_concrete(eps) and np.ndim(eps) == 0 and eps == 0:
        raise ValueError(
            "eps=0 makes h unbounded where a component of the gradient vanishes, so there is no "
            "such flow; take a positive eps, which may be as small as 1e-24, or use "
            "MarginDescent(Adam(eps=0.0))"
        )
    return as_number(eps, "eps")
