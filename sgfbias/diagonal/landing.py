r"""Landing: where a flow is going, without waiting for it.

The limit depends on the past through log alpha only, and log alpha settles long before the iterate. With beta_L the solution selected by
the present alpha_T and D the Bregman divergence `D_phi(beta_L, beta_T)`, the mean-loss model has exactly
`d E[D] = -L (2 - gamma <h, xi_t + xi_L>) dt`, so what is missing of the loss integral is about `D / (2 (1 - gamma <h, xi_L>))` in the mean.
Used once as a correction of log alpha it brings the landed solution 10 to 60 times closer; its size is the error estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import is_concrete, numpy_for
from sgfbias.core.flow import GradientFlow, StochasticGradientFlow
from sgfbias.core.noise import IsotropicNoise, LabelNoise, MeanLossNoise, NoNoise
from sgfbias.core.tiles import TILE, take_rows, tile_map
from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.certificate import Selection, solver_tolerance
from sgfbias.diagonal.common_curve import MAX_NUMBERS, Points, places, solve_nearby
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import beta_from, bregman_from, u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import certify, solve_tile


class Landing(eqx.Module):
    """The limits of the runs of a trajectory; leading axis seeds (none for a single run).

    - `beta` (seeds, d), `log_alpha` (seeds, d): the landed solution and effective initialisation, corrected if asked.
    - `error` (seeds,): estimate of `|beta - limit|_2`; infinite where none can be given (too close to the stability edge, or diverged).
    - `remaining` (seeds,): expected loss integral still to come.
    - `validation_error` (seeds,), where the problem has one. `selection`: the solution's multipliers and certificate.
    A seed that diverged has NaN and an infinite error.
    """

    references: ClassVar[Mapping[str, str]] = {**Selection.references, "ortega1970": "simplified Newton iterations, chapter 7"}
    beta: Float[Array, "*seeds d"]
    log_alpha: Float[Array, "*seeds d"]
    error: Float[Array, "*seeds"]
    remaining: Float[Array, "*seeds"]
    validation_error: Float[Array, "*seeds"] | None
    selection: Selection

    def __repr__(self) -> str:
        if not is_concrete(self.beta):
            return f"Landing(beta {self.beta.shape})"
        if self.beta.ndim == 1:
            return f"Landing(beta {self.beta.shape}, error {float(self.error):.1e}, remaining loss integral {float(self.remaining):.1e})"
        known = jnp.isfinite(self.error)
        return (
            f"Landing(beta {self.beta.shape}, median error {float(jnp.median(self.error)):.1e}, "
            f"{int(known.sum())} of {known.size} with an estimate)"
        )


def land(runs: Trajectory, *, correct: bool = True) -> Landing:
    """The limits of the flow's runs, from where they are now.

    **Arguments:** `runs`: a gradient flow, or a mean-loss stochastic flow, of a `DiagonalNetwork` in mirror or log coordinates.
    `correct`: add the expected remaining loss integral to log alpha (the default). The error estimate is the size of that correction; for
    the uncorrected landing, whose error is the correction itself in the mean, twice its size.

    **Raises:** `ValueError` for dynamics whose remaining shrinkage is not derived (per-sample and minibatch noise, discrete algorithms),
    that have no limit (label noise that is on) or another one than the theorem's (isotropic noise), each with what to do instead.
    """
    step_size = _check(runs)
    problem = runs.problem
    problem.require_interpolation()
    single = runs.status.ndim == 0
    step_size = jnp.asarray(step_size, problem.dtype)
    ends = runs.final["beta"], runs.final["log_alpha"], runs.final["loss_integral"], runs.diverged
    ends = _alone(ends) if single else ends
    tolerance = np.asarray(solver_tolerance(None, problem.dtype), problem.dtype)

    def one_by_one(ends: Any) -> Landing:
        return tile_map(lambda tile: _far_tile(problem, runs.network, step_size, correct, tile, tolerance), ends)

    small = TILE.get(jax.default_backend(), 64) * problem.n**2 <= MAX_NUMBERS
    # What is computed may be asked after only outside any trace, even where all that it is computed from is known.
    if small and is_concrete((problem, runs.network, step_size, ends)) and is_concrete(jnp.zeros(()) + 0):
        S = np.where(np.asarray(ends[3]) | (float(step_size) == 0), 0, np.asarray(ends[2]))
        points, place = places(problem, runs.network, step_size, S, tolerance)
        result, solved = tile_map(
            lambda tile: _near_tile(problem, runs.network, step_size, correct, points, tile, tolerance), (ends, place)
        )
        lost = np.flatnonzero(~np.asarray(solved))
        if len(lost):
            result = _put(result, lost, one_by_one(take_rows(ends, lost)))
    else:
        result = one_by_one(ends)
    return _first(result) if single else result


class _Run(NamedTuple):
    """Where the seeds of a tile are."""

    beta: Array
    log_alpha: Array
    offset: Array
    diverged: Array


class _Rest(NamedTuple):
    """What is still to come: the expected loss integral and the log alpha it leads to."""

    beta: Array  # the solution without it
    feasible: Array
    remaining: Array
    known: Array  # whether there is such an expectation
    log_alpha: Array


@jax.jit
def _alone(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], tree)


@jax.jit
def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


@jax.jit
def _put(tree: Any, rows: Array, values: Any) -> Any:
    return jax.tree.map(lambda leaf, value: leaf.at[rows].set(value), tree, values)


@eqx.filter_jit
def _prepare(network: DiagonalNetwork, ends: Any) -> _Run:
    """What a tile of seeds lands from. A diverged seed solves the start's programme, so that it cannot hold up its tile, and is then marked."""
    beta, log_alpha, _, diverged = ends
    start, offset = (jnp.broadcast_to(leaf.astype(beta.dtype), beta.shape) for leaf in (network.log_alpha, network.offset))
    bad = diverged[:, None]
    return _Run(jnp.where(bad, 0, beta), jnp.where(bad, start, log_alpha), offset, diverged)


