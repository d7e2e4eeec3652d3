"""The columns of a study's dataset: each with dimensions and units."""

from __future__ import annotations

from typing import Any

import numpy as np


class Columns:
    """Collects variables for an `xarray.Dataset`."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}

    def add(self, name: str, dims: tuple[str, ...], value: Any, units: str) -> None:
        """A variable of that name; one dimension name per axis."""
        self.data[name] = (dims, np.asarray(value), {"units": units})

    def dataset(self, coords: dict[str, Any], attrs: dict[str, str]) -> Any:
        """The dataset."""
        import xarray as xr

        # Names of varying length: zarr has no stable format for strings of one length.
        named = {k: np.array(v, dtype=object) if isinstance(v, list) and isinstance(v[0], str) else v for k, v in coords.items()}
        return xr.Dataset(self.data, named, attrs)
