"""The axes of a sweep: a grid of hyperparameters and data draws, and ranges of seeds.

Both can also be read from the text that a command line or file gives.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sgfbias.core.checks import whole_number

SPACES: dict[str, Any] = {
    "linspace": np.linspace,
    "geomspace": np.geomspace,
    "logspace": np.logspace,
    "range": range,
    "arange": np.arange,
}
# Names that every store keeps for itself.
KEPT = {
    "seed",
    "chunk",
    "error",
    "ledger",
    "runs_done",
    "runs_diverged",
    "runs_failed",
    "chunk_seconds",
}
RESERVED = {*KEPT, "keys", "step", "status", "done", "failed", "diverged"}
LARGEST = 1_000_000  # largest number of cells in a grid, and of spaced values


class Axis:
    """One axis of a grid.

    `name` is its name, `labels` its numbers or words, and `values` what the experiment
    is given for each label.
    """

    def __init__(self, name: str, values: Any):
        if not name.isidentifier():
            raise ValueError(
                "an axis of the grid must have a name that can be an argument, but one is called "
                f"{name!r}"
            )
        if name in RESERVED:
            raise ValueError(
                f"{name!r} cannot be the name of an axis, because every sweep uses it: choose "
                "another name"
            )
        if isinstance(values, Mapping):
            self.labels, self.values = [str(k) for k in values], list(values.values())
        else:
            values = values.tolist() if hasattr(values, "tolist") else values
            if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
                values = [values]
            self.values = [v.item() if isinstance(v, np.generic) else v for v in values]
            self.labels = list(self.values)
        if not self.values:
            raise ValueError(f"axis {name!r} of the grid has no values")
        for label in self.labels:
            if not isinstance(label, bool | int | float | str):
                raise ValueError(
                    f"values of axis {name!r} must be numbers or words, but one is {label!r}; "
                    f"name objects by a mapping, {name}={{'a name': object}}"
                )
            if isinstance(label, float) and not math.isfinite(label):
                raise ValueError(f"values of axis {name!r} must be finite, but one is {label}")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"axis {name!r} must not have a value twice, but has {self.labels}")
        if not isinstance(values, Mapping) and any(
            isinstance(label, float) for label in self.labels
        ):
            numbers = all(
                isinstance(label, int | float) and not isinstance(label, bool)
                for label in self.labels
            )
            # Beside 0.5, 0 is read as 0.0.
            self.labels = self.values = [float(v) for v in self.labels] if numbers else self.labels
        if len({isinstance(label, str) for label in self.labels}) > 1:
            raise ValueError(
                f"values of axis {name!r} must be all numbers or all words, but are {self.labels}"
            )
        self.name = name

    def coordinate(self) -> np.ndarray:
        """The labels as an array of numbers, or of words of any length."""
        return (
            np.array(self.labels, dtype=object)
            if isinstance(self.labels[0], str)
            else np.asarray(self.labels)
        )

    @property
    def named(self) -> dict[str, Any]:
        """The objects that labels stand for, by label."""
        return {
            label: value
            for label, value in zip(self.labels, self.values, strict=True)
            if type(value) is not type(label) or value != label
        }


class Grid:
    """The product of the axes; a cell is one point of it."""

    def __init__(self, axes: Mapping[str, Any]):
        self.axes = [Axis(str(name), values) for name, values in axes.items()]
        self.shape = tuple(len(axis.values) for axis in self.axes)
        self.cells = math.prod(self.shape)
        if self.cells > LARGEST:
            raise ValueError(
                f"a grid may have at most {LARGEST:,} cells, but has {self.cells:,}: "
                f"{dict(zip(self.names, self.shape, strict=True))}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the axes, in order."""
        return tuple(axis.name for axis in self.axes)

    def index(self, cell: int) -> tuple[int, ...]:
        """The index of a cell on every axis."""
        return tuple(int(k) for k in np.unravel_index(cell, self.shape)) if self.shape else ()

    def point(self, cell: int) -> dict[str, Any]:
        """The arguments that the experiment is given in a cell."""
        return {
            axis.name: axis.values[k] for axis, k in zip(self.axes, self.index(cell), strict=True)
        }

    def name(self, cell: int) -> str:
        """A description of a cell, such as "alpha=0.1, noise=mean"."""
        parts = [
            f"{axis.name}={axis.labels[k]:g}"
            if isinstance(axis.labels[k], float)
            else f"{axis.name}={axis.labels[k]}"
            for axis, k in zip(self.axes, self.index(cell), strict=True)
        ]
        return ", ".join(parts) or "the only cell"

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*map(range, self.shape))


def parse_values(text: str) -> Any:
    """Read the values of an axis as a command line writes them.

    Allowed are `geomspace(1e-4,1e-1,10)`, and likewise `linspace`, `logspace`, `arange`
    and `range`; a list `.1,.2,.5` or `[.1, .2]`; and words. Only numbers are evaluated,
    never code.

    **Raises:** `ValueError` for any other text.
    """
    text = text.strip()
    call = re.fullmatch(r"(\w+)\((.*)\)", text)
    if call:
        name, inside = call.groups()
        if name not in SPACES:
            raise ValueError(
                f"{name!r} is not a way to space values; write one of {', '.join(SPACES)}, or a "
                "list such as 0.1,0.2,0.5"
            )
        try:
            numbers = [ast.literal_eval(part.strip()) for part in inside.split(",")]
            if name == "range" and len(range(*numbers)) > LARGEST:
                raise ValueError(f"there are more than {LARGEST:,} values")
            if name in ("linspace", "geomspace", "logspace"):
                numbers[2:] = [int(n) for n in numbers[2:]]
                if max(numbers[2:], default=0) > LARGEST:
                    raise ValueError(f"there are more than {LARGEST:,} values")
            return list(SPACES[name](*numbers))
        except (
            ValueError,
            TypeError,
            SyntaxError,
            IndexError,
            ZeroDivisionError,
            MemoryError,
        ) as error:
            raise ValueError(
                f"{text!r} cannot be read as values: {error}; write for example "
                "geomspace(1e-4,1e-1,10)"
            ) from error
    parts = [part.strip() for part in text.strip("[]").split(",")]
    if not all(parts):
        raise ValueError(
            f"{text!r} cannot be read as values: write for example 0.1,0.2,0.5 or "
            "geomspace(1e-4,1e-1,10)"
        )
    return [_literal(part) for part in parts]


def _literal(text: str) -> Any:
    """One value as a number, a bool or a word."""
    if text in ("true", "false"):
        return text == "true"
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        raise ValueError(f"values must be finite, but one is {text}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, bool | int | float | str) else text


def parse_range(value: Any, what: str = "seeds") -> tuple[int, int]:
    """Read `(start, stop)` from `"0:512"` or `"0:1e3"`, from a number (of values from
    0), a `range` or a pair.

    `what` is the name of the argument in the error message.

    **Raises:** `ValueError` unless 0 <= start < stop <= 2^32.
    """
    try:
        if isinstance(value, str):
            ends = [whole_number(word) for word in value.split(":")]
            start, stop = ends if len(ends) > 1 else (0, *ends)
        elif isinstance(value, int | np.integer) and not isinstance(value, bool):
            start, stop = 0, int(value)
        elif isinstance(value, range):
            if value.step != 1:
                raise ValueError
            start, stop = value.start, value.stop
        else:
            start, stop = map(int, value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{what}` must be start:stop, a number, a range or a pair, but is {value!r}"
        ) from error
    if not 0 <= start < stop or stop > 2**32:
        raise ValueError(f"`{what}` needs 0 <= start < stop <= 2^32, but got {start}:{stop}")
    return start, stop
