"""The page of the explorer: a file of HTML, style and script with its data inside.

`sgfbias explore` serves it and computes what its controls ask for; an exported page has
the pictures of a grid inside and needs nobody.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from sgfbias.diagonal.explore.compute import explore
from sgfbias.diagonal.explore.controls import config_of, controls, exported
from sgfbias.diagonal.explore.picture import picture

FIRST = "first.json"  # the picture at the defaults, as `python -m ...explore.app` stores it


def live() -> str:
    """The page that asks its server for pictures.

    It opens with a stored picture, which it says, and replaces it by the computed one.
    """
    first = json.loads(_part(FIRST))
    return _page({"live": True, "controls": controls(), "pictures": [first]})


def answer(values: dict[str, Any]) -> dict[str, Any]:
    """The picture for the values of the controls.

    **Raises:** `ValueError` for values that make no sense.
    """
    return picture(explore(config_of(values)))


def export(log: Callable[[str], None] = print) -> str:
    """A page that needs no server and no Python: it has the pictures of a grid inside.

    **Arguments:**

    - `log`: is told in words how far the computation is.
    """
    shown = exported()
    names = [control["name"] for control in shown]
    grid = list(itertools.product(*(control["values"] for control in shown)))
    pictures = []
    for number, place in enumerate(grid, 1):
        values = dict(zip(names, place, strict=True))
        words = ", ".join(f"{name} {value}" for name, value in values.items())
        log(f"picture {number} of {len(grid)}: {words}")
        pictures.append(answer(values))
    return _page({"live": False, "controls": shown, "pictures": pictures})


def _part(name: str) -> str:
    return (files("sgfbias.diagonal.explore") / name).read_text(encoding="utf-8")


def _page(data: dict[str, Any]) -> str:
    """The page with its style, script and data inside."""
    # In a script element only "<" could end the data.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = _part("page.html")
    for place, part in (
        ("/* STYLE */", _part("page.css")),
        ("/* CHART */", _part("chart.js")),
        ("/* SCRIPT */", _part("page.js")),
        ("DATA", text),
    ):
        page = page.replace(place, part, 1)
    return page


if __name__ == "__main__":
    (files("sgfbias.diagonal.explore") / FIRST).write_text(json.dumps(answer({})) + "\n")  # type: ignore[attr-defined]
