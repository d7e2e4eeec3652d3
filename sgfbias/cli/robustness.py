"""`sgfbias robustness`: runs studies on other draws, and counts how often claims
hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sgfbias.cli import EXIT_FAILED, parsed
from sgfbias.cli.bar import stages
from sgfbias.study import plotting, robustness
from sgfbias.study.frame import Study, silent, study_named
from sgfbias.study.registry import names


@dataclasses.dataclass(frozen=True)
class RobustnessCommand:
    """Run whole studies on other draws, and count how often each claim holds.

    Every draw has its own root seed, which everything random in a study comes from. A
    study is run at its quick size. Draws that are there already are not run again. A
    claim that must hold, and a control, may fail in at most 5% of the draws.
    """

    studies: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of the studies to run; by default all studies."""
    draws: int = 20
    """Number of draws; their root seeds are first, first + 1, ..."""
    first: int = 0
    """The first root seed."""
    full: bool = False
    """Use the default size of the studies instead of the quick one."""
    out: Path = Path("results/robustness")
    """Folder with one subfolder per study, for the claims of every draw, the counts in
    robustness.json and the picture robustness.png.
    """
    overwrite: bool = False
    """Run all draws again."""
    format: Literal["table", "json"] = "table"
    """Print tables, or one JSON object per study."""

    def run(self) -> int:
        """Run the draws, count, and draw the pictures.

        **Returns:** the exit status: 1 if a claim that must hold, or a control, fails
        in more than 5% of the draws, or if a number is nan; otherwise 0.
        """
        if self.draws < 1 or self.first < 0:
            raise ValueError(
                "--draws must be at least 1 and --first at least 0, but they are "
                f"{self.draws} and {self.first}"
            )
        studies = [study_named(name) for name in self.studies or names()]
        robust = [self._one(study) for study in studies]
        return 0 if all(robust) else EXIT_FAILED

    def _one(self, study: Study) -> bool:
        config = study.Config() if self.full else study.quick
        talk = self.format == "table"
        if talk:
            print(f"{study.name}: {self.draws} draws", flush=True)
        with (
            stages(lambda line: print(f"  {line}", flush=True), None)
            if talk
            else (contextlib.nullcontext(silent)) as log
        ):
            rows = robustness.run(
                study,
                config,
                range(self.first, self.first + self.draws),
                self.out / study.name,
                overwrite=self.overwrite,
                log=log,
            )
        found = robustness.summary(study, config, rows)
        folder = self.out / study.name
        (folder / robustness.SUMMARY).write_text(json.dumps(found, indent=1) + "\n")
        plotting.save(robustness.plot(study.name, rows), folder / robustness.PICTURE)
        if talk:
            _print(rows)
            print(f"picture: {folder / robustness.PICTURE}")
        else:
            print(json.dumps(found, indent=1))
        return bool(found["robust"])


def parse(arguments: list[str]) -> RobustnessCommand:
    """Parse the options of the command."""
    return parsed(RobustnessCommand, "robustness", arguments)


def _print(rows: list[robustness.Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False)
    table.add_column("claim", overflow="fold")
    for head in ("holds", "not applicable", "fails", "nan", "robust"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            row.statement if row.must_hold else f"(informs) {row.statement}",
            *(
                str(row.count(*verdicts))
                for verdicts in (("holds",), ("not applicable",), ("fails", "missing"), ("nan",))
            ),
            "yes" if row.robust else "NO",
        )
    Console().print(table)
    for row in rows:
        if not row.robust:
            for root, reason in row.reasons.items():
                print(f"  root seed {root}, {row.verdicts[root]}: {row.statement}: {reason}")
