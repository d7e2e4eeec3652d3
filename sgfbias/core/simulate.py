"""`simulate`: one verb for every dynamics, network and problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.adaptive import run_adaptive
from sgfbias.core.arguments import check_model, converged_below, count_steps, run_keys
from sgfbias.core.checks import is_concrete, numpy_for
from sgfbias.core.coordinates import AbstractCoordinates, cast, check_real, coordinates_for
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.engine import MAX_CHUNK, Engine, map_tiles, run_tile
from sgfbias.core.fused import check_choice, choose_fused
from sgfbias.core.network import AbstractNetwork
from sgfbias.core.observe import Observe
from sgfbias.core.problem import Problem
from sgfbias.core.progress import Reporter, reporter
from sgfbias.core.record import as_record, choose_observables, cut, step_grid
from sgfbias.core.schedule import Clock, value_at
from sgfbias.core.tiles import groups_of, take_rows, tile_index, tile_size
from sgfbias.core.traced import shapes_of
from sgfbias.core.trajectory import Trajectory, classify


def simulate(
    dynamics: AbstractDynamics,
    network: Any,
    problem: Problem,
    *,
    keys: Array | None = None,
    steps: int | None = None,
    t1: float | None = None,
    coordinates: str | None = None,
    solver: dfx.AbstractSolver | None = None,
    record: Any = None,
    stop: float | None = None,
    trainable: Any = None,
    microbatch: int | None = None,
    adjoint: Any = None,
    progress: Any = False,
    chunk: int = MAX_CHUNK,
    fused: Any = "auto",
) -> Trajectory:
    """Move `network` on `problem` by `dynamics`, once per key.

    **Arguments:**

    - `dynamics`: a flow or a discrete algorithm. `network`: an Equinox module, the initial condition. `problem`: data and loss.
    - `keys`: (seeds,) typed keys, `sgfbias.seeds(0, 256)`; a single key gives a run without seed axis. Not for deterministic dynamics.
    - `steps`: number of solver steps (iterations of a discrete algorithm); or `t1`, flow time, rounded up to a whole number of steps.
      An adaptive gradient flow takes `t1` only.
    - `coordinates`: `"mirror"`, `"log"` or `"weights"` where the network has them. `solver`: any Diffrax Itô solver, or a Stratonovich
      solver, for which the drift is corrected; default Euler.
    - `record`: what to record and when, see `Record`. Default: scalar observables at 200 log-spaced times.
    - `stop`: loss at which a seed is converged; it is frozen there, looked at at recorded times and every 1,024 steps.
    - `trainable`: which arrays of a model move, as `equinox.partition` takes it: a PyTree of True and False, a prefix of one, or a function
      of a leaf; the others are frozen. Default all floating-point arrays. `microbatch`: examples evaluated at a time, so that memory holds
      the activations of that many only; costs a second forward pass. Both are for models in their own weights.
    - `adjoint`: how an adaptive flow is differentiated, a Diffrax adjoint: by default backwards, with checkpoints;
      `diffrax.ForwardMode()` for forward derivatives, `diffrax.DirectAdjoint()` for both at more memory. Fixed steps have both always.
    - `progress`: True for a bar, or a function of (done, total) chunks. `chunk`: steps per compiled call, at most 65,536.
    - `fused`: whether one kernel runs the whole time loop, where there is one, with the same increments and results equal to rounding: the mean-loss
      flow in mirror coordinates, float32, Euler, on an H100 or H200. `"auto"` uses it where it applies, and else says why not to the logger
      `sgfbias`; True refuses what it does not apply to; False never; `"interpret"` runs it through XLA on any device, slowly, for tests.

    **Returns:** a `Trajectory`.

    **Raises:** `ValueError` for arguments that do not fit, each with what to do instead. A seed that diverges is not an error: it is
    marked in `status`, the others are unaffected.
    """
    record = as_record(record)
    if not isinstance(dynamics, AbstractDynamics):
        raise ValueError(f"`dynamics` must be a flow or an algorithm, e.g. StochasticGradientFlow(0.05), but is {dynamics!r}")
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` must be a Problem, but is {type(problem).__name__}; wrap the data: Problem(inputs, targets)")
    if not 1 <= chunk <= MAX_CHUNK:
        raise ValueError(f"`chunk` must be between 1 and {MAX_CHUNK}, but is {chunk}")
    if not callable(network):
        raise ValueError(f"`network` must be an Equinox module that maps one example to its output, but is {type(network).__name__}")
    check_choice(fused)
    keys = run_keys(dynamics, keys)
    for part in (getattr(dynamics, "noise", None), dynamics):
        check = getattr(part, "check", None)
        if check is not None:
            check(problem.n)
    network = cast(network, problem.dtype)
    declares_itself = isinstance(network, AbstractNetwork)  # then its coordinates say better what does not fit
    check_real(network)
    if not declares_itself:
        check_model(network, problem)
    chart = dynamics.chart(coordinates_for(network, problem, dynamics, coordinates, trainable=trainable, microbatch=microbatch))
    if declares_itself:
        check_model(network, problem)
    if solver is None:
        solver = dynamics.default_solver(problem.dtype, _numbers(shapes_of(chart.encode, network)))
    name = str(coordinates or getattr(chart, "name", "weights"))
    least = problem.least_loss(network)
    tolerance = converged_below(problem, least, stop)
    series, finals = choose_observables(record, network, problem)
    observe, finish = Observe(chart, problem, series), Observe(chart, problem, finals, last=True)

    clock = dynamics.clock
    if clock is None:
        choose_fused(fused, chart, dynamics, problem, solver, None, plain=True)
        if adjoint is None and is_concrete((dynamics, network, problem)) and not _closes_over_traced(network, problem):
            adjoint = dfx.ForwardMode()  # nobody differentiates: the plain loop compiles faster
        raw = run_adaptive(dynamics, chart, network, problem, solver, observe, finish, record.times, steps, t1, stop, adjoint)
    else:
        if adjoint is not None:
            raise ValueError("`adjoint` is for adaptive flows: a run of fixed steps is differentiable in both modes as it is, leave it out")
        count = count_steps(steps, t1, dynamics, clock)
        raw = _stepped(
            dynamics,
            chart,
            network,
            problem,
            solver,
            observe,
            finish,
            record.times,
            count,
            clock,
            keys,
            stop,
            chunk,
            reporter(progress),
            fused,
        )

    may_stall = dynamics.is_stochastic or not dynamics.is_flow  # a gradient flow on a plateau will leave it
    status = classify(
        finite=raw["finite"],
        loss=raw["final"]["loss"],
        first_loss=raw["first_loss"],
        tolerance=tolerance,
        least=least,
        early=raw["averages"][0],
        late=raw["averages"][1],
        may_stall=may_stall,
        gave_up=raw.get("gave_up", False),
    )
    return Trajectory(
        series=raw["series"],
        final=raw["final"],
        networks=eqx.combine(raw["networks"], network),
        times=raw["times"],
        steps=raw["steps"],
        status=status,
        stop_time=raw["stop_time"],
        averages=raw["averages"],
        dynamics=dynamics,
        network=network,
        problem=problem,
        keys=keys,
        tolerance=tolerance,
        coordinates=name,
        solver=type(solver).__name__,
    )


def _stepped(
    dynamics: AbstractDynamics,
    chart: AbstractCoordinates,
    network: Any,
    problem: Problem,
    solver: Any,
    observe: Observe,
    finish: Observe,
    times: Any,
    steps: int,
    clock: Clock,
    keys: Array | None,
    stop: float | None,
    chunk: int,
    report: Reporter,
    fused: Any,
) -> dict[str, Any]:
    """Fixed steps: tiles of seeds x chunks of steps."""
    if not isinstance(times, int | np.integer) and not is_concrete(clock):
        raise ValueError("recorded flow times need a concrete dt: under jit or grad give the number of times, or dt outside the trace")
    recorded = step_grid(times, steps, clock, problem.dtype)
    # What nobody differentiates needs no checkpoints: the plain loop compiles faster.
    plain = is_concrete((dynamics, _schedules_at_0(dynamics, problem), network, problem, keys)) and not _closes_over_traced(
        network, problem
    )
    block = None if plain else math.ceil(math.sqrt(steps))
    segments = cut(recorded, steps, chunk if plain else block, stop is not None, one_row=not plain)
    kernel = choose_fused(fused, chart, dynamics, problem, solver, keys, plain=plain)
    size = tile_size(_work(dynamics, chart, network, problem))
    group = None if kernel is None else size
    limit = jnp.asarray(-jnp.inf if stop is None else stop, problem.dtype)
    engine = Engine(dynamics, chart, problem, solver, observe, limit, block, kernel, group)
    if kernel is not None:
        size *= groups_of(jnp.size(keys), size, kernel.members)
    tiles = _tiles(keys, size)
    report.total = len(tiles) * segments.start.shape[0]
    with report:
        results = map_tiles(lambda tile: run_tile(engine, network, finish, tile, segments, report), tiles, engine, network, segments)

    seeds = None if keys is None or keys.ndim == 0 else keys.shape[0]
    values, final, networks, finite, stopped = jax.tree.map(lambda *v: _join(v, keys, seeds), *results)
    pick = np.searchsorted(segments.ends, recorded)
    axis = 0 if seeds is None else 1
    times = clock.times(segments.ends, problem.dtype)

    def mark(step: int) -> tuple[Any, Any]:
        """Loss integral and flow time at a step."""
        at = int(np.searchsorted(segments.ends, step))
        return values["loss_integral"][..., at], times[at]

    (first, t_first), (half, t_half), (last, t_last) = (mark(s) for s in (steps // 4, steps // 2, steps))
    tiny = float(jnp.finfo(problem.dtype).tiny)
    with np.errstate(all="ignore"):  # diverged seeds
        averages = (half - first) / (t_half - t_first + tiny), (last - half) / (t_last - t_half + tiny)
    host = numpy_for((times, stopped))
    at = host.searchsorted(segments.ends.astype(np.int32), stopped).clip(0, len(segments.ends) - 1)
    reached = host.where(stopped >= 0, host.asarray(times)[at], jnp.inf)
    return {
        "series": jax.tree.map(lambda v: jnp.asarray(numpy_for(v).take(v, pick, axis=axis)), values),
        "final": jax.tree.map(jnp.asarray, final),
        "networks": jax.tree.map(jnp.asarray, networks),
        "finite": jnp.asarray(finite),
        "times": jnp.asarray(times[pick], problem.dtype),
        "steps": jnp.asarray(recorded),
        "stop_time": jnp.asarray(reached, problem.dtype),
        "first_loss": jnp.asarray(values["loss"][..., 0]),
        "averages": jax.tree.map(jnp.asarray, averages),
    }


def _schedules_at_0(dynamics: Any, problem: Problem) -> Any:
    """Values of the schedules, which may have closed over what is being differentiated."""
    noise, label = getattr(dynamics, "noise", None), getattr(dynamics, "label_noise", None)
    at = None if noise is None or not noise.is_scheduled else noise.at(jnp.int32(0))
    gamma = dynamics.clock.gamma(jnp.int32(0), problem.dtype) if callable(dynamics.clock.step_size) else None
    return gamma, at, value_at(label, jnp.int32(0), problem.dtype) if callable(label) else None


def _closes_over_traced(network: Any, problem: Problem) -> bool:
    """Whether the model or the loss, functions that they are, have closed over what is being differentiated."""
    # Asked anew each time: what a function closes over may have changed.
    return not is_concrete(eqx.filter_make_jaxpr(problem.risk)(network)[0].consts)


def _work(dynamics: AbstractDynamics, chart: AbstractCoordinates, network: Any, problem: Problem) -> int:
    """Numbers of the state times examples per step; of a minibatch only where no pass over all examples comes with it. Where many seeds make better
    use of one pass over the inputs than one does, only their memory counts: the numbers of a few vectors of weights."""
    if chart.shares_inputs:
        return 3 * math.prod(problem.inputs.shape[1:])
    batch = getattr(dynamics, "batch_size", None)
    rows = problem.n if batch is None or getattr(dynamics, "integral", None) != "batch" else batch
    return _numbers(shapes_of(chart.encode, network)) * rows


def _numbers(tree: Any) -> int:
    """How many numbers a PyTree holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _tiles(keys: Array | None, size: int) -> list[Array | None]:
    """Keys in tiles of one size, the last one padded with its own last key."""
    if keys is None:
        return [None]
    if not is_concrete(keys):
        size = min(size, keys.size)  # inside a map over seeds a run is a tile's single member
    index = tile_index(keys.size, size)
    if index.shape == (1, *keys.shape):
        return [keys]
    return [take_rows(keys.reshape(-1) if keys.ndim == 0 else keys, row) for row in index]


def _join(parts: Sequence[Any], keys: Array | None, seeds: int | None) -> Any:
    if keys is None:
        return numpy_for(parts).asarray(parts[0])
    return numpy_for(parts).concatenate(parts)[:seeds] if seeds is not None else parts[0][0]
