"""The engine of fixed steps: one compiled chunk after another, and where derivatives are asked for, all of a run in two nested scans."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import is_concrete, numpy_for
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.descent import Iteration
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.fused import AbstractFused
from sgfbias.core.observe import Observe, finish_runs
from sgfbias.core.problem import Problem
from sgfbias.core.progress import Reporter
from sgfbias.core.record import Segments
from sgfbias.core.solver import OURS
from sgfbias.core.tiles import may_share, over_groups, over_members, run_tiles

MAX_CHUNK = 65_536


class Engine(eqx.Module):
    """Everything one compiled chunk needs besides the seeds' states."""

    dynamics: AbstractDynamics
    chart: AbstractCoordinates
    problem: Problem
    solver: dfx.AbstractSolver
    observe: Observe
    stop: Array  # loss at which a seed is frozen; -inf: never
    block: int | None = eqx.field(static=True)  # steps between checkpoints, for derivatives; None: no derivatives
    fused: AbstractFused | None = None  # takes the place of the loop over steps
    group: int | None = eqx.field(static=True, default=None)  # with `fused`: seeds that are observed at a time

    def start(self, network: Any, key: Array | None) -> Any:
        """State before the first step: `((position, integral), solver state, still moving, step at which it stopped)`."""
        each = getattr(self.dynamics, "integral", None) == "examples"
        y = (self.chart.encode(network), jnp.zeros((self.problem.n,) if each else (), self.problem.dtype))
        terms = self.dynamics.build(self.chart, self.problem, y[0], key, jnp.int32(0), self.solver)
        zero = jnp.zeros((), self.problem.dtype)
        return y, self.solver.init(terms, zero, zero + 1, y, None), jnp.asarray(True), jnp.int32(-1)

    def step(self, network: Any, key: Array) -> Any:
        """One step and the observables, as a chunk computes them, to look at what a chunk calls."""
        y, solver_state, *_ = self.start(network, key)
        terms = self.dynamics.build(self.chart, self.problem, y[0], key, jnp.int32(0), self.solver)
        zero = jnp.zeros((), self.problem.dtype)
        return self.solver.step(terms, zero, zero + 1, y, None, solver_state, jnp.asarray(False))[0], self.observe(y)

    def piece(self, state: Any, key: Array | None, start: Array, length: Array, check: Array) -> Any:
        """Run `length` steps from absolute step `start`. In step units, so that solver time is exact in float32; the loop is JAX's, since
        Diffrax's own compiles for longer and steps no faster."""
        take = self._taking(state, key, start)
        return self._end(state, jax.lax.fori_loop(0, length, lambda k, now: take(now, k), state[:2]), start, length, check)

    def differentiable_piece(self, state: Any, key: Array | None, start: Array, length: Array, check: Array) -> Any:
        """The same by a scan of `block` steps, of which `length` are taken: differentiable in both modes, any number of times."""
        take = self._taking(state, key, start)

        def step(now: Any, k: Array) -> tuple[Any, None]:
            # The same for all seeds of a tile, so that a step not taken costs nothing.
            return jax.lax.cond(k < length, lambda now: take(now, k), lambda now: now, now), None

        new, _ = jax.lax.scan(step, state[:2], jnp.arange(self.block, dtype=jnp.int32))
        return self._end(state, new, start, length, check)

    def _taking(self, state: Any, key: Array | None, start: Array) -> Callable:
        """A function of the state and k that takes step `start + k`."""
        terms = self.dynamics.build(self.chart, self.problem, state[0][0], key, start, self.solver)

        def take(now: Any, k: Array) -> Any:
            t = k.astype(self.problem.dtype)
            y, _, _, solver_state, _ = self.solver.step(terms, t, t + 1, now[0], None, now[1], jnp.asarray(False))
            return y, solver_state

        return take

    def fused_pieces(self, state: Any, keys: Array, pieces: Any) -> Any:
        """Pieces of a whole tile of seeds at once, each by the kernel; values are (seeds, pieces, ...)."""

        def one(state: Any, piece: Any) -> Any:
            start, length, check = piece
            y = self.fused(state[0], keys, start, length)
            return over_groups(lambda state, y: self._end(state, (y, state[1]), start, length, check), self.group, state, y)

        state, values = jax.lax.scan(one, state, pieces)
        return state, jax.tree.map(lambda v: jnp.moveaxis(v, 0, 1), values)

    def _end(self, state: Any, new: Any, start: Array, length: Array, check: Array) -> Any:
        """State and observables after a piece: a seed that has stopped stays where it was."""
        y, solver_state, moving, stopped = state
        keep = moving & (length > 0)
        y, solver_state = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, (y, solver_state))
        values = self.observe(y)
        reached = moving & check & (values["loss"] <= self.stop)
        stopped = jnp.where(reached, start + length, stopped)
        return (y, solver_state, moving & ~reached, stopped), values


