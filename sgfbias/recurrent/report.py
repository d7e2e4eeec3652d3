"""Which modes a linear network has, how long they live, and how many it needs."""

from __future__ import annotations

from typing import Any, NamedTuple

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
      NaN if the energy is infinite.
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
    if size[0] < 1:
        left, right = C @ vectors, np.linalg.solve(vectors, B.astype(complex))
        # <C v_m w_m B, C v_n w_n B> = (v_n^* C^* C v_m) (w_m B B^* w_n^*).
        inner = (left.conj().T @ left).T * (right @ right.conj().T)
        product = values[:, None] * values.conj()[None]
        energy = inner * product**start / (1 - product)
        shares = np.real(energy.sum(axis=1)) / np.real(energy.sum())
    return Spectrum(values, lives, shares, start)


def hankel_values(network: LinearRNN) -> Array:
    """The Hankel singular values of a linear network, largest first, (d,).

    They are the square roots of the eigenvalues of the product of both Gramians, and
    the singular values of the infinite matrix of the blocks `h_{i+j}`. Those that are
    not small are the states that the map needs.

    **Arguments:**

    - `network`: a `LinearRNN` with a spectral radius below 1.

    **Raises:** `ValueError` for another network, which names the eigenvalue.
    """
    check_linear(network)
    check_stable(network.A, "`hankel_values`")
    reach, seen = map(_root, gramians(network.A, network.B, network.C))
    return jnp.linalg.svd(seen.T @ reach, compute_uv=False)


def _root(matrix: Any) -> Array:
    """A matrix F with `F F^T = matrix`."""
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors * jnp.sqrt(jnp.maximum(values, 0))
