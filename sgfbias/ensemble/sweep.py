"""`Sweep`: a grid of hyperparameters x data draws x seeds, run chunk by chunk into a store that survives anything."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sgfbias.core.provenance import attributes
from sgfbias.core.tiles import tile_size
from sgfbias.ensemble.drive import Drive
from sgfbias.ensemble.files import StoreError
from sgfbias.ensemble.fingerprint import fingerprint
from sgfbias.ensemble.grid import Grid, parse_range
from sgfbias.ensemble.lock import locked
from sgfbias.ensemble.plan import Plan, measure
from sgfbias.ensemble.status import open_sweep
from sgfbias.ensemble.store import Store
from sgfbias.ensemble.work import Job, Task, jax_config

FORMAT = 1
TILES_PER_CHUNK = 8


class StudyCell:
    """The experiment of a study: its `cell(config, keys)` at the config with the fields of a point replaced."""

    def __init__(self, cell: Callable[..., Any], config: Any):
        self.cell, self.config = cell, config

    def __call__(self, keys: Any, **point: Any) -> Any:
        return self.cell(dataclasses.replace(self.config, **point), keys)


class Sweep:
    """A grid of hyperparameters x data draws x seeds.

    **Arguments:**

    - `experiment`: a function `(keys, **point) -> results` of the keys of some seeds, (seeds,), and one value of every axis; or a study, a
      module or object with `Config` and `cell(config, keys)`. Results: a `Trajectory`, an `xarray.Dataset` with a dimension `seed`, or a
      mapping from names to arrays (seeds, ...), the same variables and shapes at every point. A seed's numbers must depend on its own key
      only, as those of `simulate` do.
    - `grid`: values by axis: numbers or words, or a mapping from names to objects, `{"noise": {"mean": MeanLossNoise(), "none": NoNoise()}}`.
    - `seeds`: `(start, stop)`, or how many. `root`: of their keys, as in `sgfbias.seeds`.
    - `draws`: data draws, `(start, stop)` or how many: an axis `draw` whose number the experiment is given (a study: as its `problem_seed`).
    - `config`: of a study, default its defaults.
    - `chunk`: seeds computed and stored at a time, default 8 tiles; part of what the sweep is.

    **Raises:** `ValueError` for axes, seeds or studies that make no sense.
    """

    def __init__(
        self,
        experiment: Any,
        grid: Mapping[str, Any] | None = None,
        *,
        seeds: Any = 256,
        draws: Any = None,
        root: int = 0,
        config: Any = None,
        chunk: int | None = None,
        name: str | None = None,
    ):
        axes = dict(grid or {})
        is_study = hasattr(experiment, "Config") and not inspect.isfunction(experiment)
        if draws is not None:
            first, last = parse_range(draws, "draws")
            draw = "problem_seed" if is_study else "draw"
            if draw in axes:
                raise ValueError(f"both `draws` and an axis {draw!r} of the grid are given: leave one out")
            axes[draw] = list(range(first, last))
        self.grid, self.seeds, self.root = Grid(axes), parse_range(seeds), int(root)
        self.config: dict[str, Any] = {}
        if is_study:
            experiment = self._of_study(experiment, config)
        elif config is not None:
            raise ValueError("`config` is for studies: give a function its arguments by functools.partial, or by the grid")
        if not callable(experiment):
            raise ValueError(f"`experiment` must be a function (keys, **point), or a study, but is {type(experiment).__name__}")
        self.experiment = experiment
        self._check_arguments()
        inner = experiment.cell if isinstance(experiment, StudyCell) else getattr(experiment, "func", experiment)
        self.name = name or f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__name__)}"
        count, tile = self.seeds[1] - self.seeds[0], tile_size(0)
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise ValueError(f"`chunk` must be a whole number of seeds >= 1, but is {chunk!r}")
        self.chunk = min(count, TILES_PER_CHUNK * tile if chunk is None else chunk)

    def _of_study(self, study: Any, config: Any) -> StudyCell:
        name = getattr(study, "__name__", type(study).__name__)
        if not hasattr(study, "cell"):
            raise ValueError(
                f"the study {name} has no `cell(config, keys)`, what one point of a grid runs on some seeds, so it cannot be swept; "
                "write a function (keys, **point) that calls simulate"
            )
        config = study.Config() if config is None else config
        fields = {field.name for field in dataclasses.fields(config)}
        idle = [axis for axis in self.grid.names if axis in getattr(study, "NOT_OF_A_CELL", ())]
        if idle:
            raise ValueError(
                f"{', '.join(idle)} of {name} says how its own cells are laid out, so one cell does not depend on it: leave it out of the grid"
            )
        unknown = [axis for axis in self.grid.names if axis not in fields]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is not in the config of {name}; there are {', '.join(sorted(fields))}")
        left_out = {*self.grid.names, *getattr(study, "NOT_OF_A_CELL", ())}
        self.config = {k: v for k, v in dataclasses.asdict(config).items() if k not in left_out}
        if hasattr(study, "check_cell"):
            for cell in range(min(self.grid.cells, 1000)):
                study.check_cell(dataclasses.replace(config, **self.grid.point(cell)))
        return StudyCell(study.cell, config)

    def _check_arguments(self) -> None:
        """Refuse axes that the experiment does not take, before anything runs."""
        if isinstance(self.experiment, StudyCell):
            return
        try:
            inspect.signature(self.experiment).bind(None, **self.grid.point(0))
        except TypeError as error:
            raise ValueError(
                f"the experiment cannot be called with keys and {', '.join(self.grid.names) or 'nothing else'}: {error}"
            ) from error
        except ValueError as error:  # a callable without a signature, or arguments fixed that it does not have
            if isinstance(self.experiment, functools.partial):
                raise ValueError(f"the experiment cannot be called with {', '.join(self.experiment.keywords)}: {error}") from error

    @property
    def tasks(self) -> list[Task]:
        """All chunks of work, cell by cell."""
        starts = range(*self.seeds, self.chunk)
        return [
            Task(cell, k, index, self.grid.point(cell), start, min(start + self.chunk, self.seeds[1]))
            for cell, index in enumerate(self.grid)
            for k, start in enumerate(starts)
        ]

    def spec(self) -> dict[str, Any]:
        """What the sweep is, as plain JSON: what a store is compared with before it is gone on with."""
        options, known = jax_config(), json.loads(attributes({}, dtype=jnp.float32)["versions"])
        known["python"] = ".".join(platform.python_version_tuple()[:2])
        spec = {
            "format": FORMAT,
            "experiment": self.name,
            "code": fingerprint(self.experiment),
            "config": self.config,
            "grid": [[axis.name, axis.labels] for axis in self.grid.axes],  # in order
            "objects": {axis.name: {label: fingerprint(value) for label, value in axis.named.items()} for axis in self.grid.axes},
            "seeds": list(self.seeds),
            "root": self.root,
            "chunk": self.chunk,
            "precision": "float64" if options["jax_enable_x64"] else "float32",
            "platform": jax.default_backend(),
            "prng": options["jax_default_prng_impl"],
            "options": {name: value for name, value in options.items() if name not in ("jax_enable_x64", "jax_default_prng_impl")},
            "jax": jax.__version__,
            "versions": {name: version for name, version in known.items() if name not in ("jax", "numpy")},
        }
        return json.loads(json.dumps(spec, default=str))

    def store(self, path: str | Path) -> Store:
        """The store of this sweep at a path, not opened yet."""
        return Store(path, self.spec(), {axis.name: axis.coordinate() for axis in self.grid.axes}, self.seeds, self.chunk)

    def plan(self, path: str | Path | None = None, *, workers: int = 1) -> Plan:
        """What a run would do, with the time measured on the first chunk (run twice: the first time compiles). Nothing is written.

        `path`: of a store, whose finished chunks are then left out. `workers`: that would share the work.
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
        """Run what is missing of the sweep in the store at `path`, and open it.

        Killed at any instant and run again it ends with the numbers of an undisturbed run, and nothing that was written is run twice.
        SIGTERM or Ctrl-C let the chunk in flight finish; a second one abandons it.

        **Arguments:**

        - `executor`: where chunks run: anything with the `submit` of `concurrent.futures`, or a function without arguments that makes one
          (then a broken pool is replaced): `ProcessPoolExecutor`, `dask.distributed.Client(...).get_executor()`, `mpi4py.futures.MPIPoolExecutor`.
          Default this process. Workers write the store themselves, which they must all see under this path. `in_flight`: chunks given out at
          a time, default twice the workers.
        - `share`: `(index, count)`: this process's part of the chunks, for job arrays; default that of `jax.process_index()` where
          `jax.distributed` runs. Whichever process finishes last completes the store.
        - `retry_failed`: run cells again that raised.
        - `progress`: True for a bar, or a function of a dictionary with counts, rate and time left.

        **Returns:** an `xarray.Dataset` that reads from the store what is asked of it, with dimensions of the grid, `seed`, and the variables'
        own; None for a share that found nothing to do before the first chunk was there. `runs_done`, `runs_diverged`, `runs_failed` and `error` tell how each cell fared; values of failed chunks, and of a share's
        sweep that others still work on, are NaN (-1 for integers, 0 for unsigned ones, False).

        **Raises:** `StoreError` if the store is another sweep's (with the differences), in use, or cannot be written; `SweepInterrupted`.
        """
        if share is None and jax.process_count() > 1:
            share = (jax.process_index(), jax.process_count())
        store = self.work(path, executor=executor, in_flight=in_flight, share=share, retry_failed=retry_failed, progress=progress)
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
        """As `run`, without opening what was done."""
        if "://" in str(path):
            raise ValueError(f"`path` must be a folder that this machine sees, but is {str(path)!r}")
        if in_flight is not None and (isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1):
            raise ValueError(f"`in_flight` must be a whole number >= 1, but is {in_flight!r}")
        if executor is not None and not hasattr(executor, "submit") and not callable(executor):
            raise ValueError(f"`executor` must have a `submit`, or be a function that makes one that has, but is {executor!r}")
        share = (0, 1) if share is None else (int(share[0]), int(share[1]))
        if not 0 <= share[0] < share[1]:
            raise ValueError(f"`share` must be (index, count) with 0 <= index < count, but is {share}")
        store = self.store(Path(path).absolute())
        if store.path.is_file() or (store.path.is_dir() and not store.ledger.is_dir() and any(store.path.iterdir())):
            raise StoreError(f"{store.path} exists and is not the store of a sweep, so it is left alone; choose another output")
        with locked(store, share):
            config = {"experiment": self.name, "config": self.config, "grid": self.spec()["grid"], "seeds": list(self.seeds)}
            provenance = attributes(config, dtype=jnp.result_type(float), keys=jax.random.key(0))
            store.claim(provenance)
            job = Job(self.experiment, store, self.root, jax_config(), session="", revision=provenance["revision"])
            Drive(self, job, executor, in_flight, share, progress).run(retry_failed=retry_failed)
        return store

    def __repr__(self) -> str:
        axes = " x ".join(f"{axis.name} {len(axis.values)}" for axis in self.grid.axes) or "one cell"
        count = self.seeds[1] - self.seeds[0]
        return f"Sweep({self.name}: {axes} x seeds {self.seeds[0]}:{self.seeds[1]}, {self.grid.cells * count:,} runs in {len(self.tasks):,} chunks)"
