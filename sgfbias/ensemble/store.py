"""The store of a sweep: one zarr store, written chunk by chunk, with a ledger of its
chunks.

The root of the store is what `xarray.open_zarr` reads. Every variable has the
dimensions of the grid, then `seed`, then its own. One chunk of work (some seeds of one
cell) is one zarr chunk of every variable, so workers write disjoint files. Files are
replaced, never changed in place.

The group `ledger` holds no arrays but plain JSON: the specification of the sweep, the
schema of its variables, and for every finished chunk a record with the checksums of its
files, which is written last. A chunk is computed again if its record is missing or
damaged, or if its files do not match the record. Nothing in a store is ever executed.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sgfbias.ensemble.disk import (
    LEDGER,
    StoreError,
    canonical,
    digest,
    read_json,
    refused,
    write_json,
    write_whole,
)
from sgfbias.ensemble.outcome import FILLS, Column

SUMMARY = ("runs_done", "runs_diverged", "runs_failed", "error", "chunk_seconds")


def identity_of(spec: dict[str, Any]) -> str:
    """A checksum of the specification, by which a sweep recognises its own records."""
    return digest(canonical(spec).encode())


class Store:
    """The store of a sweep.

    **Arguments:**

    - `path`: the folder of the store.
    - `spec`: the sweep's specification, as plain JSON.
    - `axes`: the coordinates of the grid's axes, by name.
    - `seeds`: `(start, stop)`, the seeds of every cell.
    - `chunk`: the number of seeds in a chunk. `chunks` is the number of chunks per
      cell.
    """

    def __init__(
        self,
        path: str | Path,
        spec: dict[str, Any],
        axes: dict[str, np.ndarray],
        seeds: tuple[int, int],
        chunk: int,
    ):
        self.path, self.spec, self.axes = Path(path), spec, axes
        self.seeds, self.chunk = seeds, chunk
        self.shape = tuple(len(values) for values in axes.values())
        self.chunks = -(-(seeds[1] - seeds[0]) // chunk)
        self.identity = identity_of(spec)
        self.schema: dict[str, Any] | None = None
        self._layout: dict[str, bytes] = {}

    @property
    def ledger(self) -> Path:
        """The folder of the ledger."""
        return self.path / LEDGER

    def claim(self, provenance: dict[str, str]) -> None:
        """Create the store, or take over one that has the same specification.

        **Raises:** `StoreError` if something else is at the path, or the store of a
        different sweep; the differences are listed.
        """
        there = read_json(self.ledger / "sweep.json")
        if there is None:
            records = read_records(self.path).values()
            if any(record["sweep"] != self.identity for record in records):
                raise StoreError(
                    f"{self.path} holds chunks of another sweep, whose description is lost; choose "
                    "another output, or delete the store"
                )
            self.provenance = provenance
            write_json(self.ledger / "sweep.json", {"spec": self.spec, "provenance": provenance})
        else:
            changed = differences(there["spec"], self.spec)
            if changed:
                raise StoreError(
                    f"{self.path} holds a sweep that differs from this one, and a store holds only "
                    "one sweep:\n  "
                    + "\n  ".join(changed)
                    + "\nrun the sweep as it was, or choose another output"
                )
            self.provenance = there["provenance"]
        stored = read_json(self.ledger / "schema.json")
        if stored is not None:
            self.use(stored)
        self.restore()

    def describe(self, columns: dict[str, Column]) -> dict[str, Any]:
        """The schema of the variables, from the columns of one chunk.

        The columns of every other chunk must have the same schema.
        """
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
        """Take `schema` as the schema of this store."""
        self.schema, self._layout = schema, self._arrays(schema)

    def agree(self, schema: dict[str, Any]) -> None:
        """Settle the schema: the first process to write one determines it for all of
        them.

        Chunks of other processes must then have that schema.
        """
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
        """Restore the description of the sweep if it is missing, before something is
        written.

        **Raises:** `StoreError` if another sweep has taken the store's place.
        """
        there = read_json(self.ledger / "sweep.json")
        if there is None or canonical(there["spec"]) != canonical(self.spec):
            self.restore()

    def restore(self) -> None:
        """Write all missing or damaged files that describe the arrays, and the
        coordinates.

        **Raises:** `StoreError` if another sweep has taken the store's place, or other
        variables were written.
        """
        there = read_json(self.ledger / "sweep.json")
        if there is not None and canonical(there["spec"]) != canonical(self.spec):
            raise StoreError(
                f"{self.path} has become another sweep's store while this one ran: nothing more "
                "is written there; choose another output"
            )
        known = read_json(self.ledger / "schema.json")
        if (
            known is not None
            and self.schema is not None
            and canonical(known) != canonical(self.schema)
        ):
            raise StoreError(
                f"{self.path} has been given other variables while this sweep ran: nothing more "
                "is written there; run the sweep again"
            )
        if there is None:
            write_json(
                self.ledger / "sweep.json", {"spec": self.spec, "provenance": self.provenance}
            )
        if self.schema is not None and known is None:
            write_json(self.ledger / "schema.json", self.schema)
        # The root's description comes last, because it makes the store readable.
        for name in sorted(self._layout, key=lambda name: name == "zarr.json"):
            self._mend(name)

    def _mend(self, name: str) -> None:
        """Write a file of the store's layout again if its content has changed."""
        try:
            found = (self.path / name).read_bytes()
        except OSError:
            found = None
        if found != self._layout[name]:
            write_whole(self.path / name, self._layout[name])

    def _arrays(self, schema: dict[str, Any]) -> dict[str, bytes]:
        """The files of a store without results, by name.

        They are made in memory, so that each can be written, checked and mended by
        itself.
        """
        import zarr
        from zarr.storage import MemoryStore

        files: dict[str, Any] = {}
        memory = MemoryStore(files)
        floats = [
            np.dtype(one["dtype"]) for one in schema.values() if np.dtype(one["dtype"]).kind == "f"
        ]
        widest = max(floats, key=lambda dtype: dtype.itemsize, default=None)
        precision = {} if widest is None else {"precision": widest.name}
        attrs = {**self.provenance, **precision, "sweep": json.dumps(self.spec, sort_keys=True)}
        root = zarr.create_group(memory, zarr_format=3, attributes=attrs)
        root.create_group(LEDGER)
        grid, per_cell = tuple(self.axes), (1,) * len(self.shape)
        count = self.seeds[1] - self.seeds[0]
        inner = {
            dim: np.array(labels, dtype=object)
            for one in schema.values()
            for dim, labels in one["labels"].items()
        }
        for name, labels in {**inner, **self.axes, "seed": np.arange(*self.seeds)}.items():
            stored_as = "string" if labels.dtype == object else labels.dtype
            options = _one_chunk(labels.shape)
            array = root.create_array(name, dtype=stored_as, dimension_names=(name,), **options)
            array[...] = labels
        for name, one in schema.items():
            lead = (*grid, "seed") if one["per_seed"] else grid
            dtype = np.dtype(one["dtype"])
            root.create_array(
                stored_name(name, one),
                shape=(*self.shape, *((count,) if one["per_seed"] else ()), *one["shape"]),
                chunks=(
                    *per_cell,
                    *((min(self.chunk, count),) if one["per_seed"] else ()),
                    *(max(n, 1) for n in one["shape"]),
                ),
                dtype=dtype,
                fill_value=FILLS[dtype.kind],
                compressors=_compressors(),
                dimension_names=(*lead, *one["dims"]),
                attributes=one["attrs"],
            )
        for name in SUMMARY:
            timed = name == "chunk_seconds"
            dims = (*grid, "chunk") if timed else grid
            options = _one_chunk((*self.shape, self.chunks) if timed else self.shape)
            kind = {"error": "string", "chunk_seconds": "float64"}.get(name, "int64")
            root.create_array(name, dtype=kind, dimension_names=dims, **options)
        return {name: value.to_bytes() for name, value in files.items()}

    def _is_there(self, name: str, values: np.ndarray) -> bool:
        """Whether a shared coordinate is already stored with these values.

        Then it is not replaced, which readers could notice.
        """
        import zarr

        try:
            return np.array_equal(zarr.open_array(self.path / name, mode="r")[...], values)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def record_path(self, cell: int, chunk: int) -> Path:
        """The file that holds the record of a chunk."""
        return self.ledger / "records" / f"{cell}-{chunk}.json"

    def write(
        self, cell: int, index: tuple[int, ...], chunk: int, columns: dict[str, Column]
    ) -> dict[str, str]:
        """Write the variables of a chunk, and return the checksums of its files by
        name.

        **Raises:** `StoreError` if the store cannot be written; `ValueError` if the
        columns do not fit the schema.
        """
        assert self.schema is not None
        found = self.describe(columns)
        wrong = [
            name
            for name in {**self.schema, **found}
            if _shapes(found.get(name)) != _shapes(self.schema.get(name))
        ]
        if wrong:
            raise ValueError(
                f"the result differs in kind from that of the first cell: {wrong[0]!r} is "
                f"{_shapes(found.get(wrong[0]))} here and "
                f"{_shapes(self.schema.get(wrong[0]))} there; return the same variables in every "
                "cell, recorded at the same number of times"
            )
        self.check()
        start, count = chunk * self.chunk, self.seeds[1] - self.seeds[0]
        where = slice(start, min(start + self.chunk, count))
        files = {}
        for name, column in columns.items():
            if column.values.size and (column.per_seed or chunk == 0):
                place = (
                    (*index, where) if column.per_seed else index,
                    (*index, *((chunk,) if column.per_seed else ())),
                )
                file = self._write(stored_name(name, self.schema[name]), place, column.values)
                try:
                    files[file] = digest((self.path / file).read_bytes())
                except OSError as error:
                    raise refused(self.path / file, error) from error
        return files

    def _write(self, name: str, place: tuple[Any, tuple[int, ...]], values: np.ndarray) -> str:
        """Write one zarr chunk and return the name of its file.

        `place` holds the region of the array and the key of the chunk. If the
        description of the array is missing or damaged, it is written again first.
        """
        import zarr

        region, key = place
        for attempt in range(2):
            # A damaged description could give the chunks another shape.
            self._mend(f"{name}/zarr.json")
            try:
                # A chunk of NaN alone must be a file with a checksum too.
                with zarr.config.set({"array.write_empty_chunks": True}):
                    array = zarr.open_array(self.path / name, mode="r+")
                    array[region] = values
                padded = (*key, *(0 for _ in range(array.ndim - len(key))))
                return f"{name}/{array.metadata.encode_chunk_key(padded)}"
            except FileNotFoundError as error:
                if attempt:
                    raise refused(self.path / name, error) from error
            except OSError as error:
                raise refused(self.path / name, error) from error
            except (ValueError, KeyError, TypeError) as error:
                if attempt:
                    raise StoreError(
                        f"the array {self.path / name} cannot be written: {error}"
                    ) from error
            self.restore()
        raise AssertionError

    def keep(self, cell: int, chunk: int, record: dict[str, Any]) -> None:
        """Write the record of a chunk, which marks the chunk as done."""
        self.check()
        record = {**record, "sweep": self.identity, "cell": cell, "chunk": chunk}
        write_json(self.record_path(cell, chunk), record)

    def records(self) -> dict[tuple[int, int], dict[str, Any]]:
        """All valid records of this sweep, by (cell, chunk)."""
        return {
            place: record
            for place, record in read_records(self.path).items()
            if record["sweep"] == self.identity
        }

    def is_whole(self, record: dict[str, Any]) -> bool:
        """Whether all files of a record still match their checksums."""
        try:
            return all(
                digest((self.path / name).read_bytes()) == check
                for name, check in record["files"].items()
            )
        except OSError:
            return False

    def summarise(self) -> None:
        """Write the counts, errors and timings of every cell.

        A coordinate that is the same in all cells is also written once for all of them.
        """
        import zarr

        assert self.schema is not None
        records = self.records()
        try:
            for name, values in summary(records, self.shape, self.chunks).items():
                zarr.open_array(self.path / name, mode="r+")[...] = values
            done = [
                np.unravel_index(cell, self.shape) if self.shape else ()
                for cell in range(int(np.prod(self.shape)))
                if whole(records, cell)
            ]
            for name, one in self.schema.items():
                if one["per_seed"] or one["dims"] != [name] or not done:
                    continue
                stored = zarr.open_array(self.path / stored_name(name, one), mode="r")
                rows: list[Any] = [stored[tuple(map(int, index))] for index in done]
                if all(np.array_equal(row, rows[0]) for row in rows) and not self._is_there(
                    name, rows[0]
                ):
                    shared = zarr.create_array(
                        self.path / name,
                        dtype=rows[0].dtype,
                        dimension_names=(name,),
                        attributes=one["attrs"],
                        overwrite=True,
                        **_one_chunk(rows[0].shape),
                    )
                    shared[...] = rows[0]
        except OSError as error:
            raise refused(self.path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self.path} was damaged while the sweep was being completed ({error}): run the "
                "same command again to mend it"
            ) from error


