"""Hook of MkDocs for the tables that lead from theorems to functions, `map.md` in each
system's folder: it names the papers, and documents the functions that are on no page of
the reference.

In these tables a paper is written `[@key]` with its key in a `references.bib`, and a
function `[words][path.of.the.function]`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "sgfbias"
PAGE = "theorems.md"
PAPER = re.compile(r"\[@(\w+)\]")
FUNCTION = re.compile(r"\]\[(sgfbias[\w.]*)\]")
DOCUMENTED = re.compile(r"^::: (\S+)", re.MULTILINE)


def maps() -> dict[str, str]:
    """The tables of every system that has some, by the system's folder."""
    return {
        path.parent.name: path.read_text(encoding="utf-8")
        for path in sorted(PACKAGE.glob("*/map.md"))
    }


def undocumented(text: str) -> list[str]:
    """The functions of a table that no page of the reference documents, in order."""
    pages = (path.read_text(encoding="utf-8") for path in HERE.rglob("*.md"))
    known = {name for page in pages for name in DOCUMENTED.findall(page)}
    return [name for name in dict.fromkeys(FUNCTION.findall(text)) if name not in known]


def reference(text: str) -> str:
    """The page of the reference for the functions of a table, or an empty text."""
    title = text.partition("\n")[0].removeprefix("## ")
    rest = undocumented(text)
    if not rest:
        return ""
    head = f"# {title}: theory\n\nThe functions that [theorems](../theorems.md) lead to.\n"
    return "\n".join([head, *(f"::: {name}\n" for name in rest)])


def paper(key: str) -> str:
    """Authors and year of a paper, with a link to its text if it is on arXiv.

    **Raises:** `ValueError` if no `references.bib` has the key.
    """
    from sgfbias.study.bibliography import bibliography, source

    words = source(key)
    eprint = re.search(r"^\s*eprint = \{(.+?)\}", bibliography()[key], re.MULTILINE)
    return f"[{words}](https://arxiv.org/abs/{eprint[1]})" if eprint else words


def on_config(config: Any) -> Any:
    """Put the generated pages at the end of the reference."""
    pages = [f"reference/{name}_theory.md" for name, text in maps().items() if reference(text)]
    for entry in config.nav:
        if "Reference" in entry:
            entry["Reference"] = [*entry["Reference"][:-1], *pages, entry["Reference"][-1]]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page of the reference for every system whose tables need one."""
    from mkdocs.structure.files import File

    for name, text in maps().items():
        if page := reference(text):
            files.append(File.generated(config, f"reference/{name}_theory.md", content=page))
    return files


def named(text: str) -> str:
    """The text with every `[@key]` replaced by the paper's authors and year."""
    return PAPER.sub(lambda found: paper(found[1]), text)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name the papers on the page that has the tables."""
    return named(markdown) if page.file.src_uri == PAGE else markdown
