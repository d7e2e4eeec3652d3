"""How a sweep stands, and what is in it, read from its store alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from sgfbias.ensemble.bar import in_words
from sgfbias.ensemble.store import LEDGER, StoreError, is_locked, read_json, read_records, stored_name, summary, whole


def is_sweep(path: str | Path) -> bool:
    """Whether a store is a sweep's."""
    return (Path(path) / LEDGER).is_dir()


def _spec(path: Path) -> dict[str, Any]:
    stored = read_json(path / LEDGER / "sweep.json")
    if stored is None:
        why = "there is nothing" if not path.exists() else "it holds no sweep" if not is_sweep(path) else "its description is damaged"
        raise StoreError(f"{path} cannot be read as a sweep: {why}; expected a store written by `sgfbias sweep` or Sweep.run")
    return stored["spec"]


def open_sweep(path: str | Path) -> Any:
    """The store of a sweep, finished or not, as an `xarray.Dataset` that reads only what is asked of it; every read is checked.

    What is missing is NaN (-1 for integers). A coordinate that is the same in all cells is one of the Dataset's; one that differs, such as the flow
    times of several step sizes, stays a variable `cell_...` with the dimensions of the grid.

    **Raises:** `StoreError` if there is no sweep, or nothing of it is done yet.
    """
    import xarray as xr

    path = Path(path)
    spec = _spec(path)
    if not (path / "zarr.json").is_file():
        errors = [record["error"] for record in read_records(path).values() if record["state"] == "failed"]
        why = f"every cell that was tried failed, the first with {errors[0]}" if errors else "nothing is done yet"
        raise StoreError(f"there is nothing in the sweep {path}: {why}; see `sgfbias status`")
    dataset = xr.open_zarr(path, consolidated=False, chunks=None)
    shape = tuple(len(values) for _, values in spec["grid"])
    records = read_records(path)
    chunks = -(-(spec["seeds"][1] - spec["seeds"][0]) // spec["chunk"])
    counts = summary(records, shape, chunks)
    dataset = dataset.assign({name: (dataset[name].dims, values) for name, values in counts.items() if name in dataset})
    done = np.array([whole(records, cell) for cell in range(int(np.prod(shape)))]).reshape(shape)
    for name, one in (read_json(path / LEDGER / "schema.json") or {}).items():
        stored = stored_name(name, one)
        if one["per_seed"] or stored not in dataset or not done.any():
            continue
        rows = dataset[stored].values[done]
        if all(np.array_equal(row, rows[0]) for row in rows):
            dataset = dataset.drop_vars({stored, name} & set(dataset.variables)).assign_coords({name: (one["dims"], rows[0], one["attrs"])})
    return dataset


def status(path: str | Path) -> dict[str, Any]:
    """How a sweep stands: per cell `done`, `failed`, `diverged` of `runs`, whether it is `running`, and its first error; whether a process runs it, its rate in runs per
    second and the seconds left.

    **Raises:** `StoreError` if there is no sweep.
    """
    path = Path(path)
    spec, records = _spec(path), read_records(path)
    shape = tuple(len(values) for _, values in spec["grid"])
    first, last = spec["seeds"]
    chunks = -(-(last - first) // spec["chunk"])
    counts = {name: values.reshape(-1) for name, values in summary(records, shape, chunks).items() if name != "chunk_seconds"}
    cells, runs = int(np.prod(shape)), last - first
    session = read_json(path / LEDGER / "session.json")
    running = is_locked(path)
    mine = [r for r in records.values() if session is not None and r["session"] == session["session"]]
    settled = int((counts["runs_done"] + counts["runs_failed"]).sum())
    rate = None
    if mine:
        began = min(r["finished"] - r["seconds"] for r in mine)
        until = time.time() if running else max(r["finished"] for r in mine)
        rate = sum(r["stop"] - r["start"] for r in mine) / max(until - began, 1e-9)
    return {
        "experiment": spec["experiment"],
        "cells": [
            {
                "point": {
                    name: values[k] for (name, values), k in zip(spec["grid"], np.unravel_index(cell, shape) if shape else (), strict=True)
                },
                "runs": runs,
                "done": int(counts["runs_done"][cell]),
                "failed": int(counts["runs_failed"][cell]),
                "diverged": int(counts["runs_diverged"][cell]),
                "running": running and session is not None and cell in session["cells"],
                "error": str(counts["error"][cell]),
            }
            for cell in range(cells)
        ],
        "runs": runs * cells,
        "done": int(counts["runs_done"].sum()),
        "failed": int(counts["runs_failed"].sum()),
        "diverged": int(counts["runs_diverged"].sum()),
        "running": running,
        "by": None if session is None or not running else f"process {session['pid']} on {session['host']}",
        "rate": rate,
        "seconds_left": None if rate is None else (runs * cells - settled) / rate,
    }


def status_lines(state: dict[str, Any]) -> list[str]:
    """A status in words: one line of totals."""
    done, runs = state["done"] + state["failed"], state["runs"]
    what = f"running ({state['by'] or 'another process'})" if state["running"] else "finished" if done == runs else "not running"
    lines = [
        f"sweep of {state['experiment']}: {done:,} of {runs:,} runs, {state['failed']:,} failed, {state['diverged']:,} diverged; {what}"
    ]
    if state["rate"] is not None and done < runs:
        lines.append(f"{state['rate']:,.1f} runs/s in the last session, {in_words(state['seconds_left'])} left")
    return lines


def config_of(path: str | Path) -> str:
    """The spec of a stored sweep, as JSON."""
    return json.dumps(_spec(Path(path)), indent=1)
