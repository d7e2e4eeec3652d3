"""Sweeps in one process.

The tests cover how a grid is written, what is refused, the numbers and their store,
resuming after a stop, which parts of a sweep may not change, running out of memory, and
the command line.
"""

import dataclasses
import functools
import json
import math
import os
import signal
import sys
import types
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sweep_experiments as experiments
import xarray as xr
from helpers import network, small_problem
from hypothesis import given
from hypothesis import strategies as st

import sgfbias as sgf
from sgfbias import cli
from sgfbias.ensemble.file import find, inside
from sgfbias.ensemble.grid import SPACES, parse_range, parse_values

GRID = {"a": [0.0, 0.5, 2.0], "b": [1.0, 3.0]}


def assert_same(one, other, *, but=("chunk_seconds",)):
    """Assert that two datasets have the same variables bit for bit, except timings."""
    assert set(one.variables) - set(but) == set(other.variables) - set(but)
    for name in set(one.variables) - set(but):
        assert one[name].dims == other[name].dims
        if one[name].dtype.kind in "OT":
            assert one[name].values.tolist() == other[name].values.tolist(), name
            continue
        assert one[name].dtype == other[name].dtype, name
        assert one[name].values.tobytes() == other[name].values.tobytes(), name


def chunk_files(store, *variables):
    """The files that hold results, by the name of the variable and the chunk's
    indices.
    """
    found = {}
    for name in variables:
        for file in (Path(store) / name / "c").rglob("*"):
            if file.is_file():
                found[name, tuple(map(int, file.relative_to(Path(store) / name / "c").parts))] = (
                    file
                )
    return found


