"""`sgfbias list`: lists the studies, system by system, without importing any."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import textwrap
from typing import Literal, TextIO

from sgfbias.cli import parsed
from sgfbias.study.registry import entries, systems


@dataclasses.dataclass(frozen=True)
class ListCommand:
    """List the studies of every system, with the question and the duration of each."""

    format: Literal["table", "json"] = "table"
    """Print a table, or a JSON list with one object per study."""

    def run(self) -> int:
        """Print the list."""
        if self.format == "json":
            rows = [
                {"name": entry.name, "system": entry.system, **entry._asdict()}
                for entry in entries().values()
            ]
            print(json.dumps(rows, indent=1))
            return 0
        width = max((len(entry.name) for entry in entries().values()), default=0)
        for system, about in systems().items():
            print(wrapped(f"{system}: " if about else system, about, sys.stdout))
            for entry in entries().values():
                if entry.system == system:
                    head = f"  {entry.name:{width}s}  {_seconds(entry.seconds):>5s}  "
                    print(wrapped(head, entry.question, sys.stdout))
            print()
        said = (
            "The times are for the default settings on two CPU cores that also had other work. "
            "`sgfbias run NAME --help` shows the options of a study."
        )
        print(wrapped("", said, sys.stdout))
        return 0


def parse(arguments: list[str]) -> ListCommand:
    """Parse the options of the command."""
    # Without arguments, the time to import tyro is saved.
    return parsed(ListCommand, "list", arguments) if arguments else ListCommand()


def wrapped(head: str, text: str, stream: TextIO) -> str:
    """`head` and `text` as one entry of a list. In a terminal, or if COLUMNS is set, a
    text that is too long goes on below its own beginning.
    """
    if not (stream.isatty() or "COLUMNS" in os.environ):
        return head + text
    room = max(shutil.get_terminal_size().columns - len(head), 20)
    return head + f"\n{' ' * len(head)}".join(textwrap.wrap(text, room))


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"
