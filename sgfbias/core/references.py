"""The works that a run used, as keys of the bibliography `sgfbias/references.bib`.

Classes list them in their attribute `references`, and this module collects them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What every run used: the key of an entry -> what it is cited for.
SOFTWARE: Mapping[str, str] = {
    "sgfbias": "the package itself",
    "jax2018": "arrays, derivatives and compilation",
    "equinox2021": "models and their parameters",
    "diffrax2021": "the solvers and their terms",
}

# Diffrax's solvers that have their own paper. The implicit solver solves its stages
# with Optimistix, which solves linear systems with Lineax.
SOLVERS: Mapping[str, Mapping[str, str]] = {
    "Tsit5": {"tsitouras2011": "the solver Tsit5"},
    **{
        name: {
            "kvaerno2004": f"the solver {name}",
            "optimistix2024": f"the implicit stages of {name}",
            "lineax2023": "the linear systems in them",
        }
        for name in ("Kvaerno3", "Kvaerno5")
    },
}


def merge(*parts: Mapping[str, str]) -> dict[str, str]:
    """Merge mappings from keys to what they are cited for.

    Different reasons for one key are joined.
    """
    reasons: dict[str, list[str]] = {}
    for part in parts:
        for key, text in part.items():
            known = reasons.setdefault(key, [])
            known.extend(one for one in text.split("; ") if one not in known)
    return {key: "; ".join(texts) for key, texts in reasons.items()}


def references_of(thing: Any) -> Mapping[str, str]:
    """The `references` of an object whose class derives from a class of this package.

    For any other object there are none, even if it has such an attribute.
    """
    ours = any(base.__module__.partition(".")[0] == "sgfbias" for base in type(thing).__mro__)
    return getattr(thing, "references", {}) if ours else {}