def flip(file, bit=3):
    """Change one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    file.write_bytes(data)


def plain(store):
    """The store as xarray reads it without this package."""
    return xr.open_zarr(store, consolidated=False, chunks=None)


# How the text of a grid is read.

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE, min_size=1, max_size=8), st.booleans(), st.sampled_from([",", ", ", " , "]))
def test_numbers_are_read_as_they_were_written(values, brackets, comma):
    text = comma.join(map(repr, values))
    read = parse_values(f"[{text}]" if brackets else text)
    assert [float(v).hex() for v in read] == [v.hex() for v in values]


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=8))
def test_whole_numbers_stay_whole(values):
    read = parse_values(",".join(map(str, values)))
    assert read == values
    assert all(type(v) is int for v in read)


@given(
    st.lists(
        st.from_regex(r"[a-z][a-z_-]{0,9}", fullmatch=True).filter(
            lambda w: w not in ("true", "false")
        ),
        min_size=1,
        max_size=5,
    )
)
def test_words_are_read_as_words(words):
    assert parse_values(",".join(words)) == words
    assert parse_values(",".join(f"'{w}'" for w in words)) == words


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 20))
def test_spaces_are_those_of_numpy(start, stop, count):
    for name in ("linspace", "geomspace"):
        np.testing.assert_array_equal(
            parse_values(f"{name}({start!r}, {stop!r},{count})"), SPACES[name](start, stop, count)
        )


def test_other_spaces_and_truth_values():
    assert parse_values("range(2,11,3)") == [2, 5, 8]
    assert parse_values("arange(0,1,.25)") == [0, 0.25, 0.5, 0.75]
    np.testing.assert_allclose(parse_values("logspace(-2,0,3)"), [0.01, 0.1, 1])
    assert parse_values("true,false") == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        'geomspace(__import__("os"),1,2)',
        "__import__('os').system('touch evil')",
        'eval("1")',
        "range(exec('x'))",
        "linspace(0,1)(2)",
        "linspace(x,1,2)",
        "linspace(0,1,-1)",
        "linspace()",
        "geomspace(0,1,3)",
        "arange(0,1,0)",
        "range(0,1.5)",
        "normal(0,1,3)",
        "",
        "1,,2",
        "[]",
    ],
)
def test_nothing_is_evaluated_but_numbers(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        values = parse_values(text)
    except ValueError:
        pass
    else:
        assert values == [text]  # the text was read as a word
        assert "__import__" in text
    assert not list(tmp_path.iterdir())


@given(st.integers(0, 2**32 - 1), st.integers(1, 1000))
def test_ranges_are_read_as_they_were_written(start, count):
    stop = min(start + count, 2**32)
    for written in (
        f"{start}:{stop}",
        (start, stop),
        [start, stop],
        range(start, stop),
        f" {start} : {stop} ",
    ):
        assert parse_range(written) == (start, stop)
    assert parse_range(stop) == parse_range(str(stop)) == parse_range(np.int64(stop)) == (0, stop)
    assert parse_range("1e2:1e3") == (100, 1000)


@pytest.mark.parametrize(
    "value",
    [
        "5:5",
        "7:2",
        "-1:4",
        "a:b",
        "1:2:3",
        "",
        0,
        -3,
        True,
        2.5,
        None,
        range(0, 9, 2),
        (0, 2**33),
        "0:1e-3",
        "0:1.5",
        [1],
    ],
)
def test_a_range_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="seeds"):
        parse_range(value)


# What is refused before anything runs.


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"seed": [1, 2]}, "'seed' cannot be the name of an axis"),
        ({"error": [1, 2]}, "'error' cannot be the name"),
        ({"not a name": [1]}, "a name that can be an argument"),
        ({"a": []}, "has no values"),
        ({"a": {}}, "has no values"),
        ({"a": [0.1, 0.2, 0.1]}, "must not have a value twice"),
        ({"a": [1, 1.0]}, "must not have a value twice"),
        ({"a": [0.0, -0.0]}, "must not have a value twice"),
        ({"a": [True, 1]}, "must not have a value twice"),
        ({"a": [0.1, "word"]}, "all numbers or all words"),
        ({"a": [math.nan]}, "must be finite"),
        ({"a": [[1, 2], [3, 4]]}, "name objects by a mapping"),
        ({"a": [sgf.NoNoise()]}, "name objects by a mapping"),
        ({"z": [1.0]}, "cannot be called with keys and z.*; besides keys it takes a, b"),
        ({"aa": [1.0]}, "did you mean a"),
        ({"a": range(2000), "b": range(2000)}, "at most 1,000,000 cells"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(grid, words):
    with pytest.raises(ValueError, match=words):
        sgf.Sweep(experiments.hashed, grid, seeds=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": 0}, "seeds"),
        ({"seeds": "3:1"}, "seeds"),
        ({"draws": 0}, "draws"),
        ({"chunk": 0}, "chunk"),
        ({"chunk": True}, "chunk"),
        ({"config": {"b": 1}}, "functools.partial"),
        ({"draws": 2}, "cannot be called with keys and draw"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        sgf.Sweep(experiments.hashed, **{"seeds": 4, **options})


def test_an_experiment_that_is_none_is_refused():
    with pytest.raises(ValueError, match="must be a function"):
        sgf.Sweep(3.0, {})
    with pytest.raises(ValueError, match="no `cell"):
        sgf.Sweep(types.SimpleNamespace(Config=experiments.Config, __name__="cell-less"), {})
    with pytest.raises(
        ValueError, match=r"nonsense is not in the config of sweep_experiments; its fields are gain"
    ):
        sgf.Sweep(experiments, {"nonsense": [1]})


@pytest.mark.parametrize("share", [(1, 1), (-1, 2), (2, 2), (0, 0)])
def test_a_share_that_makes_no_sense_is_refused(share, tmp_path):
    with pytest.raises(ValueError, match="share"):
        sgf.Sweep(experiments.hashed, seeds=4).run(tmp_path / "s.zarr", share=share)
    assert not list(tmp_path.iterdir())


def test_what_is_no_sweep_is_left_alone(tmp_path):
    sweep = sgf.Sweep(experiments.hashed, seeds=4)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("folder", "file"):
        with pytest.raises(sgf.StoreError, match="left alone"):
            sweep.run(tmp_path / name)
    with pytest.raises(sgf.StoreError, match="there is nothing"):
        sgf.open_sweep(tmp_path / "none")
    with pytest.raises(sgf.StoreError, match="it holds no sweep"):
        sgf.open_sweep(tmp_path / "folder")
    assert [f.name for f in sorted(tmp_path.rglob("*"))] == ["file", "folder", "precious.txt"]


# Invalid results. Their cell is marked as failed; if there is no other cell, the reason
# is raised.


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda n: None, "must return a Trajectory"),
        (lambda n: np.zeros(n), "must return a Trajectory"),
        (lambda n: {}, "at least one variable with a value per seed"),
        (lambda n: {"x": 1.0}, "5 seeds as its first axis, but has shape"),
        (lambda n: {"x": np.zeros(n + 1)}, "5 seeds as its first axis"),
        (lambda n: {"x": np.zeros((2, n))}, "5 seeds as its first axis"),
        (lambda n: {"x": np.array(["word"] * n)}, "must be numbers"),
        (lambda n: {"x": np.array([object()] * n)}, "must be numbers"),
        (lambda n: {"a": np.zeros(n)}, "a is an axis of the sweep"),
        (lambda n: xr.Dataset({"x": ("seed", np.zeros(n - 1))}), "must have 5 seeds"),
        (
            lambda n: xr.Dataset({"x": ("time", np.zeros(n))}),
            "at least one variable with a value per seed",
        ),
        (lambda n: {"error": np.zeros(n)}, "error"),
        (lambda n: {"runs_done": np.zeros(n)}, "runs_done"),
        (lambda n: {"seed": np.zeros(n)}, "seed"),
        (lambda n: {"ledger": np.zeros(n)}, "ledger"),
        (lambda n: {"../../outside": np.zeros(n)}, "outside"),
        (lambda n: {"with/slash": np.zeros(n)}, "slash"),
        (lambda n: {"zarr.json": np.zeros(n)}, "zarr.json"),
        (lambda n: {"": np.zeros(n)}, "name"),
    ],
)
def test_a_result_of_the_wrong_kind_is_an_error_of_the_cell(returned, words, tmp_path):
    sweep = sgf.Sweep(lambda keys, *, a: returned(len(keys)), {"a": [1.0]}, seeds=5)
    with pytest.raises(sgf.StoreError, match=words):
        sweep.run(tmp_path / "deep" / "s.zarr")
    assert [f.name for f in tmp_path.iterdir()] == ["deep"]
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["s.zarr"]


@pytest.mark.parametrize(
    "other",
    [
        lambda n: {"x": np.zeros((n, 3))},
        lambda n: {"x": np.zeros((n, 2), np.float32)},
        lambda n: {"x": np.zeros((n, 2)), "y": np.zeros(n)},
        lambda n: {"y": np.zeros((n, 2))},
    ],
)
def test_a_result_that_differs_in_kind_from_that_of_other_cells_is_an_error_of_its_cell(
    other, tmp_path
):
    sweep = sgf.Sweep(
        lambda keys, *, a: {"x": np.full((len(keys), 2), a)} if a != 2 else other(len(keys)),
        {"a": [1.0, 2.0, 3.0]},
        seeds=5,
    )
    runs = sweep.run(tmp_path / "s.zarr")
    np.testing.assert_array_equal(runs["runs_done"], [5, 0, 5])
    np.testing.assert_array_equal(runs["runs_failed"], [0, 5, 0])
    assert "differs in kind" in str(runs["error"].sel(a=2.0).values)
    np.testing.assert_array_equal(runs["x"][:, 0, 0], [1.0, np.nan, 3.0])


# Numbers, and the store they are in.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep of `hashed`: the path of its store, and its dataset."""
    path = tmp_path_factory.mktemp("finished") / "s.zarr"
    return path, sgf.Sweep(experiments.hashed, GRID, seeds=(10, 160), chunk=64).run(path)


