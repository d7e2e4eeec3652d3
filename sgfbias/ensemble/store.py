"""A sweep on disk: one zarr store, written chunk by chunk, with a ledger that says which chunks are whole.

The root of the store is what `xarray.open_zarr` reads: every variable with the dimensions of the grid, then `seed`, then its own. One chunk of
work, some seeds of one cell, is one zarr chunk of every variable, so that workers write disjoint files. Files are replaced, never changed in
place. The group `ledger` holds no arrays but plain JSON: what the sweep is, what its variables are, and for every finished chunk a record with
checksums of its files, written last. A chunk without a whole record, or with files that do not match it, is done again. Nothing in a store is
ever executed.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sgfbias.ensemble.files import LEDGER, StoreError, canonical, digest, read_json, refused, write_json, write_whole
from sgfbias.ensemble.outcome import FILLS, Column

SUMMARY = ("runs_done", "runs_diverged", "runs_failed", "error", "chunk_seconds")


def identity_of(spec: dict[str, Any]) -> str:
    """A sweep's name for its own records."""
    return digest(canonical(spec).encode())


class Store:
    """A sweep's store at `path`. `spec` is what the sweep is (plain JSON), `axes` its coordinates by name, `chunks` how many per cell."""

    def __init__(self, path: str | Path, spec: dict[str, Any], axes: dict[str, np.ndarray], seeds: tuple[int, int], chunk: int):
        self.path, self.spec, self.axes, self.seeds, self.chunk = Path(path), spec, axes, seeds, chunk
        self.shape = tuple(len(values) for values in axes.values())
        self.chunks = -(-(seeds[1] - seeds[0]) // chunk)
        self.identity = identity_of(spec)
        self.schema: dict[str, Any] | None = None
        self._layout: dict[str, bytes] = {}

    @property
    def ledger(self) -> Path:
        """Folder of the ledger."""
        return self.path / LEDGER

    def claim(self, provenance: dict[str, str]) -> None:
        """Make the store, or take over one of the same sweep.

        **Raises:** `StoreError` if something else is there, or a sweep that differs, with the differences.
        """
        there = read_json(self.ledger / "sweep.json")
        if there is None:
            foreign = [record for record in read_records(self.path).values() if record["sweep"] != self.identity]
            if foreign:
                raise StoreError(f"{self.path} holds chunks of another sweep, and what it was is lost; choose another output, or delete it")
            self.provenance = provenance
            write_json(self.ledger / "sweep.json", {"spec": self.spec, "provenance": provenance})
        else:
            changed = differences(there["spec"], self.spec)
            if changed:
                raise StoreError(
                    f"{self.path} is of a sweep that differs, and two sweeps are not mixed:\n  " + "\n  ".join(changed)
                    + "\nrun it as it was, or choose another output"
                )  # fmt: skip
            self.provenance = there["provenance"]
        stored = read_json(self.ledger / "schema.json")
        if stored is not None:
            self.use(stored)
        self.restore()

    def describe(self, columns: dict[str, Column]) -> dict[str, Any]:
        """What the variables are, from the columns of one chunk: what every other chunk must agree with."""
        return {
            name: {
                "dims": list(c.dims[1:] if c.per_seed else c.dims),
                "shape": list(c.values.shape[1:] if c.per_seed else c.values.shape),
                "dtype": c.values.dtype.str,
                "attrs": c.attrs,
                "per_seed": c.per_seed,
                "labels": c.labels,
            }
            for name, c in columns.items()
        }

    def use(self, schema: dict[str, Any]) -> None:
        """Take this schema for the store's."""
        self.schema, self._layout = schema, self._arrays(schema)

    def agree(self, schema: dict[str, Any]) -> None:
        """Settle what the variables are: of processes that share the work the first one says, and the others' chunks must fit."""
        try:
            with (self.ledger / "schema.lock").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                there = read_json(self.ledger / "schema.json")
                if there is None:
                    write_json(self.ledger / "schema.json", schema)
        except OSError as error:
            raise refused(self.ledger / "schema.json", error) from error
        self.use(schema if there is None else there)
        self.restore()

    def check(self) -> None:
        """Before anything is written: what describes the sweep is mended if it is gone.

        **Raises:** `StoreError` if another sweep has taken the store's place.
        """
        there = read_json(self.ledger / "sweep.json")
        if there is None or canonical(there["spec"]) != canonical(self.spec):
            self.restore()

    def restore(self) -> None:
        """Write whatever is missing or damaged of what describes the arrays, and the coordinates.

        **Raises:** `StoreError` if another sweep has taken the store's place.
        """
        there = read_json(self.ledger / "sweep.json")
        if there is not None and canonical(there["spec"]) != canonical(self.spec):
            raise StoreError(
                f"{self.path} has become another sweep's while this one ran: nothing more is written there; choose another output"
            )
        known = read_json(self.ledger / "schema.json")
        if known is not None and self.schema is not None and canonical(known) != canonical(self.schema):
            raise StoreError(
                f"{self.path} has been given other variables while this sweep ran: nothing more is written there; run it again"
            )
        if there is None:
            write_json(self.ledger / "sweep.json", {"spec": self.spec, "provenance": self.provenance})
        if self.schema is not None and known is None:
            write_json(self.ledger / "schema.json", self.schema)
        for name in sorted(self._layout, key=lambda name: name == "zarr.json"):  # the root last: with it there is something to open
            self._mend(name)

    def _mend(self, name: str) -> None:
        """Write a file that describes the store again, if it is not as it was."""
        try:
            found = (self.path / name).read_bytes()
        except OSError:
            found = None
        if found != self._layout[name]:
            write_whole(self.path / name, self._layout[name])

    def _arrays(self, schema: dict[str, Any]) -> dict[str, bytes]:
        """The files of a store without results: made in memory, so that they are written, checked and mended one by one."""
        import zarr
        from zarr.storage import MemoryStore

        files: dict[str, Any] = {}
        memory = MemoryStore(files)
        floats = [np.dtype(one["dtype"]) for one in schema.values() if np.dtype(one["dtype"]).kind == "f"]
        precision = {"precision": max(floats, key=lambda dtype: dtype.itemsize).name} if floats else {}
        attrs = {**self.provenance, **precision, "sweep": json.dumps(self.spec, sort_keys=True)}
        root = zarr.create_group(memory, zarr_format=3, attributes=attrs)
        root.create_group(LEDGER)
        grid, per_cell = tuple(self.axes), (1,) * len(self.shape)
        count = self.seeds[1] - self.seeds[0]
        inner = {dim: np.array(labels, dtype=object) for one in schema.values() for dim, labels in one["labels"].items()}
        for name, labels in {**inner, **self.axes, "seed": np.arange(*self.seeds)}.items():
            words = labels.dtype == object
            array = root.create_array(
                name,
                shape=labels.shape,
                chunks=labels.shape,
                dtype="string" if words else labels.dtype,
                compressors=_compressors(),
                dimension_names=(name,),
            )
            array[...] = labels
        for name, one in schema.items():
            lead = (*grid, "seed") if one["per_seed"] else grid
            dtype = np.dtype(one["dtype"])
            root.create_array(
                stored_name(name, one),
                shape=(*self.shape, *((count,) if one["per_seed"] else ()), *one["shape"]),
                chunks=(*per_cell, *((min(self.chunk, count),) if one["per_seed"] else ()), *(max(n, 1) for n in one["shape"])),
                dtype=dtype,
                fill_value=FILLS[dtype.kind],
                compressors=_compressors(),
                dimension_names=(*lead, *one["dims"]),
                attributes=one["attrs"],
            )
        for name in SUMMARY:
            extra = (self.chunks,) if name == "chunk_seconds" else ()
            dtype = "string" if name == "error" else "float64" if name == "chunk_seconds" else "int64"
            dims = (*grid, "chunk") if extra else grid
            root.create_array(
                name,
                shape=(*self.shape, *extra),
                dtype=dtype,
                compressors=_compressors(),
                dimension_names=dims,
                chunks=(*self.shape, *extra),
            )
        return {name: value.to_bytes() for name, value in files.items()}

    def _is_there(self, name: str, values: np.ndarray) -> bool:
        """Whether a shared coordinate is written already: readers need not see it replaced."""
        import zarr

        try:
            return np.array_equal(zarr.open_array(self.path / name, mode="r")[...], values)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def record_path(self, cell: int, chunk: int) -> Path:
        """File of a chunk's record."""
        return self.ledger / "records" / f"{cell}-{chunk}.json"

    def write(self, cell: int, index: tuple[int, ...], chunk: int, columns: dict[str, Column]) -> dict[str, str]:
        """Write a chunk's variables; returns the checksums of its files.

        **Raises:** `StoreError` if the store cannot be written; `ValueError` if the columns are not those of the schema.
        """
        assert self.schema is not None
        found = self.describe(columns)
        wrong = [name for name in {**self.schema, **found} if _shapes(found.get(name)) != _shapes(self.schema.get(name))]
        if wrong:
            raise ValueError(
                f"the result differs in kind from that of the first cell: {wrong[0]!r} is {_shapes(found.get(wrong[0]))} here and "
                f"{_shapes(self.schema.get(wrong[0]))} there; record at a fixed number of times, and return the same variables everywhere"
            )
        self.check()
        start, count = chunk * self.chunk, self.seeds[1] - self.seeds[0]
        where = slice(start, min(start + self.chunk, count))
        files = {}
        for name, column in columns.items():
            if column.values.size and (column.per_seed or chunk == 0):
                place = ((*index, where) if column.per_seed else index, (*index, *((chunk,) if column.per_seed else ())))
                file = self._write(stored_name(name, self.schema[name]), place, column.values)
                try:
                    files[file] = digest((self.path / file).read_bytes())
                except OSError as error:
                    raise refused(self.path / file, error) from error
        return files

    def _write(self, name: str, place: tuple[Any, tuple[int, ...]], values: np.ndarray) -> str:
        """One zarr chunk; returns its file. Where the array's description is gone or damaged it is written again first."""
        import zarr

        region, key = place
        for attempt in range(2):
            self._mend(f"{name}/zarr.json")  # a damaged one could have chunks of another shape
            try:
                with zarr.config.set({"array.write_empty_chunks": True}):  # also numbers that are all NaN are a file with a checksum
                    array = zarr.open_array(self.path / name, mode="r+")
                    array[region] = values
                return f"{name}/{array.metadata.encode_chunk_key((*key, *(0 for _ in range(array.ndim - len(key)))))}"
            except FileNotFoundError as error:
                if attempt:
                    raise refused(self.path / name, error) from error
            except OSError as error:
                raise refused(self.path / name, error) from error
            except (ValueError, KeyError, TypeError) as error:
                if attempt:
                    raise StoreError(f"the array {self.path / name} cannot be written: {error}") from error
            self.restore()
        raise AssertionError

    def keep(self, cell: int, chunk: int, record: dict[str, Any]) -> None:
        """Write a chunk's record: from now on it is done."""
        self.check()
        write_json(self.record_path(cell, chunk), {**record, "sweep": self.identity, "cell": cell, "chunk": chunk})

    def records(self) -> dict[tuple[int, int], dict[str, Any]]:
        """All whole records of this sweep, by (cell, chunk)."""
        return {place: record for place, record in read_records(self.path).items() if record["sweep"] == self.identity}

    def is_whole(self, record: dict[str, Any]) -> bool:
        """Whether a record's files are as they were written."""
        try:
            return all(digest((self.path / name).read_bytes()) == check for name, check in record["files"].items())
        except OSError:
            return False

    def summarise(self) -> None:
        """Write counts, errors and timings per cell, and coordinates that all cells share."""
        import zarr

        assert self.schema is not None
        records = self.records()
        try:
            for name, values in summary(records, self.shape, self.chunks).items():
                zarr.open_array(self.path / name, mode="r+")[...] = values
            done = [
                np.unravel_index(cell, self.shape) if self.shape else () for cell in range(int(np.prod(self.shape))) if whole(records, cell)
            ]
            for name, one in self.schema.items():
                if one["per_seed"] or one["dims"] != [name] or not done:
                    continue
                stored = zarr.open_array(self.path / stored_name(name, one), mode="r")
                rows: list[Any] = [stored[tuple(map(int, index))] for index in done]
                if all(np.array_equal(row, rows[0]) for row in rows) and not self._is_there(name, rows[0]):
                    shape = rows[0].shape
                    shared = zarr.create_array(
                        self.path / name, shape=shape, dtype=rows[0].dtype, chunks=shape, compressors=_compressors(), dimension_names=(name,),
                        attributes=one["attrs"], overwrite=True
                    )  # fmt: skip
                    shared[...] = rows[0]
        except OSError as error:
            raise refused(self.path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self.path} has been damaged while it was completed ({error}): run the same command again to mend it"
            ) from error


