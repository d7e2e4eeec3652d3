"""What an attacker may do: flip bits, or change the category of one-hot features.

Every kind of moves is a list of candidates. A candidate flips one bit, or sets one bit
of a one-hot group and clears the bit that was set. Attacks and certificates see the
candidates' bits only, so bits that cannot change cost nothing.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sgfbias.core.checks import is_concrete, shown
from sgfbias.core.names import did_you_mean

DIRECTIONS = ("any", "add", "remove")


class Candidates:
    """The single moves that are open to an attacker of inputs with d bits.

    It acts on the values `s` (n, C) of the bits `bits`, and not on whole inputs.

    **Arguments:**

    - `bits`: (C,), which bit each candidate flips, without repetitions.
    - `sign`: (C,), which value of its bit each candidate needs: -1, +1, or 0 for both.
    - `kin`: (C,), a number from 0 to the number of features. Candidates of one number
      belong to one one-hot group, and at most one of them is taken.
    """

    def __init__(self, bits: np.ndarray, sign: np.ndarray, kin: np.ndarray):
        self.bits, self.sign = bits.astype(np.int32), sign.astype(np.int8)
        self.kin = kin.astype(np.int32)
        self.features = int(kin.max()) + 1 if len(kin) else 0
        sizes = np.bincount(self.kin, minlength=self.features)
        self.grouped = sizes[self.kin] > 1
        self.has_groups = bool(self.grouped.any())

    @property
    def count(self) -> int:
        """The number C of candidates."""
        return len(self.bits)

    def of(self, inputs: Array) -> Array:
        """The values of the candidates' bits, (..., C)."""
        return inputs[..., self.bits]

    def into(self, inputs: Float[Array, "n d"], s: Float[Array, "n C"]) -> Float[Array, "n d"]:
        """The inputs with the values `s` of the candidates' bits."""
        return inputs.at[:, self.bits].set(s)

    def allowed(self, s: Float[Array, "n C"]) -> Bool[Array, "n C"]:
        """Which candidates are open from the values `s`."""
        sign = jnp.asarray(self.sign).astype(s.dtype)
        return (sign == 0) | (s == sign)

    def _set_bits(self, s: Float[Array, "n C"]) -> Bool[Array, "n C"]:
        """The bits that one-hot groups have set."""
        return (s > 0) & self.grouped

    def _of_features(self, values: Float[Array, "n C"]) -> Float[Array, "n C"]:
        """The sum of the values over each candidate's feature."""
        total = jax.vmap(lambda row: jax.ops.segment_sum(row, self.kin, self.features))(values)
        return total[:, self.kin]

    def changes(self, weights: Float[Array, "*n C"], s: Float[Array, "n C"]) -> Float[Array, "n C"]:
        """By how much `<weights, s>` changes under each candidate."""
        change = -2 * s * weights
        if self.has_groups:
            cleared = jnp.where(self._set_bits(s), -2 * s * weights, 0)
            change = change + jnp.where(self.grouped, self._of_features(cleared), 0)
        return change

    def shift(self, amounts: Float[Array, "n C"], s: Float[Array, "n C"]) -> Float[Array, "n C"]:
        """The change of `s` if every candidate is carried out to a fraction in [0, 1].

        It is linear in `amounts`, and whole moves have the amount 1. This is the
        transpose of `changes`.
        """
        shift = -2 * amounts * s
        if self.has_groups:
            shift = jnp.where(self._set_bits(s), -2 * self._of_features(amounts), shift)
        return shift

    def same_feature(self, choice: Int[Array, " n"]) -> Bool[Array, "n C"]:
        """The candidates that belong to the same feature as the chosen ones."""
        kin = jnp.asarray(self.kin)
        return kin[choice][:, None] == kin

    def check(self, inputs: Array) -> None:
        """Refuse inputs in which a group does not have exactly one bit set."""
        if not self.has_groups or not is_concrete(inputs):
            return
        ones = np.asarray(self.of(inputs)) > 0
        for feature in np.unique(self.kin[self.grouped]):
            member = self.kin == feature
            count = ones[:, member].sum(axis=1)
            if (count != 1).any():
                row = int(np.flatnonzero(count != 1)[0])
                raise ValueError(
                    "each one-hot group must have exactly one bit at +1, but example "
                    f"{row} has {count[row]} in the group of the bits "
                    f"{_listed(self.bits[member])}; leave the group out, or correct the inputs"
                )


