"""Sweeps whose chunks run elsewhere: in threads, in processes and on a Dask cluster.

Workers are lost or killed while they run, cells fail, stores refuse writes, and the
driver is asked to stop or is killed.
"""

import concurrent.futures as cf
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sweep_experiments as experiments
import xarray as xr

import sgfbias as sgf
from sgfbias import cli
from sgfbias.core import kept
from sgfbias.ensemble.status import status
from sgfbias.ensemble.store import Store


def assert_same(one, other):
    """Assert that two datasets are the same bit for bit, except timings."""
    assert set(one.variables) == set(other.variables)
    for name in set(one.variables) - {"chunk_seconds"}:
        if one[name].dtype.kind in "OT":
            assert one[name].values.tolist() == other[name].values.tolist(), name
            continue
        assert one[name].values.tobytes() == other[name].values.tobytes(), name


def plain(path):
    """The whole store as xarray reads it without this package."""
    return xr.open_zarr(path, consolidated=False, chunks=None).load()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results that `small` must give."""
    return experiments.small().run(tmp_path_factory.mktemp("undisturbed") / "s.zarr").load()


class Pretend(cf.Executor):
    """An executor in this process whose tasks can be lost.

    `mishap(number)` is the error that the task of that number ends with, or None if it
    runs. `refuse(number)` is the error that `submit` raises, or None.
    """

    def __init__(self, mishap=lambda number: None, refuse=lambda number: None):
        self.mishap, self.refuse, self.count = mishap, refuse, 0

    def submit(self, function, /, *arguments, **options):
        """Run the task at once."""
        self.count += 1
        if (error := self.refuse(self.count)) is not None:
            raise error
        future = cf.Future()
        error = self.mishap(self.count)
        if error is None:
            try:
                future.set_result(function(*arguments, **options))
            except Exception as raised:
                error = raised
        if error is not None:
            future.set_exception(error)
        return future


def test_threads_give_the_same(tmp_path, undisturbed):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    states = []
    with cf.ThreadPoolExecutor(2) as pool:
        sweep = experiments.small(log)
        assert_same(
            sweep.run(
                path, executor=pool, progress=lambda state: states.append(dict(state))
            ).load(),
            undisturbed,
        )
        assert_same(sweep.run(path, executor=pool).load(), undisturbed)
    assert_same(plain(path), undisturbed)
    assert [state["chunks_done"] for state in states] == list(range(10))
    assert set(experiments.computed(log).values()) == {1}


def test_no_more_chunks_are_given_out_than_asked_for(tmp_path):
    class Counting(cf.ThreadPoolExecutor):
        now = most = 0

        def submit(self, *arguments):
            self.now += 1
            self.most = max(self.most, self.now)
            future = super().submit(*arguments)
            future.add_done_callback(lambda _: setattr(self, "now", self.now - 1))
            return future

    for in_flight in (1, 2, None):
        with Counting(2) as pool:
            experiments.small(pause=0.01).run(
                tmp_path / f"{in_flight}.zarr", executor=pool, in_flight=in_flight
            )
            assert 1 <= pool.most <= (in_flight or 4)


def test_a_cell_that_fails_elsewhere_is_marked_and_the_rest_completes(tmp_path, undisturbed):
    with cf.ThreadPoolExecutor(2) as pool:
        for where in (0.0, 0.5):
            runs = experiments.small(fail_at=where).run(tmp_path / f"{where}.zarr", executor=pool)
            np.testing.assert_array_equal(runs["runs_failed"].sel(a=where), 150)
            assert "not to my liking" in str(runs["error"].sel(a=where).values)
            for a in {0.0, 0.5, 2.0} - {where}:
                np.testing.assert_array_equal(runs["value"].sel(a=a), undisturbed["value"].sel(a=a))
        with pytest.raises(sgf.StoreError, match="every cell that was tried failed"):
            sgf.Sweep(functools.partial(experiments.noted, fail_at=1.0), {"a": [1.0]}, seeds=4).run(
                tmp_path / "all.zarr", executor=pool
            )


def test_chunks_of_a_worker_that_is_lost_are_given_out_again(tmp_path, undisturbed):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    executor = Pretend(
        lambda number: ConnectionError("the worker is gone") if number in (1, 3, 4, 7) else None
    )
    assert_same(
        experiments.small(log).run(path, executor=executor, in_flight=3).load(), undisturbed
    )
    assert sum(experiments.computed(log).values()) == 9
    events = [json.loads(line) for line in (path / "ledger" / "log.jsonl").read_text().splitlines()]
    assert [event["error"] for event in events if event["event"] == "lost"] == [
        "ConnectionError: the worker is gone"
    ] * 4


@pytest.mark.parametrize("first", [1, 3])
def test_a_chunk_that_loses_every_worker_is_given_up_with_what_is_done_kept(
    first, tmp_path, undisturbed
):
    path = tmp_path / "s.zarr"
    with pytest.raises(
        sgf.StoreError,
        match=r"seeds \d+:\d+ lost its worker 4 times \(MemoryError: killed\); what is done is "
        r"kept",
    ):
        experiments.small().run(
            path,
            executor=Pretend(lambda number: MemoryError("killed") if number >= first else None),
            in_flight=1,
        )
    assert status(path)["done"] == (0 if first == 1 else 128)
    assert_same(experiments.small().run(path).load(), undisturbed)


@pytest.mark.parametrize("first", [1, 4])
def test_a_broken_pool_is_replaced_if_it_can_be(first, tmp_path, undisturbed):
    def broken(number):
        return cf.BrokenExecutor("a process in the pool was killed") if number >= first else None

    for kind in ({"mishap": broken}, {"refuse": broken}):
        path = tmp_path / f"{next(iter(kind))}.zarr"
        with pytest.raises(sgf.StoreError, match="the pool of workers is broken"):
            experiments.small().run(path, executor=Pretend(**kind))
        assert_same(experiments.small().run(path).load(), undisturbed)
        pools = iter([Pretend(**kind), Pretend()])
        assert_same(
            experiments.small()
            .run(tmp_path / f"{next(iter(kind))}-mended.zarr", executor=lambda: next(pools))
            .load(),
            undisturbed,
        )


def test_a_store_that_refuses_a_worker_stops_the_sweep(tmp_path, monkeypatch, undisturbed):
    path, write, left = tmp_path / "s.zarr", Store.write, [4]

    def refuse(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise sgf.StoreError("the disk is full")
        return write(self, *arguments)

    with monkeypatch.context() as patch, cf.ThreadPoolExecutor(2) as pool:
        patch.setattr(Store, "write", refuse)
        with pytest.raises(sgf.StoreError, match="the disk is full"):
            experiments.small().run(path, executor=pool)
    assert status(path)["done"] > 0
    assert_same(experiments.small().run(path).load(), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_chunks_in_flight_finish_and_no_more_are_given_out(
    number, tmp_path, undisturbed
):
    path, log = tmp_path / "s.zarr", tmp_path / "log"

    def ask(state):
        if state["chunks_done"] == 2:
            os.kill(os.getpid(), number)

    sweep = experiments.small(log, pause=0.03)
    with (
        cf.ThreadPoolExecutor(2) as pool,
        pytest.raises(sgf.SweepInterrupted, match="are done and kept"),
    ):
        sweep.run(path, executor=pool, progress=ask)
    begun = sum(experiments.computed(log).values())
    assert begun <= 6
    assert len(list((path / "ledger" / "records").iterdir())) == begun
    assert_same(sweep.run(path).load(), undisturbed)
    assert set(experiments.computed(log).values()) == {1}


def test_damage_done_while_chunks_run_elsewhere_is_mended(tmp_path, undisturbed):
    path = tmp_path / "s.zarr"
    done = []

    def harm(state):
        if state["chunks_done"] == 5 and not done:
            done.append(True)
            for file in sorted((path / "value" / "c").rglob("*"))[:2]:
                if file.is_file():
                    file.write_bytes(file.read_bytes()[:-1] + b"\0")
            (path / "ledger" / "records" / "0-1.json").unlink()
            (path / "curve" / "zarr.json").unlink()

    with cf.ThreadPoolExecutor(2) as pool:
        assert_same(experiments.small().run(path, executor=pool, progress=harm).load(), undisturbed)
    assert done
    assert_same(plain(path), undisturbed)


# Processes.


@pytest.mark.slow
def test_a_worker_process_that_is_killed_is_replaced(tmp_path, undisturbed):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    pools = []

    def make():
        pools.append(cf.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")))
        return pools[-1]

    sweep = experiments.small(log, kill_once=str(tmp_path / "marker"))
    try:
        runs = sweep.run(path, executor=make)
    finally:
        for pool in pools:
            pool.shutdown()
    assert (tmp_path / "marker").exists()
    assert len(pools) == 2
    assert_same(runs.load(), undisturbed)
    assert_same(plain(path), undisturbed)
    assert os.getpid() not in experiments.processes(log)
    # The two workers may have lost one chunk each.
    assert sum(experiments.computed(log).values()) <= 9 + 2
    assert "lost" in (path / "ledger" / "log.jsonl").read_text()


TOML = """
function = "sweep_experiments:noted"
seeds = "0:150"
chunk = 64
[grid]
a = [0.0, 0.5, 2.0]
[config]
"""


@pytest.mark.slow
def test_workers_on_the_command_line(tmp_path, monkeypatch, undisturbed, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    Path("runs.toml").write_text(TOML + 'log = "log"\nfail_at = 2.0\n')
    assert cli.main(["sweep", "runs.toml", "--workers", "2"]) == 1
    assert "not to my liking" in capsys.readouterr().err
    runs = sgf.open_sweep("results/runs.zarr")
    np.testing.assert_array_equal(runs["runs_done"], [150, 150, 0])
    np.testing.assert_array_equal(runs["value"][:2], undisturbed["value"][:2])
    assert os.getpid() not in experiments.processes("log")


def command(folder, *words):
    """Start the command line in a process group of its own."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    script = "import sys; from sgfbias.cli import main; sys.exit(main())"
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-c", script, *words],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def until(condition, seconds=60):
    """Wait until `condition()` is true, at most so many seconds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "the condition did not become true in time"
        time.sleep(0.05)


def alive(process):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow(cases=1)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_as_a_terminal_or_a_scheduler_sends_it(
    number, tmp_path, undisturbed
):
    (tmp_path / "runs.toml").write_text(TOML + 'log = "log"\npause = 1.0\n')
    driver = command(tmp_path, "sweep", "runs.toml", "--workers", "2", "--quiet")
    until(lambda: experiments.lines(tmp_path / "log") >= 4)
    os.killpg(driver.pid, number)
    code = driver.wait(60)
    said = (tmp_path / "said").read_text()
    assert code == 75, said
    until(lambda: not any(map(alive, experiments.processes(tmp_path / "log"))), 15)
    assert command(tmp_path, "sweep", "runs.toml", "--workers", "2", "--quiet").wait(120) == 0, (
        tmp_path / "said"
    ).read_text()
    assert_same(sgf.open_sweep(tmp_path / "results" / "runs.zarr").load(), undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_workers_of_a_driver_that_was_killed_end_too(tmp_path, undisturbed):
    (tmp_path / "runs.toml").write_text(TOML + 'log = "log"\npause = 1.0\n')
    driver = command(tmp_path, "sweep", "runs.toml", "--workers", "2", "--quiet")
    until(lambda: experiments.lines(tmp_path / "log") >= 4)
    driver.kill()
    driver.wait(30)
    try:
        # The old workers may still be running now.
        again = command(tmp_path, "sweep", "runs.toml", "--quiet")
        assert again.wait(120) == 0, (tmp_path / "said").read_text()
        assert_same(sgf.open_sweep(tmp_path / "results" / "runs.zarr").load(), undisturbed)
        until(
            lambda: not any(map(alive, experiments.processes(tmp_path / "log") - {again.pid})), 15
        )
    finally:
        for process in experiments.processes(tmp_path / "log"):
            if alive(process):
                os.kill(process, signal.SIGKILL)


# Dask.


@pytest.fixture(scope="module")
def cluster():
    """A local Dask cluster of two worker processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_dask_worker_is_killed_in_mid_run(cluster, tmp_path, undisturbed):
    from distributed import Client

    path, log = tmp_path / "s.zarr", tmp_path / "log"
    killed = []
    with Client(cluster) as client:
        client.wait_for_workers(2)
        workers = list(client.run(os.getpid).values())

        def kill(state):
            if state["chunks_done"] == 2 and not killed:
                (victim,) = {
                    int(line.rsplit(":", 1)[1]) for line in log.read_text().splitlines()[-1:]
                }
                killed.append(victim)
                os.kill(victim, signal.SIGKILL)

        sweep = experiments.small(log, pause=0.2)
        runs = sweep.run(path, executor=client.get_executor(), progress=kill).load()
    assert set(killed) <= set(workers)
    assert len(killed) == 1
    assert_same(runs, undisturbed)
    assert_same(plain(path), undisturbed)
    assert len(experiments.processes(log)) >= 2
    # At most the four chunks in flight were computed twice.
    assert sum(experiments.computed(log).values()) <= 9 + 4
    assert not {os.getpid()} & experiments.processes(log)


@pytest.mark.filterwarnings("default")
def test_dask_on_the_command_line_with_a_cell_that_fails(
    cluster, tmp_path, monkeypatch, undisturbed, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    Path("runs.toml").write_text(
        TOML + f"log = {json.dumps(str(tmp_path / 'log'))}\nfail_at = 0.5\n"
    )
    assert cli.main(["sweep", "runs.toml", "--dask", cluster.scheduler_address]) == 1
    assert "(a=0.5): ArithmeticError: a = 0.5 is not to my liking" in capsys.readouterr().err
    runs = sgf.open_sweep("results/runs.zarr")
    np.testing.assert_array_equal(runs["runs_done"], [150, 0, 150])
    np.testing.assert_array_equal(runs["value"][::2], undisturbed["value"][::2])
    assert not {os.getpid()} & experiments.processes("log")


@pytest.mark.slow
def test_worker_processes_keep_compiled_programs_where_their_parent_does(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "_place", str(tmp_path))
    with sgf.processes(1)() as pool:
        assert pool.submit(kept.kept).result(120) == str(tmp_path)
