"""How the words of the command line become values, and how help texts name these."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import tyro

from sgfbias.core.checks import whole_number

NAMES = {Path: "PATH", str: "NAME", int: "INT", float: "FLOAT"}


def registry() -> Any:
    """The rules for Tyro: a whole number may be written as `1e5`."""
    rules = tyro.constructors.ConstructorRegistry()

    @rules.primitive_rule
    def whole(info: Any) -> Any:
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: whole_number(words[0]),
            is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return rules


def metavar(hint: Any) -> str | None:
    """What stands for the value of an optional field in the help, or None if Tyro's own
    name for it is good.

    Tyro writes `{None}|PATH` for an optional path.
    """
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return None
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return NAMES.get(kinds[0]) if len(kinds) == 1 < len(typing.get_args(hint)) else None
