"""Tests of which folder may import which. The import contracts in pyproject.toml name
no system; these tests check the rules about systems.
"""

import ast
import subprocess
import sys
from pathlib import Path

import sgfbias
from sgfbias.study.registry import places

PACKAGE = Path(sgfbias.__file__).parent
SYSTEMS = set(places())
FOLDERS = {"core", "gradients", "study", "ensemble", "cli"}


def imported(path):
    """Names of the package's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sgfbias"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sgfbias"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_floors_are_the_plan():
    found = {
        path.name
        for path in PACKAGE.iterdir()
        if path.is_dir() and not path.name.startswith(("_", "."))
    }
    assert found == FOLDERS | SYSTEMS


def test_every_system_says_what_it_is():
    """Every system has a docstring and a guide page with a heading."""
    for system in SYSTEMS:
        assert ast.get_docstring(ast.parse((PACKAGE / system / "__init__.py").read_text()))
        assert (PACKAGE / system / "guide.md").read_text().startswith("# ")


def test_no_system_imports_another():
    for system in SYSTEMS:
        for path in (PACKAGE / system).rglob("*.py"):
            others = {
                name
                for name in imported(path)
                for other in SYSTEMS - {system}
                if name.startswith(f"sgfbias.{other}")
            }
            assert not others, (path, others)


def test_nothing_outside_a_system_names_it_but_the_root():
    """Only the package's `__init__` does: it exports the names of the main system."""
    for folder in FOLDERS:
        for path in (PACKAGE / folder).rglob("*.py"):
            named = {system for system in SYSTEMS if f"sgfbias.{system}" in path.read_text()}
            assert not named, (path, named)


def test_measuring_never_imports_judging():
    """In a study of several files the design and `measure` import none of `measure`,
    `claims` and `figure`, and `claims` does not import `measure`.
    """
    for system in SYSTEMS:
        for folder in (PACKAGE / system / "studies").rglob("*"):
            if not (folder / "measure.py").is_file():
                continue
            package = ".".join(folder.relative_to(PACKAGE.parent).parts)
            parts = {f"{package}.{part}" for part in ("measure", "claims", "figure")}
            assert not parts & set(imported(folder / "__init__.py")), folder
            assert not parts & set(imported(folder / "measure.py")), folder
            assert f"{package}.measure" not in set(imported(folder / "claims.py")), folder


def test_importing_the_package_loads_the_main_system_and_nothing_heavy():
    code = (
        "import sys, sgfbias; heavy = ('matplotlib', 'xarray', 'zarr', 'pandas', 'rich', 'tyro', "
        "'sklearn');"
        f"others = [f'sgfbias.{{name}}' for name in {sorted(SYSTEMS)!r} if f'sgfbias.{{name}}' "
        "in sys.modules];"
        "print([m for m in heavy if m in sys.modules], others, [m for m in sys.modules if "
        "m.startswith('sgfbias') and '.studies.' in m])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert out == "[] ['sgfbias.diagonal'] []"


def test_a_run_imports_its_own_study_only():
    code = (
        "import sys; from sgfbias.cli import parse; parse(['run', 'svag']);"
        "print(sorted(m for m in sys.modules if m.startswith('sgfbias') and '.studies.' in m))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert out == "['sgfbias.diagonal.studies.svag']"
