"""The command line: `sgfbias list | run | reproduce | sweep | status | show | cite | explore | bench`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sgfbias.cli_explore import ExploreCommand, run_explore
from sgfbias.cli_reproduce import ReproduceCommand, run_reproduce
from sgfbias.cli_sweep import EXIT_INTERRUPTED, StatusCommand, SweepCommand, run_status, run_sweep, show_sweep
from sgfbias.execute import execute, judge, paper_config
from sgfbias.studies import STUDIES, study_named

EXIT_CLAIM_FAILED = 1
EXIT_BAD_INPUT = 2


@dataclasses.dataclass(frozen=True)
class List:
    """List the studies."""


@dataclasses.dataclass(frozen=True)
class Output:
    """What a run writes and prints."""

    out: Path = Path("results/study")
    """Folder for the store (`study.zarr`), the picture (`study.png`) and the claims (`claims.json`)."""
    overwrite: bool = False
    """Replace an existing store there."""
    format: Literal["table", "json"] = "table"
    """Print the claims as a table, or everything as one JSON object."""
    paper: tyro.conf.FlagCreatePairsOff[bool] = False
    """Start from the published size, if the study has one; other options change it."""
    quiet: bool = False
    """Print nothing but the claims that fail."""
    verbose: bool = False
    """Print the time of each stage, the provenance and tracebacks."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Print a store's claims and contents, or a sweep's medians and intervals, and draw its picture again."""

    store: Annotated[Path, tyro.conf.Positional]
    """A zarr store written by `sgfbias run` or `sgfbias sweep`."""
    picture: Path | None = None
    """Where to draw the picture; by default beside the store."""
    format: Literal["table", "json"] = "table"
    """Print a table, or one JSON object."""
    verbose: bool = False
    """Also print every variable and tracebacks."""


