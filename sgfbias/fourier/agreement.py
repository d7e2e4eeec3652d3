"""How often a neuron with new weights disagrees with the old one."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.scipy.stats import norm
from jaxtyping import Array, ArrayLike, Float

from sgfbias.core.checks import as_float_array, is_concrete
from sgfbias.fourier.cube import BLOCK, halves

EXACT = 20  # the largest number of bits whose corners are enumerated for `exact`
SPLIT = 40  # the largest number of bits for `bound`, which sorts 2^(d/2) half sums
# The Gaussian integral: panels of so many Gauss-Legendre nodes, over a range outside of
# which the integrand is below exp(-38).
PANELS, NODES, REACH = 40, 16, 38.0


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
    old, new = as_float_array(w, "w"), as_float_array(v, "v")
    if old.ndim != 1 or old.shape != new.shape:
        raise ValueError(
            "w and v must be two vectors of one length, but have the shapes "
            f"{old.shape} and {new.shape}; use jax.vmap for many neurons"
        )
    dtype = jnp.promote_types(old.dtype, new.dtype)
    old, new, a, b = (jnp.asarray(x).astype(dtype) for x in (old, new, bias, new_bias))
    concrete = is_concrete((old, new))
    for name, weights in (("w", old), ("v", new)):
        if concrete and not np.any(weights):
            raise ValueError(
                f"{name} must have a weight other than 0: the label of a neuron without weights "
                "does not depend on its inputs"
            )
    d = old.size
    bound = _bound(old, new, a, b) if d <= SPLIT else None
    if bound is not None and is_concrete(bound) and bool(jnp.isnan(bound)):
        bound = None
    return Disagreement(
        _gaussian(old, new, a, b), bound, _exact(old, new, a, b) if d <= EXACT else None
    )


@jax.jit
def _gaussian(w: Array, v: Array, bias: Array, new_bias: Array) -> Array:
    """`|Phi(a) - Phi(b)| + (1/pi) int_0^angle exp(-q(s)) ds` with the angle between w
    and v and `q = (a - b)^2 / (8 sin^2(s/2)) + (a + b)^2 / (8 cos^2(s/2))`.

    This is the integral of Phi_2 over the correlation, from its value at rho = 1, where
    the difference of probabilities that are nearly equal would lose digits. With
    `y = log tan(s/2)` the integrand is `exp(-q) / cosh(y)`, smooth on the scale 1
    whatever the thresholds.
    """
    left, right = w / jnp.linalg.norm(w), v / jnp.linalg.norm(v)
    a, b = bias / jnp.linalg.norm(w), new_bias / jnp.linalg.norm(v)
    with_v, against = jnp.linalg.norm(left - right), jnp.linalg.norm(left + right)
    top = jnp.clip(jnp.log(with_v) - jnp.log(against), -REACH, REACH)
    width = (top - jnp.minimum(top, 0) + REACH) / PANELS
    at, size = (jnp.asarray(x, w.dtype) for x in np.polynomial.legendre.leggauss(NODES))
    y = (top - width * (jnp.arange(PANELS).astype(w.dtype)[:, None] + (1 - at) / 2)).ravel()

    def part(threshold: Array, y: Array) -> Array:
        """`threshold^2 (1 + exp(2 y)) / 8`, also where one factor overflows."""
        log = 2 * jnp.log(jnp.abs(threshold))
        return (jnp.exp(log) + jnp.exp(log + 2 * y)) / 8

    integrand = jnp.exp(-part(a - b, -y) - part(a + b, y)) / jnp.cosh(y)
    integral = width / 2 * jnp.sum(jnp.tile(size, PANELS) * integrand)
    return jnp.abs(norm.cdf(a) - norm.cdf(b)) + integral / jnp.pi


@jax.jit
def _exact(w: Array, v: Array, bias: Array, new_bias: Array) -> Array:
    """The fraction of the 2^d inputs on which the labels differ."""
    first, second = halves(jnp.stack([w, v]))

    def differing(z: Array) -> Array:
        old, new = (second + z + jnp.stack([bias, new_bias])).T >= 0
        return jnp.mean((old != new).astype(w.dtype))

    return jnp.mean(jax.lax.map(differing, first, batch_size=max(1, BLOCK // second.size)))


@jax.jit
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
    mean = jnp.sum(value * mass)
    # What rounding may have taken from the gap is added, so that the bound still holds.
    lost = 16 * d * jnp.finfo(w.dtype).eps * mean
    gap = jnp.maximum(mean - _alignment(w, bias, sign, theta), 0) + lost
    # Atoms are taken whole while they fit, then a part of the next one.
    cost = 2 * value * mass
    before = jnp.cumsum(cost) - cost
    part = (gap - before) / jnp.maximum(cost, jnp.finfo(w.dtype).tiny)
    taken = mass * jnp.clip(jnp.where(before + cost <= gap, 1, part), 0, 1)
    return jnp.where(defined, jnp.minimum(jnp.sum(taken), 1), jnp.nan)


def _alignment(w: Array, bias: Array, s: Array, theta: Array) -> Array:
    """`E[sgn(w.x + bias) (s.x - theta)]`, exactly.

    For every corner of half of the bits, the corners of the other half with a positive
    label are those above a threshold, so sorting 2^(d/2) half sums replaces 2^d inputs.
    """
    first, second = halves(jnp.stack([w, s]))
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
