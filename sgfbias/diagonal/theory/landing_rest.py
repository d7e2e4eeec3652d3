"""The expected rest of runs: the loss integral still to come, and how log alpha falls.

The mean-loss flow has a closed form in the Bregman divergence. All other laws use the
linear equation of `theory.moments`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.potential import beta_from, bregman_from, u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.rows import Rows, backward_error
from sgfbias.diagonal.theory.landing_error import Scatter, scatter
from sgfbias.diagonal.theory.landing_law import Law, law_of
from sgfbias.diagonal.theory.moments import NoiseLaw, remaining_moments, shrinkage


class Run(NamedTuple):
    """The present state of the seeds of a tile."""

    beta: Array
    log_alpha: Array
    offset: Array
    diverged: Array


class Rest(NamedTuple):
    """The expected rest of the runs of a tile: the loss integral still to come, and the
    log alpha that it leads to.
    """

    beta: Array  # the solution at the present log alpha
    feasible: Array  # whether that solution fits the data to the tolerance
    remaining: Array  # the expected loss integral still to come
    radius: Array  # of the noise's feedback on the second moments
    known: Array  # whether `remaining` is known
    log_alpha: Array  # after the expected rest of the run
    scatter: Scatter | None = None  # what the rest does besides, if that is estimated


@eqx.filter_jit
def rest_of_tile(
    problem: SparseRegression,
    rows: Rows,
    law: Law,
    run: Run,
    mu: Array,
    tolerance: Any,
) -> Rest:
    """The expected rest of the runs of a tile, for the solutions of multipliers `mu`
    that the present log alpha selects.
    """
    u = 4 * (mu @ rows.rows) + run.offset
    landed = beta_from(run.log_alpha, u)
    gap = jax.vmap(backward_error, in_axes=(None, None, 0))(problem.X, problem.y, landed)
    if law.moments is not None:
        one = jax.vmap(rest_of_moments, in_axes=(None, None, 0, 0, 0, 0))
        remaining, radius, falls, fall, spread = one(
            problem, law, run.beta, landed, run.log_alpha, u
        )
        known = falls & ~run.diverged
        log_alpha = run.log_alpha - jnp.where(known[:, None], fall, 0)
        return Rest(landed, gap <= tolerance, remaining, radius, known, log_alpha, spread)
    time_scale = law.step_size * problem.time_scale
    remaining, margin = jax.vmap(_remaining, in_axes=(None, None, 0, 0, 0))(
        problem, time_scale, run.beta, run.log_alpha, u
    )
    known = (margin > 0) & ~run.diverged
    log_alpha = (
        run.log_alpha - 2 * time_scale * problem.h[None] * jnp.where(known, remaining, 0)[:, None]
    )
    return Rest(landed, gap <= tolerance, remaining, 1 - margin, known, log_alpha)


def _remaining(
    problem: SparseRegression, step_size: Array, beta: Array, log_alpha: Array, u: Array
) -> tuple[Array, Array]:
    """The expected loss integral from `beta` to the solution `beta_from(log_alpha, u)`,
    and the distance to the stability edge. If that distance is not positive, there is
    no expectation.
    """
    margin = 1 - step_size * jnp.vdot(problem.h, xi_from(log_alpha, u))
    return bregman_from(log_alpha, u, u_from(beta, log_alpha)) / (
        2 * jnp.where(margin > 0, margin, 1)
    ), margin


def rest_of_moments(
    problem: SparseRegression,
    law: Law,
    beta: Array,
    landed: Array,
    log_alpha: Array,
    u: Array,
    *,
    feedback: bool = True,
) -> tuple[Array, Array, Array, Array, Scatter]:
    """The expected rest of one seed's run from the linear equation of second moments.

    The equation holds for small residuals. Its metric is taken half-way between the
    present and the landed point, and its solution is scaled so that the energy
    `r^T A^-1 r` becomes 8 times the Bregman divergence, which is exact in the mean.
    Without `feedback` the residuals decay as if there were no noise.

    **Returns:** the loss integral still to come, the radius of the noise's feedback,
    whether second moments fall, the fall of log alpha (d,), and what single paths do
    besides.
    """
    present = u_from(beta, log_alpha)
    ends = xi_from(log_alpha, u), xi_from(log_alpha, present)
    zeta = (ends[0] + ends[1]) / 2
    residuals = problem.X @ beta - problem.y
    A = (problem.X * zeta) @ problem.X.T
    decay = law.moments if feedback else _quiet(law.moments)
    rest = remaining_moments(A, residuals, decay, differentiable=law.traced)
    divergence = 8 * bregman_from(log_alpha, u, present)
    # The divergence is a difference of numbers of the size of zeta. Where it has lost
    # its digits, the residuals are so small that the linear equation needs no scale.
    rounding = 8 * jnp.finfo(zeta.dtype).eps * jnp.sum(zeta)
    clear = (rest.energy > 0) & (divergence > 1000 * rounding)
    scale = jnp.where(clear, divergence / jnp.where(clear, rest.energy, 1), 1)
    rest = rest._replace(J=scale * rest.J)
    fall = shrinkage(problem.X, rest.J, law.moments)
    movement = jnp.abs(ends[0] - ends[1])
    spread = scatter(problem.X, landed, zeta, movement, residuals, fall, scale, rest, law.moments)
    return jnp.trace(rest.J) / (4 * problem.n), rest.radius, rest.known, fall, spread


def _quiet(law: NoiseLaw) -> NoiseLaw:
    """The law without the noise's part in the decay of the residuals."""
    zero = jnp.zeros_like(law.sample)
    return law._replace(sample=zero, mean=zero, cross=zero)


def expected_fall(
    runs: Trajectory, landed: Float[Array, "seeds d"], *, feedback: bool = True
) -> Float[Array, "seeds d"]:
    """The expected fall of log alpha in the rest of runs, which `land` subtracts from
    the present log alpha.

    **Arguments:**

    - `runs`: runs that can be landed, with a seed axis.
    - `landed`: (seeds, d). The solutions that their present log alpha selects, which
      are `land(runs, correct=False).beta`.
    - `feedback`: False leaves out that the noise of the rest keeps the residuals from
      decaying, so that the fall is too small by the factor that this feedback makes.

    **Returns:** the fall, (seeds, d), without units.
    """
    law = law_of(runs)
    beta, log_alpha = runs.final["beta"], runs.final["log_alpha"]
    return _falls(runs.problem, law, feedback, beta, landed, log_alpha)


@eqx.filter_jit
def _falls(
    problem: SparseRegression,
    law: Law,
    feedback: bool,
    beta: Array,
    landed: Array,
    log_alpha: Array,
) -> Array:
    time_scale = law.step_size * problem.time_scale

    def one(beta: Array, landed: Array, log_alpha: Array) -> Array:
        u = u_from(landed, log_alpha)
        if law.moments is not None:
            return rest_of_moments(problem, law, beta, landed, log_alpha, u, feedback=feedback)[3]
        remaining, margin = _remaining(problem, time_scale, beta, log_alpha, u)
        return 2 * time_scale * problem.h * remaining * (1 if feedback else margin)

    return jax.vmap(one)(beta, landed, log_alpha)
