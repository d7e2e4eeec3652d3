"""Bits from files and frames."""

import subprocess
import sys

import numpy as np
import pytest

from sgfbias import fourier
from sgfbias.fourier.data import read_bits
from sgfbias.fourier.detector import draw_detector, new_network, own_detector

pandas = pytest.importorskip("pandas")
X = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]])
Y = np.array([1, -1, -1, 1])


def frame():
    return pandas.DataFrame(
        {
            "packed": [True, False, True, False],
            "sections": [3, 5, 9, 4],
            "kind": ["exe", "dll", "exe", "sys"],
            "signed": [0, 1, 1, 0],
            "colour": pandas.Categorical(["red", "blue", "red", "red"]),
            "malicious": ["no", "yes", "yes", "no"],
        }
    )


def test_a_frame_becomes_bits_and_groups():
    found = read_bits(frame(), "malicious", threshold={"sections": 4.5})
    assert found.names == (
        "packed", "sections", "kind=dll", "kind=exe", "kind=sys", "signed", "colour=blue",
        "colour=red",
    )  # fmt: skip
    assert found.groups == ((2, 3, 4), (6, 7))
    assert found.classes == ("no", "yes")
    np.testing.assert_array_equal(found.labels, [0, 1, 1, 0])
    bits = [
        [1, -1, -1, 1, -1, -1, -1, 1],
        [-1, 1, 1, -1, -1, 1, 1, -1],
        [1, 1, -1, 1, -1, 1, -1, 1],
        [-1, -1, -1, -1, 1, -1, -1, 1],
    ]
    np.testing.assert_array_equal(found.inputs, bits)
    # The groups are those that an attacker's swaps need.
    candidates = found.moves.candidates(8)
    candidates.check(found.inputs)
    assert sorted(candidates.bits) == list(range(8))
    median = read_bits(frame(), "malicious", threshold="median")
    np.testing.assert_array_equal(median.inputs[:, 1], [-1, 1, 1, -1])


@pytest.mark.parametrize("values", [X, 2 * X - 1, X.astype(bool), 2.0 * X - 1])
def test_a_npz_file(tmp_path, values):
    path = tmp_path / "data.npz"
    np.savez(path, X=values, y=Y, names=["a", "b", "c"])
    found = read_bits(path)
    np.testing.assert_array_equal(found.inputs, 2 * X - 1)
    np.testing.assert_array_equal(found.labels, [1, 0, 0, 1])
    assert (found.names, found.groups, found.classes) == (("a", "b", "c"), (), ("-1", "1"))
    assert found.moves == fourier.BitFlips()


def test_a_libsvm_file_counts_its_features_from_one(tmp_path):
    path = tmp_path / "data.libsvm"
    path.write_text("+1 2:1 3:1\n-1 1:1 2:1\n-1 3:1\n+1 1:1\n")
    np.testing.assert_array_equal(read_bits(path).inputs, 2 * X - 1)
    wide = read_bits(str(path), features=5)
    assert wide.inputs.shape == (4, 5)
    np.testing.assert_array_equal(wide.labels, [1, 0, 0, 1])


def test_parts_have_every_example_once():
    whole = read_bits(frame(), "malicious", threshold="median")
    parts = whole.split(2, 1, seed=3)
    assert [len(part.labels) for part in parts] == [2, 1, 1]
    rows = np.concatenate([np.column_stack([part.inputs, part.labels]) for part in parts])
    every = np.column_stack([whole.inputs, whole.labels])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, every))
    assert parts[1].groups == whole.groups
    with pytest.raises(ValueError, match="leave some of the 4 examples, but are 3, 1"):
        whole.split(3, 1)


def test_without_scikit_learn_it_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "data.libsvm"
    path.write_text("+1 2:1\n-1 1:1\n")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'sgfbias\[fourier\]'"):
        read_bits(path)


def with_column(**columns):
    return frame().drop(columns="sections").assign(**columns)


