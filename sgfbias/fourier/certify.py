"""A lower bound on the margin under every attack of at most k moves.

At most k moves shift the preactivation of a unit by at most its k largest changes in
one direction. The margin cannot fall below its least value on the box of these
intervals, which interval arithmetic bounds layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from sgfbias.fourier.activation import Activation
from sgfbias.fourier.attack import prepare
from sgfbias.fourier.examples import accuracy, is_own
from sgfbias.fourier.layers import HIGHEST, Layers
from sgfbias.fourier.moves import AbstractMoves, BitFlips, Candidates
from sgfbias.fourier.search import Search, in_parts

# The preactivations at which an activation is tried: dense around 0, and far beyond.
_GRID = np.sinh(np.linspace(-7, 7, 2801))

Box = tuple[Float[Array, "n k m"], Float[Array, "n k m"]]


class Certificate(eqx.Module):
    """What is proved about every attack.

    **Arguments:**

    - `margin`: (flips + 1, n). No attack of at most 0, 1, ... moves has a lower margin.
    """

    margin: Float[Array, "k n"]

    @property
    def curve(self) -> Float[Array, " k"]:
        """The certified accuracy at most 0, 1, ... moves, (flips + 1,)."""
        return accuracy(self.margin)


def certify(
    net: Any,
    inputs: Any,
    y: Any,
    flips: int,
    *,
    moves: AbstractMoves = BitFlips(),
    layer: Callable[[Any], eqx.nn.Linear] | None = None,
    activation: Callable | None = None,
) -> Certificate:
    """Bound the margin under at most k moves from below, for all k up to `flips`.

    The bound is the least margin itself for a linear network. With one hidden layer and
    one output it is so if all units have the same worst moves: the products of the
    weights into and out of the units have one sign for each bit, and the units agree on
    the order of the bits by the sizes of their weights. Stabilised units, whose weights
    are +-c, agree on that order.

    **Arguments:**

    - `net`: an `eqx.nn.MLP`, `eqx.nn.Sequential` or `eqx.nn.Linear` whose activations
      are monotone.
    - `inputs`, `y`, `flips`, `moves`, `layer`, `activation`: as for `attack`.

    **Returns:** a `Certificate`. Its bounds are exact up to rounding.

    **Raises:** `ValueError` for a network of another kind, for an activation that is
    not monotone or does not act on each unit alone, and for what `attack` refuses. An
    activation is tried on 2,801 numbers between -548 and 548.
    """
    options = {"layer": layer, "activation": activation}
    cut, bits, labels, flips = prepare(net, inputs, y, flips, moves, options)
    if cut.steps is None:
        raise ValueError(
            "certify needs a network that is a chain of linear layers and activations, an "
            f"eqx.nn.MLP or an eqx.nn.Sequential, but is given {type(net).__name__} (or a chain "
            "with other layers in it): write it as a chain, or use attack()"
        )
    _check_activations(cut)
    moved = min(flips, moves.candidates(cut.d).features)
    margin = _certify(cut, bits, labels, moves, moved)
    return Certificate(jnp.concatenate([margin, jnp.repeat(margin[-1:], flips - moved, axis=0)]))


def _check_activations(cut: Layers) -> None:
    """Refuse activations that mix units or are not monotone."""
    size = cut.m
    for step in cut.steps or ():
        if isinstance(step, eqx.nn.Linear):
            size = step.weight.shape[0]
            continue
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(step)):
            continue
        with jax.ensure_compile_time_eval():
            _check_activation(step, size)


def _check_activation(activation: Activation, size: int) -> None:
    """Refuse one activation of `size` units, after trying it on a grid."""
    away = "use attack(), or exhaustive for d <= 20"
    points = jnp.asarray(_GRID)
    values = np.asarray(activation(jnp.broadcast_to(points[:, None], (len(points), size))))
    random = np.random.default_rng(0).normal(size=(2, size))
    mixed = np.where(np.arange(size) == 0, random[0], random[1])
    alone, among_others = (
        float(np.asarray(activation(jnp.asarray(z)))[0]) for z in (random[0], mixed)
    )
    if not np.isclose(alone, among_others, rtol=1e-5, atol=1e-6):
        raise ValueError(f"{activation.name} does not act on each unit alone: {away}")
    steps = np.diff(values, axis=0)
    rounding = 8 * np.finfo(values.dtype).eps * np.abs(values[1:])
    if not ((steps >= -rounding).all(axis=0) | (steps <= rounding).all(axis=0)).all():
        raise ValueError(f"{activation.name} is not monotone: {away}")


@eqx.filter_jit
def _certify(
    cut: Layers,
    inputs: Float[Array, "n d"],
    labels: Num[Array, " n"],
    moves: AbstractMoves,
    flips: int,
) -> Float[Array, "k n"]:
    """The margins of a `Certificate`."""
    search = Search(cut, moves.candidates(cut.d))

    def part(inputs: Array, labels: Array) -> Array:
        if not cut.steps and cut.m > 1:
            return _of_linear(search, inputs, labels, flips)
        return _least_margin(_boxes(search, inputs, flips), cut.steps or (), labels)

    size = search.candidates.count + (flips + 1) * cut.m
    return in_parts(part, size, inputs, labels).T


def _boxes(search: Search, inputs: Float[Array, "n d"], flips: int) -> Box:
    """The intervals of the preactivations under at most 0, 1, ... moves."""
    state = search.start(inputs)
    candidates = search.candidates

    def shifts(_: None, column: Array) -> tuple[None, tuple[Array, Array]]:
        change = jnp.where(state.open, candidates.changes(column, state.s), 0)
        return None, (
            -_largest_sums(-change, candidates, flips),
            _largest_sums(change, candidates, flips),
        )

    _, (low, high) = jax.lax.scan(shifts, None, search.columns)
    z = state.z[:, None]
    return z + jnp.moveaxis(low, 0, -1), z + jnp.moveaxis(high, 0, -1)


def _of_linear(
    search: Search, inputs: Float[Array, "n d"], labels: Num[Array, " n"], flips: int
) -> Float[Array, "n k"]:
    """The least margins of a linear classifier, which are exact: the differences of two
    outputs are linear in the bits.
    """
    state = search.start(inputs)
    own = is_own(labels, search.cut.m).astype(state.z.dtype)
    own_output, own_weights = (own * state.z).sum(axis=1), search.per_bit(own)

    def against(least: Array, other: tuple[Array, Array, Array]) -> tuple[Array, None]:
        output, column, label = other
        change = search.candidates.changes(own_weights - column, state.s)
        falls = _largest_sums(jnp.where(state.open, -change, 0), search.candidates, flips)
        bound = (own_output - output)[:, None] - falls
        return jnp.minimum(least, jnp.where(label[:, None] > 0, jnp.inf, bound)), None

    start = jnp.full((len(inputs), flips + 1), jnp.inf, state.z.dtype)
    return jax.lax.scan(against, start, (state.z.T, search.columns, own.T))[0]


def _largest_sums(
    change: Float[Array, "n C"], candidates: Candidates, flips: int
) -> Float[Array, "n k"]:
    """The largest sums of 0, 1, ... changes of different features."""
    gains = jnp.maximum(change, 0)
    if candidates.has_groups:
        best = jax.vmap(lambda row: jax.ops.segment_max(row, candidates.kin, candidates.features))
        gains = best(gains)
    largest, _ = jax.lax.top_k(gains, flips)
    return jnp.pad(jnp.cumsum(largest, axis=1), ((0, 0), (1, 0)))


def _through(linear: eqx.nn.Linear, box: Box) -> Box:
    """The box of the outputs of a linear layer."""
    middle, radius = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    centre = jnp.matmul(middle, linear.weight.T, precision=HIGHEST)
    if linear.bias is not None:
        centre = centre + linear.bias
    spread = jnp.matmul(radius, jnp.abs(linear.weight).T, precision=HIGHEST)
    return centre - spread, centre + spread


def _least_margin(box: Box, steps: tuple, labels: Num[Array, " n"]) -> Float[Array, "n k"]:
    """A lower bound of the margin on the boxes, by the steps after the first layer."""
    last = steps[-1] if steps and isinstance(steps[-1], eqx.nn.Linear) else None
    for step in steps if last is None else steps[:-1]:
        if isinstance(step, eqx.nn.Linear):
            box = _through(step, box)
        else:
            ends = step(box[0]), step(box[1])
            box = jnp.minimum(*ends), jnp.maximum(*ends)
    size = box[0].shape[-1]
    eye = jnp.eye(size, dtype=box[0].dtype)
    weight = eye if last is None else last.weight
    bias = jnp.zeros(size, weight.dtype) if last is None or last.bias is None else last.bias
    bias = jnp.zeros(len(weight), weight.dtype) if len(bias) != len(weight) else bias
    if len(weight) == 1:
        sign = jnp.where(labels > 0, 1, -1).astype(weight.dtype)[:, None]
        return _least(sign[..., None] * weight[0], sign * bias[0], box)
    own = is_own(labels, len(weight)).astype(weight.dtype)
    own_weight, own_bias = own @ weight, own @ bias

    def against(least: Array, other: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, number, label = other
        bound = _least((own_weight - row)[:, None], (own_bias - number)[:, None], box)
        return jnp.minimum(least, jnp.where(label[:, None] > 0, jnp.inf, bound)), None

    start = jnp.full(box[0].shape[:2], jnp.inf, weight.dtype)
    return jax.lax.scan(against, start, (weight, bias, own.T))[0]


def _least(reads: Float[Array, "n 1 m"], bias: Float[Array, "n 1"], box: Box) -> Array:
    """The least value of a linear function on each box."""
    ends = reads * box[0], reads * box[1]
    return jnp.minimum(*ends).sum(axis=-1) + bias
