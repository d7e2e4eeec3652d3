"""Laws of data: what the theory averages over, and what finite systems are drawn from.

All laws have inputs `X = x / sqrt(d)` with `x = c v / sqrt(d) + z` and z of covariance
Sigma, and `n = alpha d` examples. A linear model w has the pre-activation
`r = w . x / sqrt(d)`.
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, as_real, as_whole, is_concrete
from sgfbias.meanfield.error import class_error, sign_error


class Bins(NamedTuple):
    """The spectrum of Sigma, as the theory uses it; each array has shape (bins,).

    - `values`: eigenvalues of Sigma.
    - `weights`: their weights, which add up to 1.
    - `energies`: mean squared entries of v in the eigenspaces. With M directions
      (bins, M, M), the mean products of their entries.
    """

    values: Array
    weights: Array
    energies: Array

    @property
    def energy(self) -> Array:
        """`|v|^2 / d`."""
        return jnp.sum(self.weights * self.energies)


class Draw(NamedTuple):
    """Effective examples of the theory, each array of shape (samples,).

    - `drift`: the coefficient of the overlap in the pre-activation. With M directions
      (samples, M).
    - `targets`: the targets y.
    """

    drift: Array
    targets: Array


class Sample(NamedTuple):
    """A finite data set.

    - `inputs`: (n, d), as the model sees them.
    - `targets`: (n,).
    - `direction`: (d,), the vector v, or (M, d) for M directions.
    - `covariance`: Sigma as (d, d), or as (d,) if it is diagonal.
    """

    inputs: Array
    targets: Array
    direction: Array
    covariance: Array


class AbstractData(eqx.Module):
    """A law of data with `alpha = n / d`."""

    alpha: eqx.AbstractVar[Array]

    @property
    def is_explicit(self) -> bool:
        """Whether the effective examples contain the component of z along v.

        The covariance is then isotropic, and `|v|^2 = d`. Otherwise the effect of this
        component follows from Stein's lemma.
        """
        return True

    @property
    def has_direction(self) -> bool:
        """Whether the data have a direction v."""
        return True

    @property
    def is_teacher(self) -> bool:
        """Whether targets depend on z along v, and `is_explicit` is false. The drift is
        then h0 over its variance, with `h0 = z . v / sqrt(d)`.
        """
        return False

    @property
    def directions(self) -> int | None:
        """The number M of directions of a law for models with several outputs, or None
        for a law whose model has one output.
        """
        return None

    @property
    def default_outputs(self) -> int | None:
        """The number K of pre-activations of a law with several directions, where
        nothing says another.
        """
        return self.directions

    @abc.abstractmethod
    def bins(self) -> Bins:
        """The spectrum of the covariance."""

    @abc.abstractmethod
    def draw(self, key: Array, samples: int, dtype: Any) -> Draw:
        """Draw effective examples."""

    def typical(self) -> np.ndarray:
        """Some targets of this law, to which a loss must apply."""
        return np.asarray([-1.0, 1.0])

    def check_readout(self, readout: Any) -> None:
        """Refuse a readout with which the test error of this law is not known.

        **Raises:** `ValueError` that says what to write.
        """
        return None

    @abc.abstractmethod
    def sample(self, key: Array, d: int, dtype: Any) -> Sample:
        """Draw a data set in d dimensions."""

    @abc.abstractmethod
    def test_error(self, overlap: Array, variance: Array, readout: Any) -> Array:
        """The error on fresh examples.

        **Arguments:**

        - `overlap`: m = w . v / d. If `is_teacher`, w . Sigma v / d instead. With
          several outputs (..., K, M).
        - `variance`: w . Sigma w / d, of the shape of the overlap. With several outputs
          (..., K, K).
        - `readout`: the function of the pre-activation, or None.
        """


def examples(alpha: Any, d: int) -> int:
    """The number of examples n = alpha d, a whole number.

    **Raises:** `ValueError` if it is not whole, or below 1.
    """
    exact = float(alpha) * d
    n = round(exact)
    if n < 1 or abs(exact - n) > 1e-6 * max(1, n):
        raise ValueError(
            f"n = alpha d must be a whole number of examples, but alpha = {float(alpha):g} and "
            f"d = {d} give {exact:g}: choose another d"
        )
    return n


def repeated(values: Array, d: int) -> Array:
    """A number for each eigenvalue as (d,) numbers, one for each dimension.

    **Raises:** `ValueError` if d is no multiple of the number of eigenvalues.
    """
    count = values.shape[0]
    if d % count:
        raise ValueError(
            f"d must be a multiple of the number of eigenvalues, {count}, so that all have "
            f"the same weight, but is {d}"
        )
    return jnp.repeat(values, d // count)


class GaussianMixture(AbstractData):
    """Clusters on a line: `x = c v / sqrt(d) + z`, z normal of covariance Sigma.

    **Arguments:**

    - `alpha`: n / d > 0, the number of examples per dimension.
    - `spectrum`: the eigenvalues of Sigma, not negative. One number Delta for
      `Sigma = Delta I`, or (bins,) for eigenvalues of equal weight.
    - `mean_energy`: `|v|^2 / d`, or (bins,) the mean squared entry of v in each
      eigenspace. The default 1 is `|v|^2 = d`.
    - `clusters`: 2 for c = -1 and 1 with equal chance and the label y = c. 3 for c =
      -1, 0, 0, 1 with equal chance and y = -1 where c = 0, and 1 elsewhere.

    **Raises:** `ValueError` for numbers outside these ranges, for a number of energies
    that differs from the number of eigenvalues, and for energies that are all 0.

    Mignacco, Krzakala, Urbani, Zdeborová 2020 (arXiv 2006.06098) study both mixtures.
    """

    alpha: Array
    spectrum: Array
    mean_energy: Array
    clusters: int = eqx.field(static=True)
    plain: bool = eqx.field(static=True)

    def __init__(
        self, alpha: Any, *, spectrum: Any = 1.0, mean_energy: Any = 1.0, clusters: int = 2
    ):
        self.alpha = checked_alpha(alpha)
        self.plain = np.ndim(spectrum) == 0 and (
            isinstance(mean_energy, int | float) and mean_energy == 1
        )
        self.spectrum = eigenvalues(spectrum, "spectrum")
        energies = eigenvalues(mean_energy, "mean_energy")
        if energies.shape[0] not in (1, self.spectrum.shape[0]):
            raise ValueError(
                "`mean_energy` must be one number, or one for each eigenvalue of `spectrum`, but "
                f"there are {energies.shape[0]} for {self.spectrum.shape[0]} eigenvalues"
            )
        self.mean_energy = jnp.broadcast_to(energies, self.spectrum.shape)
        if is_concrete(energies) and not np.any(np.asarray(energies)):
            raise ValueError(
                "there is no direction to learn, as every `mean_energy` is 0: give an eigenspace "
                "in which it is not, or take RandomLabels(alpha)"
            )
        self.clusters = as_whole(clusters, "clusters")
        if self.clusters not in (2, 3):
            raise ValueError(f"`clusters` must be 2 or 3, but is {clusters}")

    @property
    def is_explicit(self):
        return self.plain

    def bins(self):
        count = self.spectrum.shape[0]
        return Bins(self.spectrum, jnp.full(count, 1 / count), self.mean_energy)

    def _centres(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """The coefficients c of the clusters."""
        if self.clusters == 2:
            return jax.random.rademacher(key, shape, dtype=jnp.int32).astype(dtype)
        coins = jax.random.rademacher(key, (2, *shape), dtype=jnp.int32)
        return (jnp.sum(coins, axis=0) // 2).astype(dtype)

    def _labels(self, centres: Array) -> Array:
        """The labels of examples with the coefficients `centres`."""
        if self.clusters == 2:
            return centres
        return jnp.where(centres == 0, -1, 1).astype(centres.dtype)

    def draw(self, key, samples, dtype):
        first, second = jax.random.split(key)
        centres = self._centres(first, (samples,), dtype)
        drift = centres
        if self.is_explicit:
            along = jax.random.normal(second, (samples,), dtype)
            drift = centres + jnp.sqrt(self.spectrum[0]).astype(dtype) * along
        return Draw(drift, self._labels(centres))

    def sample(self, key, d, dtype):
        n = examples(self.alpha, d)
        one, two, three = jax.random.split(key, 3)
        spectrum = repeated(self.spectrum, d).astype(dtype)
        energies = repeated(self.mean_energy, d).astype(dtype)
        signs = jax.random.rademacher(one, (d,), dtype=jnp.int32).astype(dtype)
        direction = jnp.sqrt(energies) * signs
        centres = self._centres(two, (n,), dtype)
        noise = jnp.sqrt(spectrum) * jax.random.normal(three, (n, d), dtype)
        x = centres[:, None] * direction / math.sqrt(d) + noise
        return Sample(x / math.sqrt(d), self._labels(centres), direction, spectrum)

    def test_error(self, overlap, variance, readout):
        if readout is None and self.clusters == 2:
            return sign_error(overlap, variance)
        centres: tuple[float, ...] = (-1.0, 1.0)
        weights: tuple[float, ...] = (0.5, 0.5)
        if self.clusters == 3:
            centres, weights = ((-1.0, 0.0, 1.0), (0.25, 0.5, 0.25))
        labels = [float(y) for y in np.asarray(self._labels(np.asarray(centres)))]
        return class_error(overlap, variance, readout, centres, weights, labels)


def checked_alpha(alpha: Any) -> Array:
    """Return alpha as an array.

    **Raises:** `ValueError` unless it is a positive number.
    """
    alpha = as_real(alpha, "alpha")
    if is_concrete(alpha) and not (np.isfinite(alpha) and alpha > 0):
        raise ValueError(
            "`alpha` is the number of examples per dimension, n/d, and must be positive and "
            f"finite, but is {float(alpha):g}"
        )
    return alpha


def eigenvalues(value: Any, name: str) -> Array:
    """Return numbers that are not negative as an array (bins,).

    **Raises:** `ValueError` for anything else.
    """
    array = jnp.atleast_1d(as_float_array(value, name)).astype(jnp.result_type(float))
    if array.ndim != 1 or not array.shape[0]:
        raise ValueError(
            f"`{name}` must be one number, or a vector of them, but has shape {array.shape}"
        )
    if is_concrete(array) and not bool(np.all(np.isfinite(array) & (np.asarray(array) >= 0))):
        bad = [float(v) for v in np.asarray(array) if not (np.isfinite(v) and v >= 0)]
        raise ValueError(
            f"`{name}` must have only finite entries that are not negative, but has {bad[0]:g}"
        )
    return array
