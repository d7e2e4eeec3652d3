"""The settings of a study: a frozen dataclass whose fields declare their bounds.

A config is checked when it is made, so one with values that make no sense cannot exist.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import math
import pathlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import seeds as seeds_of


@runtime_checkable
class Bound(Protocol):
    """A condition on the value of a field. If the value is a tuple, every entry must
    satisfy the condition.
    """

    def admits(self, value: Any) -> bool:
        """Whether a number satisfies the condition."""

    def words(self) -> str:
        """The condition in words, as they follow "must be" in an error message."""

    def outside(self) -> float:
        """A number that does not satisfy the condition; tests use it."""


class AtLeast(NamedTuple):
    """The value must be finite and at least `low`."""

    low: float

    def admits(self, value: Any) -> bool:
        return math.isfinite(value) and value >= self.low

    def words(self) -> str:
        return f"at least {self.low:g}"

    def outside(self) -> float:
        return float(self.low) - 1


class Above(NamedTuple):
    """The value must be finite and larger than `low`."""

    low: float

    def admits(self, value: Any) -> bool:
        return math.isfinite(value) and value > self.low

    def words(self) -> str:
        return "positive and finite" if self.low == 0 else f"finite and above {self.low:g}"

    def outside(self) -> float:
        return float(self.low)


class Between(NamedTuple):
    """The value must lie between `low` and `high`. With `closed`, it may also equal one
    of them.
    """

    low: float
    high: float
    closed: bool = False

    def admits(self, value: Any) -> bool:
        return self.low <= value <= self.high if self.closed else self.low < value < self.high

    def words(self) -> str:
        return (
            f"from {self.low:g} to {self.high:g}"
            if self.closed
            else f"above {self.low:g} and below {self.high:g}"
        )

    def outside(self) -> float:
        return float(self.high) + 1


Positive = Annotated[float, Above(0.0)]
PositiveOrAuto = Annotated[float | Literal["auto"], Above(0.0)]
NotNegative = Annotated[float, AtLeast(0.0)]
Count = Annotated[int, AtLeast(1)]
Seed = Annotated[int, AtLeast(0)]


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a study.

    Each field is an option on the command line, and the docstring below the field is
    the option's help text. The values are stored with the study's dataset.

    A subclass declares the bound of a field in its type, for example `seeds:
    Annotated[int, AtLeast(16)] = 64` or `alpha: Positive = 0.1`. It checks relations
    between fields in its method `check`.

    **Raises:** `ValueError` at construction if a value has the wrong type or is out of
    bounds. The message names the field, the given value and what was expected.
    """

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():  # type: ignore[arg-type]
            object.__setattr__(self, name, _converted(name, getattr(self, name), hint))
        self.check()

    def check(self) -> None:
        """Refuse combinations of values that make no sense.

        A subclass overrides this method; the bounds of single fields belong in their
        types instead.

        **Raises:** `ValueError` that names the values.
        """

    @property
    def own_data(self) -> bool:
        """Whether the data are a user's own, so that all claims only inform.

        A study that can read data overrides this.
        """
        return False

    def check_whole(self, name: str, unit: str) -> None:
        """Refuse a value of the field `name` that is not a positive whole multiple of
        the field `unit`.
        """
        value, step = getattr(self, name), getattr(self, unit)
        if abs(value / step - round(value / step)) > 1e-6 or round(value / step) < 1:
            raise ValueError(
                f"{name} must be a whole number of {unit} = {step:g}, but is {value:g}"
            )

    def check_above(self, name: str, other: str) -> None:
        """Refuse a value of the field `name` that is not finite and larger than the
        field `other`.
        """
        value, low = getattr(self, name), getattr(self, other)
        if not (math.isfinite(value) and value > low):
            raise ValueError(f"{name} must be finite and above {other} = {low}, but is {value}")

    def check_choice(self, n: str = "n", d: str = "d") -> None:
        """Refuse a config with at least as many examples as features.

        In general such data have at most one solution, so there is nothing to select.

        **Arguments:**

        - `n`, `d`: names of the fields with the numbers of examples and of features.
        """
        if getattr(self, n) >= getattr(self, d):
            raise ValueError(
                f"{n} must be below {d} = {getattr(self, d)}, so that many solutions fit the "
                f"data, but is {getattr(self, n)}"
            )


@dataclasses.dataclass(frozen=True)
class SeededConfig(Config):
    """The settings of a study whose runs are random."""

    root_seed: Seed = 0
    """Root of everything that is drawn: data, starts, paths and resampling. Another
    root gives another draw of the whole study.
    """

    def keys(self, start: int, stop: int) -> Array:
        """The random keys (stop - start,) of the seeds from `start` to `stop` - 1."""
        return seeds_of(start, stop, root=self.root_seed)

    def data_seed(self, field: str = "problem_seed") -> int:
        """The seed of the data: the field `field`, which chooses among the data of one
        root, combined with the root. With root 0 it is the field itself.
        """
        own = int(getattr(self, field))
        if self.root_seed == 0:
            return own
        mixed = np.random.SeedSequence([own, self.root_seed]).generate_state(1)
        return int(mixed[0]) >> 1  # it fits into an int32, and so does the next number


