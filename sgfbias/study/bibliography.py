"""The bibliography: the entries of all `references.bib` files, by their keys.

The package has one such file, and a system may have one of its own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from sgfbias.study.registry import PACKAGE, places

FILE = "references.bib"
MOST_NAMED = 4  # A paper with more authors is cited as "et al."


@functools.cache
def bibliography() -> Mapping[str, str]:
    """The BibTeX text of every entry, by its key.

    If a key occurs twice, the package's own entry is used.
    """
    found: dict[str, str] = {}
    for folder in (PACKAGE, *(place.parent for place in places().values())):
        if (folder / FILE).is_file():
            parts = re.split(
                r"^(?=@)", (folder / FILE).read_text(encoding="utf-8"), flags=re.MULTILINE
            )[1:]
            found = {re.match(r"@\w+\{([^,\s]+),", part)[1]: part.strip() for part in parts} | found  # type: ignore[index]
    return found


def source(key: str, where: str = "") -> str:
    """The source of a claim in words: the authors and the year of a paper.

    `source("pesme2021", "theorem 1")` gives "Pesme, ... 2021, theorem 1".

    **Arguments:**

    - `key`: key of the entry in a `references.bib`.
    - `where`: place in the paper, such as a theorem or an equation; added to the text.

    **Returns:** the text. If a paper has more than four authors, only the first is
    named.

    **Raises:** `ValueError` if no `references.bib` has this key.
    """
    entry = bibliography().get(key)
    if entry is None:
        raise ValueError(
            f"no references.bib has an entry {key!r}; add the entry to the file of the package, "
            "or of the study's system"
        )
    authors, year = (
        re.search(rf"^\s*{field} = \{{(.+)\}}", entry, re.MULTILINE) for field in ("author", "year")
    )
    names = (
        [name.split(",")[0].strip("{} ") for name in authors[1].split(" and ")]
        if authors
        else [key]
    )
    shown = ", ".join(names) if len(names) <= MOST_NAMED else f"{names[0]} et al."
    return " ".join(filter(None, (shown, year and year[1]))) + (f", {where}" if where else "")
