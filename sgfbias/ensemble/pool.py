"""Processes on this machine as an executor for sweeps."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from sgfbias.core.kept import keep_in, kept


def begin(folder: str | None = None) -> None:
    """Prepare a worker process: ignore interrupts, and end when the parent process
    ends.

    Interrupts are handled by the process that gives out the work. The folder in which
    that process keeps compiled programs is `folder`, or None.
    """
    if folder is not None:
        keep_in(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # no process is left to take the results

    threading.Thread(target=watch, daemon=True).start()


def check_executor(executor: Any) -> None:
    """Refuse an executor that cannot run a sweep.

    **Raises:** `ValueError` for an object without `submit` that is no function either,
    and for a pool of processes that are forked: JAX has started threads in this
    process, and a forked copy of them waits for ever.
    """
    if executor is None or (callable(executor) and not hasattr(executor, "submit")):
        return
    if not hasattr(executor, "submit"):
        raise ValueError(
            "`executor` must have a method `submit`, or be a function that makes an object "
            f"with one, but is {executor!r}"
        )
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            f"`executor` is a {type(executor).__name__} whose processes are forked, which hangs "
            "once JAX has started; use executor=sgfbias.processes(4), or make the pool with "
            "mp_context=multiprocessing.get_context('spawn')"
        )


def _make(workers: int) -> ProcessPoolExecutor:
    """A pool of worker processes.

    They are spawned rather than forked, because a fork would copy JAX's threads in an
    unknown state.
    """
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=begin,
        initargs=(kept(),),
    )


def processes(workers: int) -> Callable[[], ProcessPoolExecutor]:
    """A function that makes a pool of processes, for
    `Sweep.run(executor=processes(4))`.

    If a process of the pool is lost, the sweep makes a new pool. The processes end with
    this one. The experiment must be importable by name, so define it in a module; a
    script that calls this function needs `if __name__ == "__main__":`.

    **Arguments:**

    - `workers`: the number of processes, at least 1.

    **Returns:** a function without arguments that makes the pool.

    **Raises:** `ValueError` if `workers` is not a whole number >= 1.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"`workers` must be a whole number >= 1, but is {workers!r}")
    return functools.partial(_make, workers)
