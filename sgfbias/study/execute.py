"""Runs a study, stores its dataset, judges its claims, and draws its picture.

The commands `run`, `show` and `reproduce` share these functions.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sgfbias.core.types import Dataset
from sgfbias.study import plotting, store
from sgfbias.study.claim import Claim
from sgfbias.study.frame import Log, Study, silent, study_named

STORE, PICTURE, CLAIMS, UNFINISHED = "study.zarr", "study.png", "claims.json", "unfinished.zarr"


class Outcome(NamedTuple):
    """The results of a study.

    - `dataset`: the study's Dataset.
    - `claims`: its claims, with their verdicts.
    - `report`: the config, the provenance and the claims, as stored in `claims.json`.
    """

    dataset: Dataset
    claims: Sequence[Claim]
    report: dict[str, Any]


def execute(
    study: Study,
    config: Any,
    folder: Path,
    *,
    overwrite: bool = False,
    picture: Path | None = None,
    log: Log = silent,
) -> Outcome:
    """Run a study and write its results into a folder.

    The results are the store `study.zarr`, the picture `study.png` and the report
    `claims.json`. A study that is a sweep keeps its finished cells in
    `unfinished.zarr`. An interrupted sweep is resumed from there, and the store is
    removed when the sweep is finished.

    **Arguments:**

    - `study`, `config`: the study and its settings.
    - `folder`: the folder of the results; it is made if there is none.
    - `overwrite`: whether to replace an existing store.
    - `picture`: path of the picture, which ends in .png, .svg or .pdf; by default
      `study.png` in the folder.
    - `log`: a function that is called with one line for each stage.

    **Returns:** an `Outcome`.

    **Raises:** `ValueError` if the data cannot be used, if the folder holds a store and
    `overwrite` is False, or if the picture has another ending.
    """
    picture = folder / PICTURE if picture is None else picture
    plotting.check_ending(picture)
    target, unfinished = folder / STORE, folder / UNFINISHED
    store.check_target(target, overwrite=overwrite)
    started = time.perf_counter()
    dataset = study.run(config, log=log, store=unfinished, overwrite=overwrite)
    dataset.attrs["seconds"] = f"{time.perf_counter() - started:.1f}"
    # A store without claims of its own counts as unfinished, so old claims go first.
    (folder / CLAIMS).unlink(missing_ok=True)
    store.save(dataset, target, overwrite=overwrite)
    outcome = judge(dataset, target, picture)
    (folder / CLAIMS).write_text(json.dumps(outcome.report, indent=1) + "\n")
    shutil.rmtree(unfinished, ignore_errors=True)
    return outcome


def judge(dataset: Dataset, target: Path, picture: Path) -> Outcome:
    """Judge the claims of a study's Dataset, and draw its picture.

    **Arguments:**

    - `dataset`: the Dataset.
    - `target`: path of the store that holds it.
    - `picture`: path of the picture to write, which ends in .png, .svg or .pdf.

    **Returns:** an `Outcome`.

    **Raises:** `ValueError` if this version has no study of the Dataset's name, or if
    the picture has another ending.
    """
    plotting.check_ending(picture)
    name = dataset.attrs.get("study")
    try:
        study = study_named(str(name))
    except ValueError as error:
        raise ValueError(
            f"the store {target} is of the study {name!r}, but this version has no such study; "
            "sgfbias list shows the studies"
        ) from error
    claims = study.claims(dataset)
    plotting.save(study.plot(dataset), picture)
    report = {
        "study": study.name,
        "config": json.loads(dataset.attrs["config"]),
        "provenance": {key: value for key, value in dataset.attrs.items() if key != "config"},
        "claims": [dataclasses.asdict(claim) for claim in claims],
        "store": str(target),
        "picture": str(picture),
    }
    return Outcome(dataset, claims, report)


def stored_report(folder: Path) -> dict[str, Any] | None:
    """The report of a study in a folder; None if there is none, or if the store, the
    picture or the report is missing or incomplete.
    """
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
    """The fields in which a stored config differs from `config`, in words.

    **Arguments:**

    - `stored`: the stored config, field -> value.
    - `config`: the config to compare it with.

    **Returns:** one text for each field that differs, or that the store does not have.
    """
    wanted = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return [
        f"{key} is {stored.get(key)!r} there, but {value!r} was asked for"
        for key, value in wanted.items()
        if key not in stored or stored[key] != value
    ]
