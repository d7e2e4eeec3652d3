"""Runs of deterministic flows with an adaptive ODE solver, in flow time."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array

from sgfbias.core.checks import as_float, check_positive
from sgfbias.core.dynamics import AbstractDeterministicFlow
from sgfbias.core.observe import finish_runs
from sgfbias.core.record import time_grid
from sgfbias.core.run import Raw, Run

# An adaptive solver gives up after this many steps.
ADAPTIVE_STEPS = 200_000


def _error_norm(scaled_error: Any) -> Array:
    """The root mean square of the scaled error, with infinity in place of NaN.

    A trial step that overflows gives infinity / infinity = NaN. An infinite error makes
    the solver reject the step and try a smaller one, whereas NaN would turn the width
    of all later steps into NaN.
    """
    norm = optx.rms_norm(scaled_error)
    return jnp.where(jnp.isnan(norm), jnp.inf, norm)


@eqx.filter_jit
def _solve(run: Run, times: Array, stop: Array | None, adjoint: dfx.AbstractAdjoint) -> Any:
    """The Diffrax solution: observables at `times`, and the state at the end."""
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
    if run.along is not None:
        terms = run.along.joined(terms, run.coordinates, None, jnp.int32(0), problem.dtype)
        zero = run.along.start(run.coordinates, run.network, zero)
    y0 = (run.coordinates.encode(run.network), zero)
    rtol, atol = flow.tolerances(problem.dtype)
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
        stepsize_controller=dfx.PIDController(rtol=rtol, atol=atol, norm=_error_norm),
        max_steps=ADAPTIVE_STEPS,
        event=event,
        throw=False,
        adjoint=adjoint,
    )


def run_adaptive(run: Run, steps: Any, t1: Any, adjoint: Any) -> Raw:
    """Run a deterministic flow once, up to flow time `t1`, with an adaptive ODE solver.

    **Raises:** `ValueError` for a solver that is not adaptive, for `steps` instead of
    `t1`, and for an `adjoint` that is not one of Diffrax's.
    """
    problem, name = run.problem, type(run.dynamics).__name__
    if not isinstance(run.solver, dfx.AbstractAdaptiveSolver):
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
    check_positive(t1, "t1")
    adjoint = dfx.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    if not isinstance(adjoint, dfx.AbstractAdjoint):
        raise ValueError(
            f"`adjoint` must be one of Diffrax's, e.g. diffrax.ForwardMode(), but is {adjoint!r}"
        )
    grid = time_grid(run.times, float(t1))
    marked = np.unique(np.concatenate([grid, [0, t1 / 4, t1 / 2, t1]]))
    stop_at = None if run.stop is None else jnp.asarray(run.stop, problem.dtype)
    # Fields that the solution does not depend on are dropped, so that changing them
    # does not compile the solver again.
    lean = run._replace(finish=None, keys=None, times=None, stop=None)
    solution = _solve(lean, jnp.asarray(marked, problem.dtype), stop_at, adjoint)
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
    quarter, half, last = (
        values["loss_integral"][int(np.searchsorted(marked, t))] for t in (t1 / 4, t1 / 2, t1)
    )
    first_loss, pick = values["loss"][0], np.searchsorted(marked, grid)
    return Raw(
        series={name: v[pick] for name, v in values.items()},
        final=final,
        networks=networks,
        finite=finite,
        times=jnp.asarray(grid, problem.dtype),
        steps=None,
        stop_time=jnp.where(stopped, done, jnp.inf),
        first_loss=first_loss,
        averages=((half - quarter) / (t1 / 4), (last - half) / (t1 / 2)),
        gave_up=gave_up,
    )
