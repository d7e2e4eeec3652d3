"""Which code is the user's own, and which belongs to a library, whose versions are
known.
"""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

PACKAGE = str(Path(__file__).parent.parent) + os.sep
MAIN = "__main__"


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Folders of the standard library and of installed packages."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    found = {sysconfig.get_paths()[kind] for kind in kinds}
    found |= {*site.getsitepackages(), site.getusersitepackages()}
    every = {path for one in found for path in (one, os.path.realpath(one))}
    return (*(path.rstrip(os.sep) + os.sep for path in sorted(every)), PACKAGE)


def is_own_file(file: str) -> bool:
    """Whether a source file belongs to the user: to no library, and not to sgfbias."""
    # a notebook's cell, or source that was compiled at run time
    if file.startswith("<"):
        return True
    return not os.path.abspath(file).startswith(_libraries())


@functools.lru_cache(maxsize=4096)
def _is_own(name: str, file: str | None) -> bool:
    if name == MAIN:
        return True
    top = name.partition(".")[0]
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return False
    if top == "sgfbias":  # studies are followed as a user's own would be
        return ".studies." in name
    return file is None or is_own_file(file)


def is_own_module(name: str | None) -> bool:
    """Whether the module of this name is the user's own.

    A module without a file is: it was made in this process.
    """
    if name is None:
        return True
    return _is_own(name, getattr(sys.modules.get(name), "__file__", None))


def is_own(thing: Any) -> bool:
    """Whether a function or a class was written by the user."""
    return is_own_module(getattr(thing, "__module__", None))