@eqx.filter_jit
def _near_tile(
    problem: SparseRegression, network: DiagonalNetwork, step_size: Array, correct: bool, points: Points, tile: Any, tolerance: Any
) -> tuple[Landing, Array]:
    """A tile of seeds landed from between points of their common curve, and which of them were close enough to it."""
    ends, place = tile
    run = _prepare(network, ends)
    nu, slope, factor = place.start(points)
    nu, count, solved = solve_nearby(problem, run.log_alpha, run.offset, nu, factor, tolerance)
    rest = _rest_tile(problem, step_size, run, nu, tolerance)
    ahead = nu + slope * jnp.where(rest.known, rest.remaining, 0)[:, None]
    there, steps, again = solve_nearby(problem, rest.log_alpha, run.offset, ahead, factor, tolerance)
    result = _report(problem, correct, (run.log_alpha, nu, count), (rest.log_alpha, there, steps), run, rest, tolerance)
    return result, solved & again


def _far_tile(problem: SparseRegression, network: DiagonalNetwork, step_size: Array, correct: bool, ends: Any, tolerance: Any) -> Landing:
    """A tile of seeds landed each by its own continuation. Few programs rather than many small ones, which cost a compilation each."""
    run = _prepare(network, ends)
    targets = numpy_for(problem.y).broadcast_to(problem.y, (run.beta.shape[0], problem.n))
    nu, count = solve_tile(problem.X, targets, run.log_alpha, run.offset, None, tolerance)
    rest = _rest_tile(problem, step_size, run, nu, tolerance)
    there = solve_tile(problem.X, targets, rest.log_alpha, run.offset, (nu, run.log_alpha), tolerance)
    return _report(problem, correct, (run.log_alpha, nu, count), (rest.log_alpha, *there), run, rest, tolerance)


@eqx.filter_jit
def _rest_tile(problem: SparseRegression, step_size: Array, run: _Run, nu: Array, tolerance: Any) -> _Rest:
    """The rest of the runs of a tile whose log alpha now selects the solutions of multipliers `nu`."""
    pace = step_size * problem.pace
    u = 4 * (nu @ problem.X) + run.offset
    landed = beta_from(run.log_alpha, u)
    remaining, margin = jax.vmap(_remaining, in_axes=(None, None, 0, 0, 0))(problem, pace, run.beta, run.log_alpha, u)
    known = (margin > 0) & ~run.diverged
    log_alpha = run.log_alpha - 2 * pace * problem.h[None] * jnp.where(known, remaining, 0)[:, None]
    gap = jnp.linalg.norm(landed @ problem.X.T - problem.y, axis=1)
    return _Rest(landed, gap <= tolerance * jnp.linalg.norm(problem.y), remaining, known, log_alpha)


