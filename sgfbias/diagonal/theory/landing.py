"""Landing: predict the limit of a run without waiting for it.

The limit depends on the past through log alpha and the offset only, and these settle
long before the iterate does. Let beta_L be the solution selected by the present
alpha_T, and D the Bregman divergence `D_phi(beta_L, beta_T)`. The mean-loss flow
satisfies exactly `d E[D] = -L (2 - gamma <h, xi_t + xi_L>) dt`, so the remaining loss
integral is about `D / (2 (1 - gamma <h, xi_L>))` in the mean. For every other noise in
the span of the examples, and for SGD itself, the second moments of the residuals that
are still to come solve a linear equation (`theory.moments`), and D fixes their size.
Correcting log alpha once by what is to come brings the landed solution 10 to 60 times
closer to the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import is_concrete, numpy_for
from sgfbias.core.tiles import TILE, take_rows, tile_map
from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.rows import Rows, rows_of
from sgfbias.diagonal.theory import landing_shown
from sgfbias.diagonal.theory.certificate import Selection, solver_tolerance
from sgfbias.diagonal.theory.landing_curve import (
    MAX_NUMBERS,
    Points,
    places,
    solve_closely,
    solve_nearby,
)
from sgfbias.diagonal.theory.landing_law import Law, law_of
from sgfbias.diagonal.theory.landing_rest import Rest, Run, rest_of_tile
from sgfbias.diagonal.theory.selection import certify, solve_tile


class Landing(eqx.Module):
    """The limits of the runs of a trajectory. All fields have a leading axis of seeds,
    except for a single run.

    - `beta`: (seeds, d). The landed solution.
    - `log_alpha`: (seeds, d). The effective initialisation, with the expected rest of
      the run added if the landing was corrected.
    - `error`: (seeds,). Estimate of `|beta - limit|_2`. It is infinite for a seed
      without an estimate: the seed is too close to the stability edge, or its program
      was not solved, or it diverged.
    - `remaining`: (seeds,). The expected loss integral still to come. It is infinite
      where the second moments of the residuals do not fall.
    - `radius`: (seeds,). The spectral radius of the noise's feedback on these second
      moments, to about a percent. They fall if it is below 1. A single path may
      converge beyond that.
    - `validation_error`: (seeds,). None if the problem has none.
    - `selection`: the multipliers of the solution and its certificate.

    A seed that diverged has NaN and an infinite error.
    """

    references: ClassVar[Mapping[str, str]] = {
        **Selection.references,
        "ortega1970": "simplified Newton iterations, chapter 7",
    }
    beta: Float[Array, "*seeds d"]
    log_alpha: Float[Array, "*seeds d"]
    error: Float[Array, "*seeds"]
    remaining: Float[Array, "*seeds"]
    radius: Float[Array, "*seeds"]
    validation_error: Float[Array, "*seeds"] | None
    selection: Selection

    def plot(self) -> Any:
        """A picture of the limits: the median of each feature over seeds with the band
        from the 5% to the 95% quantile, the estimated errors, and the validation errors
        if there are any. Seeds without a limit are left out.

        **Returns:** a Matplotlib `Figure`.
        """
        return landing_shown.picture(self)

    def _repr_html_(self) -> str:
        return landing_shown.table(self)

    def __repr__(self) -> str:
        return landing_shown.text(self)


def land(runs: Trajectory, *, correct: bool = True) -> Landing:
    """The limits of runs, predicted from where the runs are now.

    **Arguments:**

    - `runs`: runs of a `DiagonalNetwork` on a `SparseRegression` with a constant step
      size. A gradient flow, or a stochastic flow in mirror or log coordinates with
      mean-loss, per-sample or minibatch noise, or sums of these. Or gradient descent,
      SGD with independent batches of any size, or SVAG. Label noise that has been
      switched off is allowed.
    - `correct`: whether to add the effect of the expected rest of the run to log alpha
      (the default). Without the correction the estimate is twice the distance that the
      correction would move the solution.

    **Returns:** a `Landing`. The `error` of a mean-loss flow is the distance that the
    correction moves the solution. For all other dynamics it is an estimate of what
    single paths scatter around the mean, of what the linear equation leaves out, and of
    the change of the offset of a discrete algorithm. Where second moments do not fall
    (`radius` at least 1), the present log alpha is landed on without a correction, and
    the error is infinite.

    **Raises:** `ValueError`, with the reason and what to do instead, for

    - dynamics whose rest is not derived (momentum, random reshuffling, transformations
      of Optax, the order-2 flow, schedules of the step size);
    - dynamics that have no limit (label noise that is on), or whose limit is not the
      theorem's (isotropic noise);
    - runs in which every seed has a start of its own.
    """
    law = law_of(runs)
    problem = runs.problem
    problem.require_interpolation()
    single = runs.status.ndim == 0
    step_size = jnp.asarray(law.step_size, problem.dtype)
    law = law._replace(step_size=step_size)
    ends = (
        runs.final["beta"],
        runs.final["log_alpha"],
        runs.final["loss_integral"],
        runs.diverged,
        runs.final["offset"] if law.discrete else None,
    )
    ends = _alone(ends) if single else ends
    tolerance = np.asarray(solver_tolerance(None, problem.dtype), problem.dtype)
    rows = rows_of(problem.X, problem.y)

    def one_by_one(ends: Any) -> Landing:
        return tile_map(
            lambda tile: _far_tile(problem, rows, runs.network, law, correct, tile, tolerance),
            ends,
        )

    small = TILE.get(jax.default_backend(), 64) * problem.n**2 <= MAX_NUMBERS
    # Computed values can be read only outside any trace, even if all inputs are
    # concrete. The last condition tests that no trace is active.
    if small and is_concrete((problem, runs.network, law, ends)) and is_concrete(jnp.zeros(()) + 0):
        S = np.where(np.asarray(ends[3]) | (float(step_size) == 0), 0, np.asarray(ends[2]))
        points, place = places(problem, rows, runs.network, step_size, S, tolerance)
        # Nothing is traced here, so nothing can be differentiated.
        plain = law._replace(traced=False)
        result, solved = tile_map(
            lambda tile: _near_tile(
                problem, rows, runs.network, plain, correct, points, tile, tolerance
            ),
            (ends, place),
        )
        lost = np.flatnonzero(~np.asarray(solved))
        if len(lost):
            result = _put(result, lost, one_by_one(take_rows(ends, lost)))
    else:
        result = one_by_one(ends)
    return _first(result) if single else result


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
def _prepare(network: DiagonalNetwork, ends: Any) -> Run:
    """The state from which a tile of seeds lands. A diverged seed gets the program of
    the start, so that it does not hold up its tile, and is marked afterwards.
    """
    beta, log_alpha, _, diverged, moved = ends
    start, offset = (
        jnp.broadcast_to(leaf.astype(beta.dtype), beta.shape)
        for leaf in (network.log_alpha, network.offset)
    )
    bad = diverged[:, None]
    if moved is not None:
        offset = jnp.where(bad, offset, moved)
    return Run(jnp.where(bad, 0, beta), jnp.where(bad, start, log_alpha), offset, diverged)


@eqx.filter_jit
def _near_tile(
    problem: SparseRegression,
    rows: Rows,
    network: DiagonalNetwork,
    law: Law,
    correct: bool,
    points: Points,
    tile: Any,
    tolerance: Any,
) -> tuple[Landing, Array]:
    """Land a tile of seeds from their places between points of the common curve, and
    return which seeds were close enough to it.
    """
    ends, place = tile
    run = _prepare(network, ends)
    b, accuracy = rows.targets(problem.y), rows.tolerance(tolerance)
    # Only the mean-loss law keeps seeds on the curve.
    solve = solve_nearby if law.moments is None else solve_closely
    mu, slope, factor = place.start(points)
    mu, count, solved = solve(
        (rows.rows, b), run.log_alpha, run.offset, mu, factor, accuracy, tolerance
    )
    rest = rest_of_tile(problem, rows, law, run, mu, tolerance)
    ahead = mu + slope * jnp.where(rest.known, rest.remaining, 0)[:, None]
    there, steps, again = solve(
        (rows.rows, b), rest.log_alpha, run.offset, ahead, factor, accuracy, tolerance
    )
    result = _report(
        problem,
        rows,
        correct,
        (run.log_alpha, mu, count),
        (rest.log_alpha, there, steps),
        run,
        rest,
        tolerance,
    )
    if rows.transform is not None:
        # The residual over all equations may hide the error of single ones.
        solved = solved & rest.feasible & result.selection.converged
    return result, solved & again


def _far_tile(
    problem: SparseRegression,
    rows: Rows,
    network: DiagonalNetwork,
    law: Law,
    correct: bool,
    ends: Any,
    tolerance: Any,
) -> Landing:
    """Land a tile of seeds, each by its own continuation. This is split into a few
    large compiled programs, because each of many small ones would have to be compiled.
    """
    run = _prepare(network, ends)
    targets = numpy_for(problem.y).broadcast_to(problem.y, (run.beta.shape[0], problem.n))
    mu, count = solve_tile(rows, targets, run.log_alpha, run.offset, None, tolerance)
    rest = rest_of_tile(problem, rows, law, run, mu, tolerance)
    there = solve_tile(rows, targets, rest.log_alpha, run.offset, (mu, run.log_alpha), tolerance)
    return _report(
        problem,
        rows,
        correct,
        (run.log_alpha, mu, count),
        (rest.log_alpha, *there),
        run,
        rest,
        tolerance,
    )


@eqx.filter_jit
def _report(
    problem: SparseRegression,
    rows: Rows,
    correct: bool,
    here: Any,
    there: Any,
    run: Run,
    rest: Rest,
    tolerance: Any,
) -> Landing:
    def certified(end: Any) -> Selection:
        log_alpha, mu, count = end
        solve = jax.vmap(certify, in_axes=(None, None, None, 0, 0, 0, 0, None))
        return solve(problem.X, problem.y, rows, log_alpha, run.offset, mu, count, tolerance)

    ahead = certified(there)
    # An estimate cannot be better than the tolerance of the solver. Where the solver
    # failed there is no estimate.
    floor = 10 * tolerance * jnp.linalg.norm(rest.beta, axis=1)
    shift = jnp.linalg.norm(ahead.beta - rest.beta, axis=1) + floor
    if rest.scatter is None or not correct:
        error = shift if correct else 2 * shift
    else:
        error = jnp.hypot(rest.scatter.absolute + floor, rest.scatter.relative * shift)
    solved = rest.feasible & ahead.converged
    chosen, final = (ahead, there[0]) if correct else (certified(here), here[0])
    bad = run.diverged[:, None]
    chosen = eqx.tree_at(lambda s: s.beta, chosen, jnp.where(bad, jnp.nan, chosen.beta))
    return Landing(
        beta=chosen.beta,
        log_alpha=jnp.where(bad, jnp.nan, final),
        error=jnp.where(rest.known & solved, error, jnp.inf),
        remaining=jnp.where(rest.known, rest.remaining, jnp.inf),
        radius=jnp.where(run.diverged, jnp.nan, rest.radius),
        validation_error=jax.vmap(problem.validation_error)(chosen.beta)
        if problem.measures_validation
        else None,
        selection=chosen,
    )
