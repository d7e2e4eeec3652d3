"""Theorem 1 at finite time: the iterate beta_t minimises the potential on its fibre,
the set of all beta with the same outputs, `X beta = X beta_t`.

The theorem says that the distance of the iterate from this minimiser is 0, whatever the
loss still is (Pesme, Pillaud-Vivien, Flammarion 2021, theorem 1 and its proof; for SGD,
with its offset, Even, Pesme, Gunasekar, Flammarion 2023). There are two ways to measure
this. `fibre_distance` solves the program. `outside_row_space` solves nothing: it
measures the part of the potential's gradient that lies outside the row space of X.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.selection import select_many


class Fibre(NamedTuple):
    """The minimisers of the potential on the fibres of some iterates.

    - `beta`: (seeds, d). The minimisers.
    - `distance`: (seeds,). Euclidean distances of the iterates from the minimisers.
    - `relative`: (seeds,). These distances divided by the norms of the iterates; NaN,
      as `distance`, for a seed that diverged.
    """

    beta: Array
    distance: Array
    relative: Array


def minimisers_on_fibres(
    problem: SparseRegression, beta: Array, log_alpha: Array, offset: Array | None = None
) -> Fibre:
    """The minimisers on the fibres of the iterates `beta` (seeds, d), for `log_alpha`
    (seeds, d) and `offset` (seeds, d); the offset is 0 by default.
    """
    chosen = select_many(problem, log_alpha, offset=offset, targets=beta @ problem.X.T).beta
    distance = jnp.linalg.norm(beta - chosen, axis=-1)
    return Fibre(chosen, distance, distance / jnp.linalg.norm(beta, axis=-1))


def fibre_distance(
    problem: SparseRegression,
    runs: Trajectory,
    *,
    log_alpha: Array | None = None,
    with_offset: bool = True,
) -> Fibre:
    """The distances of the last iterates of runs from the minimisers on their fibres.

    **Arguments:**

    - `log_alpha`: (seeds, d). The effective initialisation of every seed. The default
      is computed from the seed's own weights, `log(w_+ w_-) / 2`.
    - `with_offset`: whether the potential is centred at the offset of each run or at 0.
      SGD and gradient descent make the offset non-zero.

    **Returns:** a `Fibre`. Theorem 1 says that `relative` is 0.
    """
    network = runs.network
    bad, final = (
        jnp.atleast_1d(runs.diverged),
        {name: jnp.atleast_2d(runs.final[name]) for name in ("beta", "log_alpha", "offset")},
    )
    # The values of a diverged seed are replaced by harmless ones, so that its program
    # does not disturb the other seeds of its tile.
    beta = jnp.where(bad[:, None], 1.0, final["beta"])
    own = jnp.where(
        bad[:, None], network.log_alpha, final["log_alpha"] if log_alpha is None else log_alpha
    )
    offset = jnp.where(bad[:, None], network.offset, final["offset"]) if with_offset else None
    found = minimisers_on_fibres(problem, beta, own, offset)
    return Fibre(
        found.beta, *(jnp.where(bad, jnp.nan, value) for value in (found.distance, found.relative))
    )


def outside_row_space(basis: Any, slope: Any) -> Float[np.ndarray, " seeds"]:
    """The norm of the part of the potential's gradient outside the row space, divided
    by the norm of the whole gradient. It is 0 exactly where a point minimises the
    potential on its fibre.

    **Arguments:**

    - `basis`: (rank, d) or (seeds, rank, d). Orthonormal rows that span the row space.
    - `slope`: (seeds, d). The gradient, up to a factor. For the hyperbolic potential it
      is `arcsinh(beta / 2 alpha^2) - offset`.
    """
    slope = np.asarray(slope)
    basis = np.broadcast_to(np.asarray(basis), (len(slope), *np.shape(basis)[-2:]))
    left = slope - np.einsum("mkd,mk->md", basis, np.einsum("mkd,md->mk", basis, slope))
    return np.linalg.norm(left, axis=1) / np.maximum(np.linalg.norm(slope, axis=1), 1e-300)
