"""Every study can be swept.

A study with a `cell` of its own is swept by seeds; any other is run as a whole at every
point of the grid.
"""

import pickle

import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import cli
from sgfbias.study import study_named
from sgfbias.study.registry import names


def test_every_study_can_be_swept_over_its_problems():
    for name in names():
        study = study_named(name)
        fields = study.Config.__dataclass_fields__
        config = study.Config(
            **({"step_size": 0.1} if "step_size" in fields and study.by_seed else {})
        )
        sweep = sgf.Sweep(name, draws=2 if "problem_seed" in fields else None, config=config)
        assert sweep.name == name
        assert sweep.whole == (not study.by_seed)
        assert len(sweep.tasks) == sweep.grid.cells * (
            1 if sweep.whole else len(sweep.tasks) // sweep.grid.cells
        )


SVAG = study_named("svag").Config(time=0.2, seeds=16)


@pytest.mark.slow
def test_a_cell_of_a_whole_study_is_the_study(tmp_path):
    """A cell has the numbers of a run of the study, whatever else is swept.

    An axis that the study has too is kept under another name.
    """
    stored = sgf.Sweep("svag", {"alpha": [0.2, 0.3]}, draws=(3, 5), config=SVAG).run(
        tmp_path / "svag.zarr"
    )
    alone = study_named("svag").run(
        study_named("svag").Config(time=0.2, seeds=16, alpha=0.2, problem_seed=4)
    )
    cell = stored.sel(alpha=0.2, problem_seed=4)
    for name in alone.data_vars:
        assert cell[name].dims == tuple(sorted(alone[name].dims, key=lambda dim: dim != "seed"))
        np.testing.assert_array_equal(cell[name].transpose(*alone[name].dims), alone[name])
    assert (stored["runs_done"] == 16).all()
    other = sgf.Sweep("svag", {"alpha": [0.3]}, seeds=16, root=1, config=SVAG).run(
        tmp_path / "other.zarr"
    )
    assert not np.array_equal(
        other["flow_loss"][0], stored["flow_loss"].sel(alpha=0.3, problem_seed=3)
    )


@pytest.mark.slow
def test_a_study_without_seeds_from_the_command_line(tmp_path, capsys):
    (tmp_path / "runs.toml").write_text(
        'study = "kernel-to-rich"\ndraws = 2\n[config]\ndraws = 2\nlevels = 8\ndepths = [2, '
        "3]\nflow_alphas = [0.3]\nflow_n = 5\nflow_d = 10\n"
        "n = 12\nd = 24\nsparsity = 2\n"
    )
    assert cli.main(["sweep", str(tmp_path / "runs.toml"), "--out", str(tmp_path)]) == 0
    assert "2 of 2 runs" in capsys.readouterr().out
    stored = sgf.open_sweep(tmp_path / "runs.zarr")
    assert stored.sizes["problem_seed"] == 2
    assert (
        cli.main(["sweep", str(tmp_path / "runs.toml"), "--out", str(tmp_path), "--seeds", "0:4"])
        == 2
    )
    assert "has no seeds, so leave out `seeds`" in capsys.readouterr().err


def test_a_root_is_the_configs_or_the_sweeps_not_two():
    config = study_named("svag").Config(time=0.2, seeds=16, root_seed=5)
    assert sgf.Sweep("svag", config=config).root == 5
    assert sgf.Sweep("svag", config=config).config["root_seed"] == 5
    alphas = study_named("alpha-sweep").Config(step_size=0.1, root_seed=5)
    assert sgf.Sweep("alpha-sweep", config=alphas).root == 5
    with pytest.raises(ValueError, match="`root` is 3, but the config's root_seed is 5"):
        sgf.Sweep("svag", config=config, root=3)


def test_a_study_goes_to_other_processes_a_users_module_too():
    import sweep_experiments

    for study, config in (("svag", SVAG), (sweep_experiments, None)):
        experiment = sgf.Sweep(study, config=config).experiment
        assert pickle.loads(pickle.dumps(experiment)).config == experiment.config


REFUSED = [
    (lambda: sgf.Sweep("svag", {"spam": [1]}), "spam is not in the config of svag"),
    (
        lambda: sgf.Sweep("svag", {"seeds": [16, 32]}),
        "seeds of svag cannot be an axis of the grid",
    ),
    (lambda: sgf.Sweep("svag", seeds=(8, 24)), "start at 0, but `seeds` starts at 8"),
    (
        lambda: sgf.Sweep("svag", seeds=32, chunk=16),
        "all 32 seeds of a cell are run at once: leave out `chunk`",
    ),
    (lambda: sgf.Sweep("svag", {"alpha": [0.1, -0.1]}), "alpha must be positive"),
    (lambda: sgf.Sweep("spam"), "there is no study 'spam'"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_makes_no_sense_is_refused_before_it_runs(make, words):
    with pytest.raises(ValueError, match=words):
        make()
