"""One chunk of work, wherever it runs: some seeds of one cell.

A chunk is computed, written to the store, and entered in the ledger.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias.core.brownian import seeds
from sgfbias.ensemble.disk import StoreError
from sgfbias.ensemble.outcome import Column, diverged, run_seeds, seed_states, shared_digest
from sgfbias.ensemble.store import Store


class Task(NamedTuple):
    """A chunk to run: the seeds `start` to `stop` of one cell.

    `cell` and `chunk` are the numbers of the cell and of the chunk within it, `place`
    the index of the cell on every axis, and `point` the arguments of the experiment
    there.
    """

    cell: int
    chunk: int
    place: tuple[int, ...]
    point: Mapping[str, Any]
    start: int
    stop: int


class Job(NamedTuple):
    """What all tasks have in common; it is sent to other processes as it is."""

    experiment: Callable[..., Any]
    store: Store
    root: int
    jax_config: Mapping[str, Any]
    session: str
    revision: str = ""
    whole: bool = False
    """Whether a cell may lack a variable with a value per seed."""
    probe: bool = False
    """Whether to return the columns instead of writing them, because the store does not
    know its variables yet.
    """


class Report(NamedTuple):
    """The outcome of a task: `state` is "done", "failed" or, for a probe, "probed".

    `states` counts the seeds by how they ended.
    """

    task: Task
    state: str
    seconds: float
    states: dict[str, int]
    diverged: int
    error: str
    columns: dict[str, Column] | None


# Whether an experiment is running; it may run a sweep of its own.
INSIDE = contextvars.ContextVar("inside", default=False)
JAX_OPTIONS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
)


def jax_config() -> dict[str, Any]:
    """The options of JAX that the numbers depend on, as set in this process and
    thread.
    """
    return {name: getattr(jax.config, name) for name in JAX_OPTIONS} | {
        "jax_enable_x64": jnp.result_type(float) == jnp.float64
    }


@contextlib.contextmanager
def as_configured(config: Mapping[str, Any]) -> Iterator[None]:
    """Set these options of JAX while the context is open.

    Another process would otherwise use JAX's defaults.
    """
    before = {name: getattr(jax.config, name) for name in JAX_OPTIONS[1:]}
    changed = {name: config[name] for name in before if before[name] != config[name]}
    for name, value in changed.items():
        jax.config.update(name, value)
    try:
        with jax.enable_x64(config["jax_enable_x64"]):
            yield
    finally:
        for name in changed:
            jax.config.update(name, before[name])


def execute(job: Job, task: Task) -> Report:
    """Run a task.

    An experiment that raises an error gives a report with the state "failed".

    **Raises:** `StoreError` if the store cannot be written, or if this worker's JAX
    version or platform is not the sweep's.
    """
    began = time.perf_counter()
    columns: dict[str, Column] = {}
    states, error = {}, ""
    with as_configured(job.jax_config):
        here = {"platform": jax.default_backend(), "jax": jax.__version__}
        there = {name: job.store.spec[name] for name in here}
        if here != there:
            raise StoreError(
                f"a worker has {here}, but the sweep was begun with {there}: its numbers could "
                "differ, so it runs no chunks; start workers with the same JAX on the same "
                "platform"
            )
        token = INSIDE.set(True)
        try:
            keys = seeds(task.start, task.stop, root=job.root)
            columns = run_seeds(
                job.experiment, task.point, keys, reserved=tuple(job.store.axes), whole=job.whole
            )
            states = seed_states(columns, keys.shape[0])
        except (Exception, SystemExit) as problem:
            error = f"{type(problem).__name__}: {problem}"
        finally:
            INSIDE.reset(token)
    seconds = time.perf_counter() - began
    if not error and job.probe:
        return Report(task, "probed", seconds, states, diverged(states), "", columns)
    return settle(job, task, columns, states, seconds, error)


def settle(
    job: Job,
    task: Task,
    columns: dict[str, Column],
    states: dict[str, int],
    seconds: float,
    error: str,
) -> Report:
    """Write the results of a task and then its record, and return its report."""
    files: dict[str, str] = {}
    if not error:
        try:
            files = job.store.write(task.cell, task.place, task.chunk, columns)
        except ValueError as problem:
            error = str(problem)
    state = "failed" if error else "done"
    lost = diverged(states)
    device = jax.local_devices()[0]
    job.store.keep(
        task.cell,
        task.chunk,
        {
            "state": state,
            "start": task.start,
            "stop": task.stop,
            "states": {} if error else states,
            "diverged": 0 if error else lost,
            "error": error,
            "files": files,
            "seconds": seconds,
            "finished": time.time(),
            "session": job.session,
            "shared": "" if error else shared_digest(columns),
            "revision": job.revision,
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            "device": f"{device.platform}: {device.device_kind}",
        },
    )
    return Report(task, state, seconds, states, lost, error, None)


def nbytes(columns: Mapping[str, Column]) -> tuple[int, int]:
    """Bytes of the variables with a seed axis, and bytes of the others."""
    per_seed = sum(c.values.nbytes for c in columns.values() if c.per_seed)
    return per_seed, sum(np.asarray(c.values).nbytes for c in columns.values()) - per_seed
