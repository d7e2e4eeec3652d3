"""Several outputs: how many there are, where they start, and their curves."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_whole, is_concrete
from sgfbias.core.loss import AbstractLoss
from sgfbias.meanfield.kernels import Effective, Setting
from sgfbias.meanfield.march import averaged_edges, march
from sgfbias.meanfield.matrices import MANY
from sgfbias.meanfield.rule import Start
from sgfbias.meanfield.smooth import has_corner, hessians, no_derivative


def count_outputs(data: Any, start: Start, rule: Any, readout: Any, outputs: Any) -> int | None:
    """The number K of pre-activations, or None for a law with one direction, whose
    model has one.

    It is `outputs`, or that of the start, or the number of classes or of teachers.

    **Raises:** `ValueError` for numbers that do not fit together, for several outputs
    of a law with one direction, for one that starts at 0 on the sphere, and for a
    readout of a number of pre-activations that is not said.
    """
    outputs = None if outputs is None else as_whole(outputs, "outputs")
    shapes = (start.overlap.shape, start.variance.shape)
    if data.directions is None:
        if outputs is not None or shapes != ((), ()):
            raise ValueError(
                f"{type(data).__name__} is for models with one output, so that the start is two "
                "numbers and `outputs` is left out: write data=Mixture(alpha, means) or "
                "CommitteeTeacher(alpha, label, directions=2) for several"
            )
        return None
    found = [n for n in (outputs, *(shape[0] for shape in shapes if shape)) if n is not None]
    if not found and readout is not None:
        raise ValueError(
            "`readout` is a function of all pre-activations, so that their number is needed: "
            "write outputs=2 for two of them"
        )
    count = found[0] if found else data.default_outputs
    wanted = (count, data.directions), (count, count)
    if not all(shape in ((), right) for shape, right in zip(shapes, wanted, strict=True)):
        raise ValueError(
            f"with {count} outputs and {data.directions} directions the start has an overlap of "
            f"shape {wanted[0]} and a variance of shape {wanted[1]}, or numbers, but they have "
            f"shapes {shapes[0]} and {shapes[1]}"
        )
    if not shapes[0] and is_concrete(start.overlap) and float(start.overlap) != 0:
        raise ValueError(
            "the overlap of a start with several outputs is a matrix of shape "
            f"{wanted[0]}, or 0, but is {float(start.overlap):g}"
        )
    if rule.sphere and is_concrete(start):
        overlap, variance = (np.asarray(part) for part in start_matrices(start, *wanted[0]))
        still = np.flatnonzero(~overlap.any(axis=1) & (np.diagonal(variance) == 0))
        if still.size:
            raise ValueError(
                f"on the sphere no output can start at 0, which has no direction, but output "
                f"{still[0]} does: give each an overlap or a variance, such as "
                "start=Start(variance=1.0)"
            )
    return count


def start_matrices(start: Start, outputs: int, directions: int) -> tuple[Array, Array]:
    """The overlap (K, M) and the variance (K, K) of a start."""
    overlap, variance = start.overlap, start.variance
    if overlap.ndim == 0:
        overlap = jnp.broadcast_to(overlap, (outputs, directions))
    if variance.ndim == 0:
        variance = variance * jnp.eye(outputs, dtype=variance.dtype)
    return overlap, variance


def check_outputs(
    loss: AbstractLoss, readout: Any, outputs: int, data: Any, *, smooth: bool = True
) -> bool:
    """Whether the second derivative of the loss jumps; see `has_corner`. It is looked
    for along each pre-activation and along a line between them, if the loss must be
    `smooth`.

    **Raises:** `ValueError` for a loss or a readout that does not take these outputs,
    and for a loss that is not smooth.
    """
    targets = data.typical()
    r = jax.ShapeDtypeStruct((targets.size, outputs), jnp.result_type(float))
    try:
        after = r if readout is None else jax.eval_shape(jax.vmap(readout), r)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"`readout` must be a function of {outputs} pre-activations, an array of shape "
            f"({outputs},), but it fails on one: {error}"
        ) from error
    loss.check(after, jnp.asarray(targets))
    if not smooth:
        return False
    lines = np.concatenate([np.eye(outputs), np.linspace(1.0, -0.7, outputs)[None]])
    offset = 0.37 * np.cos(1.0 + np.arange(outputs))
    with jax.ensure_compile_time_eval():  # also within jit
        readouts = [_Line(readout, jnp.asarray(offset), jnp.asarray(line)) for line in lines]
    corners = [has_corner(loss, line, targets) for line in readouts]  # each may refuse
    return any(corners)


class _Line(eqx.Module):
    """The readout on a line of pre-activations. All lines have one program."""

    readout: Any
    offset: Array
    line: Array

    def __call__(self, x: Array) -> Any:
        r = self.offset.astype(x.dtype) + x * self.line.astype(x.dtype)
        return r if self.readout is None else self.readout(r)


@eqx.filter_jit
def marched_matrices(
    setting: Setting,
    loss: AbstractLoss,
    effective: Effective,
    start: tuple[Array, Array],
    readout: Any,
    steps: int,
    corner: bool,
) -> dict[str, Any]:
    """The curves but the test error, the covariance (times, K, K) of fresh
    pre-activations around their mean, and the overlap again as the factor of this mean.
    """

    def losses(r: Array) -> tuple[Array, Array, Array]:
        values, slopes, curvatures = hessians(loss, readout, r, effective.targets)
        return values, slopes, no_derivative(curvatures, r) if corner else curvatures

    times = steps + 1
    kernels, seen = march(setting, losses, effective, start, times, MANY)
    bins, q = setting.bins, kernels.overlaps[:, :times]
    same, response = (k[:, :times, :times] for k in (kernels.same, kernels.response))
    turned = jnp.einsum("btkm,bmn->btkn", q, bins.energies)

    def averaged(weights: Array) -> Array:
        return jnp.einsum("b,btuac->tuac", weights, same) + jnp.einsum(
            "b,btan,bucn->tuac", weights, turned, q
        )

    apart = None
    if kernels.other is not None:
        gap = same - kernels.other[:, :times, :times]
        apart = 2 * jnp.einsum("b,bttaa->t", bins.weights, gap)
    now = jnp.arange(times)
    overlap = jnp.einsum("b,btkn->tkn", bins.weights, turned)
    return {
        "overlap": overlap,
        "signal": overlap,
        "correlation": averaged(bins.weights),
        "response": jnp.einsum("b,btuac->tuac", bins.weights, response),
        "loss": seen.loss.astype(jnp.float64),
        "variance": averaged(bins.weights * bins.values)[now, now],
        "distance": apart,
        "edges": averaged_edges(seen, setting),
    }
