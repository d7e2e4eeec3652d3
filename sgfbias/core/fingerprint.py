"""What a user's object is, as far as its results can depend on it: a digest of the code
and the data that it reads.

Functions and classes of the user's own files are followed by what they read: compiled
code, defaults, closures, globals, attributes of instances, of classes and of the user's
other modules. Libraries are taken by name (their versions are recorded elsewhere), with
the data that their objects hold.

What cannot be seen: files that are read, environment variables, and names that are
computed while the code runs. If the code calls `getattr`, `vars`, `eval` or their like,
everything within reach counts as read.
"""

from __future__ import annotations

import copyreg
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias.core.own import is_own, is_own_module

SIMPLE = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    type(None),
    type(...),
    type(NotImplemented),
)
# Calls after which it is not known which names are read.
DYNAMIC = {"attrgetter", "eval", "exec", "getattr", "globals", "locals", "methodcaller", "vars"}
DYNAMIC |= {"__dict__", "__getattribute__", "getmembers"}
READS_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_GLOBAL"}
# What a class's namespace has besides what its author wrote.
MADE = {"__annotations__", "__classcell__", "__dataclass_fields__", "__dataclass_params__"}
MADE |= {"__dict__", "__doc__", "__firstlineno__", "__match_args__", "__module__"}
MADE |= {"__orig_bases__", "__parameters__", "__qualname__", "__static_attributes__"}
MADE |= {"__weakref__", "__abstractmethods__", "_abc_impl", "__annotate__", "__annotate_func__"}
MADE |= {"__annotations_cache__", "__replace__", "__slotnames__"}
CONSTRUCTORS = {"__init__", "__init_subclass__", "__new__", "__post_init__"}
HAS_DOCSTRING = 0x4000000  # a flag of compiled code, from Python 3.14 on
SIZE = 12  # bytes of a digest


class UnseenError(ValueError):
    """Something that is read and whose content cannot be told."""


def fingerprint(value: Any, what: str = "the function") -> str:
    """The digest of a function, of any other callable, or of data.

    It changes if anything changes that the value's code reads, and not if something
    else does: comments, docstrings, names of local variables, functions that are not
    called.

    **Arguments:**

    - `value`: a function, bound method, callable object, class, module, or any data.
    - `what`: what the value is called in an error.

    **Raises:** `ValueError` if the code reads something whose content cannot be told,
    such as an open file; the message names it.
    """
    names: set[str] = set()
    arrays: dict[int, tuple[Any, bytes]] = {}
    while True:
        digest = _Digest(names, arrays, what)
        digest.of(value)
        if digest.found <= names:
            return digest.hex()
        names = names | digest.found


@functools.lru_cache(maxsize=4096)
def reads(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], tuple[str, ...]]:
    """Globals that compiled code reads, all names in it, and the modules it imports;
    with the code of functions within it.
    """
    read: set[str] = set()
    imported: list[str] = []
    names: set[str] = set()
    for step in dis.get_instructions(code):
        if step.opname in READS_GLOBAL:
            read.add(step.argval)
        if step.opname.startswith(("LOAD_", "IMPORT_FROM")) and step.argval in code.co_names:
            names.add(step.argval)
        elif step.opname == "IMPORT_NAME":
            imported.append(step.argval)
    for constant in _constants(code):
        if isinstance(constant, types.CodeType):
            inner = reads(constant)
            read |= inner[0]
            names |= inner[1]
            imported += inner[2]
        elif isinstance(constant, str) and constant.isidentifier():
            names.add(constant)  # as in getattr(x, "name")
    return frozenset(read), frozenset(names), tuple(imported)


def _constants(code: types.CodeType) -> tuple[Any, ...]:
    """The constants of compiled code, without its docstring."""
    constants = code.co_consts
    if not constants or not isinstance(constants[0], str) or code.co_name.startswith("<"):
        return constants
    if sys.version_info >= (3, 14):
        return constants[1:] if code.co_flags & HAS_DOCSTRING else constants
    # Before 3.14 the first constant of a function is its docstring, or None.
    return constants[1:] if code.co_flags & inspect.CO_NEWLOCALS else constants


