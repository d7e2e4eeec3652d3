"""Faults of a sweep, each of which must leave the numbers of an undisturbed run.

The faults are: being killed at random instants, a full disk, a store that refuses
writes or is damaged while it is written, several processes on one store, cells that
raise errors or diverge, and a second request to stop.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import sweep_experiments as experiments
import xarray as xr
from zarr.storage import LocalStore

import sgfbias as sgf
from sgfbias import cli
from sgfbias.ensemble import lock as lock_module
from sgfbias.ensemble.status import status

CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[2] / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def elsewhere(function, *arguments, timeout=300):
    """Run a function of `sweep_experiments` in a fresh process.

    Returns the last line that it printed, read as JSON, and all that it printed.
    """
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_ENABLE_X64": "1",
        **CACHE,
    }
    script = (
        "import json, sys, sgfbias, sweep_experiments; "
        f"sweep_experiments.{function}(*json.loads(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments, default=str)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def assert_same(one, other):
    """Assert that two datasets are the same bit for bit, except timings."""
    assert set(one.variables) == set(other.variables)
    for name in set(one.variables) - {"chunk_seconds"}:
        if one[name].dtype.kind in "OT":
            assert one[name].values.tolist() == other[name].values.tolist(), name
            continue
        assert (one[name].dims, one[name].dtype) == (other[name].dims, other[name].dtype), name
        assert one[name].values.tobytes() == other[name].values.tobytes(), name


def plain(path):
    """The whole store as xarray reads it without this package."""
    return xr.open_zarr(path, consolidated=False, chunks=None).load()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results that `small` must give."""
    return experiments.small().run(tmp_path_factory.mktemp("undisturbed") / "s.zarr").load()


# A sweep that is killed.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "chunks"), [(3, 20), pytest.param(50, 240, marks=pytest.mark.release)]
)
def test_killed_at_random_instants_it_ends_with_the_same_numbers(kills, chunks, tmp_path):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    ended, _ = elsewhere("killed_often", path, log, kills, 2024, chunks)
    assert (ended["killed"], ended["finished"], ended["last"]) == (kills, 0, 0)
    assert_same(
        sgf.open_sweep(path).load(),
        experiments.long(chunks).run(tmp_path / "undisturbed.zarr").load(),
    )
    assert_same(plain(path), plain(tmp_path / "undisturbed.zarr"))
    counts = experiments.computed(log)
    assert len(counts) == chunks
    # Each process that was killed lost at most one chunk in flight.
    assert sum(counts.values()) <= chunks + kills
    state = status(path)
    assert (state["done"], state["runs"], state["running"]) == (5 * chunks, 5 * chunks, False)


# Writes that are refused.


@pytest.mark.slow
def test_a_full_disk_is_said_and_waited_for(tmp_path):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    told, _ = elsewhere("disk_full", path, log, 4, 50_000)
    assert "the disk is full" in told["message"]
    assert "run the same command again" in told["message"]
    assert told["kept"] == 150 + 64
    assert told["left"] == []
    assert sum(experiments.computed(log).values()) == 9 + 1
    assert_same(plain(path), plain_of(experiments.small(width=2000), tmp_path / "undisturbed.zarr"))


def plain_of(sweep, path):
    """The store of an undisturbed run, as xarray reads it."""
    sweep.run(path)
    return plain(path)


def refuse(monkeypatch, words, number, after=0):
    """Refuse writes of files whose path contains `words`, after the first `after` of
    them.
    """
    left, write_bytes, put = [after], Path.write_bytes, LocalStore.set

    def check(path):
        if words in str(path):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number), str(path))

    def checked_write(self, data):
        check(self)
        return write_bytes(self, data)

    async def checked_set(self, key, *arguments, **options):
        check(self.root / key)
        return await put(self, key, *arguments, **options)

    monkeypatch.setattr(Path, "write_bytes", checked_write)
    monkeypatch.setattr(LocalStore, "set", checked_set)


