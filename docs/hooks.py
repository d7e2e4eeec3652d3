"""Hooks of MkDocs. They put sections of README.md into pages, add files that README.md
links to, and write formulas as MathML, so that no page needs the network.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r"^<!-- (readme|file): (.+?) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
ROW = re.compile(r"<tr>\s*<td>(.*?)</td>\s*<td>(.*?)</td>\s*</tr>", re.DOTALL)
TABLE = re.compile(r"<table>\s*<thead>.*?</thead>\s*<tbody>(.*?)</tbody>\s*</table>", re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# README.md links to these files, and the site contains them unchanged.
SHIPPED = (
    "notebooks/*",
    "benchmarks/*.py",
    "benchmarks/pictures/*",
    "benchmarks/results/*.json",
    "CITATION.cff",
)
GLOSSARY = "glossary.md"
PAGES = {
    "benchmarks/results": "benchmarks.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/NOTES.md": "benchmark_notes.md",
}


def sections(text: str) -> dict[str, str]:
    """Split a Markdown file at its second-level headings.

    Each section is listed under its heading. The text before the first heading is
    listed under "start".
    """
    parts = re.split(r"^## (.+)$", re.sub(r"^# .+\n", "", text, count=1), flags=re.MULTILINE)
    return {
        "start": parts[0].strip(),
        **{name.strip(): body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)},
    }


def included(kind: str, what: str, depth: int) -> str:
    """Return a section of README.md or the text of files of the repository, with links
    adapted to a page at the given depth.

    **Arguments:**

    - `kind`: `"readme"` for a section of README.md, `"file"` for files.
    - `what`: the heading of the section, or a path, in which * and ** act as in a glob.
      A path that matches no file gives an empty text.
    - `depth`: how many folders the page lies below the root of the site.

    **Raises:** `ValueError` for a section that README.md does not have.
    """
    if kind == "file":
        texts = []
        for path in sorted(ROOT.glob(what)):
            text = re.sub(r"^# .+\n", "", path.read_text(encoding="utf-8"), count=1).strip()
            texts.append(relinked(text, depth, path.relative_to(ROOT).parent.as_posix()))
        return "\n\n".join(texts)
    known = sections((ROOT / "README.md").read_text(encoding="utf-8"))
    if what not in known:
        raise ValueError(
            f"README.md has no section {what!r}, which a page includes; its sections are "
            f"{', '.join(known)}"
        )
    return relinked(known[what], depth, ".")


def relinked(text: str, depth: int, folder: str) -> str:
    """Adapt the relative links of a text from `folder` of the repository to a page at
    the given depth. A link to something that the site does not have becomes plain text.
    """

    def one(found: re.Match[str]) -> str:
        mark, words, link = found.groups()
        target = PAGES.get(path := posixpath.normpath(f"{folder}/{link}"), path)
        known = (
            path in PAGES
            or target.startswith("docs/")
            or any(PurePosixPath(target).match(pattern) for pattern in SHIPPED)
        )
        return f"{mark}[{words}]({'../' * depth}{target.removeprefix('docs/')})" if known else words

    return LINK.sub(one, text)


def guides() -> dict[str, Path]:
    """Return the guide page of every system that has one, by the system's folder."""
    return {path.parent.name: path for path in sorted(ROOT.glob("sgfbias/*/guide.md"))}


def on_config(config: Any) -> Any:
    """Put the guide page of every system into the navigation, before the gallery."""
    place = next((k for k, entry in enumerate(config.nav) if "Gallery" in entry), len(config.nav))
    config.nav.insert(
        place,
        {"Systems": [{_title(path): f"systems/{name}.md"} for name, path in guides().items()]},
    )
    return config


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def on_files(files: Any, config: Any) -> Any:
    """Add the files that README.md links to, and the guide page of every system."""
    from mkdocs.structure.files import File

    for name, path in guides().items():
        files.append(File.generated(config, f"systems/{name}.md", abs_src_path=str(path)))

    for pattern in SHIPPED:
        # A run of a script leaves folders beside it, such as __pycache__.
        for path in sorted(path for path in ROOT.glob(pattern) if path.is_file()):
            files.append(
                File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
            )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace each include comment of a page by the text that it includes."""
    depth = page.file.src_uri.count("/")
    return INCLUDE.sub(lambda found: included(found[1], found[2], depth), markdown)


def terms(content: str) -> str:
    """Return a page with each row of its tables as a section of its own: the first cell
    as a heading, and the second as a paragraph.

    The search then finds each term by itself, with its explanation. It would take a
    table as one text, in which the rows run together. A link can point at a term.
    """

    def section(row: re.Match[str]) -> str:
        term, said = (cell.strip() for cell in row.groups())
        words = html.unescape(re.sub(r"<[^>]+>", "", term))
        place = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        link = f'<a class="headerlink" href="#{place}" title="Permanent link">&para;</a>'
        return f'<div><h3 id="{place}">{term}{link}</h3><p>{said}</p></div>'

    return TABLE.sub(lambda t: f'<div class="terms">{ROW.sub(section, t[1])}</div>', content)


def on_page_content(content: str, page: Any = None, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without JavaScript. Pictures load
    when they come into view. The terms of the glossary become sections.
    """
    from latex2mathml.converter import convert

    def one(found: re.Match[str]) -> str:
        # The converter does not know the command for "arg".
        formula = html.unescape(found[3]).strip().replace(r"\arg\min", r"\operatorname{argmin}")
        if found[2] == "(":
            shown = convert(formula)
            # The search takes the letters of a formula one after another, which would
            # turn a fraction or a power into another number.
            upright = not any(tag in shown for tag in ("<mfrac", "<msup", "<msubsup", "<msqrt"))
            return shown if upright else shown.replace("<math", "<math data-search-exclude", 1)
        return f'<div class="formula">{convert(formula, display="block")}</div>'

    if page is not None and page.file.src_uri == GLOSSARY:
        content = terms(content)
    return FORMULA.sub(one, content).replace("<img ", '<img loading="lazy" ')
