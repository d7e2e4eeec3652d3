"""The engine of fixed steps.

A plain run executes one compiled chunk of steps after another. A run that is being
differentiated is two nested scans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.along import Along
from sgfbias.core.cached import cached
from sgfbias.core.checks import is_concrete, numpy_for
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.fused import AbstractFused
from sgfbias.core.grid import Segments
from sgfbias.core.iteration import Iteration
from sgfbias.core.observe import Observe, finish_one, finish_runs
from sgfbias.core.problem import Problem
from sgfbias.core.products import Product, Steady
from sgfbias.core.progress import Reporter
from sgfbias.core.solver import OURS
from sgfbias.core.steady import products_of
from sgfbias.core.tiles import is_thread_safe, map_groups, map_seeds, run_tiles
from sgfbias.core.weights import CoordinatesOf

MAX_CHUNK = 65_536


class Engine(NamedTuple):
    """Everything that one compiled chunk needs besides the states of the seeds.

    It is no Equinox module, because it is made in every run, and making a module takes
    longer than a short run.
    """

    dynamics: AbstractDynamics
    coordinates: AbstractCoordinates
    problem: Problem
    solver: dfx.AbstractSolver
    observe: Observe
    # Loss at which a seed is frozen; -inf never freezes one.
    stop: np.ndarray
    # Steps between checkpoints of a run that is differentiated; None for a plain run.
    block: int | None
    # The kernel that replaces the loop over steps, if there is one.
    fused: AbstractFused | None = None
    # With `fused`, the number of seeds that are observed at a time.
    group: int | None = None
    # Gives the coordinates of a start, if every seed has a start of its own.
    coordinates_of: CoordinatesOf | None = None
    # How matrix products are mapped over the seeds of a tile, see `map_seeds`.
    how: Steady | None = None
    # The transpose of the inputs as a matrix of its own, for faster products.
    transposed: Array | None = None
    # What is added up along the run besides the loss.
    along: Along | None = None

    @property
    def freezes(self) -> bool:
        """Whether there is a loss at which a seed is frozen."""
        return bool(self.stop > -np.inf)

    def transpose(self) -> tuple[Any, Any] | None:
        """The inputs and their transpose, if there is one."""
        return None if self.transposed is None else (self.problem.inputs, self.transposed)

    def of(self, start: Any) -> Engine:
        """The engine of a seed whose own start has the arrays `start`."""
        if start is None or self.coordinates_of is None:
            return self
        coordinates = self.coordinates_of(start)
        return self._replace(coordinates=coordinates, observe=self.observe.within(coordinates))

    def start(self, network: Any, key: Array | None) -> Any:
        """The state before the first step.

        A state is `((position, integral), solver state, moving, stopped)`: whether the
        seed still moves, and the step at which it was frozen, or -1.
        """
        total: Any = jnp.zeros(self.dynamics.integral_shape(self.problem.n), self.problem.dtype)
        if self.along is not None:
            total = self.along.start(self.coordinates, network, total)
        y = (self.coordinates.encode(network), total)
        terms = self._terms(y[0], key, jnp.int32(0))
        zero = jnp.zeros((), self.problem.dtype)
        return y, self.solver.init(terms, zero, zero + 1, y, None), jnp.asarray(True), jnp.int32(-1)

    def _terms(self, position: Any, key: Array | None, offset: Array) -> Any:
        """The terms of the run, with solver time 0 at the absolute step `offset`."""
        terms = self.dynamics.build(
            self.coordinates, self.problem, position, key, offset, self.solver
        )
        if self.along is None:
            return terms
        clock = self.dynamics.clock
        return self.along.joined(terms, self.coordinates, clock, offset, self.problem.dtype)

    def step(self, network: Any, key: Array) -> Any:
        """One step and its observables, traced only to see which primitives a chunk
        uses.
        """
        y, solver_state, *_ = self.start(network, key)
        terms = self._terms(y[0], key, jnp.int32(0))
        zero = jnp.zeros((), self.problem.dtype)
        new = self.solver.step(terms, zero, zero + 1, y, None, solver_state, jnp.asarray(False))
        return new[0], self.observe(y, self._penalty_step(jnp.int32(0)))

    def piece(
        self, state: Any, key: Array | None, start: Array, length: Array, check: Array
    ) -> Any:
        """Run `length` steps from the absolute step `start`.

        Solver time is in units of steps, so that it is exact in float32. The loop is
        JAX's, as Diffrax's own loop takes longer to compile and is no faster.
        """
        take = self._taking(state, key, start)
        return self._end(
            state,
            jax.lax.fori_loop(0, length, lambda k, now: take(now, k), state[:2]),
            start,
            length,
            check,
        )

    def differentiable_piece(
        self, state: Any, key: Array | None, start: Array, length: Array, check: Array
    ) -> Any:
        """Run `length` steps as `piece` does, by a scan that can be differentiated.

        The scan has `block` steps, of which the first `length` are taken. It can be
        differentiated in forward and reverse mode, any number of times.
        """
        take = self._taking(state, key, start)

        def step(now: Any, k: Array) -> tuple[Any, None]:
            # The condition is the same for all seeds of a tile, so it remains a branch
            # under vmap, and a step that is not taken costs nothing.
            return jax.lax.cond(k < length, lambda now: take(now, k), lambda now: now, now), None

        new, _ = jax.lax.scan(step, state[:2], jnp.arange(self.block, dtype=jnp.int32))
        return self._end(state, new, start, length, check)

    def _taking(self, state: Any, key: Array | None, start: Array) -> Callable:
        """A function that takes the state `now` and k, and returns the state after step
        `start + k`.
        """
        terms = self._terms(state[0][0], key, start)

        def take(now: Any, k: Array) -> Any:
            k = jnp.asarray(k, jnp.int32)  # a Python number under jax.disable_jit
            t = k.astype(self.problem.dtype)
            y, _, _, solver_state, _ = self.solver.step(
                terms, t, t + 1, now[0], None, now[1], jnp.asarray(False)
            )
            return y, solver_state

        return take

    def fused_pieces(self, state: Any, keys: Array, pieces: Any) -> Any:
        """Run pieces of steps for a whole tile of seeds by the fused kernel.

        The observables have shape (seeds, pieces, ...).
        """

        def one(state: Any, piece: Any) -> Any:
            start, length, check = piece
            y = self.fused(state[0], keys, start, length)
            return map_groups(
                lambda state, y: self._end(state, (y, state[1]), start, length, check),
                self.group,
                state,
                y,
            )

        state, values = jax.lax.scan(one, state, pieces)
        return state, jax.tree.map(lambda v: jnp.moveaxis(v, 0, 1), values)

    def _penalty_step(self, step: Any) -> Any:
        """What the penalty is given at a step, or None if there is no penalty."""
        if self.problem.penalty is None:
            return None
        return self.dynamics.penalty_step(step, self.problem.dtype)

    def _end(self, state: Any, new: Any, start: Array, length: Array, check: Array) -> Any:
        """The state and observables after a piece; a frozen seed keeps its state."""
        y, solver_state, moving, stopped = state
        keep = moving & (length > 0)
        y, solver_state = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, (y, solver_state))
        # The penalty of a seed that was frozen is that at its last step.
        at = jnp.where(stopped >= 0, stopped, start + length)
        values = self.observe(y, self._penalty_step(at))
        reached = moving & check & (values["loss"] <= self.stop)
        stopped = jnp.where(reached, start + length, stopped)
        return (y, solver_state, moving & ~reached, stopped), values


def products_in(
    engine: Engine, finish: Observe, network: Any, key: jax.ShapeDtypeStruct, start: Any
) -> frozenset[Product] | None:
    """The matrix products in a run that depend on the seed, given the shape of a key.

    None if it has operations whose dependence on the size of a tile is not known.
    """
    return cached(_products_in, finish, engine, network, key, start)


def _products_in(finish: Observe, engine: Engine, network: Any, key: Any, start: Any) -> Any:
    """The answer of `products_in`, without its cache."""

    def first(key: Any, own: Any = None) -> Any:
        seed = engine.of(own)
        of = engine.coordinates_of
        return seed.start(network if own is None or of is None else of.network(own), key)

    def step(state: Any, key: Array, own: Any = None) -> Any:
        return engine.of(own)._taking(state, key, jnp.int32(0))(state[:2], jnp.int32(0))

    def seen(state: Any, key: Array, own: Any = None) -> Any:
        seed = engine.of(own)
        last = finish if own is None else finish.within(seed.coordinates)
        values = seed.observe(state[0], seed._penalty_step(jnp.int32(1)))
        return values, finish_one(last, state[0])

    def pair(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype)

    rows = jax.tree.map(pair, (key,) if start is None else (key, start))
    state = jax.eval_shape(jax.vmap(first), *rows)
    # What is observed has a problem of its own, so no transpose of its matrix is known.
    found = (
        products_of(first, *rows),
        products_of(step, state, *rows, transposed=engine.transpose()),
        products_of(seen, state, *rows),
    )
    products: frozenset[Product] = frozenset()
    for some in found:
        if some is None:
            return None
        products |= some
    return products


class Tile(NamedTuple):
    """Seeds that run together.

    - `keys`: (seeds,), or None for a run without keys.
    - `starts`: the arrays of the starts, if every seed has its own.
    """

    keys: Array | None
    starts: Any = None


@eqx.filter_jit
def _start(engine: Engine, network: Any, tile: Tile) -> Any:
    """The states of a tile of seeds before the first step."""
    if tile.keys is None:
        return engine.start(network, None)
    if tile.starts is None or engine.coordinates_of is None:
        return map_seeds(lambda key: engine.start(network, key), tile.keys, how=engine.how)
    coordinates_of = engine.coordinates_of
    return map_seeds(
        lambda key, start: engine.of(start).start(coordinates_of.network(start), key),
        tile.keys,
        tile.starts,
        how=engine.how,
    )


@eqx.filter_jit
def _advance(
    engine: Engine, state: Any, tile: Tile, start: Array, length: Array, check: Array
) -> Any:
    """The states of a tile of seeds after one chunk, and the observables after each of
    its pieces.
    """
    if engine.fused is not None:
        return engine.fused_pieces(state, tile.keys, (start, length, check))

    def one(state: Any, key: Array | None, own: Any = None) -> Any:
        seed = engine.of(own)
        if engine.block is None:
            return jax.lax.scan(
                lambda s, piece: seed.piece(s, key, *piece), state, (start, length, check)
            )
        # In reverse mode only the states at the starts of pieces are kept, and one
        # piece at a time is run again.
        again = jax.checkpoint(
            lambda s, piece: seed.differentiable_piece(s, key, *piece), prevent_cse=False
        )
        return jax.lax.scan(again, state, (start, length, check))

    if tile.keys is None:
        return one(state, None)
    own = () if tile.starts is None else (tile.starts,)
    return map_seeds(one, state, tile.keys, *own, how=engine.how, transposed=engine.transpose())


def run_tile(
    engine: Engine, network: Any, finish: Observe, tile: Tile, segments: Segments, report: Reporter
) -> Any:
    """Run one tile of seeds through all chunks, or until every seed has been frozen.

    Returns the observables, of shape (pieces, ...) after the seed axis, then the
    values, the networks and the finiteness at the end, and the steps at which seeds
    were frozen.
    """
    batched = tile.keys is not None
    state = _start(engine, network, tile)
    rows = segments.start.shape[0]
    outputs: list[dict[str, Array]] = []
    axis = 1 if batched else 0
    for row in range(rows):
        state, values = _advance(
            engine, state, tile, segments.start[row], segments.length[row], segments.check[row]
        )
        outputs.append(values)
        report(1)
        if engine.freezes and is_concrete(state[2]) and not np.any(np.asarray(state[2])):
            last = jax.tree.map(
                lambda v: jax.lax.slice_in_dim(v, v.shape[axis] - 1, v.shape[axis], axis=axis),
                values,
            )
            outputs += [jax.tree.map(lambda v, w: jnp.broadcast_to(v, w.shape), last, values)] * (
                rows - row - 1
            )
            report(rows - row - 1)
            break
    width = segments.start.shape[1]
    index = segments.where[:, 0] * width + segments.where[:, 1]
    values = jax.tree.map(
        lambda *v: numpy_for(v).take(numpy_for(v).concatenate(v, axis=axis), index, axis=axis),
        *outputs,
    )
    return (
        values,
        *finish_runs(
            finish,
            state[0],
            batched,
            engine.group,
            engine.coordinates_of,
            tile.starts,
            engine.how,
        ),
        state[3],
    )


def map_tiles(
    run: Callable, tiles: list[Tile], engine: Engine, network: Any, segments: Segments
) -> list[Any]:
    """Apply `run` to every tile, in several threads where that is safe."""
    threads = (
        engine.block is None
        and len(tiles) > 1
        and isinstance(engine.solver, (dfx.Euler, Iteration, *OURS.values()))
        and is_concrete((engine, network, tiles))
    )
    first = tiles[0].keys
    if threads and first is not None and is_thread_safe(Engine.step, engine, network, first[0]):
        # Running pieces of no steps compiles the program once, instead of once per
        # thread.
        state = _start(engine, network, tiles[0])
        idle = np.zeros_like(segments.length[0])
        jax.block_until_ready(
            _advance(
                engine, state, tiles[0], segments.start[0], idle, np.zeros_like(segments.check[0])
            )
        )
        return run_tiles(run, tiles, threads=True)
    return run_tiles(run, tiles, threads=False)
