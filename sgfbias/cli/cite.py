"""`sgfbias cite`: prints the BibTeX entries to cite for studies and stores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from sgfbias.cli import parsed
from sgfbias.core.names import did_you_mean
from sgfbias.study import store
from sgfbias.study.citing import cite
from sgfbias.study.registry import find, names


@dataclasses.dataclass(frozen=True)
class CiteCommand:
    """Print the BibTeX entries to cite for studies and stores, each entry once."""

    what: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names of studies, and paths of stores that `sgfbias run` or `sweep` wrote."""
    verbose: bool = False
    """Also print the traceback of an error."""

    def run(self) -> int:
        """Print the entries.

        **Raises:** `ValueError` if nothing is named, or something that is neither a
        study nor a store.
        """
        if not self.what:
            raise ValueError(
                "name what to cite, a study or a store: sgfbias cite NAME; sgfbias list shows the "
                "studies"
            )
        print(cite(*map(_thing, self.what)))
        return 0


def _thing(what: str) -> Any:
    """What `cite` takes: the name of a study, or the dataset of a store.

    **Raises:** `ValueError` if `what` is neither a study nor a store.
    """
    from sgfbias.ensemble.status import is_sweep, open_sweep

    try:
        find(what)
    except ValueError as error:
        if not Path(what).exists():
            raise ValueError(
                f"{what!r} is neither a store nor a study; {did_you_mean(what, names())}the "
                f"studies are {', '.join(names())}"
            ) from error
        return open_sweep(what) if is_sweep(what) else store.load(what)
    return what


def parse(arguments: list[str]) -> CiteCommand:
    """Parse the options of the command."""
    return parsed(CiteCommand, "cite", arguments)
