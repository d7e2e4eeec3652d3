"""The driver of a sweep: it gives out chunks, collects reports and handles faults.

When every chunk is there, it checks the store and completes it.
"""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import dataclasses
import json
import os
import pickle
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from sgfbias.ensemble.disk import StoreError, write_json
from sgfbias.ensemble.outcome import DIFFERS
from sgfbias.ensemble.pool import check_executor
from sgfbias.ensemble.work import INSIDE, Job, Report, Task, execute, settle

ROUNDS = 4  # largest number of passes over chunks that turn out to be damaged
LOST = 4  # a chunk that has lost its worker so many times is given up


class SweepInterrupted(Exception):
    """A sweep was asked to stop and has stopped; run it again to resume it."""


@dataclasses.dataclass
class Tally:
    """Counts of one session: its chunks and runs, and how many runs diverged or failed.

    `runs_here` counts the runs of this session alone, which began at `began` (seconds).
    """

    chunks: int
    chunks_done: int = 0
    runs: int = 0
    runs_done: int = 0
    runs_here: int = 0
    diverged: int = 0
    failed: int = 0
    began: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def rate(self) -> float:
        """Runs per second in this session."""
        return self.runs_here / max(time.perf_counter() - self.began, 1e-9)

    def shown(self) -> dict[str, Any]:
        """The counts, the rate and the seconds left, for a progress bar."""
        left = (self.runs - self.runs_done) / self.rate if self.runs_here else None
        counts = {
            k: getattr(self, k)
            for k in ("chunks", "chunks_done", "runs", "runs_done", "diverged", "failed")
        }
        return {**counts, "rate": self.rate, "seconds_left": left}


