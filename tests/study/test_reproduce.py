"""Tests of `sgfbias reproduce` and `run --paper` on studies that cost nothing: what is
run, kept and refused, and what the page shows.
"""

import dataclasses
import html.parser
import json
import sys
import types

import numpy as np
import pytest

from sgfbias import cli, study
from sgfbias.study import plotting, registry, report, store
from sgfbias.study.registry import Entry


@dataclasses.dataclass(frozen=True)
class FakeConfig(study.Config):
    """Options."""

    size: int = 3
    """How many numbers."""
    level: float = 0.1
    """What they are."""
    words: tuple[str, ...] = ("<i>", "b")
    """Texts."""


def fake(name, paper=None):
    """A module with the interface of a study. With `level` above 1 its claim fails, and
    with a negative `size` it raises an error.
    """
    module = types.ModuleType(name.replace("-", "_"))

    def measure(config, log):
        module.runs += 1
        log("running")
        if config.size < 0:
            raise ValueError(f"size must be <positive>, but is {config.size}")
        out = study.Columns()
        out.add("values", ("n",), np.full(config.size, config.level), "1")
        return out

    def claims(dataset, config):
        level = float(dataset["values"][0])
        shown = f"{level} < <script>alert(1)</script>"
        made = study.claim(
            "values & levels",
            "Nobody <2000>",
            predicted="'small'",
            measured=shown,
            tolerance="1",
            holds=level < 1,
            reason="too <large>",
        )
        informs = study.control("large", "", holds=level > 1, must_hold=False)
        return [made, informs, study.not_applicable("nothing", "", "no data")]

    def plot(dataset, config):
        figure, panels = plotting.panels(columns=1, size=(2, 1))
        panels[0].plot(dataset["values"])
        return figure

    module.runs, module.measure, module.claims, module.plot, module.Config = (
        0,
        measure,
        claims,
        plot,
        FakeConfig,
    )
    module.REFERENCES = {"pesme2021": "its <theory>"}
    if paper is not None:
        module.PAPER = paper
    return module


def with_default(**changes):
    """The class `FakeConfig` with other defaults."""
    fields = [
        (field.name, field.type, changes.get(field.name, field.default))
        for field in dataclasses.fields(FakeConfig)
    ]
    return dataclasses.make_dataclass("FakeConfig", fields, bases=(study.Config,), frozen=True)


@pytest.fixture
def studies(monkeypatch):
    """Two studies, and no others. The second has a published size."""
    made = {"first": fake("first"), "second-one": fake("second-one", FakeConfig(size=7))}
    found = {
        f"all.{name}": Entry(f"all.{name}", module.__name__, "Is <b>a & b</b> what it seems?", name)
        for name, module in made.items()
    }
    monkeypatch.setattr(registry, "entries", lambda: found)
    for module in made.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


