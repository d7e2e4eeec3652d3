"""What is recorded and when: observables by name, a grid of steps, and the cuts at which a run is observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from sgfbias.core.network import declares
from sgfbias.core.traced import shapes_of

BUILT_IN = ("loss", "loss_integral")
CHECK_EVERY = 1024  # steps between looks at the stopping tolerance, besides the recorded times


class Record(NamedTuple):
    """What to record along a run.

    - `observables`: None, every declared observable that is a scalar; a sequence of declared names; or a mapping from names to functions
      of the network (a value of None means the declared one). `loss` and `loss_integral` are always there.
    - `times`: the number of log-spaced times (0 and the end included), or an array of flow times.
    """

    observables: Mapping[str, Callable[[Any], Array] | None] | Sequence[str] | None = None
    times: int | Any = 200


def as_record(record: Any) -> Record:
    """`record=` in its short forms: None, a Record, (observables, times), names, or a mapping."""
    if record is None:
        return Record()
    if isinstance(record, Record):
        return record
    if isinstance(record, tuple) and len(record) == 2 and not all(isinstance(item, str) for item in record):
        return Record(*record)
    if isinstance(record, Mapping) or (isinstance(record, Sequence) and all(isinstance(item, str) for item in record)):
        return Record(observables=record)
    raise ValueError(
        f"`record` must be a Record(observables, times), a sequence of names or a mapping from names to functions, but is {record!r}"
    )


def declared_observables(network: Any, problem: Any) -> dict[str, Callable[[Any], Array]]:
    """Everything the network and the problem declare, by name."""
    return {**declares(network, "observables"), **problem.observables(network)}


def choose_observables(record: Record, network: Any, problem: Any) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """`(series, finals)`: functions of the network to record at every time, and at the end."""
    declared = declared_observables(network, problem)
    if record.observables is None:
        values = shapes_of(_values, declared, network)
        return {name: f for name, f in declared.items() if values[name].shape == ()}, declared
    asked = record.observables if isinstance(record.observables, Mapping) else dict.fromkeys(record.observables)
    series: dict[str, Callable] = {}
    for name, function in asked.items():
        if name in BUILT_IN and function is None:
            continue
        if function is None and name not in declared:
            known = ", ".join([*BUILT_IN, *declared])
            raise ValueError(f"no observable called {name!r} here; there are {known}; or give a function: record={{{name!r}: f}}")
        function = declared[name] if function is None else function
        if not callable(function):
            raise ValueError(f"observable {name!r} must be a function of the network, but is {type(function).__name__}")
        series[name] = function
    return series, {**declared, **series}


def _values(functions: Mapping[str, Callable], network: Any) -> dict[str, Any]:
    return {name: f(network) for name, f in functions.items()}


def step_grid(times: Any, steps: int, clock: Any, dtype: Any) -> np.ndarray:
    """Steps to record: a log-spaced grid of that many steps, or the given flow times, which must be beginnings of steps.

    **Raises:** `ValueError` for times off the grid, outside the run or not increasing.
    """
    if isinstance(times, int | np.integer):
        if times < 2:
            raise ValueError(f"the number of recorded times must be at least 2 (start and end), but is {times}")
        return np.unique(np.concatenate([[0], np.round(np.geomspace(1, steps, max(int(times) - 1, 1))).astype(np.int64), [steps]]))
    wanted = _increasing(times)
    if clock.width is None:
        return _scheduled_grid(wanted, np.asarray(clock.times(np.arange(steps + 1), dtype), np.float64))
    width = float(clock.width)
    grid = np.round(wanted / width).astype(np.int64)
    ratio = wanted / width
    off = np.abs(grid - ratio) > np.minimum(1e-4 + 2e-7 * ratio, 0.49)
    if off.any():
        near = grid[off][0] * width
        raise ValueError(
            f"recorded times must be whole steps of width {width:g}, but {wanted[off][0]:g} is not (the nearest is {near:g}); "
            "change the times or dt"
        )
    if grid[-1] > steps:
        raise ValueError(f"recorded times must lie within the run, 0 to {steps * width:g}, but the last one is {wanted[-1]:g}")
    return np.unique(grid)


def _scheduled_grid(wanted: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The steps that begin at the wanted times, where each step takes a time of its own."""
    if wanted[-1] > begins[-1] * (1 + 1e-6):
        raise ValueError(f"recorded times must lie within the run, 0 to {begins[-1]:g}, but the last one is {wanted[-1]:g}")
    upper = np.searchsorted(begins, wanted).clip(1, len(begins) - 1)
    grid = np.where(wanted - begins[upper - 1] < begins[upper] - wanted, upper - 1, upper)
    off = np.abs(begins[grid] - wanted) > 1e-4 * (begins[upper] - begins[upper - 1]) + 1e-6 * wanted
    if off.any():
        raise ValueError(
            f"recorded times must be beginnings of steps, but {wanted[off][0]:g} is not (the nearest is {begins[grid[off][0]]:g}); give the "
            "number of times instead"
        )
    return np.unique(grid)


