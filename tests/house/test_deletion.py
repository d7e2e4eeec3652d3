"""A system can be removed by deleting its two folders; all other tests still pass."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgfbias.study.registry import PACKAGE, entries, places

ROOT = Path(__file__).parents[2]
# The package exports the names of this system, so it cannot be removed.
MAIN = "diagonal"
SYSTEMS = [
    system
    for system, folder in places().items()
    if folder.parent.parent == PACKAGE and system != MAIN
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("systems", "folders"),
    [
        *(
            pytest.param([system], ("house", "study"), id=system, marks=pytest.mark.release)
            for system in SYSTEMS
        ),
        pytest.param(SYSTEMS, ("house", "study", "cli"), id="all"),
    ],
)
def test_what_is_left_is_green(systems, folders, tmp_path):
    """Without each of the systems, and without all of them."""
    for name in (
        "sgfbias",
        "tests",
        "docs",
        "notebooks",
        "benchmarks",
        "README.md",
        "pyproject.toml",
        "Makefile",
        "mkdocs.yml",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    for system in systems:
        shutil.rmtree(tmp_path / "sgfbias" / system)
        shutil.rmtree(tmp_path / "tests" / system)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    listed = run(
        "-c",
        f"import sgfbias; assert sgfbias.__file__.startswith({str(tmp_path)!r}); from sgfbias "
        "import cli; cli.main(['list', '--format', 'json'])",
    )
    left = {study["name"] for study in json.loads(listed)}
    gone = [entry.name for entry in entries().values() if entry.system in systems]
    assert gone
    assert not left & set(gone)
    assert run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in folders)
    )
