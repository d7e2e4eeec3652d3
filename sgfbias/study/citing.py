"""`cite`: the BibTeX entries of what a run or a study used.

A comment above each entry says what it is cited for.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

import equinox as eqx

from sgfbias.core.references import SOFTWARE, merge, references_of
from sgfbias.study.bibliography import bibliography
from sgfbias.study.frame import study_named
from sgfbias.study.registry import find, names


class Citation(str):
    """BibTeX text that an interactive session displays line by line, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def cite(*things: Any) -> Citation:
    """The BibTeX entries to cite for the given things.

    **Arguments:** one or more of

    - a `Trajectory`;
    - a flow, an algorithm, a network, a noise model, a solver, or the result of
      `select` or `land`. `cite(flow, network)` gives the entries that a run would give,
      except those of the coordinates and of the solver: only a `Trajectory` knows
      these;
    - a Dataset of a study or of `Trajectory.to_xarray`;
    - the name of a study: `cite("noise-anatomy")`.

    **Returns:** a `str` with the papers first and the software last. A comment above
    each entry says what it is cited for. A session displays the text line by line.

    **Raises:** `ValueError` for a thing that does not say what it used.
    """
    return bibtex(merge(*map(_references, things), SOFTWARE))


def bibtex(references: Mapping[str, str]) -> Citation:
    """The BibTeX entries of some keys.

    **Arguments:**

    - `references`: key of the bibliography -> what it is cited for.

    **Returns:** the entries, each below a comment with its text from `references`.

    **Raises:** `ValueError` if no `references.bib` has one of the keys.
    """
    entries = bibliography()
    unknown = [key for key in references if key not in entries]
    if unknown:
        raise ValueError(
            f"references.bib has no entry {', '.join(map(repr, unknown))}; add it to the file, "
            "or correct the key"
        )
    return Citation(
        "\n\n".join(f"% for {text}\n{entries[key]}" for key, text in references.items())
    )


def _references(thing: Any) -> Mapping[str, str]:
    """Keys of the bibliography for one thing, with what each is cited for."""
    if isinstance(thing, str):
        return _of_study(thing)
    attrs = getattr(thing, "attrs", None)
    if isinstance(attrs, Mapping):
        return _of_dataset(attrs)
    found = references_of(thing)
    if found or isinstance(thing, eqx.Module):
        return found
    raise ValueError(
        "cite takes a Trajectory, a flow or an algorithm, a network, a Dataset of a study, or "
        f"the name of a study, but got {type(thing).__name__}; the studies are "
        f"{', '.join(names())}"
    )


def _of_study(name: str) -> Mapping[str, str]:
    return study_named(name).references


def _study_of(attrs: Mapping[Any, Any]) -> str | None:
    """The name of the study that made a Dataset; None if no study is named.

    A sweep's Dataset names its study as its experiment. Stores of older versions give
    `module.cell` instead of the name.
    """
    experiment = json.loads(attrs.get("sweep", "{}")).get("experiment", "")
    older = (
        experiment.removesuffix(".cell").rpartition(".")[2]
        if re.fullmatch(r"sgfbias\..+\.cell", experiment)
        else None
    )
    for name in (attrs.get("study"), experiment if experiment in names() else None, older):
        with contextlib.suppress(ValueError):
            if name:
                return find(name).name
    return None


def _of_dataset(attrs: Mapping[Any, Any]) -> Mapping[str, str]:
    """Keys of the bibliography for the attributes of a Dataset."""
    name = _study_of(attrs)
    if name is not None:
        return _of_study(name)
    if "references" in attrs:
        return json.loads(attrs["references"])
    raise ValueError(
        "the Dataset does not say what it used: it has neither the name of a study nor "
        "references. Datasets of `sgfbias run`, of a sweep of a study and of "
        "Trajectory.to_xarray have one of these. Cite the parts instead, for example "
        "sgfbias.cite(flow, network)"
    )
