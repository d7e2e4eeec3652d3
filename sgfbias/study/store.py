"""Datasets on disk, one zarr store for each study. Nothing in a store is executed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from sgfbias.core.types import Dataset


def check_target(path: str | Path, *, overwrite: bool) -> None:
    """Refuse a path at which no new store can be written.

    **Arguments:**

    - `path`: where the store would be written.
    - `overwrite`: whether an existing store may be replaced.

    **Raises:** `ValueError` if the path exists and `overwrite` is False, if it exists
    and is not a store, or if one of its parent folders is a file.
    """
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise ValueError(
                f"{path} exists already; choose another output folder, or pass --overwrite to "
                "replace it"
            )
        if not (path / "zarr.json").is_file():
            raise ValueError(
                f"{path} exists and is not a zarr store, so it will not be replaced; choose "
                "another output folder"
            )
    in_the_way = next((parent for parent in path.parents if parent.is_file()), None)
    if in_the_way is not None:
        raise ValueError(
            f"{in_the_way} is a file, so no folder can be made there; choose another output folder"
        )


def save(dataset: Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a Dataset to a new zarr store.

    **Arguments:**

    - `dataset`: the Dataset.
    - `path`: path of the store; its parent folders are made if needed.
    - `overwrite`: whether to replace an existing store.

    **Raises:** `ValueError` if the path exists and `overwrite` is False, if it exists
    and is not a store, or if one of its parent folders is a file.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_zarr(path, mode="w-", zarr_format=3, consolidated=False)


def load(path: str | Path) -> Dataset:
    """Read a Dataset from a zarr store into memory.

    **Arguments:**

    - `path`: path of the store.

    **Raises:** `ValueError` if there is no store, or if it cannot be read.
    """
    import xarray as xr

    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"there is no store at {path}; give a folder written by `sgfbias run`")
    if not (path / "zarr.json").is_file():
        raise ValueError(f"{path} is a folder but not a zarr store; did you mean {_inside(path)}?")
    try:
        return xr.open_zarr(path, consolidated=False).load()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the store {path} cannot be read: {error}") from error


def _inside(path: Path) -> str:
    """The store that was probably meant instead of the folder `path`, in words."""
    stores = sorted(p.parent for p in path.glob("*/zarr.json"))
    return str(stores[0]) if stores else "a folder whose name ends in .zarr"


def variables(dataset: Dataset) -> list[tuple[str, str, str, str]]:
    """The texts `(name, dimensions, dtype, units)` of every variable, to be printed."""
    rows = []
    for name, column in dataset.data_vars.items():
        dims = ", ".join(f"{dim} {size}" for dim, size in column.sizes.items())
        rows.append(
            (str(name), dims, str(np.dtype(column.dtype)), str(column.attrs.get("units", "")))
        )
    return rows