def test_every_cell_has_the_numbers_of_the_experiment_called_by_hand(finished):
    path, runs = finished
    keys = sgf.seeds(10, 160)
    for dataset in (runs, plain(path), sgf.open_sweep(path)):
        assert dataset.sizes == {"a": 3, "b": 2, "seed": 150, "curve_0": 3, "chunk": 3}
        np.testing.assert_array_equal(dataset["seed"], np.arange(10, 160))
        for a in GRID["a"]:
            for b in GRID["b"]:
                for name, values in experiments.hashed(keys, a=a, b=b).items():
                    assert dataset[name].dims == ("a", "b", "seed", *dataset[name].dims[3:])
                    assert dataset[name].dtype == values.dtype
                    np.testing.assert_array_equal(dataset[name].sel(a=a, b=b), values)
        assert (dataset["runs_done"] == 150).all()
        assert (dataset["runs_failed"] == 0).all()
        assert (dataset["runs_diverged"] == 0).all()
        assert (dataset["error"] == "").all()
        assert np.isfinite(dataset["chunk_seconds"]).all()


def test_a_store_says_where_its_numbers_came_from(finished):
    attrs = plain(finished[0]).attrs
    assert {
        "config",
        "versions",
        "revision",
        "device",
        "host",
        "precision",
        "prng",
        "created",
        "sweep",
    } <= set(attrs)
    assert attrs["precision"] == "float64"
    spec = json.loads(attrs["sweep"])
    assert spec["grid"] == [["a", [0.0, 0.5, 2.0]], ["b", [1.0, 3.0]]]
    assert spec["seeds"] == [10, 160]
    assert json.loads(attrs["config"])["experiment"] == "sweep_experiments.hashed"


def test_the_log_has_a_line_for_every_chunk(finished):
    lines = [
        json.loads(line) for line in (finished[0] / "ledger" / "log.jsonl").read_text().splitlines()
    ]
    assert [line["event"] for line in lines] == ["start", *["chunk"] * 18, "end"]
    assert {(line["cell"], line["chunk"]) for line in lines[1:-1]} == {
        (cell, chunk) for cell in range(6) for chunk in range(3)
    }
    assert all(
        line["seconds"] >= 0 and line["session"] == lines[0]["session"] for line in lines[1:-1]
    )


def test_no_file_of_a_store_is_a_pickle(finished):
    files = [f for f in finished[0].rglob("*") if f.is_file()]
    assert len(files) > 80
    for file in files:
        data = file.read_bytes()
        assert not any(data.startswith(bytes([0x80, version])) for version in range(2, 6)), file
        if file.suffix == ".json" and file.name == "zarr.json":
            codecs = [codec["name"] for codec in json.loads(data).get("codecs", ())]
            assert set(codecs) <= {"bytes", "zstd", "crc32c", "vlen-utf8"}, codecs
        elif file.suffix in (".json", ".jsonl"):
            for line in data.splitlines():
                json.loads(line)
    assert not [f for f in files if f.suffix in (".pkl", ".pickle", ".part", ".partial")]


def test_reading_one_cell_reads_no_other(finished, tmp_path):
    path = tmp_path / "s.zarr"
    sgf.Sweep(experiments.hashed, GRID, seeds=(10, 160), chunk=64).run(path)
    files = chunk_files(path, "value", "count", "high", "curve")
    assert len(files) == 6 * 3 * 4
    for (_, index), file in files.items():
        if index[:2] != (1, 0):
            file.write_bytes(b"nonsense")
    for dataset in (plain(path), sgf.open_sweep(path)):
        for name in ("value", "count", "high", "curve"):
            np.testing.assert_array_equal(
                dataset[name].sel(a=0.5, b=1.0), finished[1][name].sel(a=0.5, b=1.0)
            )
        with pytest.raises(Exception, match=r"(?i)checksum|buffer|zstd|size|decompress"):
            dataset["value"].sel(a=0.0, b=1.0).values  # noqa: B018
    for (_, index), file in files.items():
        if index[:2] != (1, 0):
            file.unlink()
    np.testing.assert_array_equal(
        plain(path)["curve"].sel(a=0.5, b=1.0), finished[1]["curve"].sel(a=0.5, b=1.0)
    )


def test_a_flipped_bit_makes_a_plain_read_fail_and_another_run_mends_it(finished, tmp_path):
    path, log = tmp_path / "s.zarr", tmp_path / "log"
    sweep = sgf.Sweep(
        functools.partial(experiments.noted, log=str(log)),
        {"a": GRID["a"]},
        seeds=(10, 160),
        chunk=64,
    )
    before = sweep.run(path).load()
    assert sum(experiments.computed(log).values()) == 9
    for name, index in ((("value"), (1, 2)), ("curve", (2, 0, 0))):
        flip(chunk_files(path, name)[name, index])
        with pytest.raises(ValueError, match=r"(?i)checksum"):
            plain(path)[name].load()
    assert_same(sweep.run(path).load(), before)
    assert sum(experiments.computed(log).values()) == 11
    assert max(experiments.computed(log).values()) == 2


@pytest.mark.parametrize(
    "name", ["a", "seed", "runs_done", "runs_failed", "error", "chunk_seconds"]
)
def test_a_flipped_bit_in_a_coordinate_or_a_count_is_seen_too(name, tmp_path):
    path = tmp_path / "s.zarr"
    fail = functools.partial(experiments.noted, fail_at=0.5)
    sweep = sgf.Sweep(fail, {"a": GRID["a"]}, seeds=20, chunk=10)
    before = sweep.run(path).load()
    (file,) = chunk_files(path, name).values()
    for bit in (0, 5):
        flip(file, bit)
        with pytest.raises(ValueError, match=r"(?i)checksum"):
            plain(path).load()
        flip(file, bit)
    flip(file)
    assert_same(sweep.run(path).load(), before)
    assert_same(plain(path).load(), before)


def test_words_objects_and_data_draws_are_axes(tmp_path):
    noises = {"mean": sgf.MeanLossNoise(), "none": sgf.NoNoise()}

    def experiment(keys, *, noise, mode, draw):
        assert isinstance(draw, int)
        return {
            "x": experiments.unit(keys)
            + 10 * draw
            + 100 * isinstance(noise, sgf.NoNoise)
            + 1000 * (mode == "a long word")
        }

    runs = sgf.Sweep(
        experiment, {"noise": noises, "mode": ["short", "a long word"]}, seeds=7, draws=(2, 5)
    ).run(tmp_path / "s.zarr")
    assert runs.sizes == {"noise": 2, "mode": 2, "draw": 3, "seed": 7, "chunk": 1}
    assert runs["noise"].values.tolist() == ["mean", "none"]
    np.testing.assert_array_equal(runs["draw"], [2, 3, 4])
    u = experiments.unit(sgf.seeds(0, 7))
    np.testing.assert_array_equal(
        runs["x"].sel(noise="none", mode="a long word", draw=3), u + 30 + 100 + 1000
    )
    np.testing.assert_array_equal(runs["x"].sel(noise="mean", mode="short", draw=4), u + 40)
    assert_same(plain(tmp_path / "s.zarr").load(), runs.load())