@pytest.mark.parametrize(
    ("words", "after", "number"),
    [
        *(
            (words, 0, errno.EROFS)
            for words in ("value/c/", "sweep.json", "schema.json", "value/zarr.json", "runs_done/c")
        ),
        ("curve/c/", 5, errno.ENOSPC),
        ("records", 0, errno.EACCES),
        ("records", 4, errno.EIO),
    ],
)
def test_a_store_that_refuses_writes_stops_the_sweep_which_goes_on_later(
    words, after, number, tmp_path, monkeypatch, undisturbed
):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    sweep = experiments.small(log)
    with monkeypatch.context() as patch:
        refuse(patch, words, number, after)
        for _ in range(2):
            with pytest.raises(
                sgf.StoreError,
                match="disk is full" if number == errno.ENOSPC else "cannot be written",
            ):
                sweep.run(path)
    assert_same(sweep.run(path).load(), undisturbed)
    assert_same(plain(path), undisturbed)
    assert sum(experiments.computed(log).values()) <= 9 + 2
    assert not [f for f in path.rglob("*") if "part" in f.name]


def test_the_command_line_says_that_it_cannot_write(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs.toml").write_text(
        'function = "sweep_experiments:hashed"\nseeds = 10\n[grid]\na = [1.0, 2.0]\n'
    )
    with monkeypatch.context() as patch:
        refuse(patch, "records", errno.ENOSPC, 1)
        assert cli.main(["sweep", "runs.toml"]) == 74
    assert "the disk is full" in capsys.readouterr().err
    Path("file").write_text("not a folder")
    assert cli.main(["sweep", "runs.toml", "--out", "file"]) == 74
    assert cli.main(["sweep", "runs.toml", "--quiet"]) == 0


def test_a_place_where_no_store_can_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(sgf.StoreError, match="cannot be written"):
        experiments.small().run(tmp_path / "file" / "s.zarr")


# Damage while the sweep runs, and between two runs.


def flip(file, bit=3):
    """Change one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    file.write_bytes(data)


def truncate(file):
    """Cut off the second half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    """Empty a file, as a power cut may do."""
    file.write_bytes(b"")


def remove(file):
    """Remove a file or folder."""
    shutil.rmtree(file) if file.is_dir() else file.unlink()


def widen(file):
    """Change an array's description: chunks of 65 instead of 64 seeds."""
    text = file.read_text()
    assert "64" in text
    before, _, after = text.partition("chunk_shape")
    file.write_text(before + "chunk_shape" + after.replace("64", "65", 1))


def nonsense(file):
    """Overwrite a file with valid JSON of another kind."""
    file.write_text('{"check": 3, "body": [1, 2]}')


CHUNKS = ["value/c/0/0", "count/c/1/0", "curve/c/0/2/0", "high/c/0/1"]
DAMAGE = [
    (remove, "."),
    (remove, "ledger"),
    (remove, "ledger/records"),
    (remove, "value"),
    (remove, "curve/c"),
    (remove, "zarr.json"),
    (truncate, "zarr.json"),
    (flip, "zarr.json"),
    *((deed, file) for file in CHUNKS for deed in (flip, truncate, empty, remove)),
    *(
        (deed, f"ledger/{file}.json")
        for file in ("records/0-0", "records/1-0", "sweep", "schema")
        for deed in (flip, truncate, empty, remove, nonsense)
    ),
    *(
        (deed, f"{name}/zarr.json")
        for name in ("value", "a", "seed", "runs_done", "ledger")
        for deed in (truncate, remove, nonsense)
    ),
    (widen, "value/zarr.json"),
    (widen, "curve/zarr.json"),
    *((deed, f"{name}/c/0") for name in ("a", "seed") for deed in (flip, truncate, empty, remove)),
    (remove, "ledger/log.jsonl"),
    (remove, "ledger/session-0-of-1.json"),
    (truncate, "ledger/session-0-of-1.json"),
]


def rarer(deed, file, when):
    """Whether this damage is similar to another one that is always tested."""
    return (
        (deed in (truncate, empty, nonsense) and file != CHUNKS[0])
        or (when == "stopped" and file != CHUNKS[0])
        or file in CHUNKS[1:]
    )


