"""A user's own data: a .npz file, checked before anything runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from sgfbias.diagonal.problem import SparseRegression


def load_problem(path: str | Path) -> SparseRegression:
    """The problem in a .npz file with `X` (n, d), `y` (n,) and optionally `beta_star` (d,). Nothing in the file is executed.

    **Raises:** `ValueError` that says what is wrong with the file or its arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; expected a .npz file made by numpy.savez(path, X=X, y=y)")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(f"{path} holds a single array, not named ones; make it by numpy.savez(path, X=X, y=y)")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npz file ({error}); make it by numpy.savez(path, X=X, y=y)") from error
    except ValueError as error:
        if "allow_pickle" in str(error) or "pickle" in str(error).lower():
            raise ValueError(
                f"{path} is not a .npz file of plain numbers (it would need unpickling, which is refused); "
                "make it by numpy.savez(path, X=X, y=y) from numeric arrays"
            ) from error
        raise
    missing = {"X", "y"} - set(arrays)
    unknown = set(arrays) - {"X", "y", "beta_star"}
    if missing or unknown:
        raise ValueError(
            f"{path} must hold X, y and optionally beta_star, but holds {', '.join(sorted(arrays)) or 'nothing'}"
            + (f"; missing: {', '.join(sorted(missing))}" if missing else "")
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} in {path} must be real numbers, but has dtype {array.dtype}")
    return SparseRegression(*(arrays[k].astype(np.float64) if k in arrays else None for k in ("X", "y", "beta_star")))
