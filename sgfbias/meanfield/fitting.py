"""A law of data from a user's own two classes: their means and their covariance."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, as_numbers, check_finite
from sgfbias.meanfield.classes import fit_classes, own_sample
from sgfbias.meanfield.data import AbstractData, Bins, Draw, checked_alpha
from sgfbias.meanfield.error import sign_error
from sgfbias.meanfield.precision import returned

# The share of a class may differ from one half by this much. The docstring of `fit`
# says what this leaves out.
UNEQUAL = 0.05


class FittedMixture(AbstractData):
    """Two classes of a user's own, as normal clusters with their means and their pooled
    covariance. `fit` makes it.

    - `inputs`: (n, p), centred at the midpoint of the class means.
    - `targets`: (n,), -1 or 1.
    - `direction`: (p,), the vector v.
    - `values`, `energies`: (p,), eigenvalues of Sigma, and squared entries of v along
      its eigenvectors.
    - `covariance`: (p, p), Sigma.
    """

    alpha: Array
    inputs: Array
    targets: Array
    direction: Array
    values: Array
    energies: Array
    covariance: Array

    @property
    def is_explicit(self):
        return False

    def bins(self):
        count = self.values.shape[0]
        return Bins(self.values, jnp.full(count, 1 / count), self.energies)

    def draw(self, key, samples, dtype):
        centres = jax.random.rademacher(key, (samples,), dtype=jnp.int32).astype(dtype)
        return Draw(centres, centres)

    def sample(self, key, d, dtype):
        """The user's own data, whatever the key."""
        return own_sample(self, d, dtype)

    def test_error(self, overlap, variance, readout):
        self.check_readout(readout)
        return sign_error(overlap, variance)

    def check_readout(self, readout):
        if readout is not None:
            raise ValueError(
                "the test error of data from `fit` is known only without `readout`: leave it out"
            )

    def take(self, rows: Any) -> FittedMixture:
        """The same law with some of the examples as its data, for runs on them; alpha
        is theirs.
        """
        inputs, targets = self.inputs[rows], self.targets[rows]
        alpha = jnp.asarray(inputs.shape[0] / inputs.shape[1], self.alpha.dtype)
        return eqx.tree_at(
            lambda law: (law.inputs, law.targets, law.alpha), self, (inputs, targets, alpha)
        )

    def isotropic(self) -> FittedMixture:
        """The same law with an isotropic covariance of the same trace, as a control."""
        count = self.values.shape[0]
        mean = jnp.full(count, jnp.mean(self.values))
        energy = jnp.full(count, jnp.mean(self.energies))
        return eqx.tree_at(
            lambda law: (law.values, law.energies, law.covariance),
            self,
            (mean, energy, jnp.diag(mean)),
        )

    def __repr__(self) -> str:
        n, p = self.inputs.shape
        return f"FittedMixture of {n} examples in {p} dimensions"


def fit(X: Any, y: Any, *, alpha: Any = None) -> Any:
    """The law of normal clusters with the class means and the pooled covariance of
    given data, of two classes or of more.

    Two classes are for a model with one output, such as with `LogisticLoss`. More are
    for models with several outputs, by default one for each class, such as with
    `SoftmaxCrossEntropyLoss`.

    **Arguments:**

    - `X`: (n, p), the inputs as the model sees them: standardise them first, and divide
      by `sqrt(p)`. They are centred at the mean of the class means.
    - `y`: (n,), labels -1 and 1, or 0 and 1, or 0, ..., C - 1 for C > 2 classes.
    - `alpha`: n / p of the runs to predict, if they have another number of examples.

    **Returns:** a law of data for `solve` and `simulate`, with two classes a
    `FittedMixture`, and with more `FittedClasses`.

    The theory of one output has clusters with equal chance. Two classes with shares
    from 45% to 55% are taken as equal. The mean input of such data, which is up to a
    tenth of half the difference of the class means, is then left out of the prediction,
    while runs of `simulate` have it.

    **Raises:** `ValueError` for arrays of other shapes, other labels, and two classes
    whose shares differ more.
    """
    with jax.enable_x64(True):
        law = _fitted(X, y, alpha)
    return returned(law)


def _fitted(X: Any, y: Any, alpha: Any) -> Any:
    """The law in float64."""
    X = as_float_array(X, "X").astype(jnp.float64)
    labels = as_numbers(y, "y")
    if X.ndim != 2 or labels.shape != X.shape[:1]:
        raise ValueError(
            "`X` must have shape (n, p) and `y` shape (n,), but have shapes "
            f"{X.shape} and {labels.shape}"
        )
    check_finite(X, "X")
    found = set(np.unique(np.asarray(labels)).tolist())
    if len(found) > 2 and found == set(range(len(found))):
        return fit_classes(X, jnp.asarray(labels).astype(jnp.int32), alpha)
    if found not in ({-1, 1}, {0, 1}):
        shown = ", ".join(f"{v:g}" for v in sorted(found)[:5])
        raise ValueError(
            f"`y` must have the labels -1 and 1, or 0 and 1, but has {shown}; more classes "
            "have the labels 0, 1, ..., C - 1"
        )
    labels = jnp.where(labels > 0, 1.0, -1.0)
    n, p = X.shape
    share = float(jnp.mean(labels > 0))
    if abs(share - 0.5) > UNEQUAL:
        raise ValueError(
            "the theory is for two classes of equal size, but their shares are "
            f"{1 - share:.1%} and {share:.1%}: take as many examples of each"
        )
    up, down = (jnp.mean(X, axis=0, where=(labels == s)[:, None]) for s in (1, -1))
    centred = X - (up + down) / 2
    direction = p * (up - down) / 2
    rest = centred - labels[:, None] * (up - down) / 2
    covariance = p * rest.T @ rest / n
    values, vectors = jnp.linalg.eigh(covariance)
    return FittedMixture(
        checked_alpha(n / p if alpha is None else alpha),
        centred,
        labels,
        direction,
        jnp.maximum(values, 0),
        jnp.square(vectors.T @ direction),
        covariance,
    )
