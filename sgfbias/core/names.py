"""Names that are nearly right."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import jax


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question whether the known name that is closest to `name` was meant, or an
    empty text if none is close.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.55)
    return f"did you mean {close[0]}? " if close else ""


def also_takes(function: Callable[..., Any], given: Iterable[str]) -> str:
    """What a function takes besides its first argument, which of these the given names
    may mean, and nothing if it takes any name or this is not known.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ""
    names = [parameter.name for parameter in parameters[1:]]
    hints = "".join(did_you_mean(name, names) for name in given if name not in names)
    return f"; {hints}besides {parameters[0].name if parameters else 'nothing'} it takes " + (
        ", ".join(names) or "nothing"
    )


class Named(dict):
    """A dictionary of arrays by name whose `KeyError` suggests the closest name.

    It is a JAX PyTree, as a plain dictionary is.
    """

    def __missing__(self, name: Any) -> NoReturn:
        raise KeyError(
            f"there is no {name!r} here; {did_you_mean(str(name), self)}the names are "
            f"{', '.join(self)}"
        )


def _parts(values: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    names = tuple(sorted(values))
    return [(jax.tree_util.DictKey(name), values[name]) for name in names], names


jax.tree_util.register_pytree_with_keys(
    Named, _parts, lambda names, values: Named(zip(names, values, strict=True))
)
