"""Attacks that change at most k bits, and the accuracy that they leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from sgfbias.core.checks import as_whole, shown
from sgfbias.core.names import did_you_mean
from sgfbias.fourier import climb
from sgfbias.fourier.examples import accuracy, as_bits, as_labels
from sgfbias.fourier.exhaust import MOST, exhaust, prefixes, sets
from sgfbias.fourier.layers import Layers, first_layer
from sgfbias.fourier.moves import AbstractMoves, BitFlips
from sgfbias.fourier.pgd import pgd
from sgfbias.fourier.search import Search, in_parts

METHODS = ("greedy", "beam", "jsma", "fgsm", "pgd", "exhaustive")


class Attack(eqx.Module):
    """What an attack found.

    **Arguments:**

    - `margin`: (flips + 1, n). The least margin met with at most 0, 1, ... moves.
    - `inputs`: (n, d). The bits at which each example has the margin `margin[flips]`.
    - `method`: the name of the attack.
    """

    margin: Float[Array, "k n"]
    inputs: Float[Array, "n d"]
    method: str = eqx.field(static=True)

    @property
    def curve(self) -> Float[Array, " k"]:
        """The accuracy under the attack with at most 0, 1, ... moves, (flips + 1,)."""
        return accuracy(self.margin)


def prepare(
    network: Any, inputs: Any, labels: Any, flips: Any, moves: Any, options: dict[str, Any]
) -> tuple[Layers, Float[Array, "n d"], Num[Array, " n"], int]:
    """Check what an attack or a certificate is given, and cut the network."""
    flips = as_whole(flips, "flips", least=0)
    if not isinstance(moves, AbstractMoves):
        raise ValueError(
            "`moves` must be BitFlips(...) or OneHotSwaps(groups), but is " + shown(moves)
        )
    shape = jnp.shape(inputs)
    cut = first_layer(network, shape[1] if len(shape) == 2 else None, **options)
    bits = as_bits(inputs, cut.dtype)
    outputs = eqx.filter_eval_shape(cut.outputs, jnp.zeros((len(bits), cut.m), cut.dtype))
    labels = as_labels(labels, outputs.shape)
    moves.candidates(cut.d).check(bits)
    return cut, bits, labels, flips


def attack(
    net: Any,
    inputs: Any,
    y: Any,
    flips: int,
    *,
    method: str = "greedy",
    moves: AbstractMoves = BitFlips(),
    width: int = 8,
    steps: int = 20,
    restarts: int = 2,
    key: Array | None = None,
    layer: Callable[[Any], eqx.nn.Linear] | None = None,
    activation: Callable | None = None,
) -> Attack:
    """Search for at most k moves with the least margin, for all k up to `flips`.

    **Arguments:**

    - `net`: an Equinox module that maps d bits to a scalar, or to c numbers.
    - `inputs`: (n, d), in {-1, +1}.
    - `y`: (n,), in {0, 1} or {-1, 1} for a scalar, and classes for several outputs.
    - `flips`: the largest number of moves.
    - `method`: "greedy" takes the best single move, evaluated exactly, again and again;
      "beam" keeps the best `width` sets of moves; "jsma" follows the saliency of
      derivatives; "fgsm" takes the best moves by the derivatives at the original bits;
      "pgd" descends `steps` times on relaxed bits from `restarts` starts; "exhaustive"
      tries every set and finds the true least margin.
    - `moves`: what one move may change, `BitFlips` or `OneHotSwaps`.
    - `width`, `steps`, `restarts`: the effort of "beam" and "pgd".
    - `key`: for the random starts of "pgd". Default `jax.random.key(0)`.
    - `layer`, `activation`: which layer sees the bits, as a function of the network,
      and what follows it, for modules in which they are not found, see `first_layer`.

    **Returns:** an `Attack`. Its margins are upper bounds of the least margins.

    **Raises:** `ValueError` for inputs other than -1 and +1, labels that do not fit the
    outputs, a network whose first layer is not linear, and an exhaustive search of more
    than 1e8 evaluations.
    """
    if method not in METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, METHODS))}, but is {shown(method)}; "
            f"{did_you_mean(str(method), METHODS)}"
        )
    effort = (
        as_whole(width, "width"),
        as_whole(steps, "steps"),
        as_whole(restarts, "restarts"),
    )
    options = {"layer": layer, "activation": activation}
    cut, bits, labels, flips = prepare(net, inputs, y, flips, moves, options)
    candidates = moves.candidates(cut.d)
    moved = min(flips, candidates.features)
    tried: list = []
    if method == "exhaustive":
        count = len(bits) * sets(candidates, moved)
        if count > MOST:
            raise ValueError(
                f"an exhaustive search of {flips} flips on {len(bits)} examples with "
                f"{candidates.count} moves takes {count:.1e} evaluations, but at most {MOST:.0e} "
                'are allowed: use fewer flips or examples, or method="beam"'
            )
        tried = prefixes(candidates, moved)
    key = jax.random.key(0) if key is None else key
    margin, inputs = _attack(cut, bits, labels, key, tried, moves, moved, method, effort)
    # With fewer features than flips, more flips change nothing.
    last = jnp.repeat(margin[-1:], flips - moved, axis=0)
    return Attack(jnp.concatenate([margin, last]), inputs, method)


@eqx.filter_jit
def _attack(
    cut: Layers,
    inputs: Float[Array, "n d"],
    labels: Num[Array, " n"],
    key: Array,
    tried: list,
    moves: AbstractMoves,
    flips: int,
    method: str,
    effort: tuple[int, int, int],
) -> tuple[Float[Array, "k n"], Float[Array, "n d"]]:
    """The margins and the inputs of an `Attack`."""
    width, steps, restarts = effort
    search = Search(cut, moves.candidates(cut.d))
    size = search.candidates.count * (width if method == "beam" else 1)

    def part(inputs: Array, labels: Array) -> climb.Found:
        state = search.start(inputs)
        if method == "greedy" or flips == 0:
            return climb.greedy(search, state, labels, flips)
        if method == "beam":
            return climb.beam(search, state, labels, flips, width)
        if method == "jsma":
            return climb.jsma(search, state, labels, flips)
        if method == "fgsm":
            return climb.fgsm(search, state, labels, flips)
        if method == "pgd":
            return pgd(search, state, labels, flips, key, steps, restarts)
        return exhaust(search, state, labels, tried)

    margin, s = in_parts(part, size, inputs, labels)
    return margin.T, search.candidates.into(inputs, s)