def whole(records: dict[tuple[int, int], dict[str, Any]], cell: int) -> bool:
    """Whether the first chunk of a cell is done.

    That chunk provides the cell's variables without a seed axis.
    """
    return (cell, 0) in records and records[cell, 0]["state"] == "done"


def read_records(path: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """All valid records in a store, by (cell, chunk)."""
    folder, found = path / LEDGER / "records", {}
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if entry.name.endswith(".json") and (record := read_json(Path(entry.path))) is not None:
            found[record["cell"], record["chunk"]] = record
    return found


def summary(
    records: dict[tuple[int, int], dict[str, Any]], shape: tuple[int, ...], chunks: int
) -> dict[str, np.ndarray]:
    """The counts of runs, the first error and the seconds of every chunk, per cell."""
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
    """The name of a variable in the store.

    A coordinate that may differ between cells cannot have the name of its dimension, so
    it is prefixed with `cell_`.
    """
    return f"cell_{name}" if not one["per_seed"] and name in one["dims"] else name


def differences(stored: dict[str, Any], given: dict[str, Any], where: str = "") -> list[str]:
    """The differences between two descriptions, one line for each.

    `where` is the path of the two descriptions within a larger one.
    """
    lines = []
    for key in [*stored, *(k for k in given if k not in stored)]:
        a, b, name = stored.get(key), given.get(key), f"{where}{key}"
        if key == "grid" and a and b and [n for n, _ in a] == [n for n, _ in b]:
            a, b = dict(a), dict(b)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{name}.")
        elif canonical(a) != canonical(b):
            lines.append(
                f"{name}: {'absent' if a is None else a} in the store, "
                f"{'absent' if b is None else b} now"
            )
    return lines


def _shapes(one: dict[str, Any] | None) -> Any:
    """The part of a variable's schema that must be the same in all chunks."""
    if one is None:
        return None
    kind = "per seed" if one["per_seed"] else "per cell"
    return one["dtype"], tuple(one["dims"]), tuple(one["shape"]), kind, *one["labels"].items()


def _one_chunk(shape: tuple[int, ...]) -> dict[str, Any]:
    """Options of an array that is stored as a single chunk."""
    return {"shape": shape, "chunks": shape, "compressors": _compressors()}


def _compressors() -> Any:
    """The codecs of all arrays.

    The checksum is verified whenever a chunk is read, whatever program reads it.
    """
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return [ZstdCodec(level=1), Crc32cCodec()]
