"""Scikit-learn's images of digits, and two networks that tell classes apart."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.problem import Problem
from sgfbias.lazy.own import Examples

IMAGES, SIDE, CLASSES = 1797, 8, 10


class SmallConvNet(eqx.Module):
    """Two convolutions with ReLU and a linear layer, for images and their classes.

    **Arguments:**

    - `key`: a typed key.
    - `channels`: the number of channels of both convolutions.
    - `shape`: (planes, height, width) of an image, from 3 x 3 pixels on. Examples may
      have any shape of so many numbers.
    - `classes`: the number of outputs.
    - `dtype`: the precision of the weights. Default: JAX's.
    """

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear
    shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(
        self,
        key: Array,
        channels: int = 8,
        *,
        shape: tuple[int, int, int] = (1, SIDE, SIDE),
        classes: int = CLASSES,
        dtype: Any = None,
    ):
        a, b, c = jax.random.split(key, 3)
        planes, *sides = shape
        self.first = eqx.nn.Conv2d(planes, channels, 3, padding=1, dtype=dtype, key=a)
        self.second = eqx.nn.Conv2d(channels, channels, 3, stride=2, dtype=dtype, key=b)
        left = channels * math.prod((side - 3) // 2 + 1 for side in sides)
        self.last = eqx.nn.Linear(left, classes, dtype=dtype, key=c)
        self.shape = shape

    def __call__(self, x: Array) -> Array:
        h = jax.nn.relu(self.first(x.reshape(self.shape)))
        h = jax.nn.relu(self.second(h))
        return self.last(jnp.ravel(h))


def all_digits() -> Examples:
    """Scikit-learn's 1,797 images of digits, with grey values (1797, 64) from -1 to 1.

    **Raises:** `ValueError` without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "the images of digits need scikit-learn: pip install 'sgfbias[lazy]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    return Examples(images / 8 - 1, labels, CLASSES)


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
    return all_digits().draw(n, seed=seed, dtype=dtype)
