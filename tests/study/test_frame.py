"""Tests of the frame around a study: its precision and provenance, and that a study
which is a sweep is resumed after it was killed.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types

import golden
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import sgfbias as sgf
from sgfbias import cli, study
from sgfbias.study import execute, plotting
from sgfbias.study.frame import Study
from sgfbias.study.registry import Entry


class State(types.SimpleNamespace):
    """What the test counts is no part of what the experiment is."""

    def __fingerprint__(self):
        return "the state of a test"


STATE = State(calls=[], after=None, error=KeyboardInterrupt)


def experiment(keys, *, a):
    """An experiment that counts its calls, and is killed after some of them."""
    if STATE.after is not None and len(STATE.calls) >= STATE.after:
        raise STATE.error
    STATE.calls.append(a)
    return {"value": a + np.arange(len(keys), dtype=float)}


@dataclasses.dataclass(frozen=True)
class Config(study.SeededConfig):
    """Settings."""

    cells: study.Count = 4
    """Number of cells."""


def made(monkeypatch, precision="float64"):
    """A study that is a sweep, in a module made for the test."""
    module = types.ModuleType("swept_study")

    def measure(config, log):
        def complete(swept):
            if failed := [str(error) for error in swept["error"].values if error]:
                raise ValueError(
                    f"{len(failed)} cells could not be run, the first with {failed[0]}"
                )
            out = study.Columns(a=swept["a"].values)
            out.add("mean", ("a",), swept["value"].mean("seed").values, "1")
            out.add("double", (), jnp.zeros(()).dtype == jnp.float64, "1")
            out.attrs["note"] = "a text"
            return out

        return study.InStore(
            sgf.Sweep(experiment, {"a": list(range(config.cells))}, seeds=5), complete
        )

    def claims(ds, config):
        return [study.claim("means", "", holds=len(ds["mean"]) == config.cells)]

    def plot(ds, config):
        return plotting.panels(columns=1)[0]

    module.Config, module.measure, module.claims, module.plot, module.PRECISION = (
        Config,
        measure,
        claims,
        plot,
        precision,
    )
    module.REFERENCES = {"pesme2021": "nothing"}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = Study(Entry("all.swept", module.__name__, "Is it so?", "swept"))
    monkeypatch.setattr(execute, "study_named", lambda name: found)
    STATE.calls.clear()
    return found


def test_a_study_that_is_a_sweep_goes_on_where_it_was_killed(monkeypatch, tmp_path):
    swept = made(monkeypatch)
    monkeypatch.setattr(STATE, "after", 2)
    with pytest.raises(KeyboardInterrupt):
        execute.execute(swept, Config(), tmp_path)
    assert STATE.calls == [0, 1]
    assert (tmp_path / "unfinished.zarr").is_dir()
    assert not (tmp_path / "study.zarr").exists()
    monkeypatch.setattr(STATE, "after", None)
    dataset = execute.execute(swept, Config(), tmp_path).dataset
    assert STATE.calls == [0, 1, 2, 3]
    np.testing.assert_array_equal(dataset["mean"], np.arange(4) + 2.0)
    assert not (tmp_path / "unfinished.zarr").exists()
    # A finished study is run again only with `overwrite`, and then from the start.
    with pytest.raises(ValueError, match="exists already"):
        execute.execute(swept, Config(), tmp_path)
    execute.execute(swept, Config(), tmp_path, overwrite=True)
    assert STATE.calls == [0, 1, 2, 3] * 2


def test_a_cell_that_failed_once_is_tried_again(monkeypatch, tmp_path):
    swept = made(monkeypatch)
    monkeypatch.setattr(STATE, "after", 2)
    monkeypatch.setattr(STATE, "error", MemoryError("for once"))
    with pytest.raises(ValueError, match="could not be run, the first with MemoryError: for once"):
        execute.execute(swept, Config(), tmp_path)
    monkeypatch.setattr(STATE, "after", None)
    np.testing.assert_array_equal(
        execute.execute(swept, Config(), tmp_path).dataset["mean"], np.arange(4) + 2.0
    )
    assert STATE.calls == [0, 1, 2, 3]


def test_what_is_unfinished_of_another_config_is_refused_or_overwritten(monkeypatch, tmp_path):
    swept = made(monkeypatch)
    monkeypatch.setattr(STATE, "after", 2)
    with pytest.raises(KeyboardInterrupt):
        execute.execute(swept, Config(), tmp_path)
    monkeypatch.setattr(STATE, "after", None)
    with pytest.raises(
        ValueError,
        match=r"unfinished.zarr holds an interrupted run with other settings.*--overwrite",
    ):
        execute.execute(swept, Config(cells=3), tmp_path)
    assert execute.execute(swept, Config(cells=3), tmp_path, overwrite=True).dataset.sizes["a"] == 3
    assert not (tmp_path / "unfinished.zarr").exists()


def test_the_frame_writes_precision_config_and_name_once(monkeypatch):
    for precision in ("float64", "float32"):
        dataset = made(monkeypatch, precision).run(Config(cells=2))
        assert dataset.attrs["study"] == "swept"
        assert dataset.attrs["precision"] == precision
        assert bool(dataset["double"]) == (precision == "float64")
        assert json.loads(dataset.attrs["config"]) == {"study": "swept", "cells": 2, "root_seed": 0}
        assert dataset.attrs["note"] == "a text"


def test_columns_refuse_what_does_not_fit():
    out = study.Columns(k=np.arange(2))
    out.add("a", ("k",), [1.0, 2.0], "1")
    with pytest.raises(ValueError, match="'a' is added twice"):
        out.add("a", ("k",), [1.0, 2.0], "1")
    with pytest.raises(ValueError, match="'b' has 2 axes, but 1 dimensions: k"):
        out.add("b", ("k",), [[1.0, 2.0]], "1")


def test_claims_keep_a_reason_where_they_fail():
    good, bad = (study.claim("s", "w", holds=holds, reason="r") for holds in (np.True_, 0))
    assert (good.verdict, good.reason, bad.verdict, bad.reason, bad.broken) == (
        "holds",
        "",
        "fails",
        "r",
        True,
    )
    control = study.control("it breaks", "w", holds=False, must_hold=False)
    assert (control.statement, control.control, control.broken) == (
        "Control: it breaks",
        True,
        False,
    )
    assert study.not_applicable("Control: x", "w", "why").control
    lost = study.few_lost("converges", "w", {"SGD": np.array([[0, 0, 3, 0], [0, 0, 0, 0]])})
    assert lost.verdict == "fails"
    assert "SGD 1 of 8 (at most 1 of 4 in one cell)" in lost.measured
    assert study.few_lost("converges", "w", {"SGD": np.zeros(20, int)}).verdict == "holds"


@pytest.mark.slow
def test_a_run_of_alpha_sweep_that_is_killed_goes_on_and_gives_the_same(tmp_path):
    """The run is killed with SIGKILL after the first alpha. The same command then runs
    the other alphas, and all numbers equal those of an undisturbed run bit for bit.
    """
    command = [
        sys.executable,
        "-m",
        "sgfbias.cli",
        "run",
        "alpha-sweep",
        *golden.STUDIES["alpha-sweep"].options.split(),
        "--out",
        str(tmp_path),
    ]
    records = tmp_path / "unfinished.zarr" / "ledger" / "records"
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (records.is_dir() and list(records.glob("*.json"))):
        assert first.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert not (tmp_path / "study.zarr").exists()
    second = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seen = {}
    while second.poll() is None:
        if records.is_dir():
            seen |= {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
        time.sleep(0.05)
    assert second.returncode in (0, 1)
    assert {name: seen[name] for name in kept} == kept
    dataset = xr.open_zarr(tmp_path / "study.zarr", consolidated=False).load()
    undisturbed = golden.small_run("alpha-sweep")[0]
    for name in dataset.data_vars:
        np.testing.assert_array_equal(dataset[name], undisturbed[name])


def test_a_name_that_is_not_of_this_version_is_said_so(tmp_path):
    from sgfbias.study import store

    store.save(
        xr.Dataset({"a": ("n", [1.0])}, attrs={"study": "spam", "config": "{}"}),
        tmp_path / "study.zarr",
    )
    assert cli.main(["show", str(tmp_path / "study.zarr")]) == 2
