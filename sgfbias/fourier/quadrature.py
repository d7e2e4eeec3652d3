"""`E[tanh(c (w.x + b)) x_i]` for independent bits, in any dimension, as one integral.

    tanh(z/2) = 2 int_0^inf sin(z u) / sinh(pi u) du

turns the mean over 2^d inputs into an integral over u of a product of d characteristic
functions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.fourier.cube import BLOCK

# The part of the integral beyond END is below 2 int_END^inf du / sinh(pi u) = 6e-17.
END = 12.0
NODES = 40
# A panel of width h has 40 nodes. Two things limit h. The integrand has frequencies up
# to F = |w|_1 + |b|: Gauss-Legendre with n nodes integrates exp(i t x), -1 < x < 1,
# with an error of about 2 J_2n(t), below 1e-20 for t = F h / 2 = 30 and n = 40. And
# 1/sinh(pi u) has its nearest poles at u = -i and i. The error is below a multiple of
# rho^(-80) exp(F y), where rho > 1 belongs to an ellipse with these poles outside, and
# y < 1 is its half height: for h = 1.5, F h = 60 and rho = 3 this is 1e-21.
TURNS, WIDEST = 60.0, 1.5


def tanh_moments(
    weight: Float[Array, "m d"],
    bias: Float[Array, " m"],
    means: Float[Array, " d"],
) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
    """`E[tanh((w.x + b)/2) x_i]` and `E[tanh((w.x + b)/2)]`, to rounding.

    With `A_j = cos(w_j u) + i m_j sin(w_j u)` and `B_j = m_j cos(w_j u) + i sin(w_j u)`
    they are `2 int Im{exp(i b u) B_i prod_{j != i} A_j} du / sinh(pi u)` and the same
    integral of all A_j. Products without one factor are products of a prefix and a
    suffix, never quotients, because cosines have zeros.

    The interval (0, 12] has equal panels of 40 Gauss-Legendre nodes: at least 8, and
    enough that no panel is wider than `60 / (|w|_1 + |b|)`. The cost is
    `O(nodes m d)`, and about two million numbers are held at once, or 40 d if this is
    more.

    **Arguments:**

    - `weight`: (m, d). One neuron in each row.
    - `bias`: (m,).
    - `means`: (d,). The mean of every bit; bits are independent.

    **Returns:** arrays (m, d) and (m,).
    """
    d = weight.shape[1]
    nodes, sizes = np.polynomial.legendre.leggauss(NODES)
    at, size = (jnp.asarray(v, weight.dtype) for v in ((nodes + 1) / 2, sizes / 2))

    def neuron(w: Array, b: Array) -> tuple[Array, Array]:
        frequency = jnp.sum(jnp.abs(w)) + jnp.abs(b)
        # Weights that are not finite give NaN, not an endless loop.
        wanted = jnp.where(jnp.isfinite(frequency), END * frequency / TURNS, 0.0)
        count = jnp.maximum(jnp.ceil(wanted), END / WIDEST).astype(int)
        width = END / count.astype(w.dtype)

        def panel(k: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            u = width * (k.astype(w.dtype) + at)
            kernel = 2 * width * size / jnp.sinh(jnp.pi * u)
            bits, whole = _leave_one_out(w, b, means, u)
            return sums[0] + bits @ kernel, sums[1] + whole @ kernel

        start = (jnp.zeros_like(w), jnp.zeros_like(b))
        return jax.lax.fori_loop(0, count, panel, start)

    batch = max(1, min(weight.shape[0], BLOCK // (8 * NODES * d)))
    return jax.lax.map(lambda pair: neuron(*pair), (weight, bias), batch_size=batch)


def _leave_one_out(w: Array, b: Array, means: Array, u: Array) -> tuple[Array, Array]:
    """`Im{exp(i b u) B_i prod_{j != i} A_j}` and `Im{exp(i b u) prod_j A_j}` at u.

    **Returns:** arrays (d, nodes) and (nodes,).
    """
    phase = jax.lax.complex(jnp.cos(b * u), jnp.sin(b * u))

    def factors(bit: tuple[Array, Array]) -> tuple[Array, Array]:
        cosine, sine = jnp.cos(bit[0] * u), jnp.sin(bit[0] * u)
        return jax.lax.complex(cosine, bit[1] * sine), jax.lax.complex(bit[1] * cosine, sine)

    a, other = jax.vmap(factors)((w, means))
    whole, prefix = jax.lax.scan(lambda before, v: (before * v, before), phase, a)
    _, out = jax.lax.scan(
        lambda after, v: (after * v[0], jnp.imag(v[1] * v[2] * after)),
        jnp.ones_like(phase),
        (a, prefix, other),
        reverse=True,
    )
    return out, jnp.imag(whole)
