"""What is done in which order: chunks given out, reports taken in, faults met, the end checked."""

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

from sgfbias.ensemble.files import StoreError, write_json
from sgfbias.ensemble.outcome import DIFFERS
from sgfbias.ensemble.work import Job, Report, Task, execute, settle

ROUNDS = 4  # times that chunks found damaged are done again
LOST = 4  # times that a chunk may lose its worker


class SweepInterrupted(Exception):
    """A sweep was asked to stop, and did; run it again to go on."""


@dataclasses.dataclass
class Tally:
    """Counts of this session: chunks and runs, how many diverged or failed, since when."""

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
        """For a progress bar."""
        left = (self.runs - self.runs_done) / self.rate if self.runs_here else None
        counts = {k: getattr(self, k) for k in ("chunks", "chunks_done", "runs", "runs_done", "diverged", "failed")}
        return {**counts, "rate": self.rate, "seconds_left": left}


class Drive:
    """One session of a sweep."""

    def __init__(self, sweep: Any, job: Job, executor: Any, in_flight: int | None, share: tuple[int, int], progress: Any):
        self.sweep, self.store, self.share = sweep, job.store, share
        self.session = f"{int(time.time())}-{secrets.token_hex(3)}"
        self.job = job._replace(session=self.session)
        self.factory = executor if callable(executor) and not hasattr(executor, "submit") else None
        self.executor = None if self.factory else executor
        self.in_flight, self.progress = in_flight, progress
        self.stop = threading.Event()
        self.tally, self._beat, self._counted = Tally(0), float("-inf"), (float("-inf"), 0)

    def run(self, *, retry_failed: bool = False) -> None:
        """Do all that is missing of this process's share, check it, and complete the store if nothing is missing of any share."""
        mine = [task for k, task in enumerate(self.sweep.tasks) if k % self.share[1] == self.share[0]]
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
                        f"chunks of {self.store.path} keep being damaged while the sweep runs: something else writes there, or the disk fails"
                    )
        if self.store.schema is not None and not self._missing(self.sweep.tasks, quick=True):
            self._refuse_differing()
            self.store.summarise()
        self.log("end", done=self.tally.chunks_done, failed=self.tally.failed, diverged=self.tally.diverged)

    def _missing(self, tasks: list[Task], *, retry_failed: bool = False, quick: bool = False) -> list[Task]:
        """Tasks without a whole record whose files are as they were written. `quick`: files are not looked at."""
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
        """Mark cells whose chunks do not agree on what has no seed axis: the first chunk's would depend on the size of chunks."""
        kept: dict[int, set[str]] = {}
        records = self.store.records()
        for (cell, _), record in records.items():
            if record["state"] == "done":
                kept.setdefault(cell, set()).add(record["shared"])
        for (cell, chunk), record in records.items():
            if record["state"] == "done" and len(kept[cell]) > 1:
                self.store.keep(cell, chunk, {**record, "state": "failed", "error": f"ValueError: {DIFFERS}", "states": {}, "diverged": 0})
                self.log("failed", cell=cell, chunk=chunk, point=self.sweep.grid.name(cell), error=DIFFERS)

    def _begin(self, mine: list[Task], missing: list[Task]) -> None:
        runs = sum(t.stop - t.start for t in mine)
        todo = sum(t.stop - t.start for t in missing)
        self.tally = Tally(len(mine), len(mine) - len(missing), runs, runs - todo)
        gone = {(t.cell, t.chunk) for t in missing}
        for place, record in self.store.records().items():
            if place not in gone:
                self.tally.diverged += record["diverged"]
                self.tally.failed += (record["stop"] - record["start"]) * (record["state"] == "failed")
        self.log("start", chunks=len(mine), missing=len(missing), share=list(self.share))

    def _go(self, tasks: list[Task], show: Any) -> None:
        """Do these tasks, wherever they run."""
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
        """The first task that does not fail says what the variables are."""
        probing = self.job._replace(probe=True)
        while queue and self.store.schema is None:
            self._heed()
            task = queue.pop()
            self._announce([task])
            report = execute(probing, task) if self.executor is None and self.factory is None else self._elsewhere(probing, task)
            if report.state == "probed":
                self.store.agree(self.store.describe(report.columns))
                report = settle(self.job, task, report.columns, report.states, report.seconds, "")
            self._account(report, show)

    def _elsewhere(self, job: Job, task: Task) -> Report:
        """One task by the executor, waited for."""
        for attempt in range(LOST):
            self._announce([task])
            try:
                return self._pool().submit(execute, job, task).result()
            except StoreError:
                raise
            except (Exception, KeyboardInterrupt, cf.CancelledError) as error:
                self._heed()
                self._lost(task, attempt + 1, error)
        raise AssertionError

    def _lost(self, task: Task, times: int, error: BaseException) -> None:
        """A worker is gone with its task: note it, and give up if that is not the first time."""
        self.log("lost", cell=task.cell, chunk=task.chunk, error=f"{type(error).__name__}: {error}")
        if isinstance(error, cf.BrokenExecutor):
            self._broken(error)
        if isinstance(error, pickle.PicklingError) or "pickle" in str(error).lower():
            raise StoreError(
                f"the experiment cannot be sent to workers ({error}): define it at the top level of a module that they can import too"
            ) from error
        if times >= LOST:
            raise StoreError(
                f"the chunk with {self.sweep.grid.name(task.cell)}, seeds {task.start}:{task.stop} lost its worker {LOST} times "
                f"({type(error).__name__}: {error}); what is done is kept: give workers more memory, or a smaller `chunk`"
            ) from error

    def _spread(self, queue: list[Task], show: Any) -> None:
        """Tasks to an executor, a window of them at a time; one whose worker is lost is given out again."""
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
                try:  # a worker may have been interrupted along with this process
                    self._account(future.result(), show)
                except StoreError:
                    for other in flying:
                        other.cancel()
                    raise
                except (Exception, KeyboardInterrupt, cf.CancelledError) as error:
                    if self.stop.is_set():
                        continue
                    lost[task.cell, task.chunk] += 1
                    self._lost(task, lost[task.cell, task.chunk], error)
                    queue.append(task)
        self._heed()

    def _pool(self) -> Any:
        if self.executor is None and self.factory is not None:
            self.executor = self.factory()
        return self.executor

    def _broken(self, error: BaseException) -> None:
        if self.factory is None:
            raise StoreError(
                f"the pool of workers is broken ({error}); what is done is kept: run the sweep again to go on, or give `executor` a function that "
                "makes a pool, so that a broken one is replaced"
            ) from error
        self.executor = None

    def _window(self) -> int:
        if self.in_flight is not None:
            return self.in_flight
        pool = self._pool()
        workers = getattr(pool, "_max_workers", None) or getattr(pool, "num_workers", None)
        client = getattr(pool, "_client", None)
        if workers is None and client is not None and hasattr(client, "ncores"):  # of Dask; workers come and go
            if time.monotonic() - self._counted[0] > 10:
                self._counted = time.monotonic(), sum(client.ncores().values())
            workers = self._counted[1]
        return 2 * max(int(workers or os.cpu_count() or 1), 1)

    def _account(self, report: Report, show: Any) -> None:
        """Take a report in."""
        task, runs = report.task, report.task.stop - report.task.start
        self.tally.chunks_done += 1
        self.tally.runs_done += runs
        self.tally.runs_here += runs
        self.tally.diverged += report.diverged
        if report.state == "failed":
            self.tally.failed += runs
            self.log("failed", cell=task.cell, chunk=task.chunk, point=self.sweep.grid.name(task.cell), error=report.error)
        else:
            self.log("chunk", cell=task.cell, chunk=task.chunk, seconds=round(report.seconds, 4), states=report.states)
        show(self.tally.shown())

    def _heed(self) -> None:
        """Stop here if asked to."""
        if self.stop.is_set():
            self.log("interrupted", left=self.tally.chunks - self.tally.chunks_done)
            raise SweepInterrupted(
                f"stopped when asked to: {self.tally.chunks_done:,} of {self.tally.chunks:,} chunks are done and kept; run the same command again to go on"
            )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a stop after the chunk in flight; a second one interrupts it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt  # not an Exception: it is not the experiment's, and no failure of its cell
            self.stop.set()

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        except KeyboardInterrupt as error:
            if not self.stop.is_set():
                raise
            raise SweepInterrupted(
                "stopped at once: chunks in flight are abandoned, what is done is kept; run the same command again to go on"
            ) from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[Any]:
        from sgfbias.ensemble.bar import shown

        with shown(self.progress) as show:
            yield show

    def _announce(self, tasks: Iterable[Task]) -> None:
        """Say which cells are being worked on, for `sgfbias status`; a chunk may take milliseconds, this need not be as fresh."""
        if time.monotonic() - self._beat < 1:
            return
        self._beat = time.monotonic()
        who = {"session": self.session, "host": socket.gethostname(), "pid": os.getpid(), "share": list(self.share)}
        write_json(
            self.store.ledger / f"session-{self.share[0]}-of-{self.share[1]}.json",
            {**who, "cells": sorted({task.cell for task in tasks}), "time": time.time()},
        )

    def log(self, event: str, **fields: Any) -> None:
        """One line of JSON in the store's log."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, "session": self.session, **fields})
        with contextlib.suppress(OSError), (self.store.ledger / "log.jsonl").open("a") as file:  # a log that cannot be kept stops no sweep
            file.write(line + "\n")