def whole(records: dict[tuple[int, int], dict[str, Any]], cell: int) -> bool:
    """Whether the first chunk of a cell is there, which brings what has no seed axis."""
    return (cell, 0) in records and records[cell, 0]["state"] == "done"


def read_records(path: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """All whole records of a store, by (cell, chunk)."""
    folder, found = path / LEDGER / "records", {}
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if entry.name.endswith(".json") and (record := read_json(Path(entry.path))) is not None:
            found[record["cell"], record["chunk"]] = record
    return found


def summary(records: dict[tuple[int, int], dict[str, Any]], shape: tuple[int, ...], chunks: int) -> dict[str, np.ndarray]:
    """Counts of runs, the first error and the seconds of every chunk, per cell."""
    cells = int(np.prod(shape))
    columns = {name: np.zeros(cells, np.int64) for name in SUMMARY[:3]}
    columns["error"] = np.full(cells, "", dtype=object)
    columns["chunk_seconds"] = np.full((cells, chunks), np.nan)
    for (cell, chunk), record in sorted(records.items()):
        runs = record["stop"] - record["start"]
        columns["chunk_seconds"][cell, chunk] = record["seconds"]
        if record["state"] == "failed":
            columns["runs_failed"][cell] += runs
            columns["error"][cell] = columns["error"][cell] or record["error"]
        else:
            columns["runs_done"][cell] += runs
            columns["runs_diverged"][cell] += record["diverged"]
    return {name: values.reshape(shape + values.shape[1:]) for name, values in columns.items()}


def stored_name(name: str, one: dict[str, Any]) -> str:
    """Name of a variable in the store: a coordinate that may differ from cell to cell cannot bear the name of its dimension."""
    return f"cell_{name}" if not one["per_seed"] and name in one["dims"] else name


def differences(stored: dict[str, Any], given: dict[str, Any], where: str = "") -> list[str]:
    """What differs between two descriptions, in words."""
    lines = []
    for key in [*stored, *(k for k in given if k not in stored)]:
        a, b, name = stored.get(key), given.get(key), f"{where}{key}"
        if key == "grid" and a is not None and b is not None and [n for n, _ in a] == [n for n, _ in b]:
            a, b = dict(a), dict(b)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{name}.")
        elif canonical(a) != canonical(b):
            lines.append(f"{name}: {'absent' if a is None else a} in the store, {'absent' if b is None else b} now")
    return lines


def _shapes(one: dict[str, Any] | None) -> Any:
    return (
        None
        if one is None
        else (
            one["dtype"],
            tuple(one["dims"]),
            tuple(one["shape"]),
            "per seed" if one["per_seed"] else "per cell",
            *(one["labels"].items()),
        )
    )


def _compressors() -> Any:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return [ZstdCodec(level=1), Crc32cCodec()]  # the checksum is looked at whenever a chunk is read, by whatever program
