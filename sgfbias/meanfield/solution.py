"""`solve`, the training curves of infinitely large systems."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import as_whole
from sgfbias.core.loss import AbstractLoss
from sgfbias.meanfield.curves import Curves
from sgfbias.meanfield.devices import gathered, over_keys, spread
from sgfbias.meanfield.kernels import Effective, Setting
from sgfbias.meanfield.march import averaged_edges, march
from sgfbias.meanfield.outputs import (
    check_outputs,
    count_outputs,
    marched_matrices,
    start_matrices,
)
from sgfbias.meanfield.parts import check_parts, check_size, warn_of_memory
from sgfbias.meanfield.precision import double, returned
from sgfbias.meanfield.smooth import derivatives, has_corner, no_derivative


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
    Several devices share the examples of a key, if their number can be divided.

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

    **Returns:** `Curves`. Their derivatives, by `jax.grad` and the like, are those of
    the estimate with its random numbers fixed. Those of a `test_error` that is counted
    at points are 0; see `Curves`.

    **Warns:** if the memory that is left out is not small: if at the last lag that is
    kept the memory M_R, averaged over times and keys, is above 1% of that at the first
    lag.

    **Raises:** `ValueError` for arguments that do not fit, for a loss without finite
    second derivatives, for more memory than 4 GiB in runs of more than 512 steps or of
    several outputs, and for derivatives in float32.

    The equations are those of Mignacco, Krzakala, Urbani, Zdeborová 2020 (arXiv
    2006.06098) and Mignacco, Urbani 2022 (arXiv 2112.10852), here for a finite step
    size, and exact for it. Gerbelot, Troiani, Mignacco, Krzakala, Zdeborová 2022 (arXiv
    2210.06591) prove them, also for several outputs.
    """
    loss, start = check_parts(data, loss, rule, start, readout)
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
    check_size(steps, samples, replicas, memory, low.itemsize, outputs)
    with double((data, rule, start, loss, readout, keys)):
        if outputs is None:
            corner = has_corner(loss, readout, data.typical())
        else:
            corner = check_outputs(loss, readout, outputs, data)

        def one(key: Array) -> dict[str, Any]:
            effective = draw_effective(data, rule, key, steps, samples, replicas, low, outputs)
            found = solve_drawn(
                data, loss, rule, start, spread(effective), readout, steps, memory, corner
            )
            return gathered(found)

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
    setting = Setting(*_wide(numbers), data.is_explicit, rule.sphere, memory, data.is_teacher)
    if data.directions is None:
        ends, marched = (start.overlap, start.variance), _marched
    else:
        ends = start_matrices(start, effective.white.shape[2], data.directions)
        marched = marched_matrices
    found = marched(setting, loss, effective, _wide(ends), readout, steps, corner)
    variance, signal = found.pop("variance"), found.pop("signal")
    return {**found, "test_error": data.test_error(signal, variance, readout)}


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
    """The curves but the test error, `w . Sigma w / d`, and what the drift multiplies:
    the overlap, or w . Sigma v / d for a teacher.

    The program depends on the loss and on shapes, but not on the kind of data or of
    masks.
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
        "signal": jnp.einsum("b,bt->t", setting.seen_energies, q),
        "correlation": correlation + jnp.einsum("b,bt,bu->tu", own, q, q),
        "response": jnp.einsum("b,btu->tu", bins.weights, response),
        "loss": seen.loss.astype(jnp.float64),
        "variance": jnp.einsum("b,bt->t", bins.weights * bins.values, spread),
        "distance": distance,
        "edges": averaged_edges(seen, setting),
    }
