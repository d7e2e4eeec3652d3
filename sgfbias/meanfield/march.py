"""The pass of dynamical mean-field theory from the first step to the last.

At step t, with S effective examples (drift a, target y, mask s_t, white numbers):

    r_t = a m_t + g_t - eta sum_{u<t} K(t,u) f_u,        f_t = s_t L'(y, r_t)
    D_{t,u} = delta_{tu} - eta sum_{u<=v<t} K(t,v) A_{v,u},   A_{t,u} = s_t L'' D_{t,u}

where K is the response and g_t a Gaussian path with the correlation, both averaged over
the spectrum. Their averages give the moments `mu = alpha E[a f]`, `G = alpha E[s L'']`,
`M_C = alpha E[f f]`, `M_R = -alpha E[A]`, and these give the overlap, the response and
the correlation at t + 1. Everything at t depends on earlier times only, so that one
pass is exact, without an iteration to a fixed point.

The time axis is cut into blocks. In a block all shapes are fixed, and A is kept as one
array per block of rows, so that the work is that of a triangle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from sgfbias.meanfield.kernels import Effective, Kernels, Moments, Setting

# A pivot of the Cholesky factor below this share of the variance is taken as 0.
PIVOT = 1e-10


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
) -> tuple[Kernels, Array]:
    """The order parameters at times 0, ..., `times` - 1.

    **Arguments:**

    - `setting`: the numbers of the pass.
    - `losses`: a function of the pre-activations (replicas, samples) that returns the
      losses of the examples and their first and second derivatives.
    - `effective`: the effective examples. Steps beyond their masks and white numbers
      are not taken.
    - `start`: the overlap and the variance of the start.
    - `times`: the number of times.

    **Returns:** the `Kernels`, whose times beyond `times` mean nothing, and the mean
    losses (times,).
    """
    count, size = block_sizes(times, setting.memory)
    total = count * size
    effective = effective._replace(
        **{name: _padded(getattr(effective, name), total) for name in ("masks", "white")}
    )
    kernels = _first(setting, effective, start, total)
    reach = count if setting.memory is None else -(-setting.memory // size)
    rows: list[tuple[Array, int]] = []
    means = []
    for block in range(count):
        low = max(0, block - reach)
        kept = [old[..., (low - low_of) * size :, :] for old, low_of in rows]

        def run(kernels: Kernels, kept: list[Array], block: int = block, low: int = low) -> Any:
            return _block(setting, losses, effective, kernels, kept, block, low, size)

        # In reverse mode a block is computed again, so that memory holds one at a time.
        kernels, new, mean = jax.checkpoint(run)(kernels, kept)
        means.append(mean)
        first = max(0, block + 1 - reach)
        rows = [(old, low) for old in [*kept, new]][-(block + 1 - first) :] if reach else []
    return kernels, jnp.concatenate(means)[:times]


def _padded(array: Array, total: int) -> Array:
    """The array (replicas, steps, samples) with zeros up to `total` steps."""
    return jnp.pad(array, ((0, 0), (0, total - array.shape[1]), (0, 0)))


def _first(setting: Setting, effective: Effective, start: Any, total: int) -> Kernels:
    """The order parameters at time 0."""
    overlap, variance = start
    bins, (replicas, _, samples) = setting.bins, effective.white.shape
    count = bins.values.shape[0]
    q = overlap / bins.energy
    if setting.sphere:
        norm = jnp.sqrt(variance + overlap * q)
        q, variance = q / norm, variance / jnp.square(norm)
    dtype = q.dtype
    same = jnp.zeros((count, total + 1, total + 1), dtype).at[:, 0, 0].set(variance)
    return Kernels(
        jnp.zeros((count, total + 1), dtype).at[:, 0].set(q),
        jnp.zeros_like(same),
        same,
        same if replicas == 2 else None,
        jnp.zeros((replicas, total, total), dtype),
        jnp.zeros((replicas, total, samples), effective.drift.dtype),
    )


def _block(
    setting: Setting,
    losses: Any,
    effective: Effective,
    kernels: Kernels,
    kept: list[Array],
    block: int,
    low: int,
    size: int,
) -> tuple[Kernels, Array, Array]:
    """Take the steps of one block.

    **Arguments:**

    - `kept`: for every earlier block from `low` on, (replicas, size, columns, samples),
      the rows of A from the first column of block `low` to its own last.

    **Returns:** the kernels, the rows of A of this block, and the mean losses (size,).
    """
    replicas, _, samples = effective.white.shape
    columns = (block + 1 - low) * size
    current = jnp.zeros((replicas, size, columns, samples), effective.drift.dtype)

    def step(carry: tuple[Kernels, Array], t: Array) -> Any:
        kernels, current = carry
        return _step(setting, losses, effective, kernels, kept, current, t, block, low, size)

    times = block * size + jnp.arange(size)
    (kernels, current), mean = jax.lax.scan(step, (kernels, current), times)
    return kernels, current, mean


def _step(
    setting: Setting,
    losses: Any,
    effective: Effective,
    kernels: Kernels,
    kept: list[Array],
    current: Array,
    t: Array,
    block: int,
    low: int,
    size: int,
) -> tuple[tuple[Kernels, Array], Array]:
    """The effective examples at t, their moments, and the kernels at t + 1."""
    low_type, eta, bins = effective.drift.dtype, setting.step_size, setting.bins
    total = kernels.forces.shape[1]
    seen = bins.weights * bins.values
    pull = (jnp.einsum("b,bu->u", seen, kernels.response[:, t, :total]) * eta).astype(low_type)
    factors, path = _paths(setting, effective, kernels, t, seen)
    overlap = jnp.sum(bins.weights * bins.energies * kernels.overlaps[:, t])
    r = effective.drift * overlap.astype(low_type) + path
    r = r - jnp.einsum("u,kus->ks", pull, kernels.forces)
    values, slopes, curvatures = losses(r)
    mask = effective.masks[:, t]
    force, stiff = mask * slopes, mask * curvatures
    kicks = _kicks(pull, kept, current, t, block, low, size)
    row = stiff[:, None] * kicks
    current = jax.lax.dynamic_update_index_in_dim(current, row, t - block * size, axis=1)
    forces = kernels.forces.at[:, t].set(force)
    kernels = kernels._replace(factors=factors, forces=forces)
    moments = _moments(setting, effective, forces, force, stiff, row, t, low * size)
    return (_advance(setting, kernels, moments, t), current), jnp.mean(values)


def _paths(
    setting: Setting, effective: Effective, kernels: Kernels, t: Array, seen: Array
) -> tuple[Array, Array]:
    """The rows t of the Cholesky factors, and the Gaussian paths (replicas, samples).

    Two replicas have paths `(p + d)/sqrt(2)` and `(p - d)/sqrt(2)`, where p and d are
    independent, with the sum and the difference of the two correlations.
    """
    total = kernels.forces.shape[1]

    def averaged(correlation: Array) -> Array:
        row = jnp.einsum("b,bu->u", seen, correlation[:, t, :total])
        if setting.explicit:
            return row
        q = kernels.overlaps
        along = q[:, t, None] * q[:, :total]
        return row + jnp.einsum("b,bu->u", seen * setting.bins.energies, along)

    same = averaged(kernels.same)
    if kernels.other is None:
        rows = same[None]
    else:
        other = averaged(kernels.other)
        rows = jnp.stack([same + other, same - other])
    floor = PIVOT * same[t]
    new = jax.vmap(lambda factor, row: _factor_row(factor, row, t, floor))(kernels.factors, rows)
    factors = kernels.factors.at[:, t].set(new)
    parts = jnp.einsum("ku,kus->ks", new.astype(effective.white.dtype), effective.white)
    if kernels.other is None:
        return factors, parts
    half = jnp.asarray(0.5**0.5, parts.dtype)
    return factors, jnp.stack([parts[0] + parts[1], parts[0] - parts[1]]) * half


def _factor_row(factor: Array, row: Array, t: Array, floor: Array) -> Array:
    """The row t of the Cholesky factor of a correlation whose row t is `row`.

    A column whose pivot is not above `floor` is 0, since a smooth path is determined by
    its past up to rounding.
    """
    index = jnp.arange(row.shape[0])
    pivots = jnp.diagonal(factor)
    regular = pivots > 0
    full = factor + jnp.diag(jnp.where(regular, 0.0, 1.0).astype(row.dtype))
    past = jnp.where(index < t, row, 0)
    solved = solve_triangular(full, past, lower=True)
    solved = jnp.where((index < t) & regular, solved, 0)
    pivot = row[t] - solved @ solved
    is_new = pivot > floor
    root = jnp.where(is_new, jnp.sqrt(jnp.where(is_new, pivot, 1)), 0)
    return solved.at[t].set(root)


def _kicks(
    pull: Array, kept: list[Array], current: Array, t: Array, block: int, low: int, size: int
) -> Array:
    """`D_{t,u}` for u from the first column of block `low` on, (replicas, columns,
    samples).
    """
    replicas, _, columns, samples = current.shape
    found = jnp.zeros((replicas, columns, samples), current.dtype)
    for k, rows in enumerate([*kept, current]):
        first = (block - len(kept) + k) * size
        weights = jax.lax.dynamic_slice_in_dim(pull, first, size)
        part = jnp.einsum("v,kvx->kx", weights, rows.reshape(replicas, size, -1))
        part = part.reshape(replicas, -1, samples)
        found = found - jnp.pad(part, ((0, 0), (0, columns - part.shape[1]), (0, 0)))
    return found.at[:, t - low * size].set(1)


def _moments(
    setting: Setting,
    effective: Effective,
    forces: Array,
    force: Array,
    stiff: Array,
    row: Array,
    t: Array,
    first: int,
) -> Moments:
    """The averages at step t; `row` is the row of A from column `first` on."""
    alpha = setting.alpha
    replicas, total, samples = forces.shape
    high = alpha.dtype
    drift = jnp.mean(force * effective.drift)
    noise = jnp.mean(jnp.einsum("kus,ks->ku", forces, force), axis=0) / samples
    cross = None
    if replicas == 2:
        crossed = jnp.einsum("kus,ks->ku", forces, force[::-1])
        cross = alpha * (jnp.mean(crossed, axis=0) / samples).astype(high)
    index = first + jnp.arange(row.shape[1])
    short = index < t
    if setting.memory is not None:
        short = short & (t - index <= setting.memory)
    mean = jnp.where(short, jnp.mean(row, axis=(0, 2)), 0).astype(high)
    memory = jnp.pad(-alpha * mean, (first, total - first - row.shape[1]))
    return Moments(
        alpha * drift.astype(high),
        alpha * jnp.mean(stiff).astype(high),
        alpha * noise.astype(high),
        cross,
        memory,
    )


def _advance(setting: Setting, kernels: Kernels, moments: Moments, t: Array) -> Kernels:
    """The kernels at time t + 1."""
    eta, bins, total = setting.step_size, setting.bins, kernels.forces.shape[1]
    values = bins.values[:, None]
    index = jnp.arange(total + 1)
    decay = 1 - eta * (setting.ridge + values * moments.stiffness)
    back = eta * values

    def remembered(matrix: Array) -> Array:
        return back * jnp.einsum("v,bvu->bu", moments.memory, matrix[:, :total])

    row = decay * kernels.response[:, t] + remembered(kernels.response)
    row = jnp.where(index == t, 1, row)
    q = kernels.overlaps
    if setting.explicit:
        q_new = q[:, t] - eta * (setting.ridge * q[:, t] + moments.drift)
    else:
        q_new = decay[:, 0] * q[:, t] + remembered(q[..., None])[:, 0] - eta * moments.drift
    response = kernels.response.at[:, t + 1].set(row)

    def correlated(matrix: Array, noise: Array) -> Array:
        """The row t + 1 of a correlation."""
        kicked = jnp.einsum("buv,v->bu", response[..., :total], noise)
        kicked = jnp.square(eta) * values * kicked
        new = jnp.where(index <= t, decay * matrix[:, t] + remembered(matrix) + kicked, 0)
        memory = jnp.einsum("v,bv->b", moments.memory, new[:, :total])
        last = decay[:, 0] * new[:, t] + back[:, 0] * memory + kicked[:, t + 1]
        return new.at[:, t + 1].set(last)

    same = correlated(kernels.same, moments.noise)
    other = None if moments.cross is None else correlated(kernels.other, moments.cross)
    if setting.sphere:
        square = jnp.sum(bins.weights * (same[:, t + 1] + bins.energies * jnp.square(q_new)))
        norm = jnp.sqrt(square)
        scale = jnp.where(index == t + 1, jnp.square(norm), norm)
        q_new, same = q_new / norm, same / scale
        response = response.at[:, t + 1].divide(norm)
        other = None if other is None else other / scale

    def extended(matrix: Array, new: Array) -> Array:
        return matrix.at[:, t + 1].set(new).at[:, :, t + 1].set(new)

    return kernels._replace(
        overlaps=q.at[:, t + 1].set(q_new),
        response=response,
        same=extended(kernels.same, same),
        other=None if kernels.other is None else extended(kernels.other, other),
    )
