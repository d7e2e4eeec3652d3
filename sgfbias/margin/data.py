"""A user's own data with two classes, from a file; and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sgfbias.core.checks import as_whole
from sgfbias.core.loss import SoftmaxCrossEntropyLoss
from sgfbias.core.problem import Problem
from sgfbias.margin.linear import max_margin
from sgfbias.study.arrays import load_arrays

IMAGES = 1797


def read_two_classes(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Examples X (n, d) and labels y (n,) of -1 and 1 from a .npz file. Nothing in the
    file is executed.

    **Arguments:**

    - `path`: a .npz file with X (n, d), and y (n,) that takes two values, of which the
      larger one becomes 1.

    **Raises:** `ValueError` for a file that cannot be read, arrays that do not fit,
    other numbers of classes, and data that no linear classifier separates.
    """
    arrays = load_arrays(path, {"X": "(n, d)", "y": "(n,)"})
    X, y = arrays["X"], arrays["y"]
    if X.ndim != 2 or y.shape != X.shape[:1] or X.dtype.kind not in "fiub":
        raise ValueError(
            f"{path} must have numbers X (n, d) and y (n,), but X has shape {X.shape} and dtype "
            f"{X.dtype}, and y has shape {y.shape}"
        )
    X = X.astype(np.float64)
    values = np.unique(y)
    if len(values) != 2:
        raise ValueError(
            f"y in {path} must take two values, one for each class, but takes {len(values)}; for "
            "several classes use margin.MarginFlow with SoftmaxCrossEntropyLoss"
        )
    signs = np.where(y == values[1], 1.0, -1.0)
    max_margin(X, signs)
    return X, signs


def digits(n: int, *, seed: int = 0) -> tuple[Problem, Problem]:
    """Some of scikit-learn's 1,797 images of digits, and the others, as problems of 10
    classes with the softmax cross-entropy loss.

    **Arguments:**

    - `n`: the number of images, at most 1,797.
    - `seed`: the random seed by which they are chosen.

    **Returns:** the problem of the n images (n, 64), grey values from -1 to 1 in JAX's
    default precision, and that of the others, or of the same ones if there are none.

    **Raises:** `ValueError` for a number of images that there are not, and without
    scikit-learn.
    """
    n = as_whole(n, "n", most=IMAGES)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "the images of digits need scikit-learn: pip install 'sgfbias[margin]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(as_whole(seed, "seed", least=0)).permutation(IMAGES)
    parts = order[:n], order[n:] if n < IMAGES else order
    first, second = (
        Problem(
            jnp.asarray(images[rows] / 8 - 1, jnp.result_type(float)),
            jnp.asarray(labels[rows]),
            loss=SoftmaxCrossEntropyLoss(),
        )
        for rows in parts
    )
    return first, second
