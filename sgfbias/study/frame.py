"""The frame around a study: the parts that are the same for every study.

A study is a module in a folder `<system>/studies/`. It may also be a package there,
with the files `__init__` (the design), `measure`, `claims` and `figure`. A study has

- a docstring, whose first paragraph is the question that the study asks;
- `Config`, a subclass of `study.Config`;
- `REFERENCES`: key of the bibliography -> what it is cited for;
- `measure(config, log) -> Columns`, which simulates and does not judge. For work that
  can be resumed, such as an `ensemble.Sweep`, it returns `InStore(work, complete)`
  instead: `work` keeps its results in a store of its own, and `complete(dataset) ->
  Columns` makes the columns from the dataset of that store;
- `claims(dataset, config) -> list of Claim`;
- `plot(dataset, config) -> Figure`.

The following are optional:

- `NAME`: the name of the study in lists and folders;
- `SECONDS`: the duration of a run with the default config, in seconds;
- `QUICK`: the config of a size that takes some seconds and at which the claims hold;
- `PAPER`: the config of the published size;
- `PRECISION`: "float32" or "float64" (default);
- `cell(config, keys)`: runs the seeds `keys` as part of one cell of a sweep;
- `NOT_OF_A_CELL`: names of the config's fields that do not affect a cell;
- `check_cell(config)`: raises `ValueError` for a config that a cell cannot have.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array

from sgfbias.core.brownian import seeds
from sgfbias.core.progress import watched
from sgfbias.core.provenance import attributes
from sgfbias.core.types import Dataset
from sgfbias.study.claim import Claim, informing
from sgfbias.study.columns import Columns
from sgfbias.study.config import SeededConfig, from_mapping
from sgfbias.study.registry import Entry, find
from sgfbias.study.statistics import resampling

Log = Callable[[str], None]
# Function of a study -> the module that has it if the study is a package.
PARTS = {
    "measure": "measure",
    "finish": "measure",
    "cell": "measure",
    "claims": "claims",
    "plot": "figure",
}


@runtime_checkable
class Resumable(Protocol):
    """Work that keeps its results in a store of its own, so that it can be resumed."""

    def differs(self, path: Path) -> list[str]:
        """How the work that the store at `path` was made for differs from this work.

        **Returns:** the differences in words. The list is empty if the store can be
        resumed, or if there is no store.
        """

    def run(
        self, path: Path, *, retry_failed: bool, progress: Callable[[Mapping[str, Any]], None]
    ) -> Dataset:
        """Do the work that the store at `path` lacks.

        **Arguments:**

        - `path`: the store; it is made if there is none.
        - `retry_failed`: whether work that failed earlier is tried again.
        - `progress`: a function that is called with the state of the work.

        **Returns:** the `xarray.Dataset` of the store.
        """


class InStore(NamedTuple):
    """Work that can be resumed, and the function that makes the study's columns from
    its dataset. A study's `measure` returns it instead of `Columns`.
    """

    work: Resumable
    complete: Callable[[Any], Columns]


def silent(line: str) -> None:
    """Discard a line: the `log` of a study that prints nothing."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A study, with the methods `run(config)`, `claims(dataset)` and `plot(dataset)`.

    `study_named` makes it. The study's modules are imported only when they are needed.
    """

    entry: Entry

    @property
    def name(self) -> str:
        """Name of the study in lists, stores and folders."""
        return self.entry.name

    @property
    def __name__(self) -> str:
        return self.entry.module

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process gets only the entry, and imports the study's modules itself.
        return Study, (self.entry,)

    @functools.cached_property
    def design(self) -> ModuleType:
        """The module with the study's docstring, `Config` and `REFERENCES`."""
        return importlib.import_module(self.entry.module)

    def part(self, function: str) -> Any:
        """A function of the study, from its module or from a module of its package.

        It is None if the study has no such function.
        """
        if not hasattr(self.design, "__path__"):
            return getattr(self.design, function, None)
        return getattr(
            importlib.import_module(f"{self.entry.module}.{PARTS[function]}"), function, None
        )

    @property
    def Config(self) -> Any:
        """The class of the study's settings."""
        return self.design.Config

    @property
    def paper(self) -> Any:
        """The config of the published size.

        **Raises:** `ValueError` if the study has none.
        """
        if not self.has_paper:
            raise ValueError(f"the study {self.name!r} has no published size; leave out --paper")
        return self.design.PAPER

    @property
    def has_paper(self) -> bool:
        """Whether the study has a config of the published size."""
        return hasattr(self.design, "PAPER")

    @property
    def quick(self) -> Any:
        """The config of a size at which the claims hold within some seconds.

        **Raises:** `ValueError` if the study has none.
        """
        if not hasattr(self.design, "QUICK"):
            raise ValueError(
                f"the study {self.name!r} has no quick size: its module needs a config QUICK at "
                "which its claims hold within about ten seconds"
            )
        return self.design.QUICK

    @property
    def precision(self) -> str:
        """The precision of the study's arithmetic, "float32" or "float64"."""
        return getattr(self.design, "PRECISION", "float64")

    @property
    def references(self) -> Mapping[str, str]:
        """Key of the bibliography -> what it is cited for.

        **Raises:** `ValueError` if the study has no `REFERENCES`.
        """
        if not hasattr(self.design, "REFERENCES"):
            raise ValueError(
                f"the study {self.name!r} does not say what it cites: {self.entry.module} needs a "
                "dictionary REFERENCES, key of references.bib -> what it is cited for"
            )
        return self.design.REFERENCES

    def run(
        self,
        config: Any = None,
        *,
        log: Log = silent,
        store: Path | None = None,
        overwrite: bool = False,
    ) -> Dataset:
        """Run the study's measurement.

        **Arguments:**

        - `config`: the settings; by default the study's `Config()`.
        - `log`: a function that is called with one line for each stage.
        - `store`: where a study that is a sweep keeps its finished cells, so that it
          can be resumed; by default a temporary folder.
        - `overwrite`: whether to start again if `store` belongs to another config.

        **Returns:** an `xarray.Dataset` with units and provenance.

        **Raises:** `ValueError` for data that the study cannot use, or if `store`
        belongs to another config and `overwrite` is False.
        """
        config = self.Config() if config is None else config
        with jax.enable_x64(self.precision == "float64"):
            out = self.part("measure")(config, log)
            if isinstance(out, InStore):
                out = out.complete(_resumed(out.work, store, overwrite, log))
            attrs = attributes(
                {"study": self.name, **dataclasses.asdict(config)},
                dtype=self.precision,
                keys=seeds(0, 1),
            )
            return out.dataset({**attrs, "study": self.name})

    def config_of(self, dataset: Dataset) -> Any:
        """The config with which a dataset of this study was made."""
        return from_mapping(self.Config, json.loads(dataset.attrs.get("config", "{}")))

    def claims(self, dataset: Dataset) -> Sequence[Claim]:
        """The study's claims; they are computed from its dataset alone. On a user's own
        data they only inform.
        """
        config = self.config_of(dataset)
        with resampling(getattr(config, "root_seed", 0)):
            found = self.part("claims")(dataset, config)
        return (
            [informing(claim) for claim in found] if getattr(config, "own_data", False) else found
        )

    def plot(self, dataset: Dataset) -> Any:
        """The study's picture, a Matplotlib figure drawn from the dataset alone."""
        return self.part("plot")(dataset, self.config_of(dataset))

    @property
    def by_seed(self) -> bool:
        """Whether a sweep may run the seeds of a cell in several parts. It may if the
        study has its own function `cell`.
        """
        return self.part("cell") is not None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the config's fields that do not affect a cell."""
        return getattr(self.design, "NOT_OF_A_CELL", ())

    def cell(self, config: Any, keys: Array) -> Dataset:
        """Run one cell of a sweep, or some of its seeds.

        **Arguments:**

        - `config`: the settings of the cell.
        - `keys`: random keys of the seeds for the study's own function `cell`. A study
          without this function ignores the keys and is run as a whole.

        **Returns:** the results of the cell.

        **Raises:** `ValueError` for a config that a cell cannot have.
        """
        own = self.part("cell")
        if own is None:
            return self.run(config)
        with jax.enable_x64(self.precision == "float64"):
            return own(config, keys)

    def check_cell(self, config: Any) -> None:
        """Refuse a config that a single cell cannot have.

        **Raises:** `ValueError` that names the value.
        """
        check = getattr(self.design, "check_cell", None)
        if check is not None:
            check(config)

    def whole(self, config: Any, start: int, stop: int, root: int) -> Dataset:
        """The config of a cell that runs the whole study.

        **Arguments:**

        - `config`: the settings of the cell.
        - `start`, `stop`: the seeds from `start` to `stop` - 1. `start` must be 0.
        - `root`: root of the random keys; 0 keeps the root of `config`.

        **Raises:** `ValueError` for seeds or a root that the study cannot have.
        """
        fields = {field.name for field in dataclasses.fields(config)}
        if start != 0:
            raise ValueError(
                f"the seeds of the study {self.name} start at 0, but `seeds` starts at {start}; "
                "set another root_seed to draw other noise"
            )
        changes: dict[str, Any] = {"seeds": stop} if "seeds" in fields else {}
        if root and not isinstance(config, SeededConfig):
            raise ValueError(
                f"the study {self.name} sets its random numbers in its own config; leave out "
                f"`root`, which is {root}"
            )
        return dataclasses.replace(config, **changes, **({"root_seed": root} if root else {}))


def study_named(name: str) -> Study:
    """The study with a given name.

    **Arguments:**

    - `name`: a name that `sgfbias list` shows, a path `system.study`, or a system
      (which gives its main study). The last part of a path is enough if only one study
      has it.

    **Raises:** `ValueError` if no study has this name, or more than one.
    """
    return Study(find(name))


def _resumed(work: Resumable, store: Path | None, overwrite: bool, log: Log) -> Dataset:
    """Do or resume the work, and return its dataset in memory."""
    changed = [] if store is None else work.differs(store)
    if changed and not overwrite:
        raise ValueError(
            f"{store} holds an interrupted run with other settings ({'; '.join(changed)}); use "
            "those settings to resume it, or pass --overwrite to start again"
        )
    if store is not None and changed:
        shutil.rmtree(store)

    # The sweep reports, and the runs in its cells do not.
    with watched(None) as show, tempfile.TemporaryDirectory() as folder:

        def progress(state: Mapping[str, Any]) -> None:
            if show is None:
                log(f"  {state['chunks_done']} of {state['chunks']} chunks")
            else:
                show(state["chunks_done"], state["chunks"])

        return work.run(
            Path(folder) / "sweep.zarr" if store is None else store,
            retry_failed=True,
            progress=progress,
        ).load()
