"""Which modes a linear network has, how long they live, and how many it needs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_whole
from sgfbias.recurrent.horizon import gramians
from sgfbias.recurrent.linear import LinearRNN, check_linear, check_stable


class Spectrum(NamedTuple):
    """The modes of a linear network, slowest first.

    - `eigenvalues`: (d,) complex, of A, by falling absolute value.
    - `half_lives`: (d,), the lags after which a mode has halved; infinity for an
      absolute value of 1 or more.
    - `shares`: (d,), the share of every mode in the energy of the impulse response from
      lag `start` on. They add up to 1, and a share can be negative where modes cancel.
      NaN if the energy is infinite or 0, and if A has no independent eigenvectors.
    - `start`: the first lag that counts.
    """

    eigenvalues: np.ndarray
    half_lives: np.ndarray
    shares: np.ndarray
    start: int

    @property
    def radius(self) -> float:
        """The spectral radius, the largest absolute value."""
        return float(np.abs(self.eigenvalues[0]))

    def __str__(self) -> str:
        lines = [
            f"{len(self.eigenvalues)} modes, spectral radius {self.radius:.6g}; shares of the "
            f"energy from lag {self.start} on",
            f"{'eigenvalue':>24} {'half-life':>10} {'share':>8}",
        ]
        if self.radius >= 1:
            lines[0] += (
                f": infinite, as the eigenvalue {self.eigenvalues[0]:.6g} has an absolute value "
                "of 1 or more"
            )
        for value, life, share in zip(self.eigenvalues, self.half_lives, self.shares, strict=True):
            shown = f"{value.real:.6g}" if value.imag == 0 else f"{value:.4g}"
            lines.append(f"{shown:>24} {life:>10.3g} {share:>8.3f}")
        return "\n".join(lines)


def spectrum(network: LinearRNN, start: int = 0) -> Spectrum:
    """The eigenvalues of the transition, their half-lives, and their shares of the
    impulse response from lag `start` on.

    With a teacher without memory and `start` = the length of training, the shares are
    those of the error of longer sequences. The eigenvectors must be independent; a
    defective matrix has shares that are not reliable.

    **Arguments:**

    - `network`: a `LinearRNN` with known values.
    - `start`: the first lag that counts, at least 0.

    **Raises:** `ValueError` for another network, and for a start below 0.
    """
    check_linear(network)
    start = as_whole(start, "start", least=0)
    A, B, C = (np.asarray(leaf, dtype=np.float64) for leaf in (network.A, network.B, network.C))
    values, vectors = np.linalg.eig(A)
    order = np.argsort(-np.abs(values), kind="stable")
    values, vectors = values[order].astype(complex), vectors[:, order].astype(complex)
    size = np.abs(values)
    with np.errstate(divide="ignore"):
        lives = np.where(size < 1, np.log(0.5) / np.log(np.minimum(size, 1)), np.inf)
    shares = np.full(len(values), np.nan)
    if size[0] < 1 and np.linalg.matrix_rank(vectors) == len(values):
        left, right = C @ vectors, np.linalg.solve(vectors, B.astype(complex))
        # <C v_m w_m B, C v_n w_n B> = (v_n^* C^* C v_m) (w_m B B^* w_n^*).
        inner = (left.conj().T @ left).T * (right @ right.conj().T)
        product = values[:, None] * values.conj()[None]
        # Late lags would underflow without the largest power, which shares do not need.
        power = (product / (size[0] ** 2 or 1.0)) ** start
        energy = inner * power / (1 - product)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.real(energy.sum(axis=1)) / np.real(energy.sum())
    return Spectrum(values, lives, shares, start)


def hankel_values(network: LinearRNN) -> Array:
    """The Hankel singular values of a linear network, largest first, (d,).

    They are the square roots of the eigenvalues of the product of both Gramians, and
    the singular values of the infinite matrix of the blocks `h_{i+j}`. Those that are
    not small are the states that the map needs. Values that differ from each other can
    be differentiated once; one that is 0 up to rounding has the derivative 0.

    **Arguments:**

    - `network`: a `LinearRNN` with a spectral radius below 1.

    **Raises:** `ValueError` for another network, and for a spectral radius of 1 or
    more, with the eigenvalue. Within `jax.jit` the values are then NaN or infinite.
    """
    check_linear(network)
    check_stable(network.A, "`hankel_values`")
    return _values(*gramians(network.A, network.B, network.C))


@jax.custom_jvp
def _values(reach: Array, seen: Array) -> Array:
    """The square roots of the eigenvalues of the product of two Gramians."""
    G, F = _roots(seen, reach)
    return jnp.linalg.svd(G.T @ F, compute_uv=False)


@_values.defjvp
def _change_of_values(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """`ds = (l^T dX l + r^T dY r) / (2 s)` for the Gramians X and Y and the left and
    right eigenvectors l and r of `X Y`, which `_modes` scales.

    The roots of X and Y are not differentiated, as those of singular Gramians have no
    derivative.
    """
    values, left, right = _modes(*primals)
    dX, dY = tangents
    slope = jnp.sum(left * (dX @ left), axis=0) + jnp.sum(right * (dY @ right), axis=0)
    least = len(values) * jnp.finfo(values.dtype).eps * values[0]
    is_known = values > least
    return values, jnp.where(is_known, slope / (2 * jnp.where(is_known, values, 1)), 0)


def _modes(reach: Array, seen: Array) -> tuple[Array, Array, Array]:
    """The values, and the left and the right eigenvectors as columns: `l = G u` and
    `r = F v` with `F F^T` and `G G^T` the Gramians and `G^T F = u s v^T`.
    """
    F, G = _roots(reach, seen)
    left, values, right = jnp.linalg.svd(G.T @ F)
    return values, G @ left, F @ right.T


def _roots(*matrices: Any) -> Any:
    """Matrices F with `F F^T` equal to each of the matrices.

    All are decomposed in one call of LAPACK. In JAX 0.10.1, two calls with batches, as
    within a map, can wait for each other forever on a machine with two cores.
    """
    values, vectors = jnp.linalg.eigh(jnp.stack(matrices))
    return vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None]