REFUSED = [
    (
        lambda: read_bits(frame(), "malicious"),
        "'sections' has numbers such as 3.*threshold='median'",
    ),
    (lambda: read_bits(frame()), "must be the column with the classes, but is None"),
    (lambda: read_bits(frame(), "malicous"), "did you mean malicious"),
    (
        lambda: read_bits(frame(), "malicious", threshold={"section": 4}),
        "has 'section', which is no column; did you mean sections",
    ),
    (lambda: read_bits(frame(), "malicious", threshold="mean"), "'median', but is the word 'mean'"),
    (lambda: read_bits(with_column(a=["x", None, "y", "y"]), "malicious"), "'a' has 1 missing"),
    (lambda: read_bits(with_column(a=[0, 1, np.nan, 1]), "malicious"), "'a' has 1 missing"),
    (lambda: read_bits(with_column(a=[0, 1, np.inf, 1]), "malicious"), "NaN or infinite"),
    (lambda: read_bits(with_column(a="x"), "malicious"), "'a' has the category 'x' only"),
    (
        lambda: read_bits(with_column(malicious=1), "malicious"),
        "two classes or more, but all are 1",
    ),
    (lambda: read_bits(frame()[["malicious"]], "malicious"), "no column but the labels"),
    (
        lambda: read_bits(pandas.DataFrame({"a": [0, 1] * 25, "y": np.arange(50.0)}), "y"),
        "must be classes, but have 50 different values",
    ),
    (lambda: read_bits(3), "must be a path or a DataFrame of pandas, but is 3"),
    (lambda: read_bits("nowhere.npz"), "there is no file nowhere.npz"),
    (lambda: read_bits("nowhere.npz", "y"), "a file has its labels in y"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_are_no_bits_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"X": X}, "must hold X .* but holds X; missing: y"),
        ({"X": X, "y": Y[:2]}, r"y \(2,\)"),
        ({"X": X, "y": Y, "names": ["a"]}, "1 names"),
        ({"X": X.astype(str), "y": Y}, "'0' must be numbers or booleans"),
        (None, "is not a .npz file of plain numbers"),
    ],
)
def test_files_that_make_no_sense_are_refused(tmp_path, content, words):
    path = tmp_path / "data.npz"
    if content is None:
        path.write_text("text")
    else:
        np.savez(path, **content)
    with pytest.raises(ValueError, match=words):
        read_bits(path)


@pytest.mark.parametrize(
    ("kind", "few", "large", "small"), [("even", 6, 0.30, 0.10), ("lopsided", 4, 0.40, 0.05)]
)
def test_drawn_bits_tell_what_they_should(kind, few, large, small):
    """A bit is +1 with the probability `1/2 + delta (2 y - 1) s`, up to 5 standard
    errors.
    """
    x, y = draw_detector(3, kind, bits=20).train
    tells = ((2 * y - 1)[:, None] * x).mean(axis=0)
    delta = np.where(np.arange(20) < few, large, small)
    error = np.sqrt((1 - 4 * delta**2) / len(y))
    assert np.all(np.abs(np.abs(tells) - 2 * delta) < 5 * error)


@pytest.mark.slow
def test_networks_of_several_layers():
    """Their weights have the variance 1/64 for 64 inputs and 1/16 for 16, within 5
    standard errors.
    """
    net = new_network(2, depth=3)
    assert [layer.weight.shape for layer in net.layers] == [(16, 64), (16, 16), (16, 16), (1, 16)]
    for layer in net.layers[:3]:
        size, inputs = layer.weight.size, layer.weight.shape[1]
        assert abs(inputs * float((layer.weight**2).mean()) - 1) < 5 * np.sqrt(2 / size)
        assert not layer.bias.any()
    assert not np.array_equal(net.layers[1].weight, net.layers[2].weight)


def test_a_detector_of_ones_own_data(tmp_path):
    """4/7 of them are for training and 2/7 for validation, as for drawn examples."""
    path, random = tmp_path / "own.npz", np.random.default_rng(0)
    bits, labels = random.integers(0, 2, size=(70, 9)), np.arange(70) % 2
    np.savez(path, X=bits, y=labels)
    parts = own_detector(path, 3)
    assert [part.inputs.shape for part in parts] == [(40, 9), (20, 9), (10, 9)]
    rows = np.concatenate([np.column_stack([part.inputs, part.labels]) for part in parts])
    every = np.column_stack([2 * bits - 1, labels])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, every))
    for wrong in (slice(40), np.arange(70) // 24):
        kept = {"X": bits[wrong], "y": labels[wrong]} if isinstance(wrong, slice) else {
            "X": bits, "y": wrong
        }  # fmt: skip
        np.savez(path, **kept)
        with pytest.raises(ValueError, match="must have two classes and at least 50 examples"):
            own_detector(path, 0)


@pytest.mark.slow
def test_the_command_line_takes_ones_own_data(tmp_path):
    path, random = tmp_path / "own.npz", np.random.default_rng(0)
    labels = random.integers(0, 2, size=210)
    chance = np.where(labels[:, None] > 0, 0.8, 0.2)
    np.savez(path, X=random.random((210, 10)) < chance, y=labels)
    options = [
        "--data",
        str(path),
        "--seeds",
        "6",
        "--flips",
        "4",
        "--levels",
        "2",
        "--steps",
        "90",
    ]
    command = [sys.executable, "-m", "sgfbias", "run", "fourier-stabilise", *options]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "study.png").exists()


def test_a_text_is_no_libsvm_file(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("a text\n")
    with pytest.raises(ValueError, match="is no file in libsvm's format"):
        read_bits(path)
