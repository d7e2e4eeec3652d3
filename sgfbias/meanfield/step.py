"""A step of dynamical mean-field theory for a model with one output.

At step t, with S effective examples (drift a, target y, mask s_t, white numbers):

    r_t = a m_t + g_t - eta sum_{u<t} K(t,u) f_u,        f_t = s_t L'(y, r_t)
    D_{t,u} = delta_{tu} - eta sum_{u<=v<t} K(t,v) A_{v,u},   A_{t,u} = s_t L'' D_{t,u}

where K is the response and g_t a Gaussian path with the correlation, both averaged over
the spectrum. Their averages give the moments `mu = alpha E[a f]`, `G = alpha E[s L'']`,
`M_C = alpha E[f f]`, `M_R = -alpha E[A]`, and these give the overlap, the response and
the correlation at t + 1.

The drift is `a = c + sqrt(Delta) h0` if the covariance is isotropic, and c otherwise,
where Stein's lemma gives the part along v. For a teacher of another covariance it is h0
over its variance, and g_t is what is left of the path without its part along h0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from sgfbias.meanfield.kernels import Effective, Kernels, Moments, Scheme, Seen, Setting

# A pivot of the Cholesky factor below this share of the variance is taken as 0.
PIVOT = 1e-10


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


def _rows(effective: Effective, size: int, columns: int) -> Array:
    """Rows of A that are still 0, (replicas, size, columns, samples)."""
    replicas, _, samples = effective.white.shape
    return jnp.zeros((replicas, size, columns, samples), effective.drift.dtype)


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
) -> tuple[tuple[Kernels, Array], Seen]:
    """The effective examples at t, their moments, and the kernels at t + 1."""
    low_type, eta, bins = effective.drift.dtype, setting.step_size, setting.bins
    total = kernels.forces.shape[1]
    seen = bins.weights * bins.values
    pull = (jnp.einsum("b,bu->u", seen, kernels.response[:, t, :total]) * eta).astype(low_type)
    factors, path = _paths(setting, effective, kernels, t, seen)
    overlap = jnp.sum(setting.seen_energies * kernels.overlaps[:, t])
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
    found = Seen(jnp.mean(values), edges(setting, moments.memory, t))
    return (_advance(setting, kernels, moments, t), current), found


def edges(setting: Setting, memory: Array, t: Array) -> Array | None:
    """The row t of M_R at the first lag, and at the last one that is kept, (2, ...), or
    None if all are kept.
    """
    if setting.memory is None:
        return None
    lags = jnp.asarray([1, setting.memory])
    there = (t >= lags).reshape(2, *[1] * (memory.ndim - 1))
    return jnp.where(there, memory[jnp.maximum(t - lags, 0)], 0)


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
        row = row + jnp.einsum("b,bu->u", seen * setting.bins.energies, along)
        if setting.teacher:  # the part along h0 is in the drift
            own = setting.seen_energies
            signal = own @ q[:, :total]
            row = row - (own @ q[:, t]) * signal / jnp.sum(own)
        return row

    same = averaged(kernels.same)
    if kernels.other is None:
        rows = same[None]
    else:
        other = averaged(kernels.other)
        rows = jnp.stack([same + other, same - other])
    floor = PIVOT * same[t]
    new = jax.vmap(lambda factor, row: factor_row(factor, row, t, floor))(kernels.factors, rows)
    factors = kernels.factors.at[:, t].set(new)
    parts = jnp.einsum("ku,kus->ks", new.astype(effective.white.dtype), effective.white)
    if kernels.other is None:
        return factors, parts
    half = jnp.asarray(0.5**0.5, parts.dtype)
    return factors, jnp.stack([parts[0] + parts[1], parts[0] - parts[1]]) * half


def factor_row(factor: Array, row: Array, t: Array, floor: Array) -> Array:
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
    # A sum in single precision is not positive semidefinite, nor the correlation with
    # it, and the small pivots of smooth paths would amplify that error.
    exact = forces.astype(high)
    noise = jnp.mean(jnp.einsum("kus,ks->ku", exact, force.astype(high)), axis=0) / samples
    cross = None
    if replicas == 2:
        crossed = jnp.einsum("kus,ks->ku", exact, force[::-1].astype(high))
        cross = alpha * jnp.mean(crossed, axis=0) / samples
    index = first + jnp.arange(row.shape[1])
    short = index < t
    if setting.memory is not None:
        short = short & (t - index <= setting.memory)
    mean = jnp.where(short, jnp.mean(row, axis=(0, 2)), 0).astype(high)
    memory = jnp.pad(-alpha * mean, (first, total - first - row.shape[1]))
    return Moments(
        alpha * drift.astype(high),
        alpha * jnp.mean(stiff).astype(high),
        alpha * noise,
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
        drift = moments.drift
        if setting.teacher:
            drift = bins.values * _sensitivity(setting, q, moments, t)
        q_new = decay[:, 0] * q[:, t] + remembered(q[..., None])[:, 0] - eta * drift
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


def _sensitivity(setting: Setting, q: Array, moments: Moments, t: Array) -> Array:
    """`alpha E[df_t / dh0]` at fixed paths g, for a teacher.

    With k_u = w_u . Sigma v / d, the covariance of h0 and g_u, Stein's lemma says
    `alpha E[h0 f_t] = Var(h0) alpha E[df_t / dh0] + G_t k_t - sum_{u<t} M_R(t,u) k_u`.
    """
    own = setting.seen_energies
    signal = own @ q
    known = moments.stiffness * signal[t] - moments.memory @ signal[: moments.memory.shape[0]]
    return moments.drift - known / jnp.sum(own)


ONE = Scheme(_first, _rows, _step)
