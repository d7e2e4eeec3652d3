"""The change of the selected solution when its reference point is perturbed:
derivatives of `select` in the offset, in closed form.

`beta = 2 alpha^2 sinh(4 X^T nu + offset)` with `X beta = y`. A change of the offset
moves beta by `d beta = T D d offset`, where `D = diag(xi)`,
`xi = sqrt(beta^2 + 4 alpha^4)`. The projector `T = I - D X^T (X D X^T)^+ X` keeps the
part of a motion that does not change the predictions.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.diagonal.potential import u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.certificate import solve_psd
from sgfbias.diagonal.theory.selection import select


class Response(NamedTuple):
    """Derivatives of the selected solution and of its squared error `|beta - beta*|^2`,
    at offset 0.

    - `beta`: (d,). The selected solution.
    - `tangent`: (d, d). The projector T, the part of a motion that does not change the
      predictions. A change of the offset moves beta by `T (xi * d offset)`, a change of
      log alpha by `T (2 beta * d log alpha)`.
    - `jacobian`: (d, d). The derivative of beta in the offset.
    - `spread`: `|jacobian|_F^2`, which is `E|d beta|^2` per unit of variance of an
      isotropic offset.
    - `gradient`: (d,). The gradient of the squared error in the offset.
    - `laplacian`: the Laplacian of the squared error in the offset.
    - `shrinkage`: the derivative of the squared error when all coordinates of log alpha
      change by the same amount.
    """

    beta: Array
    tangent: Array
    jacobian: Array
    spread: Array
    gradient: Array
    laplacian: Array
    shrinkage: Array


def response(problem: SparseRegression, log_alpha: Float[Array, " d"]) -> Response:
    """First and second derivatives of the selected solution and its squared error in
    the offset, at offset 0.

    It takes one initialisation `log_alpha` (d,); use `response_many` or `jax.vmap` for
    several.

    **Raises:** `ValueError` as `select` does, and for a problem without `beta_star`.
    """
    if problem.beta_star is None:
        raise ValueError(
            "the error of a selected solution needs `beta_star`; this problem has none"
        )
    X, beta = problem.X, select(problem, log_alpha).beta
    xi = xi_from(log_alpha, u_from(beta, log_alpha))
    weighted = X * xi[None]
    T = jnp.eye(problem.d, dtype=problem.dtype) - weighted.T @ solve_psd(weighted @ X.T, X)
    jacobian = T * xi[None]
    away = beta - problem.beta_star
    # u moves by T^T d offset. Summed over the directions of the offset, beta (du)^2 is
    # therefore beta times the squared column norms of T.
    curved = T @ (beta * jnp.sum(jnp.square(T), axis=0))
    spread = jnp.sum(jnp.square(jacobian))
    return Response(
        beta,
        T,
        jacobian,
        spread,
        2 * (away @ jacobian),
        2 * (spread + away @ curved),
        4 * (away @ (T @ beta)),
    )


@eqx.filter_jit
def response_many(problem: SparseRegression, log_alpha: Float[Array, "seeds d"]) -> Response:
    """`response` at many initialisations (seeds, d). Each field of the result gains a
    leading axis.

    **Raises:** `ValueError` as `response` does.
    """
    return jax.vmap(lambda each: response(problem, each))(log_alpha)