@functools.cache
def hints(config: type) -> Mapping[str, Any]:
    """The type of every field of a config, with the declared bounds."""
    every = typing.get_type_hints(config, include_extras=True)
    return {field.name: every[field.name] for field in dataclasses.fields(config)}


def bounds_of(hint: Any) -> list[Bound]:
    """The bounds that a field's type declares, including those of a tuple's entries."""
    own = list(getattr(hint, "__metadata__", ()))
    return [
        *(b for b in own if hasattr(b, "admits")),
        *(
            bound
            for part in typing.get_args(hint)
            if part is not Ellipsis
            for bound in bounds_of(part)
        ),
    ]


def from_mapping(config: type, values: Mapping[str, Any]) -> Any:
    """A config made from values that were stored as JSON.

    Lists become tuples again, and a text becomes a path if the field is a path. A field
    without a stored value gets its default. Stored values of fields that the config no
    longer has are ignored, so old stores stay readable.

    **Arguments:**

    - `config`: the class of the config.
    - `values`: name of a field -> its stored value.

    **Returns:** an instance of `config`.
    """
    return config(
        **{
            name: _from_json(values[name], hint)
            for name, hint in hints(config).items()
            if name in values
        }
    )


def _from_json(value: Any, hint: Any) -> Any:
    """A stored value, with lists as tuples, and as a path if the field is one."""
    if isinstance(value, list):
        return tuple(_from_json(entry, None) for entry in value)
    return (
        Path(value)
        if isinstance(value, str) and Path in [kind for kind, _ in _kinds(hint)]
        else value
    )


def _kinds(hint: Any, bounds: tuple[Bound, ...] = ()) -> tuple[tuple[Any, tuple[Bound, ...]], ...]:
    """The types that a type hint allows, each with the bounds of its values."""
    if typing.get_origin(hint) is Annotated:
        return _kinds(
            hint.__origin__,
            (*bounds, *(bound for bound in hint.__metadata__ if isinstance(bound, Bound))),
        )
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _kinds(part, bounds))
    return ((hint, bounds),)


def _converted(name: str, value: Any, hint: Any) -> Any:
    """The value converted to the type of its field, if the conversion loses nothing.

    NumPy's numbers become Python's, whole floats become integers, and lists become
    tuples.

    **Raises:** `ValueError` for a value of the wrong type, or out of its bounds.
    """
    value = value.item() if isinstance(value, np.generic) else value
    kinds = _kinds(hint)
    fitting = [
        (found, bounds) for kind, bounds in kinds if (found := _as(kind, value, name)) is not _OTHER
    ]
    if not fitting:
        raise ValueError(
            f"{name} must be {' or '.join(_words(kind) for kind, _ in kinds)}, but is {value!r}"
        )
    found, bounds = fitting[0]
    for bound in bounds:
        entries = found if isinstance(found, tuple) else (found,)
        if not all(bound.admits(entry) for entry in entries if isinstance(entry, float | int)):
            texts = "".join(
                f", or {word}"
                for kind, _ in kinds
                if typing.get_origin(kind) is Literal
                for word in typing.get_args(kind)
            )
            raise ValueError(f"{name} must be {bound.words()}{texts}, but is {value}")
    return found


_OTHER = object()


def _as(kind: Any, value: Any, name: str) -> Any:
    """The value converted to the type `kind`, or `_OTHER` if it has another type."""
    number = isinstance(value, float | int) and not isinstance(value, bool)
    match typing.get_origin(kind) or kind:
        case typing.Literal:
            return value if value in typing.get_args(kind) else _OTHER
        case builtins.float if number:
            return float(value)
        case builtins.int if number and float(value).is_integer():
            return int(value)
        case builtins.tuple if isinstance(value, tuple | list):
            parts = typing.get_args(kind)
            parts = parts[:1] * len(value) if parts[1:] == (Ellipsis,) else parts
            if len(parts) != len(value):
                raise ValueError(f"{name} must be {len(parts)} values, but is {value}")
            return tuple(
                _converted(name, entry, part) for entry, part in zip(value, parts, strict=True)
            )
        case pathlib.Path if isinstance(value, str | Path):
            return Path(value)
        case builtins.float | builtins.int | builtins.tuple | pathlib.Path:
            return _OTHER
        case type() as plain if isinstance(value, plain):
            return value
    return _OTHER


def _words(kind: Any) -> str:
    """The name of a type in an error message."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    known = {
        float: "a number",
        int: "a whole number",
        bool: "True or False",
        str: "a text",
        Path: "a path",
        types.NoneType: "None",
    }
    return known.get(
        kind,
        "several values"
        if typing.get_origin(kind) is tuple
        else f"a {getattr(kind, '__name__', kind)}",
    )
