"""The counts of `sgfbias robustness`, on a study that is made up here."""

import dataclasses
import json

import numpy as np
import pytest

from sgfbias import cli
from sgfbias.study import SeededConfig, claim, control, not_applicable, robustness
from sgfbias.study.frame import study_named
from sgfbias.study.registry import names
from sgfbias.study.statistics import bootstrap, power_law, resampling


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """The settings of the study below."""

    bad: tuple[int, ...] = ()
    problem_seed: int = 5


class Study:
    name = "made-up"

    def __init__(self):
        self.runs = 0

    def run(self, config):
        self.runs += 1
        if config.root_seed == 13:
            raise FloatingPointError("no digits left")
        return config

    def claims(self, config):
        good = config.root_seed not in config.bad
        return [
            claim("It holds", "", holds=good, measured="7", reason="unlucky"),
            control("it does not hold", "", holds=True),
            claim("It may hold", "", holds=False, must_hold=False, measured="1"),
            not_applicable("It is elsewhere", "", "there is no place")
            if config.root_seed == 2
            else claim("It is elsewhere", "", holds=True),
        ]


def counts(folder, config, draws):
    rows = robustness.run(Study(), config, range(draws), folder)
    return {row.statement: row for row in rows}


def test_one_failure_in_twenty_is_allowed_and_two_are_not(tmp_path):
    found = counts(tmp_path / "one", Config(bad=(3,)), 12)
    assert found["It holds"].count("fails") == 1
    assert not found["It holds"].robust, "one in twelve is too much"
    assert found["It holds"].reasons == {3: "7; unlucky"}
    assert found["It is elsewhere"].count("not applicable") == 1
    assert all(found[word].robust for word in ("It is elsewhere", "It may hold"))
    rows = {
        bad: robustness.rows_of(
            {root: Study().claims(Config(bad=bad, root_seed=root)) for root in range(20)}
        )
        for bad in ((3,), (3, 4))
    }
    assert [all(row.robust for row in rows[bad]) for bad in rows] == [True, False]


def test_a_control_that_fails_a_nan_and_a_missing_claim_are_counted():
    draws = {
        root: [
            control("it fails", "", holds=False, must_hold=False),
            claim("A number", "", holds=True, measured="slope nan" if root == 1 else "slope 2"),
            claim("A banana is no nan", "", holds=True, measured="banana"),
            *([claim("Sometimes", "", holds=True)] if root else []),
        ]
        for root in range(3)
    }
    rows = {row.statement: row for row in robustness.rows_of(draws)}
    assert not rows["Control: it fails"].robust
    assert rows["A number"].count("nan") == 1
    assert not rows["A number"].robust
    assert rows["A banana is no nan"].robust
    assert rows["Sometimes"].verdicts == {0: "missing", 1: "holds", 2: "holds"}
    assert not rows["Sometimes"].robust


def test_draws_that_are_there_are_kept_and_other_settings_are_refused(tmp_path):
    study = Study()
    robustness.run(study, Config(), range(2), tmp_path)
    robustness.run(study, Config(), range(4), tmp_path)
    assert study.runs == 4
    with pytest.raises(ValueError, match="holds a draw with other settings"):
        robustness.run(study, Config(bad=(1,)), range(4), tmp_path)
    rows = robustness.run(study, Config(bad=(1,)), range(4), tmp_path, overwrite=True)
    assert study.runs == 8
    assert rows[0].count("fails") == 1
    (tmp_path / "root_2.json").write_text("{")  # interrupted while it was written
    robustness.run(study, Config(bad=(1,)), range(4), tmp_path)
    assert study.runs == 9


def test_a_study_that_raises_in_a_draw_fails_there(tmp_path):
    rows = robustness.run(Study(), Config(), range(12, 15), tmp_path)
    row = next(row for row in rows if row.statement == "The study runs")
    assert row.verdicts[13] == "fails"
    assert row.reasons[13] == "FloatingPointError; no digits left"
    assert not row.robust


def test_the_picture_draws_and_the_summary_is_json(tmp_path):
    rows = robustness.run(Study(), Config(bad=(1,)), range(4), tmp_path)
    figure = robustness.plot("made-up", rows)
    assert len(figure.axes[0].get_yticklabels()) == len(rows)
    found = json.loads(json.dumps(robustness.summary(Study(), Config(bad=(1,)), rows)))
    assert found["roots"] == [0, 1, 2, 3]
    assert found["robust"] is False
    assert found["claims"][0]["fails"] == 1
    assert "root_seed" not in found["config"]


def test_the_command_line_refuses_draws_that_make_no_sense(capsys):
    assert cli.main(["robustness", "svag", "--draws", "0"]) == 2
    assert "--draws must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["run", "svag", "--quick", "--paper"])
    assert "--paper or --quick, but not both" in capsys.readouterr().err


def test_a_root_reaches_the_data_and_the_resampling():
    """With root 0 the data are those of their own seed."""
    assert Config().data_seed() == 5
    drawn = {Config(root_seed=root).data_seed() for root in range(1, 200)}
    assert len(drawn) == 199
    assert Config(root_seed=1, problem_seed=6).data_seed() not in drawn
    assert all(0 <= seed < 2**31 for seed in drawn)
    sample = np.random.default_rng(0).normal(size=50)
    plain = [bootstrap(_mean, sample), power_law([1, 2, 4], [1, 2, 4], [0.1, 0.1, 0.1])]
    with resampling(0):
        assert bootstrap(_mean, sample) == plain[0]
    with resampling(7):
        assert bootstrap(_mean, sample) != plain[0]
        assert power_law([1, 2, 4], [1, 2, 4], [0.1, 0.1, 0.1]) != plain[1]
    assert bootstrap(_mean, sample) == plain[0]


def _mean(values):
    return values.mean(axis=-1)


@pytest.mark.parametrize("name", names())
def test_every_study_has_a_root_and_a_quick_size(name):
    study = study_named(name)
    assert isinstance(study.quick, study.Config)
    assert study.quick.root_seed == study.Config().root_seed == 0
