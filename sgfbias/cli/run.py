"""`sgfbias run NAME`: runs one study and writes its results into a folder.

The fields of the study's config are the options of the command. No other study is
imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import tyro

from sgfbias.cli import EXIT_BAD_INPUT, with_help
from sgfbias.cli.bar import stages
from sgfbias.cli.list import wrapped
from sgfbias.cli.show import print_attributes, print_claims, verdict
from sgfbias.cli.values import registry
from sgfbias.study.execute import execute
from sgfbias.study.frame import Study
from sgfbias.study.registry import entries, find


@dataclasses.dataclass(frozen=True)
class Output:
    """These options set what the run writes and prints."""

    out: Path = Path("results/study")
    """Folder for `study.zarr` (the numbers), `study.png` and `claims.json`."""
    overwrite: bool = False
    """Replace a store that is in this folder already."""
    picture: Path | None = None
    """Path of the picture, which ends in .png, .svg or .pdf; by default `study.png` in
    the folder.
    """
    all: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all claims; by default a long table shows only its main ones."""
    format: Literal["table", "json"] = "table"
    """Print the claims as a table, or everything as one JSON object."""
    paper: tyro.conf.FlagCreatePairsOff[bool] = False
    """Use the published size, if there is one, as the default of other options."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """Use a size that takes some seconds as the default of other options."""
    quiet: bool = False
    """Print only the claims that must hold, but fail."""
    verbose: bool = False
    """Also print the time of each stage, the provenance and tracebacks."""


@dataclasses.dataclass(frozen=True)
class RunCommand:
    """Run a study and compare it with theory."""

    study: Study
    config: Any
    output: Output

    def run(self) -> int:
        """Run the study, store the dataset, judge the claims and draw the picture.

        **Returns:** the exit status: 1 if a claim that must hold fails, otherwise 0.
        """
        output = self.output
        talk, started = not output.quiet and output.format == "table", time.perf_counter()

        def log(text: str) -> None:
            if talk:
                print(
                    f"[{time.perf_counter() - started:6.1f} s] {text}" if output.verbose else text,
                    flush=True,
                )

        usual = self.config == self.study.Config()
        shown = stages(log, self.study.entry.seconds if usual else None)
        with shown if talk else contextlib.nullcontext(log) as told:
            dataset, claims, report = execute(
                self.study,
                self.config,
                output.out,
                overwrite=output.overwrite,
                picture=output.picture,
                log=told,
            )
        if output.format == "json":
            print(json.dumps(report, indent=1))
        elif talk:
            print_claims(claims, every=output.all)
            if output.verbose:
                print_attributes(dataset)
            print(
                f"store: {report['store']}, picture: {report['picture']}, "
                f"time: {dataset.attrs['seconds']} s"
            )
        return verdict(claims)


def parse(arguments: list[str]) -> RunCommand:
    """The study and its options.

    **Raises:** `SystemExit` if help was asked for, or if there is no such study or
    option; `ValueError` for values that make no sense.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        _studies(bool(arguments))
    name, *rest = arguments
    try:
        study = Study(find(name))
        # The defaults depend on these two, so they are read before all other options.
        if "--paper" in rest and "--quick" in rest:
            raise ValueError("give --paper or --quick, but not both")
        defaults = (
            study.paper
            if "--paper" in rest
            else study.quick
            if "--quick" in rest
            else study.Config()
        )
    except ValueError as error:
        print(f"sgfbias: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from error
    unchecked, output = _unchecked(study.Config), with_help(Output)
    kept: list[RunCommand] = []

    def command(config: Any, output: Any) -> None:
        kept.append(RunCommand(study, config, output))

    command.__annotations__ = {
        "config": tyro.conf.OmitArgPrefixes[unchecked],  # type: ignore[misc, valid-type]
        "output": tyro.conf.OmitArgPrefixes[output],  # type: ignore[misc, valid-type]
    }
    command.__defaults__ = (
        unchecked(**_fields(defaults)),
        output(out=Path("results") / study.name),
    )
    tyro.cli(
        command,
        registry=registry(),
        args=rest,
        prog=f"sgfbias run {name}",
        description=study.entry.question,
    )
    return dataclasses.replace(kept[0], config=study.Config(**_fields(kept[0].config)))


def _unchecked(config: type[Any]) -> type[Any]:
    """A config with the same fields that accepts all values.

    The options are parsed into it. The study's own config then checks the values, so
    each bad value is reported once.
    """
    return with_help(
        dataclasses.dataclass(frozen=True)(
            type(
                "Config",
                (config,),
                {"__post_init__": lambda self: None, "__doc__": config.__doc__},
            )
        )
    )


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _studies(asked: bool) -> None:
    """Print the list of studies and exit, with status 2 unless help was asked for."""
    where = sys.stdout if asked else sys.stderr
    said = (
        "Run a study and compare it with theory: sgfbias run NAME [options]. The studies are"
        if asked
        else "sgfbias: name a study, sgfbias run NAME; the studies are"
    )
    print(wrapped("", said, where), file=where)
    for entry in entries().values():
        print(wrapped(f"  {entry.name:20s} ", entry.question, where), file=where)
    print("sgfbias run NAME --help shows the options of a study.", file=where)
    raise SystemExit(0 if asked else EXIT_BAD_INPUT)
