"""The selected solutions of many problems at once, each with its own data."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sgfbias.core.tiles import tile_map
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.selection import select


def select_each(
    X: Any, y: Any, log_alpha: Any, offset: Any = None, *, depth: int = 2
) -> tuple[Float[np.ndarray, "m d"], Bool[np.ndarray, " m"]]:
    """The solutions of `select` for m problems, in tiles and in float64, and whether
    each was found to the default tolerance of `select`.

    A problem whose log_alpha or offset is not finite has no solution, and its row is
    meaningless.

    **Arguments:**

    - `X`: (m, n, d). The inputs.
    - `y`: (m, n). The targets.
    - `log_alpha`: (m,) or (m, d). The effective initialisations.
    - `offset`: (m, d). The default is 0.
    - `depth`: of all networks.

    **Returns:** the solutions (m, d), and whether they converged (m,).
    """
    own = [np.asarray(value, np.float64) for value in (log_alpha, offset) if value is not None]
    usable = np.all(
        [np.isfinite(value).reshape(len(value), -1).all(axis=1) for value in own], axis=0
    )
    safe = [np.where(usable.reshape(-1, *(1,) * (value.ndim - 1)), value, 0.0) for value in own]
    lanes = tuple(jnp.asarray(value, jnp.float64) for value in (X, y, *safe))
    beta, converged = tile_map(lambda tile: _select_tile(tile, depth), lanes)
    return np.asarray(beta), usable & np.asarray(converged)


@eqx.filter_jit
def _select_tile(lanes: tuple[Array, ...], depth: int) -> tuple[Array, Array]:
    def one(X: Array, y: Array, log_alpha: Array, offset: Any = 0.0) -> tuple[Array, Array]:
        found = select(SparseRegression(X, y), log_alpha, offset=offset, depth=depth)
        return found.beta, found.converged

    return jax.vmap(one)(*lanes)
