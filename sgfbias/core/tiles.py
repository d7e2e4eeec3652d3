"""Batches in tiles of one fixed size, so that a result does not depend on its neighbours, and one compiled program serves any number.

Matrix products of different shapes round differently. Everything that is batched over seeds therefore runs in tiles of a fixed number of
seeds, the last one padded with copies of its last member. On a CPU one thread per core can take tiles, since a small tile leaves cores idle;
several devices take tiles in turn.
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

from sgfbias.core.checks import is_concrete
from sgfbias.core.traced import remembered

# Measured on two cores, 64 per tile and one tile per core is within a fifth of the best of 64 to 512.
TILE = {"cpu": 64, "gpu": 4096, "tpu": 4096}
SMALL, LARGE = 200_000, 5_000_000


def tile_size(work: int) -> int:
    """Members of a tile for runs whose step touches `work` pairs of a parameter and an example.

    Small steps need company to be worth their overhead; large ones fill a core each, and padding them would cost as much as running them.
    """
    largest = TILE.get(jax.default_backend(), 64)
    if work < SMALL:
        return largest
    return max(largest // 8, 1) if work < LARGE else max(largest // 64, 1)


def groups_of(count: int, size: int, largest: int) -> int:
    """How many tiles a kernel that takes up to `largest` members at once is given: a power of two, so that few programs are compiled."""
    wanted = min(math.ceil(count / size), max(largest // size, 1))
    return 2 ** math.ceil(math.log2(wanted))


def tile_index(count: int, size: int | None = None) -> np.ndarray:
    """Members of each tile, (tiles, size)."""
    size = TILE.get(jax.default_backend(), 64) if size is None else size
    tiles = math.ceil(count / size)
    return np.minimum(np.arange(tiles * size), count - 1).reshape(tiles, size)


def over_members(function: Callable, *args: Any) -> Any:
    """`function` mapped over the leading axis of a tile; a tile of one is run unbatched, as a batch axis of one costs matrix products half
    their speed."""
    if jax.tree.leaves(args)[0].shape[0] != 1:
        return jax.vmap(function)(*args)
    result = function(*jax.tree.map(lambda leaf: leaf[0], args))
    return jax.tree.map(lambda leaf: leaf[None], result)


def over_groups(function: Callable, size: int, *args: Any) -> Any:
    """`function` mapped over the leading axis, `size` members at a time: what it gives of a member does not depend on how many there are."""
    count = jax.tree.leaves(args)[0].shape[0]
    grouped = jax.tree.map(lambda leaf: leaf.reshape(count // size, size, *leaf.shape[1:]), args)
    result = jax.lax.map(lambda group: over_members(function, *group), grouped)
    return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), result)


def run_tiles(run: Callable[[Any], Any], tiles: Sequence[Any], *, threads: bool) -> list[Any]:
    """`run` on every tile, in order. Tiles are dealt out to the local devices, each of which runs the program of one tile: sharding one
    program over devices instead may fuse differently and change the last digit. Devices work at once if `threads` are allowed, and a single
    CPU then takes a tile per core."""
    devices = jax.local_devices()
    if len(devices) > 1 and is_concrete(tiles) and any(tile is not None for tile in tiles):
        tiles = [jax.device_put(tile, jax.sharding.SingleDeviceSharding(devices[k % len(devices)])) for k, tile in enumerate(tiles)]
        workers = min(len(tiles), len(devices))
    else:
        workers = min(len(tiles), os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    if not threads or workers <= 1:
        return [run(tile) for tile in tiles]
    x64 = jnp.result_type(float) == jnp.float64

    def in_thread(tile: Any) -> Any:
        with jax.enable_x64(x64):  # a context set by the caller does not reach other threads
            return jax.block_until_ready(run(tile))

    with ThreadPoolExecutor(workers) as pool:
        if len(devices) == 1:
            return list(pool.map(in_thread, tiles))
        each = pool.map(lambda own: [in_thread(tile) for tile in own], [tiles[k::workers] for k in range(workers)])
        rows = list(each)
    return [rows[k % workers][k // workers] for k in range(len(tiles))]


# On a CPU these call out of XLA and wait there for its thread pool: two such programs at once lock up (seen on jax 0.10.1, not on 0.12).
_CALLS_OUT = {
    "cholesky", "cholesky_update", "lu", "qr", "geqrf", "geqp3", "householder_product", "svd", "eig", "eigh", "schur", "hessenberg",
    "tridiagonal", "tridiagonal_solve", "triangular_solve", "custom_call", "ffi_call", "pure_callback", "io_callback", "debug_callback",
}  # fmt: skip


def may_share(function: Callable, *args: Any) -> bool:
    """Whether two threads may run this traceable function at once: it calls nothing outside XLA."""
    return remembered(_shareable, function, *args)


def _shareable(function: Callable, *args: Any) -> bool:
    return not _calls_out(eqx.filter_make_jaxpr(function)(*args)[0].jaxpr)


def _calls_out(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name in _CALLS_OUT:
            return True
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and _calls_out(inner):
                return True
    return False


def tile_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """`function`, a jitted map of one tile, over the leading axis of `tree`. Traceable.

    Traced, a batch smaller than a tile is not filled up: inside a map over seeds it is a tile's single member.
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
    """Rows of the leading axis of every leaf, in one program."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


@functools.partial(jax.jit, static_argnums=1)
def _join(parts: list, count: int) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *parts)
