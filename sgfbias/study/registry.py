"""Finds the studies, in the folders `<system>/studies/` and in other packages.

Another package makes its studies known with an entry point in the group
`sgfbias.studies`. A module or package in a folder of studies is a study if it binds the
name `Config`. A study has a path `system.study`. If it sets `NAME = "..."`, it is shown
under that name, and both the path and the name find it.

Listing the studies imports none of them: their names, questions and durations are read
from the source.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sgfbias.core.names import did_you_mean

PACKAGE = Path(__file__).parent.parent
GROUP = "sgfbias.studies"
MAIN = "main"


class Entry(NamedTuple):
    """What is known of a study before it is imported.

    - `path`: `system.study`, with hyphens in place of underscores.
    - `module`: name of the module to import.
    - `question`: first paragraph of the module's docstring.
    - `printed`: the value of `NAME`, or None.
    - `seconds`: duration of a run with the default config, or None.
    """

    path: str
    module: str
    question: str
    printed: str | None = None
    seconds: float | None = None

    @property
    def system(self) -> str:
        """Name of the system to which the study belongs."""
        return self.path.partition(".")[0]

    @property
    def name(self) -> str:
        """Name of the study in lists, stores and folders."""
        if self.printed is not None:
            return self.printed
        return self.system if self.path == f"{self.system}.{MAIN}" else self.path


@functools.cache
def places() -> Mapping[str, Path]:
    """The folder of studies of every system, in this package and in others.

    Another package that cannot be found is left out with a warning.
    """
    found = {
        folder.parent.name: folder
        for folder in sorted(PACKAGE.glob("*/studies"))
        if (folder / "__init__.py").is_file()
    }
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            spec = importlib.util.find_spec(point.value)
            searched = None if spec is None else spec.submodule_search_locations
            if not searched:
                raise ModuleNotFoundError(f"{point.value} is not a package")
            found.setdefault(point.name, Path(next(iter(searched))))
        # Our own studies must work, whatever is wrong with another package.
        except Exception as error:
            _left_out(f"the package {point.value!r}", error)
    return found


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Every study by its path.

    A file that cannot be read is left out with a warning. A study whose `NAME` is
    already taken by another system is known by its path only.
    """
    # Reversed, so that the first of several entry points with the same name counts.
    theirs = {
        point.name: point.value
        for point in reversed(list(importlib.metadata.entry_points(group=GROUP)))
    }
    found: dict[str, Entry] = {}
    for system, folder in places().items():
        ours = folder.parent.parent == PACKAGE
        taken = {entry.name for entry in found.values()}
        for entry in _scan(folder, f"sgfbias.{system}.studies" if ours else theirs[system], system):
            found[entry.path] = entry if entry.name not in taken else entry._replace(printed=None)
    return found


def systems() -> Mapping[str, str]:
    """Every system with the first paragraph of its docstring, which describes it."""
    return {
        system: _summary_of(folder.parent / "__init__.py") for system, folder in places().items()
    }


def names() -> list[str]:
    """The names of all studies, system by system."""
    return [entry.name for entry in entries().values()]


def find(name: str) -> Entry:
    """The study with a given name.

    **Arguments:**

    - `name`: a study's printed name, its path, or the name of a system (which gives its
      main study). The last part of a path is enough if only one study has it.
      Underscores may replace the hyphens of a path.

    **Raises:** `ValueError` if no study has this name, or more than one.
    """
    every = entries()
    wanted = name.replace("_", "-")
    printed = [entry for entry in every.values() if entry.name == name]
    if printed:
        return printed[0]
    for path in (wanted, f"{wanted}.{MAIN}"):
        if path in every:
            return every[path]
    last = [entry for path, entry in every.items() if path.rpartition(".")[2] == wanted]
    if len(last) > 1:
        raise ValueError(
            f"there are several studies {name!r}: {', '.join(entry.path for entry in last)}; "
            "give one of these names"
        )
    if not last:
        raise ValueError(
            f"there is no study {name!r}; {did_you_mean(wanted, names())}the studies are "
            f"{', '.join(names())}"
        )
    return last[0]


def summary(tree: ast.Module) -> str:
    """The first paragraph of a module's docstring, as one line."""
    return " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())


def _summary_of(file: Path) -> str:
    try:
        return summary(ast.parse(file.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        return ""


def _scan(folder: Path, module: str, prefix: str) -> Iterator[Entry]:
    """The studies in a folder and in its packages, the study `main` first."""
    for place in sorted(folder.iterdir(), key=lambda place: (place.stem != MAIN, place.name)):
        file = place / "__init__.py" if place.is_dir() else place
        if place.name.startswith("_") or not file.is_file() or file.suffix != ".py":
            continue
        where, path = f"{module}.{place.stem}", f"{prefix}.{place.stem.replace('_', '-')}"
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            known = {
                name: _constant(tree, name, kind)
                for name, kind in (("NAME", str), ("SECONDS", float | int))
            }
        except (OSError, SyntaxError, ValueError) as error:
            _left_out(str(file), error)
            continue
        if _binds_config(tree):
            yield Entry(path, where, summary(tree), known["NAME"], known["SECONDS"])
        elif place.is_dir():
            yield from _scan(place, where, path)


def _binds_config(tree: ast.Module) -> bool:
    """Whether a module defines, assigns or imports the name `Config`."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            return True
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "Config" for t in node.targets
        ):
            return True
        if isinstance(node, ast.ImportFrom) and any(
            (alias.asname or alias.name) == "Config" for alias in node.names
        ):
            return True
    return False


def _constant(tree: ast.Module, name: str, kind: Any) -> Any:
    """The constant that a module binds to a name, or None if it binds none.

    **Raises:** `ValueError` if the value is not a plain constant of type `kind`.
    """
    for node in tree.body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            if value is not None and not isinstance(value, kind):
                raise ValueError(
                    f"{name} must be a {'text' if kind is str else 'number'}, but is {value!r}"
                )
            return value
    return None


def _left_out(what: str, error: Exception) -> None:
    """Warn that the studies in `what` are left out because of an error."""
    warnings.warn(
        f"sgfbias leaves out the studies in {what}, which cannot be read: "
        f"{type(error).__name__}: {error}",
        stacklevel=2,
    )
