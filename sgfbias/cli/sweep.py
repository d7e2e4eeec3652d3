"""`sgfbias sweep`: runs a sweep, or prints its plan."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sgfbias.cli import EXIT_FAILED, EXIT_STORE, parsed
from sgfbias.cli.status import print_status
from sgfbias.study.frame import study_named


@dataclasses.dataclass(frozen=True)
class SweepCommand:
    """Run a grid of hyperparameters x data draws x seeds.

    If the sweep is interrupted, the same command resumes it. Example:

        sgfbias sweep config.toml --seeds 0:512 --grid "alpha=geomspace(1e-4,1e-1,10)"
    """

    config: Annotated[Path, tyro.conf.Positional]
    """TOML file of the sweep: study or function, seeds, [config], [grid]."""
    seeds: str | None = None
    """Seeds start:stop, stop excluded, for example 0:512; by default the file's."""
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Axis name=values that is added to the grid, or replaces the file's axis."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Setting name=value that is added to [config] of the file, or replaces the value
    there.
    """
    out: Path = Path("results")
    """Folder for the store; the store is named after the sweep."""
    dry_run: bool = False
    """Only time the first chunk and print the plan; write nothing."""
    workers: int = 1
    """Number of processes on this machine that share the work."""
    dask: str | None = None
    """Address of a Dask scheduler; its workers need access to the folder --out."""
    share: str | None = None
    """Part for this process, index/count (0/16 is the first of 16); default: all."""
    retry_failed: bool = False
    """Run the cells again that raised an error."""
    format: Literal["table", "json"] = "table"
    """Print a table, or one JSON object."""
    quiet: bool = False
    """Print neither progress nor a table, only errors."""
    verbose: bool = False
    """Also print the traceback of an error."""

    def run(self) -> int:
        """Run the sweep, or print its plan.

        **Returns:** the exit status: 1 if cells failed, 74 if the store cannot be
        written, otherwise 0.
        """
        import jax

        from sgfbias.ensemble.disk import StoreError
        from sgfbias.ensemble.file import read
        from sgfbias.ensemble.status import status

        file = read(self.config, study_named, seeds=self.seeds, grid=self.grid, settings=self.set)
        if self.workers < 1:
            raise ValueError(f"--workers must be at least 1, but is {self.workers}")
        share = _share(self.share)
        with jax.enable_x64(file.precision == "float64"):
            sweep = file.make()
            target = self.out / f"{file.name}.zarr"
            if self.dry_run:
                plan = sweep.plan(target, workers=self.workers)
                print(json.dumps(plan._asdict(), indent=1) if self.format == "json" else plan)
                return EXIT_FAILED if plan.error else 0
            talk = not self.quiet and self.format == "table"
            if talk:
                print(sweep)
            try:
                with _executor(self) as executor:
                    sweep.work(
                        target,
                        executor=executor,
                        share=share,
                        retry_failed=self.retry_failed,
                        progress=talk,
                    )
            except StoreError as error:
                print(f"sgfbias: {error}", file=sys.stderr)
                return EXIT_STORE
        state = status(target)
        if self.format == "json":
            print(json.dumps({**state, "store": str(target)}, indent=1))
        elif talk:
            print_status(state, every=False)
            print(f"store: {target} (to see the results: sgfbias show {target})")
        for cell in state["cells"]:
            if cell["failed"]:
                print(
                    f"sgfbias: a cell failed ({_words(cell['point'])}): {cell['error']}",
                    file=sys.stderr,
                )
        return EXIT_FAILED if state["failed"] else 0


def parse(arguments: list[str]) -> SweepCommand:
    """Parse the options of the command."""
    return parsed(SweepCommand, "sweep", arguments)


def _words(point: dict[str, Any]) -> str:
    return (
        ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in point.items())
        or "the only one"
    )


def _share(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        index, count = map(int, text.split("/"))
    except ValueError as error:
        raise ValueError(
            f"--share must be index/count, for example 0/16, but is {text!r}"
        ) from error
    return index, count


@contextlib.contextmanager
def _executor(command: SweepCommand) -> Iterator[Any]:
    """The executor of the work: Dask, a pool of processes, or None for this process."""
    if command.dask is not None:
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise ValueError(
                "--dask needs dask.distributed; install it with pip install 'sgfbias[dask]'"
            ) from error
        with Client(command.dask) as client:
            yield client.get_executor()
    elif command.workers > 1:
        from sgfbias.ensemble.pool import processes

        yield processes(command.workers)
    else:
        yield None