def time_grid(times: Any, t1: float) -> np.ndarray:
    """Flow times to record for an adaptive solver: 0, then a log-spaced grid over five decades up to `t1`; or the given ones."""
    if isinstance(times, int | np.integer):
        if times < 2:
            raise ValueError(f"the number of recorded times must be at least 2 (start and end), but is {times}")
        return np.concatenate([[0.0], np.geomspace(t1 * 1e-5, t1, int(times) - 1)])
    wanted = _increasing(times)
    if wanted[-1] > t1 * (1 + 1e-12):
        raise ValueError(f"recorded times must lie within the run, 0 to {t1:g}, but the last one is {wanted[-1]:g}")
    return np.minimum(wanted, t1)


def _increasing(times: Any) -> np.ndarray:
    wanted = np.atleast_1d(np.asarray(times, dtype=np.float64))
    if wanted.ndim != 1 or wanted.size == 0 or not np.isfinite(wanted).all() or wanted[0] < 0 or (np.diff(wanted) <= 0).any():
        raise ValueError(f"recorded times must be a non-empty increasing list of non-negative numbers, but are {times!r}")
    return wanted


class Segments(NamedTuple):
    """Pieces of a run, one chunk per row: the first step, the number of steps, and whether the stopping tolerance is looked at after.

    Rows are padded with pieces of no steps. `ends` lists the last step of every piece in order, `where` its (row, column).
    """

    start: np.ndarray
    length: np.ndarray
    check: np.ndarray
    ends: np.ndarray
    where: np.ndarray


def cut(recorded: np.ndarray, steps: int, chunk: int, stopping: bool, *, one_row: bool = False) -> Segments:
    """Cut a run at its recorded steps, at a quarter and a half (for the statuses), at looks for stopping, and at chunk boundaries.

    The tolerance is looked at on a grid of absolute steps, never at a chunk boundary as such: results do not depend on the chunk.
    `one_row`: all chunks in one row, without padding.
    """
    looks = set(recorded.tolist()) | ({*range(0, steps, CHECK_EVERY), steps} if stopping else set())
    marks = {0, steps // 4, steps // 2, steps}
    ends = np.array(sorted(looks | marks | set(range(0, steps, chunk))), dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    row = np.zeros_like(ends) if one_row else np.maximum(ends - 1, 0) // chunk
    rows = 1 if one_row else math.ceil(steps / chunk)
    width = int(np.bincount(row, minlength=rows).max())
    if not one_row:
        # Rounded up to a few sizes: runs that differ in length only share one compiled program.
        width = max(8, 4 ** math.ceil(math.log(width, 4)))
    column = np.concatenate([np.arange(np.sum(row == r)) for r in range(rows)])
    shape = (rows, width)
    start, length, check = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
    start[row, column], length[row, column] = starts, ends - starts
    check[row, column] = np.isin(ends, sorted(looks))
    return Segments(start, length, check, ends, np.stack([row, column], axis=1))
