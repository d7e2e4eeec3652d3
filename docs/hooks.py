"""What MkDocs is helped with: sections of README.md inside pages, files beside it, and formulas as MathML, so that no page needs the network."""

from __future__ import annotations

import html
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r"^<!-- (readme|file): (.+?) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
SHIPPED = (
    "notebooks/*",
    "benchmarks/*.py",
    "benchmarks/results/*.json",
    "CITATION.cff",
)  # what README.md links to, and the site has as it is
PAGES = {"benchmarks/results/": "benchmarks.md", "benchmarks/README.md": "benchmarks.md"}


def sections(text: str) -> dict[str, str]:
    """The sections of a Markdown file by heading of the second level; "start" is what stands before the first."""
    parts = re.split(r"^## (.+)$", re.sub(r"^# .+\n", "", text, count=1), flags=re.MULTILINE)
    return {"start": parts[0].strip(), **{name.strip(): body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}}


def included(kind: str, what: str, depth: int) -> str:
    """A section of README.md, or a file of the repository (nothing if it is not there), with links as seen from a page at that depth.

    **Raises:** `ValueError` for a section that README.md does not have.
    """
    if kind == "file":
        path = ROOT / what
        text = re.sub(r"^# .+\n", "", path.read_text(encoding="utf-8"), count=1).strip() if path.is_file() else ""
        return relinked(text, depth, path.relative_to(ROOT).parent.as_posix())
    known = sections((ROOT / "README.md").read_text(encoding="utf-8"))
    if what not in known:
        raise ValueError(f"README.md has no section {what!r}, which a page includes; there are {', '.join(known)}")
    return relinked(known[what], depth, ".")


def relinked(text: str, depth: int, folder: str) -> str:
    """The text with relative links, which start at `folder` of the repository, as seen from a page at that depth; what the site does not
    have is no longer a link."""

    def one(found: re.Match[str]) -> str:
        mark, words, link = found.groups()
        target = PAGES.get(path := f"{folder}/{link}".removeprefix("./"), path)
        known = path in PAGES or target.startswith("docs/") or any(PurePosixPath(target).match(pattern) for pattern in SHIPPED)
        return f"{mark}[{words}]({'../' * depth}{target.removeprefix('docs/')})" if known else words

    return LINK.sub(one, text)


def on_files(files: Any, config: Any) -> Any:
    """Add what README.md links to."""
    from mkdocs.structure.files import File

    for pattern in SHIPPED:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in what a page includes."""
    depth = page.file.src_uri.count("/")
    return INCLUDE.sub(lambda found: included(found[1], found[2], depth), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show by themselves."""
    from latex2mathml.converter import convert

    def one(found: re.Match[str]) -> str:
        return convert(html.unescape(found[3]).strip(), display="block" if found[2] == "[" else "inline")

    return FORMULA.sub(one, content)
