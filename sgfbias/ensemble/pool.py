"""Processes of this machine as an executor for sweeps."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


def begin() -> None:
    """What a worker does first: leave interrupts to the process that gives it work, and end when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # nobody is left to take the work

    threading.Thread(target=watch, daemon=True).start()


def _make(workers: int) -> ProcessPoolExecutor:
    # Not forked: a fork would take JAX's threads along in an unknown state.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=begin)


def processes(workers: int) -> Callable[[], ProcessPoolExecutor]:
    """For `Sweep.run(executor=processes(4))`: so many processes, started anew if one of them is lost. They end with this one.

    The experiment must be importable by name, so define it in a module; a script that calls this needs `if __name__ == "__main__":`.

    **Raises:** `ValueError` for less than one.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"`workers` must be a whole number >= 1, but is {workers!r}")
    return functools.partial(_make, workers)
