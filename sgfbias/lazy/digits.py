"""Scikit-learn's images of digits, and two networks that tell them apart."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_whole
from sgfbias.core.loss import SoftmaxCrossEntropyLoss
from sgfbias.core.problem import Problem

IMAGES, SIDE, CLASSES = 1797, 8, 10


class SmallConvNet(eqx.Module):
    """Two convolutions with ReLU and a linear layer, for images of 64 pixels and 10
    classes.
    """

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self, key: Array, channels: int = 8, *, dtype: Any = None):
        a, b, c = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(1, channels, 3, padding=1, dtype=dtype, key=a)
        self.second = eqx.nn.Conv2d(channels, channels, 3, stride=2, dtype=dtype, key=b)
        self.last = eqx.nn.Linear(9 * channels, CLASSES, dtype=dtype, key=c)

    def __call__(self, x: Array) -> Array:
        h = jax.nn.relu(self.first(x.reshape(1, SIDE, SIDE)))
        h = jax.nn.relu(self.second(h))
        return self.last(jnp.ravel(h))


def digits(n: Any, *, seed: Any = 0, dtype: Any = None) -> Problem:
    """Some of scikit-learn's 1,797 images of digits, as a problem of 10 classes.

    **Arguments:**

    - `n`: the number of images, at most 1,797.
    - `seed`: the random seed from which they are drawn.
    - `dtype`: the precision. Default: JAX's.

    **Returns:** a `Problem` with the softmax cross-entropy loss, whose inputs (n, 64)
    are grey values from -1 to 1.

    **Raises:** `ValueError` for a number of images that there are not, and without
    scikit-learn.
    """
    n = as_whole(n, "n", most=IMAGES)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "the images of digits need scikit-learn: pip install 'sgfbias[lazy]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    rows = np.random.default_rng(as_whole(seed, "seed", least=0)).permutation(IMAGES)[:n]
    dtype = jnp.result_type(float) if dtype is None else dtype
    inputs = jnp.asarray(images[rows] / 8 - 1, dtype)
    return Problem(inputs, jnp.asarray(labels[rows]), loss=SoftmaxCrossEntropyLoss())
