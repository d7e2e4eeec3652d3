"""Write the page `studies.md`: what the studies ask, their pictures, and what each of
their claims came to at the default size.

`python docs/studies.py` writes the page from the files in `docs/results/`, after it has
stored there what the studies ask, and which stored settings are not the default.
`python docs/studies.py FOLDER` first takes over the results of `sgfbias reproduce --out
FOLDER`. `tests/house/test_docs.py` checks that the page agrees with the files.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from sgfbias.study.frame import study_named
from sgfbias.study.registry import find, names

PAGE = Path(__file__).with_name("studies.md")
RESULTS = Path(__file__).with_name("results")
QUESTIONS = RESULTS / "questions.json"
HEAD = """# Studies

A study simulates, compares the result with theory, and ends with claims. A claim names
its source and can fail; a *control* is a claim that the test of another claim fails
where it should. This page was written from the results of `sgfbias reproduce`, which
runs every study at its default size. [Claims on other draws](robustness.md) says how
often the claims hold when everything is drawn anew. A study that is missing here has
not been run at its default size since its claims last changed.

`sgfbias run NAME` runs one study, `sgfbias run NAME --quick` a small version of it, and
`sgfbias run NAME --help` shows its options. `sgfbias cite NAME` prints what to cite.
"""
KEPT = ("versions", "device", "precision", "created")


def take(folder: Path) -> None:
    """Take over the reports and pictures of a folder of `sgfbias reproduce`."""
    for name in names():
        if not (folder / name / "claims.json").exists():
            continue
        report = json.loads((folder / name / "claims.json").read_text())
        provenance = {key: report["provenance"].get(key, "") for key in KEPT}
        kept = {key: report[key] for key in ("study", "config", "claims")}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(
            json.dumps({**kept, "provenance": provenance}, indent=1) + "\n"
        )
        shutil.copy(folder / name / "study.png", RESULTS / f"{name}.png")


def refresh() -> None:
    """Store the question of every study there is, and write into the stored results
    which of their settings are not the default. The page then needs no study.
    """
    known = {name: find(name).question for name in names()}
    QUESTIONS.write_text(json.dumps(known, indent=1) + "\n")
    for path in filter(Path.exists, (RESULTS / f"{name}.json" for name in known)):
        report = json.loads(path.read_text())
        path.write_text(json.dumps(report | {"changed": changed(report)}, indent=1) + "\n")


def changed(report: dict[str, Any]) -> dict[str, Any]:
    """The settings of stored results that are not the default of the study."""
    default = json.loads(
        json.dumps(dataclasses.asdict(study_named(report["study"]).Config()), default=str)
    )
    return {
        field: value
        for field, value in report["config"].items()
        if field != "study" and default.get(field) != value
    }


def page() -> str:
    """The page, from the stored results."""
    lines = [HEAD, "| study | question | claims |", "| --- | --- | --- |"]
    questions = json.loads(QUESTIONS.read_text())
    reports = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in questions
        if (RESULTS / f"{name}.json").exists()
    }
    for name, report in reports.items():
        lines.append(
            f"| [`{name}`](#{name.replace('.', '')}) | {questions[name]} | "
            f"{_counts(report['claims'])} |"
        )
    for name, report in reports.items():
        lines += ["", *_section(name, questions[name], report)]
    return "\n".join(lines) + "\n"


def _counts(claims: list[dict[str, Any]]) -> str:
    hold = sum(claim["verdict"] == "holds" for claim in claims)
    return f"{hold} of {len(claims)} hold"


def _section(name: str, question: str, report: dict[str, Any]) -> list[str]:
    other = report["changed"]
    return [
        f"## {name}",
        "",
        question,
        "",
        f"![The picture of the study {name}](results/{name}.png)",
        "",
        *([f"Settings that are not the default: {other}.", ""] if other else []),
        "| claim | measured | tolerance | verdict |",
        "| --- | --- | --- | --- |",
        *(
            "| "
            + " | ".join(
                text.replace("|", "\\|")
                for text in (
                    claim["statement"],
                    "; ".join(filter(None, (claim["measured"], claim["reason"]))),
                    claim["tolerance"],
                    claim["verdict"] + ("" if claim["must_hold"] else " (informs)"),
                )
            )
            + " |"
            for claim in report["claims"]
        ),
    ]


if __name__ == "__main__":
    for source in map(Path, sys.argv[1:]):
        take(source)
    refresh()
    PAGE.write_text(page(), encoding="utf-8")
