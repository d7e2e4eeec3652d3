"""Data that come with scikit-learn, as bits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from sgfbias.fourier.data import Bits

INK = 7  # a pixel is on above this number, of 16


def _datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError(
            "these data come with scikit-learn, which is not installed: run pip install "
            "'sgfbias[fourier]'"
        ) from error
    return datasets


def digits() -> Bits:
    """The 1,797 images of digits: 64 pixels, on or off, and whether the digit is odd.

    **Raises:** `ValueError` if scikit-learn is not installed.
    """
    images, numbers = _datasets().load_digits(return_X_y=True)
    names = tuple(f"row {i}, column {j}" for i in range(8) for j in range(8))
    return _bits(images > INK, numbers % 2, names, ("even", "odd"))


def cancer() -> Bits:
    """The 569 samples of breast tissue: 30 features, above their median or not, and
    whether the sample is benign.

    **Raises:** `ValueError` if scikit-learn is not installed.
    """
    found = _datasets().load_breast_cancer()
    above = found.data > np.median(found.data, axis=0)
    return _bits(above, found.target, tuple(map(str, found.feature_names)), ("malignant", "benign"))


def _bits(on: Any, labels: Any, names: tuple[str, ...], classes: tuple[str, ...]) -> Bits:
    inputs = jnp.asarray(np.where(on, 1.0, -1.0)).astype(jnp.result_type(float))
    return Bits(inputs, jnp.asarray(labels.astype(np.int32)), names, (), classes)
