"""Experiments for the tests of sweeps, with faults on demand.

They are NumPy functions of the keys, so a fresh process has almost nothing to compile.
They can be imported by name, as other processes need.
"""

import dataclasses
import functools
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import xarray as xr


def unit(keys, salt=0.0):
    """A number in [0, 1) for each key: a hash of the key's bits and `salt`."""
    words = np.asarray(jax.random.key_data(keys)).astype(np.uint64)
    mixed = (words[:, 0] * np.uint64(0x9E3779B97F4A7C15)) ^ (
        words[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    )
    mixed ^= np.float64(salt).view(np.uint64)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def result(keys, a=0.0):
    """A variable of each kind: a float, an integer, a boolean and a short curve per
    seed.
    """
    x = unit(keys, a)
    return {
        "value": x + a,
        "count": (1000 * x).astype(np.int64),
        "high": x > 0.5,
        "curve": x[:, None] * np.arange(1.0, 4.0),
    }


def hashed(keys, *, a=0.0, b=0.0):
    """An experiment that only computes numbers."""
    return result(keys, a + 10 * b)


def noted(keys, *, a=0.0, log="", pause=0.0, kill_once="", fail_at=None, diverge_at=None, width=3):
    """The experiment `hashed`, with a note of every chunk that begins, and faults.

    The note goes to the file `log`. On demand the experiment pauses, raises an error,
    diverges, or kills its process once.
    """
    if log:
        with open(log, "a") as file:
            file.write(f"{a!r}:{np.asarray(jax.random.key_data(keys[0])).tolist()}:{os.getpid()}\n")
    if pause:
        time.sleep(pause)
    if kill_once and a > 0:
        try:
            os.close(os.open(kill_once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    if fail_at is not None and a == fail_at:
        raise ArithmeticError(f"a = {a} is not to my liking")
    out = result(keys, a)
    if diverge_at is not None and a == diverge_at:
        out["value"] = np.full(len(keys), np.nan)
    if width != 3:
        out["curve"] = np.repeat(out["curve"][:, :1], width, axis=1) * unit(keys, 7.0)[
            :, None
        ] ** np.arange(width)
    return out


def computed(log):
    """How often each chunk was begun, from the notes of `noted`."""
    lines = Path(log).read_text().splitlines() if Path(log).is_file() else []
    return Counter(line.rsplit(":", 1)[0] for line in lines)


def processes(log):
    """The ids of the processes that computed chunks, from the notes of `noted`."""
    return {int(line.rsplit(":", 1)[1]) for line in Path(log).read_text().splitlines()}


def cramped(keys, *, a=0.0, log=""):
    """An experiment on a device that has memory for a single tile of 64."""
    if log:
        with open(log, "a") as file:
            file.write(f"{len(keys)}\n")
    if len(keys) > 64:
        raise jax.errors.JaxRuntimeError(
            f"RESOURCE_EXHAUSTED: Out of memory while trying to allocate {len(keys)} tiles"
        )
    return result(keys, a)


def terminated(keys, *, a=0.0, marker=""):
    """The experiment `hashed`, during which its process gets SIGTERM once."""
    if a > 0 and not os.path.exists(marker):
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return result(keys, a)


@dataclasses.dataclass(frozen=True)
class Config:
    """The config of a study to sweep."""

    gain: float = 1.0
    problem_seed: int = 0
    times: int = 3


def cell(config, keys):
    """One cell of the study: a dataset whose time axis depends on the config."""
    x = config.gain * unit(keys, float(config.problem_seed))
    time = config.gain * np.arange(1.0, config.times + 1)
    return xr.Dataset(
        {
            "loss": (
                ("seed", "time"),
                x[:, None] * np.exp(-np.arange(config.times))[None],
                {"units": "nats"},
            ),
            "steps": ((), np.int64(config.times)),
        },
        coords={
            "time": ("time", time, {"units": "s"}),
            "seed": np.arange(len(keys)) + 5000,
            "law": ("law", ["plain"]),
        },
    )


# The functions below run sweeps in child processes. These are forked from a process
# that has imported everything, before JAX has started threads.

GRID = {"a": [0.0, 0.5, 2.0]}


def small(log="", **options):
    """The sweep that the tests of faults disturb: three cells and nine chunks."""
    import sgfbias

    return sgfbias.Sweep(
        functools.partial(noted, log=str(log), **options), GRID, seeds=150, chunk=64
    )


def long(chunks, log="", **options):
    """The same sweep with a given number of chunks, which must be a multiple of
    four.
    """
    import sgfbias

    return sgfbias.Sweep(
        functools.partial(noted, log=str(log), **options),
        {"a": [0.0, 0.5, 1.0, 2.0]},
        seeds=5 * chunks // 4,
        chunk=5,
    )


def forked(run):
    """Call `run` in a child process, and return the id of that process.

    The child exits with 0, with 74 after a `StoreError`, with 75 after a
    `SweepInterrupted`, or with 1 and a traceback after any other error.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        import sgfbias

        try:
            run()
            code = 0
        except sgfbias.StoreError as error:
            print(error, flush=True)
            code = 74
        except sgfbias.SweepInterrupted:
            code = 75
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def lines(log):
    """The number of notes in the file so far."""
    return Path(log).read_bytes().count(b"\n") if Path(log).is_file() else 0


def killed_often(path, log, kills, seed, chunks):
    """Start a sweep again and again, kill it each time, and finally let it finish.

    The sweep is killed at a random instant. How the processes ended is printed as JSON.
    """
    chance, killed, finished, starting = random.Random(seed), 0, 0, 1.0
    while killed < kills:
        before, begun = lines(log), time.monotonic()
        child = forked(lambda: long(chunks, log, pause=0.002).run(path))
        waited = chance.choice([0, 1, 1, 2, 3, 4, 5, 6])
        if waited == 0:  # it is killed before it computes anything
            time.sleep(chance.uniform(0, starting))
        else:
            while (
                lines(log) < before + waited
                and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            ):
                if before == 0 and lines(log):
                    starting = min(starting, time.monotonic() - begun)
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        killed, finished = killed + (code == -signal.SIGKILL), finished + (code == 0)
        if code not in (0, -signal.SIGKILL):
            sys.exit(f"a life ended with {code}")
    last = os.waitstatus_to_exitcode(
        os.waitpid(forked(lambda: long(chunks, log, pause=0.002).run(path)), 0)[1]
    )
    print(json.dumps({"killed": killed, "finished": finished, "last": last}))


def together(path, log, runs):
    """Run several processes on one store at the same time, and print how each ended.

    `runs` lists, for each process, the options of `run` and those of the experiment.
    """

    def one(run, options):
        return lambda: small(log, **options).run(path, **run)

    children = [forked(one(run, options)) for run, options in runs]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes))


def disk_full(path, log, after, limit):
    """Run a sweep whose disk is full after some chunks, then again when it has room."""
    import sgfbias

    sweep = small(log, width=2000)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(state):
        if state["chunks_done"] == after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))

    try:
        sweep.run(path, progress=fill)
        message = ""
    except sgfbias.StoreError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    kept, left = (
        int(sgfbias.open_sweep(path)["runs_done"].sum()),
        [str(f) for f in Path(path).rglob("*") if "part" in f.name],
    )
    sweep.run(path)
    print(json.dumps({"message": message, "kept": kept, "left": left}))
