"""Whether a loss is smooth enough for the theory, which needs its second derivative."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import is_concrete
from sgfbias.core.loss import AbstractLoss

REACH, POINTS = 6.0, 6001
# The values of a smooth function change between two points of the grid by about the
# integral of their derivative. They jump if they change by this many times more, and by
# more than this share of their size.
TIMES, SHARE = 3.0, 1e-4
# What a traced number of a loss or a readout may be.
PLACEHOLDERS = (0.5, 1.0, 2.0)


def derivatives(
    loss: AbstractLoss, readout: Any, r: Array, targets: Array
) -> tuple[Array, Array, Array]:
    """The losses at pre-activations (replicas, samples), and their first and second
    derivatives.
    """

    def value(row: Array) -> Array:
        return loss(row if readout is None else jax.vmap(readout)(row), targets)

    def slope(row: Array) -> Array:
        return jax.jvp(value, (row,), (jnp.ones_like(row),))[1]

    def all_three(row: Array) -> tuple[Array, Array, Array]:
        slopes, curvatures = jax.jvp(slope, (row,), (jnp.ones_like(row),))
        return value(row), slopes, curvatures

    return jax.vmap(all_three)(r)


def hessians(
    loss: AbstractLoss, readout: Any, r: Array, targets: Array
) -> tuple[Array, Array, Array]:
    """The losses (replicas, samples) at pre-activations (replicas, K, samples), their
    gradients (replicas, K, samples), and their Hessians (replicas, K, K, samples).
    """

    def value(rows: Array) -> Array:
        outputs = rows.T if readout is None else jax.vmap(readout)(rows.T)
        return loss(outputs, targets)

    slope = jax.grad(lambda rows: jnp.sum(value(rows)))

    def all_three(rows: Array) -> tuple[Array, Array, Array]:
        def along(axis: Array) -> Array:
            direction = jnp.broadcast_to(axis[:, None], rows.shape)
            return jax.jvp(slope, (rows,), (direction,))[1]

        # Row b holds the change of the gradient along b, and a Hessian is symmetric.
        curvatures = jax.vmap(along)(jnp.eye(rows.shape[0], dtype=rows.dtype))
        return value(rows), slope(rows), curvatures

    return jax.vmap(all_three)(r)


def has_corner(loss: AbstractLoss, readout: Any, targets: np.ndarray) -> bool:
    """Whether the second derivative of the loss jumps, so that derivatives of averages
    over examples have a part that automatic differentiation does not see.

    A derivative jumps where its change between two points is not the integral of the
    next one. Numbers of the loss or the readout that are traced by jit or vmap are
    looked at as if they were each of `PLACEHOLDERS`.

    **Raises:** `ValueError` if the first derivative jumps, and if a derivative is not
    finite, whatever the traced numbers are; and for a number that is traced, but is no
    part of the loss or the readout.
    """
    found = []
    refusal: ValueError | None = None
    for parts in _with_values((loss, readout)):
        try:
            found.append(_has_corner(*parts, targets))
        except ValueError as error:
            refusal = error
    if not found and refusal is not None:
        raise refusal
    return any(found)


def _with_values(parts: Any) -> list[Any]:
    """The parts without tracers. A number of which a derivative is taken has its value,
    and one that has none yet has each of the placeholders.
    """
    if is_concrete(parts):
        return [parts]

    def valued(leaf: Any) -> Any:
        if not isinstance(leaf, jax.core.Tracer):
            return leaf
        value = jax.lax.stop_gradient(leaf)
        return value if isinstance(value, jax.core.Tracer) else np.asarray(value, leaf.dtype)

    parts = jax.tree.map(valued, parts)
    if is_concrete(parts):
        return [parts]

    def filled(number: float) -> Any:
        def fill(leaf: Any) -> Any:
            if not isinstance(leaf, jax.core.Tracer):
                return leaf
            return np.full(leaf.shape, number).astype(leaf.dtype)

        return jax.tree.map(fill, parts)

    return [filled(number) for number in PLACEHOLDERS]


def _has_corner(loss: Any, readout: Any, targets: np.ndarray) -> bool:
    # No point of the grid is a corner at a simple number.
    r = np.linspace(-REACH, REACH, POINTS) + 0.000_271_8
    grid, targets = np.tile(r, targets.size), np.repeat(targets, r.size)
    with jax.ensure_compile_time_eval():  # also within jit
        found = _three(loss, readout, jnp.asarray(grid), jnp.asarray(targets))
    check_closed(found, "the loss or the readout")
    slopes, curvatures, third = (np.asarray(v, np.float64).reshape(-1, r.size) for v in found)
    finite = np.isfinite(slopes) & np.isfinite(curvatures)
    if not finite.all():
        first = int(np.argmin(finite.ravel()))
        raise ValueError(
            f"the loss {type(loss).__name__} has no finite second derivative at the "
            f"pre-activation {grid[first]:.2g} and the target {targets[first]:.2g}, which the "
            "theory needs: use a loss that is smooth there, such as LogisticLoss()"
        )
    if any(map(_jumps, slopes, curvatures)):
        raise ValueError(
            f"the first derivative of {type(loss).__name__} jumps, so that it has no second "
            "derivative, which the theory needs: use SquaredHingeLoss() in place of a hinge, "
            "or another smooth loss"
        )
    return any(map(_jumps, curvatures, third))


def check_closed(found: Any, what: str) -> None:
    """Refuse a result that is still traced though no argument was.

    **Raises:** `ValueError` that says where traced numbers belong.
    """
    if not is_concrete(found):
        raise ValueError(
            f"{what} contains a number that is traced by jit, vmap or grad, and that cannot be "
            "seen in it: put the number into an AbstractLoss, or for a readout into an "
            "equinox.Module, as a field, in place of a function that closes over it"
        )


@eqx.filter_jit
def _three(loss: AbstractLoss, readout: Any, r: Array, targets: Array) -> Any:
    """The first three derivatives of the loss in the pre-activations (points,)."""

    def second(row: Array) -> Array:
        return derivatives(loss, readout, row[None], targets)[2][0]

    values, slopes, curvatures = derivatives(loss, readout, r[None], targets)
    slopes = jnp.where(jnp.isfinite(values), slopes, jnp.nan)
    return slopes[0], curvatures[0], jax.jvp(second, (r,), (jnp.ones_like(r),))[1]


def _jumps(values: np.ndarray, derivative: np.ndarray) -> bool:
    """Whether values on the grid change by more than their derivative's integral."""
    width = 2 * REACH / (POINTS - 1)
    change = np.diff(values)
    smooth = width * (derivative[1:] + derivative[:-1]) / 2
    steepest = width * np.maximum(np.abs(derivative[1:]), np.abs(derivative[:-1]))
    allowed = TIMES * steepest + SHARE * np.max(np.abs(values))
    return bool(np.any(np.abs(change - smooth) > allowed))


@jax.custom_jvp
def no_derivative(curvature: Array, r: Array) -> Array:
    """The curvatures at pre-activations r, whose derivatives in r are refused."""
    return curvature


@no_derivative.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "the second derivative of this loss jumps, so that derivatives of the theory would lose "
        "the part at the jump: use a smooth loss, such as LogisticLoss() or a hinge that is "
        "smoothed by softplus, or take differences of two solutions"
    )
