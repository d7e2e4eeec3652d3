"""The Python blocks and shell lines of the README run as printed, in their order and in
one empty folder.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sgfbias.study.registry import PACKAGE, entries, places

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL
)

SYSTEMS = sorted(
    folder.parent
    for folder in places().values()
    if folder.parent.parent == PACKAGE and (folder.parent / "guide.md").exists()
)


def shell_lines():
    return [
        line
        for language, text in BLOCKS
        if language == "sh"
        for line in text.splitlines()
        if line.strip()
    ]


@pytest.mark.slow
def test_every_block_runs_as_printed(tmp_path):
    """A block that begins with a comment like `# runs.toml` is saved as a file of that
    name, as the text of the README asks for.
    """
    for _, text in BLOCKS:
        if named := re.match(r"# (\w+\.\w+)\n", text):
            (tmp_path / named[1]).write_text(text)
    (tmp_path / "all_blocks.py").write_text(
        "\n".join(text for language, text in BLOCKS if language == "python")
    )
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "JAX_ENABLE_X64": "0",
    }

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    printed = run(sys.executable, "all_blocks.py")
    assert "Hypergradient over 256 seeds, 0 excluded" in printed
    commands = [line for line in shell_lines() if line.startswith("sgfbias")]
    assert len(commands) >= 3
    for line in commands:
        run("bash", "-c", line)


def test_the_other_shell_lines_name_what_exists():
    """Lines with `make` and `pip` set up the environment of this test, so they are not
    run; only their targets and extras are checked.
    """
    pyproject = (ROOT / "pyproject.toml").read_text()
    others = [line for line in shell_lines() if not line.startswith("sgfbias")]
    assert {line.split()[0] for line in others} == {"make", "pip"}
    for line in others:
        if line.startswith("make"):
            subprocess.run(
                ["make", "-n", line.split()[1]], cwd=ROOT, check=True, capture_output=True
            )
        elif extras := re.search(r"\.\[([\w,]+)\]", line):
            for extra in extras[1].split(","):
                assert re.search(rf"^{extra} = \[", pyproject, flags=re.MULTILINE), extra


def test_it_is_short_and_its_speed_is_what_the_stored_results_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    render = importlib.import_module("render")
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 165
    assert render.speed() in text


def run_the_blocks(page, folder):
    """The Python blocks of a page, as one program in an empty folder."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "blocks.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "blocks.py"],
        cwd=folder,
        env=os.environ | {"MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow(cases=2)
@pytest.mark.parametrize("page", ["simulate", "gradients", "sweeps", "noise"])
def test_the_blocks_of_a_guide_page_run_as_printed(page, tmp_path):
    run_the_blocks(ROOT / "docs" / "guide" / f"{page}.md", tmp_path)


@pytest.mark.release
@pytest.mark.parametrize(
    "page", [folder / "guide.md" for folder in SYSTEMS], ids=[folder.name for folder in SYSTEMS]
)
def test_the_blocks_of_the_guide_of_a_system_run_as_printed(page, tmp_path):
    run_the_blocks(page, tmp_path)


def test_every_system_with_published_results_has_a_row():
    """A new system has none yet; its author is told to add a row."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line[:3] == "| `"]
    named = {name for row in rows for name in re.findall(r"`sgfbias\.(\w+)`", row)}
    published = {path.stem for path in (ROOT / "docs" / "results").glob("*.json")}
    systems = {
        entry.system
        for entry in entries().values()
        if entry.name in published and places()[entry.system].parent.parent == PACKAGE
    }
    assert systems - {"diagonal"} <= named
