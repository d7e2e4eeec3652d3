"""Hook of MkDocs that writes the gallery: every study's picture, the question that it
asks, and the answer that its stored results give.

Everything is read from the files in `docs/results/` and `docs/robustness/`, and from
the file `answers.toml` of each system. A system without that file has its questions,
pictures and counts on the page, and no sentence in answer.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "sgfbias"
MARK = "<!-- gallery -->"
LINK = re.compile(r"\[([^\]]+)\]\(study:([\w.-]+)\)")


class Told(NamedTuple):
    """What the stored files tell of a study.

    - `question`: what it asks.
    - `claims`: its claims, as stored.
    - `draws`: on how many draws the claims were counted at the quick size; 0 if the
      claims are those of one run at the default size.
    - `picture`: whether there is a picture.
    """

    question: str
    claims: list[dict[str, Any]]
    draws: int
    picture: bool


def stored() -> dict[str, Told]:
    """What is known of every study whose question is stored, by its name.

    A run at the default size counts before the counts on other draws.
    """
    found = {}
    for name, question in json.loads((HERE / "results" / "questions.json").read_text()).items():
        run, counts = (HERE / folder / f"{name}.json" for folder in ("results", "robustness"))
        report = next((json.loads(p.read_text()) for p in (run, counts) if p.exists()), {})
        picture = (HERE / "results" / f"{name}.png").exists()
        found[name] = Told(
            question, report.get("claims", []), len(report.get("roots", [])), picture
        )
    return found


def answers() -> dict[str, dict[str, Any]]:
    """The answers that the systems give, by the study: `answer`, a sentence, and
    `rests_on`, words of the claims without which it would not be true.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(PACKAGE.glob("*/answers.toml")):
        found |= tomllib.loads(path.read_text(encoding="utf-8"))
    return found


def holds(claim: dict[str, Any]) -> bool:
    """Whether a stored claim holds: in the run; or on some of the draws, with a failure
    on at most one of twenty.
    """
    if "verdict" in claim:
        return claim["verdict"] == "holds"
    failed = claim["fails"] + claim["nan"] + claim["missing"]
    return claim["holds"] > 0 and 20 * failed <= claim["holds"] + claim["not applicable"] + failed


def unsupported(answer: dict[str, Any], claims: list[dict[str, Any]]) -> list[str]:
    """What an answer rests on and the claims do not say: no claim has these words, or
    one that has them does not hold.
    """
    said = {words: [c for c in claims if words in c["statement"]] for words in answer["rests_on"]}
    return [words for words, having in said.items() if not having or not all(map(holds, having))]


def counted(told: Told) -> str:
    """How many claims hold, in a sentence, with the statements of those that do not."""
    if not told.claims:
        return "No results are stored."
    hold = [claim for claim in told.claims if holds(claim)]
    size = (
        f"in at least 95% of {told.draws} draws, at the quick size"
        if told.draws
        else "at the default size"
    )
    parts = [f"{len(hold)} of {len(told.claims)} claims hold {size}"]
    if controls := sum(claim["control"] for claim in hold):
        parts.append(f"negative controls among them: {controls}")
    rest = [claim for claim in told.claims if not holds(claim)]
    idle = [claim for claim in rest if claim.get("verdict") == "not applicable"]
    for words, claims in (("not so", [c for c in rest if c not in idle]), ("not applicable", idle)):
        if claims:
            parts.append(f"{words}: " + ", ".join(f"“{plain(c['statement'])}”" for c in claims))
    return "; ".join(parts) + "."


def plain(text: str) -> str:
    """A text with the characters escaped that mean something in Markdown."""
    return re.sub(r"([*_`$<>|\[\]\\])", r"\\\1", text)


def anchor(name: str) -> str:
    """The anchor of a study's heading on a page."""
    return name.replace(".", "")


def cards() -> str:
    """The cards of all studies, those with a picture first."""
    known, said = stored(), answers()
    order = sorted(known, key=lambda name: not known[name].picture)
    shown = (_card(name, known[name], said.get(name)) for name in order)
    return "\n\n".join(['<div class="gallery" markdown>', *shown, "</div>"])


def _card(name: str, told: Told, answer: dict[str, Any] | None) -> str:
    parts = [f"## {name}"]
    if told.picture:
        picture = f"![The picture of the study {name}](results/{name}.png)"
        parts.append(f"[{picture}](results/{name}.png)")
    parts.append(plain(told.question))
    if answer and told.claims and not unsupported(answer, told.claims):
        parts.append(f"**{answer['answer']}**")
    page = "robustness" if told.draws else "studies"
    more = f" [All claims]({page}.md#{anchor(name)})." if told.claims else ""
    parts.append(f"{counted(told)}{more}\n{{ .counts }}")
    return "\n\n".join(["<div markdown>", *parts, "</div>"])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the gallery into its page, and let links to studies, `[words](study:NAME)`,
    lead to it. A link to a study that the gallery lacks becomes plain text.
    """
    if MARK in markdown:
        markdown = markdown.replace(MARK, cards())
    known = stored() if LINK.search(markdown) else {}
    up = "../" * page.file.src_uri.count("/")
    return LINK.sub(
        lambda found: (
            f"[{found[1]}]({up}gallery.md#{anchor(found[2])})" if found[2] in known else found[1]
        ),
        markdown,
    )
