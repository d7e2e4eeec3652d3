"""The page of a sweep: it says what the store says while the sweep runs, loads itself
anew, is read from disk without any other file, and fits a phone.
"""

import contextlib
import html.parser
import re
import time

import chromium
import pytest
import sweep_experiments as experiments

from sgfbias import cli
from sgfbias.ensemble import page
from sgfbias.ensemble.status import status


def sweep():
    """Three cells: one is fine, one diverges, one raises an error."""
    return experiments.small(diverge_at=0.5, fail_at=2.0)


class Words(html.parser.HTMLParser):
    """The words of a page by row of its table, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.words, self.loads, self.refresh = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        self.loads += [attrs[name] for name in ("src", "href") if name in attrs]
        if attrs.get("http-equiv") == "refresh":
            self.refresh = attrs["content"]

    def handle_data(self, data):
        self.words.append(data)
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())


def told(path):
    """The page of a store, written by the command and read."""
    assert cli.main(["status", str(path), "--html", "--interval", "1"]) == 0
    return Words(path.with_suffix(".html").read_text())


def test_the_page_says_what_the_store_says_and_ends_its_refreshing(tmp_path, capsys):
    path, seen = tmp_path / "runs.zarr", []

    def look(state):
        read = told(path)
        there = status(path)
        assert there["running"]
        assert read.refresh == "1"
        assert read.loads == []  # one file that needs no other
        seen.append(there["done"] + there["failed"])
        text = " ".join(read.words)
        assert f"{seen[-1]} of {there['runs']}" in text
        assert ("time left" in text) == (seen[-1] < there["runs"])

    sweep().run(path, progress=look)
    assert len(set(seen)) >= 3
    assert (tmp_path / "runs.html").as_uri() in capsys.readouterr().out

    read, there = told(path), status(path)
    assert read.refresh is None
    assert "finished" in read.words
    assert min(there["failed"], there["diverged"]) > 0
    for cell in there["cells"]:
        row = next(r for r in read.rows if r and r[0] == f"a = {cell['point']['a']:.4g}")
        counts = f"{cell['runs']} of {cell['runs']}"
        found = row[row.index(counts) :][:3]
        assert found == [counts, str(cell["diverged"]), str(cell["failed"])]
        assert cell["error"] == "" or cell["error"] in row
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == []


def test_texts_are_escaped_and_cells_that_failed_come_first_where_there_are_many():
    fine = {"done": 2, "runs": 2, "failed": 0, "diverged": 0, "running": False, "error": ""}
    cells = [fine | {"point": {"a": k}} for k in range(page.MOST + 5)]
    cells[-1] = cells[-1] | {"failed": 2, "done": 0, "error": "<script>x</script>"}
    totals = {key: sum(cell[key] for cell in cells) for key in ("done", "runs", "failed")}
    state = {"experiment": "a<b", "cells": cells, "diverged": 0, "running": False, "by": ""}
    text = page.render(state | totals | {"rate": None, "seconds_left": None}, refresh=1, now=0)
    read = Words(text)
    assert "<script>x" not in text
    assert "a<b" in " ".join(read.words)
    assert read.rows[1][0] == f"a = {page.MOST + 4}"
    assert "5 more cells are not shown." in read.words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--watch"], "give it with --html"),
        (["--html", "--interval", "0"], "--interval must be a positive number of seconds"),
        (["--html"], "cannot be read as a sweep"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, capsys, words, message):
    assert cli.main(["status", str(tmp_path / "none.zarr"), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(chromium.program() is None, reason="there is no Chromium to look with")
def test_a_browser_shows_the_page_and_it_changes_by_itself(tmp_path):
    path = tmp_path / "runs.zarr"
    with contextlib.ExitStack() as stack:
        tab = stack.enter_context(chromium.open_page("about:blank", size=(1280, 900)))
        shown = []

        def look(state):
            if len(shown) > 1:
                return
            told(path)
            if not shown:
                tab.call("Page.navigate", url=path.with_suffix(".html").as_uri())
            there = status(path)
            settled = there["done"] + there["failed"]
            tab.wait(
                f"document.body?.innerText.includes('{settled} of {there['runs']}')", seconds=30
            )
            shown.append(settled)

        sweep().run(path, progress=look)
        assert shown[0] < shown[1]  # the second came without a call to the browser
        told(path)
        tab.wait("document.title.endsWith('finished')", seconds=30)
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=420, height=800, deviceScaleFactor=1, mobile=True,
        )  # fmt: skip
        tab.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark"}],
        )
        tab.wait("innerWidth == 420", seconds=10)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 420
        colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", colour)[:3])) < 64
        assert tab.errors == []


def test_a_watch_writes_until_the_sweep_is_finished(tmp_path, monkeypatch, capsys):
    """Between two parts of a sweep it waits; the second part runs while it does."""
    path, waits = tmp_path / "runs.zarr", []
    sweep().run(path, share=(0, 2))

    def wait(seconds):
        waits.append(seconds)
        read = Words(path.with_suffix(".html").read_text())
        assert (read.refresh, "not running" in read.words) == ("3", True)
        monkeypatch.undo()
        sweep().run(path, share=(1, 2))

    monkeypatch.setattr(time, "sleep", wait)
    assert cli.main(["status", str(path), "--html", "--watch", "--interval", "3"]) == 0
    assert waits == [3.0]
    assert Words(path.with_suffix(".html").read_text()).refresh is None
    assert capsys.readouterr().out.count("page: file://") == 1
