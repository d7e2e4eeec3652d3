"""Bits from one's own files and frames.

Everything becomes bits in {-1, +1}: numbers in {0, 1} and booleans are one bit each, a
categorical feature is a group of bits of which one is set, and other numbers need a
threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sgfbias.core.checks import shown
from sgfbias.core.names import did_you_mean
from sgfbias.fourier.moves import AbstractMoves, BitFlips, OneHotSwaps
from sgfbias.study.arrays import load_arrays


class Bits(eqx.Module):
    """Examples as bits.

    **Arguments:**

    - `inputs`: (n, d), in {-1, +1}.
    - `labels`: (n,), classes from 0 on.
    - `names`: what each of the d bits says.
    - `groups`: the bits of each categorical feature.
    - `classes`: what each class is called.
    """

    inputs: Float[Array, "n d"]
    labels: Int[Array, " n"]
    names: tuple[str, ...] = eqx.field(static=True)
    groups: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    classes: tuple[str, ...] = eqx.field(static=True)

    @property
    def moves(self) -> AbstractMoves:
        """The changes that keep the inputs valid: categories are swapped, and single
        bits flipped.
        """
        return OneHotSwaps(self.groups, others=BitFlips()) if self.groups else BitFlips()

    def split(self, *sizes: int, seed: int = 0) -> list[Bits]:
        """Parts of the examples in a random order: one of each size, and the rest.

        **Raises:** `ValueError` if nothing is left for the rest.
        """
        n = len(self.labels)
        if min(sizes, default=1) < 1 or sum(sizes) >= n:
            raise ValueError(
                f"the sizes of the parts must be positive and leave some of the {n} examples, but "
                f"are {', '.join(map(str, sizes))}"
            )
        order = np.random.default_rng(seed).permutation(n)
        parts = np.split(order, np.cumsum(sizes))
        return [
            Bits(self.inputs[part], self.labels[part], self.names, self.groups, self.classes)
            for part in parts
        ]


def read_bits(
    source: Any,
    labels: str | None = None,
    *,
    threshold: float | str | Mapping[str, float] | None = None,
    features: int | None = None,
) -> Bits:
    """Read examples from a file or a frame of pandas as bits.

    **Arguments:**

    - `source`: the path of a `.npz` file with X (n, d), y (n,) and optionally names
      (d,); the path of a file in libsvm's format, which takes scikit-learn; or a
      DataFrame. Its columns of booleans and of numbers in {0, 1} or {-1, 1} become
      bits, and columns of texts or categories become one-hot groups.
    - `labels`: the column of a frame that has the classes.
    - `threshold`: what makes a bit of any other number: it is +1 above the threshold. A
      number, "median" for that of each column, or a number for each name of a column.
    - `features`: the number of features of a libsvm file, if more than it mentions.

    **Returns:** `Bits`, in JAX's default precision.

    **Raises:** `ValueError` for missing values, numbers without a threshold, and a file
    or column that does not exist.
    """
    if hasattr(source, "columns") and hasattr(source, "dtypes"):
        return _of_frame(source, labels, threshold)
    try:
        path = Path(source)
    except TypeError as error:
        raise ValueError(
            f"`source` must be a path or a DataFrame of pandas, but is {shown(source)}"
        ) from error
    if labels is not None:
        raise ValueError("`labels` names the column of a frame; a file has its labels in y")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    X, y, names = _npz(path) if path.suffix == ".npz" else _libsvm(path, features)
    columns = [_bit(X[:, i], name, threshold) for i, name in enumerate(names)]
    return _bits(columns, y, tuple(names), ())


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """X, y and names of a .npz file."""
    arrays = load_arrays(path, {"X": "(n, d)", "y": "(n,)"}, {"names": "(d,)"})
    X, y = arrays["X"], arrays["y"]
    names = [str(name) for name in arrays.get("names", np.arange(X.shape[-1]))]
    if X.ndim != 2 or y.shape != X.shape[:1] or len(names) != X.shape[1]:
        raise ValueError(
            f"{path} must have X (n, d), y (n,) and names (d,), but X has shape {X.shape}, y "
            f"{y.shape} and there are {len(names)} names"
        )
    return X, y, names


def _libsvm(path: Path, features: int | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """X, y and numbers as names of a file in libsvm's format."""
    try:
        from sklearn.datasets import load_svmlight_file
    except ImportError as error:
        raise ValueError(
            "files in libsvm's format are read by scikit-learn, which is not installed: run pip "
            "install 'sgfbias[fourier]'"
        ) from error
    try:
        X, y = load_svmlight_file(str(path), n_features=features)
    except ValueError as error:
        raise ValueError(f"{path} is no file in libsvm's format: {error}") from error
    return X.toarray(), y, [str(i) for i in range(X.shape[1])]


