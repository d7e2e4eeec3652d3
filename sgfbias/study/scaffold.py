"""Write a new system, or a new study, that runs and passes its tests: a place to
start.
"""

from __future__ import annotations

import ast
import keyword
import string
from pathlib import Path

from sgfbias.study.registry import MAIN, PACKAGE

TEMPLATE = Path(__file__).parent / "template"
SUFFIX = ".tmpl"


def new_system(name: str, root: Path) -> list[Path]:
    """Write `sgfbias/NAME/` and `tests/NAME/`.

    **Arguments:**

    - `name`: a Python identifier in lower case; the system becomes `sgfbias.NAME`.
    - `root`: the top folder of a checkout of sgfbias.

    **Returns:** the files written.

    **Raises:** `ValueError` for a name that cannot be used or is taken, or a `root`
    that is not a checkout. Nothing is written then.
    """
    _check_name(name)
    _check_root(root)
    if _is_taken(name):
        raise ValueError(f"sgfbias.{name} exists already; choose another name for the new system")
    folder, source = root / "sgfbias" / name, TEMPLATE / "system"
    files = {
        folder / path.relative_to(source).with_suffix(""): path
        for path in sorted(source.rglob(f"*{SUFFIX}"))
    }
    files[root / "tests" / name / f"test_{name}.py"] = TEMPLATE / "tests" / f"system.py{SUFFIX}"
    return _write(files, name=name)


def new_study(path: str, root: Path) -> list[Path]:
    """Write `sgfbias/SYSTEM/studies/NAME.py` and its test.

    **Arguments:**

    - `path`: "SYSTEM.NAME", where the system exists and the name is a Python identifier
      in lower case.
    - `root`: the top folder of a checkout of sgfbias.

    **Returns:** the files written.

    **Raises:** `ValueError` for a path that is not of this form, a system that does not
    exist, or a study that does. Nothing is written then.
    """
    system, dot, name = path.partition(".")
    if not dot:
        raise ValueError(f"a study needs its system, SYSTEM.NAME, but {path!r} was given")
    name = name.replace("-", "_")
    _check_name(name)
    _check_root(root)
    studies, tests = root / "sgfbias" / system / "studies", root / "tests"
    if not (studies / "__init__.py").is_file():
        known = sorted(p.parent.parent.name for p in root.glob("sgfbias/*/studies/__init__.py"))
        raise ValueError(f"there is no system {system!r}; there are {', '.join(known)}")
    if name == MAIN or (studies / name).exists() or (studies / f"{name}.py").exists():
        raise ValueError(f"the system {system} has a study {name} already")
    # Two test files of one name would be one module to pytest.
    taken = {file.name for file in tests.glob("*/test_*.py")}
    test = f"test_{name}.py" if f"test_{name}.py" not in taken else f"test_{system}_{name}.py"
    if test in taken:
        raise ValueError(f"tests/ has a file {test} already; choose another name for the study")
    files = {
        studies / f"{name}.py": TEMPLATE / f"study.py{SUFFIX}",
        tests / system / test: TEMPLATE / "tests" / f"study.py{SUFFIX}",
    }
    words = {"system": system, "name": name, "printed": name.replace("_", "-")}
    return _write(files, title=name.title().replace("_", ""), **words)


def _write(files: dict[Path, Path], **words: str) -> list[Path]:
    for path, template in files.items():
        text = string.Template(template.read_text(encoding="utf-8")).substitute(words)
        text = _imports_sorted(text) if path.suffix == ".py" else text
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


def _imports_sorted(text: str) -> str:
    """The source with its imports from sgfbias, which are contiguous, in the order of
    modules.
    """
    lines = text.splitlines(keepends=True)
    found = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sgfbias")
    ]
    if not found:
        return text
    first, last = found[0].lineno - 1, found[-1].end_lineno
    blocks = sorted(found, key=lambda node: node.module or "")
    block = [line for node in blocks for line in lines[node.lineno - 1 : node.end_lineno]]
    return "".join([*lines[:first], *block, *lines[last:]])


def _check_name(name: str) -> None:
    if not name.isidentifier() or name != name.lower() or keyword.iskeyword(name) or "__" in name:
        raise ValueError(
            "a name must be a Python identifier in lower case, such as margin or phase_retrieval, "
            f"but is {name!r}"
        )


def _check_root(root: Path) -> None:
    missing = [p for p in ("sgfbias/core", "tests/study_case.py") if not (root / p).exists()]
    if missing:
        raise ValueError(
            f"{root} is not the top folder of a checkout of sgfbias: it has no {missing[0]}; "
            "change to that folder, or give it with --root"
        )


def _is_taken(name: str) -> bool:
    """Whether the package has a folder, a module or a public name of this name."""
    root = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    public = {
        alias.asname
        for node in root.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return name in public or (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()
