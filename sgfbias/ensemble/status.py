"""The state and the results of a sweep, read from its store alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from sgfbias.core.types import Dataset
from sgfbias.ensemble.bar import in_words
from sgfbias.ensemble.disk import LEDGER, StoreError, read_json
from sgfbias.ensemble.lock import is_locked
from sgfbias.ensemble.store import identity_of, read_records, stored_name, summary, whole


def is_sweep(path: str | Path) -> bool:
    """Whether the store at `path` is a sweep's."""
    return (Path(path) / LEDGER).is_dir()


def _spec(path: Path) -> dict[str, Any]:
    """The specification in the store at `path`.

    **Raises:** `StoreError` if there is no valid one.
    """
    stored = read_json(path / LEDGER / "sweep.json")
    if stored is None:
        why = (
            "there is nothing"
            if not path.exists()
            else "it holds no sweep"
            if not is_sweep(path)
            else "its description is damaged"
        )
        raise StoreError(
            f"{path} cannot be read as a sweep: {why}; give a store that was written by `sgfbias "
            "sweep` or Sweep.run"
        )
    return stored["spec"]


def _records(path: Path, spec: dict[str, Any]) -> dict[tuple[int, int], dict[str, Any]]:
    """The valid records of the sweep that the store describes, and of no other."""
    identity = identity_of(spec)
    return {
        place: record for place, record in read_records(path).items() if record["sweep"] == identity
    }


def _checked(path: Path, files: set[str]) -> Any:
    """The zarr store to read from.

    A file that the ledger lists but that is missing raises a `StoreError`, where zarr
    would fill in numbers.
    """
    from zarr.storage import LocalStore, WrapperStore

    class Checked(WrapperStore[LocalStore]):
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            value = await super().get(key, prototype, byte_range)
            if value is None and key in files:
                raise StoreError(f"{path / key} is gone: run the same sweep again to mend it")
            return value

    return Checked(LocalStore(path, read_only=True))