class _Digest:
    """Feeds values with their kinds and lengths, so that no two run into each other.

    `names` are the names that all code within reach reads; of the members of a user's
    instances, classes and modules only these count. `found` collects such names.
    """

    def __init__(self, names: set[str], arrays: dict[int, tuple[Any, bytes]], what: str):
        self.parts = hashlib.blake2b(digest_size=SIZE)
        self.names, self.arrays = names, arrays
        self.found: set[str] = set()
        # By identity, with the value: the identity of one that is gone may be
        # another's.
        self.known: dict[int, tuple[Any, bytes]] = {}
        self.kinds: dict[type, bytes] = {}
        self.depth = 0
        self.path = [what]
        self.strict = True  # refuse what cannot be seen; not within a library's objects

    def hex(self) -> str:
        return self.parts.hexdigest()

    def counts(self, name: str) -> bool:
        """Whether a member of this name is read."""
        return name in self.names or bool(DYNAMIC & self.names)

    def put(self, kind: str, data: bytes | str = b"") -> None:
        data = data.encode() if isinstance(data, str) else data
        self.parts.update(f"{kind}:{len(data)}:".encode() + data)

    def each(self, values: Iterable[Any]) -> None:
        values = list(values)
        self.put("count", str(len(values)))
        for value in values:
            self.of(value)

    def within(self, where: str, value: Any) -> None:
        """A part of a value, which an error calls `where`."""
        self.put("part", where)
        self.path.append(where)
        self.of(value)
        self.path.pop()

    def of(self, value: Any) -> None:
        if type(value) in SIMPLE:
            return self.put(type(value).__name__, repr(value))
        known = self.known.get(id(value))
        if known is None:
            # Met again within itself, it stands for how far outside it began.
            self.known[id(value)] = value, str(self.depth).encode()
            digest = self.apart(lambda: self.compound(value))
            self.known[id(value)] = value, digest
        elif known[1].isdigit():
            digest = f"cycle {self.depth - int(known[1])}".encode()
        else:
            digest = known[1]
        return self.put("value", digest)

    def apart(self, feed: Callable[[], None]) -> bytes:
        """The digest of what is fed, apart from what was fed before."""
        outer, self.parts = self.parts, hashlib.blake2b(digest_size=SIZE)
        self.depth += 1
        feed()
        self.depth -= 1
        digest, self.parts = self.parts.digest(), outer
        return digest

    def compound(self, value: Any) -> None:
        if hasattr(type(value), "__fingerprint__"):  # it says itself what it is
            return self.of(value.__fingerprint__())
        for kind, feed in _KINDS:
            if isinstance(value, kind):
                return feed(self, value)
        wrapped = getattr(value, "__wrapped__", None)
        # jax.jit, functools.lru_cache
        if callable(wrapped) and not isinstance(value, type):
            self.put("wrapped", f"{type(value).__module__}.{type(value).__qualname__}")
            return self.of(wrapped)
        return self.instance(value)

    def array(self, value: Any) -> None:
        if isinstance(value, np.ndarray | np.generic) and value.dtype.hasobject:
            self.put("objects", repr(np.shape(value)))
            return self.each(np.asarray(value).ravel().tolist())
        if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
            # a masked array, a matrix, quantities with units
            return self.reduced(value)
        if id(value) not in self.arrays:
            self.arrays[id(value)] = value, content_of(value)
        return self.put("array", self.arrays[id(value)][1])

    def mapping(self, value: Mapping) -> None:
        if type(value) is not dict:
            self.of(type(value))
        rows = [(self.apart(lambda key=key: self.of(key)), key, value[key]) for key in value]
        self.put("count", str(len(rows)))
        for key_digest, key, item in sorted(rows, key=lambda row: row[0]):
            self.put("key", key_digest)
            self.within(f"[{key!r}]" if type(key) in SIMPLE else "[...]", item)

    def set(self, value: Set) -> None:
        self.put("type", type(value).__name__)
        for digest in sorted(self.apart(lambda item=item: self.of(item)) for item in value):
            self.put("item", digest)

    def sequence(self, value: list | tuple) -> None:
        if type(value) in (list, tuple):
            self.put(type(value).__name__)
            return self.each(value)
        fields = getattr(type(value), "_fields", None)
        if fields is None:
            return self.instance(value)
        self.put("named", f"{type(value).__qualname__}")
        if is_own(type(value)):
            self.of(type(value))
        for name, item in zip(fields, value, strict=True):
            self.within(f".{name}", item)
        return None

    def module(self, value: types.ModuleType) -> None:
        self.put("module", value.__name__)
        if is_own_module(value.__name__):
            for name, member in sorted(vars(value).items()):
                if not name.startswith("__") and self.counts(name):
                    self.within(f".{name}", member)

    def partial(self, value: functools.partial) -> None:
        self.put("partial")
        self.each((value.func, value.args, value.keywords))

    def method(self, value: types.MethodType) -> None:
        self.put("method")
        self.each((value.__func__, value.__self__))

    def descriptor(self, value: Any) -> None:
        self.put("descriptor", type(value).__name__)
        parts = ("fget", "fset", "fdel", "func", "__func__")
        self.each(getattr(value, part, None) for part in parts)

    def member(self, value: enum.Enum) -> None:
        self.put("member", f"{type(value).__qualname__}.{value.name}")
        self.of(value.value)

    def function(self, value: types.FunctionType) -> None:
        own = is_own(value)
        if not own:
            self.put("library", f"{value.__module__}.{value.__qualname__}")
        self.code(value.__code__)
        strict, self.strict = self.strict, self.strict and own
        self.of(value.__defaults__ or ())
        self.of(value.__kwdefaults__ or {})
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                self.within(f"{value.__name__}: {name}", cell.cell_contents)
            except ValueError as error:
                if isinstance(error, UnseenError):
                    raise
                self.put("empty")  # the cell is not filled yet
        if own:
            self.globals(value)
        self.strict = strict

    def globals(self, value: types.FunctionType) -> None:
        read, names, imported = reads(value.__code__)
        self.found |= names
        everything = bool({"globals", "eval", "exec"} & names)
        for name in sorted(value.__globals__ if everything else read):
            if name in value.__globals__ and not (everything and name.startswith("__")):
                self.within(f"{value.__name__}: {name}", value.__globals__[name])
        for name in imported:
            package = value.__globals__.get("__package__") or ""
            for module in _imported(name, package):
                self.within(f"{value.__name__}: {name}", module)

    def code(self, value: types.CodeType) -> None:
        arguments = value.co_argcount + value.co_kwonlyargcount
        self.put("code", value.co_code)
        self.put("names", repr((value.co_names, value.co_varnames[:arguments])))
        for constant in _constants(value):
            if isinstance(constant, types.CodeType):
                self.code(constant)
            else:
                self.of(constant)

    def class_(self, value: type) -> None:
        self.put("type", f"{value.__module__}.{value.__qualname__}")
        self.members(value, CONSTRUCTORS)

    def members(self, kind: type, also: Set[str] = frozenset()) -> None:
        """Methods and attributes of a user's class and its bases: those that are read,
        that operators call, that a library's base class has too, and those of `also`.
        """
        libraries = [base for base in kind.__mro__[:-1] if not is_own(base)]
        for base in kind.__mro__:
            for name, member in sorted(vars(base).items()) if is_own(base) else ():
                if name in CONSTRUCTORS and name not in also:
                    continue
                special = name.startswith("__") and name.endswith("__") and name not in MADE
                called = any(name in vars(other) for one in libraries for other in one.__mro__[:-1])
                if special or (called and name not in MADE) or self.counts(name):
                    self.within(f"{base.__qualname__}.{name}", member)

    def instance(self, value: Any) -> None:
        kind = type(value)
        own = is_own(kind)
        self.put("of", f"{kind.__module__}.{kind.__qualname__}")
        if own:
            # an instance that exists is not constructed again
            if kind not in self.kinds:
                self.kinds[kind] = b"cycle"
                self.kinds[kind] = self.apart(lambda: self.members(kind))
            self.put("kind", self.kinds[kind])
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                if hasattr(value, field.name):
                    self.within(f".{field.name}", getattr(value, field.name))
        elif kind.__module__.startswith("xarray.") and hasattr(value, "coords"):
            self.labelled(value)
        elif own:
            for name, item in sorted(_state(value).items()):
                cached = isinstance(vars(kind).get(name), functools.cached_property)
                if self.counts(name) and not cached:
                    self.within(f".{name}", item)
        else:
            self.reduced(value)

    def labelled(self, value: Any) -> None:
        """A Dataset or a DataArray of xarray, without what it has cached."""
        arrays = dict(getattr(value, "data_vars", {}) or {}) | dict(value.coords)
        if not hasattr(value, "data_vars"):
            arrays |= {value.name: value}
        self.of(dict(value.attrs))
        self.of({name: (v.dims, v.values, dict(v.attrs)) for name, v in arrays.items()})

    def reduced(self, value: Any) -> None:
        """A library's object, by what it would be pickled as."""
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            parts = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception as error:
            if type(value).__module__ == "builtins" and hasattr(value, "__qualname__"):
                return self.put("builtin", f"{value.__qualname__}")
            if not self.strict or type(value).__module__.startswith(("_thread", "jax")):
                return None  # its kind has to do, which was fed before
            raise UnseenError(
                f"{' -> '.join(self.path)} is a {type(value).__module__}."
                f"{type(value).__qualname__}, whose content cannot be told, so that a change of "
                "it would not be noticed; let the code read plain data instead, make the object "
                "inside the function, or give its class a method __fingerprint__ that returns "
                "what it is"
            ) from error
        if isinstance(parts, str):
            return self.put("global", parts)
        maker, arguments, state, items, pairs = (*parts, *[None] * 5)[:5]
        self.put(
            "made by", f"{getattr(maker, '__module__', '')}.{getattr(maker, '__qualname__', '')}"
        )
        self.each(arguments)
        self.of(state)
        self.each(items or ())
        self.each(pairs or ())
        return None


