"""Several classes: a mixture of normal clusters in a space of M directions."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, check_finite, is_concrete
from sgfbias.meanfield.data import (
    AbstractData,
    Bins,
    Draw,
    Sample,
    checked_alpha,
    eigenvalues,
    examples,
    repeated,
)
from sgfbias.meanfield.error import wrong_classes


class Mixture(AbstractData):
    """C normal clusters, whose labels are 0, ..., C - 1:
    `x = sum_m c_m v_m / sqrt(d) + z`, where c is the mean of the cluster, and z normal
    of covariance Sigma.

    The M directions v are orthogonal, with `|v|^2 = d`. Their entries have mean square
    1 in every eigenspace of Sigma. The model has K pre-activations
    `r_k = w_k . x / sqrt(d)`, by default one for each class.

    The `test_error` of this law is the share of fresh examples whose largest output is
    not that of their label, or with a single output, whose output is positive for label
    0 or not positive for another.

    **Arguments:**

    - `alpha`: n / d > 0, the number of examples per dimension.
    - `means`: (C, M), the means c of the clusters, with C >= 2.
    - `spectrum`: the eigenvalues of Sigma, not negative. One number Delta for
      `Sigma = Delta I`, or (bins,) for eigenvalues of equal weight.
    - `weights`: (C,), the chances of the clusters, which add up to 1. Default: equal.

    **Raises:** `ValueError` for numbers outside these ranges, and arrays of other
    shapes.

    Loureiro, Sicuro, Gerbelot, Pacco, Krzakala, Zdeborová 2021 (arXiv 2106.03791) study
    such mixtures at the end of training.
    """

    alpha: Array
    spectrum: Array
    means: Array
    weights: Array
    plain: bool = eqx.field(static=True)

    def __init__(self, alpha: Any, means: Any, *, spectrum: Any = 1.0, weights: Any = None):
        self.alpha = checked_alpha(alpha)
        self.plain = np.ndim(spectrum) == 0
        self.spectrum = eigenvalues(spectrum, "spectrum")
        self.means = as_float_array(means, "means").astype(jnp.result_type(float))
        if self.means.ndim != 2 or self.means.shape[0] < 2 or self.means.shape[1] < 1:
            raise ValueError(
                "`means` must have shape (classes, directions) with two classes or more, but has "
                f"shape {self.means.shape}"
            )
        check_finite(self.means, "means")
        count = self.means.shape[0]
        given = jnp.full(count, 1 / count) if weights is None else weights
        self.weights = as_float_array(given, "weights").astype(self.means.dtype)
        if self.weights.shape != (count,):
            raise ValueError(
                f"`weights` must have one entry for each of the {count} classes, but has shape "
                f"{self.weights.shape}"
            )
        if is_concrete(self.weights):
            host = np.asarray(self.weights, np.float64)
            if not (np.all(host >= 0) and abs(host.sum() - 1) < 1e-5):
                raise ValueError(
                    "`weights` are chances, which are not negative and add up to 1, but they are "
                    f"{host.tolist()}"
                )

    @property
    def is_explicit(self):
        return self.plain

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return self.means.shape[0]

    @property
    def directions(self):
        return self.means.shape[1]

    @property
    def default_outputs(self):
        return self.classes

    def typical(self):
        return np.arange(self.classes)

    def bins(self):
        count = self.spectrum.shape[0]
        one = jnp.eye(self.directions, dtype=self.spectrum.dtype)
        energies = jnp.broadcast_to(one, (count, *one.shape))
        return Bins(self.spectrum, jnp.full(count, 1 / count), energies)

    def _labels(self, key: Array, count: int) -> Array:
        return jax.random.categorical(key, jnp.log(self.weights), shape=(count,)).astype(jnp.int32)

    def draw(self, key, samples, dtype):
        first, second = jax.random.split(key)
        labels = self._labels(first, samples)
        drift = self.means.astype(dtype)[labels]
        if self.is_explicit:
            along = jax.random.normal(second, drift.shape, dtype)
            drift = drift + jnp.sqrt(self.spectrum[0]).astype(dtype) * along
        return Draw(drift, labels)

    def sample(self, key, d, dtype):
        n, count = examples(self.alpha, d), self.spectrum.shape[0]
        spectrum = repeated(self.spectrum, d).astype(dtype)
        if d // count < self.directions:
            raise ValueError(
                f"there must be at least {self.directions} dimensions for each eigenvalue, as "
                f"many as directions, but d = {d} leaves {d // count}"
            )
        one, two, three = jax.random.split(key, 3)
        normal = jax.random.normal(one, (count, d // count, self.directions), dtype)
        axes = jnp.linalg.qr(normal)[0] * math.sqrt(d // count)
        direction = axes.reshape(d, self.directions).T
        labels = self._labels(two, n)
        noise = jnp.sqrt(spectrum) * jax.random.normal(three, (n, d), dtype)
        x = self.means.astype(dtype)[labels] @ direction / math.sqrt(d) + noise
        return Sample(x / math.sqrt(d), labels, direction, spectrum)

    def test_error(self, overlap, variance, readout):
        return wrong_classes(overlap, variance, readout, self.means, self.weights)
