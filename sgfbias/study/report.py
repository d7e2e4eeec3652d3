"""Writes one static HTML page about the studies in a folder.

The page shows the pictures, claims, configs, provenance and citations. It needs no
network and no scripts.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from sgfbias.study.citing import cite
from sgfbias.study.claim import Claim
from sgfbias.study.execute import PICTURE, STORE, differences, stored_report
from sgfbias.study.frame import study_named
from sgfbias.study.registry import find, names

ERROR = "error.txt"
PAGE = "index.html"


class Entry(NamedTuple):
    """A study on the page.

    - `name`, `question`: its name and the question that it asks.
    - `report`: the content of `claims.json`; None if the study did not run.
    - `claims`: its claims.
    - `error`: why it did not run, or an empty text.
    """

    name: str
    question: str
    report: dict[str, Any] | None
    claims: Sequence[Claim]
    error: str


def write(folder: Path) -> Path:
    """Write the page `index.html` about the studies in a folder.

    **Arguments:**

    - `folder`: the folder with one subfolder for each study, named after it. A
      subfolder without a complete report and without an error is left out.

    **Returns:** the path of the page.
    """
    entries = [_entry(name, folder / name) for name in names() if (folder / name).is_dir()]
    entries = [entry for entry in entries if entry.report is not None or entry.error]
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / PAGE
    page.write_text(render(entries), encoding="utf-8")
    return page


def _entry(name: str, folder: Path) -> Entry:
    """The entry of a study whose results or error lie in `folder`."""
    error = (
        (folder / ERROR).read_text(encoding="utf-8", errors="replace")
        if (folder / ERROR).is_file()
        else ""
    )
    report = None if error else stored_report(folder)
    claims = [] if report is None else [Claim(**row) for row in report["claims"]]
    return Entry(name, find(name).question, report, claims, error)


def counts(claims: Iterable[Claim]) -> str:
    """How many claims hold, fail or do not apply, in words. Failed claims that only
    inform are counted separately.
    """
    number = collections.Counter(_state(claim) for claim in claims)
    words = {
        "holds": "hold",
        "fails": "FAIL",
        "informs": "fail but only inform",
        "not-applicable": "not applicable",
    }
    return (
        ", ".join(f"{number[state]} {text}" for state, text in words.items() if number[state])
        or "no claims"
    )


def _state(claim: Claim) -> str:
    """The CSS class of a claim: "holds", "fails", "informs" or "not-applicable"."""
    if claim.verdict == "fails":
        return "fails" if claim.must_hold else "informs"
    return claim.verdict.replace(" ", "-")


def render(entries: Sequence[Entry]) -> str:
    """The page as HTML. All texts of the studies are escaped."""
    claims = [claim for entry in entries for claim in entry.claims]
    lost = [entry.name for entry in entries if entry.report is None]
    lead = f"{len(entries)} {'study' if len(entries) == 1 else 'studies'}: {counts(claims)}" + (
        f"; {len(lost)} did not run: {', '.join(lost)}" if lost else ""
    )
    rows = "\n".join(_summary(entry) for entry in entries)
    sections = "\n".join(_section(entry) for entry in entries)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sgfbias: studies and their claims</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>Studies and their claims</h1>
<p>{escape(lead)}.</p>
</header>
<table class="summary">
<thead><tr><th>study</th><th>question</th><th>claims</th><th>size</th><th>time</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
{sections}
</body>
</html>
"""


def _summary(entry: Entry) -> str:
    """The row of a study in the table at the top of the page."""
    name = escape(entry.name)
    broken = entry.report is None or any(claim.broken for claim in entry.claims)
    verdict = "did not run" if entry.report is None else counts(entry.claims)
    return (
        f'<tr><td><a href="#{name}">{name}</a></td><td>{escape(entry.question)}</td>'
        f'<td class="{"fails" if broken else "holds"}">{escape(verdict)}</td>'
        f'<td data-name="size">{escape(_size(entry))}</td>'
        f'<td data-name="time" class="number">{escape(_seconds(entry))}</td></tr>'
    )


def _size(entry: Entry) -> str:
    """The config of the run: "default", "published" or "other"."""
    if entry.report is None:
        return ""
    study = study_named(entry.name)
    for words, config in (
        ("default", study.Config()),
        ("published", study.paper if study.has_paper else None),
    ):
        if config is not None and not differences(entry.report["config"], config):
            return words
    return "other"


def _seconds(entry: Entry) -> str:
    seconds = "" if entry.report is None else str(entry.report["provenance"].get("seconds", ""))
    return f"{seconds} s" if seconds else ""


def _section(entry: Entry) -> str:
    """The section of a study, with its picture, claims, config and provenance."""
    name = escape(entry.name)
    head = f'<section id="{name}">\n<h2>{name}</h2>\n<p>{escape(entry.question)}</p>'
    if entry.report is None:
        return (
            f'{head}\n<p class="fails">It did not run.</p>\n'
            f"<pre>{escape(entry.error)}</pre>\n</section>"
        )
    provenance = {key: value for key, value in entry.report["provenance"].items() if key != "study"}
    config = {key: value for key, value in entry.report["config"].items() if key != "study"}
    machine = f"{_seconds(entry)}, {provenance.get('device', '')}"
    return f"""{head}
<a href="{name}/{PICTURE}"><img src="{name}/{PICTURE}" alt="Picture of the study {name}"></a>
{_claims(entry.claims)}
<details><summary>Config</summary>
{_pairs(config)}
</details>
<details><summary>Provenance: {escape(machine)}</summary>
{_pairs(provenance)}
<p>The numbers are in <code>{name}/{STORE}</code>.</p>
</details>
<details><summary>What to cite</summary>
<pre>{escape(_citation(entry.name))}</pre>
</details>
</section>"""


