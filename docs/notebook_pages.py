"""Hook of MkDocs that makes a page of every notebook, from its stored outputs: text
stays text, code becomes a block, and pictures become files beside the page. No kernel
runs and no package is needed for it.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LINK = re.compile(r"\]\(([\w.-]+)\.ipynb(#[\w-]*)?\)")
STORED = re.compile(r"\]\((?:\.\./)+notebooks/([\w.-]+)\.ipynb")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def on_config(config: Any) -> Any:
    """Put the pages of the notebooks into the navigation, below their list."""
    pages = [f"notebooks/{path.stem}.md" for path in stored()]
    for entry in config.nav:
        if entry.get("Notebooks") == "notebooks.md":
            entry["Notebooks"] = [{"What they teach": "notebooks.md"}, *pages]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links of pages to a stored notebook lead to its page on the site."""
    depth = page.file.src_uri.count("/")
    return STORED.sub("](" + "../" * depth + r"notebooks/\1.md", markdown)


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every stored notebook, and the pictures on it."""
    from mkdocs.structure.files import File

    for path in stored():
        text, pictures = page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    return files


def stored() -> list[Path]:
    """The stored notebooks, in their order."""
    return sorted(FOLDER.glob("[0-9]*.ipynb"))


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """The Markdown page of a notebook, and its pictures by the names of their files.

    **Raises:** `ValueError` for an output that is neither text nor a PNG picture, since
    the page would lack it.
    """
    parts, pictures, section = [], {}, path.stem
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            section = ([section, *HEADING.findall(source)])[-1]
            parts.append(LINK.sub(r"](\1.md\2)", source))
            continue
        parts.append(_block(source, "python"))
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(_joined(data["image/png"]))
                alt = re.sub(r"[`$\[\]\\]", "", section)
                parts.append(f"![Picture of the section “{alt}”]({name})")
            elif "text" in output or "text/plain" in data:
                text = _joined(output.get("text", data.get("text/plain")))
                parts.append(_block(ANSI.sub("", text).rstrip("\n"), "text", ".output"))
            else:
                raise ValueError(
                    f"{path.name} has an output of type {output['output_type']} with "
                    f"{', '.join(data) or 'no data'}; its page can show text and PNG pictures only"
                )
    where = (
        f"This page shows the stored outputs of [`{path.name}`]({path.name}){{ download }}, which "
        f"was executed from the script [`{path.stem}.py`]({path.stem}.py){{ download }}."
    )
    return "\n\n".join([*parts[:1], where, *parts[1:]]) + "\n", pictures


def _block(text: str, language: str, classes: str = "") -> str:
    """A fenced block, whose fence is longer than any fence in the text."""
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall(r"`{3,}", text)), 3)
    return f"{fence}{{ .{language} {classes}}}\n{text}\n{fence}"


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