def _state(value: Any) -> dict[str, Any]:
    """The attributes of an instance, those in slots too."""
    found = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                found[name] = getattr(value, name)
    return found


# of JAX arrays, which never change
_CONTENTS: dict[int, tuple[weakref.ref, bytes]] = {}


def content_of(value: Any) -> bytes:
    """The digest of an array's dtype, shape and numbers; `object` for Python
    objects.
    """
    kept = _CONTENTS.get(id(value))
    if kept is not None and kept[0]() is value:
        return kept[1]
    shown = value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        shown = jax.random.key_data(value)
    plain = np.asarray(shown)
    digest = hashlib.blake2b(repr((str(value.dtype), plain.shape)).encode(), digest_size=SIZE)
    digest.update(np.ascontiguousarray(plain).data.cast("B") if plain.size else b"")
    found = digest.digest()
    if isinstance(value, jax.Array):
        place = id(value)
        gone = weakref.ref(value, lambda _: _CONTENTS.pop(place, None))
        _CONTENTS[place] = gone, found
    return found


def _imported(name: str, package: str) -> list[types.ModuleType]:
    """The user's own modules that an import within a function brings."""
    for full in (f".{name}", name) if package else (name,):
        try:
            module = importlib.import_module(full, package or None)
        except Exception:
            continue
        return [module] if is_own_module(module.__name__) else []
    return []


_KINDS: tuple[tuple[Any, Callable[[_Digest, Any], None]], ...] = (
    (jax.Array, _Digest.array),
    (np.ndarray, _Digest.array),
    (np.generic, _Digest.array),
    (enum.Enum, _Digest.member),
    (types.FunctionType, _Digest.function),
    (types.MethodType, _Digest.method),
    (types.ModuleType, _Digest.module),
    (types.CodeType, _Digest.code),
    (type, _Digest.class_),
    (functools.partial, _Digest.partial),
    (
        (property, functools.cached_property, staticmethod, classmethod),
        _Digest.descriptor,
    ),
    (list | tuple, _Digest.sequence),
    (set | frozenset, _Digest.set),
    (dict | types.MappingProxyType, _Digest.mapping),
)