@pytest.mark.parametrize(
    ("deed", "file", "when"),
    [
        pytest.param(
            deed,
            file,
            when,
            id=f"{deed.__name__}-{file}-{when}",
            marks=[pytest.mark.slow] * rarer(deed, file, when),
        )
        for when in ("running", "stopped")
        for deed, file in DAMAGE
    ],
)
def test_damage_is_found_and_mended(deed, file, when, tmp_path, undisturbed):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    sweep = experiments.small(log)
    done = []

    def harm(state):
        if state["chunks_done"] == (6 if deed is widen else 5) and not done:
            done.append(True)
            if when == "running":
                deed(path / file)
            else:
                raise KeyboardInterrupt

    if when == "running":
        sweep.run(path, progress=harm)
    else:
        with pytest.raises(KeyboardInterrupt):
            sweep.run(path, progress=harm)
        deed(path / file)
        if file == "ledger":  # without it nothing shows that the folder is a sweep's
            with pytest.raises(sgf.StoreError, match="left alone"):
                sweep.run(path)
            remove(path)
        sweep.run(path)
    assert done
    assert_same(sgf.open_sweep(path).load(), undisturbed)
    assert_same(plain(path), undisturbed)
    lost = (
        5 if deed is remove and file in (".", "ledger", "ledger/records", "value", "curve/c") else 2
    )
    assert sum(experiments.computed(log).values()) <= 9 + lost
    assert status(path)["done"] == 450


def test_damage_to_a_finished_store_is_mended_by_another_run(tmp_path, undisturbed):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    sweep = experiments.small(log)
    sweep.run(path)
    for name in ("runs_done/c/0", "chunk_seconds/c/0/0", "error/zarr.json", "value/c/2/2", "a/c/0"):
        for deed in (flip, truncate, remove):
            deed(path / name) if (path / name).exists() else None
            assert_same(sweep.run(path).load(), undisturbed)
            assert_same(plain(path), undisturbed)
    assert sum(experiments.computed(log).values()) == 9 + 3


def test_a_store_under_steady_attack_never_ends_with_other_numbers(tmp_path, undisturbed):
    """Files are damaged at random instants, even between being written and being
    summed.

    The sweep must stop, or end with the right numbers.
    """
    path, chance, stop, deeds = tmp_path / "s.zarr", random.Random(7), threading.Event(), []
    sweep = experiments.small(pause=0.01)

    def attack():
        while not stop.is_set() and len(deeds) < 60:
            files = sorted(f for f in path.rglob("*") if f.is_file() and "lock" not in f.name)
            if files:
                deed = chance.choice([flip, truncate, remove, empty])
                try:
                    deed(chance.choice(files))
                    deeds.append(deed)
                except (OSError, IndexError):
                    pass
            stop.wait(chance.uniform(0, 0.02))

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for _ in range(20):
            with contextlib.suppress(sgf.StoreError):
                sweep.run(path)
            if len(deeds) >= 60:
                break
    finally:
        stop.set()
        attacker.join()
    assert len(deeds) > 20
    if not (path / "ledger").is_dir() or not (path / "ledger" / "sweep.json").is_file():
        shutil.rmtree(path, ignore_errors=True)
    assert_same(sweep.run(path).load(), undisturbed)
    assert_same(plain(path), undisturbed)


def test_a_store_that_another_sweep_takes_over_is_left_to_it(tmp_path):
    path, other = tmp_path / "s.zarr", tmp_path / "other.zarr"
    experiments.small(width=4).run(other)

    def usurp(state):
        if state["chunks_done"] == 5:
            shutil.rmtree(path)
            shutil.copytree(other, path)

    with pytest.raises(sgf.StoreError, match="become another sweep's"):
        experiments.small().run(path, progress=usurp)
    experiments.small(width=4).run(path)
    assert_same(plain(path), plain(other))


def test_chunks_of_another_sweep_whose_description_is_lost_are_not_mixed_in(tmp_path):
    path = tmp_path / "s.zarr"
    experiments.small(width=4).run(path)
    (path / "ledger" / "sweep.json").unlink()
    with pytest.raises(sgf.StoreError, match="chunks of another sweep"):
        experiments.small().run(path)
    assert plain(path)["curve"].sizes["curve_0"] == 4
    assert_same(experiments.small(width=4).run(path).load(), plain(path))


def test_a_disk_that_damages_everything_is_given_up_on(tmp_path):
    path = tmp_path / "s.zarr"

    def harm(state):
        for file in (path / "value" / "c").rglob("*"):
            if file.is_file():
                flip(file)

    with pytest.raises(sgf.StoreError, match="keep being damaged"):
        experiments.small().run(path, progress=harm)


def test_what_a_killed_process_left_behind_disturbs_nobody(tmp_path, undisturbed):
    path = tmp_path / "s.zarr"
    sweep = experiments.small()
    sweep.run(path)
    for name in (
        "ledger/zarr.json.4711.part",
        "value/zarr.json.4711.part",
        "ledger/records/0-0.json.4711.part",
        "value/c/0/0.0123456789abcdef.partial",
    ):
        (path / name).write_bytes(b"half of a fi")
    assert_same(plain(path), undisturbed)
    assert_same(sgf.open_sweep(path).load(), undisturbed)
    assert_same(sweep.run(path).load(), undisturbed)