@eqx.filter_jit
def _start(engine: Engine, network: Any, keys: Array | None) -> Any:
    if keys is None:
        return engine.start(network, None)
    return over_members(lambda key: engine.start(network, key), keys)


@eqx.filter_jit
def _advance(engine: Engine, state: Any, keys: Array | None, start: Array, length: Array, check: Array) -> Any:
    if engine.fused is not None:
        return engine.fused_pieces(state, keys, (start, length, check))

    def one(state: Any, key: Array | None) -> Any:
        if engine.block is None:
            return jax.lax.scan(lambda s, piece: engine.piece(s, key, *piece), state, (start, length, check))
        # Backwards, the states at the beginnings of pieces are kept and one piece at a time is run again.
        again = jax.checkpoint(lambda s, piece: engine.differentiable_piece(s, key, *piece), prevent_cse=False)
        return jax.lax.scan(again, state, (start, length, check))

    return one(state, None) if keys is None else over_members(one, state, keys)


def run_tile(engine: Engine, network: Any, finish: Observe, keys: Any, segments: Segments, report: Reporter) -> Any:
    """One tile of seeds through all chunks; stops early when every seed has. Values are (pieces, ...) after the seed axis."""
    batched = keys is not None
    state = _start(engine, network, keys)
    rows = segments.start.shape[0]
    outputs: list[dict[str, Array]] = []
    axis = 1 if batched else 0
    for row in range(rows):
        state, values = _advance(engine, state, keys, segments.start[row], segments.length[row], segments.check[row])
        outputs.append(values)
        report(1)
        if is_concrete(engine.stop) and float(engine.stop) > -math.inf and is_concrete(state[2]) and not bool(jnp.any(state[2])):
            last = jax.tree.map(lambda v: jax.lax.slice_in_dim(v, v.shape[axis] - 1, v.shape[axis], axis=axis), values)
            outputs += [jax.tree.map(lambda v, w: jnp.broadcast_to(v, w.shape), last, values)] * (rows - row - 1)
            report(rows - row - 1)
            break
    width = segments.start.shape[1]
    index = segments.where[:, 0] * width + segments.where[:, 1]
    values = jax.tree.map(lambda *v: numpy_for(v).take(numpy_for(v).concatenate(v, axis=axis), index, axis=axis), *outputs)
    return values, *finish_runs(finish, state[0], batched, engine.group), state[3]


def map_tiles(run: Callable, tiles: list, engine: Engine, network: Any, segments: Segments) -> list[Any]:
    """Run every tile, compiling once before."""
    threads = (
        engine.block is None
        and len(tiles) > 1
        and isinstance(engine.solver, (dfx.Euler, Iteration, *OURS.values()))
        and is_concrete((engine, network, tiles))
    )
    if threads and may_share(engine.step, network, tiles[0][0]):
        # Compile once, by running pieces of no steps, instead of once per thread.
        state = _start(engine, network, tiles[0])
        idle = np.zeros_like(segments.length[0])
        jax.block_until_ready(_advance(engine, state, tiles[0], segments.start[0], idle, np.zeros_like(segments.check[0])))
        return run_tiles(run, tiles, threads=True)
    return run_tiles(run, tiles, threads=False)
