"""One solve after the other, with its effective examples on all devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sgfbias.core.checks import is_concrete
from sgfbias.meanfield.kernels import Effective


def over_keys(one: Callable[[Array], Any], keys: Array) -> Any:
    """The results of every key, stacked, one key after the other, as each has much
    memory. A single key gives no axis.
    """
    if keys.ndim == 0:
        return one(keys)
    if not is_concrete(keys):
        return jax.lax.map(one, keys)
    return jax.tree.map(lambda *rows: jnp.stack(rows), *map(one, keys))


def spread(effective: Effective) -> Effective:
    """The effective examples in equal parts on the local devices, or on as many of them
    as divide their number.

    The program of one device then runs on all, and adds up the averages of the parts,
    so that its numbers are those of one device up to rounding. The kernels, which are
    small, are on every device.
    """
    devices, samples = jax.local_devices(), effective.masks.shape[-1]
    count = max(k for k in range(1, len(devices) + 1) if samples % k == 0)
    if count == 1 or not is_concrete(effective):
        return effective
    mesh = Mesh(np.array(devices[:count]), ("samples",))

    def parts(array: Array, axis: int) -> Array:
        names: list[str | None] = [None] * array.ndim
        names[axis] = "samples"
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*names)))

    axes = Effective(drift=0, targets=0, masks=-1, white=-1)
    return Effective(*map(parts, effective, axes))


def gathered(tree: Any) -> Any:
    """Results of several devices, which each has whole, on the default device."""

    def one(leaf: Array) -> Array:
        if is_concrete(leaf) and len(leaf.devices()) > 1:
            return jnp.asarray(np.asarray(leaf))
        return leaf

    return jax.tree.map(one, tree)
