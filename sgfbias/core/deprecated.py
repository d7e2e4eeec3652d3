"""Old public names, which work for one more minor version, with a warning."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

REMOVED_IN = "0.3"


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that a public name has changed.

    **Arguments:**

    - `old`: the old name, as a user writes it.
    - `new`: the new name, as a user writes it.
    - `stacklevel`: as in `warnings.warn`. 3 blames the line that called the function
      which calls `warn_renamed`.
    """
    warnings.warn(
        f"{old} is now called {new}; the old name will be removed in sgfbias {REMOVED_IN}",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def renamed_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module whose public names have changed.

    **Arguments:**

    - `module`: the `__name__` of the module.
    - `names`: a mapping from every old name to its new name.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return find


def accept_old_name(cls: type, old: str, new: str) -> None:
    """Let a subclass written for an older version define a method by its old name.

    It is called from `__init_subclass__`. If the class `cls` defines the method `old`
    but not `new`, its method `old` becomes its method `new`, too.
    """
    if old in vars(cls) and new not in vars(cls):
        warn_renamed(f"the method {cls.__name__}.{old}", f"{cls.__name__}.{new}", stacklevel=4)
        setattr(cls, new, vars(cls)[old])


def renamed_method(new: str) -> Callable[[Callable], Callable]:
    """Decorate a method under its old name: it warns, and calls the method `new`."""

    def decorate(method: Callable) -> Callable:
        old = method.__name__

        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            warn_renamed(f"{type(self).__name__}.{old}", f"{type(self).__name__}.{new}")
            return getattr(self, new)(*args, **kwargs)

        return call

    return decorate
