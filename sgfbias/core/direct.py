"""Methods of modules as Python binds them."""

from __future__ import annotations

from typing import Any, TypeVar, cast

T = TypeVar("T")


class _Direct:
    """Reads attributes of a module without what Equinox adds to them."""

    __slots__ = ("_module",)

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return object.__getattribute__(self._module, name)


def direct(module: T) -> T:
    """The module, for calls of its methods, as in `direct(problem).resolution()`.

    Equinox makes a PyTree of every method that is read from a module, so that it can be
    passed to JAX. That takes longer than most of the methods that a run calls before
    its first step. The result is for calls alone: it is no PyTree, and neither are its
    methods.
    """
    return cast(T, _Direct(module))