class Drive:
    """One session of a sweep: one process that runs its share of the chunks.

    **Arguments:**

    - `sweep`: the sweep.
    - `job`: what all tasks have in common.
    - `executor`: an object with `submit`, a function that makes one, or None for this
      process.
    - `in_flight`: the largest number of chunks submitted at a time, or None for a
      default.
    - `share`: `(index, count)`, the part of the chunks that this session runs.
    - `progress`: as in `Sweep.run`.
    """

    def __init__(
        self,
        sweep: Any,
        job: Job,
        executor: Any,
        in_flight: int | None,
        share: tuple[int, int],
        progress: Any,
    ):
        self.sweep, self.store, self.share = sweep, job.store, share
        self.session = f"{int(time.time())}-{secrets.token_hex(3)}"
        self.job = job._replace(session=self.session)
        self.factory = executor if callable(executor) and not hasattr(executor, "submit") else None
        self.executor = None if self.factory else executor
        self.in_flight, self.progress = in_flight, progress
        self.stop = threading.Event()
        self.tally, self._beat, self._counted = Tally(0), float("-inf"), (float("-inf"), 0)

    def run(self, *, retry_failed: bool = False) -> None:
        """Run all missing chunks of this session's share and check them.

        If no chunk of any share is missing afterwards, the store is completed. With
        `retry_failed` the chunks that failed are run again once.

        **Raises:** `StoreError` if chunks keep being damaged; `SweepInterrupted` if the
        session is asked to stop.
        """
        mine = [
            task for k, task in enumerate(self.sweep.tasks) if k % self.share[1] == self.share[0]
        ]
        with self._signals(), self._shown() as show:
            for attempt in range(ROUNDS):
                missing = self._missing(mine, retry_failed=retry_failed and attempt == 0)
                if attempt == 0:
                    self._begin(mine, missing)
                    show(self.tally.shown())
                elif missing:
                    self.log("damaged", chunks=[[t.cell, t.chunk] for t in missing])
                    self.tally.chunks_done -= len(missing)
                    self.tally.runs_done -= sum(t.stop - t.start for t in missing)
                self.store.restore()
                if not missing:
                    break
                self._go(missing, show)
            else:
                if self._missing(mine):
                    raise StoreError(
                        f"chunks of {self.store.path} keep being damaged while the sweep runs: "
                        "another program writes there, or the disk is failing; choose another "
                        "output"
                    )
        if self.store.schema is not None and not self._missing(self.sweep.tasks, quick=True):
            self._refuse_differing()
            self.store.summarise()
        self.log(
            "end",
            done=self.tally.chunks_done,
            failed=self.tally.failed,
            diverged=self.tally.diverged,
        )

    def _missing(
        self, tasks: list[Task], *, retry_failed: bool = False, quick: bool = False
    ) -> list[Task]:
        """The tasks that have no valid record, or whose files differ from their
        checksums.

        With `quick` the files are not checked. With `retry_failed` failed tasks are
        included.
        """
        records = self.store.records()

        def settled(task: Task) -> bool:
            record = records.get((task.cell, task.chunk))
            if record is None:
                return False
            if record["state"] == "failed":
                return not retry_failed
            return quick or self.store.is_whole(record)

        return [task for task in tasks if not settled(task)]

    def _refuse_differing(self) -> None:
        """Mark cells as failed whose chunks disagree on a variable without a seed axis.

        The store keeps that variable from the first chunk only, so its value would
        depend on the size of the chunks.
        """
        kept: dict[int, set[str]] = {}
        records = self.store.records()
        for (cell, _), record in records.items():
            if record["state"] == "done":
                kept.setdefault(cell, set()).add(record["shared"])
        for (cell, chunk), record in records.items():
            if record["state"] == "done" and len(kept[cell]) > 1:
                self.store.keep(
                    cell,
                    chunk,
                    {
                        **record,
                        "state": "failed",
                        "error": f"ValueError: {DIFFERS}",
                        "states": {},
                        "diverged": 0,
                    },
                )
                self.log(
                    "failed",
                    cell=cell,
                    chunk=chunk,
                    point=self.sweep.grid.name(cell),
                    error=DIFFERS,
                )

    def _begin(self, mine: list[Task], missing: list[Task]) -> None:
        """Set the counts of this session from the records in the store."""
        runs = sum(t.stop - t.start for t in mine)
        todo = sum(t.stop - t.start for t in missing)
        self.tally = Tally(len(mine), len(mine) - len(missing), runs, runs - todo)
        gone = {(t.cell, t.chunk) for t in missing}
        for place, record in self.store.records().items():
            if place not in gone:
                self.tally.diverged += record["diverged"]
                self.tally.failed += (record["stop"] - record["start"]) * (
                    record["state"] == "failed"
                )
        self.log("start", chunks=len(mine), missing=len(missing), share=list(self.share))

    def _go(self, tasks: list[Task], show: Any) -> None:
        """Run these tasks here or on the executor."""
        queue = list(reversed(tasks))
        if self.store.schema is None:
            self._probe(queue, show)
        if self.executor is None and self.factory is None:
            while queue:
                self._heed()
                self._announce(queue[-1:])
                self._account(execute(self.job, queue.pop()), show)
            return
        self._spread(queue, show)

    def _probe(self, queue: list[Task], show: Any) -> None:
        """Run tasks until one succeeds, because its result defines the store's
        variables.
        """
        probing = self.job._replace(probe=True)
        while queue and self.store.schema is None:
            self._heed()
            task = queue.pop()
            self._announce([task])
            report = (
                execute(probing, task)
                if self.executor is None and self.factory is None
                else self._elsewhere(probing, task)
            )
            if report.state == "probed" and report.columns is not None:
                self.store.agree(self.store.describe(report.columns))
                report = settle(self.job, task, report.columns, report.states, report.seconds, "")
            self._account(report, show)

    def _elsewhere(self, job: Job, task: Task) -> Report:
        """Run one task on the executor, wait for it, and return its report."""
        for attempt in range(LOST):
            self._announce([task])
            pool = self._pool()
            try:
                return pool.submit(execute, job, task).result()
            except StoreError:
                raise
            except (Exception, KeyboardInterrupt, cf.CancelledError) as error:
                self._heed()
                self._lost(task, attempt + 1, error)
        raise AssertionError

    def _lost(self, task: Task, times: int, error: BaseException) -> None:
        """Record that a task has lost its worker, and give up after `LOST` losses."""
        self.log("lost", cell=task.cell, chunk=task.chunk, error=f"{type(error).__name__}: {error}")
        if isinstance(error, cf.BrokenExecutor):
            self._broken(error)
        if isinstance(error, pickle.PicklingError) or "pickle" in str(error).lower():
            raise StoreError(
                f"the experiment cannot be sent to workers ({error}): define it at the top level "
                "of a module that the workers can import too"
            ) from error
        if times >= LOST:
            raise StoreError(
                f"the chunk with {self.sweep.grid.name(task.cell)}, seeds "
                f"{task.start}:{task.stop} lost its worker {LOST} times "
                f"({type(error).__name__}: {error}); what is done is kept: give the workers more "
                "memory, or make `chunk` smaller"
            ) from error

    def _spread(self, queue: list[Task], show: Any) -> None:
        """Submit the tasks to the executor, a limited number at a time.

        A task whose worker is lost is submitted again.
        """
        flying: dict[cf.Future, Task] = {}
        lost: Counter = Counter()
        while queue or flying:
            if self.stop.is_set() and queue:
                queue.clear()
                for future in flying:
                    future.cancel()
            while queue and len(flying) < self._window():
                task = queue.pop()
                try:
                    flying[self._pool().submit(execute, self.job, task)] = task
                except cf.BrokenExecutor as error:
                    queue.append(task)
                    self._broken(error)
            self._announce(flying.values())
            finished, _ = cf.wait(flying, timeout=0.5, return_when=cf.FIRST_COMPLETED)
            for future in finished:
                task = flying.pop(future)
                if future.cancelled() and self.stop.is_set():
                    continue
                try:
                    self._account(future.result(), show)
                except StoreError:
                    for other in flying:
                        other.cancel()
                    raise
                except (Exception, KeyboardInterrupt, cf.CancelledError) as error:
                    # The worker may have been interrupted together with this process.
                    if self.stop.is_set():
                        continue
                    lost[task.cell, task.chunk] += 1
                    self._lost(task, lost[task.cell, task.chunk], error)
                    queue.append(task)
        self._heed()

    def _pool(self) -> Any:
        """The executor; it is made first if there is none and a function can make
        it.
        """
        if self.executor is None and self.factory is not None:
            made = self.factory()
            check_executor(made)
            self.executor = made
        return self.executor

    def _broken(self, error: BaseException) -> None:
        """Drop a broken pool if a new one can be made, else raise `StoreError`."""
        if self.factory is None:
            raise StoreError(
                f"the pool of workers is broken ({error}); what is done is kept: run the sweep "
                "again to resume it, or pass as `executor` a function that makes a pool, so that "
                "a broken one is replaced"
            ) from error
        self.executor = None

    def _window(self) -> int:
        """The largest number of tasks that are submitted at a time."""
        if self.in_flight is not None:
            return self.in_flight
        pool = self._pool()
        workers = getattr(pool, "_max_workers", None) or getattr(pool, "num_workers", None)
        client = getattr(pool, "_client", None)
        # The workers of a Dask client may come and go, so they are counted every 10 s.
        if workers is None and client is not None and hasattr(client, "ncores"):
            if time.monotonic() - self._counted[0] > 10:
                self._counted = time.monotonic(), sum(client.ncores().values())
            workers = self._counted[1]
        return 2 * max(int(workers or os.cpu_count() or 1), 1)

    def _account(self, report: Report, show: Any) -> None:
        """Add a report to the counts, write it to the log and show the progress."""
        task, runs = report.task, report.task.stop - report.task.start
        self.tally.chunks_done += 1
        self.tally.runs_done += runs
        self.tally.runs_here += runs
        self.tally.diverged += report.diverged
        if report.state == "failed":
            self.tally.failed += runs
            self.log(
                "failed",
                cell=task.cell,
                chunk=task.chunk,
                point=self.sweep.grid.name(task.cell),
                error=report.error,
            )
        else:
            self.log(
                "chunk",
                cell=task.cell,
                chunk=task.chunk,
                seconds=round(report.seconds, 4),
                states=report.states,
            )
        show(self.tally.shown())

    def _heed(self) -> None:
        """Raise `SweepInterrupted` if the session has been asked to stop."""
        if self.stop.is_set():
            self.log("interrupted", left=self.tally.chunks - self.tally.chunks_done)
            raise SweepInterrupted(
                f"the sweep was asked to stop: {self.tally.chunks_done:,} of "
                f"{self.tally.chunks:,} chunks are done and kept; run the same command again to "
                "resume it"
            )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT ask for a stop after the chunk in flight.

        A second signal interrupts that chunk. In a sweep that runs within another one,
        or outside the main thread, the signals are left alone.
        """
        if threading.current_thread() is not threading.main_thread() or INSIDE.get():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self.stop.is_set():
                # KeyboardInterrupt is not an Exception, so the cell does not fail.
                raise KeyboardInterrupt
            self.stop.set()

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        except KeyboardInterrupt as error:
            if not self.stop.is_set():
                raise
            raise SweepInterrupted(
                "the sweep was stopped at once: chunks in flight are abandoned, and what is done "
                "is kept; run the same command again to resume it"
            ) from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[Any]:
        """A function that shows the progress while the context is open."""
        from sgfbias.ensemble.bar import shown

        with shown(self.progress) as show:
            yield show

    def _announce(self, tasks: Iterable[Task]) -> None:
        """Write down which cells are being worked on, for `sgfbias status`.

        This happens at most once a second, because a chunk may take only milliseconds.
        """
        if time.monotonic() - self._beat < 1:
            return
        self._beat = time.monotonic()
        who = {
            "session": self.session,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "share": list(self.share),
        }
        write_json(
            self.store.ledger / f"session-{self.share[0]}-of-{self.share[1]}.json",
            {**who, "cells": sorted({task.cell for task in tasks}), "time": time.time()},
        )

    def log(self, event: str, **fields: Any) -> None:
        """Append one line of JSON to the store's log."""
        line = json.dumps(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "event": event,
                "session": self.session,
                **fields,
            }
        )
        # A sweep goes on even if its log cannot be written.
        log = self.store.ledger / "log.jsonl"
        with contextlib.suppress(OSError), log.open("a") as file:
            file.write(line + "\n")
