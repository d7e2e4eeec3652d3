"""`solve`, the training curves of infinitely large systems."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import as_whole, is_concrete, shown
from sgfbias.core.loss import AbstractLoss, as_loss
from sgfbias.meanfield.curves import Curves
from sgfbias.meanfield.data import AbstractData
from sgfbias.meanfield.kernels import Effective, Setting
from sgfbias.meanfield.march import averaged_edges, block_sizes, march
from sgfbias.meanfield.outputs import (
    check_outputs,
    count_outputs,
    marched_matrices,
    start_matrices,
)
from sgfbias.meanfield.precision import double, returned
from sgfbias.meanfield.rule import MaskedDescent, Start
from sgfbias.meanfield.smooth import derivatives, has_corner, no_derivative

LONG, MOST_BYTES = 512, 4 * 2**30
# The share of M_R at the last lag that is kept, above which there is a warning.
SMALL = 0.01


def solve(
    data: Any,
    loss: Any,
    rule: Any,
    *,
    steps: Any,
    keys: Array,
    start: Any = None,
    samples: Any = 4000,
    replicas: Any = 1,
    readout: Any = None,
    outputs: Any = None,
    memory: Any = None,
    dtype: Any = "float32",
) -> Curves:
    """The training curves in the limit of many dimensions d at fixed `alpha = n/d`, by
    dynamical mean-field theory, without training.

    Each key is an independent estimate with its own effective examples, so their spread
    is the error of the averages over `samples` of them. It falls as `samples^(-1/2)`.

    **Arguments:**

    - `data`: the law of the data, such as `GaussianMixture(2.0)`.
    - `loss`: an `AbstractLoss`, or a function `(output, target) -> scalar`.
    - `rule`: a `MaskedDescent`.
    - `steps`: the number of steps, a whole number.
    - `keys`: (keys,) typed keys, such as `sgfbias.seeds(0, 4)`, or one of them.
    - `start`: a `Start`. Default: w = 0.
    - `samples`: the number of effective examples.
    - `replicas`: 2 for two runs with the same data and start and independent masks,
      whose `distance` is then known. Otherwise 1.
    - `readout`: the function of the pre-activation that gives the output. Default: the
      pre-activation.
    - `outputs`: the number K of pre-activations of a law with several directions, such
      as `Mixture`. Then `readout` and the loss get all of them, (K,). Default: that of
      the start, or one for each class.
    - `memory`: the number of lags after which the memory of earlier stiffness is left
      out, or None for all of it. It bounds memory and time for long runs.
    - `dtype`: the precision of the effective examples, "float32" or "float64". Averages
      and kernels are in float64, and the curves have the precision of JAX.

    **Returns:** `Curves`.

    **Warns:** if the memory that is left out is not small: if M_R at the last lag that
    is kept, averaged over times and keys, is above 1% of that at the first lag.

    **Raises:** `ValueError` for arguments that do not fit, for a loss without finite
    second derivatives, for more memory than 4 GiB in runs of more than 512 steps, and
    for derivatives in float32.

    The equations are those of Mignacco, Krzakala, Urbani, Zdeborová 2020 (arXiv
    2006.06098) and Mignacco, Urbani 2022 (arXiv 2112.10852), here for a finite step
    size, and exact for it.
    """
    loss, start = check_parts(data, loss, rule, start)
    outputs = count_outputs(data, start, rule, readout, outputs)
    steps = as_whole(steps, "steps")
    samples = as_whole(samples, "samples", least=2)
    replicas = as_whole(replicas, "replicas", most=2)
    memory = None if memory is None else as_whole(memory, "memory")
    if memory is not None and memory >= steps:
        memory = None
    keys = check_keys(keys)
    low = jnp.dtype(dtype)
    if low not in (jnp.float32, jnp.float64):
        raise ValueError(f"`dtype` must be 'float32' or 'float64', but is {low.name!r}")
    check_size(steps, samples, replicas, memory, low.itemsize * (outputs or 1) ** 2)
    with double((data, rule, start, loss, keys)):
        if outputs is None:
            corner = has_corner(loss, readout, data.typical())
        else:
            corner = check_outputs(loss, readout, outputs, data)

        def one(key: Array) -> dict[str, Any]:
            effective = draw_effective(data, rule, key, steps, samples, replicas, low, outputs)
            return solve_drawn(data, loss, rule, start, effective, readout, steps, memory, corner)

        found = over_keys(one, keys)
        warn_of_memory(found.pop("edges"), keys.ndim == 1)
    return Curves(
        **returned(found),
        keys=keys,
        data=data,
        rule=rule,
        start=start,
        loss_function=loss,
        origin=f"theory, {samples:,} effective examples",
    )


def check_parts(data: Any, loss: Any, rule: Any, start: Any) -> tuple[AbstractLoss, Start]:
    """The loss and the start, after the parts of a system have been checked.

    **Raises:** `ValueError` for parts of another kind, or that do not fit together.
    """
    if not isinstance(data, AbstractData):
        raise ValueError(
            "`data` must be a law of data, such as GaussianMixture(2.0), LinearTeacher(3.0), "
            f"RandomLabels(4.0) or fit(X, y), but is {shown(data)}"
        )
    if not isinstance(rule, MaskedDescent):
        raise ValueError(
            f"`rule` must be a MaskedDescent(step_size, mask), but is {shown(rule)}; the order is "
            "(data, loss, rule)"
        )
    start = Start() if start is None else start
    if not isinstance(start, Start):
        raise ValueError(f"`start` must be a Start(overlap, variance), but is {shown(start)}")
    loss = as_loss(loss)
    loss.check_targets(jnp.asarray(data.typical()))
    if is_concrete((start, rule)):
        at_zero = not np.any(np.asarray(start.overlap))
        if not data.has_direction and not at_zero:
            raise ValueError(
                f"{type(data).__name__} have no direction, so the overlap of the start must be 0, "
                f"but is {start.overlap}"
            )
        if rule.sphere and at_zero and not np.any(np.asarray(start.variance)):
            raise ValueError(
                "on the sphere w cannot start at 0, which has no direction: give a start, such as "
                "start=Start(variance=1.0)"
            )
    return loss, start


def check_size(steps: int, samples: int, replicas: int, memory: int | None, itemsize: int) -> None:
    """Refuse long runs whose memory of the effective examples is above 4 GiB.

    **Raises:** `ValueError` that says how many bytes, and which `memory` fits.
    """
    unit = samples * replicas * itemsize
    window = steps if memory is None else memory
    count, size = block_sizes(steps + 1, memory)
    rows = min(count * size, window + 2 * size)
    needed = rows * rows * unit * (0.5 if memory is None else 1.0)
    if steps <= LONG or needed <= MOST_BYTES:
        return
    fits = int((MOST_BYTES / unit) ** 0.5 / 2)
    raise ValueError(
        f"{steps} steps of {samples:,} samples need {needed / 2**30:.1f} GiB: write "
        f"memory={fits}, which leaves out the memory beyond {fits} steps and fits into 4 GiB, or "
        "take fewer samples"
    )


def warn_of_memory(edges: Array | None, several_keys: bool) -> None:
    """Warn where the memory that is left out is not small.

    **Arguments:**

    - `edges`: ([keys,] 2), or with K outputs ([keys,] 2, K, K), M_R at the first lag
      and at the last one that is kept, averaged over times; or None.
    - `several_keys`: whether there is an axis of keys.
    """
    if edges is None or not is_concrete(edges):
        return
    mean = np.asarray(edges).mean(axis=0) if several_keys else np.asarray(edges)
    first, last = (float(np.linalg.norm(part)) for part in mean)
    if last > SMALL * first:
        warnings.warn(
            f"the last lag that `memory` keeps has {last / first:.1%} of the memory of the first "
            f"lag, more than {SMALL:.0%}, so that what is left out may not be small: take a larger "
            "`memory`, or more `samples` if this share is their error",
            stacklevel=3,
        )


def over_keys(one: Callable[[Array], Any], keys: Array) -> Any:
    """The results of every key, stacked, one key after the other, as each has much
    memory. A single key gives no axis.
    """
    if keys.ndim == 0:
        return one(keys)
    if not is_concrete(keys):
        return jax.lax.map(one, keys)
    return jax.tree.map(lambda *rows: jnp.stack(rows), *map(one, keys))


@eqx.filter_jit
def draw_effective(
    data: Any,
    rule: Any,
    key: Array,
    steps: int,
    samples: int,
    replicas: int,
    dtype: Any,
    outputs: int | None = None,
) -> Effective:
    """The effective examples of one key."""
    first, second, third = jax.random.split(key, 3)
    drift, targets = data.draw(first, samples, dtype)
    masks = jax.vmap(lambda k: rule.path(k, samples, steps))(jax.random.split(second, replicas))
    paths = () if outputs is None else (outputs,)
    white = jax.random.normal(third, (replicas, steps + 1, *paths, samples), dtype)
    return Effective(drift, targets, masks.astype(dtype), white)


def solve_drawn(
    data: Any,
    loss: AbstractLoss,
    rule: Any,
    start: Any,
    effective: Effective,
    readout: Any,
    steps: int,
    memory: int | None = None,
    corner: bool = False,
) -> dict[str, Any]:
    """The curves for given effective examples.

    Examples whose second moments are exact, such as the points of a cubature, give the
    exact curves of a quadratic loss without masks.
    """
    numbers = (data.alpha, rule.step_size, rule.ridge, data.bins())
    setting = Setting(*_wide(numbers), data.is_explicit, rule.sphere, memory)
    if data.directions is None:
        ends, marched = (start.overlap, start.variance), _marched
    else:
        ends = start_matrices(start, effective.white.shape[2], data.directions)
        marched = marched_matrices
    found = marched(setting, loss, effective, _wide(ends), readout, steps, corner)
    variance = found.pop("variance")
    return {**found, "test_error": data.test_error(found["overlap"], variance, readout)}


def _wide(tree: Any) -> Any:
    """The numbers in float64."""
    return jax.tree.map(lambda v: jnp.asarray(v).astype(jnp.float64), tree)


@eqx.filter_jit
def _marched(
    setting: Setting,
    loss: AbstractLoss,
    effective: Effective,
    start: tuple[Array, Array],
    readout: Any,
    steps: int,
    corner: bool,
) -> dict[str, Any]:
    """The curves but the test error, and `w . Sigma w / d`. The program depends on the
    loss and on shapes, but not on the kind of data or of masks.
    """

    def losses(r: Array) -> tuple[Array, Array, Array]:
        values, slopes, curvatures = derivatives(loss, readout, r, effective.targets)
        return values, slopes, no_derivative(curvatures, r) if corner else curvatures

    times = steps + 1
    kernels, seen = march(setting, losses, effective, start, times)
    bins, q = setting.bins, kernels.overlaps[:, :times]
    same, response = (k[:, :times, :times] for k in (kernels.same, kernels.response))
    own = bins.weights * bins.energies
    correlation = jnp.einsum("b,btu->tu", bins.weights, same)
    spread = jnp.diagonal(same, axis1=1, axis2=2) + bins.energies[:, None] * jnp.square(q)
    distance = None
    if kernels.other is not None:
        gap = same - kernels.other[:, :times, :times]
        distance = 2 * jnp.einsum("b,btt->t", bins.weights, gap)
    return {
        "overlap": jnp.einsum("b,bt->t", own, q),
        "correlation": correlation + jnp.einsum("b,bt,bu->tu", own, q, q),
        "response": jnp.einsum("b,btu->tu", bins.weights, response),
        "loss": seen.loss.astype(jnp.float64),
        "variance": jnp.einsum("b,bt->t", bins.weights * bins.values, spread),
        "distance": distance,
        "edges": averaged_edges(seen, setting),
    }
