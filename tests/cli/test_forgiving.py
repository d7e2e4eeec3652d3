"""The command line forgives: names that are nearly right, pipes that close, Ctrl-C."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import time

import pytest

import sgfbias as sgf
from sgfbias import cli
from sgfbias.cli.show import print_claims
from sgfbias.study import claim


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["lst"], "did you mean list?"),
        (["cite", "svgg"], "did you mean svag?"),
        (["sweep", "{file}"], "did you mean seeds?"),
        (["sweep", "{file}", "--grid", "alhpa=.1"], "did you mean alpha?"),
        (["sweep", "{file}", "--set", "tme=2"], "did you mean time?"),
    ],
)
def test_a_name_that_is_nearly_right_is_told(words, meant, tmp_path, capsys):
    file = tmp_path / "runs.toml"
    file.write_text('study = "svag"\n' + ('seds = "0:16"\n' if len(words) == 2 else ""))
    assert cli.main([word.format(file=file) for word in words]) == 2
    assert meant in capsys.readouterr().err


def test_a_study_that_is_nearly_right_is_told(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "noise-anatmy"])
    assert "did you mean noise-anatomy?" in capsys.readouterr().err


def test_the_version_is_told_everywhere(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    known = importlib.metadata.version("sgfbias")
    assert end.value.code == 0
    assert capsys.readouterr().out == f"sgfbias {known}\n"
    assert sgf.__version__ == known
    done = subprocess.run(
        [sys.executable, "-m", "sgfbias", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"sgfbias {known}\n")


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "sgfbias", "list"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_is_one_line(tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-m", "sgfbias", "run", "diagonal", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    running.stdout.readline()  # the study has begun
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=120)
    assert running.returncode == 130
    assert told.splitlines()[-1] == "sgfbias: stopped by Ctrl-C; nothing of this run is kept"
    assert "Traceback" not in told


@pytest.mark.parametrize("columns", [60, 100])
def test_a_table_is_as_wide_as_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    print_claims([claim("A long statement " * 9, "", holds=True, measured="many numbers " * 9)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert max(map(len, lines)) > 0.8 * columns


def test_a_claim_without_a_reason_is_told_without_brackets():
    assert claim("It is so", "", holds=False, measured="3").told == "It is so: 3"
    told = claim("It is so", "", holds=False, measured="3", reason="why").told
    assert told == "It is so: 3 (why)"
