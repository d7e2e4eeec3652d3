"""A study from start to end: run, stored, judged, drawn, reported. What `run`, `show` and `reproduce` share."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sgfbias import plotting, store
from sgfbias.core.claim import Claim
from sgfbias.studies import STUDIES, study_named

STORE, PICTURE, CLAIMS = "study.zarr", "study.png", "claims.json"


class Outcome(NamedTuple):
    """What a study left: its Dataset, the claims, and both in words, as in `claims.json`."""

    dataset: Any
    claims: Sequence[Claim]
    report: dict[str, Any]


def execute(name: str, config: Any, folder: Path, *, overwrite: bool = False, say: Callable[[str], None] = lambda line: None) -> Outcome:
    """Run a study into a folder: the store `study.zarr`, the picture `study.png` and the report `claims.json`.

    **Raises:** `ValueError` for a config that makes no sense, or a folder that holds a store and is not to be overwritten.
    """
    study = study_named(name)
    target = folder / STORE
    store.check_target(target, overwrite=overwrite)
    started = time.perf_counter()
    dataset = study.run(config, say=say)
    dataset.attrs["seconds"] = f"{time.perf_counter() - started:.1f}"
    (folder / CLAIMS).unlink(missing_ok=True)  # a store without its own claims counts as not finished
    store.save(dataset, target, overwrite=overwrite)
    outcome = judge(dataset, target, folder / PICTURE)
    (folder / CLAIMS).write_text(json.dumps(outcome.report, indent=1) + "\n")
    return outcome


def judge(dataset: Any, target: Path, picture: Path) -> Outcome:
    """The claims of a study's Dataset, which is at `target`, and its picture, drawn again.

    **Raises:** `ValueError` if it is not of a study that there is.
    """
    name = dataset.attrs.get("study")
    if name not in STUDIES:
        raise ValueError(f"the store {target} says it is of study {name!r}, which this version does not have")
    study = study_named(name)
    claims = study.claims(dataset)
    plotting.save(study.plot(dataset), picture)
    report = {
        "study": name,
        "config": json.loads(dataset.attrs["config"]),
        "provenance": {key: value for key, value in dataset.attrs.items() if key != "config"},
        "claims": [dataclasses.asdict(claim) for claim in claims],
        "store": str(target),
        "picture": str(picture),
    }
    return Outcome(dataset, claims, report)


def stored_report(folder: Path) -> dict[str, Any] | None:
    """The report of a study that was run into this folder; None if it is not there, or not whole."""
    if not all((folder / name).exists() for name in (STORE, PICTURE, CLAIMS)):
        return None
    try:
        report = json.loads((folder / CLAIMS).read_text())
        for row in report["claims"]:
            Claim(**row)
        return report if {"study", "config", "provenance"} <= set(report) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def differences(stored: Mapping[str, Any], config: Any) -> list[str]:
    """In words, the fields in which a stored config is not `config`."""
    wanted = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return [
        f"{key} is {stored.get(key)!r}, asked for is {value!r}"
        for key, value in wanted.items()
        if key not in stored or stored[key] != value
    ]


def paper_config(name: str) -> Any:
    """The config of the published size.

    **Raises:** `ValueError` if the study has none.
    """
    paper = getattr(study_named(name), "PAPER", None)
    if paper is None:
        raise ValueError(f"the study {name!r} has no published size: leave out --paper")
    return paper
