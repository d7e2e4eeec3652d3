"""Batches in tiles of a fixed size.

With tiles a result does not depend on the other members of its batch, and one compiled
program serves batches of any size. Matrix products of different shapes round
differently. Everything that is batched over seeds therefore runs in tiles of a fixed
number of seeds, of which the last one is padded with copies of its last member. Runs of
few seeds take smaller tiles, if their products then have the same digits (see
`sgfbias.core.steady`). On a CPU every core can run its own tile in a thread, as a small
tile leaves cores idle. Several devices take tiles in turn.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.cached import cached
from sgfbias.core.checks import is_concrete
from sgfbias.core.products import Steady
from sgfbias.core.steady import CALLS_OUT, equations, steady

# Seeds per tile. On a CPU with two cores, 64 per tile and one tile per core takes at
# most a fifth longer than the best size from 64 to 512.
TILE = {"cpu": 64, "gpu": 4096, "tpu": 4096}
# Work per step below which tiles are large, and above which they are smallest.
SMALL, LARGE = 200_000, 5_000_000


def tile_size(work: int) -> int:
    """The number of members of a tile, for runs whose step takes `work`.

    The work is the number of pairs of a parameter and an example. Small steps must run
    together to be worth their overhead. A large step fills a core by itself, and
    padding a tile with it would cost as much as running it.
    """
    largest = TILE.get(jax.default_backend(), 64)
    if work < SMALL:
        return largest
    return max(largest // 8, 1) if work < LARGE else max(largest // 64, 1)


def groups_of(count: int, size: int, largest: int) -> int:
    """The number of tiles that a kernel is given at once.

    The kernel takes up to `largest` members at once, for `count` members in tiles of
    `size`. The number is a power of two, so that few programs are compiled.
    """
    wanted = min(math.ceil(count / size), max(largest // size, 1))
    return 2 ** math.ceil(math.log2(wanted))


def tile_index(count: int, size: int | None = None) -> np.ndarray:
    """The indices of the members of each tile, (tiles, size)."""
    size = TILE.get(jax.default_backend(), 64) if size is None else size
    tiles = math.ceil(count / size)
    return np.minimum(np.arange(tiles * size), count - 1).reshape(tiles, size)


def few_members(count: int, largest: int) -> int:
    """The number of members of a tile for `count` seeds, at most `largest`.

    It is a power of two, and on a CPU every core has a tile.
    """
    each = math.ceil(count / (os.cpu_count() or 1))
    return min(max(2 ** math.ceil(math.log2(each)), 2), largest)


def map_seeds(function: Callable, *args: Any, how: Steady | None = None, **given: Any) -> Any:
    """Map `function` over the leading axis of a tile.

    If `how` is given, the digits of matrix products do not depend on the size of the
    tile, see `sgfbias.core.steady.steady`, which takes `given`. Otherwise a tile of one
    member runs without a batch axis, which would halve the speed of matrix products.
    """
    if how is not None:
        return jax.vmap(steady(function, how, **given))(*args)
    if jax.tree.leaves(args)[0].shape[0] != 1:
        return jax.vmap(function)(*args)
    result = function(*jax.tree.map(lambda leaf: leaf[0], args))
    return jax.tree.map(lambda leaf: leaf[None], result)


def map_groups(function: Callable, size: int, *args: Any) -> Any:
    """Map `function` over the leading axis, `size` members at a time.

    The result for a member does not depend on how many members there are.
    """
    count = jax.tree.leaves(args)[0].shape[0]
    grouped = jax.tree.map(lambda leaf: leaf.reshape(count // size, size, *leaf.shape[1:]), args)
    result = jax.lax.map(lambda group: map_seeds(function, *group), grouped)
    return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), result)


def run_tiles(run: Callable[[Any], Any], tiles: Sequence[Any], *, threads: bool) -> list[Any]:
    """Apply `run` to every tile, and return the results in order.

    Tiles are distributed over the local devices, each of which runs the program of one
    tile. One program sharded over devices could fuse differently and change the last
    digit. If `threads` are allowed, devices work at the same time, and a single CPU
    runs one tile per core.
    """
    devices = jax.local_devices()
    if len(devices) > 1 and is_concrete(tiles) and jax.tree.leaves(tiles):
        tiles = [
            jax.device_put(tile, jax.sharding.SingleDeviceSharding(devices[k % len(devices)]))
            for k, tile in enumerate(tiles)
        ]
        workers = min(len(tiles), len(devices))
    else:
        workers = min(len(tiles), os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    if not threads or workers <= 1:
        return [run(tile) for tile in tiles]
    x64 = jnp.result_type(float) == jnp.float64

    def in_thread(tile: Any) -> Any:
        # A context that the caller has set does not apply in other threads.
        with jax.enable_x64(x64):
            return jax.block_until_ready(run(tile))

    with ThreadPoolExecutor(workers) as pool:
        if len(devices) == 1:
            return list(pool.map(in_thread, tiles))
        each = pool.map(
            lambda own: [in_thread(tile) for tile in own],
            [tiles[k::workers] for k in range(workers)],
        )
        rows = list(each)
    return [rows[k % workers][k // workers] for k in range(len(tiles))]


def is_thread_safe(function: Callable, *args: Any) -> bool:
    """Whether two threads may run the traceable `function` at once.

    They may if it calls nothing outside XLA.
    """
    return cached(_thread_safe, function, *args)


def _thread_safe(function: Callable, *args: Any) -> bool:
    """The answer of `is_thread_safe`, without its cache."""
    jaxpr = eqx.filter_make_jaxpr(function)(*args)[0].jaxpr
    return not any(equation.primitive.name in CALLS_OUT for equation, _ in equations(jaxpr))


def tile_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `function`, a jitted map of one tile, to the leading axis of `tree`.

    It can be traced. A traced batch that is smaller than a tile is not padded, as
    inside a map over seeds it is the only member of its tile.
    """
    leaves = jax.tree.leaves(tree)
    count = leaves[0].shape[0]
    size = None if is_concrete(leaves) else min(count, TILE.get(jax.default_backend(), 64))
    index = tile_index(count, size)
    if index.size == count == index.shape[1]:
        return function(tree)
    return _join([function(take_rows(tree, row)) for row in index], count)


@jax.jit
def take_rows(tree: Any, rows: Array) -> Any:
    """Take rows of the leading axis of every leaf, in one program."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


@functools.partial(jax.jit, static_argnums=1)
def _join(parts: list, count: int) -> Any:
    """Concatenate the results of tiles, without padding."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *parts)