def test_arrays_and_functions_may_be_values_too(tmp_path):
    grid = {
        "w": {"ones": jnp.ones(50), "twos": 2 * np.ones(50)},
        "f": {"sin": np.sin, "square": lambda x: x**2},
    }
    sweep = sgf.Sweep(
        lambda keys, *, w, f: {"x": f(experiments.unit(keys)) * float(w[0])}, grid, seeds=4
    )
    runs = sweep.run(tmp_path / "s.zarr")
    np.testing.assert_array_equal(
        runs["x"].sel(w="twos", f="square"), experiments.unit(sgf.seeds(0, 4)) ** 2 * 2
    )


def test_one_cell_without_axes_and_other_roots(tmp_path):
    runs = sgf.Sweep(experiments.hashed, seeds=9, root=3).run(tmp_path / "s.zarr")
    assert runs.sizes == {"seed": 9, "curve_0": 3, "chunk": 1}
    np.testing.assert_array_equal(runs["value"], experiments.unit(sgf.seeds(0, 9, root=3)))


def test_a_study_is_swept_over_fields_of_its_config(tmp_path):
    sweep = sgf.Sweep(
        experiments, {"gain": [1.0, 2.0]}, seeds=20, draws=2, config=experiments.Config(times=4)
    )
    runs = sweep.run(tmp_path / "s.zarr")
    assert runs["loss"].dims == ("gain", "problem_seed", "seed", "time")
    assert runs["loss"].attrs["units"] == "nats"
    expected = experiments.cell(
        experiments.Config(gain=2.0, problem_seed=1, times=4), sgf.seeds(0, 20)
    )
    np.testing.assert_array_equal(runs["loss"].sel(gain=2.0, problem_seed=1), expected["loss"])
    np.testing.assert_array_equal(runs["cell_time"].sel(gain=2.0, problem_seed=1), expected["time"])
    assert runs["cell_time"].dims == ("gain", "problem_seed", "time")
    assert int(runs["steps"]) == 4 if runs["steps"].ndim == 0 else (runs["steps"] == 4).all()
    # In this sweep all cells share their times.
    one = sgf.Sweep(experiments, {"problem_seed": [3, 4]}, seeds=20).run(tmp_path / "one.zarr")
    assert one["time"].dims == ("time",)
    np.testing.assert_array_equal(one["time"], [1.0, 2.0, 3.0])
    assert "cell_time" not in one
    np.testing.assert_array_equal(plain(tmp_path / "one.zarr")["time"], [1.0, 2.0, 3.0])


@pytest.mark.slow
def test_simulated_runs_are_the_same_in_chunks_of_any_size_and_those_of_simulate(tmp_path):
    problem = small_problem(n=6, d=10)

    def experiment(keys, *, alpha):
        return sgf.simulate(
            sgf.StochasticGradientFlow(step_size=0.05),
            network(alpha, d=10),
            problem,
            keys=keys,
            steps=30,
        )

    grid = {"alpha": [0.3]}
    runs = {
        chunk: sgf.Sweep(experiment, grid, seeds=(5, 205), chunk=chunk)
        .run(tmp_path / f"{chunk}.zarr")
        .load()
        for chunk in (64, 100, 128)
    }
    for chunk in (64, 100):
        assert_same(runs[chunk], runs[128])
    by_hand = experiment(sgf.seeds(5, 205), alpha=0.3).to_xarray()
    names = [
        name for name in by_hand.data_vars if "seed" in by_hand[name].dims and name in runs[64]
    ]
    assert "loss" in names
    for name in names:
        np.testing.assert_array_equal(runs[64][name].sel(alpha=0.3), by_hand[name])
    assert runs[64]["loss"].attrs == by_hand["loss"].attrs
    np.testing.assert_array_equal(runs[64]["time"], by_hand["time"])


def test_out_of_memory_means_fewer_tiles_at_a_time_and_the_same_numbers(tmp_path):
    for seeds in (100, 200, 320):
        log = tmp_path / f"{seeds}.log"
        runs = sgf.Sweep(
            functools.partial(experiments.cramped, log=str(log)), {"a": [1.0]}, seeds=seeds
        ).run(tmp_path / f"{seeds}.zarr")
        assert (runs["runs_done"] == seeds).all()
        for name, values in experiments.result(sgf.seeds(0, seeds), 1.0).items():
            np.testing.assert_array_equal(runs[name][0], values)
        sizes = list(map(int, log.read_text().split()))
        assert sum(size for size in sizes if size <= 64) == seeds
        # Tiles are never split.
        assert all(
            size % 64 == 0 or size == seeds or size == seeds % 64 or (size - seeds) % 64 == 0
            for size in sizes
        )


def test_out_of_memory_with_a_single_tile_is_an_error_of_the_cell(tmp_path):
    def experiment(keys, *, a):
        if a == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return experiments.result(keys)

    runs = sgf.Sweep(experiment, {"a": [0, 1]}, seeds=100, chunk=100).run(tmp_path / "s.zarr")
    np.testing.assert_array_equal(runs["runs_done"], [100, 0])
    assert "RESOURCE_EXHAUSTED" in str(runs["error"][1].values)


# Stopping and resuming.


