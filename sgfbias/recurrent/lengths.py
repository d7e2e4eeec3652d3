"""To which length a network holds: its loss on sequences of other lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import as_float, as_whole, check_positive
from sgfbias.core.loss import AbstractLoss, as_loss
from sgfbias.core.types import Dataset
from sgfbias.recurrent.cell import AbstractRecurrent, Together

AT_ONCE = 256  # sequences that are evaluated together


class Curve(NamedTuple):
    """The loss of a network on sequences of several lengths.

    - `lengths`: (lengths,), increasing.
    - `loss`: (lengths,), the mean loss over sequences.
    - `error`: (lengths,), its standard error over sequences.
    - `trained`: the length of training, one of `lengths`.
    - `sequences`: the number of sequences.
    """

    lengths: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    trained: int
    sequences: int

    def horizon(self, factor: float = 10.0, *, level: float | None = None) -> int:
        """The largest of the lengths up to which the loss stays at or below `factor`
        times the loss at the length of training, or at or below `level`.

        All lengths between count: the loss may fall again later. It is the largest
        length that was tried if the loss never rises so far. It is the length of
        training if the next one already fails, and 0 if `level` is already missed
        there, or if the loss there is not finite.

        **Arguments:**

        - `factor`: at least 1.
        - `level`: a positive loss, in place of a multiple of the loss in training. Use
          it to compare networks with each other.

        **Raises:** `ValueError` for numbers outside these ranges.
        """
        factor = as_float(factor, "factor")
        if not factor >= 1:
            raise ValueError(f"`factor` must be at least 1, but is {factor:g}")
        at = int(np.searchsorted(self.lengths, self.trained))
        bound = factor * self.loss[at]
        if level is not None:
            bound = as_float(level, "level")
            check_positive(bound, "level")
        # A loss that is infinite or not a number does not hold.
        good = np.isfinite(self.loss[at:]) & (self.loss[at:] <= bound)
        if not good[0]:
            return 0
        bad = np.flatnonzero(~good[1:])
        return int(self.lengths[at:][bad[0] if bad.size else len(good) - 1])

    def to_xarray(self) -> Dataset:
        """The curve as an `xarray.Dataset` with the dimension `length`."""
        import xarray as xr

        return xr.Dataset(
            {
                "loss": ("length", self.loss, {"units": "loss"}),
                "error": ("length", self.error, {"units": "loss"}),
            },
            {"length": ("length", self.lengths, {"units": "steps"})},
            {"trained": self.trained, "sequences": self.sequences},
        )

    def __str__(self) -> str:
        horizon = self.horizon()
        more = " or more" if horizon == self.lengths[-1] else ""
        holds = (
            f"the loss stays within 10 times that to length {horizon}{more}"
            if horizon
            else "the loss at that length is not finite"
        )
        lines = [
            f"trained at length {self.trained}; over {self.sequences:,} sequences {holds}",
            f"{'length':>8} {'loss':>11} {'error':>9} {'ratio':>9}",
        ]
        first = self.loss[int(np.searchsorted(self.lengths, self.trained))]
        for length, loss, error in zip(self.lengths, self.loss, self.error, strict=True):
            ratio = loss / first if first else np.nan
            lines.append(f"{length:>8} {loss:>11.4g} {error:>9.2g} {ratio:>9.3g}")
        return "\n".join(lines)


def extrapolate(
    network: Any,
    task: Callable[[Array, int], tuple[Any, Any]],
    *,
    lengths: Sequence[int],
    trained: int,
    keys: Array,
    loss: Any = None,
    prefixes: bool = False,
) -> Curve:
    """The loss of a network at several lengths, with standard errors.

    **Arguments:**

    - `network`: any Equinox module that maps a sequence to what the loss takes.
    - `task`: a function `(key, length) -> (sequence, target)` that draws one sequence.
    - `lengths`: the lengths to try, at least one.
    - `trained`: the length of training, one of `lengths`.
    - `keys`: (n,), one for each sequence, such as `sgfbias.seeds(1000, 1512)`. All
      lengths use the same keys.
    - `loss`: as in `Problem`. Default `SquaredLoss()`.
    - `prefixes`: True if the target at time t is a function of the first t inputs, and
      the network has the outputs at all times. Then `task(key, longest)` returns
      targets (T, ...) for all times, and the loss of length t is that of the output at
      time t: all lengths are read from one pass.

    A `LinearRNN` or `Unroll` with its last output is compiled only once for several
    lengths: sequences are padded to the largest length over a power of 4, and the state
    stops at their end, so that the padding changes no result. Any other network is
    compiled for every length.

    **Returns:** a `Curve`.

    **Raises:** `ValueError` for lengths below 1, for a `trained` that is not among
    them, for a loss or a task that does not fit, and for fewer than two keys.
    """
    tried = sorted({as_whole(length, "lengths") for length in np.atleast_1d(lengths).tolist()})
    trained = as_whole(trained, "trained")
    if trained not in tried:
        raise ValueError(
            f"`trained` must be one of the lengths, so that there is a loss to compare with, but "
            f"{trained} is not among {', '.join(map(str, tried))}"
        )
    keys = check_keys(keys)
    if keys.ndim != 1 or keys.size < 2:
        raise ValueError(
            "`keys` must be two keys or more, one for each sequence, but has shape "
            f"{keys.shape}: write keys=sgfbias.seeds(0, 512)"
        )
    if not callable(task):
        raise ValueError(
            "`task` must be a function (key, length) -> (sequence, target), but is "
            f"{type(task).__name__}"
        )
    chosen = as_loss(loss)
    if prefixes:
        sample = np.asarray(_losses_of_prefixes(network, task, chosen, tried[-1], keys))
        sample = sample[:, np.asarray(tried) - 1].T
    elif isinstance(network, AbstractRecurrent) and network.outputs == "last":
        sample = np.stack(
            [_padded_losses(network, task, chosen, length, tried[-1], keys) for length in tried]
        )
    else:
        sample = np.stack(
            [np.asarray(_losses(network, task, chosen, length, keys)) for length in tried]
        )
    sample = sample.astype(np.float64)
    return Curve(
        np.asarray(tried),
        sample.mean(axis=1),
        sample.std(axis=1, ddof=1) / np.sqrt(keys.size),
        trained,
        int(keys.size),
    )


def _one_loss(loss: AbstractLoss, output: Array, target: Array) -> Array:
    """The loss of one example."""
    if jnp.issubdtype(target.dtype, jnp.floating):
        target = target.astype(output.dtype)
    return loss(output[None], target[None])[0]


def _drawn(task: Any, key: Array, length: int) -> tuple[Array, Array]:
    """A sequence of a task and its target, of the right length."""
    drawn = task(key, length)
    if not isinstance(drawn, tuple | list) or len(drawn) != 2:
        raise ValueError(
            f"`task` must return a pair (sequence, target), but returns {type(drawn).__name__}"
        )
    sequence, target = (jnp.asarray(part) for part in drawn)
    if sequence.ndim == 0 or sequence.shape[0] != length:
        raise ValueError(
            f"`task` must return a sequence of the length that it is asked for, {length}, but "
            f"returns one of shape {sequence.shape}"
        )
    return sequence, target


@eqx.filter_jit
def _losses(network: Any, task: Any, loss: AbstractLoss, length: int, keys: Array) -> Array:
    """The loss of every sequence of one length, (n,)."""

    def one(key: Array) -> Array:
        sequence, target = _drawn(task, key, length)
        output = network(sequence)
        loss.check(jax.ShapeDtypeStruct((1, *output.shape), output.dtype), target[None])
        return _one_loss(loss, output, target)

    return jax.lax.map(one, keys, batch_size=min(AT_ONCE, keys.size))


def padded_length(length: int, longest: int) -> int:
    """The least number of steps, `longest` over a power of 4, that `length` fits in."""
    room = longest
    while (shorter := -(-room // 4)) >= length and shorter < room:
        room = shorter
    return room


def _padded_losses(
    network: AbstractRecurrent,
    task: Any,
    loss: AbstractLoss,
    length: int,
    longest: int,
    keys: Array,
) -> np.ndarray:
    """The loss of every sequence of one length, (n,), by a program for padded ones."""
    room, together = padded_length(length, longest), min(AT_ONCE, keys.size)
    found = []
    for first in range(0, keys.size, together):
        # The last block is filled up, so that there is one program for all.
        block = keys[np.arange(first, first + together) % keys.size]
        sequences, targets = _drawn_and_padded(task, length, room, block)
        found.append(np.asarray(_stopped(network, loss, sequences, targets, jnp.int32(length))))
    return np.concatenate(found)[: keys.size]


@eqx.filter_jit
def _drawn_and_padded(task: Any, length: int, room: int, keys: Array) -> tuple[Array, Array]:
    """Sequences of a task, with zeros behind their end, and their targets."""
    sequences, targets = jax.vmap(lambda key: _drawn(task, key, length))(keys)
    free = [(0, 0), (0, room - length)] + [(0, 0)] * (sequences.ndim - 2)
    return jnp.pad(sequences, free), targets


@eqx.filter_jit
def _stopped(
    network: AbstractRecurrent, loss: AbstractLoss, sequences: Array, targets: Array, length: Array
) -> Array:
    """The loss of every sequence, whose state stops at `length`."""

    together, along = Together(network, sequences.shape[0]), jnp.moveaxis(sequences, 0, -1)

    def step(states: Any, given: Any) -> tuple[Any, None]:
        time, now = given
        moved = together.advance(states, now)
        return jax.tree.map(lambda a, b: jnp.where(time < length, a, b), moved, states), None

    times = jnp.arange(sequences.shape[1], dtype=jnp.int32)
    last, _ = jax.lax.scan(step, together.rest(along), (times, along))
    outputs = jnp.moveaxis(together.read(last), -1, 0)
    loss.check(jax.ShapeDtypeStruct((1, *outputs.shape[1:]), outputs.dtype), targets[:1])
    return jax.vmap(lambda output, target: _one_loss(loss, output, target))(outputs, targets)


@eqx.filter_jit
def _losses_of_prefixes(
    network: Any, task: Any, loss: AbstractLoss, longest: int, keys: Array
) -> Array:
    """The loss of every sequence at every time, (n, longest)."""

    def one(key: Array) -> Array:
        sequence, target = _drawn(task, key, longest)
        output = network(sequence)
        if target.shape[:1] != (longest,) or output.shape[:1] != (longest,):
            raise ValueError(
                "with prefixes=True there must be an output and a target at every time, "
                f"({longest}, ...), but outputs have shape {output.shape} and targets "
                f"{target.shape}: give the network outputs='all'"
            )
        return jax.vmap(lambda o, t: _one_loss(loss, o, t))(output, target)

    return jax.lax.map(one, keys, batch_size=min(AT_ONCE, keys.size))
