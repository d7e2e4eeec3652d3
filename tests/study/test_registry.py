"""Tests of how studies are found: in folders and by entry points, under all their
names, and without importing them. A broken package causes a warning, and all other
studies still work.
"""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from sgfbias import cli
from sgfbias.study import registry, study_named
from sgfbias.study.registry import find, names

STUDY = '''"""Is {name} so?"""
import dataclasses
import numpy as np
from sgfbias import study
from sgfbias.study import plotting
NAME = {printed!r}
SECONDS = 2
raise_on_import = {fails}
if raise_on_import: raise RuntimeError("imported")
REFERENCES = {{"pesme2021": "all of it"}}
@dataclasses.dataclass(frozen=True)
class Config(study.Config):
    """Settings."""
    size: study.Count = 3
    """Number of values."""
def measure(config, log):
    out = study.Columns(k=np.arange(config.size))
    out.add("value", ("k",), np.ones(config.size), "1")
    return out
def claims(ds, config): return [study.claim("ones", "nobody", holds=(ds["value"] == 1).all())]
def plot(ds, config):
    figure, (panel,) = plotting.panels(columns=1)
    return figure
'''


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Install another package with studies, and a broken package, during a test."""
    folder = tmp_path / "mylab_sgf" / "studies"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text('"""What my lab studies."""\n')
    (folder / "__init__.py").write_text("")
    (folder / "first.py").write_text(STUDY.format(name="first", printed="lab-first", fails=False))
    (folder / "raises.py").write_text(STUDY.format(name="raises", printed=None, fails=True))
    (folder / "taken.py").write_text(STUDY.format(name="taken", printed="svag", fails=False))
    (folder / "broken.py").write_text("class Config(:\n")
    (folder / "odd.py").write_text("SECONDS = 5 * 60\nclass Config: ...\n")
    (folder / "helper.py").write_text("x = 1\n")
    deeper = folder / "paper"
    deeper.mkdir()
    (deeper / "__init__.py").write_text('"""A paper."""\n')
    (deeper / "first.py").write_text(
        STUDY.format(name="first of the paper", printed=None, fails=False)
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        importlib.metadata.EntryPoint("mylab", "mylab_sgf.studies", "sgfbias.studies"),
        importlib.metadata.EntryPoint("other", "not_installed.studies", "sgfbias.studies"),
    ]
    others = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **which: points if which == {"group": registry.GROUP} else others(**which),
    )
    caches = registry.places, registry.entries
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()
    for name in [name for name in sys.modules if name.startswith("mylab_sgf")]:
        del sys.modules[name]


def listed():
    with pytest.warns(UserWarning, match="leaves out the studies in") as caught:
        entries = registry.entries()
    return entries, [str(warning.message) for warning in caught]


def test_another_packages_studies_are_found_and_what_is_broken_warns(theirs):
    entries, warned = listed()
    assert {path for path in entries if path.startswith("mylab.")} == {
        "mylab.first",
        "mylab.raises",
        "mylab.taken",
        "mylab.paper.first",
    }
    assert any("not_installed.studies" in text for text in warned)
    assert any("broken.py" in text and "SyntaxError" in text for text in warned)
    assert any("odd.py" in text and "ValueError" in text for text in warned)
    assert entries["diagonal.svag"].name == "svag"
    # The name that this study prints was taken already.
    assert entries["mylab.taken"].name == "mylab.taken"
    assert entries["mylab.first"].question == "Is first so?"
    assert entries["mylab.first"].seconds == 2
    assert not any(name.startswith("mylab_sgf.studies.") for name in sys.modules)


def test_names_in_their_order(theirs):
    listed()
    assert find("svag").path == "diagonal.svag"
    assert find("lab-first").path == find("mylab.first").path == "mylab.first"
    assert find("raises").path == "mylab.raises"
    assert find("diagonal").path == "diagonal.main"
    assert find("mylab.paper.first").path == "mylab.paper.first"
    with pytest.raises(
        ValueError, match=r"several studies 'first': mylab.first, mylab.paper.first"
    ):
        find("first")
    with pytest.raises(ValueError, match="no study 'savg'; did you mean svag"):
        find("savg")


def test_another_packages_study_runs_is_listed_and_shown(theirs, tmp_path, capsys):
    listed()
    assert cli.main(["run", "lab-first", "--size", "5", "--out", str(tmp_path / "out")]) == 0
    assert "1 claim: holds" in capsys.readouterr().out
    assert cli.main(["show", str(tmp_path / "out" / "study.zarr"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["size"] == 5
    assert cli.main(["list"]) == 0
    assert "mylab: What my lab studies." in capsys.readouterr().out
    assert cli.main(["run", "mylab.first", "--size", "0", "--out", str(tmp_path / "bad")]) == 2
    assert "size must be at least 1, but is 0" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="imported"):
        study_named("mylab.raises").run()


@pytest.mark.parametrize(
    "name", ["svag", "alpha-sweep", "pesme2021.fig1", "diagonal", "edge-of-stability"]
)
def test_todays_names_stay(name):
    assert find(name).name == name


def test_the_list_is_json_too(capsys):
    assert cli.main(["list", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == names()
    assert {"name", "path", "system", "question", "seconds", "module"} <= set(rows[0])


@pytest.mark.slow
def test_listing_costs_little_more_than_the_import():
    """Listing takes less than 0.4 of the CPU time of the import besides it. The two are
    run in turns, and the smallest of five times is used, because other processes run at
    the same time.
    """
    codes = ("import sgfbias", "from sgfbias import cli; cli.main(['list'])")
    times = {code: [] for code in codes}
    for _ in range(5):
        for code in codes:
            began = sum(os.times()[2:4])
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            times[code].append(sum(os.times()[2:4]) - began)
    alone, listed = (min(times[code]) for code in codes)
    assert listed < 1.4 * alone
