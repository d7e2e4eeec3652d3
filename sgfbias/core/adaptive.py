"""Runs of deterministic flows with an adaptive ODE solver, in flow time or by a clock
of the flow's own.
"""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float, check_positive, is_concrete
from sgfbias.core.dynamics import FLOW_TIME, AbstractDeterministicFlow
from sgfbias.core.grid import own_grid, time_grid
from sgfbias.core.observe import finish_runs
from sgfbias.core.run import Raw, Run


@eqx.filter_jit
def _solve(
    run: Run, times: Array, stop: Array | None, adjoint: dfx.AbstractAdjoint, start: Array | None
) -> Any:
    """The Diffrax solution: observables at `times`, and the state at the end.

    With a clock of the flow's own, `times` are counted from its reading at the
    `start`, so that the first steps may be as small as they need to be.
    """
    flow, problem, observe = run.dynamics, run.problem, run.observe
    assert isinstance(flow, AbstractDeterministicFlow)
    penalised = problem.penalty is not None
    zero: Any = jnp.zeros((), problem.dtype)
    terms = flow.build(
        run.coordinates,
        problem,
        run.coordinates.encode(run.network),
        None,
        jnp.int32(0),
        run.solver,
    )
    if start is not None:
        by_clock = terms.vf
        terms = dfx.ODETerm(lambda t, y, args: by_clock(start + t, y, args))
    if run.along is not None:
        terms = run.along.joined(terms, run.coordinates, None, jnp.int32(0), problem.dtype)
        zero = run.along.start(run.coordinates, run.network, zero)
    y0 = (run.coordinates.encode(run.network), zero)
    event = (
        None if stop is None else dfx.Event(lambda t, y, args, **kwargs: observe(y)["loss"] <= stop)
    )
    return dfx.diffeqsolve(
        terms,
        run.solver,
        t0=jnp.zeros((), problem.dtype),
        t1=times[-1],
        dt0=None,
        y0=y0,
        saveat=dfx.SaveAt(
            subs=[
                dfx.SubSaveAt(ts=times, fn=lambda t, y, args: observe(y, t if penalised else None)),
                dfx.SubSaveAt(t1=True),
            ]
        ),
        stepsize_controller=flow.step_control(run.coordinates, problem),
        max_steps=flow.most_steps,
        event=event,
        throw=False,
        adjoint=adjoint,
    )


def run_adaptive(run: Run, steps: Any, t1: Any, adjoint: Any) -> Raw:
    """Run a deterministic flow once, up to time `t1` on its clock, with an adaptive ODE
    solver.

    **Raises:** `ValueError` for a solver that is not adaptive, for `steps` instead of
    `t1`, for a `t1` that is not after the start, and for an `adjoint` that is not one
    of Diffrax's.
    """
    problem, flow = run.problem, run.dynamics
    assert isinstance(flow, AbstractDeterministicFlow)
    name, by_time = type(flow).__name__, flow.clock_name == FLOW_TIME
    control = flow.step_control(run.coordinates, problem)
    by_error = isinstance(control, dfx.AbstractAdaptiveStepSizeController)
    if not by_error and isinstance(run.solver, dfx.AbstractImplicitSolver):
        raise ValueError(
            f"{type(control).__name__} does not control the error that the implicit "
            f"{type(run.solver).__name__} needs for its equations: use an explicit solver, or "
            "leave `solver` out"
        )
    if by_error and not isinstance(run.solver, dfx.AbstractAdaptiveSolver):
        raise ValueError(
            f"{type(run.solver).__name__} gives no error estimate, so it cannot choose its own "
            f"steps: use an adaptive solver, or for fixed steps write {name}(dt=...), steps=..."
        )
    if t1 is None or steps is not None:
        raise ValueError(
            f"an adaptive {name} takes `t1`, not `steps`: give `t1`, or for fixed steps write "
            f"{name}(dt=...), steps=..."
        )
    t1 = as_float(t1, "t1")
    if by_time:
        check_positive(t1, "t1")
    adjoint = dfx.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    if not isinstance(adjoint, dfx.AbstractAdjoint):
        raise ValueError(
            f"`adjoint` must be one of Diffrax's, e.g. diffrax.ForwardMode(), but is {adjoint!r}"
        )
    grid: Any
    marked: Any
    if by_time:
        start = None
        grid = time_grid(run.times, float(t1))
        marked = np.unique(np.concatenate([grid, [0, t1 / 4, t1 / 2, t1]]))
        pick = np.searchsorted(marked, grid)
    else:
        start = jnp.asarray(_start(run, flow, t1), problem.dtype)
        grid = jnp.asarray(own_grid(run.times, start, t1, flow.clock_name), problem.dtype)
        ends = jnp.full((1,), t1, problem.dtype)
        marked = jnp.concatenate([start[None], grid, ends]) - start
        pick = np.arange(1, marked.shape[0] - 1)
    stop_at = None if run.stop is None else jnp.asarray(run.stop, problem.dtype)
    # Fields that the solution does not depend on are dropped, so that changing them
    # does not compile the solver again.
    lean = run._replace(finish=None, keys=None, times=None, stop=None)
    solution = _solve(lean, jnp.asarray(marked, problem.dtype), stop_at, adjoint, start)
    values, (end,) = solution.ys[0], (jax.tree.map(lambda leaf: leaf[-1], solution.ys[1]),)
    final, networks, finite = finish_runs(run.finish, end, False)
    done = solution.ts[1][-1]
    if problem.penalty is not None:
        final = final | {"penalty": run.observe(end, done)["penalty"]}
    # After an early stop the flow is frozen, so later times hold the last state. If the
    # solver gave up, the values at later times are unknown and become NaN.
    stopped, gave_up = dfx.is_event(solution.result), ~dfx.is_okay(solution.result)
    frozen = {name: final[name] if name in final else run.observe(end)[name] for name in values}
    late = jnp.asarray(marked, problem.dtype) > done
    values = {
        name: jnp.where(
            late.reshape((-1,) + (1,) * (v.ndim - 1)),
            jnp.where(stopped, frozen[name], jnp.nan)[None],
            v,
        )
        for name, v in values.items()
    }
    if by_time:
        quarter, half, last = (
            values["loss_integral"][int(np.searchsorted(marked, t))] for t in (t1 / 4, t1 / 2, t1)
        )
        averages = ((half - quarter) / (t1 / 4), (last - half) / (t1 / 2))
    else:  # Means of the loss in flow time are not those on another clock.
        averages = (jnp.full_like(final["loss"], jnp.nan),) * 2
    first_loss = values["loss"][0]
    return Raw(
        series={name: v[pick] for name, v in values.items()},
        final=final,
        networks=networks,
        finite=finite,
        times=jnp.asarray(grid, problem.dtype),
        steps=None,
        stop_time=jnp.where(stopped, done if start is None else done + start, jnp.inf),
        first_loss=first_loss,
        averages=averages,
        gave_up=gave_up,
    )


def _start(run: Run, flow: AbstractDeterministicFlow, t1: float) -> Any:
    """The reading of the flow's own clock at the start of a run to `t1`.

    **Raises:** `ValueError` if the run would not go forwards.
    """
    start = flow.begins(run.coordinates, run.network, run.problem)
    clock = flow.clock_name
    if is_concrete(start) and not float(start) < t1:
        raise ValueError(
            f"`t1` is a reading of {clock}, the clock of {type(flow).__name__}, and the run "
            f"already has {clock} = {float(start):g} at its start, but t1={t1:g}: take a larger t1"
        )
    return start
