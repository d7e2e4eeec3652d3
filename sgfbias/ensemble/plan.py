"""The plan of a sweep: its runs, chunks, memory, and the time estimated from a
probe.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sgfbias.core.brownian import seeds
from sgfbias.core.tiles import tile_size
from sgfbias.ensemble.bar import in_words
from sgfbias.ensemble.disk import read_json
from sgfbias.ensemble.outcome import run_seeds
from sgfbias.ensemble.store import Store, differences
from sgfbias.ensemble.work import nbytes


class Plan(NamedTuple):
    """A sweep before it runs; its printed form is a summary.

    `chunk_bytes` and `store_bytes` are sizes before compression. `chunk_seconds` is the
    time of one chunk once everything is compiled, and `first_seconds` that of the first
    chunk, compilation included. `error` is the error of the first cell, if it fails.
    """

    name: str
    axes: dict[str, int]
    seeds: tuple[int, int]
    runs: int
    chunk: int
    chunks: int
    chunks_done: int
    device: str
    chunk_bytes: int
    store_bytes: int
    chunk_seconds: float
    first_seconds: float
    seconds_left: float
    error: str

    def __repr__(self) -> str:
        axes = " x ".join(f"{name} {count}" for name, count in self.axes.items()) or "one cell"
        lines = [
            f"Sweep of {self.name}",
            f"  grid    {axes} x seeds {self.seeds[0]}:{self.seeds[1]}: {self.runs:,} runs",
            f"  chunks  {self.chunks:,} of {self.chunk:,} seeds of one cell, "
            f"{self.chunks_done:,} done already",
            f"  device  {self.device}, tiles of {tile_size(0):,} seeds",
        ]
        if self.error:
            return "\n".join([*lines, f"  probe   the first cell fails: {self.error}"])
        return "\n".join(
            [
                *lines,
                f"  memory  {self.chunk_bytes / 1e6:.1f} MB for the results of a chunk, "
                f"{self.store_bytes / 1e6:,.1f} MB on disk for the sweep before compression",
                f"  time    {in_words(self.seconds_left)}: {self.chunk_seconds:.2f} s per chunk, "
                f"as measured; the first takes {self.first_seconds:.1f} s",
            ]
        )


def measure(sweep: Any, path: str | Path | None, workers: int) -> Plan:
    """The plan of a sweep, measured by running its first chunk twice.

    `path` is a store whose finished chunks are not counted, `workers` the number of
    workers.

    **Raises:** `ValueError` if the store at `path` belongs to a different sweep.
    """
    store: Store | None = None if path is None else sweep.store(path)
    done = 0
    if store is not None and (there := read_json(store.ledger / "sweep.json")) is not None:
        changed = differences(there["spec"], store.spec)
        if changed:
            raise ValueError(
                f"{store.path} holds a sweep that differs from this one:\n  " + "\n  ".join(changed)
            )
        done = sum(record["state"] == "done" for record in store.records().values())
    tasks = sweep.tasks
    first, error, spans, size, extra = tasks[0], "", [], 0, 0
    count = first.stop - first.start
    for _ in range(2):
        began = time.perf_counter()
        try:
            columns = run_seeds(
                sweep.experiment,
                first.point,
                seeds(first.start, first.stop, root=sweep.root),
                reserved=sweep.grid.names,
                whole=sweep.whole,
            )
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
            break
        spans.append(time.perf_counter() - began)
        size, extra = nbytes(columns)
    runs = sweep.grid.cells * (sweep.seeds[1] - sweep.seeds[0])
    cold, warm = (spans[0], spans[1]) if len(spans) == 2 else (0.0, 0.0)
    left = len(tasks) - done
    device = jax.local_devices()[0]
    return Plan(
        name=sweep.name,
        axes={axis.name: len(axis.values) for axis in sweep.grid.axes},
        seeds=sweep.seeds,
        runs=runs,
        chunk=sweep.chunk,
        chunks=len(tasks),
        chunks_done=done,
        device=f"{jax.local_device_count()} x {device.platform}: {device.device_kind}, "
        f"{os.cpu_count()} cores, {workers} worker{'s' * (workers > 1)}",
        chunk_bytes=size + extra,
        store_bytes=size * runs // count + extra * sweep.grid.cells,
        chunk_seconds=warm,
        first_seconds=cold,
        seconds_left=0.0 if left == 0 else cold - warm + warm * left / max(workers, 1),
        error=error,
    )
