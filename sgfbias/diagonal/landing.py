r"""Landing: where a flow is going, without waiting for it.

The limit depends on the past through log alpha only, and log alpha settles long before the iterate. With beta_L the solution selected by
the present alpha_T and D the Bregman divergence `D_phi(beta_L, beta_T)`, the mean-loss model has exactly
`d E[D] = -L (2 - gamma <h, xi_t + xi_L>) dt`, so what is missing of the loss integral is about `D / (2 (1 - gamma <h, xi_L>))` in the mean.
Used once as a correction of log alpha it brings the landed solution 10 to 60 times closer; its size is the error estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.checks import is_concrete
from sgfbias.core.flow import GradientFlow, StochasticGradientFlow
from sgfbias.core.noise import IsotropicNoise, LabelNoise, MeanLossNoise, NoNoise
from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.certificate import Selection, solver_tolerance
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import bregman, u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select_many


class Landing(eqx.Module):
    """The limits of the runs of a trajectory; leading axis seeds (none for a single run).

    - `beta` (seeds, d), `log_alpha` (seeds, d): the landed solution and effective initialisation, corrected if asked.
    - `error` (seeds,): estimate of `|beta - limit|_2`; infinite where none can be given (too close to the stability edge, or diverged).
    - `remaining` (seeds,): expected loss integral still to come.
    - `validation_error` (seeds,), where the problem has one. `selection`: the solution's multipliers and certificate.
    A seed that diverged has NaN and an infinite error.
    """

    references: ClassVar[Mapping[str, str]] = Selection.references
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
    beta, log_alpha, diverged = (
        jnp.atleast_1d(v)[None] if single and v.ndim else jnp.atleast_1d(v)
        for v in (runs.final["beta"], runs.final["log_alpha"], runs.diverged)
    )
    step_size = jnp.asarray(step_size, problem.dtype) * problem.pace
    offset = jnp.broadcast_to(runs.network.offset.astype(problem.dtype), beta.shape)
    # A diverged seed solves the start's programme, so that it cannot hold up its tile, and is then marked.
    bad = diverged[:, None]
    log_alpha = jnp.where(bad, runs.network.log_alpha.astype(problem.dtype)[None], log_alpha)
    beta = jnp.where(bad, 0, beta)

    here = select_many(problem, log_alpha, offset=offset)
    remaining, margin = jax.vmap(_remaining, in_axes=(None, None, 0, 0, 0))(problem, step_size, beta, log_alpha, here.beta)
    known = (margin > 0) & ~diverged
    shrunk = log_alpha - 2 * step_size * problem.h[None] * jnp.where(known, remaining, 0)[:, None]
    there = select_many(problem, shrunk, offset=offset, near=(here.multipliers, log_alpha))  # a short way on from there
    # No estimate is better than what the solver was asked for, and none is given where it failed.
    floor = 10 * solver_tolerance(None, problem.dtype) * jnp.linalg.norm(here.beta, axis=1)
    shift = jnp.linalg.norm(there.beta - here.beta, axis=1) + floor
    solved = here.converged & there.converged
    chosen, final = (there, shrunk) if correct else (here, log_alpha)
    chosen = eqx.tree_at(lambda s: s.beta, chosen, jnp.where(bad, jnp.nan, chosen.beta))
    result = Landing(
        beta=chosen.beta,
        log_alpha=jnp.where(bad, jnp.nan, final),
        error=jnp.where(known & solved, shift if correct else 2 * shift, jnp.inf),
        remaining=jnp.where(known, remaining, jnp.inf),
        validation_error=jax.vmap(problem.validation_error)(chosen.beta) if problem.measures_validation else None,
        selection=chosen,
    )
    return jax.tree.map(lambda leaf: leaf[0], result) if single else result


@eqx.filter_jit
def _remaining(problem: SparseRegression, step_size: Array, beta: Array, log_alpha: Array, landed: Array) -> tuple[Array, Array]:
    """Expected loss integral still to come from `beta`, and the distance to the stability edge (not positive: no expectation)."""
    xi = xi_from(log_alpha, u_from(landed, log_alpha))
    margin = 1 - step_size * jnp.vdot(problem.h, xi)
    return bregman(landed, beta, log_alpha) / (2 * jnp.where(margin > 0, margin, 1)), margin


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
