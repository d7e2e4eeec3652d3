"""What an experiment is, as far as it can be told: its compiled code and that of functions beside it, defaults, and values it has closed over."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
import types
from collections.abc import Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(experiment: Any) -> str:
    """Of a function: its code, defaults, closure, and the numbers, arrays and functions of its own module that it names. Other modules are not
    looked into; their versions are part of a sweep where they are packages it depends on."""
    return _Digest().of(experiment).hex()


class _Digest:
    """Feeds values with their kinds and lengths, so that no two different ones run into each other."""

    def __init__(self, seen: set[int] | None = None):
        self.parts, self.seen = hashlib.blake2b(digest_size=12), set() if seen is None else seen

    def hex(self) -> str:
        return self.parts.hexdigest()

    def put(self, kind: str, data: bytes) -> None:
        self.parts.update(f"{kind}:{len(data)}:".encode() + data)

    def each(self, values: Any) -> None:
        values = list(values)
        self.put("count", str(len(values)).encode())
        for value in values:
            self.of(value)

    def of(self, value: Any) -> _Digest:
        if isinstance(value, bool | int | float | complex | str | bytes | None | type(Ellipsis)):
            self.put(type(value).__name__, repr(value).encode())
        elif isinstance(value, jax.Array | np.ndarray | np.generic):
            keys = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
            array = np.asarray(jax.random.key_data(value) if keys else value)
            self.put("array", repr((array.dtype.str, array.shape)).encode() + array.tobytes())
        elif isinstance(value, types.ModuleType):
            self.put("module", value.__name__.encode())
        elif isinstance(value, types.CodeType):
            self.code(value)
        elif isinstance(value, type):
            self.put("type", f"{value.__module__}.{value.__qualname__}".encode())
        elif id(value) in self.seen:
            self.put("again", b"")
        else:
            self.seen.add(id(value))
            self.compound(value)
        return self

    def compound(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self.each(item for pair in sorted(value.items(), key=lambda pair: repr(pair[0])) for item in pair)
        elif isinstance(value, Set):
            self.each(sorted(_Digest(set(self.seen)).of(item).hex() for item in value))
        elif isinstance(value, list | tuple):
            self.put("type", type(value).__name__.encode())
            self.each(value)
        elif isinstance(value, types.MethodType):
            self.each((value.__func__, value.__self__))
        elif hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
            self.each((value.func, value.args, value.keywords))
        elif hasattr(value, "__wrapped__"):  # jit and the like
            self.of(value.__wrapped__)
        elif inspect.isfunction(value):
            self.function(value)
        else:
            self.of(type(value))
            called = vars(type(value)).get("__call__")
            if inspect.isfunction(called):
                self.of(called)
            if dataclasses.is_dataclass(value):
                self.each((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))
            elif hasattr(value, "__dict__"):
                self.of(vars(value))
            else:
                self.put("repr", re.sub(r"0x[0-9a-f]+", "", repr(value)).encode())

    def function(self, value: types.FunctionType) -> None:
        self.code(value.__code__)
        self.of(value.__defaults__ or ())
        self.of(value.__kwdefaults__ or {})
        for cell in value.__closure__ or ():
            try:
                self.of(cell.cell_contents)
            except ValueError:  # not filled yet
                self.put("empty", b"")
        for name in sorted(_names(value.__code__)):
            named = value.__globals__.get(name)
            beside = inspect.isfunction(named) and named.__module__ == value.__module__
            if beside or isinstance(named, bool | int | float | complex | str | tuple | list | dict | jax.Array | np.ndarray):
                self.put("global", name.encode())
                self.of(named)

    def code(self, code: types.CodeType) -> None:
        self.put("code", code.co_code)
        self.put("names", repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
        self.each(code.co_consts)


def _names(code: types.CodeType) -> set[str]:
    """Global names in a function's code, and in that of functions within it."""
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))