def test_nothing_unfinished_is_ever_in_the_root(tmp_path, monkeypatch):
    """A file in the root is taken for a member of the store by whoever opens it.

    If the process is killed, an unfinished file would remain there.
    """
    path, replace, found = tmp_path / "s.zarr", os.replace, set()

    def watched(source, target):
        found.update(f.name for f in path.iterdir() if f.is_file())
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    experiments.small().run(path)
    experiments.small().run(path, progress=lambda state: (path / "zarr.json").write_text("damaged"))
    assert found == {"zarr.json"}


# Several processes.


@pytest.mark.slow
def test_of_processes_started_on_one_store_by_mistake_one_wins(tmp_path, undisturbed):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    slow = {"pause": 0.3}
    codes, said = elsewhere("together", path, log, [[{}, slow], [{}, slow], [{}, {"width": 4}]])
    assert sorted(codes) == [0, 74, 74], said
    assert "being written by another process (process " in said
    counts = experiments.computed(log)
    assert sum(counts.values()) == 9
    if codes[2]:  # the process with another width was refused
        assert_same(plain(path), undisturbed)
    else:
        assert plain(path)["curve"].sizes["curve_0"] == 4
    assert len(experiments.processes(log)) == 1


@pytest.mark.slow
def test_processes_with_a_share_each_make_the_whole(tmp_path, undisturbed):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    codes, said = elsewhere(
        "together", path, log, [[{"share": [k, 2]}, {"pause": 0.05}] for k in range(2)]
    )
    assert codes == [0, 0], said
    assert_same(plain(path), undisturbed)
    assert_same(sgf.open_sweep(path).load(), undisturbed)
    assert set(experiments.computed(log).values()) == {1}
    assert len(experiments.processes(log)) == 2


def test_a_share_taken_twice_and_a_whole_beside_shares_are_refused(tmp_path):
    path = tmp_path / "s.zarr"
    sweep = experiments.small()
    with lock_module.locked(sweep.store(path), (0, 2)):
        assert status_of_lock(path)
        with pytest.raises(sgf.StoreError, match=f"process {os.getpid()} on "):
            sweep.run(path, share=(0, 2))
        with pytest.raises(sgf.StoreError, match="being written"):
            sweep.run(path)
        sweep.run(path, share=(1, 2), progress=False)
    assert not status_of_lock(path)
    with (
        lock_module.locked(sweep.store(path)),
        pytest.raises(sgf.StoreError, match="being written"),
    ):
        sweep.run(path, share=(1, 2))
    sweep.run(path)


def status_of_lock(path):
    """Whether the store is said to be in use."""
    return lock_module.is_locked(path)


# Cells that go wrong.


@pytest.mark.parametrize("where", [0.0, 0.5, 2.0])
def test_a_cell_that_raises_is_marked_and_the_rest_completes(where, tmp_path, undisturbed):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    sweep = experiments.small(log, fail_at=where)
    for _ in range(2):
        runs = sweep.run(path).load()
        for dataset in (runs, plain(path)):
            np.testing.assert_array_equal(dataset["runs_failed"].sel(a=where), 150)
            assert (
                str(dataset["error"].sel(a=where).values)
                == f"ArithmeticError: a = {where} is not to my liking"
            )
            assert np.isnan(dataset["value"].sel(a=where)).all()
            assert (dataset["count"].sel(a=where) == -1).all()
            for a in {0.0, 0.5, 2.0} - {where}:
                for name in (
                    "value",
                    "count",
                    "high",
                    "curve",
                    "runs_done",
                    "runs_failed",
                    "error",
                ):
                    np.testing.assert_array_equal(
                        dataset[name].sel(a=a), undisturbed[name].sel(a=a)
                    )
        assert sum(experiments.computed(log).values()) == 9  # no chunk is run again
    assert [cell["error"] != "" for cell in status(path)["cells"]] == [
        a == where for a in (0.0, 0.5, 2.0)
    ]
    sweep.run(path, retry_failed=True)
    assert sum(experiments.computed(log).values()) == 9 + 3


