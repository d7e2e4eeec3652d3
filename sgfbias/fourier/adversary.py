"""Adversarial training: flips that lower the margin, as a rule for `Problem`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from sgfbias.core.checks import as_float, as_whole, shown
from sgfbias.core.names import did_you_mean
from sgfbias.fourier import climb
from sgfbias.fourier.layers import first_layer
from sgfbias.fourier.moves import AbstractMoves, BitFlips
from sgfbias.fourier.search import Search

ATTACKS = {"greedy": climb.greedy, "jsma": climb.jsma, "fgsm": climb.fgsm}


class Adversary(eqx.Module):
    """A rule that attacks a share of each batch, for `Problem(..., perturb=)`.

    The network of the moment is attacked, and no derivative goes through the attack. An
    example is attacked independently of the others, with the probability `share`.

    **Arguments:**

    - `method`: "fgsm", "jsma" or "greedy", see `attack`.
    - `flips`: the largest number of moves, at least 0.
    - `share`: the probability in [0, 1] with which an example is attacked.
    - `moves`: what one move may change.

    **Raises:** `ValueError` for another method, and for numbers outside of their range.
    """

    method: str = eqx.field(static=True)
    flips: int = eqx.field(static=True)
    share: float = eqx.field(static=True)
    moves: AbstractMoves

    def __init__(
        self,
        method: str = "fgsm",
        *,
        flips: int,
        share: float = 1.0,
        moves: AbstractMoves = BitFlips(),
    ):
        if method not in ATTACKS:
            raise ValueError(
                f"`method` must be one of {', '.join(map(repr, ATTACKS))}, but is {shown(method)}; "
                f"{did_you_mean(str(method), ATTACKS)}"
            )
        self.method, self.flips = method, as_whole(flips, "flips", least=0)
        self.share = as_float(share, "share")
        if not 0 <= self.share <= 1:
            raise ValueError(f"`share` must be between 0 and 1, but is {self.share:g}")
        if not isinstance(moves, AbstractMoves):
            raise ValueError(
                "`moves` must be BitFlips(...) or OneHotSwaps(groups), but is " + shown(moves)
            )
        self.moves = moves

    def __call__(
        self,
        network: Any,
        inputs: Float[Array, "n d"],
        targets: Num[Array, " n"],
        key: Shaped[Array, "..."],
    ) -> Float[Array, "n d"]:
        """The inputs of a batch, of which some are attacked."""
        cut = first_layer(network, inputs.shape[1])
        search = Search(cut, self.moves.candidates(cut.d))
        flips = min(self.flips, search.candidates.features)
        _, s = ATTACKS[self.method](search, search.start(inputs), targets, flips)
        attacked = search.candidates.into(inputs, s)
        chosen = jax.random.bernoulli(key, self.share, (len(inputs), 1))
        return jax.lax.stop_gradient(jnp.where(chosen, attacked, inputs))
