"""How often the claims of a study hold: the whole study is run on other draws, each
with its own root seed.

The claims of every draw are kept in a file of their own, so an interrupted run goes on
where it was.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sgfbias.study.claim import Claim
from sgfbias.study.execute import differences
from sgfbias.study.frame import Log, Study, silent
from sgfbias.study.plotting import Figure, new_figure

LEAST = 0.95  # share of the draws in which a claim that must hold does not fail
SUMMARY, PICTURE = "robustness.json", "robustness.png"


class Row(NamedTuple):
    """How one claim fared.

    - `statement`: what is claimed.
    - `must_hold`, `control`: as in a `Claim`.
    - `verdicts`: root seed of a draw -> "holds", "fails", "not applicable", "nan" if a
      number of the claim is not a number, or "missing" if the draw had no such claim.
    - `reasons`: root seed -> why the claim failed or did not apply, with what was
      measured.
    """

    statement: str
    must_hold: bool
    control: bool
    verdicts: Mapping[int, str]
    reasons: Mapping[int, str]

    def count(self, *verdicts: str) -> int:
        """Number of draws with one of these verdicts."""
        return sum(verdict in verdicts for verdict in self.verdicts.values())

    @property
    def robust(self) -> bool:
        """Whether the claim, if it must hold or is a control, does not fail in at least
        95% of the draws, and is a number in all.
        """
        if not (self.must_hold or self.control):
            return self.count("nan") == 0
        allowed = math.floor((1 - LEAST) * len(self.verdicts) + 1e-9)
        return self.count("nan") == 0 and self.count("fails", "missing") <= allowed


def run(
    study: Study,
    config: Any,
    roots: Sequence[int],
    folder: Path,
    *,
    overwrite: bool = False,
    log: Log = silent,
) -> list[Row]:
    """Run a study once for each root seed, and count how often its claims hold.

    **Arguments:**

    - `study`: the study.
    - `config`: its settings, without the root seed.
    - `roots`: the root seeds.
    - `folder`: folder for one file of claims per draw. Draws that it holds already are
      not run again.
    - `overwrite`: whether to run all draws again.
    - `log`: a function that is called with one line per draw.

    **Returns:** a row for each claim. A study that raises an error in a draw has the
    row "The study runs".

    **Raises:** `ValueError` if the folder holds draws with other settings and
    `overwrite` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, list[Claim]] = {}
    for root in roots:
        here = dataclasses.replace(config, root_seed=root)
        file = folder / f"root_{root}.json"
        stored = None if overwrite else _stored(file, here)
        if stored is None:
            stored = _draw(study, here)
            file.write_text(json.dumps(stored, indent=1) + "\n")
        found[root] = [Claim(**row) for row in stored["claims"]]
        broken = [claim.statement for claim in found[root] if claim.broken]
        log(
            f"root seed {root}: "
            + (f"{len(broken)} fail: {'; '.join(broken)}" if broken else "all hold")
        )
    return rows_of(found)


def _draw(study: Study, config: Any) -> dict[str, Any]:
    """The claims of one draw, as they are stored."""
    try:
        claims: Sequence[Claim] = study.claims(study.run(config))
    except Exception as error:
        claims = [
            Claim(
                "The study runs",
                "",
                "no error",
                type(error).__name__,
                "",
                "fails",
                reason=str(error),
            )
        ]
    return {
        "config": dataclasses.asdict(config),
        "claims": [dataclasses.asdict(claim) for claim in claims],
    }


def _stored(file: Path, config: Any) -> dict[str, Any] | None:
    try:
        stored = json.loads(file.read_text())
        changed = differences(stored["config"], config)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if changed:
        raise ValueError(
            f"{file} holds a draw with other settings ({'; '.join(changed)}); use those settings, "
            "another --out, or --overwrite to run it again"
        )
    return stored


