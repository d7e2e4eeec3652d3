"""A step of dynamical mean-field theory for a model with K outputs and M directions.

At step t, with S effective examples (drift a in R^M, target y, mask s_t, white
numbers), and with H the Hessian of L in the pre-activations:

    r_t = m_t a + g_t - eta sum_{u<t} K(t,u) f_u,        f_t = s_t grad L(y, r_t)
    D_{t,u} = delta_{tu} - eta sum_{u<=v<t} K(t,v) A_{v,u},   A_{t,u} = s_t H_t D_{t,u}

The overlap m is (K, M), and responses, correlations, D and A are K x K. Their averages
are `mu = alpha E[f a^T]`, `G = alpha E[s H]`, `M_C = alpha E[f f^T]`, `M_R = -alpha
E[A]`. The correlation has `C(u, t) = C(t, u)^T`, and the response R(t, u) says how
output a moves if output b is kicked. Gerbelot, Troiani, Mignacco, Krzakala, Zdeborová
2022 (arXiv 2210.06591) prove such equations.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.meanfield.kernels import Effective, Kernels, Moments, Scheme, Seen, Setting
from sgfbias.meanfield.step import PIVOT, edges, factor_row


def _first(setting: Setting, effective: Effective, start: Any, total: int) -> Kernels:
    """The order parameters at time 0, from the overlap (K, M) and the variance (K,
    K).
    """
    overlap, variance = start
    bins, (replicas, _, outputs, samples) = setting.bins, effective.white.shape
    count = bins.values.shape[0]
    gram = jnp.einsum("b,bmn->mn", bins.weights, bins.energies)
    q = overlap @ jnp.linalg.pinv(gram, hermitian=True)
    if setting.sphere:
        norm = jnp.sqrt(jnp.diagonal(variance + overlap @ q.T))
        q, variance = q / norm[:, None], variance / jnp.outer(norm, norm)
    dtype = q.dtype
    same = jnp.zeros((count, total + 1, total + 1, outputs, outputs), dtype)
    same = same.at[:, 0, 0].set(variance)
    return Kernels(
        jnp.zeros((count, total + 1, *q.shape), dtype).at[:, 0].set(q),
        jnp.zeros_like(same),
        same,
        same if replicas == 2 else None,
        jnp.zeros((replicas, total * outputs, total * outputs), dtype),
        jnp.zeros((replicas, total, outputs, samples), effective.drift.dtype),
    )


def _rows(effective: Effective, size: int, columns: int) -> Array:
    """Rows of A that are still 0, (replicas, size, K, K, columns, samples)."""
    replicas, _, outputs, samples = effective.white.shape
    shape = (replicas, size, outputs, outputs, columns, samples)
    return jnp.zeros(shape, effective.drift.dtype)


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
    pull = jnp.einsum("b,buac->uac", seen, kernels.response[:, t, :total]) * eta
    pull = pull.astype(low_type)
    factors, path = _paths(setting, effective, kernels, t, seen)
    overlap = jnp.einsum("b,bkm,bmn->kn", bins.weights, kernels.overlaps[:, t], bins.energies)
    r = jnp.einsum("an,sn->as", overlap.astype(low_type), effective.drift) + path
    r = r - jnp.einsum("uac,kucs->kas", pull, kernels.forces)
    values, slopes, hessians = losses(r)
    mask = effective.masks[:, t]
    force, stiff = mask[:, None] * slopes, mask[:, None, None] * hessians
    kicks = _kicks(pull, kept, current, t, block, low, size)
    row = jnp.einsum("kabs,kbcus->kacus", stiff, kicks)
    current = jax.lax.dynamic_update_index_in_dim(current, row, t - block * size, axis=1)
    forces = kernels.forces.at[:, t].set(force)
    kernels = kernels._replace(factors=factors, forces=forces)
    moments = _moments(setting, effective, forces, force, stiff, row, t, low * size)
    found = Seen(jnp.mean(values), edges(setting, moments.memory, t))
    return (_advance(setting, kernels, moments, t), current), found


def _paths(
    setting: Setting, effective: Effective, kernels: Kernels, t: Array, seen: Array
) -> tuple[Array, Array]:
    """The K rows of the Cholesky factors at time t, and the Gaussian paths (replicas,
    K, samples). Rows are ordered by time, then by output.
    """
    replicas, total, outputs, samples = kernels.forces.shape

    def averaged(correlation: Array) -> Array:
        row = jnp.einsum("b,buac->auc", seen, correlation[:, t, :total])
        if not setting.explicit:
            q, energies = kernels.overlaps, setting.bins.energies
            now = jnp.einsum("b,bam,bmn->ban", seen, q[:, t], energies)
            row = row + jnp.einsum("ban,bucn->auc", now, q[:, :total])
        return row

    same = averaged(kernels.same)
    if kernels.other is None:
        rows = same[None]
    else:
        other = averaged(kernels.other)
        rows = jnp.stack([same + other, same - other])
    rows = rows.reshape(replicas, outputs, total * outputs)
    factors = kernels.factors
    for a in range(outputs):
        place, floor = t * outputs + a, PIVOT * same[a, t, a]
        new = jax.vmap(lambda factor, row: factor_row(factor, row, place, floor))(
            factors, rows[:, a]
        )
        factors = factors.at[:, place].set(new)
    new = jax.lax.dynamic_slice_in_dim(factors, t * outputs, outputs, axis=1)
    white = effective.white.reshape(replicas, total * outputs, samples)
    parts = jnp.einsum("kan,kns->kas", new.astype(white.dtype), white)
    if kernels.other is None:
        return factors, parts
    half = jnp.asarray(0.5**0.5, parts.dtype)
    return factors, jnp.stack([parts[0] + parts[1], parts[0] - parts[1]]) * half


def _kicks(
    pull: Array, kept: list[Array], current: Array, t: Array, block: int, low: int, size: int
) -> Array:
    """`D_{t,u}` for u from the first column of block `low` on, (replicas, K, K,
    columns, samples).
    """
    replicas, _, outputs, _, columns, samples = current.shape
    found = jnp.zeros((replicas, outputs, outputs, columns, samples), current.dtype)
    for k, rows in enumerate([*kept, current]):
        first = (block - len(kept) + k) * size
        weights = jax.lax.dynamic_slice_in_dim(pull, first, size)
        flat = rows.reshape(replicas, size, outputs, -1)
        part = jnp.einsum("vab,kvbx->kax", weights, flat)
        part = part.reshape(replicas, outputs, outputs, -1, samples)
        missing = columns - part.shape[3]
        found = found - jnp.pad(part, ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0)))
    one = jnp.eye(outputs, dtype=current.dtype)[:, :, None]
    return found.at[:, :, :, t - low * size].set(one)


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
    replicas, total, _, samples = forces.shape
    high = alpha.dtype
    drift = jnp.einsum("kas,sm->am", force, effective.drift) / (replicas * samples)
    # In double precision, for the reason given in step.py.
    now, exact = force.astype(high), forces.astype(high)
    noise = jnp.einsum("kas,kucs->uac", now, exact) / (replicas * samples)
    cross = None
    if replicas == 2:
        crossed = jnp.einsum("kas,kucs->uac", now[::-1], exact) / (replicas * samples)
        cross = alpha * crossed
    index = first + jnp.arange(row.shape[3])
    short = index < t
    if setting.memory is not None:
        short = short & (t - index <= setting.memory)
    mean = jnp.moveaxis(jnp.mean(row, axis=(0, 4)), 2, 0)
    mean = jnp.where(short[:, None, None], mean, 0).astype(high)
    memory = jnp.pad(-alpha * mean, ((first, total - first - mean.shape[0]), (0, 0), (0, 0)))
    return Moments(
        alpha * drift.astype(high),
        alpha * jnp.mean(stiff, axis=(0, 3)).astype(high),
        alpha * noise,
        cross,
        memory,
    )


def _advance(setting: Setting, kernels: Kernels, moments: Moments, t: Array) -> Kernels:
    """The kernels at time t + 1."""
    eta, bins, (_, total, outputs, _) = setting.step_size, setting.bins, kernels.forces.shape
    values = bins.values[:, None, None]
    index = jnp.arange(total + 1)[:, None, None]
    one = jnp.eye(outputs, dtype=eta.dtype)
    decay = one - eta * (setting.ridge * one + values * moments.stiffness)
    back = eta * values

    def remembered(matrix: Array) -> Array:
        kept = matrix[:, :total]
        return back[..., None] * jnp.einsum("vac,bvucd->buad", moments.memory, kept)

    row = jnp.einsum("bac,bucd->buad", decay, kernels.response[:, t])
    row = jnp.where(index == t, one, row + remembered(kernels.response))
    q = kernels.overlaps
    if setting.explicit:
        q_new = q[:, t] - eta * (setting.ridge * q[:, t] + moments.drift)
    else:
        past = back * jnp.einsum("vac,bvcm->bam", moments.memory, q[:, :total])
        q_new = decay @ q[:, t] + past - eta * moments.drift
    response = kernels.response.at[:, t + 1].set(row)

    def correlated(matrix: Array, noise: Array) -> Array:
        """The row t + 1 of a correlation."""
        kicked = jnp.einsum("vac,buvdc->buad", noise, response[:, :, :total])
        kicked = jnp.square(eta) * values[..., None] * kicked
        new = jnp.einsum("bac,bucd->buad", decay, matrix[:, t]) + remembered(matrix) + kicked
        new = jnp.where(index <= t, new, 0)
        memory = jnp.einsum("vac,bvdc->bad", moments.memory, new[:, :total])
        last = jnp.einsum("bac,bdc->bad", decay, new[:, t])
        return new.at[:, t + 1].set(last + back * memory + kicked[:, t + 1])

    same = correlated(kernels.same, moments.noise)
    other = None if moments.cross is None else correlated(kernels.other, moments.cross)
    if setting.sphere:  # each output has a sphere of its own
        along = jnp.einsum("bam,bmn,ban->ba", q_new, bins.energies, q_new)
        square = jnp.diagonal(same[:, t + 1], axis1=1, axis2=2) + along
        norm = jnp.sqrt(bins.weights @ square)
        scale = jnp.where(index == t + 1, jnp.outer(norm, norm), norm[:, None])
        q_new, same = q_new / norm[:, None], same / scale
        response = response.at[:, t + 1].divide(norm[:, None])
        other = None if other is None else other / scale

    def extended(matrix: Array, new: Array) -> Array:
        turned = jnp.swapaxes(new, -1, -2)
        return matrix.at[:, :, t + 1].set(turned).at[:, t + 1].set(new)

    return kernels._replace(
        overlaps=q.at[:, t + 1].set(q_new),
        response=response,
        same=extended(kernels.same, same),
        other=None if other is None else extended(kernels.other, other),
    )


MANY = Scheme(_first, _rows, _step)
