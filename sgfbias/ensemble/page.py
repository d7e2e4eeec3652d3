"""The page that shows the progress of a sweep and loads itself anew while it runs.

It is one file without a server: whoever runs `sgfbias status --html` writes it, and a
browser reads it from disk.
"""

from __future__ import annotations

import os
import time
from html import escape
from pathlib import Path
from typing import Any

from sgfbias.ensemble.bar import in_words
from sgfbias.study.report import STYLE

MOST = 1000  # cells on the page; with more of them, those that need attention come first


def write(state: dict[str, Any], target: Path, *, refresh: float) -> None:
    """Write the page at once and whole, so that no browser reads a part of it.

    **Arguments:**

    - `state`: what `status` returns.
    - `target`: path of the page; a file that is there is replaced.
    - `refresh`: the seconds after which the page loads itself anew.

    **Raises:** `OSError` if the file cannot be written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.write_text(render(state, refresh=refresh, now=time.time()), encoding="utf-8")
    part.replace(target)


def finished(state: dict[str, Any]) -> bool:
    """Whether no run of the sweep is left."""
    return not state["running"] and state["done"] + state["failed"] == state["runs"]


def render(state: dict[str, Any], *, refresh: float, now: float) -> str:
    """The page as HTML, for a state that was read at the time `now`, in seconds since
    1970. A sweep that is finished gives a page that stays as it is.
    """
    ended = finished(state)
    word = "finished" if ended else "running" if state["running"] else "not running"
    cells, left = _shown(state["cells"])
    rows = "\n".join(_row(cell) for cell in cells)
    more = f"<p>{left:,} more cells are not shown.</p>" if left else ""
    again = "" if ended else f'<meta http-equiv="refresh" content="{refresh:g}">\n'
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{again}<title>{_percent(state)} of {escape(state["experiment"])}, {word}</title>
<style>{STYLE}{OWN_STYLE}</style>
</head>
<body>
<header>
<h1>Sweep of {escape(state["experiment"])} <span class="word {word[:3]}">{word}</span></h1>
{_bar(state)}
<dl>
{_facts(state)}
</dl>
</header>
<table>
<thead><tr><th>cell</th><th>runs ended</th><th>diverged</th><th>failed</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
{more}
<p class="note">Written at {clock}<span id="age" data-written="{now:.0f}"></span>.
{"" if ended else AGAIN}</p>
<script>{SCRIPT if not ended else ""}</script>
</body>
</html>
"""


def _shown(cells: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The cells to show, and how many are left out."""
    if len(cells) > MOST:
        cells = sorted(cells, key=lambda cell: _calm(cell))
    return cells[:MOST], max(len(cells) - MOST, 0)


def _calm(cell: dict[str, Any]) -> int:
    """0 for a cell that failed, and larger the less it needs to be looked at."""
    if cell["failed"]:
        return 0
    return 1 if cell["running"] else 2 if cell["diverged"] else 3


def _percent(state: dict[str, Any]) -> str:
    return f"{100 * (state['done'] + state['failed']) // max(state['runs'], 1)}%"


def _facts(state: dict[str, Any]) -> str:
    """The totals of the sweep, each with its name."""
    settled = state["done"] + state["failed"]
    facts = {
        "runs ended": f"{settled:,} of {state['runs']:,} ({_percent(state)})",
        "diverged": f"{state['diverged']:,}",
        "failed": f"{state['failed']:,}",
    }
    if settled < state["runs"]:
        facts["time left"] = in_words(state["seconds_left"])
    if state["rate"] is not None:
        facts["speed"] = f"{state['rate']:,.1f} runs/s"
    if state["by"]:
        facts["worked on by"] = state["by"]
    return "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )


def _row(cell: dict[str, Any]) -> str:
    values = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in cell["point"].items()
    }
    point = ", ".join(
        f'<span class="axis">{escape(f"{name} = {value}")}</span>' for name, value in values.items()
    )
    note = '<span class="word run">running</span>' if cell["running"] else ""
    if cell["error"]:
        note += f'<p class="error">{escape(cell["error"])}</p>'
    return (
        f"<tr><td>{point or 'the only cell'} {note}</td>"
        f"<td>{cell['done'] + cell['failed']:,} of {cell['runs']:,}{_bar(cell)}</td>"
        f"<td>{_count(cell['diverged'], 'diverged')}</td>"
        f"<td>{_count(cell['failed'], 'failed')}</td></tr>"
    )


def _count(number: int, kind: str) -> str:
    return f'<b class="{kind}">{number:,}</b>' if number else "0"


def _bar(counts: dict[str, Any]) -> str:
    """A bar of the runs that ended well, diverged and failed."""
    parts = {
        "well": counts["done"] - counts["diverged"],
        "diverged": counts["diverged"],
        "failed": counts["failed"],
    }
    spans = "".join(
        f'<span class="{kind}" style="width:{100 * number / max(counts["runs"], 1):.3f}%"></span>'
        for kind, number in parts.items()
        if number
    )
    words = ", ".join(f"{number:,} {kind}" for kind, number in parts.items())
    return f'<div class="bar" role="img" aria-label="{words}">{spans}</div>'


AGAIN = (
    "The page loads itself anew. If its age grows, nobody writes it any more: run "
    "<code>sgfbias status STORE --html --watch</code>."
)
SCRIPT = """
const age = document.getElementById("age");
const tell = () => {
  const s = Math.max(0, Math.round(Date.now() / 1000 - age.dataset.written));
  age.textContent = ", " + (s < 120 ? s + " s" : Math.round(s / 60) + " min") + " ago";
};
tell(); setInterval(tell, 1000);
"""
OWN_STYLE = """
:root { --well: #2f7fc1; --diverged: #d59a1b; --failed: #cc3d3d; }
@media (prefers-color-scheme: dark) {
  :root { --well: #5ea3e0; --diverged: #e5b54a; --failed: #ee6a6a; }
}
h1 { overflow-wrap: anywhere; }
.word {
  font-size: 0.8rem; font-weight: 600; padding: 0.1rem 0.5rem; border-radius: 1rem;
  vertical-align: middle; color: var(--faint); background: var(--card); white-space: nowrap;
}
.word.run { color: var(--link); border: 1px solid; }
.word.fin { color: var(--good); background: var(--good-back); }
.word.not { color: var(--warn); background: var(--warn-back); }
dl { display: flex; flex-wrap: wrap; gap: 0.6rem 2rem; margin: 1rem 0; }
dt { color: var(--faint); font-size: 0.82rem; }
dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums; }
.bar {
  display: flex; height: 0.5rem; margin-top: 0.3rem; border-radius: 0.25rem;
  overflow: hidden; background: var(--line);
}
header .bar { height: 0.9rem; margin-top: 0.8rem; border-radius: 0.45rem; }
.bar .well { background: var(--well); }
.bar .diverged { background: var(--diverged); }
.bar .failed { background: var(--failed); }
b.diverged { color: var(--warn); }
b.failed, .error { color: var(--bad); }
.axis { white-space: nowrap; }
.error { font-size: 0.85rem; }
td { font-variant-numeric: tabular-nums; }
td:nth-child(1) { width: 50%; }
td:nth-child(n+3), th:nth-child(n+3) { text-align: right; }
@media (max-width: 45rem) {
  table { display: table; }
  th, td { padding: 0.35rem 0.3rem; font-size: 0.85rem; overflow-wrap: break-word; }
  dl { gap: 0.5rem 1.2rem; }
}
"""
