"""Write the page `robustness.md`: on how many draws the claims of the studies hold.

`python docs/robustness.py` writes the page from the files in `docs/robustness/`, and
`python docs/robustness.py FOLDER` first takes over the counts of `sgfbias robustness
--out FOLDER`. `tests/house/test_docs.py` checks that the page agrees with the files.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("robustness.md")
COUNTS = Path(__file__).with_name("robustness")
HEAD = """# Claims on other draws

A claim that was looked at on one draw of the data and of the noise says little. Here
every study was run again with other root seeds, from which everything random in it
comes: the data, the starts, the paths and the resampling. The runs have the quick size
(`sgfbias run NAME --quick`). A claim that must hold, and a negative control, may fail
in one of twenty draws, and no number of a claim may be NaN; the table says how many
draws there were. The claims of a study that is missing here have not been counted since
they last changed.

`sgfbias robustness NAME` makes the counts again; it also draws a picture of them.
"""


def page() -> str:
    """The page, from the stored counts."""
    studies = [json.loads(path.read_text()) for path in sorted(COUNTS.glob("*.json"))]
    lines = [
        HEAD,
        "| study | draws | claims | claims that failed on some draw | robust |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| [{study['study']}](#{_anchor(study['study'])}) | {len(study['roots'])} | "
            f"{len(study['claims'])} | {sum(bool(_failed(c)) for c in study['claims'])} | "
            f"{'yes' if study['robust'] else '**no**'} |"
            for study in studies
        ),
    ]
    for study in studies:
        lines += [
            "",
            f"## {study['study']}",
            "",
            "| claim | holds | not applicable | fails |",
            "| --- | --- | --- | --- |",
            *(
                f"| {_words(claim)} | {claim['holds']} | {claim['not applicable']} | "
                f"{_failed(claim)} |"
                for claim in study["claims"]
            ),
        ]
        reasons = [
            f"- *{_words(claim)}*, root seed {root}: {reason}"
            for claim in study["claims"]
            for root, reason in claim["reasons"].items()
            if _failed(claim) and reason
        ]
        if reasons:
            lines += ["", "Where they did not hold:", "", *reasons]
    return "\n".join(lines) + "\n"


def _failed(claim: dict[str, Any]) -> int:
    return claim["fails"] + claim["nan"] + claim["missing"]


def _words(claim: dict[str, Any]) -> str:
    words = claim["statement"].replace("|", "\\|")
    return words if claim["must_hold"] else f"(informs) {words}"


def _anchor(name: str) -> str:
    return name.replace(".", "")


if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        for path in sorted(folder.glob("*/robustness.json")):
            shutil.copy(path, COUNTS / f"{path.parent.name}.json")
    PAGE.write_text(page(), encoding="utf-8")
