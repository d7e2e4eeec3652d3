"""Faults that would make a sweep's numbers wrong without any message.

They are: changed code, changed variables, another sweep in the same place, and files
that are missing.
"""

import concurrent.futures
import functools
import json
import multiprocessing
import shutil
import threading

import jax
import numpy as np
import pytest
import xarray as xr

import sgfbias as sgf
from sgfbias.core.fingerprint import fingerprint
from sgfbias.ensemble.disk import StoreError

SCALE = 2.0


def words(keys):
    return np.asarray(jax.random.key_data(keys)).astype(np.float64).sum(axis=1)


def helper(x):
    return x * SCALE


def experiment(keys, *, a):
    return {"x": helper(words(keys)) * a}


# These are globals of the module, because the values that an experiment closes over are
# part of its fingerprint, and a barrier changes while a thread waits at it.
BARRIER, MET = threading.Barrier(2), threading.local()


def test_processes_that_disagree_on_the_variables_do_not_decode_each_other(tmp_path):
    """Some cells return integers and others floats, and two shares probe at once.

    The first to write the schema determines the type of `x`, and the other cells fail.
    """

    def mixed(keys, *, a):
        if not getattr(MET, "yes", False):
            MET.yes = True
            BARRIER.wait(timeout=30)
        return {"x": np.full(len(keys), int(a) if a in (0, 2) else a)}

    def run(k):
        sgf.Sweep(mixed, {"a": [0.0, 1.5, 2.0, 3.5]}, seeds=4).run(
            tmp_path / "s.zarr", share=(k, 2)
        )

    threads = [threading.Thread(target=run, args=(k,)) for k in (0, 1)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    runs = sgf.open_sweep(tmp_path / "s.zarr")
    good = runs["runs_done"].values == 4
    assert good.sum() == 2
    np.testing.assert_array_equal(
        runs["x"].values[good], np.broadcast_to(runs["a"].values[good][:, None], (2, 4))
    )
    assert all("differs in kind" in str(e) for e in runs["error"].values[~good])


def test_a_store_that_has_become_another_sweeps_is_left_alone(tmp_path):
    path = tmp_path / "s.zarr"

    def first(keys, *, a):
        # While this sweep runs, the store is deleted and another sweep is run there.
        if a == 2:
            shutil.rmtree(path)
            second.run(path)
        return {"x": 1000 * words(keys) * a}

    second = sgf.Sweep(experiment, {"a": [1.0, 2.0, 3.0]}, seeds=4)
    with pytest.raises(StoreError, match="has become another sweep's"):
        sgf.Sweep(first, {"a": [1.0, 2.0, 3.0]}, seeds=4).run(path)
    np.testing.assert_array_equal(
        sgf.open_sweep(path)["x"], 2 * np.outer([1, 2, 3], words(sgf.seeds(0, 4)))
    )


def test_what_is_not_of_a_seed_must_not_depend_on_which_seeds(tmp_path):
    def summed(keys):
        return xr.Dataset({"x": ("seed", words(keys)), "mean": ((), words(keys).mean())})

    runs = sgf.Sweep(summed, seeds=6, chunk=2).run(tmp_path / "s.zarr")
    assert int(runs["runs_failed"]) == 6
    assert "differs between seeds of one cell" in str(runs["error"].values)
    whole = sgf.Sweep(summed, seeds=6, chunk=6).run(tmp_path / "whole.zarr")
    assert int(whole["runs_done"]) == 6


def test_a_file_that_is_gone_is_an_error_not_a_number(tmp_path):
    def three(keys):
        return {"x": words(keys), "b": words(keys) > 0, "n": np.arange(len(keys), dtype=np.uint32)}

    runs = sgf.Sweep(three, seeds=4).run(tmp_path / "s.zarr")
    for name in "xbn":
        shutil.rmtree(tmp_path / "s.zarr" / name / "c")
        with pytest.raises(StoreError, match="is gone: run the same sweep again"):
            sgf.open_sweep(tmp_path / "s.zarr")[name].load()
    again = sgf.Sweep(three, seeds=4).run(tmp_path / "s.zarr")
    np.testing.assert_array_equal(again["x"], words(sgf.seeds(0, 4)))
    shutil.rmtree(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="is gone"):
        runs["x"].load()


def test_labels_of_a_results_own_dimensions_are_kept_and_must_agree(tmp_path):
    def labelled(keys, *, order):
        names = ["gd", "sgd"] if order == 0 else ["sgd", "gd"]
        values = np.stack([words(keys) * (1 if n == "gd" else 2) for n in names], axis=1)
        return xr.Dataset({"x": (("seed", "algorithm"), values)}, {"algorithm": names})

    runs = sgf.Sweep(labelled, {"order": [0, 1]}, seeds=4).run(tmp_path / "s.zarr")
    assert runs["algorithm"].values.tolist() == ["gd", "sgd"]
    np.testing.assert_array_equal(
        runs["x"].sel(order=0, algorithm="sgd"), 2 * words(sgf.seeds(0, 4))
    )
    assert runs["runs_failed"].values.tolist() == [0, 4]


def compiled(source):
    space = {"np": np}
    exec(source, space)
    return space["f"]


PAIRS = {
    "another constant": (
        compiled("def f(k): return k * 2.0"),
        compiled("def f(k): return k * 3.0"),
    ),
    "jit": (
        jax.jit(compiled("def f(k): return k * 2.0")),
        jax.jit(compiled("def f(k): return k * 3.0")),
    ),
    "lambdas on one line": (lambda k: k, lambda k: -k),
    "arguments that run together": (
        functools.partial(experiment, 1, 23),
        functools.partial(experiment, 12, 3),
    ),
    "a number of the module": (
        compiled("S = 1.0\ndef f(k): return k * S"),
        compiled("S = 2.0\ndef f(k): return k * S"),
    ),
    "an inner function": (
        compiled("def f(k): return (lambda x: x + 1)(k)"),
        compiled("def f(k): return (lambda x: x + 2)(k)"),
    ),
    "an array closed over": (
        functools.partial(experiment, a=np.arange(2000.0)),
        functools.partial(experiment, a=np.arange(2000.0) + (np.arange(2000) == 1000)),
    ),
    "whole numbers": (functools.partial(experiment, a=1), functools.partial(experiment, a=1.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_other_code_is_another_sweep(name):
    first, second = PAIRS[name]
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) == fingerprint(first)


def test_a_function_beside_the_experiment_counts(monkeypatch):
    before = fingerprint(experiment)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert fingerprint(experiment) != before
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert fingerprint(experiment) == before


def test_numbers_of_one_sweep_are_told_apart_as_their_record_is(tmp_path):
    """1 and 1.0 give different identities, hence different sweeps; NaN equals
    itself.
    """
    path = tmp_path / "s.zarr"
    sgf.Sweep(experiment, {"a": [1, 2]}, seeds=4).run(path)
    with pytest.raises(StoreError, match=r"grid.a: \[1, 2\] in the store, \[1.0, 2.0\] now"):
        sgf.Sweep(experiment, {"a": [1.0, 2.0]}, seeds=4).run(path)
    mixed = sgf.Sweep(experiment, {"a": [0, 0.5]}, seeds=4).run(tmp_path / "mixed.zarr")
    assert mixed["runs_done"].values.tolist() == [4, 4]


def test_options_of_jax_are_part_of_a_sweep_and_reach_its_workers(tmp_path):
    sweep = sgf.Sweep(experiment, {"a": [1.0]}, seeds=4)
    sweep.run(tmp_path / "s.zarr")
    jax.config.update("jax_threefry_partitionable", False)
    try:
        with pytest.raises(
            StoreError, match="options.jax_threefry_partitionable: True in the store, False now"
        ):
            sweep.run(tmp_path / "s.zarr")
    finally:
        jax.config.update("jax_threefry_partitionable", True)
    spec = json.loads(sgf.open_sweep(tmp_path / "s.zarr").attrs["sweep"])
    assert spec["versions"]["diffrax"]


BAD = {
    "draws twice": (
        lambda: sgf.Sweep(experiment, {"draw": [7, 8], "a": [1.0]}, draws=2),
        "both `draws` and an axis 'draw'",
    ),
    "a place on the network": (
        lambda: sgf.Sweep(experiment, {"a": [1.0]}, seeds=4).run("s3://bucket/x.zarr"),
        "must be a folder that this machine sees",
    ),
    "nothing in flight": (
        lambda: sgf.Sweep(experiment, {"a": [1.0]}, seeds=4).run("x", in_flight=0),
        "`in_flight` must be a whole number >= 1",
    ),
    "a word for an executor": (
        lambda: sgf.Sweep(experiment, {"a": [1.0]}, seeds=4).run("x", executor="dask"),
        "`executor` must have a method `submit`",
    ),
    "no processes": (lambda: sgf.processes(0), "`workers` must be a whole number >= 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    action, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        action()
    assert list(tmp_path.iterdir()) == []


def test_axes_that_a_cell_of_a_study_does_not_depend_on_are_refused():
    from sgfbias.diagonal.studies.pesme2021 import alpha_sweep

    config = alpha_sweep.Config(step_size=0.1)
    with pytest.raises(ValueError, match="levels of .* cannot be an axis of the grid"):
        sgf.Sweep(alpha_sweep, {"levels": [3, 5]}, config=config)
    with pytest.raises(ValueError, match="needs a number as its step_size"):
        sgf.Sweep(alpha_sweep, {"alpha": [0.1, 0.2]})
    assert "alpha_low" not in sgf.Sweep(alpha_sweep, {"alpha": [0.1]}, config=config).config


@pytest.mark.parametrize("made", [False, True])
def test_a_pool_that_forks_is_refused_at_once(tmp_path, made):
    """JAX's threads do not survive a fork, so such a pool would wait for ever."""

    def pool():
        return concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("fork")
        )

    sweep = sgf.Sweep(experiment, {"a": [1.0]}, seeds=4)
    with pytest.raises(ValueError, match=r"forked, which hangs.*sgfbias\.processes\(4\)"):
        sweep.run(tmp_path / "s.zarr", executor=pool if made else pool())
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        done = sweep.run(tmp_path / "t.zarr", executor=threads)
    assert done["runs_done"].values.tolist() == [4]
