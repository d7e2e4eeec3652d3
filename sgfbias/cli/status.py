"""`sgfbias status`: prints the progress of a sweep, or writes a page that shows it."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
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
    html: bool = False
    """Write a page about the progress beside the store (for runs.zarr: runs.html). Open
    it in a browser: it loads itself anew until the sweep is finished.
    """
    watch: bool = False
    """With --html: write the page again and again, until the sweep is finished or
    Ctrl-C is pressed.
    """
    interval: float = 5.0
    """Seconds between two versions of the page."""
    verbose: bool = False
    """Print all cells, and the traceback of an error."""

    def run(self) -> int:
        """Print the status, or write the page.

        **Raises:** `ValueError` if --watch is given without --html or the interval is
        not positive, `StoreError` if there is no sweep, `OSError` if the page cannot be
        written.
        """
        from sgfbias.ensemble.status import status

        if self.watch and not self.html:
            raise ValueError("--watch writes a page again and again: give it with --html")
        if not 0 < self.interval < float("inf"):
            raise ValueError(
                f"--interval must be a positive number of seconds, but is {self.interval}"
            )
        if self.html:
            return self._page()
        state = status(self.store)
        if self.format == "json":
            print(json.dumps(state, indent=1))
        else:
            print_status(state, every=self.verbose)
        return 0

    def _page(self) -> int:
        """Write the page, once or until the sweep is finished."""
        from sgfbias.ensemble import page
        from sgfbias.ensemble.status import status, status_lines

        target = self.store.absolute().with_name(self.store.name.removesuffix(".zarr") + ".html")
        try:
            while True:
                state = status(self.store)
                new = not target.exists()
                page.write(state, target, refresh=self.interval)
                if new or not self.watch:
                    print(f"page: {target.as_uri()}", flush=True)
                if not self.watch or page.finished(state):
                    break
                time.sleep(self.interval)
        except KeyboardInterrupt:
            print()
        print(status_lines(state)[0])
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
