"""Labels of a linear teacher, and labels without a rule."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_real, check_positive, is_concrete
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


class LinearTeacher(AbstractData):
    """A linear teacher: `y = h0 + s zeta` with `h0 = z . v / sqrt(d)`, x = z normal of
    covariance Sigma, and zeta standard normal.

    **Arguments:**

    - `alpha`: n / d > 0, the number of examples per dimension.
    - `label_noise`: s >= 0, the standard deviation of the noise of the targets.
    - `spectrum`: the eigenvalues of Sigma, not negative. One number, or (bins,) for
      eigenvalues of equal weight.
    - `energy`: `|v|^2 / d`, or (bins,) the mean squared entry of v in each eigenspace.
      The default 1 is `|v|^2 = d`.

    The `test_error` of this law is the mean of `(y - r)^2` over fresh examples, with r
    the output.

    **Raises:** `ValueError` for numbers outside these ranges, for a number of energies
    that differs from the number of eigenvalues, and for h0 that is always 0.
    """

    alpha: Array
    label_noise: Array
    spectrum: Array
    energy: Array
    plain: bool = eqx.field(static=True)

    def __init__(
        self, alpha: Any, *, label_noise: Any = 0.0, spectrum: Any = 1.0, energy: Any = 1.0
    ):
        self.alpha = checked_alpha(alpha)
        self.label_noise = as_real(label_noise, "label_noise")
        check_positive(self.label_noise, "label_noise", zero_allowed=True)
        self.plain = all(isinstance(v, int | float) and v == 1 for v in (spectrum, energy))
        self.spectrum = eigenvalues(spectrum, "spectrum")
        energies = eigenvalues(energy, "energy")
        if energies.shape[0] not in (1, self.spectrum.shape[0]):
            raise ValueError(
                "`energy` must be one number, or one for each eigenvalue of `spectrum`, but "
                f"there are {energies.shape[0]} for {self.spectrum.shape[0]} eigenvalues"
            )
        self.energy = jnp.broadcast_to(energies, self.spectrum.shape)
        if is_concrete((self.spectrum, self.energy)) and not float(self.scale) > 0:
            raise ValueError(
                "the teacher sees nothing, as every eigenvalue of `spectrum` or its `energy` is 0: "
                "give an eigenspace in which neither is"
            )

    @property
    def scale(self) -> Array:
        """The variance v . Sigma v / d of h0."""
        return jnp.mean(self.spectrum * self.energy)

    @property
    def is_explicit(self):
        return self.plain

    @property
    def is_teacher(self):
        return not self.plain

    def typical(self):
        return np.asarray([-1.3, 0.4, 1.9])

    def bins(self):
        count = self.spectrum.shape[0]
        return Bins(self.spectrum, jnp.full(count, 1 / count), self.energy)

    def draw(self, key, samples, dtype):
        along, noise = jax.random.normal(key, (2, samples), dtype)
        noise = self.label_noise.astype(dtype) * noise
        if self.plain:
            return Draw(along, along + noise)
        root = jnp.sqrt(self.scale).astype(dtype)
        return Draw(along / root, root * along + noise)

    def sample(self, key, d, dtype):
        n = examples(self.alpha, d)
        spectrum = repeated(self.spectrum, d).astype(dtype)
        energies = repeated(self.energy, d).astype(dtype)
        one, two, three = jax.random.split(key, 3)
        signs = jax.random.rademacher(one, (d,), dtype=jnp.int32).astype(dtype)
        direction = jnp.sqrt(energies) * signs
        inputs = jnp.sqrt(spectrum) * jax.random.normal(two, (n, d), dtype) / math.sqrt(d)
        noise = self.label_noise.astype(dtype) * jax.random.normal(three, (n,), dtype)
        return Sample(inputs, inputs @ direction + noise, direction, spectrum)

    def test_error(self, overlap, variance, readout):
        noise = jnp.square(self.label_noise).astype(overlap.dtype)
        scale = self.scale.astype(overlap.dtype)
        if readout is None:
            return scale - 2 * overlap + variance + noise
        places, shares = np.polynomial.hermite_e.hermegauss(60)
        weights = jnp.asarray(shares / shares.sum(), overlap.dtype)
        nodes = jnp.asarray(places, overlap.dtype)
        root = jnp.sqrt(scale)
        along = overlap / root
        rest = jnp.sqrt(jnp.maximum(variance - jnp.square(along), 0))
        r = along[..., None, None] * nodes[:, None] + rest[..., None, None] * nodes
        gap = jnp.square(jnp.vectorize(readout)(r) - root * nodes[:, None])
        return jnp.einsum("...ab,a,b->...", gap, weights, weights) + noise


class RandomLabels(AbstractData):
    """Labels without a rule: x = z is standard normal, and y is -1 or 1 with equal
    chance.

    **Arguments:**

    - `alpha`: n / d > 0, the number of examples per dimension.

    The `test_error` of this law is 1/2.

    **Raises:** `ValueError` for an `alpha` that is not positive.
    """

    alpha: Array

    def __init__(self, alpha: Any):
        self.alpha = checked_alpha(alpha)

    @property
    def has_direction(self):
        return False

    def bins(self):
        return Bins(jnp.ones(1), jnp.ones(1), jnp.ones(1))

    def draw(self, key, samples, dtype):
        targets = jax.random.rademacher(key, (samples,), dtype=jnp.int32).astype(dtype)
        return Draw(jnp.zeros(samples, dtype), targets)

    def sample(self, key, d, dtype):
        n = examples(self.alpha, d)
        one, two, three = jax.random.split(key, 3)
        direction = jax.random.rademacher(one, (d,), dtype=jnp.int32).astype(dtype)
        inputs = jax.random.normal(two, (n, d), dtype) / math.sqrt(d)
        targets = jax.random.rademacher(three, (n,), dtype=jnp.int32).astype(dtype)
        return Sample(inputs, targets, direction, jnp.ones(d, dtype))

    def test_error(self, overlap, variance, readout):
        return jnp.full_like(overlap, 0.5)
