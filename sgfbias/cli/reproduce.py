"""`sgfbias reproduce`: runs studies and writes one HTML page about all of them."""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from sgfbias.cli import EXIT_BAD_INPUT, EXIT_FAILED, parsed
from sgfbias.cli.bar import stages
from sgfbias.ensemble.driver import SweepInterrupted
from sgfbias.study import report
from sgfbias.study.claim import Claim
from sgfbias.study.execute import STORE, differences, execute, stored_report
from sgfbias.study.frame import Study, silent, study_named
from sgfbias.study.registry import names


@dataclasses.dataclass(frozen=True)
class ReproduceCommand:
    """Run all studies, or the named ones, and write one HTML page about them.

    Each study gets a subfolder of its own, and the page is index.html.

    If the command is run again, it keeps finished studies and runs the missing ones. To
    run a study with other options, use `sgfbias run NAME`.
    """

    studies: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of the studies to run; by default all studies."""
    out: Path = Path("results/reproduce")
    """Folder for the page and for one subfolder per study."""
    paper: bool = False
    """Use the published size of each study that has one."""
    quick: bool = False
    """Use a size that takes some seconds for each study."""
    overwrite: bool = False
    """Run finished studies again, and replace their results."""
    verbose: bool = False
    """Print each stage of a study, and the tracebacks of errors."""

    def run(self) -> int:
        """Run the studies and write the page.

        **Returns:** the exit status: 1 if a claim that must hold fails, otherwise 2 if
        a study could not be run, otherwise 0.
        """
        if self.paper and self.quick:
            raise ValueError("give --paper or --quick, but not both")
        return reproduce(
            [study_named(name) for name in self.studies or names()],
            self.out,
            paper=self.paper,
            quick=self.quick,
            overwrite=self.overwrite,
            verbose=self.verbose,
        )


def parse(arguments: list[str]) -> ReproduceCommand:
    """Parse the options of the command."""
    return parsed(ReproduceCommand, "reproduce", arguments)


def reproduce(
    studies: Sequence[Study],
    out: Path,
    *,
    paper: bool = False,
    quick: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
) -> int:
    """Run studies into subfolders of a folder, and write the page after each of them.

    **Arguments:**

    - `studies`: the studies.
    - `out`: the folder.
    - `paper`: whether to use the published size of each study that has one.
    - `quick`: whether to use a size that takes some seconds for each study.
    - `overwrite`: whether to run finished studies again.
    - `verbose`: whether to print each stage, and the tracebacks of errors.

    **Returns:** the exit status of `ReproduceCommand.run`.
    """
    claim_failed = did_not_run = False
    print(_plan(studies, paper=paper, quick=quick), flush=True)
    for position, study in enumerate(studies, 1):
        name = study.name
        folder = out / name
        try:
            config = (
                study.quick
                if quick
                else study.paper
                if paper and study.has_paper
                else study.Config()
            )
            # The bar says which study runs. Lines of its own would fill the page.
            expected = None if quick or paper else study.entry.seconds
            with stages(silent, expected) as line:
                line(f"{position} of {len(studies)}: {name}")
                state, found = _one(study, config, folder, overwrite, verbose)
        except SweepInterrupted:
            raise  # The user asked to stop; the study itself did not fail.
        except Exception as error:  # The failure of one study must not stop the others.
            did_not_run = True
            if not isinstance(error, _OtherConfigError):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / report.ERROR).write_text(traceback.format_exc())
            print(
                f"{name:16s} did not run: {type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )
            if verbose:
                traceback.print_exc()
        else:
            claims = [Claim(**row) for row in found["claims"]]
            broken = [claim for claim in claims if claim.broken]
            claim_failed = claim_failed or bool(broken)
            counts = report.counts(claims)
            print(
                f"{name:16s} {state:8s} {found['provenance'].get('seconds', '?'):>8s} s   {counts}",
                flush=True,
            )
            for claim in broken:
                print(
                    f"  a claim that must hold fails: {claim.told}",
                    file=sys.stderr,
                    flush=True,
                )
        page = report.write(out)
    print(f"page: {page}")
    return EXIT_FAILED if claim_failed else EXIT_BAD_INPUT if did_not_run else 0


def _plan(studies: Sequence[Study], *, paper: bool, quick: bool) -> str:
    """The number of studies and their size, with the time that they take if known."""
    size = "quick" if quick else "published" if paper else "default"
    count = "1 study" if len(studies) == 1 else f"{len(studies)} studies"
    times = [study.entry.seconds for study in studies]
    known = [seconds for seconds in times if seconds is not None]
    about = ""
    if size == "default" and known:
        about = f", about {max(1, round(sum(known) / 60))} min on two CPU cores"
    return f"{count} at the {size} size{about}"


class _OtherConfigError(ValueError):
    """The folder holds results with another config. They are not what was asked for,
    and may be replaced only with `overwrite`.
    """


def _one(
    study: Study, config: Any, folder: Path, overwrite: bool, verbose: bool
) -> tuple[str, dict[str, Any]]:
    """Run one study, unless its results are there already.

    **Returns:** "ran" or "was there", and the study's report.
    """
    found = None if overwrite else stored_report(folder)
    if found is not None:
        changed = differences(found["config"], config)
        if changed:
            raise _OtherConfigError(
                f"{folder} holds a run with another config ({'; '.join(changed)}); pass "
                "--overwrite to replace it"
            )
        (folder / report.ERROR).unlink(missing_ok=True)
        return "was there", found

    def log(line: str) -> None:
        if verbose:
            print(f"  {line}", flush=True)

    # A store without a complete report is of an interrupted run, so it is replaced.
    outcome = execute(
        study, config, folder, overwrite=overwrite or (folder / STORE).exists(), log=log
    )
    (folder / report.ERROR).unlink(missing_ok=True)
    # The next study compiles its own functions, so these are not needed any more.
    jax.clear_caches()
    return "ran", outcome.report
