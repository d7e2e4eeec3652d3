"""A bound, from its residual, on the distance of an iterate from the solution that its
own log alpha selects. The bound is violated where the theory fails.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.diagonal.potential import u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.certificate import Selection


@jax.jit
def residual_bound(
    problem: SparseRegression,
    log_alpha: Float[Array, "seeds d"],
    beta: Float[Array, "seeds d"],
    chosen: Selection,
) -> tuple[Float[Array, " seeds"], Float[Array, " seeds"]]:
    """The distances of iterates from solutions in the metric of phi's Hessian, and the
    bounds on them that follow from the residuals if the theory is right.

    With `u_T = 4 X^T nu_T` (Pesme, Pillaud-Vivien, Flammarion 2021, lemma 1) the
    symmetric Bregman divergence is `<nu_T - nu_L, r_T>`. By convexity, coordinate by
    coordinate, it is at least `sum (beta_L - beta_T)^2 / (4 max xi)`.

    **Arguments:**

    - `log_alpha`: (seeds, d). The effective initialisation of every iterate.
    - `beta`: (seeds, d). The iterates beta_T.
    - `chosen`: the solutions beta_L with their multipliers (seeds, n).

    **Returns:** the distances (seeds,) and the bounds (seeds,).
    """
    u = u_from(beta, log_alpha)
    nu = jnp.linalg.lstsq(problem.X.T, u.T / 4)[0].T
    residual = beta @ problem.X.T - problem.y[None]
    bound = jnp.sqrt(jnp.abs(jnp.sum((chosen.multipliers - nu) * residual, axis=1)))
    xi = jnp.maximum(xi_from(log_alpha, u), xi_from(log_alpha, u_from(chosen.beta, log_alpha)))
    return jnp.sqrt(jnp.sum(jnp.square(chosen.beta - beta) / (4 * xi), axis=1)), bound
