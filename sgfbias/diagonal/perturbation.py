r"""How the selected solution moves when its reference point is perturbed: derivatives of `select` in the offset, in closed form.

`beta = 2 alpha^2 sinh(4 X^T nu + offset)` with `X beta = y`. An offset moves it by `d beta = T D d offset`, `D = diag(xi)`,
`xi = sqrt(beta^2 + 4 alpha^4)`, where `T = I - D X^T (X D X^T)^+ X` keeps the part that leaves the predictions alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.diagonal.certificate import solve_psd
from sgfbias.diagonal.potential import u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select


class Response(NamedTuple):
    """Derivatives at offset 0.

    - `beta` (d,): the selected solution. `tangent` (d, d): T, the part of a motion that leaves the predictions alone; an offset moves beta by
      `T (xi * d offset)`, log alpha by `T (2 beta * d log alpha)`. `jacobian` (d, d): of beta in the offset.
    - `spread`: `|jacobian|_F^2`, what `E|d beta|^2` is per unit of variance of an isotropic offset.
    - `gradient` (d,), `laplacian`: of the squared error `|beta - beta*|^2` in the offset. `shrinkage`: its derivative in log alpha, all
      coordinates alike.
    """

    beta: Array
    tangent: Array
    jacobian: Array
    spread: Array
    gradient: Array
    laplacian: Array
    shrinkage: Array


def response(problem: SparseRegression, log_alpha: Float[Array, " d"]) -> Response:
    """First and second derivatives of the selected solution and its squared error in the offset, at offset 0; unbatched, `jax.vmap`-able.

    **Raises:** `ValueError` as `select`, and for a problem without `beta_star`.
    """
    if problem.beta_star is None:
        raise ValueError("the error of a selected solution needs `beta_star`; this problem has none")
    X, beta = problem.X, select(problem, log_alpha).beta
    xi = xi_from(log_alpha, u_from(beta, log_alpha))
    weighted = X * xi[None]
    T = jnp.eye(problem.d, dtype=problem.dtype) - weighted.T @ solve_psd(weighted @ X.T, X)
    jacobian = T * xi[None]
    away = beta - problem.beta_star
    # u moves by T^T d offset, so that sum over directions of beta (du)^2 is beta times the squared column norms of T.
    curved = T @ (beta * jnp.sum(jnp.square(T), axis=0))
    spread = jnp.sum(jnp.square(jacobian))
    return Response(beta, T, jacobian, spread, 2 * (away @ jacobian), 2 * (spread + away @ curved), 4 * (away @ (T @ beta)))
