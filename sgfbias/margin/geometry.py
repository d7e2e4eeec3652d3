"""Norms, their duals, and how far a direction is from stationary in each geometry."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

GEOMETRIES = ("l2", "linf", "metric")


def _by_name(geometry: Any) -> bool:
    """Whether a geometry is given by its name, and not as a metric.

    **Raises:** `ValueError` for another word.
    """
    if not isinstance(geometry, str):
        return False
    if geometry not in ("l2", "linf"):
        raise ValueError(
            "`geometry` must be 'l2', 'linf' or a metric (p,), which are the numbers 1/h, but is "
            f"{geometry!r}"
        )
    return True


def norm(w: Float[Array, " p"], geometry: Any) -> Array:
    """The norm of flat weights: "l2", "linf", or `sqrt(sum m w^2)` for a metric m."""
    if _by_name(geometry):
        return jnp.linalg.norm(w) if geometry == "l2" else jnp.max(jnp.abs(w))
    return jnp.sqrt(jnp.sum(geometry * jnp.square(w)))


def dual_norm(v: Float[Array, " p"], geometry: Any) -> Array:
    """The largest `<w, v>` over weights w of norm 1."""
    if _by_name(geometry):
        return jnp.linalg.norm(v) if geometry == "l2" else jnp.sum(jnp.abs(v))
    return jnp.sqrt(jnp.sum(jnp.square(v) / geometry))


def alignment_gap(w: Float[Array, " p"], gradient: Float[Array, " p"], geometry: Any) -> Array:
    """`1 - <w, G> / (|w| |G|_*)`, in [0, 2], with G the gradient of nu.

    It is 0 exactly if w is stationary for the maximal margin in this norm, with
    multipliers proportional to the losses; and 1 at the origin.

    **Arguments:**

    - `w`: (p,), the weights, flat.
    - `gradient`: (p,), G.
    - `geometry`: "l2", "linf", or a metric: positive numbers (p,), 1/h.

    **Raises:** `ValueError` for another word.
    """
    size = norm(w, geometry) * dual_norm(gradient, geometry)
    return 1 - jnp.sum(w * gradient) / jnp.where(size > 0, size, 1)


def gaps_of(
    w: Float[Array, " p"], gradient: Float[Array, " p"], h: Float[Array, " p"]
) -> dict[str, Array]:
    """The alignment gaps in the geometries by name, with the metric 1/h."""
    metric = 1 / h
    return {
        name: alignment_gap(w, gradient, metric if name == "metric" else name)
        for name in GEOMETRIES
    }


def surrogate_excess(run: Any, degree: float, *, start: float = 1.0) -> np.ndarray:
    """The excess of `d log g~` over its lower bound, between recorded nus.

    g~ is the surrogate margin `nu / |h^(-1/2) w|^L` of a model of degree L with the
    exponential loss, or one that is not smaller. The bound is `-L/2 sum_i p_i d
    log(1/h_i)` with `p_i` proportional to `w_i^2 / h_i`. Between two records the
    smaller of its values with p at both ends is taken.

    With the exponential loss the excess is `(1 - cos^2 nu/nu') d log nu`, where `1 -
    cos` is the alignment gap in the metric 1/h and `nu' = <w, G>/L >= nu`. So it is at
    least the integral of `1 - cos^2` over log nu. For gradient flow this is how Lyu, Li
    (2020) prove that the limit is stationary; with h it is derived here.

    **Arguments:**

    - `run`: a run of `MarginFlow` whose record has `weights`, flat, and the series
      `conditioner`, `surrogate_margin` and `nu`.
    - `degree`: L.
    - `start`: the nu from which on it is looked at; the bound needs nu > 0.

    **Returns:** one number less than there are recorded nus from `start` on.
    """
    late = np.asarray(run["nu"]) >= start
    w, h, surrogate = (
        np.asarray(run[name])[late] for name in ("weights", "conditioner", "surrogate_margin")
    )
    share = w**2 / h
    share /= share.sum(axis=1, keepdims=True)
    rise = -degree / 2 * np.diff(np.log(1 / h), axis=0)
    bound = np.minimum(share[1:] * rise, share[:-1] * rise).sum(axis=1)
    return np.diff(np.log(surrogate)) - bound
