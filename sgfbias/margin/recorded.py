"""What the runs of this system record: nu, margins and alignment gaps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import is_concrete
from sgfbias.core.problem import Problem
from sgfbias.core.trajectory import Status
from sgfbias.margin.geometry import gaps_of, norm
from sgfbias.margin.objective import (
    Function,
    check_classification,
    degree_at,
    margins_of,
    nu_and_gradient,
)

# nu up to which float32, and float64, resolve differences of margins.
LARGEST_SINGLE = 1e3
LARGEST_DOUBLE = 1e9


class Here(NamedTuple):
    """Where a run is: nu and its gradient G, flat weights w, the margins, the degree.

    `tangent` is G like the position, and `flat` is G flat.
    """

    nu: Array
    tangent: Any
    flat: Array
    w: Array
    q: Array
    degree: Array


def here(network: Any, problem: Problem, like: Any) -> Here:
    """Where a network is, of which the arrays move that are not None in `like`."""
    check_classification(problem)
    position = jax.tree.map(
        lambda moves, own: None if moves is None else own, like, network, is_leaf=_is_none
    )
    function = Function(network, problem)
    value, degree = degree_at(function, position)
    q = margins_of(problem.loss, value, problem.targets)
    nu, gradient = nu_and_gradient(function.linearise, position, problem)
    w, flat = (jax.flatten_util.ravel_pytree(a)[0] for a in (position, gradient))
    return Here(nu, gradient, flat, w, q, degree)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def values(at: Here, n: int, h: Array, mean: Array) -> dict[str, Array]:
    """What every run records, with the conditioner h and the gradient of nu for the
    gaps, both flat.
    """
    dtype, least = at.nu.dtype, jnp.min(at.q)
    return {
        "nu": at.nu,
        "log10_loss": -(at.nu + jnp.log(jnp.asarray(n, dtype))) / jnp.log(jnp.asarray(10, dtype)),
        "q_min": least,
        "hardest": jnp.argmin(at.q.reshape(n, -1).min(axis=1)).astype(dtype),
        "margin_l2": over(least, norm(at.w, "l2"), at.degree),
        "margin_linf": over(least, norm(at.w, "linf"), at.degree),
        **{f"gap_{name}": gap for name, gap in gaps_of(at.w, mean, h).items()},
        "conditioner": h,
    }


UNITS = dict.fromkeys(
    ("nu", "log10_loss", "log_time", "q_min", "hardest", "margin_l2", "margin_linf",
     "surrogate_margin", "gap_l2", "gap_linf", "gap_metric", "loss_time_speed", "conditioner",
     "mean_gradient"),
    "1",
)  # fmt: skip


def averaged(average: Any, gradient: Array) -> Array:
    """An averaged gradient, flat, or the gradient before there is an average."""
    flat = jax.flatten_util.ravel_pytree(average)[0]
    return jnp.where(jnp.any(flat != 0), flat, gradient)


def over(value: Array, size: Array, degree: Array) -> Array:
    """`value / size^degree`, and 0 at the origin."""
    safe = jnp.where(size > 0, size, 1)
    return jnp.where(size > 0, value / safe**degree, 0)


def warn_of_rounding(nu: Any, dtype: Any) -> None:
    """Warn of a nu, or of some (seeds,), at which margins of this precision are not
    told apart any more.
    """
    if not is_concrete(nu):
        return
    single = jnp.finfo(dtype).bits <= 32
    most = LARGEST_SINGLE if single else LARGEST_DOUBLE
    largest = np.max(np.asarray(nu), initial=-np.inf, where=np.isfinite(np.asarray(nu)))
    if largest > most:
        warnings.warn(
            f"nu goes to {largest:g}, but {dtype} resolves differences of margins up to nu = "
            f"{most:g} only" + ("; use float64 data" if single else ""),
            stacklevel=4,
        )


def reason(status: int, final: Mapping[str, float]) -> str | None:
    """The reason for a status that does not depend on the dynamics, or None."""
    if status == Status.STALLED:
        return (
            f"stalled: the data are not fitted: q_min = {final['q_min']:.3g} for example "
            f"{int(final['hardest'])}; the margin is defined once all are"
        )
    if status == Status.MOVING:
        return (
            f"moving: nu = {final['nu']:.6g}, a loss of 10^{final['log10_loss']:.1f}; the loss "
            "falls for ever, and the gaps say how far the direction still is from stationary"
        )
    return None