def _citation(name: str) -> str:
    try:
        return cite(name)
    except ValueError as error:
        return str(error)


def _claims(claims: Sequence[Claim]) -> str:
    rows = "\n".join(_claim(claim) for claim in claims)
    columns = ("verdict", "claim", "predicted", "measured", "tolerance")
    heads = "".join(f"<th>{column}</th>" for column in columns)
    return f"""<table class="claims">
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>"""


def _claim(claim: Claim) -> str:
    marks = [
        word
        for word, on in (("negative control", claim.control), ("informs", not claim.must_hold))
        if on
    ]
    note = f'<p class="note">{escape(", ".join(marks))}</p>' if marks else ""
    reason = f'<p class="note">{escape(claim.reason)}</p>' if claim.reason else ""
    return (
        f'<tr><td class="{_state(claim)}">{escape(claim.verdict)}{note}</td>'
        f'<td>{escape(claim.statement)}<p class="note">{escape(claim.source)}</p></td>'
        f'<td data-name="predicted">{escape(claim.predicted)}</td>'
        f'<td data-name="measured">{escape(claim.measured)}{reason}</td>'
        f'<td data-name="tolerance">{escape(claim.tolerance)}</td></tr>'
    )


def _pairs(values: dict[str, Any]) -> str:
    """A table with one row for each key and its value."""
    texts = {
        str(key): value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
    }
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(text)}</td></tr>\n" for key, text in texts.items()
    )
    return f'<table class="pairs"><tbody>\n{rows}</tbody></table>'


STYLE = """
:root {
  color-scheme: light dark; --text: #1c1e21; --back: #ffffff; --faint: #5f6670;
  --line: #d8dce1; --card: #f5f6f8; --link: #1b5fa8; --good: #14692f; --good-back: #e0f2e5;
  --bad: #9b1c1c; --bad-back: #fbe3e3; --warn: #7a5200; --warn-back: #fbf0d5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6e8eb; --back: #15181c; --faint: #9aa3ad; --line: #363c44; --card: #1e2329;
    --link: #7db4f0; --good: #7fd99a; --good-back: #17331f; --bad: #f59a9a;
    --bad-back: #43191b; --warn: #efc66b; --warn-back: #3a2e12;
  }
}
body {
  max-width: 72rem; margin: 0 auto; padding: 1.5rem; background: var(--back);
  color: var(--text);
  font: 0.95rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.25rem; margin: 0 0 0.3rem; }
p { margin: 0.3rem 0; }
section { margin-top: 2.5rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
a { color: var(--link); }
img {
  display: block; max-width: 100%; margin: 1rem 0; padding: 0.5rem;
  box-sizing: border-box; background: #ffffff; border-radius: 6px;
}
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td {
  padding: 0.4rem 0.6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word;
}
thead th { font-weight: 600; color: var(--faint); white-space: nowrap; }
.claims { font-size: 0.87rem; table-layout: fixed; }
.claims th:nth-child(1) { width: 7rem; }
.claims th:nth-child(2) { width: 30%; }
.claims th:nth-child(5) { width: 16%; }
.summary td:first-child, .summary td:nth-child(4), .summary td:nth-child(5) {
  white-space: nowrap;
}
.summary td:nth-child(3) { min-width: 9rem; }
.pairs { font-size: 0.87rem; }
.pairs td { overflow-wrap: anywhere; }
.pairs th { width: 14rem; font-weight: 500; color: var(--faint); }
.number { text-align: right; }
.note { color: var(--faint); font-size: 0.82rem; font-weight: 400; }
.holds { color: var(--good); background: var(--good-back); font-weight: 600; }
.fails { color: var(--bad); background: var(--bad-back); font-weight: 600; }
.informs, .not-applicable {
  color: var(--warn); background: var(--warn-back); font-weight: 600;
}
p.fails { display: inline-block; padding: 0.2rem 0.6rem; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; color: var(--link); }
pre {
  padding: 0.8rem; overflow-x: auto; background: var(--card); border-radius: 6px;
  font-size: 0.82rem; line-height: 1.4;
}
/* On a narrow page the cells of a row stand below each other. */
@media (max-width: 45rem) {
  body { padding: 0.8rem; }
  thead { display: none; }
  table, tbody, tr, td, .pairs th { display: block; width: auto; }
  .summary td:nth-child(n), .claims td { min-width: 0; white-space: normal; }
  tr { padding: 0.6rem 0; border-bottom: 1px solid var(--line); }
  td, th { padding: 0.2rem 0.6rem; border: 0; }
  td:empty { display: none; }
  td[data-name]::before { content: attr(data-name) ": "; color: var(--faint); }
  .number { text-align: left; }
}
"""
