"""Masks of examples: every iteration takes the gradient on a random subset."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_real, as_whole, is_concrete
from sgfbias.core.sampling import AbstractSampling, Draw


@jax.custom_jvp
def _constant(value: Array, name: str) -> Array:
    """The value, which refuses to be differentiated."""
    return value


_constant = jax.custom_jvp(_constant.fun, nondiff_argnums=(1,))


@_constant.defjvp
def _refuse(name: str, primals: Any, tangents: Any) -> Any:
    raise ValueError(
        f"the masks are indicators, so a run has no derivative in `{name}`: differentiate in "
        "another argument, or take a difference of runs with the same keys"
    )


def _number(value: Any, name: str) -> Array:
    """The argument as a scalar that cannot be differentiated.

    **Raises:** `ValueError` for anything but one real number.
    """
    return _constant(as_real(value, name, more="; map over several with jax.vmap"), name)


def _uniform(key: Array, n: int) -> Array:
    """Uniform numbers (n,), the same in every precision of the computation."""
    return jax.random.uniform(key, (n,), jnp.float32)


class AbstractMask(AbstractSampling):
    """Examples that are in or out: the gradient is `(1/n) sum_i s_i grad l_i` with s_i
    either 0 or `1 / fraction`, so that its mean is that of all examples.
    """

    fraction: eqx.AbstractVar[Array]

    def start(self, problem, network, key):
        return self._start(key, problem.n)

    def _start(self, key: Array, n: int) -> Array:
        """Which examples are in before the first iteration, booleans (n,)."""
        return _uniform(key, n) < self.fraction.astype(jnp.float32)

    @abc.abstractmethod
    def _next(self, inside: Array, key: Array) -> Array:
        """Which examples are in at the next iteration, booleans (n,)."""

    def draw(self, memory, key, step, n):
        dtype = self.fraction.dtype
        weight = jnp.where(memory, 1 / (self.fraction * n), jnp.zeros((), dtype))
        return Draw(weight=weight), self._next(memory, jax.random.fold_in(key, step))

    def path(self, key: Array, n: int, steps: int) -> Array:
        """The weights s of n examples at `steps` iterations, drawn alone.

        Examples that are in have `1 / fraction`, and the others 0.

        **Returns:** (steps, n).

        **Raises:** `ValueError` unless n and `steps` are whole numbers >= 1.
        """
        n, steps = as_whole(n, "n"), as_whole(steps, "steps")
        first, rest = jax.random.split(key)

        def one(inside: Array, step: Array) -> tuple[Array, Array]:
            return self._next(inside, jax.random.fold_in(rest, step)), inside

        _, inside = jax.lax.scan(one, self._start(first, n), jnp.arange(steps, dtype=jnp.int32))
        return jnp.where(inside, 1 / self.fraction, jnp.zeros((), self.fraction.dtype))


class BernoulliMask(AbstractMask):
    """At every iteration each example is in with probability `fraction`, independently
    of all others and of all other iterations.

    Mignacco, Urbani 2022 (arXiv 2112.10852) take this for vanilla SGD.

    **Arguments:**

    - `fraction`: a number above 0 and at most 1. It has no derivative.

    **Raises:** `ValueError` for a number outside this range, and under differentiation
    in it.
    """

    fraction: Array

    def __init__(self, fraction: Any):
        self.fraction = _fraction(fraction)

    def _next(self, inside, key):
        return self._start(key, inside.shape[0])


class PersistentMask(AbstractMask):
    """Each example goes in and out of the mask as a Markov chain of two states, so that
    an example that is in stays in for a while.

    The chain is stationary from the start: an example is in with probability b =
    `fraction`, enters with probability `1/q` at every iteration while it is out, and
    leaves with probability `(1 - b)/(b q)` while it is in. So q = `persistence` is the
    mean number of iterations that an example stays out. The weights, 0 or `1/b`, have
    the covariance `(1-b)/b (1 - 1/(b q))^lag`. With q = 1/b the iterations are
    independent, as in `BernoulliMask`. This is the persistent SGD of Mignacco,
    Krzakala, Urbani, Zdeborová 2020 (arXiv 2006.06098).

    **Arguments:**

    - `fraction`: b, a number above 0 and at most 1. It has no derivative.
    - `persistence`: q, at least `max(1, (1 - b)/b)`. It has no derivative.

    **Raises:** `ValueError` for numbers outside these ranges, and under differentiation
    in them.
    """

    fraction: Array
    persistence: Array

    def __init__(self, fraction: Any, *, persistence: Any):
        self.fraction = _fraction(fraction)
        self.persistence = _number(persistence, "persistence")
        if is_concrete((self.fraction, self.persistence)):
            b, q = float(self.fraction), float(self.persistence)
            least = max(1.0, (1 - b) / b)
            if not q >= least * (1 - 1e-6):
                raise ValueError(
                    f"`persistence` must be at least max(1, (1 - fraction)/fraction) = {least:g} "
                    f"with fraction = {b:g}, but is {q:g}: an example that is out enters with "
                    "probability 1/persistence, and one that is in leaves with probability "
                    "(1 - fraction)/(fraction persistence)"
                )

    def _next(self, inside, key):
        b, q = self.fraction.astype(jnp.float32), self.persistence.astype(jnp.float32)
        u = _uniform(key, inside.shape[0])
        return jnp.where(inside, u >= (1 - b) / (b * q), u < 1 / q)


def _fraction(value: Any) -> Array:
    """The argument `fraction`.

    **Raises:** `ValueError` for a number that is not above 0 and at most 1.
    """
    fraction = _number(value, "fraction")
    if is_concrete(fraction) and not 0 < float(fraction) <= 1:
        raise ValueError(
            f"`fraction` must be above 0 and at most 1, but is {float(fraction):g}: it is the "
            "share of the examples that an iteration uses on average"
        )
    return fraction
