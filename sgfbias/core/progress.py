"""Progress of a run, reported once per chunk to a bar or to a function of the user."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

Show = Callable[[int, int], None]
# What the runs report to if they are not told, see `watched`.
_watcher: contextvars.ContextVar[Show | None] = contextvars.ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(show: Show | None) -> Iterator[Show | None]:
    """Within this context every run without an argument `progress` calls `show(done,
    total)` after each of its chunks; with None it reports nothing. The context yields
    what was called outside of it.
    """
    outside, token = _watcher.get(), _watcher.set(show)
    try:
        yield outside
    finally:
        _watcher.reset(token)


class Reporter:
    """Counts the finished chunks of all tiles and calls `show(done, total)`.

    It may be called from several threads.
    """

    def __init__(self, show: Show | None = None):
        self.total, self._done, self._show, self._lock = 0, 0, show, threading.Lock()

    def __call__(self, chunks: int) -> None:
        """Add `chunks` to the number of chunks that are done."""
        if self._show is not None and chunks:
            with self._lock:
                self._done += chunks
                self._show(self._done, self.total)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exception: Any) -> None:
        return None


class _Bar(Reporter):
    """A progress bar in a terminal or a notebook, drawn by rich; elsewhere nothing."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("simulate"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("chunks"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console()
        # Without a terminal, rich would print an empty line at the end.
        seen = console.is_terminal or console.is_jupyter
        self._bar = Progress(*columns, console=console, transient=True, disable=not seen)
        self._task = self._bar.add_task("simulate", total=None)
        super().__init__(
            lambda done, total: self._bar.update(self._task, completed=done, total=total)
        )

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.stop()


def reporter(progress: Any) -> Reporter:
    """The reporter for the argument `progress` of `simulate`. With None it reports to
    the context, see `watched`.

    **Raises:** `ValueError` if `progress` is neither a bool nor callable.
    """
    if progress is True:
        return _Bar()
    if progress is None:
        return Reporter(_watcher.get())
    if progress is False:
        return Reporter()
    if callable(progress):
        return Reporter(progress)
    raise ValueError(
        f"`progress` must be True, False or a function of (done, total), but is {progress!r}"
    )
