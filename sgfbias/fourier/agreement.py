"""How often a neuron with new weights disagrees with the old one."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.scipy.stats import norm
from jaxtyping import Array, ArrayLike, Float

from sgfbias.fourier.cube import BLOCK, halves

EXACT = 20  # the largest number of bits whose corners are enumerated for `exact`
SPLIT = 40  # the largest number of bits for `bound`, which sorts 2^(d/2) half sums
NODES = 128


class Disagreement(eqx.Module):
    """How often two neurons disagree. Made by `disagreement`.

    - `gaussian`: the probability if w.x and v.x were jointly normal.
    - `bound`: a number that the probability never exceeds; None where it is not
      defined.
    - `exact`: the probability, by enumeration; None above 20 bits.
    """

    gaussian: Float[Array, ""]
    bound: Float[Array, ""] | None
    exact: Float[Array, ""] | None


def disagreement(
    w: Float[ArrayLike, " d"],
    v: Float[ArrayLike, " d"],
    bias: Float[ArrayLike, ""] = 0.0,
    new_bias: Float[ArrayLike, ""] = 0.0,
) -> Disagreement:
    """The probability that `sgn(w.x + bias)` and `sgn(v.x + new_bias)` differ, for
    independent unbiased bits x and sgn(0) = +1.

    The Gaussian value is `arccos(rho)/pi` with the cosine rho of w and v if both biases
    are 0, and in general `Phi(a) + Phi(b) - 2 Phi_2(a, b; rho)` with a = bias/|w|,
    b = new_bias/|v|. It is not a bound: one large weight exceeds it.

    The bound holds for every w. It is defined where v is c sgn(w) with c > 0. With
    s = sgn(w), theta = -new_bias/c, `Y = |s.x - theta|` and the old labels tau,

        E Y - E[tau (s.x - theta)] = E[2 Y 1{the labels differ}],

    so the labels differ with at most the largest probability that the smallest values
    of Y can have while their mean is that of the left side.

    **Arguments:**

    - `w`, `v`: (d,). The old and the new weights.
    - `bias`, `new_bias`: the biases, minus the thresholds.

    **Returns:** a `Disagreement`. Where the bound is not defined it is None, and NaN if
    v is traced. It needs at most 40 bits, the exact value at most 20.

    **Raises:** `ValueError` if w and v are not two vectors of one length, or if one of
    them is known to be zero.

    Sheppard's formula and the correlation of half spaces: Raviv et al. 2021, section
    4. The bound is our own.
    """
    dtype = jnp.result_type(float, *(jnp.asarray(a).dtype for a in (w, v)))
    if jnp.ndim(w) != 1 or jnp.shape(w) != jnp.shape(v):
        raise ValueError(
            "w and v must be two vectors of one length, but have the shapes "
            f"{jnp.shape(w)} and {jnp.shape(v)}; use jax.vmap for many neurons"
        )
    old, new, a, b = (jnp.asarray(x, dtype) for x in (w, v, bias, new_bias))
    concrete = not any(isinstance(x, jax.core.Tracer) for x in (old, new))
    for name, weights in (("w", old), ("v", new)):
        if concrete and not np.any(weights):
            raise ValueError(
                f"{name} must have a weight other than 0: the label of a neuron without weights "
                "does not depend on its inputs"
            )
    d = old.size
    bound = _bound(old, new, a, b) if d <= SPLIT else None
    if bound is not None and concrete and bool(jnp.isnan(bound)):
        bound = None
    return Disagreement(
        _gaussian(old, new, a, b), bound, _exact(old, new, a, b) if d <= EXACT else None
    )


def _gaussian(w: Array, v: Array, bias: Array, new_bias: Array) -> Array:
    """`|Phi(a) - Phi(b)| + (1/pi) int_0^arccos(rho) exp(-q(s)) ds` with
    `q = (a - b)^2 / (8 sin^2(s/2)) + (a + b)^2 / (8 cos^2(s/2))`.

    This is the integral of Phi_2 over the correlation, from its value at rho = 1, where
    the difference of probabilities that are nearly equal would lose digits.
    """
    left, right = w / jnp.linalg.norm(w), v / jnp.linalg.norm(v)
    a, b = bias / jnp.linalg.norm(w), new_bias / jnp.linalg.norm(v)
    # The angle between two unit vectors, accurate near 0 and near pi.
    angle = 2 * jnp.arctan2(jnp.linalg.norm(left - right), jnp.linalg.norm(left + right))
    at, size = (jnp.asarray(x, w.dtype) for x in np.polynomial.legendre.leggauss(NODES))
    half = angle * (at + 1) / 4
    tiny = jnp.finfo(w.dtype).tiny
    exponent = (a - b) ** 2 / (8 * jnp.sin(half) ** 2 + tiny) + (a + b) ** 2 / (
        8 * jnp.cos(half) ** 2 + tiny
    )
    integral = angle / 2 * jnp.sum(size * jnp.exp(-exponent))
    return jnp.abs(norm.cdf(a) - norm.cdf(b)) + integral / jnp.pi


def _exact(w: Array, v: Array, bias: Array, new_bias: Array) -> Array:
    """The fraction of the 2^d inputs on which the labels differ."""
    high, low, first, second = halves(jnp.stack([w, v]))

    def differing(z: Array) -> Array:
        old, new = (second + z + jnp.stack([bias, new_bias])).T >= 0
        return jnp.mean((old != new).astype(w.dtype))

    return jnp.mean(jax.lax.map(differing, first, batch_size=max(1, BLOCK // second.size)))


def _bound(w: Array, v: Array, bias: Array, new_bias: Array) -> Array:
    """The largest mass of the smallest values of Y whose mean 2 Y is the gap; NaN
    unless v is c sgn(w) with c > 0.
    """
    d, sign, c = w.size, jnp.sign(w), jnp.max(jnp.abs(v))
    defined = jnp.all(jnp.abs(v - c * sign) <= 8 * jnp.finfo(w.dtype).eps * c)
    theta = -new_bias / c
    # s.x is count - 2 k with a binomial probability, for k up to the number of bits
    # that have a weight.
    count, k = jnp.sum(jnp.abs(sign)), jnp.arange(d + 1).astype(w.dtype)
    log_mass = gammaln(count + 1) - gammaln(k + 1) - gammaln(jnp.maximum(count - k, 0) + 1)
    mass = jnp.where(k <= count, jnp.exp(log_mass - count * jnp.log(2.0).astype(w.dtype)), 0)
    value = jnp.abs(count - 2 * k - theta)
    order = jnp.argsort(value)
    value, mass = value[order], mass[order]
    gap = jnp.sum(value * mass) - _alignment(w, bias, sign, theta)
    # Atoms are taken whole while they fit, then a part of the next one.
    spent = jnp.cumsum(2 * value * mass)
    left = jnp.maximum(gap - (spent - 2 * value * mass), 0)
    taken = jnp.where(spent <= gap, mass, jnp.minimum(mass, left / jnp.maximum(2 * value, 1e-30)))
    # Without a gap no value above 0 has room, but those that are 0 do.
    taken = jnp.where(value == 0, mass, taken)
    return jnp.where(defined, jnp.minimum(jnp.sum(taken), 1), jnp.nan)


def _alignment(w: Array, bias: Array, s: Array, theta: Array) -> Array:
    """`E[sgn(w.x + bias) (s.x - theta)]`, exactly: for every corner of half of the bits,
    the corners of the other half with a positive label are those above a threshold, so
    sorting 2^(d/2) half sums replaces 2^d inputs.
    """
    high, low, first, second = halves(jnp.stack([w, s]))
    order = jnp.argsort(second[:, 0])
    z, values = second[order].T
    # Sums of the values at and after each place.
    after = jnp.concatenate([jnp.cumsum(values[::-1])[::-1], jnp.zeros(1, w.dtype)])
    total, n = values.sum(), z.size
    place = jnp.searchsorted(z, -(first[:, 0] + bias), side="left")
    positive, above = (n - place).astype(w.dtype), after[place]
    label_sum = 2 * positive - n
    aligned = (first[:, 1] - theta) * label_sum + 2 * above - total
    return jnp.mean(aligned) / n