@dataclasses.dataclass(frozen=True)
class Cite:
    """Print the BibTeX of what a study or a store used."""

    what: Annotated[str, tyro.conf.Positional]
    """The name of a study, or a store written by `sgfbias run` or `sgfbias sweep`."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0; 1 if a claim that must hold fails, or a cell of a sweep; 2 for bad input; 74 if a
    sweep's store cannot be written, 75 if it was asked to stop."""
    arguments = sys.argv[1:] if arguments is None else arguments
    from sgfbias.ensemble.drive import SweepInterrupted
    from sgfbias.ensemble.files import StoreError

    if arguments[:1] == ["bench"]:
        return _bench(arguments[1:])
    command = _parse(arguments)
    try:
        if isinstance(command, List):
            return _list()
        if isinstance(command, Show):
            return _show(command)
        if isinstance(command, Cite):
            return _cite(command)
        if isinstance(command, ReproduceCommand):
            return run_reproduce(command)
        if isinstance(command, SweepCommand):
            return run_sweep(command)
        if isinstance(command, StatusCommand):
            return run_status(command)
        if isinstance(command, ExploreCommand):
            return run_explore(command)
        name, config, output = command
        return _run(name, config, output)
    except SweepInterrupted as error:
        print(f"sgfbias: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError, StoreError) as error:
        if getattr(command[2] if isinstance(command, tuple) else command, "verbose", False):
            raise
        print(f"sgfbias: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _parse(arguments: list[str]) -> Any:
    """One of the commands, or `(study name, config, output)`. A study's config dataclass is its command line."""
    app = tyro.extras.SubcommandApp()
    chosen: list[Any] = []

    @app.command(name="list")
    def _(command: tyro.conf.OmitArgPrefixes[List] = List()) -> None:
        """List the studies."""
        chosen.append(command)

    @app.command(name="show")
    def _(command: tyro.conf.OmitArgPrefixes[Show]) -> None:
        """Print a store's claims and contents, and draw its picture again."""
        chosen.append(command)

    @app.command(name="sweep")
    def _(command: tyro.conf.OmitArgPrefixes[SweepCommand]) -> None:
        """Run a grid of hyperparameters x data draws x seeds, resumably."""
        chosen.append(command)

    @app.command(name="status")
    def _(command: tyro.conf.OmitArgPrefixes[StatusCommand]) -> None:
        """Print how a sweep stands: done, running, failed and diverged per cell, rate, time left."""
        chosen.append(command)

    @app.command(name="reproduce")
    def _(command: tyro.conf.OmitArgPrefixes[ReproduceCommand] = ReproduceCommand()) -> None:
        """Run all studies, or those named, and write a page of them all."""
        chosen.append(command)

    @app.command(name="cite")
    def _(command: tyro.conf.OmitArgPrefixes[Cite]) -> None:
        """Print the BibTeX of what a study or a store used."""
        chosen.append(command)

    @app.command(name="explore")
    def _(command: tyro.conf.OmitArgPrefixes[ExploreCommand] = ExploreCommand()) -> None:
        """Open a page of sliders and live pictures on this machine."""
        chosen.append(command)

    if arguments[:1] == ["run"]:
        chosen.append(_parse_run(arguments[1:]))
        return chosen[0]

    @app.command(name="run")
    def _() -> None:
        """Run a study: `sgfbias run NAME --help` shows its options."""

    @app.command(name="bench")
    def _() -> None:
        """Measure speed beside peers, and what the project promises: `sgfbias bench --list`."""

    app.cli(args=arguments or ["--help"], prog="sgfbias", description=_about())
    return chosen[0]


def _parse_run(arguments: list[str]) -> Any:
    app = tyro.extras.SubcommandApp()
    chosen: list[Any] = []

    def register(name: str, config_type: Any) -> None:
        def command(config: Any, output: Any) -> None:
            chosen.append((name, config, output))

        command.__annotations__ = {"config": tyro.conf.OmitArgPrefixes[config_type], "output": tyro.conf.OmitArgPrefixes[Output]}
        command.__defaults__ = (paper_config(name) if paper and name == arguments[0] else config_type(), Output(out=Path("results") / name))
        command.__doc__ = config_type.__doc__
        app.command(name=name)(command)

    if not arguments or (arguments[0] not in STUDIES and not arguments[0].startswith("-")):
        given = f"there is no study {arguments[0]!r}" if arguments else "which study?"
        print(f"sgfbias: {given}; there are {', '.join(STUDIES)}: sgfbias run {next(iter(STUDIES))}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT)
    paper = "--paper" in arguments  # what the defaults are must be known before they are offered
    try:
        for name in STUDIES:
            register(name, study_named(name).Config)
        app.cli(args=arguments, prog="sgfbias run", description="Run a study and hold it against theory.")
    except ValueError as error:  # a config that refuses its values
        print(f"sgfbias: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from error
    return chosen[0]


def _bench(arguments: list[str]) -> int:
    """Hand over to the benchmarks, which lie beside the package in a checkout and inside it when installed."""
    package = Path(__file__).parent
    folder = next((place for place in (package.parent / "benchmarks", package / "_benchmarks") if (place / "run.py").is_file()), None)
    if folder is None:
        print(
            "sgfbias: the benchmarks were not installed with this package: run `sgfbias bench` in a checkout of its repository",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    sys.path.insert(0, str(folder))
    import run

    return run.main(arguments if folder.name == "benchmarks" or "--out" in arguments else [*arguments, "--out", "results/bench"])


def _about() -> str:
    return "Which solution does the training algorithm pick, and does theory predict it?"


def _list() -> int:
    for name in STUDIES:
        print(f"{name:14s} {study_named(name).Config.__doc__}")
    return 0


def _run(name: str, config: Any, output: Output) -> int:
    from sgfbias.core.claim import broken

    talk = not output.quiet and output.format == "table"
    started = time.perf_counter()

    def say(text: str) -> None:
        if talk:
            print(f"[{time.perf_counter() - started:6.1f} s] {text}" if output.verbose else text, flush=True)

    dataset, claims, report = execute(name, config, output.out, overwrite=output.overwrite, say=say)
    failed = broken(claims)
    if output.format == "json":
        print(json.dumps(report, indent=1))
    elif talk:
        _print_claims(claims)
        if output.verbose:
            _print_attributes(dataset)
        print(f"store {report['store']}, picture {report['picture']}, {dataset.attrs['seconds']} s")
    _print_failures(failed)
    return EXIT_CLAIM_FAILED if failed else 0


def _show(command: Show) -> int:
    from sgfbias import store
    from sgfbias.core.claim import broken
    from sgfbias.ensemble.status import is_sweep

    if is_sweep(command.store):
        return show_sweep(command.store, command.picture, command.format, command.verbose)
    picture = command.picture or command.store.parent / "study.png"
    dataset, claims, report = judge(store.load(command.store), command.store, picture)
    if command.format == "json":
        print(json.dumps(report, indent=1))
    else:
        print(f"study {report['study']}: {report['config']}")
        _print_claims(claims)
        _print_attributes(dataset)
        if command.verbose:
            for row in store.variables(dataset):
                print("  {:34s} ({})  {}  {}".format(*row))
        print(f"picture {picture}")
    failed = broken(claims)
    _print_failures(failed)
    return EXIT_CLAIM_FAILED if failed else 0


def _cite(command: Cite) -> int:
    from sgfbias import store
    from sgfbias.citing import cite
    from sgfbias.ensemble.status import is_sweep, open_sweep

    if command.what in STUDIES:
        print(cite(command.what))
    elif not Path(command.what).exists():
        raise ValueError(f"{command.what!r} is neither a store nor a study; the studies are {', '.join(STUDIES)}")
    else:
        print(cite(open_sweep(command.what) if is_sweep(command.what) else store.load(command.what)))
    return 0


def _print_claims(claims: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(title="Claims", show_lines=True, title_justify="left")
    for column, ratio in (("claim", 5), ("predicted", 3), ("measured", 5), ("tolerance", 3)):
        table.add_column(column, ratio=ratio)
    table.add_column("verdict", no_wrap=True)
    colours = {"holds": "green", "fails": "red", "not applicable": "yellow"}
    for claim in claims:
        note = f"\n({claim.reason})" if claim.reason else ""
        need = "" if claim.must_hold else "\ninforms"
        table.add_row(
            f"{claim.statement}\n[dim]{claim.source}[/dim]",
            claim.predicted,
            claim.measured + note,
            claim.tolerance,
            f"[{colours[claim.verdict]}]{claim.verdict}[/]{need}",
        )
    console.print(table)
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in colours}
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))


def _print_attributes(dataset: Any) -> None:
    for key in ("versions", "revision", "device", "host", "precision", "prng", "created", "seconds"):
        if key in dataset.attrs:
            print(f"  {key:10s} {dataset.attrs[key]}")


def _print_failures(failed: Any) -> None:
    for claim in failed:
        print(f"sgfbias: a claim that must hold fails: {claim.statement}: {claim.measured} ({claim.reason})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
