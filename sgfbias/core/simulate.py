"""`simulate`, the one function that runs all dynamics, networks and problems."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.adaptive import run_adaptive
from sgfbias.core.arguments import (
    check_model,
    check_penalty,
    check_perturbation,
    check_sampled,
    converged_below,
    count_steps,
    run_keys,
)
from sgfbias.core.brownian import check_keys
from sgfbias.core.cached import shapes_of
from sgfbias.core.checks import as_whole, is_concrete, on_device, shown
from sgfbias.core.direct import direct
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.engine import MAX_CHUNK
from sgfbias.core.fused import check_choice, choose_fused
from sgfbias.core.names import Named
from sgfbias.core.network import AbstractNetwork, with_path_sums
from sgfbias.core.observe import Observe, keys_again, together
from sgfbias.core.problem import Problem
from sgfbias.core.progress import reporter
from sgfbias.core.record import as_record, choose_along, choose_observables
from sgfbias.core.run import Raw, Run
from sgfbias.core.stale import drop_stale_programs
from sgfbias.core.starts import Drawn, Stacked, Starts, starts_of
from sgfbias.core.stepped import closes_over_traced, run_stepped, starts_in_tiles, state_size
from sgfbias.core.trajectory import Trajectory, classify
from sgfbias.core.weights import CoordinatesOf, cast, check_real, coordinates_for


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
    progress: Any = None,
    chunk: int = MAX_CHUNK,
    fused: Any = "auto",
    exact: Any = True,
) -> Trajectory:
    """Train `network` on `problem` by `dynamics`, once per key.

    **Arguments:**

    - `dynamics`: a flow or a discrete algorithm, such as
      `StochasticGradientFlow(0.05)`.
    - `network`: an Equinox module, from which every seed starts. For a different start
      of every seed, `Drawn(make)` or `Stacked(networks)`.
    - `problem`: a `Problem`, the data and the loss.
    - `keys`: (seeds,) typed keys, such as `sgfbias.seeds(0, 256)`. A single key gives a
      run without a seed axis. Deterministic dynamics take no keys, unless every seed
      has its own start.
    - `steps`: the number of solver steps, which are the iterations of a discrete
      algorithm. Give either `steps` or `t1`.
    - `t1`: the flow time of the run, or the last reading of the clock that the flow has
      instead. A run of fixed steps rounds it up to a whole number of steps. An adaptive
      flow takes `t1` only.
    - `coordinates`: `"mirror"`, `"log"` or `"weights"`, if the network has them.
      Default: the coordinates that the network prefers, or its weights.
    - `solver`: any Diffrax Itô solver, or a Stratonovich solver, for which the drift is
      corrected. Default Euler, or for an adaptive flow the solver that suits it.
    - `record`: what to record and when, see `Record`. Default: all scalar observables
      at 200 log-spaced times.
    - `stop`: the loss at which a seed counts as converged and is frozen. It is checked
      at the recorded times and every 1,024 steps. Default: no seed is frozen.
    - `trainable`: which arrays of a model move, while the others are frozen. As in
      `equinox.partition`, a PyTree of True and False, or a prefix of one, or a function
      of a leaf. Default: what the network declares (`AbstractNetwork.trainable`), or
      all floating-point arrays. Only for models in their own weights.
    - `microbatch`: the number of examples that are evaluated at a time. Memory then
      holds the activations of that many only, at the cost of a second forward pass.
      Only for models in their own weights.
    - `adjoint`: how an adaptive flow is differentiated, a Diffrax adjoint. The default
      is reverse mode with checkpoints. `diffrax.ForwardMode()` gives forward
      derivatives, and `diffrax.DirectAdjoint()` gives both at the cost of more memory.
      Runs of fixed steps always have both.
    - `progress`: True for a progress bar, False for none, or a function of (done,
      total) chunks. Default: none, or the bar of the study that calls this.
    - `chunk`: the number of steps per compiled call, at most 65,536.
    - `fused`: whether one kernel runs the whole time loop. Results equal the engine's
      up to rounding: same Brownian increments, same scheme. A kernel exists for the
      mean-loss flow in mirror coordinates, in float32, with Euler, on an H100 or H200.
      `"auto"` uses it on a GPU if it applies, and otherwise reports to the logger
      `sgfbias` why not. True refuses a run to which it does not apply. False never uses
      it.
      `"interpret"` runs it through XLA on any device, slowly, for tests.

    - `exact`: True gives a seed the same digits whatever the number of seeds. On a CPU,
      False lets the last digits of a run of fixed steps depend on it, which makes a run
      of a single seed about 1.5 times faster.

    **Returns:** a `Trajectory`.

    **Raises:** `ValueError` for arguments that do not fit, which says what to do
    instead. A seed that diverges is not an error. It is marked in `status`, and the
    other seeds are unaffected.
    """
    record = as_record(record)
    recorded = (record.observables, record.integrals, record.sums)
    drop_stale_programs(dynamics, network, problem, recorded, trainable)
    if not isinstance(dynamics, AbstractDynamics):
        raise ValueError(
            "`dynamics` must be a flow or an algorithm, e.g. StochasticGradientFlow(0.05), but "
            f"is {shown(dynamics)}"
            + (
                "; the order is simulate(dynamics, network, problem)"
                if isinstance(network, AbstractDynamics)
                else ""
            )
        )
    if not isinstance(problem, Problem):
        raise ValueError(
            f"`problem` must be a Problem, but is {type(problem).__name__}; wrap the data: "
            "Problem(inputs, targets)"
        )
    check_sampled(dynamics, problem)
    chunk = as_whole(chunk, "chunk", most=MAX_CHUNK)
    if not isinstance(coordinates, str | None):
        raise ValueError(f"`coordinates` must be a name, such as 'mirror', but is {coordinates!r}")
    check_choice(fused)
    if not isinstance(exact, bool):
        raise ValueError(f"`exact` must be True or False, but is {exact!r}")
    starts: Starts | None = None
    if isinstance(network, Drawn | Stacked):
        starts, keys = starts_of(
            network,
            None if keys is None else check_keys(keys),
            is_stochastic=dynamics.is_stochastic or problem.perturb is not None,
        )
        network = starts.first
    else:
        keys = run_keys(dynamics, problem, keys)
    if not callable(network):
        raise ValueError(
            "`network` must be an Equinox module that maps one example to its output, but is "
            f"{type(network).__name__}"
        )
    direct(dynamics).check(problem.n)
    if record.path_sums:
        if starts is not None:
            raise ValueError(
                "`path_sums` of Record belong to the path from one start, and every seed of this "
                "run has a start of its own: run one start at a time"
            )
        network = with_path_sums(network)
    network = cast(network, problem.dtype)
    declares_itself = isinstance(network, AbstractNetwork)
    check_real(network)
    # A network that declares itself is checked after its coordinates, whose errors say
    # better what does not fit.
    if not declares_itself:
        check_model(network, problem)
    plain = coordinates_for(
        network, problem, dynamics, coordinates, trainable=trainable, microbatch=microbatch
    )
    dynamics = direct(dynamics).suited(plain, network, problem)
    moving = direct(dynamics).state_coordinates(plain)
    if declares_itself:
        check_model(network, problem)
    check_perturbation(dynamics, network, problem)
    check_penalty(dynamics, moving, network, problem)
    if solver is None:
        solver = direct(dynamics).default_solver(problem.dtype, state_size(moving, network))
    name = str(coordinates or moving.name)
    # With a penalty, the run does not aim at the least loss.
    least = None if problem.penalty is not None else direct(problem).least_loss(network)
    tolerance = converged_below(problem, least, stop)
    own = _own_shapes(dynamics, moving, network, problem)
    adding = dynamics if own else None
    series, finals = choose_observables(record, network, problem, own)
    along = choose_along(record, network, problem, dynamics, moving, finals, own)
    observe = Observe(moving, problem, together(series), dynamics=adding)
    finish = Observe(moving, problem, together(finals), last=True, dynamics=adding)

    clock = dynamics.clock
    run = Run(
        dynamics,
        moving,
        network,
        problem,
        solver,
        observe,
        finish,
        keys,
        record.times,
        stop,
        exact,
        along,
    )
    coordinates_of = (
        None
        if starts is None
        else CoordinatesOf(dynamics, problem, network, coordinates, trainable, microbatch)
    )
    if clock is None:
        choose_fused(fused, run, plain=True)
        if (
            adjoint is None
            and is_concrete((dynamics, network, problem))
            and not closes_over_traced(network, problem)
        ):
            # Without derivatives the plain loop of forward mode compiles faster.
            adjoint = dfx.ForwardMode()
        raw = (
            run_adaptive(run, steps, t1, adjoint)
            if starts is None
            else _each(run, starts, coordinates_of, steps, t1, adjoint)
        )
    else:
        if adjoint is not None:
            raise ValueError(
                "`adjoint` is for adaptive flows: leave it out, as a run of fixed steps is "
                "differentiable in both modes as it is"
            )
        raw = run_stepped(
            run,
            clock,
            count_steps(steps, t1, dynamics, clock),
            chunk,
            reporter(progress),
            fused,
            starts,
            coordinates_of,
        )

    # A deterministic flow on a plateau will leave it.
    may_stall = dynamics.is_stochastic or not dynamics.is_flow
    status = classify(
        finite=raw.finite,
        loss=raw.final["loss"],
        first_loss=raw.first_loss,
        tolerance=tolerance,
        least=least,
        early=raw.averages[0],
        late=raw.averages[1],
        may_stall=may_stall,
        gave_up=raw.gave_up,
    )
    # Neither of these is part of the result.
    raw, status = on_device((raw._replace(finite=None, first_loss=None), status))
    if type(dynamics).judge is not AbstractDynamics.judge:
        status = dynamics.judge(status, raw.final, raw.times[-1])
    return Trajectory(
        series=Named(raw.series),
        final=Named(raw.final),
        networks=eqx.combine(_with_keys(raw.networks, network), network),
        times=raw.times,
        steps=raw.steps,
        status=status,
        stop_time=raw.stop_time,
        averages=raw.averages,
        dynamics=dynamics,
        network=network if starts is None else eqx.combine(raw.starts, network),
        problem=problem,
        keys=keys,
        tolerance=tolerance,
        coordinates=name,
        solver=type(solver).__name__,
        own_starts=starts is not None,
    )


def _own_shapes(dynamics: Any, coordinates: Any, network: Any, problem: Any) -> dict[str, Any]:
    """The shapes of the values that the dynamics add to the observables."""
    if type(dynamics).observables is AbstractDynamics.observables:
        return {}
    return shapes_of(_own_values, dynamics, coordinates, network, problem)


def _own_values(dynamics: Any, coordinates: Any, network: Any, problem: Any) -> dict[str, Any]:
    """The values that the dynamics add to the observables, at the start."""
    memory = coordinates.memory(coordinates.encode(network))
    return dynamics.observables(network, problem, memory)


def _with_keys(networks: Any, network: Any) -> Any:
    """The networks at the end with typed keys where `network` has them."""
    arrays = eqx.filter(network, eqx.is_array)
    return jax.tree.map(
        lambda like, leaf: keys_again(leaf, like), arrays, networks, is_leaf=lambda x: x is None
    )


def _each(run: Run, starts: Starts, coordinates_of: Any, steps: Any, t1: Any, adjoint: Any) -> Raw:
    """Run an adaptive flow from the start of every seed, one after the other.

    Run together, all seeds would have to wait for the slowest.
    """
    rows = starts_in_tiles(run, starts)
    found = []
    for k in range(jax.tree.leaves(rows)[0].shape[0]):
        arrays = jax.tree.map(lambda leaf, k=k: leaf[k], rows)
        own = coordinates_of(arrays)
        one = run._replace(
            coordinates=own,
            network=coordinates_of.network(arrays),
            observe=run.observe.within(own),
            finish=run.finish.within(own),
        )
        found.append(run_adaptive(one, steps, t1, adjoint))
    if jnp.ndim(run.keys) == 0:
        return found[0]._replace(starts=jax.tree.map(lambda leaf: leaf[0], rows))
    shared = {name: getattr(found[0], name) for name in ("times", "steps")}
    joined = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]),
        *(raw._replace(times=None, steps=None) for raw in found),
    )
    return joined._replace(**shared, starts=rows)
