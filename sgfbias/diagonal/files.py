"""Problems that are stored in files, as a user's own data are."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from sgfbias.core.names import did_you_mean
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.study.arrays import load_arrays


def load_problem(path: str | Path) -> SparseRegression:
    """The problem stored in a file. Nothing in the file is executed.

    **Arguments:**

    - `path`: a .npz file with `X` (n, d), `y` (n,) and optionally `beta_star` (d,); or
      a .csv file with one row for each example, whose first line names the columns. The
      column y has the targets, and all others are features.

    **Raises:** `ValueError` that says what is wrong with the file or with its arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}; expected a .npz file made by numpy.savez(path, X=X, y=y), "
            "or a .csv file with a column y"
        )
    if path.suffix.lower() == ".csv":
        return _from_table(path)
    arrays = load_arrays(path, {"X": "(n, d)", "y": "(n,)"}, {"beta_star": "(d,)"})
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} in {path} must be real numbers, but has dtype {array.dtype}")
    return SparseRegression(
        *(arrays[k].astype(np.float64) if k in arrays else None for k in ("X", "y", "beta_star"))
    )


def _from_table(path: Path) -> SparseRegression:
    """The problem in a .csv file, see `load_problem`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable .csv file ({error})") from error
    if not rows:
        raise ValueError(f"{path} is empty; its first line must name the columns, one of them y")
    names = [cell.strip() for cell in rows[0]]
    if names.count("y") != 1:
        meant = did_you_mean("y", names) if "Y" not in names else "is it Y? "
        raise ValueError(
            f"the first line of {path} must name the columns, exactly one of them y, the targets; "
            f"{meant}it is {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        )
    if len(rows) == 1 or len(names) == 1:
        raise ValueError(f"{path} must have at least one row below the names, and one feature")
    table = np.empty((len(rows) - 1, len(names)))
    for k, row in enumerate(rows[1:]):
        if len(row) != len(names):
            raise ValueError(
                f"row {k + 1} of {path} has {len(row)} entries, but there are {len(names)} columns"
            )
        for j, cell in enumerate(row):
            try:
                table[k, j] = float(cell)
            except ValueError as error:
                raise ValueError(
                    f"column {names[j]} of {path} must be numbers, but row {k + 1} has {cell!r}; "
                    "drop, impute or encode it"
                ) from error
    target = names.index("y")
    return SparseRegression(np.delete(table, target, axis=1), table[:, target])
