"""The pass of dynamical mean-field theory from the first step to the last.

Everything at a time depends on earlier times only, so that one pass is exact, without
an iteration to a fixed point. What happens in a step is a `Scheme`: `sgfbias.meanfield
.step` for one output, `sgfbias.meanfield.matrices` for several.

The time axis is cut into blocks. In a block all shapes are fixed, and A, the response
of the forces of the examples, is kept as one array per block of rows, so that the work
is that of a triangle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.meanfield.kernels import Effective, Kernels, Scheme, Seen, Setting
from sgfbias.meanfield.step import ONE


def block_sizes(times: int, memory: int | None) -> tuple[int, int]:
    """The number of blocks, and steps per block, for a number of times.

    Blocks have about 16 steps, and more where there would be more than eight of them.
    With a window of `memory` lags they are about half as long as the window.
    """
    count = max(1, min(8, round(times / 16)))
    if memory is not None:
        count = max(count, -(-times // max(16, memory // 2)))
    return count, -(-times // count)


def march(
    setting: Setting,
    losses: Callable[[Array], tuple[Array, Array, Array]],
    effective: Effective,
    start: tuple[Array, Array],
    times: int,
    scheme: Scheme = ONE,
) -> tuple[Kernels, Seen]:
    """The order parameters at times 0, ..., `times` - 1.

    **Arguments:**

    - `setting`: the numbers of the pass.
    - `losses`: a function of the pre-activations (replicas, samples) that returns the
      losses of the examples and their first and second derivatives. With K outputs the
      pre-activations are (replicas, K, samples), and the derivatives (replicas, K,
      samples) and (replicas, K, K, samples).
    - `effective`: the effective examples. Steps beyond their masks and white numbers
      are not taken.
    - `start`: the overlap and the variance of the start.
    - `times`: the number of times.
    - `scheme`: the equations of a step.

    **Returns:** the `Kernels`, whose times beyond `times` mean nothing, and what was
    seen at each of the times.
    """
    count, size = block_sizes(times, setting.memory)
    total = count * size
    effective = effective._replace(
        **{name: _padded(getattr(effective, name), total) for name in ("masks", "white")}
    )
    kernels = scheme.first(setting, effective, start, total)
    reach = count if setting.memory is None else -(-setting.memory // size)
    rows: list[tuple[Array, int]] = []
    seen = []
    for block in range(count):
        low = max(0, block - reach)
        kept = [old[..., (low - low_of) * size :, :] for old, low_of in rows]

        def run(kernels: Kernels, kept: list[Array], block: int = block, low: int = low) -> Any:
            return _block(scheme, setting, losses, effective, kernels, kept, block, low, size)

        # In reverse mode a block is computed again, so that memory holds one at a time.
        kernels, new, found = jax.checkpoint(run)(kernels, kept)
        seen.append(found)
        first = max(0, block + 1 - reach)
        rows = [(old, low) for old in [*kept, new]][-(block + 1 - first) :] if reach else []
    return kernels, jax.tree.map(lambda *parts: jnp.concatenate(parts)[:times], *seen)


def _padded(array: Array, total: int) -> Array:
    """The array (replicas, steps, ...) with zeros up to `total` steps."""
    rest = ((0, 0),) * (array.ndim - 2)
    return jnp.pad(array, ((0, 0), (0, total - array.shape[1]), *rest))


def _block(
    scheme: Scheme,
    setting: Setting,
    losses: Any,
    effective: Effective,
    kernels: Kernels,
    kept: list[Array],
    block: int,
    low: int,
    size: int,
) -> tuple[Kernels, Array, Seen]:
    """Take the steps of one block.

    **Arguments:**

    - `kept`: for every earlier block from `low` on, (replicas, size, ..., columns,
      samples), the rows of A from the first column of block `low` to its own last.

    **Returns:** the kernels, the rows of A of this block, and what was seen.
    """
    current = scheme.rows(effective, size, (block + 1 - low) * size)

    def step(carry: tuple[Kernels, Array], t: Array) -> Any:
        kernels, current = carry
        return scheme.step(setting, losses, effective, kernels, kept, current, t, block, low, size)

    times = block * size + jnp.arange(size)
    (kernels, current), seen = jax.lax.scan(step, (kernels, current), times)
    return kernels, current, seen


def averaged_edges(seen: Seen, setting: Setting) -> Array | None:
    """M_R at the first lag and at the last one that is kept, averaged over the times
    that have both, (2,) or with K outputs (2, K, K). None if all lags are kept.
    """
    if seen.edges is None or setting.memory is None:
        return None
    return jnp.mean(seen.edges[setting.memory :], axis=0)
