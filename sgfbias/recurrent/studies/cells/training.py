"""What the parts of the study share: the optimiser, and the loss at several lengths."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array

from sgfbias import OptaxDescent, SquaredLoss
from sgfbias.recurrent import Curve, extrapolate

MSE = SquaredLoss(scale=1.0)
PROBES = 32  # sequences over which the gain is averaged


@functools.cache
def adam(rate: float, batch: int | None) -> OptaxDescent:
    """One object for all runs, which therefore share what is compiled."""
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    return OptaxDescent(clipped, 1.0, batch, integral="batch" if batch else "full")


def unstacked(networks: Any, count: int) -> list[Any]:
    """The networks of a stack, one by one."""
    return [
        jax.tree.map(lambda leaf, s=s: leaf[s] if eqx.is_array(leaf) else leaf, networks)
        for s in range(count)
    ]


def curve_of(net: Any, task: Any, lengths: tuple[int, ...], keys: Array) -> Curve:
    """The loss at every length, of which the first is that of training."""
    return extrapolate(net, task, lengths=lengths, trained=lengths[0], keys=keys, loss=MSE)
