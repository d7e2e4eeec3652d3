"""Arrays in a user's own .npz files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# What NumPy raises for files that are no archive, an empty one, or a damaged one.
UNREADABLE = (OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error)


def load_arrays(
    path: str | Path, needed: Mapping[str, str], optional: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays in a .npz file. Nothing in the file is executed.

    **Arguments:**

    - `path`: the file.
    - `needed`: the names of arrays that it must hold, each with its shape in words,
      such as {"X": "(n, d)", "y": "(n,)"}.
    - `optional`: those that it may hold besides.

    **Returns:** the arrays by name.

    **Raises:** `ValueError` that says what is wrong with the file, and what was
    expected.
    """
    path, optional = Path(path), optional or {}
    make = f"make it by numpy.savez(path, {', '.join(f'{name}={name}' for name in needed)})"
    if not path.is_file():
        raise ValueError(f"there is no file {path}; expected a .npz file: {make}")
    try:
        # NumPy leaves a damaged file open if it opened it by itself.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            named = isinstance(archive, np.lib.npyio.NpzFile)
            arrays = {name: archive[name] for name in archive.files} if named else {}
    except ValueError as error:
        why = f"is not a readable .npz file ({error}); {make}"
        if "pickle" in str(error).lower():
            why = (
                "is not a .npz file of plain numbers (it would need unpickling, which is "
                f"refused); {make} from numeric arrays"
            )
        raise ValueError(f"{path} {why}") from error
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a readable .npz file ({error}); {make}") from error
    if not named:
        raise ValueError(f"{path} holds a single array instead of named ones; {make}")
    missing, unknown = set(needed) - set(arrays), set(arrays) - set(needed) - set(optional)
    if missing or unknown:
        wanted = " and ".join(f"{name} {shape}" for name, shape in needed.items())
        more = "".join(f", and optionally {name} {shape}" for name, shape in optional.items())
        raise ValueError(
            f"{path} must hold {wanted}{more}, but holds "
            + (", ".join(sorted(arrays)) or "nothing")
            + (f"; missing: {', '.join(sorted(missing))}" if missing else "")
        )
    return arrays