def open_sweep(path: str | Path) -> Dataset:
    """Open the store of a sweep, finished or not, as an `xarray.Dataset`.

    Data are loaded only when they are used, and every read is checked against a
    checksum. Values that are not computed yet, or failed, are NaN (-1 for integers, 0
    for unsigned integers, False for booleans). A coordinate that is the same in all
    cells is a coordinate of the dataset. One that differs, such as the flow times of
    several step sizes, remains a variable `cell_...` with the dimensions of the grid.

    **Arguments:**

    - `path`: the folder of the store.

    **Raises:** `StoreError` if there is no sweep at `path`, or no chunk of it has
    succeeded yet.
    """
    import xarray as xr

    path = Path(path).absolute()
    spec = _spec(path)
    records = _records(path, spec)
    if not (path / "zarr.json").is_file():
        errors = [record["error"] for record in records.values() if record["state"] == "failed"]
        why = (
            f"every cell that was tried failed, the first with {errors[0]}"
            if errors
            else "no chunk is done yet"
        )
        raise StoreError(f"there is nothing in the sweep {path}: {why}; see `sgfbias status`")
    files = {name for record in records.values() for name in record["files"]}
    dataset = xr.open_zarr(_checked(path, files), consolidated=False, chunks=None)
    shape = tuple(len(values) for _, values in spec["grid"])
    chunks = -(-(spec["seeds"][1] - spec["seeds"][0]) // spec["chunk"])
    counts = summary(records, shape, chunks)
    dataset = dataset.assign(
        {name: (dataset[name].dims, values) for name, values in counts.items() if name in dataset}
    )
    done = np.array([whole(records, cell) for cell in range(int(np.prod(shape)))]).reshape(shape)
    for name, one in (read_json(path / LEDGER / "schema.json") or {}).items():
        stored = stored_name(name, one)
        if one["per_seed"] or stored not in dataset or not done.any():
            continue
        rows = dataset[stored].values[done]
        if all(np.array_equal(row, rows[0]) for row in rows):
            dataset = dataset.drop_vars({stored, name} & set(dataset.variables)).assign_coords(
                {name: (one["dims"], rows[0], one["attrs"])}
            )
    return dataset


def status(path: str | Path) -> dict[str, Any]:
    """The state of a sweep.

    **Arguments:**

    - `path`: the folder of the store.

    **Returns:** a dictionary. `cells` lists, for every cell, its `point`, its number of
    `runs`, how many of them are `done`, `failed` and `diverged`, whether it is
    `running`, and its first `error`. The totals are `runs`, `done`, `failed` and
    `diverged`. `running` says whether a process works on the sweep, `by` which one,
    `rate` the runs per second, and `seconds_left` the estimated time left; the last two
    are None if unknown.

    **Raises:** `StoreError` if there is no sweep at `path`.
    """
    path = Path(path)
    spec = _spec(path)
    records = _records(path, spec)
    shape = tuple(len(values) for _, values in spec["grid"])
    first, last = spec["seeds"]
    chunks = -(-(last - first) // spec["chunk"])
    counts = {
        name: values.reshape(-1)
        for name, values in summary(records, shape, chunks).items()
        if name != "chunk_seconds"
    }
    cells, runs = int(np.prod(shape)), last - first
    sessions = [
        s for s in map(read_json, sorted((path / LEDGER).glob("session-*.json"))) if s is not None
    ]
    running = is_locked(path)
    if sessions and not running:
        sessions = [max(sessions, key=lambda s: s["time"])]
    elif running:
        sessions = [s for s in sessions if is_locked(path, s["share"])]
    settled = int((counts["runs_done"] + counts["runs_failed"]).sum())
    rate = None
    for session in sessions:
        mine = [r for r in records.values() if r["session"] == session["session"]]
        if mine:
            began = min(r["finished"] - r["seconds"] for r in mine)
            until = time.time() if running else max(r["finished"] for r in mine)
            rate = (rate or 0) + sum(r["stop"] - r["start"] for r in mine) / max(
                until - began, 1e-9
            )
    at_work = {cell for session in sessions for cell in session["cells"]} if running else set()
    return {
        "experiment": spec["experiment"],
        "cells": [
            {
                "point": {
                    name: values[k]
                    for (name, values), k in zip(
                        spec["grid"], np.unravel_index(cell, shape) if shape else (), strict=True
                    )
                },
                "runs": runs,
                "done": int(counts["runs_done"][cell]),
                "failed": int(counts["runs_failed"][cell]),
                "diverged": int(counts["runs_diverged"][cell]),
                "running": cell in at_work,
                "error": str(counts["error"][cell]),
            }
            for cell in range(cells)
        ],
        "runs": runs * cells,
        "done": int(counts["runs_done"].sum()),
        "failed": int(counts["runs_failed"].sum()),
        "diverged": int(counts["runs_diverged"].sum()),
        "running": running,
        "by": ", ".join(f"process {s['pid']} on {s['host']}" for s in sessions) if running else "",
        "rate": rate,
        "seconds_left": None if rate is None else (runs * cells - settled) / rate,
    }


def status_lines(state: dict[str, Any]) -> list[str]:
    """The status as text: one line of totals, and one with the rate if it is known."""
    done, runs = state["done"] + state["failed"], state["runs"]
    what = (
        f"running ({state['by'] or 'another process'})"
        if state["running"]
        else "finished"
        if done == runs
        else "not running"
    )
    lines = [
        f"sweep of {state['experiment']}: {done:,} of {runs:,} runs, {state['failed']:,} failed, "
        f"{state['diverged']:,} diverged; {what}"
    ]
    if state["rate"] is not None and done < runs:
        lines.append(
            f"{state['rate']:,.1f} runs/s in the last session, {in_words(state['seconds_left'])} "
            "left"
        )
    return lines


def config_of(path: str | Path) -> str:
    """The specification of a stored sweep, as JSON."""
    return json.dumps(_spec(Path(path)), indent=1)
