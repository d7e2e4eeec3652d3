"""The examples that an iteration draws, and with which weights.

They depend only on the key of the seed, on the absolute number of the iteration, and,
for samplings with a memory, on what the seed has seen before.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_whole, shown


class Draw(eqx.Module):
    """The examples of one iteration.

    **Arguments:**

    - `index`: (b,) the numbers of the examples, or None for all n.
    - `weight`: (b,) the weights w_j of the examples, so that the gradient of the
      iteration is `sum_j w_j grad l_j`, or None for their plain mean.
    - `valid`: (b,) booleans, False where an entry only fills a place, or None if all
      entries are examples. What fills a place counts for nothing.
    """

    index: Array | None = None
    weight: Array | None = None
    valid: Array | None = None


class AbstractSampling(eqx.Module):
    """A rule that draws the examples of every iteration of an algorithm.

    A subclass defines `draw`, and whatever else differs from the defaults: a memory
    that each seed carries from iteration to iteration (`start`, `learn`, `refresh`),
    and which numbers of examples it fits (`check`). Give an instance as `sampling=`.
    """

    # Every so many iterations `refresh` is called; None for never.
    every: ClassVar[int | None] = None

    @property
    def batch_size(self) -> int | None:
        """The number of examples on which an iteration evaluates the model, or None for
        all of them.
        """
        return None

    def check(self, n: int) -> None:
        """Refuse a problem of n examples that this sampling does not fit.

        **Raises:** `ValueError` that says what is possible.
        """

    def start(self, problem: Any, network: Any, key: Array) -> Any:
        """The memory before the first iteration, a PyTree of arrays.

        **Arguments:**

        - `problem`: the data and the loss.
        - `network`: the network at the start.
        - `key`: a key of this seed for the start alone.
        """
        return ()

    @abc.abstractmethod
    def draw(self, memory: Any, key: Array, step: Array, n: int) -> tuple[Draw, Any]:
        """The examples of iteration `step`, and the memory after they have been drawn.

        **Arguments:**

        - `memory`: the memory before.
        - `key`: the key of this seed, the same in all iterations. Fold the step in.
        - `step`: the absolute number of the iteration.
        - `n`: the number of examples of the problem.
        """

    def learn(self, memory: Any, draw: Draw, derivatives: Array) -> Any:
        """The memory after the iteration has seen the derivatives `l'_j` of the drawn
        examples, (b, ...).
        """
        return memory

    def refresh(self, memory: Any, network: Any, problem: Any, key: Array) -> Any:
        """The memory as it is renewed before every iteration whose number is a multiple
        of `every`, except for the first.

        **Arguments:**

        - `memory`: the memory before.
        - `network`: the network before the iteration.
        - `problem`: the data and the loss.
        - `key`: a key of this seed and iteration.
        """
        return memory


class WithReplacement(AbstractSampling):
    """Batches of independent, uniform examples.

    **Arguments:**

    - `batch_size`: a whole number from 1 to n.

    **Raises:** `ValueError` for another batch size; in `simulate` if it exceeds n.
    """

    size: int = eqx.field(static=True)

    def __init__(self, batch_size: Any):
        self.size = as_whole(batch_size, "batch_size")

    @property
    def batch_size(self):
        return self.size

    def check(self, n):
        # With replacement larger batches would be legitimate mathematics, but they are
        # never intended.
        if self.size > n:
            raise ValueError(
                f"`batch_size` must be at most n = {n}, the number of examples, but is "
                f"{self.size}; to use all examples at every iteration, take GradientDescent"
            )

    def draw(self, memory, key, step, n):
        key = jax.random.fold_in(key, step)
        return Draw(jax.random.randint(key, (self.size,), 0, n)), memory


class WithoutReplacement(WithReplacement):
    """Batches of distinct examples, which are independent of each other.

    Batches of more than one draw a permutation of n at every iteration, at a cost of
    O(n log n).

    **Arguments:** as in `WithReplacement`.
    """

    def draw(self, memory, key, step, n):
        if self.size == 1:
            return super().draw(memory, key, step, n)
        order = jax.random.permutation(jax.random.fold_in(key, step), n)
        return Draw(order[: self.size]), memory


class RandomReshuffling(WithReplacement):
    """Every epoch of `n // batch_size` iterations has a new permutation of the
    examples, and leaves out the last `n % batch_size` of it.

    A permutation of n is drawn at every iteration, at a cost of O(n log n).

    **Arguments:** as in `WithReplacement`.
    """

    def draw(self, memory, key, step, n):
        epoch, place = step // (n // self.size), step % (n // self.size)
        order = jax.random.permutation(jax.random.fold_in(key, epoch), n)
        return Draw(jax.lax.dynamic_slice(order, (place * self.size,), (self.size,))), memory


NAMED = {
    "with_replacement": WithReplacement,
    "without_replacement": WithoutReplacement,
    "random_reshuffling": RandomReshuffling,
}


def as_sampling(sampling: Any, batch_size: Any) -> AbstractSampling:
    """The sampling that the arguments `sampling` and `batch_size` of an algorithm stand
    for. A batch size of None stands for 1 where one is needed.

    **Raises:** `ValueError` for another word, for a batch size that is not a whole
    number >= 1, and for a batch size beside a sampling that says itself how many it
    draws.
    """
    if isinstance(sampling, AbstractSampling):
        if batch_size is not None:
            raise ValueError(
                f"{type(sampling).__name__} says itself how many examples it draws: leave out "
                f"`batch_size`, which is {batch_size!r}"
            )
        return sampling
    if not isinstance(sampling, str) or sampling not in NAMED:
        given = repr(sampling) if isinstance(sampling, str) else shown(sampling)
        raise ValueError(
            f"`sampling` must be one of {', '.join(map(repr, NAMED))}, or a sampling such as "
            f"PersistentMask(0.3, persistence=10), but is {given}"
        )
    return NAMED[sampling](1 if batch_size is None else batch_size)


def is_independent(sampling: AbstractSampling | None) -> bool:
    """Whether the batches are plain, and independent of each other."""
    return sampling is None or type(sampling) in (WithReplacement, WithoutReplacement)


def signs(stream: Array, step: Array, shape: tuple[int, ...], dtype: object) -> Array:
    """Random signs of iteration `step`, +1 and -1 with equal probabilities."""
    heads = jax.random.bernoulli(jax.random.fold_in(stream, step), shape=shape)
    return jnp.where(heads, 1, -1).astype(dtype)
