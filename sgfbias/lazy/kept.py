"""The runs of `scaling` that are done, in a folder, so that a call that was interrupted
continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgfbias.core.fingerprint import fingerprint
from sgfbias.ensemble.disk import StoreError, read_json, refused, write_json

MARK, VERSION = "scaling.json", 1


class Kept:
    """A folder with one file for each run, named after all that the run is made of.

    **Arguments:**

    - `folder`: the folder, made if it does not exist.

    **Raises:** `StoreError` for a folder that holds something else, or that cannot be
    written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        mark = self.folder / MARK
        if read_json(mark) == {"version": VERSION}:
            return
        try:
            taken = self.folder.exists() and (
                not self.folder.is_dir() or any(self.folder.iterdir())
            )
        except OSError as error:
            raise refused(self.folder, error) from error
        if taken and not mark.exists():
            raise StoreError(
                f"{self.folder} holds something else than runs of `scaling`: give a folder that "
                "does not exist or is empty as `store`"
            )
        write_json(mark, {"version": VERSION})

    def name(self, *parts: Any) -> str:
        """The name of a run that is made of `parts`.

        **Raises:** `ValueError` for functions whose content cannot be told.
        """
        return fingerprint(parts, "a run of `scaling`")

    def read(self, name: str) -> dict[str, float] | None:
        """The numbers of a run, or None if it is not there or its file is damaged."""
        return read_json(self.folder / f"{name}.json")

    def write(self, name: str, numbers: dict[str, float]) -> None:
        """Keep the numbers of a run."""
        write_json(self.folder / f"{name}.json", numbers)
