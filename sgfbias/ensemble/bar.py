"""Progress of a sweep on the terminal.

It shows the chunks, the runs per second, the time left, and how many runs diverged or
failed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def shown(progress: Any) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that shows the counts of a sweep while the context is open.

    `progress` is True for a bar, False or None for nothing, or a function that is given
    the counts.

    **Raises:** `ValueError` if `progress` is neither a bool nor callable.
    """
    if progress is False or progress is None:
        yield lambda state: None
        return
    if progress is not True:
        if not callable(progress):
            raise ValueError(
                f"`progress` must be True, False or a function of a dictionary, but is {progress!r}"
            )
        yield progress
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("sweep"),
        BarColumn(bar_width=8),  # the words need the other columns of a narrow terminal
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[more]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("sweep", total=None, more="")

        def show(state: dict[str, Any]) -> None:
            bar.update(
                task, total=state["chunks"], completed=state["chunks_done"], more=words(state)
            )

        yield show


def words(state: dict[str, Any]) -> str:
    """The speed and the time left, and how many runs diverged or failed if any did."""
    parts = [f"{state['rate']:,.0f} runs/s", f"{in_words(state['seconds_left'])} left"]
    parts += [f"{state[name]:,} {name}" for name in ("diverged", "failed") if state[name]]
    return ", ".join(parts)


def in_words(seconds: float | None) -> str:
    """A short text for a span of time; None means that it is unknown."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
