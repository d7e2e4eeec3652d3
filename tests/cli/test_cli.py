"""End-to-end tests of the command line: a study is run, stored and shown again, and bad
input is refused with an exit status and a reason.
"""

import json

import numpy as np
import pytest
from helpers import small_problem

from sgfbias import cli
from sgfbias.study import store

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


def test_the_run_holds_and_leaves_store_picture_and_claims(run):
    out, code, dataset = run
    rows = json.loads((out / "claims.json").read_text())["claims"]
    failed = [row for row in rows if row["verdict"] == "fails" and row["must_hold"]]
    assert not failed, failed
    assert code == 0
    assert (out / "study.png").stat().st_size > 20_000
    assert sum(row["control"] for row in rows) >= 3
    assert {row["verdict"] for row in rows} <= {"holds", "fails", "not applicable"}
    assert dataset["sgd_loss"].dims == ("seed", "time")
    for name in ("config", "versions", "revision", "device", "precision", "prng", "created"):
        assert name in dataset.attrs


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
