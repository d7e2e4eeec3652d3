"""Runs of fixed steps, in tiles of seeds and chunks of steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.cached import shapes_of
from sgfbias.core.checks import is_concrete, numpy_for, outside_traces
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.direct import direct
from sgfbias.core.engine import Engine, Tile, map_tiles, products_in, run_tile
from sgfbias.core.fused import choose_fused
from sgfbias.core.grid import cut, step_grid
from sgfbias.core.network import AbstractNetwork
from sgfbias.core.observe import is_key
from sgfbias.core.problem import Problem
from sgfbias.core.products import ALONE_DECIDE, Steady, choose
from sgfbias.core.progress import Reporter
from sgfbias.core.run import Raw, Run
from sgfbias.core.schedule import Clock, check_schedule
from sgfbias.core.starts import Starts, draw
from sgfbias.core.tiles import few_members, groups_of, take_rows, tile_index, tile_size
from sgfbias.core.weights import CoordinatesOf, cast


def run_stepped(
    run: Run,
    clock: Clock,
    steps: int,
    chunk: int,
    report: Reporter,
    fused: Any,
    starts: Starts | None = None,
    coordinates_of: CoordinatesOf | None = None,
) -> Raw:
    """Run `steps` fixed steps, `chunk` of them at a time.

    If every seed has its own start, `starts` has the starts and `coordinates_of` gives
    their coordinates. Some arrays of the result are NumPy's.

    **Raises:** `ValueError` for recorded times that are not on the grid of steps.
    """
    dynamics, network, problem, keys = run.dynamics, run.network, run.problem, run.keys
    if not isinstance(run.times, int | np.integer) and not is_concrete(clock):
        raise ValueError(
            "recorded flow times need a concrete dt: under jit or grad give the number of times "
            "instead, or define dt outside the traced function"
        )
    recorded = step_grid(run.times, steps, clock, problem.dtype)
    # A run that is not differentiated needs no checkpoints, and its plain loop compiles
    # faster.
    schedules = direct(dynamics).schedules()
    held = (
        dynamics,
        [_at_0(schedule) for schedule in schedules],
        network,
        problem,
        keys,
        None if starts is None else starts.arrays,
    )
    plain = is_concrete(held) and not closes_over_traced(network, problem)
    # Inside any trace nothing that is computed has a value, even if all inputs have.
    if schedules and plain and (outside_traces() or is_concrete(jnp.zeros(()) + 0)):
        iterations = int(clock.iteration(jnp.int32(steps - 1))) + 1
        for schedule in schedules:
            name = "step_size" if schedule is clock.step_size else "noise"
            check_schedule(schedule, name, iterations)
    block = None if plain else math.ceil(math.sqrt(steps))
    segments = cut(
        recorded, steps, chunk if plain else block, run.stop is not None, one_row=not plain
    )
    kernel = choose_fused(fused, run, plain=plain, own_starts=starts is not None)
    largest = tile_size(_work(run))
    group = None if kernel is None else largest
    limit = np.asarray(-np.inf if run.stop is None else run.stop, problem.dtype)
    engine = Engine(
        dynamics,
        run.coordinates,
        problem,
        run.solver,
        run.observe,
        limit,
        block,
        kernel,
        group,
        coordinates_of,
        along=run.along,
    )
    size = largest
    if kernel is not None:
        size *= groups_of(jnp.size(keys), largest, kernel.members)
    elif plain and keys is not None and jax.default_backend() == "cpu":
        if problem.inputs.ndim == 2:
            engine = engine._replace(transposed=_transposed(problem.inputs))
        size, how = _members(engine, run, keys, starts, largest)
        engine = engine._replace(how=how)
    tiles = _tiles(keys, size, starts, problem.dtype, largest)
    if coordinates_of is not None and isinstance(network, AbstractNetwork):
        _check_starts(coordinates_of, tiles)
    report.total = len(tiles) * segments.start.shape[0]
    with report:
        results = map_tiles(
            lambda tile: run_tile(engine, network, run.finish, tile, segments, report),
            tiles,
            engine,
            network,
            segments,
        )

    seeds = None if keys is None or keys.ndim == 0 else keys.shape[0]
    values, final, networks, finite, stopped = _join(results, keys, seeds)
    pick = np.searchsorted(segments.ends, recorded)
    axis = 0 if seeds is None else 1
    times = clock.times(segments.ends, problem.dtype)

    def mark(step: int) -> tuple[Any, Any]:
        """The loss integral and the flow time at a step."""
        at = int(np.searchsorted(segments.ends, step))
        return values["loss_integral"][..., at], times[at]

    (first, t_first), (half, t_half), (last, t_last) = (
        mark(s) for s in (steps // 4, steps // 2, steps)
    )
    tiny = float(jnp.finfo(problem.dtype).tiny)
    # Diverged seeds are not finite.
    with np.errstate(all="ignore"):
        averages = (
            (half - first) / (t_half - t_first + tiny),
            (last - half) / (t_last - t_half + tiny),
        )
    host = numpy_for((times, stopped))
    stopped = host.asarray(stopped)
    at = host.searchsorted(segments.ends.astype(np.int32), stopped).clip(0, len(segments.ends) - 1)
    reached = host.where(stopped >= 0, host.asarray(times)[at], jnp.inf)
    return Raw(
        series=jax.tree.map(lambda v: numpy_for(v).take(v, pick, axis=axis), values),
        final=final if problem.penalty is None else final | {"penalty": values["penalty"][..., -1]},
        networks=networks,
        finite=finite,
        times=host.asarray(times[pick], problem.dtype),
        steps=recorded,
        stop_time=host.asarray(reached, problem.dtype),
        first_loss=values["loss"][..., 0],
        averages=averages,
        starts=None if starts is None else _join([tile.starts for tile in tiles], keys, seeds),
    )


def _at_0(schedule: Any) -> Any:
    """The value of a schedule at the first iteration.

    It is traced if the schedule closes over a value that is being differentiated.
    """
    # Schedules divide integers by integers, which strict type promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        return schedule(jnp.int32(0))


def closes_over_traced(network: Any, problem: Problem) -> bool:
    """Whether the model, the loss or the penalty closes over a value that is being
    traced.
    """
    if outside_traces():
        return False
    # The answer is not cached, as values that a function closes over may have changed.
    functions: list[Any] = [problem.risk]
    if problem.penalty is not None:
        functions.append(lambda network: problem.penalised(network, jnp.int32(0)))
    return not all(is_concrete(eqx.filter_make_jaxpr(f)(network)[0].consts) for f in functions)


def _work(run: Run) -> int:
    """Work per step: state size x examples read.

    If a product with all inputs is shared by many seeds, only memory counts: three
    weight vectors.
    """
    if run.coordinates.shares_inputs:
        return 3 * math.prod(run.problem.inputs.shape[1:])
    rows = direct(run.dynamics).rows_per_step(run.problem.n)
    return state_size(run.coordinates, run.network) * rows


def state_size(coordinates: AbstractCoordinates, network: Any) -> int:
    """How many numbers the position of `network` holds."""
    position = shapes_of(_encoded, coordinates, network)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(position))


def _encoded(coordinates: AbstractCoordinates, network: Any) -> Any:
    """The position of `network`."""
    return coordinates.encode(network)


def _transposed(matrix: Array) -> Array:
    """The transpose of a matrix, with its own order in memory."""
    return jnp.asarray(np.ascontiguousarray(np.asarray(matrix).T))


def _members(
    engine: Engine, run: Run, keys: Array, starts: Starts | None, largest: int
) -> tuple[int, Steady | None]:
    """The number of seeds of a tile, at most `largest`, and how products are mapped.

    A tile is the smallest that suits the number of seeds and, if the run is `exact`,
    gives every seed the digits that it has in the largest.
    """
    few = few_members(keys.size, largest)
    if largest == 1 or (keys.size == 1 and not run.exact):
        return 1, None
    if not ALONE_DECIDE:
        return largest if run.exact else few, None
    arrays = None if starts is None else eqx.filter(starts.first, eqx.is_array)
    own = cast(arrays, run.problem.dtype)
    key = jax.ShapeDtypeStruct((), keys.dtype)
    products = products_in(engine, run.finish, run.network, key, own)
    if products is None:
        return largest, None
    return choose(products, few, largest) if run.exact else (few, Steady())


def _tiles(
    keys: Array | None, size: int, starts: Starts | None, dtype: Any, largest: int
) -> list[Tile]:
    """The keys, and the starts if every seed has its own, in tiles of one size.

    The last tile is padded with copies of its last member. Starts are drawn in tiles of
    the `largest` size, as their digits may depend on it.
    """
    if keys is None:
        return [Tile(None)]
    if not is_concrete(keys):
        # Inside a map over seeds, a run is the only member of its tile.
        size = min(size, keys.size)
    index = tile_index(keys.size, size)
    whole = index.shape == (1, *keys.shape)
    parts = (
        [keys]
        if whole
        else [take_rows(keys.reshape(-1) if keys.ndim == 0 else keys, row) for row in index]
    )
    if starts is None:
        return [Tile(part) for part in parts]
    if starts.make is not None:
        return [
            Tile(part, start)
            for part, start in zip(parts, _drawn(keys, size, starts, dtype, largest), strict=True)
        ]
    arrays = cast(starts.arrays, dtype)
    return [
        Tile(part, arrays if whole else take_rows(arrays, row))
        for part, row in zip(parts, index, strict=True)
    ]


def _drawn(keys: Array, size: int, starts: Starts, dtype: Any, largest: int) -> Iterator[Any]:
    """The starts of every tile, drawn in tiles of the `largest` size."""
    together = max(size, largest)
    for group in tile_index(keys.size, together):
        drawn = cast(draw(starts.make, take_rows(keys.reshape(-1), group)), dtype)
        if together == size:
            yield drawn
            continue
        for first in range(group[0], min(group[0] + together, keys.size), size):
            row = np.minimum(np.arange(first, first + size), keys.size - 1)
            yield take_rows(drawn, row - group[0])


def _check_starts(coordinates_of: CoordinatesOf, tiles: list[Tile]) -> None:
    """Refuse starts that their coordinates refuse.

    The coordinates that a network declares may depend on the values of the network.

    **Raises:** `ValueError` of the coordinates.
    """
    for starts in (tile.starts for tile in tiles if is_concrete(tile.starts)):
        for k in range(jax.tree.leaves(starts)[0].shape[0]):
            coordinates_of(jax.tree.map(lambda leaf, k=k: leaf[k], starts))


def starts_in_tiles(run: Run, starts: Starts) -> Any:
    """The arrays of all starts, (seeds, ...), drawn as `run_stepped` draws them."""
    size = tile_size(_work(run))
    tiles = _tiles(run.keys, size, starts, run.problem.dtype, size)
    return jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves)[: jnp.size(run.keys)],
        *(tile.starts for tile in tiles),
    )


def _join(parts: Sequence[Any], keys: Array | None, seeds: int | None) -> Any:
    """Join the parts of all tiles, without padding.

    A single run has no seed axis. What is whole already stays on its device, unless
    tiles are dealt out to several devices.
    """

    def one(*leaves: Any) -> Any:
        leaf = leaves[0]
        if keys is None or (leaf.shape[0] == seeds and len(jax.local_devices()) == 1):
            return leaf
        if is_key(leaf):  # NumPy has no typed keys
            return jnp.concatenate(leaves)[:seeds] if seeds is not None else leaf[0]
        host = numpy_for(leaves)
        return host.concatenate(leaves)[:seeds] if seeds is not None else host.asarray(leaf)[0]

    return jax.tree.map(one, *parts)
