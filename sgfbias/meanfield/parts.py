"""What `solve` and `simulate` check of their arguments, and what of the result."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import is_concrete, shown
from sgfbias.core.loss import AbstractLoss, as_loss
from sgfbias.meanfield.data import AbstractData
from sgfbias.meanfield.march import block_sizes
from sgfbias.meanfield.rule import MaskedDescent, Start

LONG, MOST_BYTES = 512, 4 * 2**30
# The share of M_R at the last lag that is kept, above which there is a warning.
SMALL = 0.01


def check_parts(
    data: Any, loss: Any, rule: Any, start: Any, readout: Any
) -> tuple[AbstractLoss, Start]:
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
    check_readout(data, readout)
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


def check_readout(data: AbstractData, readout: Any) -> None:
    """Refuse a readout that is no function, or with one output no function of a number
    that returns a number.

    **Raises:** `ValueError` that says what it must be.
    """
    if readout is None:
        return
    if not callable(readout):
        raise ValueError(
            "`readout` must be a function of the pre-activation, such as lambda r: r**2 - 0.5, "
            f"or None, but is {shown(readout)}"
        )
    data.check_readout(readout)
    if data.directions is not None:
        return  # `check_outputs` knows how many there are
    numbers = jax.ShapeDtypeStruct((2,), jnp.result_type(float))
    try:
        after = jax.eval_shape(jax.vmap(readout), numbers)
    except (TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        raise ValueError(
            "`readout` must be a function of one pre-activation, a number, but fails on one: "
            f"{error}"
        ) from error
    if getattr(after, "shape", None) != (2,):
        given = f"shape {after.shape[1:]}" if hasattr(after, "shape") else type(after).__name__
        raise ValueError(
            f"`readout` must return one number for one pre-activation, but returns {given}"
        )


def check_size(
    steps: int,
    samples: int,
    replicas: int,
    memory: int | None,
    itemsize: int,
    outputs: int | None = None,
) -> None:
    """Refuse long runs, and runs of several outputs, whose memory of the effective
    examples is above 4 GiB.

    **Raises:** `ValueError` that says how many bytes, and which `memory` fits.
    """
    unit = samples * replicas * itemsize * (outputs or 1) ** 2

    def need(memory: int | None) -> float:
        window = steps if memory is None else memory
        count, size = block_sizes(steps + 1, memory)
        rows = min(count * size, window + 2 * size)
        return rows * rows * unit * (0.5 if memory is None else 1.0)

    needed = need(memory)
    if needed <= MOST_BYTES or (steps <= LONG and outputs is None):
        return
    most = min(steps - 1, int((MOST_BYTES / unit) ** 0.5))
    fits = next((lags for lags in range(most, 0, -1) if need(lags) <= MOST_BYTES), None)
    advice = "take fewer samples"
    if fits is not None:
        advice = (
            f"write memory={fits}, which leaves out the memory beyond {fits} steps and fits into "
            f"4 GiB, or {advice}"
        )
    raise ValueError(
        f"{steps} steps of {samples:,} samples need {needed / 2**30:.1f} GiB: {advice}"
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
