"""Data that come with scikit-learn: two classes as a linear model sees them, and
images of ten digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MISSING = (
    "these data come with scikit-learn, which is not installed: pip install 'sgfbias[meanfield]'"
)
CHOICES = ("three-eight", "even-odd", "cancer")


def two_classes(name: str, n: int | None = None, *, seed: int = 0) -> tuple[Any, Any]:
    """Inputs (n, p), standardised and divided by `sqrt(p)`, and labels -1 and 1.

    Both classes have the same number of examples. Features that are constant are left
    out.

    **Arguments:**

    - `name`: "three-eight" or "even-odd", images of digits, or "cancer", samples of
      breast tissue.
    - `n`: the number of examples, even; by default as many as there are.
    - `seed`: the random seed from which they are drawn.

    **Raises:** `ValueError` for another name or number, and without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError(MISSING) from error
    if name not in CHOICES:
        raise ValueError(f"`name` must be one of {', '.join(CHOICES)}, but is {name!r}")
    if name == "cancer":
        X, y = datasets.load_breast_cancer(return_X_y=True)
        labels = np.where(y > 0, 1, -1)
    else:
        X, digits = datasets.load_digits(return_X_y=True)
        if name == "three-eight":
            keep = (digits == 3) | (digits == 8)
            X, labels = X[keep], np.where(digits[keep] == 8, 1, -1)
        else:
            labels = np.where(digits % 2 == 1, 1, -1)
    return balanced(X, labels, n, seed)


def balanced(X: Any, labels: Any, n: int | None, seed: int) -> tuple[Any, Any]:
    """As many examples of each class, drawn at random, with standardised features
    divided by the root of their number.

    **Raises:** `ValueError` for an odd number, or more than there are.
    """
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == sign) for sign in (-1, 1)]
    most = 2 * min(group.size for group in groups)
    n = most if n is None else n
    if n % 2 or not 2 <= n <= most:
        raise ValueError(f"`n` must be an even number from 2 to {most}, but is {n}")
    rows = np.concatenate([generator.permutation(group)[: n // 2] for group in groups])
    X = np.asarray(X, np.float64)[rows]
    X = X[:, X.std(axis=0) > 1e-9]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    return X / np.sqrt(X.shape[1]), np.asarray(labels, np.float64)[rows]


def ten_classes(n: int, *, seed: int = 0) -> tuple[Any, Any]:
    """Some images of digits as grey values from -1 to 1, (n, 64), and their digits.

    **Raises:** `ValueError` without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(MISSING) from error
    images, digits = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(digits))[:n]
    return images[rows] / 8 - 1, digits[rows]