def test_a_cell_that_raises_in_the_middle_keeps_what_it_has(tmp_path, undisturbed):
    def experiment(keys, *, a):
        if a == 0.5 and len(keys) == 22:
            raise ArithmeticError("late")
        return experiments.result(keys, a)

    runs = sgf.Sweep(experiment, experiments.GRID, seeds=150, chunk=64).run(tmp_path / "s.zarr")
    np.testing.assert_array_equal(runs["runs_done"], [150, 128, 150])
    np.testing.assert_array_equal(runs["runs_failed"], [0, 22, 0])
    np.testing.assert_array_equal(runs["value"][1, :128], undisturbed["value"][1, :128])
    assert np.isnan(runs["value"][1, 128:]).all()


def test_all_cells_raise(tmp_path):
    path = tmp_path / "s.zarr"

    def experiment(keys, *, a):
        raise RuntimeError(f"no {a}")

    with pytest.raises(
        sgf.StoreError, match=r"every cell that was tried failed, the first with RuntimeError: no 0"
    ):
        sgf.Sweep(experiment, experiments.GRID, seeds=150, chunk=64).run(path)
    state = status(path)
    assert (state["failed"], state["done"]) == (450, 0)
    assert [cell["error"] for cell in state["cells"]] == [
        f"RuntimeError: no {a}" for a in (0.0, 0.5, 2.0)
    ]


def test_all_seeds_of_a_cell_diverge(tmp_path, undisturbed):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    runs = experiments.small(log, diverge_at=0.5).run(path)
    np.testing.assert_array_equal(runs["runs_diverged"], [0, 150, 0])
    np.testing.assert_array_equal(runs["runs_done"], [150, 150, 150])
    assert np.isnan(runs["value"].sel(a=0.5)).all()
    np.testing.assert_array_equal(runs["curve"], undisturbed["curve"])
    assert status(path)["diverged"] == 150
    experiments.small(log, diverge_at=0.5).run(path)
    assert sum(experiments.computed(log).values()) == 9


def test_results_that_look_like_nothing_are_kept_all_the_same(tmp_path):
    """A chunk may consist of the value that stands for missing results.

    Its file has a checksum like any other.
    """
    path = tmp_path / "s.zarr"

    def experiment(keys, *, a):
        n = len(keys)
        return {
            "x": np.full(n, np.nan),
            "k": np.full(n, -1),
            "u": np.zeros(n, np.uint32),
            "b": np.zeros(n, bool),
            "e": np.zeros((n, 0)),
        }

    sweep = sgf.Sweep(experiment, experiments.GRID, seeds=150, chunk=64)
    runs = sweep.run(path)
    assert (runs["runs_done"] == 150).all()
    assert (
        len([f for name in "xkub" for f in (path / name / "c").rglob("*") if f.is_file()]) == 4 * 9
    )
    flip(path / "b" / "c" / "1" / "1")
    with pytest.raises(ValueError, match=r"(?i)checksum"):
        plain(path)
    assert_same(sweep.run(path).load(), runs.load())


# A sweep that is asked to stop twice.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_twice_the_chunk_in_flight_is_abandoned_and_its_cell_has_not_failed(
    number, tmp_path, undisturbed
):
    path, marker = tmp_path / "s.zarr", tmp_path / "marker"
    marker.write_text("armed")

    def experiment(keys, *, a):
        if a == 0.5 and marker.exists():
            marker.unlink()
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            raise AssertionError("not abandoned")
        return experiments.result(keys, a)

    sweep = sgf.Sweep(experiment, experiments.GRID, seeds=150, chunk=64)
    with pytest.raises(sgf.SweepInterrupted, match="abandoned"):
        sweep.run(path)
    state = status(path)
    assert (state["done"], state["failed"]) == (150, 0)
    assert_same(sweep.run(path).load(), undisturbed)


def test_an_interrupt_within_the_experiment_is_not_a_failure_of_the_cell(tmp_path, undisturbed):
    path, marker = tmp_path / "s.zarr", tmp_path / "marker"
    marker.write_text("armed")

    def experiment(keys, *, a):
        if a == 0.5 and marker.exists():
            marker.unlink()
            raise KeyboardInterrupt
        return experiments.result(keys, a)

    sweep = sgf.Sweep(experiment, experiments.GRID, seeds=150, chunk=64)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(path)
    assert status(path)["failed"] == 0
    assert_same(sweep.run(path).load(), undisturbed)
