"""A sweep that is described in a TOML file.

    study = "alpha-sweep"              # or function = "module:name"
    name = "alphas"                    # name of the store; default the file's name
    seeds = "0:512"
    draws = "0:4"                      # data draws, if there are any
    precision = "float64"
    [config]                           # fields of the study's config
    steps = 10_000
    [grid]
    alpha = "geomspace(1e-4,1e-1,10)"
    gamma = [0.02, 0.05]

A function `(keys, **point)` is imported by its name, as Python would import it, also
from a module beside the file. For a function, `[config]` holds fixed arguments. The
store is written to the output folder. Only numbers in the file are evaluated, never
code.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgfbias.core.names import did_you_mean
from sgfbias.ensemble.grid import parse_values
from sgfbias.ensemble.sweep import Sweep

KEYS = {
    "study",
    "function",
    "name",
    "seeds",
    "draws",
    "root",
    "chunk",
    "precision",
    "config",
    "grid",
}


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """The checked content of a TOML file, after the changes from the command line.

    `make()` builds the sweep; it must be called under `precision`.
    """

    name: str
    precision: str
    make: Callable[[], Sweep]


def read(
    path: Path,
    study_named: Callable[[str], Any],
    *,
    seeds: str | None = None,
    grid: tuple[str, ...] = (),
    settings: tuple[str, ...] = (),
) -> SweepFile:
    """Read the sweep in the file `path`; the command line's values replace the file's.

    **Arguments:**

    - `path`: the TOML file.
    - `study_named`: a function from the name of a study to the study.
    - `seeds`: seeds, as `"0:512"`. Default those of the file.
    - `grid`: axes, as `"alpha=0.1,0.2"`.
    - `settings`: fields of the config, as `"steps=100"`.

    **Raises:** `ValueError` that says what is wrong with the file.
    """
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}; give a TOML file that describes a sweep, with lines like "
            'study = ..., seeds = "0:512", [grid], alpha = ...'
        )
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    unknown = set(content) - KEYS
    if unknown:
        raise ValueError(
            f"{path} has {', '.join(sorted(unknown))}, which a sweep does not know; "
            f"{did_you_mean(min(unknown), KEYS)}the keys are {', '.join(sorted(KEYS))}"
        )
    if ("study" in content) == ("function" in content):
        raise ValueError(f'{path} must name either a `study` or a `function = "module:name"`')
    for key, kind in {"study": str, "function": str, "root": int, "chunk": int}.items():
        if key in content and type(content[key]) is not kind:
            raise ValueError(
                f"`{key}` in {path} must be a {kind.__name__}, but is {content[key]!r}"
            )
    for key in ("config", "grid"):
        if not isinstance(content.get(key, {}), dict):
            raise ValueError(f"`{key}` in {path} must be a table that begins with the line [{key}]")
    axes = {
        axis: parse_values(values) if isinstance(values, str) else values
        for axis, values in content.get("grid", {}).items()
    }
    axes |= {axis: parse_values(values) for axis, values in map(_split, grid)}
    config = content.get("config", {}) | {
        key: _setting(value) for key, value in map(_split, settings)
    }
    precision = content.get("precision", "float64")
    if precision not in ("float32", "float64"):
        raise ValueError(f"`precision` in {path} must be float32 or float64, but is {precision!r}")
    options: dict[str, Any] = {
        key: content[key] for key in ("draws", "root", "chunk") if key in content
    }
    options["seeds"] = content.get("seeds") if seeds is None else seeds

    def make() -> Sweep:
        if "study" in content:
            study = study_named(content["study"])
            return Sweep(
                study, axes, config=_study_config(study, content["study"], config), **options
            )
        function = find(content["function"], path.parent)
        return Sweep(
            functools.partial(function, **config) if config else function,
            axes,
            name=content["function"],
            **options,
        )

    if "name" not in content and (not path.stem or path.stem.startswith(".")):
        raise ValueError(
            f"{path} needs a line name = ..., because the name of the file cannot name a store"
        )
    return SweepFile(inside(content.get("name", path.stem)), precision, make)


def inside(name: Any) -> str:
    """Check that `name` stays in the output folder, and drop a final `.zarr`.

    **Raises:** `ValueError` if it is not a plain name.
    """
    if (
        not isinstance(name, str)
        or not name
        or name in (".", "..")
        or set(name) & set("/\\\0")
        or name.startswith(".")
    ):
        raise ValueError(
            "`name` must be a plain name, because it names a store inside the output folder, "
            f"but is {name!r}"
        )
    return name.removesuffix(".zarr")


def find(where: str, folder: Path) -> Any:
    """Import the function that `where` names as `module:name`.

    The module may also be a file in `folder`, which is put on the import path of this
    process and of the processes that it starts.

    **Raises:** `ValueError` if there is no such function.
    """
    module, _, name = where.partition(":")
    module = module.removesuffix(".py")
    if not module or not name:
        raise ValueError(
            f"`function` must be written as module:name, such as experiment:{module or 'run'}, but "
            f"is {where!r}"
        )
    here = str(folder.resolve())
    if here not in sys.path:
        sys.path.insert(0, here)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [here, os.environ.get("PYTHONPATH")])
        )
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the function {where!r} cannot be found: {error}; put {module}.py beside the sweep's "
            "file, or install the module"
        ) from error
    except Exception as error:
        raise ValueError(
            f"the module {module!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(found, name, None)
    if function is None:
        raise ValueError(
            f"the function {where!r} cannot be found: there is no {name!r} in {found.__file__}"
        )
    if not callable(function):
        raise ValueError(
            f"{where!r} must be a function (keys, **point), but is {type(function).__name__}"
        )
    return function


def _setting(text: str) -> Any:
    """The value of a setting on the command line: a list if several values are
    given.
    """
    values = parse_values(text)
    return (
        values[0]
        if len(values) == 1 and not text.strip().startswith("[") and "(" not in text
        else values
    )


def _split(text: str) -> tuple[str, str]:
    """Split `name=values` into the name and the text of the values."""
    name, equals, values = text.partition("=")
    if not equals or not name.strip().isidentifier() or not values.strip():
        raise ValueError(
            f"{text!r} cannot be read: write name=values, for example alpha=geomspace(1e-4,1e-1,10)"
        )
    return name.strip(), values


def _study_config(study: Any, name: str, values: dict[str, Any]) -> Any:
    """The study's config with these values, or None if the study has no `Config`."""
    if not hasattr(study, "Config"):
        return None
    fields = {field.name: field for field in dataclasses.fields(study.Config)}
    unknown = set(values) - set(fields)
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))} is not in the config of {name}; "
            f"{did_you_mean(min(unknown), fields)}its fields are {', '.join(sorted(fields))}"
        )
    return study.Config(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )
