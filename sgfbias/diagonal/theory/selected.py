"""The solution that the final log alpha and offset of a run select: the limit of the
run if alpha did not shrink any further.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.selection import select_many


def selected_errors(runs: Trajectory, problem: SparseRegression) -> Float[np.ndarray, " seeds"]:
    """The validation errors (seeds,) of the solutions that the final alpha and offset
    of the runs select.

    A seed that diverged has NaN. A single run has one error, (1,).
    """
    log_alpha, offset, bad = (
        jnp.atleast_1d(v) for v in (runs.final["log_alpha"], runs.final["offset"], runs.diverged)
    )
    if runs.status.ndim == 0:
        log_alpha, offset = log_alpha[None], offset[None]
    start = runs.network
    log_alpha = jnp.where(bad[:, None], start.log_alpha, log_alpha)
    beta = select_many(
        problem, log_alpha, offset=jnp.where(bad[:, None], start.offset, offset)
    ).beta
    return np.where(bad, np.nan, jax.vmap(problem.validation_error)(beta))
