"""Where training ends: the minimiser of a convex regularised loss in many dimensions,
and the capacity of a perceptron.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float, as_real, check_positive, is_concrete
from sgfbias.meanfield.parts import check_parts
from sgfbias.meanfield.precision import returned
from sgfbias.meanfield.rule import MaskedDescent
from sgfbias.meanfield.smooth import check_closed, derivatives, has_corner

NODES, DAMPING, MOST, TOLERANCE = 61, 0.5, 4000, 1e-10
NEWTON = 60


class StationaryPoint(eqx.Module):
    """The minimiser of the regularised training loss.

    - `overlap`: m = w . v / d.
    - `variance`: `|w|^2 / d - m^2`.
    - `susceptibility`: V, the trace of the inverse Hessian over d, which is the
      response of w to a constant force.
    - `loss`: the mean training loss, without the ridge.
    - `test_error`: the error on fresh examples.
    """

    overlap: Array
    variance: Array
    susceptibility: Array
    loss: Array
    test_error: Array


def stationary_point(data: Any, loss: Any, *, ridge: Any = 0.0, readout: Any = None) -> Any:
    """The minimiser of `sum_mu L(y_mu, r_mu) + lambda |w|^2/2` as d grows, for a convex
    loss.

    With `w0 = (c + sqrt(Delta) h0) m + sqrt(Delta Cp) z` and r the solution of
    `r + Delta V L'(y, r) = w0`,

        lambda m = -alpha E[(c + sqrt(Delta) h0) L'],    Cp = alpha Delta V^2 E[L'^2],
        1/V = lambda + alpha Delta E[L'' / (1 + Delta V L'')]

    which are solved by iteration with damping; averages are by Gaussian quadrature.

    **Arguments:**

    - `data`: a law of data with an isotropic covariance.
    - `loss`: a convex loss.
    - `ridge`: lambda >= 0.
    - `readout`: as in `solve`; the loss must be convex in the pre-activation.

    **Returns:** a `StationaryPoint`.

    **Raises:** `ValueError` for a spectrum that is not one number, for `|v|^2` that is
    not d, inside jit, vmap and grad, and if the iteration does not converge, as for
    separable data without a ridge.
    """
    ridge = as_real(ridge, "ridge")
    check_positive(ridge, "ridge", zero_allowed=True)
    loss, _ = check_parts(data, loss, MaskedDescent(0.1), None, readout)
    if data.directions is not None:
        raise ValueError(
            f"the stationary point is known for one output only, but {type(data).__name__} is "
            "for several: use solve with more steps"
        )
    if not is_concrete((data, loss, ridge, readout)):
        raise ValueError(
            "the stationary point is found by an iteration that stops where it has converged, and "
            "cannot be traced by jit, vmap or grad: call it outside of them, and take differences "
            "of two points for a derivative"
        )
    if not data.is_explicit:
        raise ValueError(
            "the stationary point is known for a covariance Delta I with |v|^2 = d only, and "
            f"these data have {_why_not(data)}: use solve with more steps"
        )
    with jax.enable_x64(True):
        drift, targets, weights = quadrature(data)
        has_corner(loss, readout, data.typical())
        found, change = _solve(data, loss, readout, ridge, drift, targets, weights)
        check_closed(change, "the loss or the readout")
    if not float(change) < TOLERANCE:
        raise ValueError(
            "the equations of the stationary point do not converge: without a ridge the minimiser "
            "of separable data is infinitely far away, and of a loss that is not convex there may "
            "be several; give ridge=0.1"
        )
    return returned(found)


def _why_not(data: Any) -> str:
    """What keeps data from the isotropic form."""
    bins = data.bins()
    count = bins.values.shape[0]
    if count > 1:
        return f"{count} eigenvalues"
    energy, value = float(bins.energy), float(bins.values[0])
    if data.is_teacher and value != 1:
        return f"a teacher with the eigenvalue {value:g}, which must be 1"
    if energy != 1:
        return f"|v|^2 / d = {energy:g}"
    return "a spectrum or an energy that was given as an array: give numbers"


def quadrature(data: Any) -> tuple[Array, Array, Array]:
    """Nodes of the effective examples: drifts, targets and weights, (nodes,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    if hasattr(data, "label_noise"):
        h, noise = (v.ravel() for v in np.meshgrid(nodes, nodes, indexing="ij"))
        both = np.outer(weights, weights).ravel()
        keep = both > 1e-14
        h, noise, both = h[keep], noise[keep], both[keep]
        return jnp.asarray(h), jnp.asarray(h + float(data.label_noise) * noise), jnp.asarray(both)
    if not data.has_direction:
        return jnp.zeros(2), jnp.asarray([-1.0, 1.0]), jnp.full(2, 0.5)
    centres, labels, shares = [-1.0, 1.0], [-1.0, 1.0], [0.5, 0.5]
    if data.clusters == 3:
        centres, labels, shares = [-1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [0.25, 0.5, 0.25]
    delta = math.sqrt(float(data.spectrum[0]))
    drift = np.concatenate([c + delta * nodes for c in centres])
    share = np.concatenate([s * weights for s in shares])
    return jnp.asarray(drift), jnp.repeat(jnp.asarray(labels), NODES), jnp.asarray(share)


@eqx.filter_jit
def _solve(
    data: Any,
    loss: Any,
    readout: Any,
    ridge: Array,
    drift: Array,
    targets: Array,
    weights: Array,
) -> tuple[StationaryPoint, Array]:
    """The solution, and how much it changed in the last iteration."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(NODES)
    z = jnp.asarray(nodes)
    weights = weights[:, None] * jnp.asarray(shares / shares.sum())
    flat = jnp.repeat(targets, z.shape[0])
    delta = data.bins().values[0].astype(jnp.float64)
    alpha, ridge = (v.astype(jnp.float64) for v in (data.alpha, ridge))

    def parts(r: Array) -> tuple[Array, Array, Array]:
        value, slope, curvature = derivatives(loss, readout, r.reshape(1, -1), flat)
        return value.reshape(r.shape), slope.reshape(r.shape), curvature.reshape(r.shape)

    def minimum(centre: Array, width: Array) -> Array:
        """The r with `r + width L'(r) = centre`, by Newton steps within a bracket."""
        reach = jnp.abs(width * parts(centre)[1]) + 1e-12

        def newton(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            r, low, high = state
            _, slope, curvature = parts(r)
            gap = r + width * slope - centre
            low, high = jnp.where(gap < 0, r, low), jnp.where(gap > 0, r, high)
            new = r - gap / (1 + width * jnp.maximum(curvature, 0))
            inside = (new >= low) & (new <= high)
            return jnp.where(inside, new, (low + high) / 2), low, high

        return jax.lax.fori_loop(0, NEWTON, newton, (centre, centre - reach, centre + reach))[0]

    def at(m: Array, rest: Array, v: Array) -> Array:
        return minimum(m * drift[:, None] + jnp.sqrt(delta * rest) * z, delta * v)

    def improve(state: tuple[Array, Array, Array, Array, Array]) -> Any:
        m, rest, v, _, count = state
        _, slope, curvature = parts(at(m, rest, v))
        pull = ridge * m + alpha * jnp.sum(weights * drift[:, None] * slope)
        m_new = m - v * pull if data.has_direction else m
        rest_new = alpha * delta * jnp.square(v) * jnp.sum(weights * jnp.square(slope))
        stiff = alpha * delta * jnp.sum(weights * curvature / (1 + delta * v * curvature))
        new = jnp.stack([m_new, rest_new, 1 / (ridge + stiff)])
        old = jnp.stack([m, rest, v])
        change = jnp.max(jnp.abs(new - old) / (1 + jnp.abs(new)))
        m, rest, v = old + DAMPING * (new - old)
        return m, rest, v, change, count + 1

    def goes_on(state: Any) -> Array:
        return (state[3] >= TOLERANCE) & (state[4] < MOST)

    one = jnp.ones((), jnp.float64)
    state = (0 * one, one, one, jnp.inf * one, jnp.zeros((), jnp.int32))
    m, rest, v, change, _ = jax.lax.while_loop(goes_on, improve, state)
    values, _, _ = parts(at(m, rest, v))
    variance = delta * (rest + jnp.square(m))
    error = data.test_error(m, variance, readout)
    return StationaryPoint(m, rest, v, jnp.sum(weights * values), error), change


def gardner_capacity(margin: Any) -> float:
    """The number of random patterns per dimension above which no perceptron has every
    margin above `margin`: `1 / [(1 + k^2) Phi(k) + k phi(k)]`, which is 2 at k = 0.

    **Arguments:**

    - `margin`: k >= 0.

    **Raises:** `ValueError` for a negative margin, for which the formula does not hold.

    Gardner 1988.
    """
    k = as_float(margin, "margin")
    if not (math.isfinite(k) and k >= 0):
        raise ValueError(
            f"`margin` must be at least 0, where the formula is exact, but is {margin}"
        )
    below = math.erfc(-k / math.sqrt(2)) / 2
    density = math.exp(-k * k / 2) / math.sqrt(2 * math.pi)
    return 1 / ((1 + k * k) * below + k * density)
