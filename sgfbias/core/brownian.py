"""Random numbers by absolute index.

The key of a seed depends only on the number of the seed, and a Brownian increment only
on that key and the number of the step.
"""

from __future__ import annotations

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_whole, shown
from sgfbias.core.counter import fair_signs, normals

# The random streams of one seed. They differ by purpose, so that for example a flow and
# a discrete algorithm with the same seed are independent of each other.
BROWNIAN_STREAM = 0x42524F57
SAMPLING_STREAM = 0x53414D50
SECOND_STREAM = 0x53414D51
SAMPLING_START_STREAM = 0x53414D52
SAMPLING_REFRESH_STREAM = 0x53414D53
LABEL_STREAM = 0x4C41424C
TRANSFORMATION_STREAM = 0x4F505458
START_STREAM = 0x53544152
PERTURBATION_STREAM = 0x50455254
PART_STREAM = 0x7FFF0000


def seeds(start: int, stop: int | None = None, *, root: int = 0) -> Array:
    """The keys of the seeds `start, ..., stop - 1`; as for `range`, `seeds(256)` means
    `seeds(0, 256)`.

    The key of a seed is `fold_in(key(root), absolute index)`. Seed 17 therefore gives
    the same run whether it is asked for alone or among a million.

    **Arguments:**

    - `start`: whole number >= 0. The first seed.
    - `stop`: whole number > `start`. The seed after the last one.
    - `root`: whole number. Another root gives other, independent seeds.

    **Returns:** (stop - start,), typed keys for `simulate(..., keys=)`.

    **Raises:** `ValueError` unless these are whole numbers, `0 <= start < stop <= 2^32`
    (beyond, the indices would repeat), and `root` has at most 32 bits.
    """
    start, stop = (0, start) if stop is None else (start, stop)
    first = as_whole(start, "start", least=0, most=2**32 - 1)
    last = as_whole(stop, "stop", least=0, most=2**32)
    root = as_whole(root, "root", least=-(2**31), most=2**32 - 1)
    if first >= last:
        raise ValueError(
            f"seeds(start, stop) needs 0 <= start < stop, but got start={start}, stop={stop}"
        )
    return _folded(jax.random.key(root), np.arange(first, last, dtype=np.uint32))


@jax.jit
def _folded(key: Array, indices: Array) -> Array:
    """The key of each index, in one program."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def check_key(key: Any) -> Array:
    """Return `key` if it is one typed key, from which something is drawn.

    **Raises:** `ValueError` for anything else.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(
            f"`key` must be a typed PRNG key, but is {shown(key)}; write jax.random.key(0)"
        )
    if key.ndim:
        raise ValueError(f"`key` must be a single key, but has shape {key.shape}")
    return check_keys(key)


def check_keys(keys: Any) -> Array:
    """Return `keys` if they are an array of typed keys of shape () or (seeds,).

    **Raises:** `ValueError` for anything else, and for the rbg generators, which ignore
    all keys but the first under vmap.
    """
    if not (isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise ValueError(
            f"`keys` must be an array of typed PRNG keys, but is {type(keys).__name__}"
            f"{' of dtype ' + str(keys.dtype) if hasattr(keys, 'dtype') else ''}; write "
            "keys=sgfbias.seeds(0, 256) or jax.random.split(key, 256)"
        )
    if keys.ndim > 1:
        raise ValueError(f"`keys` must have shape () or (seeds,), but has shape {keys.shape}")
    if keys.size == 0:
        raise ValueError("`keys` is empty: give at least one key")
    if "rbg" in str(jax.random.key_impl(keys)):
        raise ValueError(
            "the rbg generators ignore all keys but the first under vmap, so every seed would "
            "get the same noise; use the default threefry: jax.random.key(0, impl='threefry2x32')"
        )
    return keys


class StepBrownianPath(dfx.AbstractBrownianPath):
    """A Brownian path on the grid of solver steps, indexed by the number of the step.

    The increment of step k is drawn with the counter k, so the path does not depend on
    how the run is cut into chunks. With `substeps = m` it is the sum of the m finer
    increments `k m, ..., k m + m - 1`. Runs at dt, dt/2, dt/4, ... whose finest
    increments have the same width then share one path.

    Normal numbers are drawn in float32 whatever the precision of the run, so that a
    float32 and a float64 run of one seed see the same path. Their grid, 2^-24 in
    probability, is far below any sampling error.
    """

    levy_area: ClassVar[Any] = dfx.BrownianIncrement
    key: Array
    # Absolute number of the step that starts at solver time 0.
    offset: Array
    # Flow time per step.
    width: Array
    shape: Any = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    # Finer increments per step. None: increments are not refined.
    substeps: Array | None = None
    # Increments are +-sqrt(width), from one random bit each, instead of normal.
    two_point: bool = eqx.field(static=True, default=False)

    @property
    def t0(self):
        return 0

    @property
    def t1(self):
        return jnp.inf

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        """The increment over the solver step from `t0` to `t1`, the next grid point."""
        del left
        if t1 is None or use_levy:
            raise ValueError(
                "StepBrownianPath gives increments over one solver step only, and has no Lévy "
                "areas: use a solver that needs neither more"
            )
        step = self.offset + jnp.round(t0).astype(jnp.int32)
        if self.substeps is None:
            unit, scale = self._normal(step), jnp.sqrt(self.width)
        else:
            zero = jax.tree.map(lambda s: jnp.zeros(s, self.dtype), self.shape, is_leaf=is_shape)

            substeps = self.substeps

            def add(j, total):
                return jax.tree.map(jnp.add, total, self._normal(step * substeps + j))

            unit = jax.lax.fori_loop(0, self.substeps, add, zero)
            scale = jnp.sqrt(self.width / self.substeps.astype(self.dtype))
        return jax.tree.map(lambda z: z * scale, unit)

    def _normal(self, number: Array) -> Any:
        """Increment `number` in units of its standard deviation: normal, or +-1."""
        # Part j of a sum of noises has its own stream, and the first part has the
        # stream that it would have alone. Adding a noise therefore leaves the paths of
        # the others unchanged.
        leaves, structure = jax.tree.flatten(self.shape, is_leaf=is_shape)
        draws = []
        for j, shape in enumerate(leaves):
            stream = self.key if j == 0 else jax.random.fold_in(self.key, PART_STREAM + j)
            unit = (
                fair_signs(stream, number, shape, jnp.float32)
                if self.two_point
                else normals(stream, number, shape)
            )
            draws.append(unit.astype(self.dtype))
        return jax.tree.unflatten(structure, draws)


def is_shape(node: Any) -> bool:
    """Whether a node of a PyTree of shapes is itself a shape."""
    return isinstance(node, tuple) and len(node) > 0 and all(isinstance(i, int) for i in node)
