"""`sgfbias reproduce`: studies into one folder, each in its own subfolder, and one page of them all."""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from sgfbias import report
from sgfbias.core.claim import Claim
from sgfbias.execute import STORE, differences, execute, paper_config, stored_report
from sgfbias.studies import STUDIES, study_named

EXIT_CLAIM_FAILED = 1
EXIT_DID_NOT_RUN = 2


@dataclasses.dataclass(frozen=True)
class ReproduceCommand:
    """Run all studies, or those named, each into its own subfolder, and write a page of them all, index.html. Run again, it does what is missing."""

    studies: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of studies; by default all."""
    out: Path = Path("results/reproduce")
    """Folder of the page and of the studies' subfolders."""
    paper: bool = False
    """The published sizes, for the studies that have one."""
    overwrite: bool = False
    """Run again what is there already."""
    verbose: bool = False
    """Print every stage, and tracebacks."""


def run_reproduce(command: ReproduceCommand) -> int:
    """Run the studies and write the page; returns the exit status: 0, 1 if a claim that must hold fails, else 2 if a study could not be run."""
    configs: dict[str, Callable[[], Any]] = {}
    for name in command.studies or STUDIES:
        if name not in STUDIES:
            study_named(name)  # refuses it
        configs[name] = lambda name=name: _config(name, command.paper)
    return reproduce(configs, command.out, overwrite=command.overwrite, verbose=command.verbose)


def _config(name: str, paper: bool) -> Any:
    return paper_config(name) if paper and hasattr(study_named(name), "PAPER") else study_named(name).Config()


def reproduce(configs: Mapping[str, Callable[[], Any]], out: Path, *, overwrite: bool = False, verbose: bool = False) -> int:
    """Run the studies of `configs`, name -> what makes its config, into `out`, and write the page after each; see `run_reproduce`."""
    claim_failed = did_not_run = False
    for name, make in configs.items():
        folder = out / name
        try:
            state, found = _one(name, make(), folder, overwrite, verbose)
        except Exception as error:  # one study must not take the others with it
            did_not_run = True
            if not isinstance(error, _OtherConfigError):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / report.ERROR).write_text(traceback.format_exc())
            print(f"{name:16s} did not run: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if verbose:
                traceback.print_exc()
        else:
            claims = [Claim(**row) for row in found["claims"]]
            broken = [claim for claim in claims if claim.broken]
            claim_failed = claim_failed or bool(broken)
            counts = report.counts(claims)
            print(f"{name:16s} {state:8s} {found['provenance'].get('seconds', '?'):>8s} s   {counts}", flush=True)
            for claim in broken:
                print(f"  a claim that must hold fails: {claim.statement}: {claim.measured} ({claim.reason})", file=sys.stderr, flush=True)
        page = report.write(out)
    print(f"page {page}")
    return EXIT_CLAIM_FAILED if claim_failed else EXIT_DID_NOT_RUN if did_not_run else 0


class _OtherConfigError(ValueError):
    """What is there was run with another config: neither to be replaced unasked, nor what was asked for."""


def _one(name: str, config: Any, folder: Path, overwrite: bool, verbose: bool) -> tuple[str, dict[str, Any]]:
    """`("ran" or "was there", its report)`."""
    found = None if overwrite else stored_report(folder)
    if found is not None:
        changed = differences(found["config"], config)
        if changed:
            raise _OtherConfigError(f"{folder} holds a run with another config ({'; '.join(changed)}); --overwrite replaces it")
        (folder / report.ERROR).unlink(missing_ok=True)
        return "was there", found

    def say(line: str) -> None:
        if verbose:
            print(f"  {line}", flush=True)

    # A store without a whole report is of a run that was cut off.
    outcome = execute(name, config, folder, overwrite=overwrite or (folder / STORE).exists(), say=say)
    (folder / report.ERROR).unlink(missing_ok=True)
    jax.clear_caches()  # the next study compiles programs of its own
    return "ran", outcome.report
