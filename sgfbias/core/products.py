"""Matrix products whose digits do not depend on the number of seeds.

Mapped over the seeds of a tile, a product of shared inputs with the numbers of a seed
becomes one product with rows for every seed. How a CPU sums such a product depends on
its number of rows and on the layout of its factors, so a seed's last digits would
depend on the size of its tile. Here the rows of the seeds stand on the left, and at
most `ROWS` of them are multiplied at a time. The sums are then those of a single row
for most shapes. A test of the product at hand, on random numbers, tells whether they
are.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# Rows that are multiplied at a time. From about 50 rows on, the sums of float32
# products change.
ROWS = 32

_AGREE: dict[Any, bool] = {}


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

    def rows(self) -> int:
        """The number of rows that a seed has in a product with a shared factor."""
        contracted, shared = dict(self.parameters)["dimension_numbers"]
        which = self.batched.index(True)
        out = {*contracted[which], *shared[which]}
        return max(1, math.prod(n for k, n in enumerate(self.shapes[which]) if k not in out))


def take_once(product: Product, a: Any, b: Any) -> Any:
    """The product of the first member, for every member."""
    size = (a if product.batched[0] else b).shape[0]
    first = [f[0] if own else f for f, own in zip((a, b), product.batched, strict=True)]
    # Without the barriers the compiler would fuse the product with what follows, or see
    # that the members are equal, and round differently.
    once = jax.lax.optimization_barrier(product(*first))
    return jax.lax.optimization_barrier(jnp.broadcast_to(once, (size, *once.shape)))


def take_blocks(product: Product, a: Any, b: Any) -> Any:
    """The product of every member.

    If one factor is shared, at most `ROWS` rows are multiplied at a time.
    """
    if all(product.batched):
        return jax.vmap(product)(a, b)
    moving, still = (a, b) if product.batched[0] else (b, a)
    size, block = moving.shape[0], max(1, ROWS // product.rows())

    def of(rows: Any) -> Any:
        return product(rows, still) if product.batched[0] else product(still, rows)

    parts = [
        of(moving[k])[None] if block == 1 else jax.vmap(of)(moving[k : k + block])
        for k in range(0, size, block)
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def agreeing(
    products: frozenset[Product], size: int, largest: int, *, copies: bool = False
) -> frozenset[Product]:
    """The products whose digits in a tile of `size` are those in one of `largest`.

    The products are taken of random numbers. With `copies` the tile of `size` holds
    copies of one member, whose product is taken once.
    """
    asked = [product for product in products if (product, size, largest, copies) not in _AGREE]
    if asked:
        few, many = _sample(asked, size, largest, copies)
        for product, a, b in zip(asked, few, many, strict=True):
            alike = 1 if copies else size
            same = np.array_equal(np.asarray(a)[:alike], np.asarray(b)[:alike])
            _AGREE[product, size, largest, copies] = same
    return frozenset(p for p in products if _AGREE[p, size, largest, copies])


def _sample(products: list[Product], size: int, largest: int, copies: bool) -> Any:
    """The products of random numbers in a tile of `size`, and in one of `largest`."""
    generator = np.random.default_rng(0)

    def draw(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return generator.standard_normal(shape).astype(dtype)

    many = [
        [
            draw((largest, *shape) if own else shape, dtype)
            for shape, dtype, own in zip(p.shapes, p.dtypes, p.batched, strict=True)
        ]
        for p in products
    ]

    def small(factor: Any, own: bool) -> Any:
        if not own:
            return factor
        return factor[:1].repeat(size, axis=0) if copies else factor[:size]

    few = [
        [small(f, own) for f, own in zip(pair, p.batched, strict=True)]
        for pair, p in zip(many, products, strict=True)
    ]

    @jax.jit
    def both(few: Any, many: Any) -> Any:
        return tuple(
            [take(p, *pair) for p, pair in zip(products, factors, strict=True)]
            for take, factors in ((take_once if copies else take_blocks, few), (take_blocks, many))
        )

    return both(few, many)