class Page(html.parser.HTMLParser):
    """A parsed page: its tags with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def reproduce(tmp_path, *options):
    return cli.main(["reproduce", *options, "--out", str(tmp_path / "all")])


@pytest.mark.slow
def test_the_page_has_everything_escaped_and_stands_alone(studies, tmp_path, capsys):
    assert reproduce(tmp_path) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [
        ["first", "ran"],
        ["second-one", "ran"],
    ]
    assert "1 hold, 1 fail but only inform, 1 not applicable" in out.splitlines()[1]
    page = Page(tmp_path / "all" / "index.html")
    for words in (
        "Is <b>a & b</b> what it seems?",
        "0.1 < <script>alert(1)</script>",
        "Nobody <2000>",
        "no data",
        "negative control",
        '["<i>", "b"]',
        "float64",
        "% for its <theory>",
        "@inproceedings{pesme2021",
        "2 studies: 2 hold",
    ):
        assert words in page.text, words
    assert not page.all("script")
    assert not page.all("b")
    links = [a["href"] for a in page.all("a")] + [a["src"] for a in page.all("img")]
    assert not page.all("link")
    anchors = {f"#{a['id']}" for a in page.all("section")}
    assert anchors == {"#first", "#second-one"}
    for link in links:
        assert link in anchors or (tmp_path / "all" / link).is_file(), link
    assert {a["class"] for a in page.all("td") if "class" in a} == {
        "holds",
        "informs",
        "not-applicable",
        "number",
    }
    assert "prefers-color-scheme: dark" in (tmp_path / "all" / "index.html").read_text()


def test_what_is_there_is_kept_and_a_cut_off_run_is_made_again(studies, tmp_path, capsys):
    assert reproduce(tmp_path) == reproduce(tmp_path) == 0
    assert [study.runs for study in studies.values()] == [1, 1]
    assert "was there" in capsys.readouterr().out
    (tmp_path / "all" / "first" / "claims.json").write_text("{")
    assert reproduce(tmp_path, "first") == 0
    assert [study.runs for study in studies.values()] == [2, 1]
    # The page also shows the study that was not named.
    assert len(Page(tmp_path / "all" / "index.html").all("section")) == 2
    assert reproduce(tmp_path, "--overwrite") == 0
    assert [study.runs for study in studies.values()] == [3, 2]


def test_the_published_size_where_there_is_one(studies, tmp_path, capsys):
    assert reproduce(tmp_path, "--paper") == 0
    sizes = {
        name: store.load(tmp_path / "all" / name / "study.zarr").sizes["n"] for name in studies
    }
    assert sizes == {"first": 3, "second-one": 7}
    text = Page(tmp_path / "all" / "index.html").text
    assert "default" in text
    assert "published" in text
    # Without --paper another config is asked for. The existing results are neither
    # replaced nor shown as those that were asked for.
    assert reproduce(tmp_path) == 2
    assert "size is 7 there, but 3 was asked for" in capsys.readouterr().err
    assert studies["second-one"].runs == 1
    assert len(Page(tmp_path / "all" / "index.html").all("img")) == 2
    assert reproduce(tmp_path, "--overwrite") == 0


def test_the_quick_size_and_the_time(studies, tmp_path, capsys):
    for name, module in studies.items():
        module.QUICK = FakeConfig(size=2 if name == "first" else 1)
    assert reproduce(tmp_path, "--quick") == 0
    assert "2 studies at the quick size\n" in capsys.readouterr().out
    sizes = [store.load(tmp_path / "all" / name / "study.zarr").sizes["n"] for name in studies]
    assert sizes == [2, 1]
    assert reproduce(tmp_path, "--quick", "--paper") == 2
    assert "but not both" in capsys.readouterr().err


def test_one_that_raises_does_not_take_the_others_with_it(studies, tmp_path, capsys):
    studies["first"].Config = with_default(size=-1)
    assert reproduce(tmp_path) == 2
    assert (
        "first            did not run: ValueError: size must be <positive>"
        in capsys.readouterr().err
    )
    page = Page(tmp_path / "all" / "index.html")
    assert "1 did not run: first" in page.text
    assert "Traceback" in page.text
    assert len(page.all("img")) == 1
    studies["first"].Config = FakeConfig
    assert reproduce(tmp_path) == 0
    assert "did not run" not in Page(tmp_path / "all" / "index.html").text


def test_a_claim_that_fails_is_status_1_now_and_when_it_is_kept(
    studies, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(studies["first"], "Config", with_default(level=2.0))
    for state in ("ran", "was there"):
        assert reproduce(tmp_path) == 1
        printed = capsys.readouterr()
        assert f"first            {state}" in printed.out
        assert "a claim that must hold fails: values & levels: 2.0" in printed.err
    page = Page(tmp_path / "all" / "index.html")
    assert "too <large>" in page.text
    # One cell is in the summary, and one in the study's own table.
    assert [a.get("class") for a in page.all("td")].count("fails") == 2


def test_unknown_names_are_refused_before_anything_runs(studies, tmp_path, capsys):
    assert reproduce(tmp_path, "first", "spam") == 2
    assert "no study 'spam'" in capsys.readouterr().err
    assert studies["first"].runs == 0


def test_run_starts_from_the_published_size_and_flags_change_it(studies, tmp_path, capsys):
    def run(*options):
        status = cli.main(["run", *options, "--overwrite", "--out", str(tmp_path)])
        return status, json.loads((tmp_path / "claims.json").read_text())["config"]

    status, config = run("second-one", "--paper", "--level", "0.5")
    assert (status, config["size"], config["level"]) == (0, 7, 0.5)
    status, config = run("second-one", "--paper", "--size", "2")
    assert (status, config["size"], config["level"]) == (0, 2, 0.1)
    assert run("second-one")[1]["size"] == 3
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "first", "--paper", "--out", str(tmp_path / "other")])
    assert stop.value.code == 2
    assert "'first' has no published size" in capsys.readouterr().err


def test_an_empty_folder_makes_an_empty_page(studies, tmp_path):
    assert "0 studies: no claims" in Page(report.write(tmp_path / "new")).text
