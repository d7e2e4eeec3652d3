"""Handwritten digits for a small network.

This module loads scikit-learn's images, makes the network before training, and defines
the observables on the held-out images.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sgfbias.core.loss import SoftmaxCrossEntropyLoss
from sgfbias.core.problem import Problem

PIXELS, CLASSES, IMAGES = 64, 10, 1797


class HeldOut(eqx.Module):
    """The test loss of a classifier, or its test accuracy: an observable of a run.

    **Arguments:**

    - `inputs`: (m, p). The inputs of the held-out examples.
    - `labels`: (m,), integers. Their labels.
    - `accuracy`: whether to compute the accuracy, a number in [0, 1], instead of the
      loss.
    """

    inputs: Float[Array, "m p"]
    labels: Int[Array, " m"]
    accuracy: bool = eqx.field(static=True, default=False)

    def __call__(self, model: Any) -> Array:
        logits = jax.vmap(model)(self.inputs)
        if self.accuracy:
            return jnp.mean(
                (jnp.argmax(logits, axis=1).astype(self.labels.dtype) == self.labels).astype(
                    logits.dtype
                )
            )
        return jnp.mean(SoftmaxCrossEntropyLoss()(logits, self.labels))


def load_digits(
    split_seed: int, train: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Load the digits, and split them into training and test images.

    **Arguments:**

    - `split_seed`: the seed of the random order of the 1797 images.
    - `train`: the number of training images.

    **Returns:** `(inputs, labels)` for training and `(inputs, labels)` for testing. The
    inputs are (m, 64), float32: 8 x 8 images as numbers in [0, 1]. The labels are (m,),
    int32, from 0 to 9.

    **Raises:** `ValueError` if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError(
            "the digits come with scikit-learn, which is not installed: run pip install "
            "'sgfbias[digits]'"
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(split_seed).permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    return (images[:train], labels[:train]), (images[train:], labels[train:])


def draw_digits(
    split_seed: int, *, train: int, hidden: int
) -> tuple[Problem, eqx.nn.MLP, dict[str, HeldOut]]:
    """Make the problem, the initial network and the observables.

    **Arguments:**

    - `split_seed`: the seed of the split into training and test images, and of the
      network.
    - `train`: the number of training images.
    - `hidden`: the number of hidden units.

    **Returns:** the problem of the training images, a network with one hidden layer
    before training, and the observables `test_loss` and `test_accuracy`.

    **Raises:** `ValueError` if scikit-learn is not installed.
    """
    fit, held_out = load_digits(split_seed, train)
    network = eqx.nn.MLP(
        PIXELS, CLASSES, hidden, 1, dtype=jnp.float32, key=jax.random.key(split_seed)
    )
    test = [jnp.asarray(values) for values in held_out]
    observables = {"test_loss": HeldOut(*test), "test_accuracy": HeldOut(*test, accuracy=True)}
    return Problem(*fit, loss=SoftmaxCrossEntropyLoss()), network, observables
