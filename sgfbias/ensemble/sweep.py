"""`Sweep`: a grid of hyperparameters × data draws × seeds, computed chunk by chunk.

Results go to a store on disk. A sweep that was killed at any moment can be run again:
it continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import platform
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sgfbias.core.checks import as_whole, shown
from sgfbias.core.fingerprint import fingerprint
from sgfbias.core.names import also_takes, did_you_mean
from sgfbias.core.provenance import attributes
from sgfbias.core.tiles import tile_size
from sgfbias.core.types import Dataset
from sgfbias.ensemble.disk import LEDGER, StoreError, read_json
from sgfbias.ensemble.driver import Drive
from sgfbias.ensemble.grid import KEPT, Grid, parse_range
from sgfbias.ensemble.lock import locked
from sgfbias.ensemble.plan import Plan, measure
from sgfbias.ensemble.pool import check_executor
from sgfbias.ensemble.status import open_sweep
from sgfbias.ensemble.store import Store, differences
from sgfbias.ensemble.work import Job, Task, jax_config
from sgfbias.study.frame import Study, study_named
from sgfbias.study.registry import entries

FORMAT = 1
TILES_PER_CHUNK = 8


class StudyCell:
    """A study as an experiment: it calls the study's `cell(config, keys)` at one point.

    The fields of the config that the point names are replaced by the point's values.
    `code` is the function whose code identifies the study in the sweep's fingerprint.
    """

    def __init__(self, cell: Callable[..., Any], config: Any, code: Any):
        self.cell, self.config, self.code = cell, config, code

    def __fingerprint__(self) -> tuple[Any, Any]:
        """The values that stand for this experiment in the sweep's fingerprint: `code`
        and the config.
        """
        return self.code, self.config

    def __call__(self, keys: Any, **point: Any) -> Any:
        result = self.cell(dataclasses.replace(self.config, **point), keys)
        return as_cell(result, point, keys.shape[0]) if hasattr(result, "data_vars") else result


def as_cell(dataset: Dataset, point: Mapping[str, Any], seeds: int) -> Dataset:
    """Rename what clashes with the sweep's own names in the dataset of a whole study.

    A variable or dimension that has the name of a sweep axis, or a name that every
    store keeps for itself, is prefixed with `study_`. This holds for a dimension `seed`
    too, unless its length is `seeds`, in which case it is the sweep's own. Variables of
    words are dropped unless they label a dimension, because a sweep's store holds
    numbers only.
    """
    dataset = dataset.drop_vars(
        [n for n, v in dataset.variables.items() if v.dtype.kind in "OUST" and v.dims != (n,)]
    )
    taken = {*point, *KEPT} - ({"seed"} if dataset.sizes.get("seed", seeds) == seeds else set())
    return dataset.rename(
        {name: f"study_{name}" for name in {*dataset.variables, *dataset.dims} if name in taken}
    )


def study_of(module: types.ModuleType) -> Study | None:
    """The study that the module defines, or None if it defines none."""
    return next(
        (Study(entry) for entry in entries().values() if entry.module == module.__name__), None
    )


def _seeds_of(study: Any, config: Any, seeds: Any, whole: bool) -> tuple[int, int]:
    """`(start, stop)` of the seeds of a study's cells: those given, else the config's.

    A study without seeds has one run per cell. `whole` says that the study has no
    `cell` of its own.

    **Raises:** `ValueError` if seeds are given for a study that has none.
    """
    own = getattr(config, "seeds", None)
    if whole and own is None:
        if seeds is not None:
            raise ValueError(
                f"the study {study.name} has no seeds, so leave out `seeds`, which is {seeds!r}; "
                "to run it on several problems, give `draws`"
            )
        return 0, 1
    return parse_range(seeds if seeds is not None else 256 if own is None else own)


def _root_of(config: Any, root: int | None) -> int | None:
    """The root of a study's seeds: `root` if given, else the `root_seed` of the config.

    **Raises:** `ValueError` if both are given and differ.
    """
    own = getattr(config, "root_seed", None)
    if root is not None and own not in (None, 0, root):
        raise ValueError(
            f"`root` is {root}, but the config's root_seed is {own}: give only one of them"
        )
    return own if root is None else root


class Sweep:
    """A grid of hyperparameters × data draws × seeds.

    **Arguments:**

    - `experiment`: the experiment to run at every point of the grid. Either a function
      `(keys, **point) -> results`, which is given the keys of some seeds, (seeds,), and
      one value of every axis; or a study, as its name, as what `study_named` returns,
      or as a module or object with `Config` and `cell(config, keys)`. A study without a
      `cell` of its own is run as a whole at every point, with all of the sweep's seeds.
      The results are a `Trajectory`, an `xarray.Dataset` with a dimension `seed`, or a
      mapping from names to arrays (seeds, ...). Every point must give the same
      variables with the same shapes. The numbers of a seed must depend on its own key
      only, as those of `simulate` do.
    - `grid`: the values of every axis, by its name: numbers or words, or a mapping from
      names to objects, such as `{"noise": {"mean": MeanLossNoise(), "none":
      NoNoise()}}`. Default no axes, hence a single cell.
    - `seeds`: `(start, stop)`, or the number of seeds. Default 256; for a study, the
      seeds of its config.
    - `draws`: the data draws, `(start, stop)` or their number. They form an axis
      `draw`, whose number is passed to the experiment (to a study as its
      `problem_seed`).
    - `root`: the root of the seeds' keys, as in `sgfbias.seeds`. Default 0; for a
      study, the `root_seed` of its config.
    - `config`: the config of the study. Default the study's default config.
    - `chunk`: the number of seeds that are computed and stored at a time. Default 8
      tiles. It is part of the sweep's specification, so a store cannot be resumed with
      another value.
    - `name`: the name of the sweep. Default the study's name, or the module and name of
      the function.

    **Raises:** `ValueError` if the axes, seeds or options are invalid, or if the study
    cannot be swept.
    """

    def __init__(
        self,
        experiment: Any,
        grid: Mapping[str, Any] | None = None,
        *,
        seeds: Any = None,
        draws: Any = None,
        root: int | None = None,
        config: Any = None,
        chunk: int | None = None,
        name: str | None = None,
    ):
        if not isinstance(grid, Mapping | None):
            raise ValueError(f"`grid` must be a mapping from names to values, but is {shown(grid)}")
        axes = dict(grid or {})
        root = None if root is None else as_whole(root, "root", least=0, most=2**32 - 1)
        if isinstance(experiment, str):
            experiment = study_named(experiment)
        elif isinstance(experiment, types.ModuleType):
            experiment = study_of(experiment) or experiment
        is_study = hasattr(experiment, "Config") and not inspect.isfunction(experiment)
        if draws is not None:
            first, last = parse_range(draws, "draws")
            draw = "problem_seed" if is_study else "draw"
            if draw in axes:
                raise ValueError(
                    f"both `draws` and an axis {draw!r} of the grid are given: leave one out"
                )
            axes[draw] = list(range(first, last))
        self.grid, self.whole, known = Grid(axes), False, None
        self.config: dict[str, Any] = {}
        if is_study:
            config = experiment.Config() if config is None else config
            root = _root_of(config, root)
            known = experiment.name if isinstance(experiment, Study) else None
            self.whole = isinstance(experiment, Study) and not experiment.by_seed
            self.seeds, self.root = _seeds_of(experiment, config, seeds, self.whole), int(root or 0)
            experiment = self._of_study(experiment, config)
        else:
            self.seeds, self.root = parse_range(256 if seeds is None else seeds), int(root or 0)
        if not is_study and config is not None:
            raise ValueError(
                "`config` can only be given for a study: fix the arguments of a function with "
                "functools.partial, or add them to the grid"
            )
        if not callable(experiment):
            raise ValueError(
                "`experiment` must be a function (keys, **point), or a study, but is "
                f"{type(experiment).__name__}"
            )
        self.experiment = experiment
        self._check_arguments()
        inner = (
            experiment.code
            if isinstance(experiment, StudyCell)
            else getattr(experiment, "func", experiment)
        )
        module = getattr(inner, "__module__", "")
        qualname = getattr(inner, "__qualname__", type(inner).__name__)
        self.name = name or known or f"{module}.{qualname}"
        count, tile = self.seeds[1] - self.seeds[0], tile_size(0)
        if chunk is not None and (
            isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1
        ):
            raise ValueError(f"`chunk` must be a whole number of seeds >= 1, but is {chunk!r}")
        if self.whole and chunk is not None and chunk < count:
            raise ValueError(
                f"the study {self.name} has no `cell` of its own, so all {count} seeds of a cell "
                "are run at once: leave out `chunk`"
            )
        self.chunk = min(
            count, count if self.whole else TILES_PER_CHUNK * tile if chunk is None else chunk
        )

    def _of_study(self, study: Any, config: Any) -> StudyCell:
        """The experiment that runs one cell of a study, once the grid fits its config.

        **Raises:** `ValueError` if the study cannot be swept over these axes.
        """
        ours = isinstance(study, Study)
        name = study.name if ours else getattr(study, "__name__", type(study).__name__)
        if not hasattr(study, "cell"):
            raise ValueError(
                f"{name} has no `cell(config, keys)`, which would run some seeds at one point of "
                "a grid, so it cannot be swept; write a function (keys, **point) that calls "
                "simulate instead"
            )
        fields = {field.name for field in dataclasses.fields(config)}
        left_out = study.left_out if ours else getattr(study, "NOT_OF_A_CELL", ())
        idle = [
            axis for axis in self.grid.names if axis in left_out or (self.whole and axis == "seeds")
        ]
        if idle:
            raise ValueError(
                f"{', '.join(idle)} of {name} cannot be an axis of the grid: the field only says "
                "which cells or seeds the study itself runs, and a single cell does not depend "
                "on it; leave it out"
            )
        unknown = [axis for axis in self.grid.names if axis not in fields]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)} is not in the config of {name}; "
                f"{did_you_mean(unknown[0], fields)}its fields are {', '.join(sorted(fields))}"
            )
        if self.whole:
            config = study.whole(config, *self.seeds, self.root)
        self.config = {
            k: v
            for k, v in dataclasses.asdict(config).items()
            if k not in {*self.grid.names, *left_out}
        }
        check = getattr(study, "check_cell", None)
        for cell in range(min(self.grid.cells, 1000)):
            point = dataclasses.replace(config, **self.grid.point(cell))
            if check is not None:
                check(point)
        code = study.part("cell" if study.by_seed else "measure") if ours else study.cell
        return StudyCell(study.cell, config, code)

    def _check_arguments(self) -> None:
        """Refuse axes that the experiment has no argument for, before anything runs."""
        if isinstance(self.experiment, StudyCell):
            return
        try:
            inspect.signature(self.experiment).bind(None, **self.grid.point(0))
        except TypeError as error:
            raise ValueError(
                "the experiment cannot be called with keys and "
                f"{', '.join(self.grid.names) or 'nothing else'}: {error}"
                f"{also_takes(self.experiment, self.grid.names)}"
            ) from error
        except ValueError as error:
            # A callable may have no signature. A partial may fix an argument which its
            # function does not have, and only that is refused.
            if isinstance(self.experiment, functools.partial):
                fixed, function = self.experiment.keywords, self.experiment.func
                said = f"{', '.join(fixed)}{also_takes(function, fixed)}"
                raise ValueError(f"the experiment cannot be called with {said}") from error

    @property
    def tasks(self) -> list[Task]:
        """All chunks of work, ordered by cell."""
        starts = range(*self.seeds, self.chunk)
        return [
            Task(
                cell, k, index, self.grid.point(cell), start, min(start + self.chunk, self.seeds[1])
            )
            for cell, index in enumerate(self.grid)
            for k, start in enumerate(starts)
        ]

    def spec(self) -> dict[str, Any]:
        """The sweep's specification as JSON. A store is resumed only if its own
        specification is the same.
        """
        options, known = jax_config(), json.loads(attributes({}, dtype=jnp.float32)["versions"])
        known["python"] = ".".join(platform.python_version_tuple()[:2])
        named = ("jax_enable_x64", "jax_default_prng_impl")  # these have entries of their own
        spec = {
            "format": FORMAT,
            "experiment": self.name,
            "code": fingerprint(self.experiment, "the experiment"),
            "config": self.config,
            # A list, because the order of the axes counts.
            "grid": [[axis.name, axis.labels] for axis in self.grid.axes],
            "objects": {
                axis.name: {
                    label: fingerprint(value, f"the value {label!r} of the axis {axis.name!r}")
                    for label, value in axis.named.items()
                }
                for axis in self.grid.axes
            },
            "seeds": list(self.seeds),
            "root": self.root,
            "chunk": self.chunk,
            "precision": "float64" if options["jax_enable_x64"] else "float32",
            "platform": jax.default_backend(),
            "prng": options["jax_default_prng_impl"],
            "options": {k: v for k, v in options.items() if k not in named},
            "jax": jax.__version__,
            "versions": {k: v for k, v in known.items() if k not in ("jax", "numpy")},
        }
        return json.loads(json.dumps(spec, default=str))

    def store(self, path: str | Path) -> Store:
        """The store of this sweep at `path`, without opening it."""
        axes = {axis.name: axis.coordinate() for axis in self.grid.axes}
        return Store(path, self.spec(), axes, self.seeds, self.chunk)

    def differs(self, path: str | Path) -> list[str]:
        """The differences between the specification of the store at `path` and this
        sweep's.

        **Returns:** one line per difference; an empty list if the store can be resumed,
        or if there is none.
        """
        there = read_json(Path(path) / LEDGER / "sweep.json")
        return [] if there is None else differences(there["spec"], self.spec())

    def plan(self, path: str | Path | None = None, *, workers: int = 1) -> Plan:
        """Estimate what a run would take, without writing anything.

        The time is measured on the first chunk, which is run twice because the first
        run compiles.

        **Arguments:**

        - `path`: a store whose finished chunks are not counted. Default None: no chunk
          is finished.
        - `workers`: the number of workers that would share the chunks.

        **Returns:** a `Plan`, whose printed form is a summary.

        **Raises:** `ValueError` if the store at `path` belongs to a different sweep.
        """
        return measure(self, path, workers)

    def run(
        self,
        path: str | Path,
        *,
        executor: Any = None,
        in_flight: int | None = None,
        share: tuple[int, int] | None = None,
        retry_failed: bool = False,
        progress: Any = False,
    ) -> Any:
        """Run every chunk that the store at `path` lacks, and open the store.

        A run that is killed at any moment and started again gives the same numbers as
        one that is not interrupted, and no chunk that was written is computed twice.
        After SIGTERM or Ctrl-C the chunk in flight is finished first; a second signal
        abandons it.

        **Arguments:**

        - `path`: the folder of the store. It is created if it does not exist.
        - `executor`: where chunks run. Either an object with the `submit` of
          `concurrent.futures`, such as a `ProcessPoolExecutor` that spawns,
          `dask.distributed.Client(...).get_executor()` or an
          `mpi4py.futures.MPIPoolExecutor`, or a function without arguments that makes
          one, in which case a broken pool is replaced. Default: this process. Workers
          write to the store themselves, so all of them must see it under the same path.
        - `in_flight`: the largest number of chunks that are submitted at a time.
          Default twice the number of workers.
        - `share`: `(index, count)`, the part of the chunks that this process takes, for
          job arrays. Default all of them; under `jax.distributed` the part given by
          `jax.process_index()`. Whichever process finishes last completes the store.
        - `retry_failed`: whether cells whose experiment raised an error are run again.
        - `progress`: True for a progress bar, or a function that is given a dictionary
          of counts, the rate and the time left.

        **Returns:** an `xarray.Dataset` that loads data from the store only when they
        are used. Its dimensions are those of the grid, then `seed`, then those of each
        variable. The variables `runs_done`, `runs_diverged`, `runs_failed` and `error`
        describe every cell. The values of failed chunks, and of chunks that other
        shares have not finished, are NaN (-1 for integers, 0 for unsigned integers,
        False for booleans). None if this process has a share of the chunks and
        knows of no results: none were stored when it began, and none of its own chunks
        succeeded.

        **Raises:** `StoreError` if the store belongs to a different sweep (with the
        differences), is in use, or cannot be written; `SweepInterrupted` if the sweep
        was asked to stop.
        """
        if share is None and jax.process_count() > 1:
            share = (jax.process_index(), jax.process_count())
        store = self.work(
            path,
            executor=executor,
            in_flight=in_flight,
            share=share,
            retry_failed=retry_failed,
            progress=progress,
        )
        shared = share is not None or jax.process_count() > 1
        return None if shared and store.schema is None else open_sweep(store.path)

    def work(
        self,
        path: str | Path,
        *,
        executor: Any = None,
        in_flight: int | None = None,
        share: tuple[int, int] | None = None,
        retry_failed: bool = False,
        progress: Any = False,
    ) -> Store:
        """Do what `run` does, but return the `Store` instead of opening it as a
        dataset.
        """
        if "://" in str(path):
            raise ValueError(
                f"`path` must be a folder that this machine sees, but is {str(path)!r}"
            )
        if in_flight is not None and (
            isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1
        ):
            raise ValueError(f"`in_flight` must be a whole number >= 1, but is {in_flight!r}")
        check_executor(executor)
        share = (0, 1) if share is None else (int(share[0]), int(share[1]))
        if not 0 <= share[0] < share[1]:
            raise ValueError(
                f"`share` must be (index, count) with 0 <= index < count, but is {share}"
            )
        store = self.store(Path(path).absolute())
        # The folder is listed only once: another process that shares the work may be
        # creating the ledger, the first entry of a store, at this moment.
        there = {entry.name for entry in store.path.iterdir()} if store.path.is_dir() else set()
        if store.path.is_file() or (there and LEDGER not in there):
            raise StoreError(
                f"{store.path} exists and is not the store of a sweep, so it is left alone; "
                "choose another output"
            )
        with locked(store, share):
            config = {
                "experiment": self.name,
                "config": self.config,
                "grid": self.spec()["grid"],
                "seeds": list(self.seeds),
            }
            provenance = attributes(config, dtype=jnp.result_type(float), keys=jax.random.key(0))
            store.claim(provenance)
            job = Job(
                self.experiment,
                store,
                self.root,
                jax_config(),
                session="",
                revision=provenance["revision"],
                whole=self.whole,
            )
            Drive(self, job, executor, in_flight, share, progress).run(retry_failed=retry_failed)
        return store

    def __repr__(self) -> str:
        axes = (
            " x ".join(f"{axis.name} {len(axis.values)}" for axis in self.grid.axes) or "one cell"
        )
        count = self.seeds[1] - self.seeds[0]
        return (
            f"Sweep({self.name}: {axes} x seeds {self.seeds[0]}:{self.seeds[1]}, "
            f"{self.grid.cells * count:,} runs in {len(self.tasks):,} chunks)"
        )
