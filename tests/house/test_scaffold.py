"""`sgfbias new`: what it writes runs, passes the tests and the static checks, appears
everywhere by itself, and goes away with its two folders.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgfbias import cli
from sgfbias.study.scaffold import new_study, new_system

ROOT = Path(__file__).parents[2]
TREE = (
    "sgfbias",
    "tests",
    "docs",
    "notebooks",
    "benchmarks",
    ".github",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "CITATION.cff",
    "pyproject.toml",
    "Makefile",
    "mkdocs.yml",
)
CACHES = shutil.ignore_patterns("__pycache__", ".*_cache")


@pytest.fixture
def checkout(tmp_path):
    """As little as `sgfbias new` takes for a checkout."""
    (tmp_path / "sgfbias" / "core").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "study_case.py").touch()
    return tmp_path


@pytest.mark.parametrize("name", ["Toy", "to-y", "class", "1st", "a__b", ""])
def test_a_name_that_is_no_identifier_is_refused(checkout, name):
    with pytest.raises(ValueError, match="must be a Python identifier in lower case"):
        new_system(name, checkout)
    assert list(checkout.glob("sgfbias/*")) == [checkout / "sgfbias" / "core"]


@pytest.mark.parametrize("name", ["core", "diagonal", "simulate", "study"])
def test_a_name_that_is_taken_is_refused(checkout, name):
    with pytest.raises(ValueError, match=rf"sgfbias\.{name} exists already"):
        new_system(name, checkout)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    assert cli.main(["new", "system", "toy", "--root", str(tmp_path)]) == 2
    assert "is not the top folder of a checkout of sgfbias" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_study_needs_a_system_and_a_name_of_its_own(checkout):
    with pytest.raises(ValueError, match=r"needs its system, SYSTEM\.NAME"):
        new_study("rates", checkout)
    with pytest.raises(ValueError, match="there is no system 'nowhere'"):
        new_study("nowhere.rates", checkout)
    new_system("nowhere", checkout)
    new_study("nowhere.late-rates", checkout)
    assert (checkout / "tests" / "nowhere" / "test_late_rates.py").is_file()
    for name in ("main", "late_rates"):
        with pytest.raises(ValueError, match=f"the system nowhere has a study {name} already"):
            new_study(f"nowhere.{name}", checkout)


def test_test_files_of_two_systems_do_not_share_a_name(checkout):
    for system in ("nowhere", "elsewhere"):
        new_system(system, checkout)
        new_study(f"{system}.rates", checkout)
    assert {path.name for path in checkout.glob("tests/*/test_*.py")} == {
        "test_nowhere.py",
        "test_rates.py",
        "test_elsewhere.py",
        "test_elsewhere_rates.py",
    }


@pytest.mark.slow
def test_a_new_system_is_complete_and_goes_away(tmp_path):
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=CACHES)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def sgfbias(*words):
        return run(sys.executable, "-m", "sgfbias.cli", *words)

    def files():
        return {
            path.relative_to(tmp_path)
            for path in tmp_path.rglob("*")
            if path.is_file() and not {"__pycache__", ".git"} & set(path.parts)
        }

    before = files()
    # One name before and one after "study" in the alphabet: imports are in order in
    # both.
    for system in ("average", "toy"):
        sgfbias("new", "system", system)
        sgfbias("new", "study", f"{system}.{system}-rates")
    # As `make test ONLY=toy` and `make check` do, with the environment that is at hand.
    venv = Path(sys.prefix)
    make = ("make", "-o", f"{venv}/.installed", f"VENV={venv}")
    run(*make, "test", "ONLY=toy")
    run(sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/average")
    run(*make, "check")

    listed = sgfbias("list")
    assert "  toy " in listed
    assert "  toy.toy-rates " in listed
    assert "--step-size" in sgfbias("run", "toy", "--help")
    assert "li2017" in sgfbias("cite", "toy")
    out = tmp_path / "out"
    file = tmp_path / "sweep.toml"
    file.write_text('study = "toy"\nseeds = 64\n[grid]\nstep_size = [0.25, 0.5]\n')
    sgfbias("sweep", str(file), "--out", str(out))
    file.unlink()
    sgfbias("reproduce", "toy", "toy.toy-rates", "--out", str(out / "all"))
    page = (out / "all" / "index.html").read_text()
    assert "The variance of SGD" in page
    assert "toy.toy-rates" in page
    spec = importlib.util.spec_from_file_location("hooks", tmp_path / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    assert hooks.guides()["toy"].read_text().startswith("# Mean estimation")
    assert json.loads(sgfbias("list", "--format", "json"))

    shutil.rmtree(out)
    for system in ("average", "toy"):
        shutil.rmtree(tmp_path / "sgfbias" / system)
        shutil.rmtree(tmp_path / "tests" / system)
    left = {path for path in files() - before if not path.parts[0].startswith(".")}
    assert left == set()
    assert " toy" not in sgfbias("list")
