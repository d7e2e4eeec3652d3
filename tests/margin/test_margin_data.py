"""Data of one's own, from a file: what is read, and what is refused."""

import numpy as np
import pytest

from sgfbias.cli import main
from sgfbias.margin.data import read_two_classes

X = np.random.default_rng(0).normal(size=(6, 3))
Y = np.where(X[:, 0] > 0, 2, 1)


def test_two_classes_become_signs(tmp_path):
    np.savez(tmp_path / "own.npz", X=X, y=Y)
    inputs, labels = read_two_classes(tmp_path / "own.npz")
    np.testing.assert_array_equal(inputs, X)
    np.testing.assert_array_equal(labels, np.where(X[:, 0] > 0, 1, -1))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": X}, r"must hold X \(n, d\) and y \(n,\), but holds X; missing: y"),
        ({"X": X, "y": Y[:5]}, r"y has shape \(5,\)"),
        ({"X": X, "y": np.arange(6)}, "must take two values, one for each class, but takes 6"),
        ({"X": np.ones((4, 2)), "y": [1, -1, 1, -1]}, "the data are not separable"),
        ({"X": np.where(X > 1, np.nan, X), "y": Y}, "NaN or infinite"),
    ],
)
def test_what_is_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        read_two_classes(tmp_path / "own.npz")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        read_two_classes(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="is not a .npz file of plain numbers"):
        read_two_classes(tmp_path / "text.npz")


@pytest.mark.slow
def test_the_command_line_takes_them(tmp_path, capsys):
    np.savez(tmp_path / "own.npz", X=X, y=Y)
    arguments = ["run", "margin", "--data", str(tmp_path / "own.npz"), "--rotations", "2"]
    assert main([*arguments, "--nu", "1000", "--out", str(tmp_path / "out")]) == 0
    assert "informs" in capsys.readouterr().out
