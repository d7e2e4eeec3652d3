"""Clean accuracy against robustness, along the ways from a network to its stabilised
copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sgfbias.core.checks import as_whole
from sgfbias.fourier.attack import attack
from sgfbias.fourier.certify import certify
from sgfbias.fourier.examples import accuracy, as_bits, as_labels, margin
from sgfbias.fourier.layers import first_layer
from sgfbias.fourier.moves import AbstractMoves, BitFlips
from sgfbias.fourier.neuron import Scale, clipped
from sgfbias.fourier.selection import Subsets, gmbc_order, stabilised_subsets


class Frontier(eqx.Module):
    """Stabilised copies of a network. Made by `frontier`.

    The first m + 1 copies have 0, 1, ..., m wholly stabilised neurons, in the order of
    "gmbc". In the others all neurons are clipped at a level.

    - `neurons`: (P, m). Which neurons of each copy are stabilised.
    - `levels`: (P,). The level of these neurons; 0 for wholly stabilised ones.
    - `validation`, `clean`: (P,). The accuracies on the validation and the test data.
    - `robust`: (P, K). The accuracy on the test data under greedy attacks.
    - `certified`: (P, K). The certified accuracy; None without certificates, and where
      `certify` refuses the network.
    - `flips`: the K numbers of moves of the attacks.
    """

    neurons: Bool[Array, "P m"]
    levels: Float[Array, " P"]
    validation: Float[Array, " P"]
    clean: Float[Array, " P"]
    robust: Float[Array, "P K"]
    certified: Float[Array, "P K"] | None
    flips: tuple[int, ...] = eqx.field(static=True)
    scale: Scale = eqx.field(static=True)
    subsets: Subsets

    def network(self, k: int) -> Any:
        """The copy with the number k."""
        return _copy(self.subsets, self.scale, self.neurons[k], self.levels[k])

    def __repr__(self) -> str:
        """The numbers of copies, flips and neurons."""
        p, m = self.neurons.shape
        flips = ", ".join(map(str, self.flips))
        return f"Frontier({p} copies, {m} neurons, attacks of {flips} flips)"


def frontier(
    net: Any,
    X_val: Any,
    y_val: Any,
    X: Any,
    y: Any,
    flips: Sequence[int] = (2, 4, 6),
    levels: int = 50,
    *,
    moves: AbstractMoves = BitFlips(),
    scale: Scale = "linf",
    certificates: bool = True,
    layer: Callable | None = None,
    activation: Callable | None = None,
) -> Frontier:
    """Clean and robust accuracy of all copies of a network on two ways to its
    stabilised one: neuron by neuron, and by clipping all neurons at falling levels.

    **Arguments:**

    - `net`: an Equinox module whose first `eqx.nn.Linear` sees the bits.
    - `X_val`, `y_val`: validation data, on which the order of the neurons is chosen by
      gain per loss of accuracy, see `select`.
    - `X`, `y`: test data.
    - `flips`: the numbers of moves of the attacks.
    - `levels`: how many levels to try, evenly spaced from 1 to `1/levels`.
    - `certificates`: whether to certify each copy, which takes longer than to attack
      it.
    - `moves`, `scale`, `layer`, `activation`: as for `select`.

    **Returns:** a `Frontier` with m + 1 + levels copies.

    **Raises:** `ValueError` as `select` and `attack` do, and without flips.
    """
    wanted = tuple(as_whole(k, "flips", least=0) for k in flips)
    if not wanted:
        raise ValueError("flips must have at least one number of moves, but is empty")
    count = as_whole(levels, "levels", least=0)
    options = {"layer": layer, "activation": activation}
    subsets = stabilised_subsets(net, X_val, y_val, scale=scale, **options)
    cut = subsets.cut
    bits = as_bits(X, cut.dtype, "X")
    labels = as_labels(y, cut.outputs(cut.preactivations(bits)).shape)
    order = gmbc_order(subsets)
    neurons = jnp.concatenate([order, jnp.ones((count, cut.m), bool)])
    values = np.concatenate([np.zeros(cut.m + 1), np.linspace(1, 0, count, endpoint=False)])
    copies = neurons, jnp.asarray(values, cut.dtype)
    most = max(wanted)
    sure = None
    if certificates and _certifiable(net, bits[:1], labels[:1], options):
        sure = _curves(certify, subsets, scale, copies, bits, labels, most, moves)
    curves = _curves(attack, subsets, scale, copies, bits, labels, most, moves)
    at = np.asarray(wanted)
    return Frontier(
        *copies,
        validation=_validation(subsets, scale, copies),
        clean=curves[:, 0],
        robust=curves[:, at],
        certified=None if sure is None else sure[:, at],
        flips=wanted,
        scale=scale,
        subsets=subsets,
    )


def _certifiable(net: Any, inputs: Array, labels: Array, options: dict[str, Any]) -> bool:
    """Whether `certify` takes this network. What it refuses can still be attacked."""
    try:
        certify(net, inputs, labels, 0, **options)
    except ValueError:
        return False
    return True


def _copy(subsets: Subsets, scale: Scale, neurons: Array, level: Array) -> Any:
    """The network whose given neurons are stabilised, or clipped at a level above 0."""
    partly = clipped(subsets.cut.weight, jnp.where(level > 0, level, 1), scale)
    new = jnp.where(level > 0, partly, subsets.weight)
    return subsets.cut.replace(jnp.where(neurons[:, None], new, subsets.cut.weight))


@eqx.filter_jit
def _curves(
    bound: Callable,
    subsets: Subsets,
    scale: Scale,
    copies: tuple[Array, Array],
    inputs: Array,
    labels: Array,
    flips: int,
    moves: AbstractMoves,
) -> Float[Array, "P k"]:
    """The attacked or the certified accuracy of all copies at 0, 1, ... moves."""

    def curve(copy: tuple[Array, Array]) -> Array:
        return bound(_copy(subsets, scale, *copy), inputs, labels, flips, moves=moves).curve

    return jax.lax.map(curve, copies)


@eqx.filter_jit
def _validation(subsets: Subsets, scale: Scale, copies: tuple[Array, Array]) -> Array:
    """The validation accuracy of all copies."""

    def one(copy: tuple[Array, Array]) -> Array:
        cut = first_layer(_copy(subsets, scale, *copy), subsets.cut.d)
        outputs = cut.outputs(cut.preactivations(subsets.inputs))
        return accuracy(margin(outputs, subsets.labels))

    return jax.lax.map(one, copies)
