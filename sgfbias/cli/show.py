"""`sgfbias show`: prints and draws the content of a store of a study or of a sweep."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sgfbias.cli import EXIT_FAILED, parsed
from sgfbias.cli.status import ROWS, print_status
from sgfbias.core.types import Dataset
from sgfbias.study import store
from sgfbias.study.claim import Claim, broken, summary
from sgfbias.study.execute import PICTURE, judge
from sgfbias.study.report import counts


@dataclasses.dataclass(frozen=True)
class ShowCommand:
    """Print the content of a store, and draw its picture again.

    The content is the claims of a study, or the medians in each cell of a sweep.
    """

    store: Annotated[Path, tyro.conf.Positional]
    """Path of a zarr store that `sgfbias run` or `sgfbias sweep` wrote."""
    picture: Path | None = None
    """Path of the picture to draw, which ends in .png, .svg or .pdf; by default it lies
    beside the store.
    """
    all: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all claims of a study; by default a long table shows only its main ones."""
    format: Literal["table", "json"] = "table"
    """Print a table, or one JSON object."""
    verbose: bool = False
    """Also print all variables or cells, and the traceback of an error."""

    def run(self) -> int:
        """Print and draw the content of the store.

        **Returns:** the exit status: 1 if a claim that must hold fails, otherwise 0.
        """
        from sgfbias.ensemble.status import is_sweep

        if is_sweep(self.store):
            return _show_sweep(self.store, self.picture, self.format, self.verbose)
        picture = self.picture or self.store.parent / PICTURE
        dataset, claims, report = judge(store.load(self.store), self.store, picture)
        if self.format == "json":
            print(json.dumps(report, indent=1))
        else:
            print(f"study {report['study']}: {report['config']}")
            print_claims(claims, every=self.all)
            print_attributes(dataset)
            if self.verbose:
                for row in store.variables(dataset):
                    print("  {:34s} ({})  {}  {}".format(*row))
            print(f"picture: {picture}")
        return verdict(claims)


def parse(arguments: list[str]) -> ShowCommand:
    """Parse the options of the command."""
    return parsed(ShowCommand, "show", arguments)


def _show_sweep(store: Path, picture: Path | None, format: str, verbose: bool) -> int:
    """Print and draw the median of every variable in each cell of a sweep, with its
    interval and quantiles.
    """
    from rich.console import Console
    from rich.table import Table

    from sgfbias.ensemble.status import open_sweep, status
    from sgfbias.ensemble.summary import cells_of, plot, scalars
    from sgfbias.study import plotting

    dataset = open_sweep(store)
    state = status(store)
    names = scalars(dataset)
    picture = picture or store.with_suffix(".png")
    if names:
        plotting.save(plot(dataset), picture)
    rows = {name: cells_of(dataset, name) for name in names}
    if format == "json":
        print(
            _json(
                {
                    "status": state,
                    "variables": {n: [c._asdict() for c in cells] for n, cells in rows.items()},
                    "picture": str(picture),
                }
            )
        )
        return 0
    print_status(state, every=False)
    # As wide as the terminal, or as COLUMNS says; otherwise wide enough to be read.
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150
    console = Console(width=wide)
    for name, cells in rows.items():
        table = Table(
            title=f"{name}  [{dataset[name].attrs.get('units', '')}]", title_justify="left"
        )
        for column in (
            *cells[0].point,
            "seeds",
            "median",
            "99% interval",
            "5% to 95% of the seeds",
        ):
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
            print(f"  {len(cells) - ROWS} more cells; --verbose shows them")
    print(
        f"picture: {picture}"
        if names
        else "no variable has one floating-point number for each seed, so there is no table and "
        "no picture"
    )
    return 0


def _json(value: Any) -> str:
    """The value as JSON, with null for numbers that are not finite."""

    def known(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: known(w) for k, w in v.items()}
        if isinstance(v, list | tuple):
            return [known(w) for w in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(known(value), indent=1)


def print_claims(claims: Sequence[Claim], *, every: bool = False) -> None:
    """Print the claims as a table, and the number of claims with each verdict.

    **Arguments:**

    - `claims`: the claims of a study.
    - `every`: whether to print all of them; by default a long table is cut to its most
      important rows, see `study.claim.summary`.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # As wide as the terminal, or as COLUMNS says; otherwise wide enough to be read.
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150
    console = Console(width=wide)
    shown = list(claims) if every else summary(claims)
    title = "Claims" if len(shown) == len(claims) else "The main claims"
    table = Table(title=title, show_lines=True, title_justify="left")
    for column, ratio in (("claim", 5), ("predicted", 3), ("measured", 5), ("tolerance", 3)):
        table.add_column(column, ratio=ratio)
    table.add_column("verdict", no_wrap=True)
    colours = {"holds": "green", "fails": "red", "not applicable": "yellow"}
    for claim in shown:
        note = f"\n({claim.reason})" if claim.reason else ""
        colour = colours[claim.verdict]
        if not claim.must_hold and claim.verdict == "fails":
            colour = "yellow"
        need = "" if claim.must_hold else "\n(informs)"
        table.add_row(
            f"{escape(claim.statement)}\n[dim]{escape(claim.source)}[/dim]",
            escape(claim.predicted),
            escape(claim.measured + note).lstrip("\n"),
            escape(claim.tolerance),
            f"[{colour}]{claim.verdict}[/]{need}",
        )
    console.print(table)
    left = len(claims) - len(shown)
    more = f"; --all prints the other {left} too" if left else ""
    told = (
        f"1 claim: {claims[0].verdict}"
        if len(claims) == 1
        else f"Of {len(claims)} claims: {counts(claims)}{more}"
    )
    console.print(told, highlight=False)


def print_attributes(dataset: Dataset) -> None:
    """Print the provenance of a dataset: versions, device, precision and so on."""
    for key in (
        "versions",
        "revision",
        "device",
        "host",
        "precision",
        "prng",
        "created",
        "seconds",
    ):
        if key in dataset.attrs:
            print(f"  {key:10s} {dataset.attrs[key]}")


def verdict(claims: Sequence[Claim]) -> int:
    """Print the claims that must hold, but fail, as errors.

    **Returns:** the exit status: 1 if there are such claims, otherwise 0.
    """
    for claim in broken(claims):
        print(
            f"sgfbias: a claim that must hold fails: {claim.told}",
            file=sys.stderr,
        )
    return EXIT_FAILED if broken(claims) else 0