def notes(tmp_path, **options):
    """A sweep that notes in a file which chunks it computes."""
    return sgf.Sweep(
        functools.partial(experiments.noted, log=str(tmp_path / "log"), **options),
        {"a": GRID["a"]},
        seeds=150,
        chunk=64,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results that `notes` must give."""
    return (
        sgf.Sweep(experiments.noted, {"a": GRID["a"]}, seeds=150, chunk=64)
        .run(tmp_path_factory.mktemp("undisturbed") / "s.zarr")
        .load()
    )


def test_a_sweep_that_is_interrupted_goes_on_where_it_was(tmp_path, undisturbed):
    sweep = notes(tmp_path)

    def interrupt(state):
        if state["chunks_done"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(tmp_path / "s.zarr", progress=interrupt)
    half = sgf.open_sweep(tmp_path / "s.zarr")
    np.testing.assert_array_equal(half["runs_done"], [150, 64, 0])
    np.testing.assert_array_equal(half["value"][0], undisturbed["value"][0])
    np.testing.assert_array_equal(half["value"][1, :64], undisturbed["value"][1, :64])
    assert np.isnan(half["value"][1, 64:]).all()
    assert (half["count"][2] == -1).all()
    assert_same(sweep.run(tmp_path / "s.zarr").load(), undisturbed)
    assert set(experiments.computed(tmp_path / "log").values()) == {1}
    assert sum(experiments.computed(tmp_path / "log").values()) == 9
    sweep.run(tmp_path / "s.zarr")
    assert sum(experiments.computed(tmp_path / "log").values()) == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_chunk_in_flight_finish(number, tmp_path, undisturbed):
    sweep = notes(tmp_path)
    before = signal.getsignal(number)

    def ask(state):
        if state["chunks_done"] == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(sgf.SweepInterrupted, match=r"4 of 9 chunks are done and kept"):
        sweep.run(tmp_path / "s.zarr", progress=ask)
    assert signal.getsignal(number) is before
    assert (sgf.open_sweep(tmp_path / "s.zarr")["runs_done"].sum()) == 150 + 64
    assert_same(sweep.run(tmp_path / "s.zarr").load(), undisturbed)
    assert set(experiments.computed(tmp_path / "log").values()) == {1}
    events = [
        json.loads(line)["event"]
        for line in (tmp_path / "s.zarr" / "ledger" / "log.jsonl").read_text().splitlines()
    ]
    assert events == ["start", *["chunk"] * 4, "interrupted", "start", *["chunk"] * 5, "end"]


def test_progress_counts_what_is_done(tmp_path):
    states = []
    sweep = notes(tmp_path, fail_at=0.5, diverge_at=2.0)
    sweep.run(tmp_path / "s.zarr", progress=lambda state: states.append(dict(state)))
    assert [state["chunks_done"] for state in states] == list(range(10))
    assert states[-1]["runs_done"] == states[-1]["runs"] == 450
    assert states[-1]["failed"] == states[-1]["diverged"] == 150
    assert states[0]["seconds_left"] is None
    assert states[4]["rate"] > 0
    assert states[4]["seconds_left"] > 0
    again = []
    sweep.run(tmp_path / "s.zarr", progress=again.append)
    assert (again[0]["chunks_done"], again[0]["failed"], again[0]["diverged"]) == (9, 150, 150)
    with pytest.raises(ValueError, match="progress"):
        sweep.run(tmp_path / "s.zarr", progress=3)
    sweep.run(tmp_path / "s.zarr", progress=True)


def test_shares_of_a_job_array_make_the_whole(tmp_path, undisturbed):
    sweep = notes(tmp_path)
    first = sweep.run(tmp_path / "s.zarr", share=(0, 2))
    np.testing.assert_array_equal(first["runs_done"], [64 + 22, 64, 64 + 22])
    assert_same(sweep.run(tmp_path / "s.zarr", share=(1, 2)).load(), undisturbed)
    assert_same(plain(tmp_path / "s.zarr").load(), undisturbed)
    assert set(experiments.computed(tmp_path / "log").values()) == {1}
    assert_same(sweep.run(tmp_path / "s.zarr").load(), undisturbed)
    assert sum(experiments.computed(tmp_path / "log").values()) == 9


# Which parts of a sweep may not change.


def refused(sweep, path, *words):
    """Assert that a sweep does not resume another sweep's store.

    The message must say what differs, and no file may change.
    """
    before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file() and "lock" not in f.name}
    with pytest.raises(sgf.StoreError) as caught:
        sweep.run(path)
    for word in ("differs", *words):
        assert word in str(caught.value), str(caught.value)
    assert {
        f: f.read_bytes() for f in path.rglob("*") if f.is_file() and "lock" not in f.name
    } == before


def test_a_changed_grid_seeds_or_chunk_is_refused_with_the_difference(finished, tmp_path):
    path, grid, seeds = finished[0], GRID, (10, 160)
    refused(
        sgf.Sweep(experiments.hashed, grid, seeds=(10, 161), chunk=64),
        path,
        "seeds: [10, 160] in the store, [10, 161] now",
    )
    refused(
        sgf.Sweep(experiments.hashed, grid, seeds=seeds, chunk=32),
        path,
        "chunk: 64 in the store, 32 now",
    )
    refused(
        sgf.Sweep(experiments.hashed, grid, seeds=seeds, chunk=64, root=1),
        path,
        "root: 0 in the store, 1 now",
    )
    changed = sgf.Sweep(experiments.hashed, {**grid, "a": [0.0, 0.5, 2.5]}, seeds=seeds, chunk=64)
    refused(changed, path, "grid.a: [0.0, 0.5, 2.0] in the store, [0.0, 0.5, 2.5] now")
    refused(sgf.Sweep(experiments.hashed, {"a": grid["a"]}, seeds=seeds, chunk=64), path, "grid")
    refused(
        sgf.Sweep(experiments.hashed, dict(reversed(grid.items())), seeds=seeds, chunk=64),
        path,
        "grid",
    )
    refused(
        sgf.Sweep(
            functools.partial(experiments.hashed, b=2.0), {"a": grid["a"]}, seeds=seeds, chunk=64
        ),
        path,
        "grid",
        "code",
    )
    with jax.enable_x64(False):
        refused(
            sgf.Sweep(experiments.hashed, grid, seeds=seeds, chunk=64),
            path,
            "precision: float64 in the store, float32 now",
        )
    with pytest.raises(ValueError, match="differs"):
        sgf.Sweep(experiments.hashed, grid, seeds=(0, 5)).plan(path)


def test_changed_code_is_refused(tmp_path):
    def run(experiment, name, grid=None):
        return sgf.Sweep(experiment, grid or {"a": [1.0]}, seeds=4, name="mine").run(
            tmp_path / f"{name}.zarr"
        )

    def check(one, another, name, grid=None, other_grid=None):
        run(one, name, grid)
        run(one, name, grid)
        refused(
            sgf.Sweep(another, other_grid or grid or {"a": [1.0]}, seeds=4, name="mine"),
            tmp_path / f"{name}.zarr",
        )

    def once(keys, *, a):
        return {"x": experiments.unit(keys)}

    def twice(keys, *, a):
        return {"x": 2 * experiments.unit(keys)}

    check(once, twice, "source")

    def closed(shift):
        return lambda keys, *, a: {"x": experiments.unit(keys) + float(np.sum(shift))}

    check(closed(1.0), closed(2.0), "number")
    check(
        closed(np.arange(5000.0)),
        closed(np.where(np.arange(5000) == 2500, -1.0, np.arange(5000.0))),
        "array",
    )
    check(closed(jnp.arange(3)), closed(jnp.arange(4)), "jax")
    check(functools.partial(once, a=1.0), functools.partial(once, a=2.0), "partial")


@dataclasses.dataclass(frozen=True)
class Gain:
    """A callable dataclass with a setting."""

    gain: float

    def __call__(self, keys, *, a):
        """Results that are proportional to the gain."""
        return {"x": self.gain * experiments.unit(keys)}


class Offset:
    """A callable whose `repr` does not show its setting."""

    def __init__(self, offset):
        self.offset = offset

    def __call__(self, keys, *, a):
        """Results that are shifted by the offset."""
        return {"x": self.offset + experiments.unit(keys)}


def holding(thing):
    """An experiment that closes over `thing`."""
    return lambda keys, *, a: {"x": experiments.unit(keys), "thing": thing}


def jitted(thing):
    """The same experiment, compiled."""
    return jax.jit(holding(thing))


FLOW = sgf.StochasticGradientFlow(step_size=0.1)
QUIET = sgf.StochasticGradientFlow(step_size=0.1, noise=sgf.NoNoise())


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (Gain(1.0), Gain(2.0)),
        (Offset(1.0), Offset(2.0)),
        (Offset(1.0).__call__, Offset(2.0).__call__),
        (jitted(1.0), jitted(2.0)),
        (holding(FLOW), holding(QUIET)),
        (holding({"x": 1.0}), holding({"y": 1.0})),
        (holding(np.zeros((2, 3))), holding(np.zeros((3, 2)))),
        (holding(np.zeros(2)), holding(np.zeros(4, np.float32))),
        (holding([1, 2, 3]), holding([1, [2, 3]])),
        (holding([Offset(1.0)]), holding([Offset(2.0)])),
    ],
    ids=[
        "dataclass",
        "object",
        "method",
        "jit",
        "noise",
        "names",
        "shape",
        "dtype",
        "nesting",
        "inside",
    ],
)
def test_what_an_experiment_holds_is_part_of_what_the_sweep_is(one, another):
    sweep = functools.partial(sgf.Sweep, grid={"a": [1.0]}, seeds=4, name="mine")
    assert sweep(one).spec() == sweep(one).spec()
    assert sweep(one).spec() != sweep(another).spec()


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (np.zeros(5000), np.where(np.arange(5000) == 2500, 1.0, 0.0)),
        (sgf.StochasticGradientFlow(step_size=0.1), sgf.StochasticGradientFlow(step_size=0.2)),
        (small_problem(0), small_problem(1)),
        (holding(1.0), holding(2.0)),
        (0.5, 0.7),
    ],
    ids=["array", "flow", "problem", "function", "number"],
)
def test_what_a_name_on_an_axis_stands_for_is_part_of_what_the_sweep_is(one, another):
    def sweep(value):
        return sgf.Sweep(experiments.hashed, {"a": {"it": value}}, seeds=4)

    assert sweep(one).spec() == sweep(one).spec()
    assert sweep(one).spec() != sweep(another).spec()


def test_the_same_things_made_anew_are_the_same_sweep():
    """In another process the objects are different ones, at different addresses."""

    def sweep():
        problem, law, shift = small_problem(0), sgf.MeanLossNoise(), np.arange(4.0)

        def inner(x):
            return x + shift

        def experiment(keys, *, noise, function, draw):
            return {"x": inner(experiments.unit(keys)), "y": problem, "z": law}

        return sgf.Sweep(
            experiment,
            {"noise": {"law": law}, "function": {"inner": inner, "other": lambda x: x}},
            seeds=4,
            draws=2,
        )

    one, other = sweep(), sweep()
    assert one.spec() == other.spec()


# The command line.


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """A function that runs the command line in an empty folder.

    It writes the TOML text to a file first, if one is given, and returns the exit
    status, the output and the errors.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))

    def run(*words, toml=None, file="runs.toml"):
        if toml is not None:
            Path(file).write_text(toml)
        capsys.readouterr()
        status = cli.main([*words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


TOML = """
function = "sweep_experiments:noted"
name = "mine"
seeds = "0:100"
chunk = 40
[grid]
a = [0.0, 0.5, 2.0]
"""


def test_a_sweep_from_the_command_line(command, tmp_path):
    status, out, err = command("sweep", "runs.toml", toml=TOML)
    assert (status, err) == (0, "")
    assert "300 runs in 9 chunks" in out
    assert "300 of 300 runs, 0 failed, 0 diverged; finished" in out
    runs = sgf.open_sweep(tmp_path / "results" / "mine.zarr")
    np.testing.assert_array_equal(
        runs["value"].sel(a=0.5), experiments.result(sgf.seeds(0, 100), 0.5)["value"]
    )

    status, out, err = command("status", "results/mine.zarr")
    assert (status, err) == (0, "")
    assert "finished" in out
    status, out, _ = command("status", "results/mine.zarr", "--format", "json")
    state = json.loads(out)
    assert (
        state["runs"],
        state["done"],
        state["failed"],
        state["diverged"],
        state["running"],
        state["seconds_left"],
    ) == (
        300,
        300,
        0,
        0,
        False,
        0.0,
    )
    assert [cell["point"] for cell in state["cells"]] == [{"a": 0.0}, {"a": 0.5}, {"a": 2.0}]
    assert all(cell["done"] == cell["runs"] == 100 for cell in state["cells"])

    status, out, err = command("show", "results/mine.zarr")
    assert (status, err) == (0, "")
    assert "median" in out
    assert Path("results/mine.png").stat().st_size > 5000
    status, out, _ = command(
        "show", "results/mine.zarr", "--format", "json", "--picture", "other.png"
    )
    shown = json.loads(out)
    (low, middle, high) = (shown["variables"]["value"][1][k] for k in ("low", "median", "high"))
    values = runs["value"].sel(a=0.5).values
    assert middle == np.median(values)
    assert low < middle < high
    np.testing.assert_allclose(
        shown["variables"]["value"][1]["quantiles"], np.quantile(values, [0.05, 0.95])
    )
    assert Path("other.png").is_file()

    status, out, _ = command("sweep", "runs.toml", "--format", "json")
    assert status == 0
    assert json.loads(out)["done"] == 300
    assert command("sweep", "runs.toml", "--quiet")[:2] == (0, "")


def test_the_command_line_puts_its_own_over_the_file(command, tmp_path):
    words = (
        "--seeds",
        "5:9",
        "--grid",
        "a=linspace(0,1,3)",
        "--set",
        "width=5",
        "--set",
        "diverge_at=1.0",
        "--out",
        "elsewhere",
        "--quiet",
    )
    assert (
        command("sweep", "runs.toml", *words, toml=TOML + '[config]\nfail_at = 9.0\nlog = ""\n')[0]
        == 0
    )
    runs = sgf.open_sweep(tmp_path / "elsewhere" / "mine.zarr")
    np.testing.assert_array_equal(runs["a"], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(runs["seed"], [5, 6, 7, 8])
    assert runs.sizes["curve_0"] == 5
    np.testing.assert_array_equal(runs["runs_diverged"], [0, 0, 4])
    assert not Path("results").exists()


def test_float32_is_a_choice_of_the_file(command, tmp_path):
    toml = 'function = "sweep_experiments:hashed"\nprecision = "float32"\nseeds = 3\n'
    assert command("sweep", "runs.toml", "--quiet", toml=toml)[0] == 0
    attrs = sgf.open_sweep(tmp_path / "results" / "runs.zarr").attrs
    assert json.loads(attrs["sweep"])["precision"] == "float32"
    assert attrs["precision"] == "float64", "the experiment's NumPy results are float64"
    assert jnp.result_type(float) == jnp.float64


def test_a_plan_writes_nothing(command):
    status, out, _ = command("sweep", "runs.toml", "--dry-run", toml=TOML)
    assert status == 0
    for words in (
        "a 3 x seeds 0:100: 300 runs",
        "9 of 40 seeds of one cell, 0 done already",
        "memory",
        "measured",
    ):
        assert words in out
    assert [f.name for f in Path().iterdir()] == ["runs.toml"]
    plan = json.loads(command("sweep", "runs.toml", "--dry-run", "--format", "json")[1])
    assert (plan["runs"], plan["chunks"], plan["chunk"], plan["error"]) == (300, 9, 40, "")
    assert plan["chunk_bytes"] == 40 * (8 + 8 + 1 + 24)
    assert plan["store_bytes"] == 300 * (8 + 8 + 1 + 24)
    assert plan["seconds_left"] > 0
    assert command("sweep", "runs.toml", "--quiet")[0] == 0
    plan = json.loads(command("sweep", "runs.toml", "--dry-run", "--format", "json")[1])
    assert (plan["chunks_done"], plan["seconds_left"]) == (9, 0.0)
    status, out, _ = command(
        "sweep", "runs.toml", "--dry-run", "--set", "fail_at=0.0", "--out", "fresh"
    )
    assert status == 1
    assert "the first cell fails: ArithmeticError" in out
    assert not Path("fresh").exists()


def test_a_cell_that_fails_and_one_that_diverges_are_shown(command):
    status, out, err = command(
        "sweep", "runs.toml", "--set", "fail_at=0.5", "--set", "diverge_at=2.0", toml=TOML
    )
    assert status == 1
    assert "a cell failed (a=0.5): ArithmeticError: a = 0.5 is not to my liking" in err
    assert "100 failed, 100 diverged; finished" in out
    status, out, _ = command("status", "results/mine.zarr", "--verbose")
    assert status == 0
    assert "ArithmeticError" in out
    state = json.loads(command("status", "results/mine.zarr", "--format", "json")[1])
    assert [(c["done"], c["failed"], c["diverged"]) for c in state["cells"]] == [
        (100, 0, 0),
        (0, 100, 0),
        (100, 0, 100),
    ]
    status, out, err = command("show", "results/mine.zarr")
    assert (status, err) == (0, "")
    assert "0 of 100" in out
    shown = command("show", "results/mine.zarr", "--format", "json")[1]
    cells = json.loads(shown)["variables"]["value"]
    assert [(c["finite"], c["done"]) for c in cells] == [(100, 100), (0, 0), (0, 100)]


@pytest.mark.parametrize("quiet", [(), ("--quiet",), ("--format", "json")])
def test_if_every_cell_fails_the_exit_status_says_so(quiet, command):
    toml = (
        'function = "sweep_experiments:noted"\nseeds = 6\n[config]\nfail_at = 1.0\n[grid]\na '
        "= [1.0]\n"
    )
    for _ in range(2):
        status, _, err = command("sweep", "runs.toml", *quiet, toml=toml)
        assert status == 1
        assert "not to my liking" in err
    status, _, err = command("sweep", "runs.toml", "--seeds", "0:7", *quiet)
    assert status == 74
    assert "seeds: [0, 6] in the store, [0, 7] now" in err
    status, _, err = command("show", "results/runs.zarr")
    assert status == 2
    assert "every cell that was tried failed" in err


def test_retrying_what_failed(command, tmp_path):
    """A cell may fail for a reason outside the experiment, such as a missing file."""
    Path("flaky.py").write_text(
        "import os, numpy as np\n"
        "def experiment(keys, *, a):\n"
        "    if a > 0 and not os.path.exists('data'):\n"
        "        raise FileNotFoundError('data')\n"
        "    return {'x': np.full(len(keys), a)}\n"
    )
    toml = 'function = "flaky:experiment"\nseeds = 10\nchunk = 4\n[grid]\na = [0.0, 1.0]\n'
    assert command("sweep", "runs.toml", "--quiet", toml=toml)[0] == 1
    Path("data").touch()
    assert command("sweep", "runs.toml", "--quiet")[0] == 1
    assert command("sweep", "runs.toml", "--quiet", "--retry-failed")[0] == 0
    np.testing.assert_array_equal(sgf.open_sweep("results/runs.zarr")["x"].sel(a=1.0), np.ones(10))


def test_a_changed_config_is_refused_on_the_command_line(command):
    assert command("sweep", "runs.toml", "--quiet", toml=TOML)[0] == 0
    status, _, err = command("sweep", "runs.toml", "--seeds", "0:101")
    assert status == 74
    assert "seeds: [0, 100] in the store, [0, 101] now" in err
    status, _, err = command("sweep", "runs.toml", "--set", "width=4")
    assert status == 74
    assert "differs" in err


def test_a_changed_config_of_a_study_is_named(tmp_path):
    sgf.Sweep(experiments, {"gain": [1.0]}, seeds=4).run(tmp_path / "s.zarr")
    refused(
        sgf.Sweep(experiments, {"gain": [1.0]}, seeds=4, config=experiments.Config(times=5)),
        tmp_path / "s.zarr",
        "config.times: 3 in the store, 5 now",
    )


def test_asked_to_end_it_exits_with_its_own_code_and_goes_on(command, tmp_path):
    toml = (
        'function = "sweep_experiments:terminated"\nseeds = 100\nchunk = '
        f'40\n[config]\nmarker = "{(tmp_path / "marker").as_posix()}"\n[grid]\na = [0.0, 1.0]\n'
    )
    status, _, err = command("sweep", "runs.toml", "--quiet", toml=toml)
    assert status == 75
    assert "4 of 6 chunks are done and kept" in err
    state = json.loads(command("status", "results/runs.zarr", "--format", "json")[1])
    assert (state["done"], state["running"]) == (140, False)
    assert command("sweep", "runs.toml", "--quiet")[0] == 0
    np.testing.assert_array_equal(
        sgf.open_sweep("results/runs.zarr")["value"].sel(a=1.0),
        experiments.result(sgf.seeds(0, 100), 1.0)["value"],
    )


@pytest.mark.parametrize("name", ["../x", "/x", ".x", "", ".", "..", "a/b", "a\\b", "x\0y", 3])
def test_a_name_may_not_leave_the_output_folder(name, command):
    with pytest.raises(ValueError, match="must be a plain name"):
        inside(name)
    status, _, err = command("sweep", "runs.toml", toml=TOML.replace('"mine"', json.dumps(name)))
    assert status == 2
    assert "name" in err
    assert [f.name for f in Path().iterdir()] == ["runs.toml"]


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("", "must name either"),
        ('study = "diagonal"\nfunction = "x:y"', "must name either"),
        ('study = "nonsense"', "there is no study"),
        ('function = "sweep_experiments"', "must be written as module:name"),
        ('function = "no_such_module:f"', "cannot be found"),
        ('function = "sweep_experiments:no_such"', "cannot be found"),
        ('function = "sweep_experiments:GRID_OF_NOTHING"', "cannot be found"),
        ('function = "sweep_experiments:hashed"\nseed = 3', "which a sweep does not know"),
        ('function = "sweep_experiments:hashed"\nprecision = "half"', "precision"),
        ('function = "sweep_experiments:hashed"\ngrid = 3', "must be a table"),
        (
            'function = "sweep_experiments:hashed"\n[grid]\na = "evil(1)"',
            "is not a way to space values",
        ),
        ('function = "sweep_experiments:hashed"\n[grid]\nz = 3', "cannot be called"),
        ('function = "sweep_experiments:hashed"\n[config]\nz = 3', "besides keys it takes a, b"),
        ('function = "sweep_experiments.py:no_such"', "there is no 'no_such' in"),
        ("function = ", "is not TOML"),
        ("study = [1]", "`study`"),
        ('function = "sweep_experiments:hashed"\nchunk = "x"', "`chunk`"),
        ("function = 3", "function"),
        ("study = 3", "study"),
        ('function = "sweep_experiments:hashed"\nseeds = "x"', "seeds"),
        ('function = "sweep_experiments:hashed"\nchunk = 0', "chunk"),
        ('function = "sweep_experiments:hashed"\nroot = "x"', "root"),
    ],
)
def test_a_file_that_makes_no_sense_is_bad_input(toml, words, command):
    status, out, err = command("sweep", "runs.toml", toml=toml)
    assert (status, out) == (2, "")
    assert words in err
    assert [f.name for f in Path().iterdir()] == ["runs.toml"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--grid", "a"), "write name=values"),
        (("--set", "=3"), "write name=values"),
        (("--share", "2"), "index/count"),
        (("--share", "2/2"), "share"),
        (("--workers", "0"), "workers"),
        (("--seeds", "9"), None),
    ],
)
def test_options_that_make_no_sense_are_bad_input(options, words, command):
    status, _, err = command("sweep", "runs.toml", *options, toml=TOML)
    assert status == (0 if words is None else 2)
    assert words is None or words in err


def test_files_that_are_not_there_are_bad_input(command):
    for words in (("sweep", "none.toml"), ("status", "none.zarr"), ("show", "none.zarr")):
        status, _, err = command(*words)
        assert status == 2
        assert "none." in err


def test_a_function_is_found_beside_its_file_for_other_processes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "only_here.py").write_text("def f(keys): return {'x': keys}\n")
    assert find("only_here:f", tmp_path).__name__ == "f"
    assert os.environ["PYTHONPATH"] == str(tmp_path.resolve())


def test_opening_a_store_warns_of_nothing_but_what_is_not_consolidated(finished):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgf.open_sweep(finished[0]).load()
        plain(finished[0]).load()
