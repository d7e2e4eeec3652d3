"""The command line forgives: names that are nearly right, pipes that close, Ctrl-C."""

import importlib.metadata
import io
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import small_problem
from rich.console import Console

import sgfbias as sgf
from sgfbias import cli
from sgfbias.cli.bar import stages
from sgfbias.cli.show import print_claims
from sgfbias.core import progress
from sgfbias.study import claim, control, plotting, study_named
from sgfbias.study.claim import summary


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


@pytest.mark.slow
def test_ctrl_c_is_one_line(tmp_path):
    # Jobs in the background ignore Ctrl-C, and so would what they start.
    begin = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from sgfbias.cli import main; sys.exit(main())"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", begin, "run", "diagonal", "--out", str(tmp_path)],
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


def test_ctrl_c_in_a_collection_of_garbage_is_not_lost(tmp_path):
    """Python drops exceptions of the functions that are called at collections."""
    begin = """
import gc, signal, sys
from sgfbias.cli import main

pressed = []

def press(phase, about):
    if not pressed and "sgfbias.study.execute" in sys.modules:
        pressed.append(True)
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, signal.default_int_handler)
gc.callbacks.append(press)
status = main()
assert pressed
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", begin, "run", "diagonal", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "sgfbias: stopped by Ctrl-C; nothing of this run is kept\n"


@pytest.mark.parametrize("columns", [60, 100])
def test_a_table_is_as_wide_as_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    print_claims([claim("A long statement " * 9, "", holds=True, measured="many numbers " * 9)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert max(map(len, lines)) > 0.8 * columns


def test_a_list_of_studies_is_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    assert cli.main(["list"]) == 0
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70
    monkeypatch.delenv("COLUMNS")
    assert cli.main(["list"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) > 100


@pytest.mark.parametrize(("word", "number"), [("1e3", 1000), ("1_000", 1000), ("2.5e1", 25)])
def test_a_whole_number_may_be_written_with_a_power_of_ten(word, number):
    assert cli.parse(["run", "svag", "--seeds", word]).config.seeds == number
    batches = cli.parse(["run", "edge-of-stability", "--batch-sizes", "1", "2e0"])
    assert batches.config.batch_sizes == (1, 2)


@pytest.mark.parametrize("word", ["1.5", "1e-3", "many", "inf"])
def test_what_is_no_whole_number_is_refused(word, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "svag", "--seeds", word])
    assert end.value.code == 2
    assert "is not a whole number" in capsys.readouterr().err


def test_the_help_names_the_value_of_an_option_that_may_be_left_out(capsys):
    for words in (["show"], ["sweep"], ["explore"], ["run", "diagonal"]):
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"])
    told = capsys.readouterr().out
    assert "{None}" not in told
    assert "--picture PATH" in told
    assert "--data PATH" in told


def test_a_panel_without_positive_values_has_a_linear_axis():
    figure, (left, right) = plotting.panels(columns=2)
    left.plot([1.0, 2.0], [np.nan, -1.0])
    right.plot([1.0, 2.0], [1.0, 10.0])
    for axes in (left, right):
        plotting.finish(axes, title="t", x="x", y="y")
    figure.draw_without_rendering()
    assert (left.get_yscale(), left.get_xscale()) == ("linear", "log")
    assert right.get_yscale() == "log"


def test_a_band_of_runs_that_all_diverge_ends_without_a_warning():
    _, (axes,) = plotting.panels(columns=1)
    rows = np.array([[1.0, 2.0, np.nan], [3.0, np.inf, np.nan]])
    plotting.band(axes, np.array([1.0, 2.0, 3.0]), rows, colour="k", label="runs")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [2, 2, np.nan])


def test_a_claim_without_a_reason_is_told_without_brackets():
    assert claim("It is so", "", holds=False, measured="3").told == "It is so: 3"
    told = claim("It is so", "", holds=False, measured="3", reason="why").told
    assert told == "It is so: 3 (why)"


def test_an_observable_that_is_nearly_right_is_told():
    problem = small_problem()
    runs = sgf.simulate(
        sgf.GradientDescent(0.02),
        sgf.DiagonalNetwork.init(alpha=0.1, d=problem.d),
        problem,
        steps=4,
    )
    for lookup in (lambda: runs.final["bta"], lambda: runs.series["lss"], lambda: runs["lss"]):
        with pytest.raises(KeyError, match=r"did you mean (beta|loss)\? .*loss"):
            lookup()
    with pytest.raises(ValueError, match=r"did you mean beta\? "):
        sgf.simulate(runs.dynamics, runs.network, problem, steps=4, record=["bta"])
    assert "bta" not in runs.final
    doubled = jax.tree.map(lambda leaf: 2 * leaf, runs.final)
    assert set(doubled) == set(runs.final)
    np.testing.assert_allclose(doubled["beta"], 2 * runs.final["beta"])
    with pytest.raises(KeyError, match="did you mean beta"):
        doubled["bta"]


def test_an_option_that_is_nearly_right_is_told_for_its_own_study(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "diagonal", "--alhpa", "3"])
    told = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2
    assert "--alhpa" in told
    assert "--alpha FLOAT" in told
    assert "sgfbias run diagonal --help" in told
    assert not any(name in told for name in ("edge-of-stability", "svag", "fig1"))


def test_the_help_of_a_study_says_what_it_does_once(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "svag", "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    about = " ".join(study_named("svag").Config.__doc__.split())
    assert told.count(about[:50]) == 1


def rows(count, **changes):
    return [claim(f"Statement {k} is so", "", holds=True, **changes) for k in range(count)]


def test_many_claims_have_a_summary_and_failing_ones_are_in_it(capsys):
    claims = [*rows(12), claim("It is broken", "", holds=False), *rows(2, must_hold=False)]
    print_claims(claims)
    told = capsys.readouterr().out
    assert "It is broken" in told
    assert told.count("holds") == 5
    assert "--all prints the other 9 too" in told
    print_claims(claims, every=True)
    told = capsys.readouterr().out
    assert told.count("holds") == 14
    assert "--all" not in told


def test_the_summary_has_what_the_study_marks_and_a_control():
    claims = rows(12)
    claims[7] = claim("The answer", "", holds=True, main=True)
    claims[9] = control("the test can fail", "", holds=True)
    told = [row.statement for row in summary(claims)]
    assert told == [f"Statement {k} is so" for k in (0, 1, 2)] + [
        "The answer",
        "Control: the test can fail",
    ]
    assert summary(claims[:8]) == claims[:8]


def test_the_stages_of_a_study_fit_80_columns_and_show_the_time_left():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)

    def drawn():
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if "study" in line]

    def says():
        words = r"50%.* \d:\d\d left, study \d:\d\d of about 1:00$"
        return any(re.search(words, line) for line in drawn())

    with stages(print, 60, console=console) as log:
        log("stochastic gradient flow, 256 seeds x 100,000 steps, and a long description")
        show = progress.reporter(None)
        show.total = 4
        for chunks in (1, 1):
            show(chunks)
            time.sleep(0.3)
        # The bar is drawn by a thread, which may have to wait for a busy machine.
        for _ in range(100):
            if says():
                break
            show(0)
            time.sleep(0.1)
    bars = drawn()
    assert says()
    assert max(map(len, bars)) <= 80
    assert progress.reporter(None)._show is None


def test_the_stages_of_a_study_are_plain_lines_without_a_terminal(capsys):
    with stages(print, 60) as log:
        log("gradient descent")
    assert capsys.readouterr().out == "gradient descent\n"


@pytest.mark.parametrize(
    ("ending", "begins"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".png", b"\x89PNG")]
)
def test_the_ending_of_a_picture_chooses_its_format(ending, begins, tmp_path):
    written = []
    for name in ("a", "b"):
        figure, (panel,) = plotting.panels(columns=1)
        panel.plot([1, 10], [1, 2], label="curve")
        plotting.finish(panel, title="title", x="x", y="y")
        plotting.save(figure, tmp_path / f"{name}{ending}")
        written.append((tmp_path / f"{name}{ending}").read_bytes())
    assert written[0].startswith(begins)
    assert written[0] == written[1]


def test_a_picture_with_another_ending_is_refused_before_the_run(tmp_path, capsys):
    words = ["run", "svag", "--quick", "--out", str(tmp_path), "--picture", "study.jpg"]
    assert cli.main(words) == 2
    assert "must end in .png, .svg, .pdf, but is study.jpg" in capsys.readouterr().err
    assert not (tmp_path / "study.zarr").exists()


def test_runs_whose_step_size_is_far_too_large_warn_when_they_are_printed():
    problem = small_problem()
    network = sgf.DiagonalNetwork.init(alpha=0.1, d=problem.d)

    def told(gamma):
        flow = sgf.StochasticGradientDescent(gamma)
        return repr(sgf.simulate(flow, network, problem, keys=sgf.seeds(0, 4), steps=1000))

    assert "warning" not in told(0.02)
    assert "4 of 4 seeds diverged: is the step size too large?" in told(2.0)


def test_runs_on_data_that_no_weights_fit_say_so_when_they_are_printed():
    rng = np.random.default_rng(0)
    problem = sgf.SparseRegression(rng.normal(size=(30, 4)), rng.normal(size=30))
    network = sgf.DiagonalNetwork.init(alpha=0.1, d=4)
    # SGD goes on jumping about at the level of its noise.
    sgd = sgf.StochasticGradientDescent(0.1)
    runs = sgf.simulate(sgd, network, problem, keys=sgf.seeds(0, 16), steps=20_000)
    assert set(runs.statuses()) == {"stalled high", "moving"}
    assert "too large, or do no weights fit these data?" in repr(runs)
    stalled = int(np.flatnonzero(runs.diverged)[0])
    assert runs.reason(stalled).endswith("or no weights fit these data")
