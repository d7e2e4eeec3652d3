"""`cite`: the BibTeX of what a run or a study used, each entry with what it is cited for."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx

from sgfbias.core.references import SOFTWARE, merge, references_of
from sgfbias.studies import STUDIES, study_named

BIBLIOGRAPHY = Path(__file__).with_name("references.bib")


class Citation(str):
    """BibTeX as a string, which a session shows as it is, line by line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@functools.cache
def bibliography() -> Mapping[str, str]:
    """Every entry of `references.bib` by its key."""
    parts = re.split(r"^(?=@)", BIBLIOGRAPHY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {re.match(r"@\w+\{([^,\s]+),", part)[1]: part.strip() for part in parts}  # type: ignore[index]


def cite(*things: Any) -> Citation:
    """The BibTeX of what was used.

    **Arguments:** one or more of a `Trajectory`; a flow or an algorithm, a network, a noise model, a solver, `select`'s or `land`'s result
    (`cite(flow, network)`: what a run would cite, but for the coordinates and the solver, which a `Trajectory` knows); a Dataset of a study
    or of `Trajectory.to_xarray`; or the name of a study, `cite("noise-anatomy")`.

    **Returns:** a `str`, shown line by line in a session: the papers, then the software, each entry below a comment that says what it is
    cited for.

    **Raises:** `ValueError` for a thing that says nothing about what it used.
    """
    return bibtex(merge(*map(_references, things), SOFTWARE))


def bibtex(references: Mapping[str, str]) -> Citation:
    """Entries for a mapping from keys to what they are cited for.

    **Raises:** `ValueError` for a key that `references.bib` does not have.
    """
    entries = bibliography()
    unknown = [key for key in references if key not in entries]
    if unknown:
        raise ValueError(f"references.bib has no entry {', '.join(map(repr, unknown))}; add it there, or correct the key")
    return Citation("\n\n".join(f"% for {text}\n{entries[key]}" for key, text in references.items()))


def _references(thing: Any) -> Mapping[str, str]:
    if isinstance(thing, str):
        return _of_study(thing)
    attrs = getattr(thing, "attrs", None)
    if isinstance(attrs, Mapping):
        return _of_dataset(attrs)
    found = references_of(thing)
    if found or isinstance(thing, eqx.Module):
        return found
    raise ValueError(
        f"cite takes a Trajectory, a flow or an algorithm, a network, a Dataset of a study, or the name of a study ({', '.join(STUDIES)}), but "
        f"got {type(thing).__name__}"
    )


def _of_study(name: str) -> Mapping[str, str]:
    study = study_named(name)
    if not hasattr(study, "REFERENCES"):
        raise ValueError(
            f"the study {name!r} does not say what it cites: {study.__name__} needs REFERENCES, key of references.bib -> for what"
        )
    return study.REFERENCES


def _swept(attrs: Mapping[Any, Any]) -> str | None:
    """The study of a sweep's Dataset, whose experiment is `module.cell`."""
    module = json.loads(attrs.get("sweep", "{}")).get("experiment", "").rpartition(".")[0]
    return next((name for name, where in STUDIES.items() if where == module), None)


def _of_dataset(attrs: Mapping[Any, Any]) -> Mapping[str, str]:
    name = attrs.get("study") or _swept(attrs)
    if name is not None and name in STUDIES:
        return _of_study(name)
    if "references" in attrs:
        return json.loads(attrs["references"])
    raise ValueError(
        "the Dataset does not say what it used: it has neither the name of a study nor references, as those of `sgfbias run`, of a sweep of a "
        "study and of Trajectory.to_xarray have; cite the parts instead, for example sgfbias.cite(flow, network)"
    )