def rows_of(found: Mapping[int, Sequence[Claim]]) -> list[Row]:
    """The rows of the claims of several draws, in the order in which they first appear.

    **Arguments:**

    - `found`: root seed -> the claims of that draw.
    """
    statements = dict.fromkeys(claim.statement for claims in found.values() for claim in claims)
    rows = []
    for statement in statements:
        same = {
            root: next((claim for claim in claims if claim.statement == statement), None)
            for root, claims in found.items()
        }
        known = [claim for claim in same.values() if claim is not None]
        rows.append(
            Row(
                statement,
                any(claim.must_hold for claim in known),
                any(claim.control for claim in known),
                {root: _verdict(claim) for root, claim in same.items()},
                {
                    root: "; ".join(filter(None, (claim.measured, claim.reason)))
                    for root, claim in same.items()
                    if claim is not None and _verdict(claim) != "holds"
                },
            )
        )
    return rows


def _verdict(claim: Claim | None) -> str:
    if claim is None:
        return "missing"
    numbers = f"{claim.predicted} {claim.measured} {claim.tolerance}"
    if claim.verdict != "not applicable" and re.search(r"\bnan\b", numbers, re.IGNORECASE):
        return "nan"
    return claim.verdict


def summary(study: Study, config: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """What is kept of all draws of a study, for the page of the documentation."""
    settings = dataclasses.asdict(config)
    settings.pop("root_seed")
    return {
        "study": study.name,
        "config": json.loads(json.dumps(settings, default=str)),
        "roots": sorted({root for row in rows for root in row.verdicts}),
        "robust": all(row.robust for row in rows),
        "claims": [
            {
                "statement": row.statement,
                "must_hold": row.must_hold,
                "control": row.control,
                "robust": row.robust,
                **{
                    verdict: row.count(verdict)
                    for verdict in ("holds", "fails", "not applicable", "nan", "missing")
                },
                "reasons": {str(root): text for root, text in row.reasons.items()},
            }
            for row in rows
        ],
    }


COLOUR = {
    "holds": "#1b70b7",
    "not applicable": "#bdbdbd",
    "fails": "#d95f02",
    "nan": "#c23b8f",
    "missing": "#ffffff",
}


def plot(name: str, rows: Sequence[Row]) -> Figure:
    """A picture with a row for each claim and a column for each draw."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    roots = list(rows[0].verdicts)
    kinds = list(COLOUR)
    figure, axes = new_figure(1, 1, size=(7 + 0.22 * len(roots), 1.6 + 0.32 * len(rows)))
    panel = axes[0, 0]
    panel.imshow(
        [[kinds.index(row.verdicts[root]) for root in roots] for row in rows],
        cmap=ListedColormap(list(COLOUR.values())),
        vmin=-0.5,
        vmax=len(kinds) - 0.5,
        aspect="auto",
    )
    panel.set_yticks(range(len(rows)), [_short(row) for row in rows], fontsize=7)
    panel.set_xticks(range(len(roots)), [str(root) for root in roots], fontsize=7)
    panel.set_xticks([k - 0.5 for k in range(1, len(roots))], minor=True)
    panel.set_yticks([k - 0.5 for k in range(1, len(rows))], minor=True)
    panel.grid(which="minor", color="white", linewidth=1)
    panel.tick_params(which="both", length=0)
    panel.set_xlabel("root seed of the draw")
    panel.set_title(f"{name}: the claims on {len(roots)} draws", loc="left", fontsize=10)
    seen = {verdict for row in rows for verdict in row.verdicts.values()}
    figure.legend(
        handles=[
            Patch(facecolor=COLOUR[kind], edgecolor="#888888", label=kind)
            for kind in kinds
            if kind in seen
        ],
        loc="outside lower right",
        ncols=len(kinds),
        fontsize=7,
        frameon=False,
    )
    return figure


def _short(row: Row, length: int = 90) -> str:
    text = row.statement if row.must_hold else f"(informs) {row.statement}"
    return text if len(text) <= length else text[: length - 1].rsplit(" ", 1)[0] + " …"
