"""The progress of a study on the terminal: the stage, how much of it is done, the time
left for it, and the time of the whole study.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from sgfbias.core.progress import watched
from sgfbias.study.frame import Log


@contextlib.contextmanager
def stages(log: Log, expected: float | None, *, console: Any = None) -> Iterator[Log]:
    """A function that logs the stages of a study, above a bar if there is a terminal.

    **Arguments:**

    - `log`: what prints a line.
    - `expected`: the duration of the study in seconds, or None if it is not known.
    - `console`: a rich `Console` to draw on; by default that of the terminal.
    """
    if console is None and not sys.stdout.isatty():
        yield log
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    started = time.perf_counter()

    class Times(ProgressColumn):
        """The time left for the stage, and the time of the study so far."""

        def render(self, task: Any) -> Text:
            left = task.time_remaining
            words = [] if left is None or task.finished else [f"{_clock(left)} left"]
            spent = _clock(time.perf_counter() - started)
            about = "" if expected is None else f" of about {_clock(expected)}"
            return Text(", ".join([*words, f"study {spent}{about}"]))

    bar = Progress(
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        BarColumn(bar_width=14),
        TaskProgressColumn(table_column=Column(no_wrap=True)),
        Times(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        expand=True,
    )
    task = bar.add_task("starting", total=None)

    def line(text: str) -> None:
        log(text)  # rich shows what is printed above the bar
        if not text.startswith(" "):  # Indented lines are results of a stage.
            bar.reset(task, total=None, description=text)

    def show(done: int, total: int) -> None:
        if done < bar.tasks[0].completed:  # the next run of the same stage
            bar.reset(task, total=None)
        bar.update(task, completed=done, total=total)

    with bar, watched(show):
        yield line


def _clock(seconds: float) -> str:
    """Minutes and seconds, for example 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