class AbstractMoves(eqx.Module):
    """What an attacker may change in one move."""

    @abc.abstractmethod
    def candidates(self, d: int) -> Candidates:
        """The single moves on inputs with d bits.

        **Raises:** `ValueError` if the moves are made for another number of bits.
        """


class BitFlips(AbstractMoves):
    """One move flips one bit.

    **Arguments:**

    - `mutable`: (d,), booleans: which bits may change. All, if it is None.
    - `direction`: "any", or "add" for flips from -1 to +1 only, as of features that can
      be added to a file and not removed from it, or "remove" for the others.
    """

    mutable: tuple[bool, ...] | None = eqx.field(static=True)
    direction: str = eqx.field(static=True)

    def __init__(self, mutable: Any = None, direction: str = "any"):
        if direction not in DIRECTIONS:
            raise ValueError(
                f"`direction` must be {', '.join(map(repr, DIRECTIONS))}, but is "
                f"{shown(direction)}; {did_you_mean(str(direction), DIRECTIONS)}"
            )
        if mutable is not None:
            mask = np.asarray(mutable)
            if mask.dtype != bool or mask.ndim != 1:
                raise ValueError(
                    "`mutable` must be booleans of shape (d,), one for each bit, but is "
                    f"{shown(mutable)}"
                )
            mutable = tuple(mask.tolist())
        self.mutable, self.direction = mutable, direction

    def candidates(self, d: int) -> Candidates:
        return _flips(self.mutable, self.direction, d)


@functools.lru_cache(maxsize=64)
def _flips(mutable: tuple[bool, ...] | None, direction: str, d: int) -> Candidates:
    if mutable is not None and len(mutable) != d:
        raise ValueError(
            f"`mutable` must say of each of the {d} bits whether it may change, but has "
            f"{len(mutable)} entries"
        )
    bits = np.arange(d) if mutable is None else np.flatnonzero(mutable)
    sign = {"any": 0, "add": -1, "remove": 1}[direction]
    return Candidates(bits, np.full(len(bits), sign), np.arange(len(bits)))


class OneHotSwaps(AbstractMoves):
    """One move changes the category of one feature, which changes two bits.

    **Arguments:**

    - `groups`: lists of bits. In each group exactly one bit is +1, as in a categorical
      feature written as bits.
    - `others`: what may be done to bits outside of the groups. By default they stay.
    """

    groups: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    others: BitFlips | None = None

    def __init__(self, groups: Iterable[Sequence[int]], others: BitFlips | None = None):
        try:
            found = tuple(tuple(int(bit) for bit in np.asarray(group)) for group in groups)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`groups` must be lists of numbers of bits, but is {shown(groups)}"
            ) from error
        if not found or min(map(len, found)) < 2:
            raise ValueError(
                "`groups` must be lists of two bits or more, one for each categorical feature, but "
                f"is {shown(groups)}"
            )
        every = np.concatenate([np.array(group) for group in found])
        values, counts = np.unique(every, return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"groups must not overlap, but bit {values[counts > 1][0]} is in two places"
            )
        if values[0] < 0:
            raise ValueError(f"`groups` must be numbers of bits from 0 on, but has {values[0]}")
        self.groups, self.others = found, others

    def candidates(self, d: int) -> Candidates:
        lone = None if self.others is None else self.others.candidates(d)
        return _swaps(self.groups, lone, d)


@functools.lru_cache(maxsize=64)
def _swaps(groups: tuple[tuple[int, ...], ...], lone: Candidates | None, d: int) -> Candidates:
    bits = np.concatenate([np.array(group) for group in groups])
    if bits.max() >= d:
        raise ValueError(
            f"`groups` has bit {bits.max()}, but the inputs have the bits 0 to {d - 1}"
        )
    kin = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    sign = np.full(len(bits), -1)
    if lone is not None:
        free = ~np.isin(lone.bits, bits)
        bits = np.concatenate([bits, lone.bits[free]])
        sign = np.concatenate([sign, lone.sign[free]])
        kin = np.concatenate([kin, len(groups) + np.arange(free.sum())])
    return Candidates(bits, sign, kin)


def _listed(bits: np.ndarray) -> str:
    """Up to six numbers of bits, for an error."""
    return ", ".join(map(str, bits[:6])) + (", ..." if len(bits) > 6 else "")
