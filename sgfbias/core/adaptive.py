"""Deterministic flows by an adaptive ODE solver: one run, in flow time."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array

from sgfbias.core.checks import check_positive
from sgfbias.core.dynamics import AbstractDeterministicFlow
from sgfbias.core.observe import Observe, finish_runs
from sgfbias.core.problem import Problem
from sgfbias.core.record import time_grid

ADAPTIVE_STEPS = 200_000


def _error_norm(scaled_error: Any) -> Array:
    """Root mean square, infinite where it is not a number: a trial step that overflows is rejected and the next one is smaller.

    Left NaN, as infinity over infinity, it would make the step width NaN, and every later step with it.
    """
    norm = optx.rms_norm(scaled_error)
    return jnp.where(jnp.isnan(norm), jnp.inf, norm)


@eqx.filter_jit
def _solve(
    flow: AbstractDeterministicFlow,
    chart: Any,
    network: Any,
    problem: Problem,
    solver: Any,
    observe: Observe,
    times: Array,
    stop: Array | None,
    adjoint: dfx.AbstractAdjoint,
) -> Any:
    y0 = (chart.encode(network), jnp.zeros((), problem.dtype))
    rtol, atol = flow.tolerances(problem.dtype)
    event = None if stop is None else dfx.Event(lambda t, y, args, **kwargs: observe(y)["loss"] <= stop)
    return dfx.diffeqsolve(
        flow.build(chart, problem, y0[0], None, jnp.int32(0), solver),
        solver,
        t0=jnp.zeros((), problem.dtype),
        t1=times[-1],
        dt0=None,
        y0=y0,
        saveat=dfx.SaveAt(subs=[dfx.SubSaveAt(ts=times, fn=lambda t, y, args: observe(y)), dfx.SubSaveAt(t1=True)]),
        stepsize_controller=dfx.PIDController(rtol=rtol, atol=atol, norm=_error_norm),
        max_steps=ADAPTIVE_STEPS,
        event=event,
        throw=False,
        adjoint=adjoint,
    )


def run_adaptive(
    flow: Any,
    chart: Any,
    network: Any,
    problem: Problem,
    solver: Any,
    observe: Observe,
    finish: Observe,
    times: Any,
    steps: Any,
    t1: Any,
    stop: float | None,
    adjoint: Any,
) -> dict[str, Any]:
    """A deterministic flow by an adaptive ODE solver, one run, in flow time."""
    if not isinstance(solver, dfx.AbstractAdaptiveSolver):
        raise ValueError(f"{type(solver).__name__} gives no error estimate: for fixed steps write {type(flow).__name__}(dt=...), steps=...")
    if t1 is None or steps is not None:
        raise ValueError(
            f"an adaptive {type(flow).__name__} takes `t1`, not `steps`; for fixed steps write {type(flow).__name__}(dt=...), steps=..."
        )
    check_positive(t1, "t1")
    adjoint = dfx.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    if not isinstance(adjoint, dfx.AbstractAdjoint):
        raise ValueError(f"`adjoint` must be one of Diffrax's, e.g. diffrax.ForwardMode(), but is {adjoint!r}")
    grid = time_grid(times, float(t1))
    marked = np.unique(np.concatenate([grid, [0, t1 / 4, t1 / 2, t1]]))
    stop_at = None if stop is None else jnp.asarray(stop, problem.dtype)
    solution = _solve(flow, chart, network, problem, solver, observe, jnp.asarray(marked, problem.dtype), stop_at, adjoint)
    values, (end,) = solution.ys[0], (jax.tree.map(lambda leaf: leaf[-1], solution.ys[1]),)
    final, networks, finite = finish_runs(finish, end, False)
    done = solution.ts[1][-1]
    # After an early stop the flow is frozen: later times hold the last state. A solver that gave up knows nothing of them.
    stopped, gave_up = dfx.is_event(solution.result), ~dfx.is_okay(solution.result)
    frozen = {name: final[name] if name in final else observe(end)[name] for name in values}
    late = jnp.asarray(marked, problem.dtype) > done
    values = {
        name: jnp.where(late.reshape((-1,) + (1,) * (v.ndim - 1)), jnp.where(stopped, frozen[name], jnp.nan)[None], v)
        for name, v in values.items()
    }
    quarter, half, last = (values["loss_integral"][int(np.searchsorted(marked, t))] for t in (t1 / 4, t1 / 2, t1))
    first_loss, pick = values["loss"][0], np.searchsorted(marked, grid)
    return {
        "series": {name: v[pick] for name, v in values.items()},
        "final": final,
        "networks": networks,
        "finite": finite,
        "gave_up": gave_up,
        "times": jnp.asarray(grid, problem.dtype),
        "steps": None,
        "stop_time": jnp.where(stopped, done, jnp.inf),
        "first_loss": first_loss,
        "averages": ((half - quarter) / (t1 / 4), (last - half) / (t1 / 2)),
    }
