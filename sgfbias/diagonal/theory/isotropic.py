"""The effects of isotropic noise on alpha, on theorem 1 and on the error.

The gradient carries the noise `sigma sqrt(gamma mean|l'|^2) dB'` in addition to SGD's
own. The weights `w_+-` gain `+-2 sigma sqrt(gamma L) w_+- dB'`, so alpha shrinks more
than without it. The dual variable `arcsinh(beta / 2 alpha^2)` gains
`4 sigma sqrt(gamma L) dB'`; the part of this outside the row space of X breaks the
theorem. The noise is that of Sander, Sylvestre, Durmus 2024; its strength is derived
here, by Itô's formula.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.diagonal.potential import u_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.certificate import row_space
from sgfbias.diagonal.theory.perturbation import Response


def noisy_law(
    problem: SparseRegression,
    log_alpha: Float[Array, " d"],
    step_size: float,
    sigma: float,
    integral: Array,
) -> Array:
    """`log alpha - 2 gamma (h + sigma^2) int L`, shape (seeds, d): exact for mean-loss
    and isotropic noise together.

    **Arguments:**

    - `log_alpha`: (d,). The value at the start.
    - `step_size`: gamma.
    - `sigma`: the strength of the isotropic noise.
    - `integral`: (seeds,). `int L` of every seed.
    """
    return log_alpha[None] - 2 * step_size * (problem.h + sigma**2)[None] * integral[:, None]


def residual_square(
    problem: SparseRegression, beta: Float[Array, "seeds d"], log_alpha: Float[Array, "seeds d"]
) -> Float[Array, " seeds"]:
    """`|(I - P) arcsinh(beta / 2 alpha^2)|^2`, shape (seeds,), where P is the projector
    on the row space of X. It is 0 where theorem 1 of Pesme et al. 2021 holds.
    """
    u, basis = u_from(beta, log_alpha), row_space(problem.X)
    return jnp.sum(jnp.square(u - (u @ basis.T) @ basis), axis=1)


def mean_residual_square(outside: int, step_size: float, sigma: Any, integral: Any) -> Any:
    """`16 (d - rank X) gamma sigma^2 int L`, the mean of `residual_square` over the
    noise; `outside` is `d - rank X`.
    """
    return 16 * outside * step_size * sigma**2 * integral


def balance(at: Response) -> tuple[Array, Array]:
    """The error that the perturbation of the reference point adds, and the error that
    the smaller alpha removes, each per `2 gamma sigma^2 int L` and to first order in
    it.
    """
    return 4 * at.laplacian, at.shrinkage
