"""Datasets on disk: one zarr store per study. Nothing in a store is ever executed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np


def check_target(path: str | Path, *, overwrite: bool) -> None:
    """Refuse a place that cannot take a new store.

    **Raises:** `ValueError` if something is already there and `overwrite` is not set, or is there and is not a store, or a file is in the way.
    """
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise ValueError(f"{path} exists already; choose another output, or pass --overwrite to replace it")
        if not (path / "zarr.json").is_file():
            raise ValueError(f"{path} exists and is not a zarr store, so it will not be replaced; choose another output")
    in_the_way = next((parent for parent in path.parents if parent.is_file()), None)
    if in_the_way is not None:
        raise ValueError(f"{in_the_way} is a file, so no folder can be made there; choose another output")


def save(dataset: Any, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a Dataset to a new zarr store.

    **Raises:** `ValueError` if something is already there and `overwrite` is not set, or is there and is not a store.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_zarr(path, mode="w-", zarr_format=3, consolidated=False)


def load(path: str | Path) -> Any:
    """Read a Dataset from a zarr store, into memory.

    **Raises:** `ValueError` if there is no readable store.
    """
    import xarray as xr

    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"there is no store at {path}; expected a folder written by `sgfbias run`")
    if not (path / "zarr.json").is_file():
        raise ValueError(f"{path} is a folder but not a zarr store; did you mean {_inside(path)}?")
    try:
        return xr.open_zarr(path, consolidated=False).load()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the store {path} cannot be read: {error}") from error


def _inside(path: Path) -> str:
    stores = sorted(p.parent for p in path.glob("*/zarr.json"))
    return str(stores[0]) if stores else "the .zarr folder inside another one"


def variables(dataset: Any) -> list[tuple[str, str, str, str]]:
    """`(name, dimensions, dtype, units)` of every variable, for printing."""
    rows = []
    for name, column in dataset.data_vars.items():
        dims = ", ".join(f"{dim} {size}" for dim, size in column.sizes.items())
        rows.append((str(name), dims, str(np.dtype(column.dtype)), str(column.attrs.get("units", ""))))
    return rows
