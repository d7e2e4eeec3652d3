"""The results of an experiment for some seeds of a cell, as columns.

A column is an array with named dimensions; the seed axis, if there is one, is the
first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from sgfbias.core.tiles import tile_size
from sgfbias.core.trajectory import STATUS_WORDS, Status, Trajectory
from sgfbias.core.types import Dataset
from sgfbias.ensemble.grid import KEPT

FILLS = {"f": np.nan, "i": -1, "u": 0, "b": False, "c": np.nan}


DIFFERS = (
    "a variable without a dimension `seed` differs between seeds of one cell: give it that "
    "dimension, or compute it from the finished sweep"
)


class Column(NamedTuple):
    """A variable of the results.

    `dims` names its dimensions after those of the grid, `attrs` holds the units and
    similar texts, and `per_seed` says whether the first dimension is the seed axis.
    `labels` maps other dimensions to the words that label them, if any.
    """

    dims: tuple[str, ...]
    values: np.ndarray
    attrs: dict[str, str]
    per_seed: bool
    labels: dict[str, list[str]] = {}  # noqa: RUF012


def as_columns(
    result: Any, seeds: int, *, reserved: tuple[str, ...] = (), whole: bool = False
) -> dict[str, Column]:
    """The columns of an experiment's result.

    **Arguments:**

    - `result`: a `Trajectory`, an `xarray.Dataset` with a dimension `seed`, or a
      mapping from names to arrays (seeds, ...).
    - `seeds`: the number of seeds.
    - `reserved`: names of the sweep's axes, which no variable or dimension may have.
    - `whole`: whether the result may lack a variable with a value per seed.

    **Raises:** `ValueError` if the result has another type, or names, dtypes or shapes
    that a store cannot hold.
    """
    if isinstance(result, Trajectory):
        result = result.to_xarray()
    if hasattr(result, "data_vars"):
        columns = _of_dataset(result)
    elif isinstance(result, Mapping):
        columns = {}
        for name, value in result.items():
            values = np.asarray(value)
            if values.ndim == 0 or values.shape[0] != seeds:
                raise ValueError(
                    f"{name!r} must have the {seeds} seeds as its first axis, but has shape "
                    f"{values.shape}"
                )
            columns[str(name)] = Column(
                ("seed", *(f"{name}_{k}" for k in range(values.ndim - 1))), values, {}, True
            )
    else:
        raise ValueError(
            "an experiment must return a Trajectory, an xarray.Dataset with a dimension `seed`, "
            "or a mapping from names to arrays (seeds, ...), "
            f"but returned {type(result).__name__}"
        )
    if not whole and not any(column.per_seed for column in columns.values()):
        raise ValueError(
            "an experiment must return at least one variable with a value per seed, but returned "
            "none"
        )
    for name in [n for n, c in columns.items() if not c.per_seed and f"cell_{n}" in columns]:
        raise ValueError(
            f"the result has both {name!r}, which has one value per cell, and 'cell_{name}', "
            "which is the name that the store gives the former: rename one of them"
        )
    for name, column in columns.items():
        if column.values.dtype.kind not in FILLS:
            raise ValueError(f"{name!r} must be numbers, but has dtype {column.values.dtype}")
        if column.per_seed and column.values.shape[0] != seeds:
            raise ValueError(f"{name!r} must have {seeds} seeds, but has {column.values.shape[0]}")
        if (
            name in KEPT
            or name != name.strip()
            or set(name) & set("/\\\0")
            or name.startswith((".", "__"))
            or name in ("", "zarr.json")
        ):
            raise ValueError(
                f"{name!r} cannot be the name of a variable of the result, because a store "
                "uses this name itself or cannot hold it: choose another"
            )
        clash = {name, *column.dims} & {*reserved, *KEPT - {"seed"}}
        if clash:
            raise ValueError(
                f"{', '.join(sorted(clash))} is an axis of the sweep, or a name that every store "
                f"uses, so {name!r} of the result must not use it: rename it in the result"
            )
    return columns


def _of_dataset(dataset: Dataset) -> dict[str, Column]:
    """The columns of a dataset, without its seeds, keys and labels."""
    columns = {}
    words = {
        str(n): [str(w) for w in v.values]
        for n, v in dataset.variables.items()
        if v.dims == (n,) and v.dtype.kind in "OUST"
    }
    for name, variable in dataset.variables.items():
        if name in ("seed", "key") or name in words:
            continue  # the sweep knows its seeds, and a key follows from its seed
        per_seed = "seed" in variable.dims
        if per_seed:
            variable = variable.transpose("seed", ...)
        attrs = {str(k): str(v) for k, v in variable.attrs.items()}
        dims = tuple(map(str, variable.dims))
        columns[str(name)] = Column(
            dims,
            np.asarray(variable.values),
            attrs,
            per_seed,
            {d: words[d] for d in dims if d in words},
        )
    return columns


def shared_digest(columns: Mapping[str, Column]) -> str:
    """A digest of the variables without a seed axis.

    They must be the same for all seeds of a cell.
    """
    kept = [
        (name, column.values.tobytes())
        for name, column in sorted(columns.items())
        if not column.per_seed
    ]
    return hashlib.blake2b(repr(kept).encode(), digest_size=12).hexdigest()


def seed_states(columns: Mapping[str, Column], seeds: int) -> dict[str, int]:
    """The number of seeds by how they ended.

    This is read from the `status` of a `Trajectory`. Other results have the states
    "finite" and "non-finite", by whether all numbers of a seed are finite.
    """
    status = columns.get("status")
    if (
        status is not None
        and "meaning" in status.attrs
        and status.per_seed
        and status.values.ndim == 1
        and status.values.dtype.kind in "iu"
    ):
        counts = np.bincount(
            status.values.clip(0, len(STATUS_WORDS) - 1), minlength=len(STATUS_WORDS)
        )
        return {word: int(count) for word, count in zip(STATUS_WORDS, counts, strict=True) if count}
    finite = np.ones(seeds, bool)
    for column in columns.values():
        if column.per_seed and column.values.dtype.kind in "fc":
            finite &= np.isfinite(column.values).reshape(len(finite), -1).all(axis=1)
    states = {"finite": int(finite.sum()), STATUS_WORDS[Status.NON_FINITE]: int((~finite).sum())}
    return {word: count for word, count in states.items() if count}


def diverged(states: Mapping[str, int]) -> int:
    """The number of seeds that diverged, from their counts by state."""
    return sum(states.get(STATUS_WORDS[k], 0) for k in (Status.NON_FINITE, Status.STALLED))


def run_seeds(
    experiment: Callable[..., Any],
    point: Mapping[str, Any],
    keys: Array,
    *,
    reserved: tuple[str, ...] = (),
    whole: bool = False,
) -> dict[str, Column]:
    """Run the experiment on these keys, and return its columns.

    If memory runs out, the keys are run in two halves. Tiles keep their shape, so a
    part never has fewer seeds than a tile.
    """
    try:
        return as_columns(
            jax.block_until_ready(experiment(keys, **point)),
            keys.shape[0],
            reserved=reserved,
            whole=whole,
        )
    except jax.errors.JaxRuntimeError as error:
        tile = tile_size(0)
        if "RESOURCE_EXHAUSTED" not in str(error) or keys.shape[0] <= tile or whole:
            raise
    half = max(keys.shape[0] // 2 // tile, 1) * tile
    parts = [
        run_seeds(experiment, point, part, reserved=reserved) for part in (keys[:half], keys[half:])
    ]
    if shared_digest(parts[0]) != shared_digest(parts[1]):
        raise ValueError(DIFFERS)

    def join(name: str) -> Column:
        first, second = (part[name] for part in parts)
        return (
            first._replace(values=np.concatenate([first.values, second.values]))
            if first.per_seed
            else first
        )

    return {name: join(name) for name in parts[0]}
