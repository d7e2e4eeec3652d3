"""End-to-end tests of the command line: a study is run, stored and shown again, and bad
input is refused with an exit status and a reason.
"""

import json

import numpy as np
import pytest
from helpers import small_problem

from sgfbias import cli
from sgfbias.study import store, study_named

SMALL = [
    "--seeds",
    "64",
    "--steps",
    "3000",
    "--n",
    "20",
    "--d",
    "50",
    "--sparsity",
    "3",
    "--step-size",
    "0.05",
    "--weights-seeds",
    "32",
    "--weights-steps",
    "200",
    "--early-steps",
    "500",
    "--compare-steps",
    "500",
    "--alpha",
    "0.05",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the main study on a user's own data: the folder, the exit status and the
    stored dataset.
    """
    out = tmp_path_factory.mktemp("run")
    problem = small_problem(n=20, d=50)
    np.savez(out / "data.npz", X=problem.X, y=problem.y, beta_star=problem.beta_star)
    code = cli.main(
        ["run", "diagonal", *SMALL, "--data", str(out / "data.npz"), "--out", str(out), "--quiet"]
    )
    return out, code, store.load(out / "study.zarr")


def panels_of(dataset):
    """The titles of the panels of the study's picture; every panel has data."""
    axes = study_named("diagonal").plot(dataset).axes
    assert all(panel.has_data() for panel in axes)
    return [panel.get_title() for panel in axes]


@pytest.mark.slow
def test_claims_on_data_of_ones_own_only_inform(run):
    out, _, dataset = run
    rows = json.loads((out / "claims.json").read_text())["claims"]
    assert not any(row["must_hold"] for row in rows)
    assert len(panels_of(dataset)) == 6
    drawn = dataset.assign_attrs(config=dataset.attrs["config"].replace(str(out), "gone"))
    assert not any(row.must_hold for row in study_named("diagonal").claims(drawn))
    config = json.loads(dataset.attrs["config"]) | {"data": None}
    drawn = dataset.assign_attrs(config=json.dumps(config))
    assert any(row.must_hold for row in study_named("diagonal").claims(drawn))


@pytest.mark.slow
def test_data_without_a_truth_and_a_bad_step_size_are_no_fault_of_the_package(tmp_path, capsys):
    """Claims fail on these runs, and the user is told so without an error."""
    problem = small_problem(n=20, d=50)
    np.savez(tmp_path / "data.npz", X=problem.X, y=problem.y)
    options = [*SMALL, "--seeds", "8", "--steps", "400", "--step-size", "0.4"]
    words = ["--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "o")]
    picture = tmp_path / "pictures" / "mine.svg"
    assert cli.main(["run", "diagonal", *options, *words, "--picture", str(picture)]) == 0
    told = capsys.readouterr()
    assert "fails" not in told.err
    assert "law is" not in told.out + told.err
    rows = json.loads((tmp_path / "o" / "claims.json").read_text())["claims"]
    failing = [row for row in rows if row["verdict"] == "fails"]
    assert failing
    assert all(row["reason"].startswith("on these data of your own: ") for row in failing)
    titles = panels_of(store.load(tmp_path / "o" / "study.zarr"))
    assert "Training loss" in titles
    assert "Validation error" not in titles
    assert picture.read_text().startswith("<?xml")
    assert cli.main(["show", str(tmp_path / "o" / "study.zarr")]) == 0


@pytest.mark.slow
def test_the_run_holds_and_leaves_store_picture_and_claims(run):
    out, code, dataset = run
    rows = json.loads((out / "claims.json").read_text())["claims"]
    theorems = [row for row in rows if "Theorem 1 holds" in row["statement"]]
    assert theorems
    assert {row["verdict"] for row in theorems} == {"holds"}
    assert code == 0
    assert (out / "study.png").stat().st_size > 20_000
    assert sum(row["control"] for row in rows) >= 3
    assert {row["verdict"] for row in rows} <= {"holds", "fails", "not applicable"}
    assert dataset["sgd_loss"].dims == ("seed", "time")
    for name in ("config", "versions", "revision", "device", "precision", "prng", "created"):
        assert name in dataset.attrs


@pytest.mark.slow
def test_show_repeats_the_claims_and_redraws(run, capsys, tmp_path):
    out, _, _ = run
    code = cli.main(
        [
            "show",
            str(out / "study.zarr"),
            "--picture",
            str(tmp_path / "again.png"),
            "--format",
            "json",
        ]
    )
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["claims"] == json.loads((out / "claims.json").read_text())["claims"]
    assert (tmp_path / "again.png").exists()
    assert (
        cli.main(
            ["show", str(out / "study.zarr"), "--picture", str(tmp_path / "again.png"), "--verbose"]
        )
        == 0
    )
    # The table is as wide as COLUMNS says, so long statements are broken into lines.
    text = capsys.readouterr().out
    for words in ("Theorem 1", "weights", "holds", "sgd_loss", "threefry"):
        assert words in text


@pytest.mark.slow
def test_an_existing_store_is_refused(run, capsys):
    out, _, _ = run
    assert cli.main(["run", "diagonal", *SMALL, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


BAD = {
    "alpha": (["--alpha", "-1"], "alpha must be positive"),
    "step size": (["--step-size", "0"], "step_size must be positive"),
    "file": (["--data", "nowhere.npz"], "there is no file nowhere.npz"),
    "steps": (["--steps", "0"], "steps must be at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_exit_2_with_a_reason(name, capsys, tmp_path):
    options, message = BAD[name]
    assert cli.main(["run", "diagonal", *options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_list_and_unknown_study(capsys):
    assert cli.main(["list"]) == 0
    assert "diagonal" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "spam"])
    assert stop.value.code == 2
    assert "no study 'spam'" in capsys.readouterr().err


def test_a_contradictory_system_is_refused_with_what_still_holds(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", X=np.ones((2, 3)), y=np.array([1.0, 2.0]))
    assert (
        cli.main(
            ["run", "diagonal", "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "o")]
        )
        == 2
    )
    assert "What still holds" in capsys.readouterr().err
