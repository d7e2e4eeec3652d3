"""The columns of a study's dataset. Each has named dimensions and units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sgfbias.core.trajectory import Status, Trajectory
from sgfbias.core.types import Dataset

TIME = "flow time, gamma per SGD step"


class Columns:
    """Collects the variables of an `xarray.Dataset`.

    **Arguments:** one keyword for each axis, with its values or with
    `(dimensions, values, {"units": ...})`, as xarray takes coordinates.

    The attribute `attrs` is a dictionary of texts that are stored with the dataset. A
    study's `measure` may add texts to it.
    """

    def __init__(self, **axes: Any) -> None:
        self.data: dict[str, Any] = {}
        self.axes, self.attrs = axes, dict[str, str]()

    def add(self, name: str, dims: tuple[str, ...], value: Any, units: str) -> None:
        """Add a variable.

        **Arguments:**

        - `name`: name of the variable.
        - `dims`: names of the dimensions of `value`, one for each of its axes.
        - `value`: the numbers.
        - `units`: the units; "1" for a pure number.

        **Raises:** `ValueError` if there is a variable of this name already, or if the
        number of dimensions is wrong.
        """
        values = np.asarray(value)
        if name in self.data:
            raise ValueError(f"the column {name!r} is added twice")
        if len(dims) != values.ndim:
            raise ValueError(
                f"the column {name!r} has {values.ndim} axes, but {len(dims)} dimensions: "
                f"{', '.join(dims)}"
            )
        self.data[name] = (dims, values, {"units": units})

    def add_runs(
        self, name: str, runs: Trajectory, quantities: Mapping[str, str], *, time: str = "time"
    ) -> None:
        """Add the recorded observables of some runs, and how each run ended.

        The variables are the series `NAME_QUANTITY`, the final values
        `NAME_final_QUANTITY` (NaN for a seed that diverged, stalled ones included;
        those of `finals` are NaN for seeds that are not finite only) and `NAME_status`.

        **Arguments:**

        - `name`: NAME, the first part of the variables' names.
        - `runs`: the runs. A single run has no dimension "seed".
        - `quantities`: name of an observable -> its units.
        - `time`: name of the time axis of the series.
        """
        lead = () if runs.status.ndim == 0 else ("seed",)
        for quantity, units in quantities.items():
            self.add(f"{name}_{quantity}", (*lead, time), runs[quantity], units)
            self.add(
                f"{name}_final_{quantity}",
                lead,
                jnp.where(runs.diverged, jnp.nan, runs.final[quantity]),
                units,
            )
        self.add(f"{name}_status", lead, runs.status, "1")

    def add_times(self, runs: Trajectory, *, time: str = "time", step: str = "step") -> None:
        """Add the axis of flow times of some runs, and the step numbers along it.

        **Arguments:**

        - `runs`: the runs whose recorded times and steps are used.
        - `time`, `step`: names of the two coordinates.
        """
        self.axes[time] = (time, np.asarray(runs.times), {"units": TIME})
        self.axes[step] = (time, np.asarray(runs.steps), {"units": "SGD steps"})

    def dataset(self, attrs: Mapping[str, str]) -> Dataset:
        """The `xarray.Dataset` of all variables, with `attrs` and `self.attrs`."""
        import xarray as xr

        # zarr has no stable format for fixed-length strings, so lists of names become
        # arrays of objects.
        named = {
            k: np.array(v, dtype=object) if isinstance(v, list) and isinstance(v[0], str) else v
            for k, v in self.axes.items()
        }
        return xr.Dataset(self.data, named, {**attrs, **self.attrs})


def finals(runs: Trajectory, *values: Any) -> np.ndarray:
    """Final values of some runs, stacked.

    **Arguments:**

    - `runs`: the runs, whose statuses are used.
    - `values`: arrays (seeds,).

    **Returns:** (len(values), seeds); NaN for a seed whose status is `NON_FINITE`.
    """
    return np.where(runs.status == Status.NON_FINITE, np.nan, jnp.stack(values))


def counted(runs: Trajectory) -> str:
    """The number of seeds that ended with each status, in words."""
    return ", ".join(f"{count} {word}" for word, count in runs.statuses().items())
