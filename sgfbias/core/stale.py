"""Compiled programs of the user's functions are dropped when what these read has
changed.

JAX compiles a function once and then knows it by its identity: the values of its
globals, of its closure and of the objects that it reads stay in the compiled program. A
notebook's cell that changes `rate` would leave a schedule that reads `rate` as it was.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import types
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from sgfbias.core.cached import forget
from sgfbias.core.checks import is_concrete
from sgfbias.core.fingerprint import SIMPLE, content_of, fingerprint, reads
from sgfbias.core.own import is_own, is_own_module

DEEPEST = 20  # containers within containers
# What functions and objects read when they were last seen, by their identity.
_LAST: dict[int, tuple[weakref.ref, Any]] = {}


def drop_stale_programs(*trees: Any) -> None:
    """Drop all compiled programs if something has changed that the user's functions
    read.

    To be called before a run, with all that it consists of. Only functions and objects
    that were seen before can have changed; a function that is made anew is compiled
    anew in any case. Takes less than 1 ms unless the functions read large NumPy arrays.

    **Arguments:**

    - `trees`: PyTrees, or single functions and objects.
    """
    if not is_concrete(trees):  # what is traced cannot be compared, nor dropped midway
        return
    changed = []
    for thing, now in _read_by(trees):
        last = _LAST.get(id(thing))
        if last is not None and last[0]() is thing and last[1] != now:
            changed.append(getattr(thing, "__qualname__", type(thing).__qualname__))
        try:
            reference = weakref.ref(thing, functools.partial(_forgotten, id(thing)))
        except TypeError:  # a class with slots: nothing of it can be remembered
            continue
        _LAST[id(thing)] = reference, now
    if changed:
        logging.getLogger("sgfbias").info(
            "what %s reads has changed: compiled programs are dropped", ", ".join(changed)
        )
        jax.clear_caches()
        forget()


def _forgotten(place: int, reference: weakref.ref) -> None:
    last = _LAST.get(place)
    if last is not None and last[0] is reference:
        del _LAST[place]


def _read_by(trees: Any) -> Iterator[tuple[Any, Any]]:
    """The user's functions and objects within reach, each with what it reads."""
    todo, done = [trees], set[int]()
    while todo:
        one = todo.pop()
        kind = _kind(type(one))
        if kind in ("plain", "array") or id(one) in done:
            continue
        done.add(id(one))
        parts = _parts(one, kind)
        todo += parts.values()
        # What JAX sees into is known by its content; the others by their identity only.
        if parts and kind in ("function", "class", "own"):
            yield one, {name: _token(part) for name, part in parts.items()}


@functools.lru_cache(maxsize=4096)
def _kind(kind: type) -> str:
    """How objects of a type are looked into."""
    for name, kinds in _KINDS.items():
        if issubclass(kind, kinds):
            return name
    if dataclasses.is_dataclass(kind):
        return "dataclass"
    return "own" if is_own(kind) else "library"


_KINDS: dict[str, Any] = {
    "plain": (*SIMPLE, np.dtype),
    "array": (jax.Array, np.ndarray, np.generic),
    "dict": (dict, types.MappingProxyType),
    "sequence": (list, tuple, set, frozenset),
    "function": types.FunctionType,
    "method": types.MethodType,
    "module": types.ModuleType,
    "class": type,
    "partial": functools.partial,
    "descriptor": (property, staticmethod, classmethod),
}
ATTRIBUTES = {
    "method": ("__func__", "__self__"),
    "partial": ("func", "args", "keywords"),
    "descriptor": ("fget", "fset", "__func__"),
    "library": ("__wrapped__",),  # of jax.jit and its like
}


@functools.lru_cache(maxsize=4096)
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _parts(one: Any, kind: str) -> dict[Any, Any]:
    """What a function, class or object reads or holds, by name."""
    if kind == "dict":
        return dict(one)
    if kind == "sequence":
        return dict(enumerate(one))
    if kind == "function":
        return _of_function(one)
    if kind == "class":
        return dict(vars(one)) if is_own(one) else {}
    if kind in ATTRIBUTES:
        return {name: getattr(one, name, None) for name in ATTRIBUTES[kind]}
    if kind == "dataclass":
        held = object.__getattribute__(one, "__dict__") if hasattr(type(one), "__dict__") else {}
        found = {name: held.get(name) for name in _fields(type(one))}
    elif kind == "own":
        found = dict(getattr(one, "__dict__", {}))
    else:
        return {}
    return found | {"<class>": type(one)} if is_own(type(one)) else found


def _of_function(one: types.FunctionType) -> dict[str, Any]:
    code = one.__code__
    found = {f"<default {k}>": value for k, value in enumerate(one.__defaults__ or ())}
    found |= one.__kwdefaults__ or {}
    for name, cell in zip(code.co_freevars, one.__closure__ or (), strict=True):
        found[name] = _inside(cell)
    if not is_own(one):
        return found
    read, names, _ = reads(code)
    for name in read & one.__globals__.keys():
        found[name] = value = one.__globals__[name]
        if isinstance(value, types.ModuleType) and is_own_module(value.__name__):
            members = names & vars(value).keys()
            found |= {f"{name}.{member}": vars(value)[member] for member in members}
    return found


def _inside(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is not filled yet
        return None


def _token(value: Any, depth: int = 0) -> Any:
    """What can be compared later with the value of the same name."""
    kind = _kind(type(value))
    if kind == "plain":
        return type(value), value if value == value else repr(value)
    if kind == "array":
        return content_of(value) if is_concrete(value) else "traced"
    if kind in ("dict", "sequence", "dataclass") and depth < DEEPEST:
        parts = _parts(value, kind)
        return type(value), *((name, _token(part, depth + 1)) for name, part in parts.items())
    if kind == "library" and not hasattr(value, "__wrapped__"):
        try:
            return fingerprint(value)
        except Exception:  # it cannot be told, so its identity has to do
            return _reference(value)
    return _reference(value)  # what it reads is compared by itself


def _reference(value: Any) -> Any:
    try:
        return weakref.ref(value)
    except TypeError:
        return type(value), id(value)
