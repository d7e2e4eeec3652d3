"""Random numbers by absolute index: a seed's key by its number, a Brownian increment by its step."""

from __future__ import annotations

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.counter import fair_signs, normals

# Streams of one seed: a flow and a discrete algorithm with the same seed must be independent of each other.
BROWNIAN_STREAM = 0x42524F57
SAMPLING_STREAM = 0x53414D50
SECOND_STREAM = 0x53414D51
LABEL_STREAM = 0x4C41424C
TRANSFORMATION_STREAM = 0x4F505458
PART_STREAM = 0x7FFF0000


def seeds(start: int, stop: int, *, root: int = 0) -> Array:
    """Keys of the seeds `start, ..., stop - 1`, shape (stop - start,).

    A seed's key is `fold_in(key(root), absolute index)`: seed 17 gives the same run whether it is asked for alone or among a million.

    **Raises:** `ValueError` unless `0 <= start < stop`.
    """
    if not 0 <= start < stop:
        raise ValueError(f"seeds(start, stop) needs 0 <= start < stop, but got start={start}, stop={stop}")
    base = jax.random.key(root)
    return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.arange(start, stop, dtype=jnp.uint32))


def check_keys(keys: Any) -> Array:
    """Refuse what is not an array of typed keys, and generators that ignore all keys but the first under vmap."""
    if not (isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise ValueError(
            f"`keys` must be an array of typed PRNG keys, but is {type(keys).__name__}"
            f"{' of dtype ' + str(keys.dtype) if hasattr(keys, 'dtype') else ''}; write keys=sgfbias.seeds(0, 256) or jax.random.split(key, 256)"
        )
    if keys.ndim > 1:
        raise ValueError(f"`keys` must have shape () or (seeds,), but has shape {keys.shape}")
    if keys.size == 0:
        raise ValueError("`keys` is empty: ask for at least one seed")
    if "rbg" in str(jax.random.key_impl(keys)):
        raise ValueError(
            "the rbg generators ignore all keys but the first under vmap, so every seed would get one noise; "
            "use the default threefry: jax.random.key(0, impl='threefry2x32')"
        )
    return keys


class StepBrownianPath(dfx.AbstractBrownianPath):
    """A Brownian path on the grid of solver steps, keyed by the integer step.

    The increment of step k is drawn by the counter k, so the path does not depend on how the run is cut into chunks. With
    `substeps = m` it is the sum of m finer increments, numbers `k m, ..., k m + m - 1`: runs at dt, dt/2, dt/4, ... whose finest
    increments have one width share one path. Normals are drawn in float32 whatever the precision of the run (their grid, 2^-24 in
    probability, is far below any sampling error), so a float32 and a float64 run of one seed see the same path.
    """

    levy_area: ClassVar[Any] = dfx.BrownianIncrement
    key: Array
    offset: Array  # absolute number of the step that starts at solver time 0
    width: Array  # flow time per step
    shape: Any = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    substeps: Array | None = None  # None: increments are not refined
    two_point: bool = eqx.field(static=True, default=False)  # +-1 instead of normal, one random bit each

    @property
    def t0(self):
        return 0

    @property
    def t1(self):
        return jnp.inf

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        """The increment over the step that starts at solver time `t0`; `t1` must be the next grid point."""
        del left
        if t1 is None or use_levy:
            raise ValueError("StepBrownianPath gives increments over one solver step only; Lévy areas are not available")
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
        # Part j of a sum of noises has a stream of its own, and the first part has the stream it would have alone: adding a noise
        # leaves the others' paths as they were.
        leaves, structure = jax.tree.flatten(self.shape, is_leaf=is_shape)
        draws = []
        for j, shape in enumerate(leaves):
            stream = self.key if j == 0 else jax.random.fold_in(self.key, PART_STREAM + j)
            unit = fair_signs(stream, number, shape, jnp.float32) if self.two_point else normals(stream, number, shape)
            draws.append(unit.astype(self.dtype))
        return jax.tree.unflatten(structure, draws)


def is_shape(node: Any) -> bool:
    """Whether a node of a PyTree of shapes is itself a shape."""
    return isinstance(node, tuple) and len(node) > 0 and all(isinstance(i, int) for i in node)
