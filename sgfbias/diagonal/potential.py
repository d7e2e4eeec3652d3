r"""The hyperbolic entropy, its dual and its Bregman divergence, everything in log alpha.

$\phi_\alpha(\beta) = \frac14 \sum_i [\beta_i \operatorname{arcsinh}(\beta_i / 2\alpha_i^2) - \sqrt{\beta_i^2 + 4\alpha_i^4}]$
(Woodworth et al. 2020; Pesme, Pillaud-Vivien, Flammarion 2021, section 3.2). The dual variable is `z = grad phi`, and
`u = 4 z = log(w_+ / w_-)`. alpha itself never appears: label noise takes it to e^-2000.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# sinh(x) / x = 1 + x^2/6 (1 + x^2/20 (1 + ...)), innermost first; what is left out is below 1e-16 of it for |x| < 1/2.
SINH_SERIES = tuple(1 / (2 * k * (2 * k + 1)) for k in range(6, 0, -1))


@jax.custom_jvp
def beta_from(log_alpha: Float[Array, "*#batch d"], u: Float[Array, "*#batch d"]) -> Float[Array, "*#batch d"]:
    """`beta = 2 alpha^2 sinh(u)`, coordinate-wise.

    Written as `sign(u) exp(2 log alpha + |u|) (1 - exp(-2|u|))`: no overflow at small alpha. At small u, where the bracket cancels, it is
    `2 exp(-|u|) sinh|u|` by its series, to rounding; this is the inner loop of every run, and `expm1` would take half of it.
    """
    size = jnp.abs(u)
    decay, square = jnp.exp(-size), jnp.square(size)
    series = jnp.ones_like(size)
    for ratio in SINH_SERIES:
        series = 1 + square * ratio * series
    bracket = jnp.where(size < 0.5, 2 * size * decay * series, (1 - decay) * (1 + decay))
    return jnp.sign(u) * jnp.exp(2 * log_alpha + size) * bracket


@jax.custom_jvp
def xi_from(log_alpha: Float[Array, "*#batch d"], u: Float[Array, "*#batch d"]) -> Float[Array, "*#batch d"]:
    """`xi = w_+^2 + w_-^2 = 2 alpha^2 cosh(u) = sqrt(beta^2 + 4 alpha^4)`, coordinate-wise."""
    size = jnp.abs(u)
    return jnp.exp(2 * log_alpha + size) * (1 + jnp.exp(-2 * size))


# |u| and sign(u) have no derivative at u = 0, where every run starts; the functions do, and it is each other.
@beta_from.defjvp
def _(primals, tangents):
    (log_alpha, u), (dlog_alpha, du) = primals, tangents
    beta = beta_from(log_alpha, u)
    return beta, 2 * beta * dlog_alpha + xi_from(log_alpha, u) * du


@xi_from.defjvp
def _(primals, tangents):
    (log_alpha, u), (dlog_alpha, du) = primals, tangents
    xi = xi_from(log_alpha, u)
    return xi, 2 * xi * dlog_alpha + beta_from(log_alpha, u) * du


def u_from(beta: Float[Array, "*#batch d"], log_alpha: Float[Array, "*#batch d"]) -> Float[Array, "*#batch d"]:
    """`u = arcsinh(beta / 2 alpha^2)`, the inverse of `beta_from` in u, without forming `beta / alpha^2`.

    `log(b + sqrt(b^2 + 4 alpha^4)) - log(2 alpha^2)` for b = |beta| where that is large, arcsinh itself elsewhere.
    """
    size = jnp.abs(beta)
    log_ratio = jnp.log(jnp.where(size > 0, size, 1)) - 2 * log_alpha - jnp.log(2.0).astype(size.dtype)
    tame = jnp.where(size > 0, jnp.minimum(log_ratio, 10.0), -jnp.inf)
    small = jnp.arcsinh(jnp.exp(tame))
    # arcsinh(x) = log(2x) + log((1 + sqrt(1 + x^-2)) / 2)
    tail = jnp.exp(-2 * jnp.maximum(log_ratio, 1.0))
    large = log_ratio + jnp.log1p(jnp.sqrt(1 + tail))
    return jnp.sign(beta) * jnp.where((log_ratio > 5) & (size > 0), large, small)


def potential(beta: Float[Array, "*#batch d"], log_alpha: Float[Array, "*#batch d"]) -> Float[Array, ""]:
    """`phi_alpha(beta)`, a scalar. As alpha -> 0 it behaves as `1/2 log(1/alpha) |beta|_1`."""
    u = u_from(beta, log_alpha)
    return jnp.sum(beta * u - xi_from(log_alpha, u)) / 4


def potential_gradient(beta: Float[Array, "*#batch d"], log_alpha: Float[Array, "*#batch d"]) -> Float[Array, "*#batch d"]:
    """`grad phi_alpha(beta) = arcsinh(beta / 2 alpha^2) / 4`, shape (d,)."""
    return u_from(beta, log_alpha) / 4


def potential_hessian(beta: Float[Array, "*#batch d"], log_alpha: Float[Array, "*#batch d"]) -> Float[Array, "*#batch d"]:
    """Diagonal of the Hessian, `1 / (4 sqrt(beta^2 + 4 alpha^4))`, shape (d,)."""
    return 1 / (4 * xi_from(log_alpha, u_from(beta, log_alpha)))


def dual_potential(z: Float[Array, "*#batch d"], log_alpha: Float[Array, "*#batch d"]) -> Float[Array, ""]:
    """`phi*_alpha(z) = 1/2 sum alpha_i^2 cosh(4 z_i)`, the convex conjugate; its gradient is `beta`."""
    return jnp.sum(xi_from(log_alpha, 4 * z)) / 4


def bregman(beta: Float[Array, "*#batch d"], other: Float[Array, "*#batch d"], log_alpha: Float[Array, "*#batch d"]) -> Float[Array, ""]:
    """`D_phi(beta, other) = phi(beta) - phi(other) - <grad phi(other), beta - other> >= 0`.

    Summed as `1/4 sum [beta (u - u') - (xi - xi')]`, which cancels less than the definition.
    """
    u, v = u_from(beta, log_alpha), u_from(other, log_alpha)
    terms = beta * (u - v) - (xi_from(log_alpha, u) - xi_from(log_alpha, v))
    return jnp.maximum(jnp.sum(terms) / 4, 0)
