"""Matrix products whose digits do not depend on the number of seeds.

Mapped over the seeds of a tile, a product of shared inputs with the numbers of a seed
becomes one product with rows for every seed. How a CPU sums such a product depends on
its number of rows and on the layout of its factors, so a seed's last digits would
depend on the size of its tile. If they do, at most `ROWS` rows are multiplied at a
time, whose sums are those of a few rows for most shapes. Products of random numbers,
taken once in every process, tell whether they do.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Rows that are multiplied at a time. From about 50 rows on, the sums of float32
# products change.
ROWS = 32
# Whether products alone decide which digits a program gives. With jax 0.12 other parts
# of a program also depend on the size of a tile, in ways that are not known.
ALONE_DECIDE = jax.__version_info__ < (0, 11)

# Numbers of every seed that are compared at least, in several rounds if a product has
# fewer. Where the digits of small products differ, a few in a hundred of them do.
NUMBERS = 256

# The digits of the products of random numbers that have been taken in this process: of
# every round, those of every seed.
_DIGITS: dict[Any, list[list[bytes]]] = {}


class Product(NamedTuple):
    """A product in a program that is mapped over seeds.

    It has the shapes and dtypes of its factors for one seed, whether each factor has a
    seed axis, and the parameters of JAX's `dot_general`.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    batched: tuple[bool, ...]
    parameters: tuple[tuple[str, Any], ...]

    def __call__(self, a: Any, b: Any) -> Any:
        """The product of one seed."""
        return jax.lax.dot_general_p.bind(a, b, **dict(self.parameters))

    def outer(self, which: int) -> int:
        """The number of rows of a factor, as a matrix of rows times summed numbers."""
        contracted, shared = dict(self.parameters)["dimension_numbers"]
        out = {*contracted[which], *shared[which]}
        return max(1, math.prod(n for k, n in enumerate(self.shapes[which]) if k not in out))

    @property
    def rounds(self) -> int:
        """How often the product is taken of random numbers, to compare its digits."""
        return math.ceil(NUMBERS / (self.outer(0) * self.outer(1)))

    @property
    def is_shared(self) -> bool:
        """Whether one factor is the same for all seeds."""
        return not all(self.batched)

    @property
    def block(self) -> int:
        """The number of seeds that are multiplied at a time."""
        return max(1, ROWS // self.outer(self.batched.index(True)))


class Steady(NamedTuple):
    """How the products of a program are mapped over seeds.

    - `split`: the products that are taken in blocks of rows.
    """

    split: frozenset[Product] = frozenset()

    def __call__(self, product: Product, a: Any, b: Any) -> Any:
        """The product of every seed."""
        return (_blocks if product in self.split else _whole)(product, a, b)


def _whole(product: Product, a: Any, b: Any) -> Any:
    """The product of every seed at once."""
    axes = tuple(0 if own else None for own in product.batched)
    return jax.vmap(product.__call__, axes)(a, b)


def _blocks(product: Product, a: Any, b: Any) -> Any:
    """The product of every seed, a block of seeds at a time."""
    moving, still = (a, b) if product.batched[0] else (b, a)
    size, block = moving.shape[0], product.block

    def of(row: Any) -> Any:
        return product(row, still) if product.batched[0] else product(still, row)

    if size <= block:
        return jax.vmap(of)(moving)
    if block == 1:
        return jnp.stack([of(row) for row in moving])
    return jnp.concatenate([jax.vmap(of)(moving[k : k + block]) for k in range(0, size, block)])


@functools.cache
def choose(products: frozenset[Product], size: int, largest: int) -> tuple[int, Steady]:
    """The size of a tile, from `size` to `largest`, and how its products are mapped.

    The size is the smallest at which every product has the digits that it has in a tile
    of the largest size.
    """
    # In an order of their own, so that another process compiles the same program.
    ordered = sorted(products, key=repr)
    wide = [p for p in ordered if p.is_shared and p.block < largest]

    def narrow(product: Product, size: int) -> tuple[Product, Any, int]:
        return product, _blocks if product in wide else _whole, size

    in_largest = [(p, way, largest) for p in wide for way in (_whole, _blocks)]
    _take([*in_largest, *(narrow(p, s) for p in ordered for s in (size, largest))])
    split = frozenset(p for p in wide if _differ((p, _whole, largest), narrow(p, largest)))
    while size < largest:
        _take([narrow(p, size) for p in ordered])
        if not any(_differ(narrow(p, size), narrow(p, largest)) for p in ordered):
            break
        size *= 2
    return size, Steady(split)


def _differ(one: Any, other: Any) -> bool:
    """Whether the seeds that two taken products share have different digits."""
    return any(
        a != b
        for some, others in zip(_DIGITS[one], _DIGITS[other], strict=False)
        for a, b in zip(some, others, strict=False)
    )


def _take(asked: Iterable[tuple[Product, Any, int]]) -> None:
    """Take products of random numbers, and remember the digits of each seed."""
    missing = [key for key in dict.fromkeys(asked) if key not in _DIGITS]
    if not missing:
        return

    @jax.jit
    def all_of(factors: Any) -> Any:
        return [way(p, *pair) for (p, way, _), pair in zip(missing, factors, strict=True)]

    rounds = max(product.rounds for product, _, _ in missing)
    digits: list[list[list[bytes]]] = [[] for _ in missing]
    for k in range(rounds):
        factors = [_factors(product, size, k) for product, _, size in missing]
        for known, found in zip(digits, all_of(factors), strict=True):
            known.append([_digest(row) for row in np.asarray(found)])
    _DIGITS.update(zip(missing, digits, strict=True))


def _digest(row: Any) -> bytes:
    """A hash of the bytes of an array or a number."""
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _factors(product: Product, size: int, k: int) -> list[np.ndarray]:
    """Random factors of the round `k` for `size` seeds, of which the first ones are
    always the same.
    """
    return [
        np.random.default_rng((which, k))
        .standard_normal((size, *shape) if own else shape)
        .astype(product.dtypes[which])
        for which, (shape, own) in enumerate(zip(product.shapes, product.batched, strict=True))
    ]
