"""The study, its claims and the command line, end to end on a small problem."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import small_problem

from sgfbias import cli, store
from sgfbias.core.claim import broken, kolmogorov, median_interval
from sgfbias.diagonal import study

SMALL = ["--seeds", "64", "--steps", "3000", "--n", "20", "--d", "50", "--sparsity", "3", "--step-size", "0.05", "--weights-seeds", "32",
         "--weights-steps", "200", "--early-steps", "500", "--compare-steps", "500", "--alpha", "0.05"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    problem = small_problem(n=20, d=50)
    np.savez(out / "data.npz", X=problem.X, y=problem.y, beta_star=problem.beta_star)
    code = cli.main(["run", "diagonal", *SMALL, "--data", str(out / "data.npz"), "--out", str(out), "--quiet"])
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
    assert all("units" in dataset[name].attrs for name in dataset.data_vars if "status" not in str(name))
    for name in ("config", "versions", "revision", "device", "precision", "prng", "created"):
        assert name in dataset.attrs


def test_show_repeats_the_claims_and_redraws(run, capsys, tmp_path):
    out, _, _ = run
    code = cli.main(["show", str(out / "study.zarr"), "--picture", str(tmp_path / "again.png"), "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["claims"] == json.loads((out / "claims.json").read_text())["claims"]
    assert (tmp_path / "again.png").exists()
    assert cli.main(["show", str(out / "study.zarr"), "--picture", str(tmp_path / "again.png"), "--verbose"]) == 0
    text = capsys.readouterr().out
    for words in ("Theorem 1 in weights", "holds", "sgd_loss", "threefry"):
        assert words in text


def test_an_existing_store_is_refused(run, capsys):
    out, _, _ = run
    assert cli.main(["run", "diagonal", *SMALL, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def mutated(dataset, **changes):
    copy = dataset.copy(deep=True)
    for name, change in changes.items():
        copy[name].values = change(copy[name].values)
    return copy


MUTATIONS = {
    "a weights gap that stays": (dict(weights_gap=lambda v: np.broadcast_to(v[:1], v.shape)), "weights coordinates"),
    "an iterate off the solution": (dict(sgf_distance=lambda v: v * 100), "mirror coordinates"),
    "an unsolved programme": (dict(sgf_stationarity=lambda v: v + 1e-3), "programme is solved"),
    "a wrong law of SGD": (dict(sgd_gap=lambda v: v + 1e-4), "SGD's own law"),
    "a prediction no better": (dict(sgd_distance_mean_loss=lambda v: v * 100), "mean-loss law"),
    "no lower error": (dict(sgf_validation_error=lambda v: v * 1e3), "SGF below GD"),
    "an estimate too small": (dict(early_corrected_estimate=lambda v: v * 0), "covers the error"),
    "divergence": (dict(sgd_status=lambda v: np.full_like(v, 3)), "converge at this step size"),
    "a control that passes": (dict(isotropic_gap=lambda v: v * np.array([1, 0.25, 0.06])[:, None]), "Control: isotropic"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_claim_can_fail(run, name):
    changes, words = MUTATIONS[name]
    failed = [claim.statement for claim in broken(study.claims(mutated(run[2], **changes)))]
    assert any(words in statement for statement in failed), failed


def test_own_data_without_truth_is_not_applicable_not_failed(run):
    dataset = run[2].drop_vars([name for name in run[2].data_vars if "validation" in str(name) or name == "beta_star"])
    rows = [claim for claim in study.claims(dataset) if "below GD" in claim.statement]
    assert [row.verdict for row in rows] == ["not applicable"] * 2
    assert all("no beta_star" in row.reason for row in rows)
    assert study.plot(dataset) is not None


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
    assert cli.main(["run", "diagonal", "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "o")]) == 2
    assert "What still holds" in capsys.readouterr().err


def test_importing_the_package_leaves_plotting_and_storage_out():
    code = "import sys, sgfbias; print([m for m in ('matplotlib', 'xarray', 'zarr', 'pandas', 'rich', 'tyro') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_statistics_helpers():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(size=60) + 0.5
    a[:5] = b[:5]
    np.testing.assert_allclose(kolmogorov(a, b), ks_2samp(a, b).statistic, atol=1e-12)
    inside = sum(low <= 0 <= high for low, high in (median_interval(rng.normal(size=101)) for _ in range(400)))
    assert inside >= 385, "a 99% interval misses the median in at most 4% of 400 draws"
