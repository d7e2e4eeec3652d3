"""The effective initialisation at the end of a path, computed from its loss integrals,
and the error in it that Euler's scheme makes in the weights.

Noise shrinks `alpha^2 = w_+ w_-` along the path, and the iterate converges to the limit
of gradient flow from the shrunk alpha (Pesme, Pillaud-Vivien, Flammarion 2021, theorem
1). All losses are `1/4 mean_i r_i^2`. The argument `log_alpha` is the value at the
start, a scalar, (d,) or (seeds, d).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.diagonal.potential import potential
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.selection import select


def mean_loss_law(
    problem: SparseRegression, log_alpha: Any, step_size: Any, integral: Float[Array, " seeds"]
) -> Float[Array, "seeds d"]:
    """`log alpha - 2 gamma h int L`, where `h` is the diagonal of `X^T X / n`: theorem
    1 of Pesme et al. 2021, exact for the flow with mean-loss noise.

    **Arguments:**

    - `log_alpha`: a scalar, (d,) or (seeds, d). The value at the start.
    - `step_size`: gamma.
    - `integral`: (seeds,). `int L` of every seed.
    """
    return log_alpha - 2 * step_size * integral[:, None] * problem.h


def per_sample_law(
    problem: SparseRegression, log_alpha: Any, step_size: Any, integrals: Float[Array, "seeds n"]
) -> Float[Array, "seeds d"]:
    """`log alpha - (2 gamma / n) (X^2)^T int l`: the counterpart of `mean_loss_law` for
    the noise of single examples, valid to first order in gamma (Even et al. 2023).

    **Arguments:**

    - `log_alpha`: a scalar, (d,) or (seeds, d). The value at the start.
    - `step_size`: gamma.
    - `integrals`: (seeds, n). `int l_i = int r_i^2 / 4` of every example.
    """
    return log_alpha - 2 * step_size / problem.n * (integrals @ jnp.square(problem.X))


def gradient_flow_integral(
    problem: SparseRegression, log_alpha: Float[Array, " d"]
) -> Float[Array, ""]:
    """`int L = [phi(beta_inf) - phi(0)] / 2` of gradient flow from `log_alpha` (Pesme
    et al. 2021, section 4, where the factor 1/2 is not printed).
    """
    chosen = select(problem, log_alpha).beta
    return (potential(chosen, log_alpha) - potential(jnp.zeros_like(chosen), log_alpha)) / 2


def euler_scatter(
    loss: Float[Array, "seeds times"], *, step_size: float, dt: float, spacing: float
) -> Float[Array, " seeds"]:
    """The root mean square over the noise, (seeds,), by which Euler's scheme in the
    weights misses `2 log alpha - 4 gamma h int L`, divided by h.

    A step multiplies `w_+ w_-` by `1 - a^2`, where a is normal with variance
    `4 gamma h L dt` to first order. The standard deviation of `a^2` is sqrt 2 times
    this variance. The squares of these deviations add up over the steps to
    `2 dt (4 gamma h)^2 int L^2`.

    **Arguments:**

    - `loss`: (seeds, times). The loss at the beginnings of intervals of flow time
      `spacing`.
    - `step_size`: gamma.
    - `dt`: flow time per step of the scheme.
    - `spacing`: flow time between two recorded losses.
    """
    return jnp.sqrt(2 * dt * jnp.sum(jnp.square(4 * step_size * loss), axis=1) * spacing)