@eqx.filter_jit
def _report(problem: SparseRegression, correct: bool, here: Any, there: Any, run: _Run, rest: _Rest, tolerance: Any) -> Landing:
    def certified(end: Any) -> Selection:
        log_alpha, nu, count = end
        solve = jax.vmap(certify, in_axes=(None, None, 0, 0, 0, 0, None))
        return solve(problem.X, problem.y, log_alpha, run.offset, nu, count, tolerance)

    ahead = certified(there)
    # No estimate is better than what the solver was asked for, and none is given where it failed.
    floor = 10 * tolerance * jnp.linalg.norm(rest.beta, axis=1)
    shift = jnp.linalg.norm(ahead.beta - rest.beta, axis=1) + floor
    solved = rest.feasible & ahead.converged
    chosen, final = (ahead, there[0]) if correct else (certified(here), here[0])
    bad = run.diverged[:, None]
    chosen = eqx.tree_at(lambda s: s.beta, chosen, jnp.where(bad, jnp.nan, chosen.beta))
    return Landing(
        beta=chosen.beta,
        log_alpha=jnp.where(bad, jnp.nan, final),
        error=jnp.where(rest.known & solved, shift if correct else 2 * shift, jnp.inf),
        remaining=jnp.where(rest.known, rest.remaining, jnp.inf),
        validation_error=jax.vmap(problem.validation_error)(chosen.beta) if problem.measures_validation else None,
        selection=chosen,
    )


def _remaining(problem: SparseRegression, step_size: Array, beta: Array, log_alpha: Array, u: Array) -> tuple[Array, Array]:
    """Expected loss integral still to come from `beta` to the solution `beta_from(log_alpha, u)`, and the distance to the stability edge (not positive:
    no expectation)."""
    margin = 1 - step_size * jnp.vdot(problem.h, xi_from(log_alpha, u))
    return bregman_from(log_alpha, u, u_from(beta, log_alpha)) / (2 * jnp.where(margin > 0, margin, 1)), margin


def _check(runs: Trajectory) -> Array | float:
    """The step size of dynamics that can be landed; refuses the others."""
    dynamics = runs.dynamics
    if not isinstance(runs.network, DiagonalNetwork) or not isinstance(runs.problem, SparseRegression):
        raise ValueError(
            f"landing is derived for a DiagonalNetwork on a SparseRegression, but these runs are of a {type(runs.network).__name__} on a "
            f"{type(runs.problem).__name__}; simulate until the loss has converged (stop=...)"
        )
    if runs.coordinates == "weights" and not dynamics.weights_only:
        raise ValueError(
            "in weights coordinates log alpha carries the solver's error, so landing on it would hide that error: use coordinates='mirror' or 'log'"
        )
    if isinstance(dynamics, GradientFlow):
        return 0.0
    if not isinstance(dynamics, StochasticGradientFlow):
        raise ValueError(
            f"the remaining shrinkage of {type(dynamics).__name__} is not derived, so its runs cannot be landed. At convergence its own law "
            "gives the solution: select(problem, runs.final['log_alpha'][i], offset=runs.final['offset'][i])"
        )
    noise = dynamics.noise
    if isinstance(noise, LabelNoise):
        raise ValueError(
            "label noise is on, so the flow never settles and there is no limit to land on: continue from runs.networks with MeanLossNoise() "
            "and land that"
        )
    if isinstance(noise, IsotropicNoise):
        raise ValueError("isotropic noise leaves the row space of the data, so the limit is not the theorem's: simulate until convergence")
    if isinstance(noise, NoNoise) and dynamics.order == 1:
        return 0.0
    if dynamics.is_scheduled:
        raise ValueError(
            "the remaining shrinkage is derived for a constant step size, but step_size is a schedule: continue from runs.networks with a "
            "constant one and land that, or simulate until the loss has converged (stop=...)"
        )
    if not isinstance(noise, MeanLossNoise) or dynamics.order != 1:
        kind = type(noise).__name__ if dynamics.order == 1 else f"the order-{dynamics.order} flow"
        raise ValueError(
            f"the remaining shrinkage under {kind} is not derived, so these runs cannot be landed: simulate until the loss has converged "
            "(stop=...) and use select(problem, runs.final['log_alpha'][i])"
        )
    return dynamics.step_size
