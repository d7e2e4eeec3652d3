"""`sgfbias new`: a new system or study to start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sgfbias.cli import parsed
from sgfbias.study.scaffold import new_study, new_system


@dataclasses.dataclass(frozen=True)
class NewCommand:
    """Write a new system or a new study that runs and passes its tests, to start from.

    Run it in the top folder of a checkout of sgfbias. docs/add-a-system.md says how to
    go on.
    """

    kind: Annotated[Literal["system", "study"], tyro.conf.Positional]
    """Write a system, with its own folder and main study; or a study of a system."""
    name: Annotated[str, tyro.conf.Positional]
    """The name of the system, such as margin; or of the study, such as margin.rates."""
    root: Path = Path()
    """The top folder of the checkout. The default is the current folder."""
    verbose: bool = False
    """Print a traceback if something is refused."""

    def run(self) -> int:
        """Write the files, and print which they are and what to do next."""
        write = new_system if self.kind == "system" else new_study
        for path in write(self.name, self.root):
            print(f"wrote {path}")
        system = self.name.partition(".")[0]
        print(
            "\nAll in these files is an example: replace it by what is yours.\n"
            f"Try it:   sgfbias run {self.name.replace('_', '-')}\n"
            f"Test it:  make test ONLY={system} && make check\n"
            "Go on:    docs/add-a-system.md"
        )
        return 0


def parse(arguments: list[str]) -> NewCommand:
    """The command with its options."""
    return parsed(NewCommand, "new", arguments)
