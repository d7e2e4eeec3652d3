"""A law of data from several classes of a user's own; `fit` makes it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.meanfield.data import AbstractData, Bins, Draw, Sample, checked_alpha
from sgfbias.meanfield.error import wrong_classes


class FittedClasses(AbstractData):
    """C classes of a user's own, as normal clusters with their means, their shares and
    their pooled covariance. The directions are the class means, so that the overlap of
    output k and class c is the mean pre-activation k in class c.

    - `inputs`: (n, p), centred at the mean of the class means.
    - `targets`: (n,), labels 0, ..., C - 1.
    - `direction`: (C, p), the vectors v.
    - `values`: (p,), the eigenvalues of Sigma.
    - `energies`: (p, C, C), products of entries of the v along its eigenvectors.
    - `covariance`: (p, p), Sigma.
    - `shares`: (C,), the shares of the classes.
    """

    alpha: Array
    inputs: Array
    targets: Array
    direction: Array
    values: Array
    energies: Array
    covariance: Array
    shares: Array

    @property
    def is_explicit(self):
        return False

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return self.shares.shape[0]

    @property
    def directions(self):
        return self.shares.shape[0]

    def typical(self):
        return np.arange(self.classes)

    def bins(self):
        count = self.values.shape[0]
        return Bins(self.values, jnp.full(count, 1 / count), self.energies)

    def draw(self, key, samples, dtype):
        first, _ = jax.random.split(key)
        labels = jax.random.categorical(first, jnp.log(self.shares), shape=(samples,))
        return Draw(jax.nn.one_hot(labels, self.classes, dtype=dtype), labels.astype(jnp.int32))

    def sample(self, key, d, dtype):
        """The user's own data, whatever the key."""
        return own_sample(self, d, dtype)

    def test_error(self, overlap, variance, readout):
        return wrong_classes(overlap, variance, readout, jnp.eye(self.classes), self.shares)

    def __repr__(self) -> str:
        n, p = self.inputs.shape
        return f"FittedClasses of {n} examples of {self.classes} classes in {p} dimensions"


def fit_classes(X: Array, labels: Array, alpha: Any) -> FittedClasses:
    """The law of inputs (n, p) with labels 0, ..., C - 1, each of which occurs."""
    n, p = X.shape
    count = int(jnp.max(labels)) + 1
    which = jax.nn.one_hot(labels, count, dtype=X.dtype)
    shares = jnp.mean(which, axis=0)
    means = which.T @ X / (n * shares[:, None])
    middle = jnp.mean(means, axis=0)
    rest = X - which @ means
    covariance = p * rest.T @ rest / n
    values, vectors = jnp.linalg.eigh(covariance)
    direction = p * (means - middle)
    along = direction @ vectors
    return FittedClasses(
        checked_alpha(n / p if alpha is None else alpha),
        X - middle,
        labels.astype(jnp.int32),
        direction,
        jnp.maximum(values, 0),
        jnp.einsum("cp,ep->pce", along, along),
        covariance,
        shares,
    )


def own_sample(law: Any, d: int, dtype: Any) -> Sample:
    """The data of a fitted law.

    **Raises:** `ValueError` for another number of dimensions or examples than theirs.
    """
    n, p = law.inputs.shape
    if d != p:
        raise ValueError(
            f"these data have {p} dimensions of their own, but d = {d} was asked for: leave `d` out"
        )
    if abs(float(law.alpha) * p - n) > 1e-6 * n:
        raise ValueError(
            f"`alpha` was set to {float(law.alpha):g}, but these data have n/p = {n / p:g}: "
            "finite runs need fit(X, y) without `alpha`"
        )
    whole = jnp.issubdtype(law.targets.dtype, jnp.integer)
    targets = law.targets if whole else law.targets.astype(dtype)
    arrays = (jnp.asarray(a).astype(dtype) for a in (law.inputs, law.direction, law.covariance))
    inputs, direction, covariance = arrays
    return Sample(inputs, jnp.asarray(targets), direction, covariance)
