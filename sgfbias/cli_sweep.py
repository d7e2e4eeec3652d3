"""The command line of sweeps: `sgfbias sweep | status`, and `show` of a sweep's store."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sgfbias.studies import study_named

EXIT_CELL_FAILED = 1
EXIT_STORE = 74
EXIT_INTERRUPTED = 75
ROWS = 60


@dataclasses.dataclass(frozen=True)
class SweepCommand:
    """Run a grid of hyperparameters x data draws x seeds, resumably: `sgfbias sweep config.toml --seeds 0:512 --grid "alpha=geomspace(1e-4,1e-1,10)"`."""

    config: Annotated[Path, tyro.conf.Positional]
    """A TOML file: study or function, seeds, [config], [grid]."""
    seeds: str | None = None
    """First and last seed, start:stop."""
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An axis, name=values; once per axis."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A value of the config, name=value; once per value."""
    out: Path = Path("results")
    """Output folder; the store in it has the sweep's name."""
    dry_run: bool = False
    """Print the plan, with the time measured on the first chunk, and write nothing."""
    workers: int = 1
    """Processes on this machine that share the work."""
    dask: str | None = None
    """Address of a Dask scheduler whose workers do the work; they must see the output folder."""
    share: str | None = None
    """index/count: this process's part of the work, for job arrays."""
    retry_failed: bool = False
    """Run cells again that raised."""
    format: Literal["table", "json"] = "table"
    """Print a table, or one JSON object."""
    quiet: bool = False
    """No progress, no table."""
    verbose: bool = False
    """Also print tracebacks."""


@dataclasses.dataclass(frozen=True)
class StatusCommand:
    """Print how a sweep stands: done, running, failed and diverged per cell, rate, time left."""

    store: Annotated[Path, tyro.conf.Positional]
    """A store written by `sgfbias sweep`."""
    format: Literal["table", "json"] = "table"
    """Print a table, or one JSON object."""
    verbose: bool = False
    """Also print every cell, and tracebacks."""


def run_sweep(command: SweepCommand) -> int:
    """Run a sweep, or print its plan; returns the exit status: 0, 1 if cells failed, 74 if the store cannot be written, 75 if interrupted."""
    import jax

    from sgfbias.ensemble.config import read
    from sgfbias.ensemble.drive import SweepInterrupted
    from sgfbias.ensemble.files import StoreError
    from sgfbias.ensemble.status import status

    file = read(command.config, study_named, seeds=command.seeds, grid=command.grid, settings=command.set)
    if command.workers < 1:
        raise ValueError(f"--workers must be at least 1, but is {command.workers}")
    share = _share(command.share)
    with jax.enable_x64(file.precision == "float64"):
        sweep = file.make()
        target = command.out / f"{file.name}.zarr"
        if command.dry_run:
            plan = sweep.plan(target, workers=command.workers)
            print(json.dumps(plan._asdict(), indent=1) if command.format == "json" else plan)
            return EXIT_CELL_FAILED if plan.error else 0
        talk = not command.quiet and command.format == "table"
        if talk:
            print(sweep)
        try:
            with _executor(command) as executor:
                sweep.work(target, executor=executor, share=share, retry_failed=command.retry_failed, progress=talk)
        except (StoreError, SweepInterrupted) as error:
            print(f"sgfbias: {error}", file=sys.stderr)
            return EXIT_INTERRUPTED if isinstance(error, SweepInterrupted) else EXIT_STORE
    state = status(target)
    if command.format == "json":
        print(json.dumps({**state, "store": str(target)}, indent=1))
    elif talk:
        _print_status(state, every=False)
        print(f"store {target}: sgfbias show {target}")
    for cell in state["cells"]:
        if cell["failed"]:
            print(f"sgfbias: a cell failed: {_words(cell['point'])}: {cell['error']}", file=sys.stderr)
    return EXIT_CELL_FAILED if state["failed"] else 0


def run_status(command: StatusCommand) -> int:
    """Print a sweep's status."""
    from sgfbias.ensemble.status import status

    state = status(command.store)
    if command.format == "json":
        print(json.dumps(state, indent=1))
    else:
        _print_status(state, every=command.verbose)
    return 0


def show_sweep(store: Path, picture: Path | None, format: str, verbose: bool) -> int:
    """Print medians, quantiles and intervals of a sweep's variables per cell, and draw them."""
    from rich.console import Console
    from rich.table import Table

    from sgfbias import plotting
    from sgfbias.ensemble.show import cells_of, plot, scalars
    from sgfbias.ensemble.status import open_sweep, status

    dataset = open_sweep(store)
    state = status(store)
    names = scalars(dataset)
    picture = picture or store.with_suffix(".png")
    if names:
        plotting.save(plot(dataset), picture)
    rows = {name: cells_of(dataset, name) for name in names}
    if format == "json":
        print(
            _json({"status": state, "variables": {n: [c._asdict() for c in cells] for n, cells in rows.items()}, "picture": str(picture)})
        )
        return 0
    _print_status(state, every=False)
    console = Console(width=None if sys.stdout.isatty() else 150)
    for name, cells in rows.items():
        table = Table(title=f"{name}  [{dataset[name].attrs.get('units', '')}]", title_justify="left")
        for column in (*cells[0].point, "seeds", "median", "99% interval", "5% to 95% of the seeds"):
            table.add_column(column, justify="left")
        for cell in cells[: None if verbose else ROWS]:
            table.add_row(
                *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in cell.point.values()),
                f"{cell.finite} of {cell.done}",
                f"{cell.median:.4g}",
                f"{cell.low:.4g} to {cell.high:.4g}",
                f"{cell.quantiles[0]:.4g} to {cell.quantiles[1]:.4g}",
            )
        console.print(table)
        if len(cells) > ROWS and not verbose:
            print(f"  {len(cells) - ROWS} more cells: --verbose")
    print(f"picture {picture}" if names else "no variable has one floating-point number per seed, so there is no table and no picture")
    return 0


def _print_status(state: dict[str, Any], *, every: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from sgfbias.ensemble.status import status_lines

    for line in status_lines(state):
        print(line)
    cells = state["cells"]
    if not every and len(cells) > ROWS:  # the ones that want a look
        cells = [c for c in cells if c["failed"] or c["diverged"] or 0 < c["done"] < c["runs"]]
    table = Table()
    for column in (*(state["cells"][0]["point"] or {"cell": ""}), "done", "of", "running", "diverged", "failed", "error"):
        table.add_column(column, overflow="fold")
    for cell in cells[: None if every else ROWS]:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in cell["point"].values()] or ["the only one"]
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
        print(f"{left} more cells: --verbose")


def _json(value: Any) -> str:
    """JSON, with null for numbers that are not finite."""

    def known(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: known(w) for k, w in v.items()}
        if isinstance(v, list | tuple):
            return [known(w) for w in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(known(value), indent=1)


def _words(point: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in point.items()) or "the only one"


def _share(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        index, count = map(int, text.split("/"))
    except ValueError as error:
        raise ValueError(f"--share must be index/count, for example 0/16, but is {text!r}") from error
    return index, count


@contextlib.contextmanager
def _executor(command: SweepCommand) -> Iterator[Any]:
    """Where the work is done: here, in processes, or by Dask."""
    if command.dask is not None:
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise ValueError("--dask needs dask.distributed: pip install 'sgfbias[dask]'") from error
        with Client(command.dask) as client:
            yield client.get_executor()
    elif command.workers > 1:
        from sgfbias.ensemble.pool import processes

        yield processes(command.workers)
    else:
        yield None
