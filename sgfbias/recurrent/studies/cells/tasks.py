"""The tasks: sequences (length, 3) with a value, a mark and a channel of ones, and the
target at their end, (1,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

NOISE, SLOW, FAST = 0.3, 0.2, 0.8  # of the sine: noise, and frequencies per step


class Task(NamedTuple):
    """A task of any length.

    - `draw`: `(key, length) -> (sequence, target)`.
    - `keep`: the channel whose marked steps the target depends on, or None if it
      depends on the last steps.
    - `variance`: that of the target, the loss of the best constant.
    - `test`: the task of the tests, if it is another one.
    """

    draw: Callable[[Array, int], tuple[Array, Array]]
    keep: int | None
    variance: float
    test: Any = None

    @property
    def tested(self) -> Any:
        """The task of the tests."""
        return self.draw if self.test is None else self.test


def copy(key: Array, length: int) -> tuple[Array, Array]:
    """Uniform values, of which the first one is marked and is the target."""
    value = jax.random.uniform(key, (length,), minval=-1.0)
    return _sequence(value, jnp.arange(length) == 0), value[:1]


def adding(key: Array, length: int) -> tuple[Array, Array]:
    """Uniform values, of which one in each half is marked; the target is their sum."""
    # All numbers come from one draw, as every draw is compiled anew for every length.
    numbers = jax.random.uniform(key, (length + 2,))
    value, half = 2 * numbers[:length] - 1, length // 2
    early = jnp.floor(numbers[length] * half)
    late = half + jnp.floor(numbers[length + 1] * (length - half))
    place = jnp.arange(length, dtype=value.dtype)
    marked = (place == early) | (place == late)
    return _sequence(value, marked), jnp.sum(jnp.where(marked, value, 0))[None]


def sine(key: Array, length: int) -> tuple[Array, Array]:
    """A sine of random frequency and phase in noise; the target is its last value
    without the noise.
    """
    numbers = jax.random.normal(key, (length + 2,))
    chance = jax.scipy.special.ndtr(numbers[length:])
    frequency, phase = SLOW + (FAST - SLOW) * chance[0], 2 * np.pi * chance[1]
    clean = jnp.sin(frequency * jnp.arange(length, dtype=frequency.dtype) + phase)
    return _sequence(clean + NOISE * numbers[:length], jnp.zeros(length, bool)), clean[-1:]


def _sequence(value: Array, marked: Array) -> Array:
    """The three channels."""
    return jnp.stack([value, marked.astype(value.dtype), jnp.ones_like(value)], axis=1)


TASKS: dict[str, Task] = {
    "copy": Task(copy, 1, 1 / 3),
    "adding": Task(adding, 1, 2 / 3),
    "sine": Task(sine, None, 1 / 2),
}


class Lagged(NamedTuple):
    """A task that needs a lag: the target is the value `lag` steps before the end, or 0
    in a sequence that is too short.
    """

    lag: int

    def __call__(self, key: Array, length: int) -> tuple[Array, Array]:
        value = jax.random.uniform(key, (length,), minval=-1.0)
        place = length - 1 - self.lag
        target = value[place] if place >= 0 else jnp.zeros_like(value[0])
        return _sequence(value, jnp.zeros(length, bool)), target[None]


def echo(key: Array, length: int) -> tuple[Array, Array]:
    """The task of the linear networks: normal values, of which the last is the target,
    a teacher without memory. There are no marks.
    """
    value = jax.random.normal(key, (length, 1))
    return value, value[-1]


@eqx.filter_jit
def examples(task: Any, keys: Array, length: int) -> tuple[Array, Array]:
    """Sequences and targets, one for each key."""
    return jax.vmap(lambda key: task(key, length))(keys)
