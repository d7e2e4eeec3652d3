"""When a run is recorded: the grid of recorded times, and the pieces between them.

A run is cut into pieces of steps, and is observed after every piece.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from sgfbias.core.checks import as_float_array, as_whole

# The stopping criterion is checked at recorded steps, and at multiples of this number.
CHECK_EVERY = 1024
MOST_TIMES = 10**7
# A call that is repeated records and cuts the same run again. What was found for runs
# of up to this many pieces is kept.
MOST_KEPT = 10_000


def step_grid(times: Any, steps: int, clock: Any, dtype: Any) -> np.ndarray:
    """The steps to record.

    If `times` is a number, the steps are a log-spaced grid of at most that many. If it
    is an array of flow times, each must be the time at which a step begins.

    **Raises:** `ValueError` for times that are off the grid of steps, outside the run
    or not increasing, and for a number below 2.
    """
    if np.ndim(times) == 0 and not isinstance(times, str):
        times = as_whole(times, "times", least=0, most=MOST_TIMES)
        if times < 2:
            raise ValueError(
                f"the number of recorded times must be at least 2 (start and end), but is {times}"
            )
        return (_spaced if times <= MOST_KEPT else _spaced.__wrapped__)(times, steps)
    wanted = _increasing(times)
    if clock.width is None:
        begins = np.asarray(clock.times(np.arange(steps + 1), dtype), np.float64)
        return _scheduled_grid(wanted, begins)
    width = float(clock.width)
    grid = np.round(wanted / width).astype(np.int64)
    ratio = wanted / width
    off = np.abs(grid - ratio) > np.minimum(1e-4 + 2e-7 * ratio, 0.49)
    if off.any():
        near = grid[off][0] * width
        raise ValueError(
            f"recorded times must be whole steps of width {width:g}, but {wanted[off][0]:g} is "
            f"not (the nearest is {near:g}); change the times or dt"
        )
    if grid[-1] > steps:
        raise ValueError(
            f"recorded times must lie within the run, 0 to {steps * width:g}, but the last one "
            f"is {wanted[-1]:g}"
        )
    return np.unique(grid)


@functools.lru_cache(maxsize=16)
def _spaced(times: int, steps: int) -> np.ndarray:
    """At most `times` log-spaced steps from 0 to `steps`."""
    spaced = np.round(np.geomspace(1, steps, max(times - 1, 1))).astype(np.int64)
    return _kept(np.unique(np.concatenate([[0], spaced, [steps]])))


def _kept(array: np.ndarray) -> np.ndarray:
    """The array, which nobody can write to any more, as it is kept."""
    array.flags.writeable = False
    return array


def _scheduled_grid(wanted: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The steps that begin at the `wanted` times, if steps differ in flow time.

    `begins` are the times at which all steps begin.
    """
    if wanted[-1] > begins[-1] * (1 + 1e-6):
        raise ValueError(
            f"recorded times must lie within the run, 0 to {begins[-1]:g}, but the last one is "
            f"{wanted[-1]:g}"
        )
    upper = np.searchsorted(begins, wanted).clip(1, len(begins) - 1)
    grid = np.where(wanted - begins[upper - 1] < begins[upper] - wanted, upper - 1, upper)
    off = np.abs(begins[grid] - wanted) > 1e-4 * (begins[upper] - begins[upper - 1]) + 1e-6 * wanted
    if off.any():
        raise ValueError(
            f"at every recorded time a step must begin, but at {wanted[off][0]:g} none does (the "
            f"nearest begins at {begins[grid[off][0]]:g}); give the number of times instead"
        )
    return np.unique(grid)


def time_grid(times: Any, t1: float) -> np.ndarray:
    """The flow times to record with an adaptive solver.

    If `times` is a number, they are 0 and a log-spaced grid over the five decades up to
    `t1`. If it is an array, they are the given times.

    **Raises:** `ValueError` for times that are outside the run or not increasing, and
    for a number below 2.
    """
    if np.ndim(times) == 0 and not isinstance(times, str):
        times = as_whole(times, "times", least=0, most=MOST_TIMES)
        if times < 2:
            raise ValueError(
                f"the number of recorded times must be at least 2 (start and end), but is {times}"
            )
        # A geometric grid of one point would be its beginning, and not the end.
        later = np.geomspace(t1 * 1e-5, t1, int(times) - 1) if times > 2 else [t1]
        return np.concatenate([[0.0], later])
    wanted = _increasing(times)
    if wanted[-1] > t1 * (1 + 1e-12):
        raise ValueError(
            f"recorded times must lie within the run, 0 to {t1:g}, but the last one is "
            f"{wanted[-1]:g}"
        )
    return np.minimum(wanted, t1)