def _of_frame(frame: Any, labels: str | None, threshold: Any) -> Bits:
    """The bits of a DataFrame, column by column."""
    known = [str(name) for name in frame.columns]
    if labels is None or labels not in known:
        raise ValueError(
            f"`labels` must be the column with the classes, but is {shown(labels)}; "
            f"{did_you_mean(str(labels), known)}the columns are {', '.join(known[:8])}"
            + (", ..." if len(known) > 8 else "")
        )
    if isinstance(threshold, Mapping) and (extra := set(threshold) - set(known)):
        name = sorted(extra)[0]
        raise ValueError(
            f"`threshold` has {name!r}, which is no column; {did_you_mean(name, known)}"
        )
    columns: list[np.ndarray] = []
    names: list[str] = []
    groups: list[tuple[int, ...]] = []
    for column, name in zip(frame.columns, known, strict=True):
        if name == labels:
            continue
        values = frame[column]
        if values.isna().any():
            raise ValueError(
                f"the column {name!r} has {int(values.isna().sum())} missing values: remove these "
                "examples, or give them a category of their own"
            )
        if values.dtype.kind in "biuf":
            columns.append(_bit(values.to_numpy(), name, threshold))
            names.append(name)
            continue
        found, codes = np.unique(values.astype(str).to_numpy(), return_inverse=True)
        if len(found) < 2:
            raise ValueError(
                f"the column {name!r} has the category {found[0]!r} only: leave it out, since it "
                "says nothing and cannot change"
            )
        groups.append(tuple(range(len(columns), len(columns) + len(found))))
        columns.extend(np.where(codes == code, 1.0, -1.0) for code in range(len(found)))
        names.extend(f"{name}={category}" for category in found)
    return _bits(
        columns, frame[frame.columns[known.index(labels)]].to_numpy(), tuple(names), tuple(groups)
    )


def _bit(values: np.ndarray, name: str, threshold: Any) -> np.ndarray:
    """One column as a bit."""
    if values.dtype.kind not in "biuf":
        raise ValueError(f"the column {name!r} must be numbers or booleans, but is {shown(values)}")
    numbers = values.astype(float)
    if not np.isfinite(numbers).all():
        raise ValueError(f"the column {name!r} has values that are NaN or infinite: remove them")
    if np.isin(numbers, (0, 1)).all():
        return 2 * numbers - 1
    if np.isin(numbers, (-1, 1)).all():
        return numbers
    cut = threshold.get(name) if isinstance(threshold, Mapping) else threshold
    if cut is None:
        raise ValueError(
            f"the column {name!r} has numbers such as {numbers[~np.isin(numbers, (0, 1))][0]:g}, "
            "which are no bits: give a threshold, as in threshold='median' or "
            f"threshold={{{name!r}: 0.5}}"
        )
    if isinstance(cut, str) and cut != "median":
        raise ValueError(f"`threshold` must be numbers or 'median', but is the word {cut!r}")
    return np.where(numbers > (np.median(numbers) if cut == "median" else float(cut)), 1.0, -1.0)


def _bits(
    columns: list[np.ndarray],
    y: np.ndarray,
    names: tuple[str, ...],
    groups: tuple[tuple[int, ...], ...],
) -> Bits:
    """Columns and labels together."""
    if not columns:
        raise ValueError("there is no column but the labels")
    found, labels = np.unique(y if y.dtype.kind in "biuf" else y.astype(str), return_inverse=True)
    if len(found) < 2:
        raise ValueError(f"the labels must have two classes or more, but all are {found[0]}")
    if len(found) > max(20, len(y) // 2):
        raise ValueError(f"the labels must be classes, but have {len(found)} different values")
    classes = tuple(f"{value:g}" if found.dtype.kind == "f" else str(value) for value in found)
    inputs = jnp.asarray(np.stack(columns, axis=1)).astype(jnp.result_type(float))
    return Bits(inputs, jnp.asarray(labels.astype(np.int32)), names, groups, classes)
