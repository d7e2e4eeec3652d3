"""`sgfbias cite`: prints the BibTeX entries to cite for a study or a store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from sgfbias.cli import parsed
from sgfbias.core.names import did_you_mean
from sgfbias.study import store
from sgfbias.study.citing import cite
from sgfbias.study.registry import find, names


@dataclasses.dataclass(frozen=True)
class CiteCommand:
    """Print the BibTeX entries to cite for a study or a store."""

    what: Annotated[str, tyro.conf.Positional]
    """Name of a study, or path of a store that `sgfbias run` or `sweep` wrote."""
    verbose: bool = False
    """Also print the traceback of an error."""

    def run(self) -> int:
        """Print the entries.

        **Raises:** `ValueError` if `what` is neither a study nor a store.
        """
        from sgfbias.ensemble.status import is_sweep, open_sweep

        try:
            find(self.what)
        except ValueError as error:
            if not Path(self.what).exists():
                raise ValueError(
                    f"{self.what!r} is neither a store nor a study; "
                    f"{did_you_mean(self.what, names())}the studies are {', '.join(names())}"
                ) from error
            print(cite(open_sweep(self.what) if is_sweep(self.what) else store.load(self.what)))
            return 0
        print(cite(self.what))
        return 0


def parse(arguments: list[str]) -> CiteCommand:
    """Parse the options of the command."""
    return parsed(CiteCommand, "cite", arguments)