def own_grid(times: Any, start: Any, end: float, clock: str) -> Any:
    """The readings of a flow's own clock to record, from `start` to `end`.

    If `times` is a number, they are the start, and readings whose distances from it are
    log-spaced over five decades. If it is an array, they are the given readings. A
    `start` that is traced is not compared with them.

    **Raises:** `ValueError` for readings outside the run or not increasing, and for a
    number below 2.
    """
    if np.ndim(times) == 0 and not isinstance(times, str):
        share = time_grid(times, 1.0)
        if isinstance(start, jax.core.Tracer):
            return start + (end - start) * share.astype(start.dtype)
        return float(start) + (end - float(start)) * share
    wanted = _increasing(times, negative=True)
    low = wanted[0] if isinstance(start, jax.core.Tracer) else float(start)
    slack = 1e-12 * max(abs(low), abs(end))
    if wanted[0] < low - slack or wanted[-1] > end + slack:
        raise ValueError(
            f"recorded readings of {clock} must lie within the run, {low:g} to {end:g}, but go "
            f"from {wanted[0]:g} to {wanted[-1]:g}"
        )
    return np.clip(wanted, low, end)


def _increasing(times: Any, *, negative: bool = False) -> np.ndarray:
    """Recorded times as an array; they must be increasing, and non-negative unless
    `negative`.
    """
    with jax.ensure_compile_time_eval():  # the times have values also under jit
        wanted = np.atleast_1d(np.asarray(as_float_array(times, "times"), dtype=np.float64))
    if (
        wanted.ndim != 1
        or wanted.size == 0
        or not np.isfinite(wanted).all()
        or (wanted[0] < 0 and not negative)
        or (np.diff(wanted) <= 0).any()
    ):
        raise ValueError(
            "recorded times must be a non-empty increasing list of "
            f"{'' if negative else 'non-negative '}numbers, but they are {times!r}"
        )
    return wanted


class Segments(NamedTuple):
    """The pieces of a run, with one chunk per row.

    Rows are padded with pieces of no steps.

    - `start`: (rows, columns), the first step of every piece.
    - `length`: (rows, columns), the number of steps of every piece.
    - `check`: (rows, columns), whether the stopping criterion is checked after a piece.
    - `ends`: (pieces,), the step at which every piece ends, in order.
    - `where`: (pieces, 2), the row and the column of every piece, in the same order.
    """

    start: np.ndarray
    length: np.ndarray
    check: np.ndarray
    ends: np.ndarray
    where: np.ndarray


def cut(
    recorded: np.ndarray, steps: int, chunk: int, stopping: bool, *, one_row: bool = False
) -> Segments:
    """Cut a run of `steps` steps into pieces.

    It is cut at the recorded steps, at a quarter and a half of the run (for the
    statuses), at the steps where the stopping criterion is checked (if `stopping`), and
    at the boundaries of chunks. The criterion is checked on a grid of absolute steps,
    and not at the boundaries of chunks, so that results do not depend on `chunk`. With
    `one_row` all pieces are in one row without padding.
    """
    pieces = recorded.size + steps // min(chunk, CHECK_EVERY if stopping else chunk)
    answer = _cut if pieces <= MOST_KEPT else _cut.__wrapped__
    return answer(recorded.astype(np.int64).tobytes(), steps, chunk, stopping, one_row)


@functools.lru_cache(maxsize=16)
def _cut(recorded: bytes, steps: int, chunk: int, stopping: bool, one_row: bool) -> Segments:
    """The answer of `cut`, for the recorded steps as the bytes of their array."""
    looks = set(np.frombuffer(recorded, np.int64).tolist())
    if stopping:
        looks |= {*range(0, steps, CHECK_EVERY), steps}
    marks = {0, steps // 4, steps // 2, steps}
    ends = np.array(sorted(looks | marks | set(range(0, steps, chunk))), dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    row = np.zeros_like(ends) if one_row else np.maximum(ends - 1, 0) // chunk
    rows = 1 if one_row else math.ceil(steps / chunk)
    width = int(np.bincount(row, minlength=rows).max())
    if not one_row:
        # The width is rounded up to one of a few sizes, so that runs that differ only
        # in length share one compiled program.
        width = max(8, 4 ** math.ceil(math.log(width, 4)))
    column = np.concatenate([np.arange(np.sum(row == r)) for r in range(rows)])
    shape = (rows, width)
    start, length = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    check = np.zeros(shape, bool)
    start[row, column], length[row, column] = starts, ends - starts
    check[row, column] = np.isin(ends, sorted(looks))
    where = np.stack([row, column], axis=1)
    return Segments(*map(_kept, (start, length, check, ends, where)))
