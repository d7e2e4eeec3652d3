"""`sgfbias status`: prints the progress of a sweep."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sgfbias.cli import parsed

ROWS = 60  # A table has at most this many rows, unless all are asked for.


@dataclasses.dataclass(frozen=True)
class StatusCommand:
    """Print the progress of a sweep, with its speed and the time left.

    A table counts the runs of each cell that are done, running, failed or diverged.
    """

    store: Annotated[Path, tyro.conf.Positional]
    """Path of the store of a sweep, as written by `sgfbias sweep`."""
    format: Literal["table", "json"] = "table"
    """Print a table, or one JSON object."""
    verbose: bool = False
    """Print all cells, and the traceback of an error."""

    def run(self) -> int:
        """Print the status."""
        from sgfbias.ensemble.status import status

        state = status(self.store)
        if self.format == "json":
            print(json.dumps(state, indent=1))
        else:
            print_status(state, every=self.verbose)
        return 0


def parse(arguments: list[str]) -> StatusCommand:
    """Parse the options of the command."""
    return parsed(StatusCommand, "status", arguments)


def print_status(state: dict[str, Any], *, every: bool) -> None:
    """Print the totals of a sweep, and a table of its cells.

    Unless `every` is set, a large table shows only the cells that need attention: those
    that are unfinished, or that have failed or diverged runs.
    """
    from rich.console import Console
    from rich.table import Table

    from sgfbias.ensemble.status import status_lines

    for line in status_lines(state):
        print(line)
    cells = state["cells"]
    if not every and len(cells) > ROWS:
        cells = [c for c in cells if c["failed"] or c["diverged"] or 0 < c["done"] < c["runs"]]
    table = Table()
    for column in (
        *(state["cells"][0]["point"] or {"cell": ""}),
        "done",
        "of",
        "running",
        "diverged",
        "failed",
        "error",
    ):
        table.add_column(column, overflow="fold")
    for cell in cells[: None if every else ROWS]:
        values = [
            f"{v:.4g}" if isinstance(v, float) else str(v) for v in cell["point"].values()
        ] or ["the only one"]
        counts = (
            f"{cell['done']:,}",
            f"{cell['runs']:,}",
            "yes" if cell["running"] else "",
            f"{cell['diverged']:,}",
            f"{cell['failed']:,}",
        )
        table.add_row(*values, *counts, cell["error"])
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    left = len(state["cells"]) - min(len(cells), len(cells) if every else ROWS)
    if left:
        print(f"{left} more cells; --verbose shows them")
