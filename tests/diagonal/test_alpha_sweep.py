"""The study `alpha-sweep`: a small run is swept and drawn, every claim can fail, and
its cells can be swept outside the study.
"""

import dataclasses

import numpy as np
import pytest
from study_case import StudyCase, mutate

import sgfbias as sgf
from sgfbias.diagonal.studies.pesme2021 import alpha_sweep as study

SMALL = study.Config(
    seeds=64,
    levels=3,
    alpha_low=0.003,
    alpha_high=0.05,
    step_size=0.2,
    steps=6000,
    flow_steps=600,
    n=20,
    d=50,
    sparsity=3,
)


@pytest.mark.slow
class TestAlphaSweep(StudyCase):
    study = "alpha-sweep"
    small = (
        "--seeds 64 --levels 3 --alpha-low .003 --alpha-high .05 --step-size .2 --steps 6000 "
        "--flow-steps 600 --n 20 --d 50 --sparsity 3"
    )
    mutations = {
        "seeds that diverge": (
            "sgd_status",
            lambda v: np.where(np.arange(v.shape[1]) < 8, 2, v),
            "converge at this step size",
        ),
        "SGD above gradient descent": (
            "sgd_error",
            lambda v: v * np.array([1, 1, 50])[:, None],
            "The solution that SGD selects",
        ),
        "a flow above gradient descent": (
            "flow_error",
            lambda v: v * np.array([1, 1, 50])[:, None],
            "The solution that the flow selects",
        ),
        "gradient descent that does not rise": (
            "gd_error",
            lambda v: np.full_like(v, v.max()),
            "The error of gradient descent increases",
        ),
        "SGD that does not rise": (
            "sgd_error",
            lambda v: np.broadcast_to(v[:1], v.shape),
            "The error of SGD increases",
        ),
        "a flow that does not rise": (
            "flow_error",
            lambda v: np.broadcast_to(v[:1], v.shape),
            "The error of the flow increases",
        ),
        "SGD still moving": ("sgd_half_error", lambda v: 2 * v, "SGD has run long enough"),
        "an effect without noise": ("quiet_error", lambda v: v * 0.1, "Control"),
    }
    refusals = [({"alpha_high": 1e-5}, "alpha_high must be finite and above")]

    def test_without_ends_there_is_nothing_to_compare(self, made):
        """If all seeds diverge, only the claim that they converge fails, in numbers."""
        lost = mutate(made, ("sgd_status", lambda v: np.full_like(v, 3), ""))
        lost["sgd_error"][:] = np.nan
        first, *others = self.module.claims(lost)
        assert first.broken
        assert {claim.verdict for claim in others} == {"not applicable"}
        assert [claim.statement for claim in others] == [
            claim.statement for claim in self.module.claims(made)[1:]
        ]

    def test_the_theorem_says_how_much_a_hundredth_of_the_noise_does(self, made):
        """The prediction is far closer than gradient descent's error is."""
        quiet = np.median(made["quiet_error"].values, axis=1)
        off, all_of_it = (
            np.abs(np.log(quiet / made[name].values))
            for name in ("quiet_predicted_error", "gd_error")
        )
        assert (off < 0.05 * all_of_it).all()

    def test_a_cell_does_not_depend_on_the_sweep_around_it(self, made):
        """Other seeds and alphas of the sweep change no bit of a cell's result."""
        alone = study.cell(
            dataclasses.replace(SMALL, alpha=float(made["alpha"][1])), sgf.seeds(0, 20)
        )
        for name in ("sgd_error", "flow_error"):
            np.testing.assert_array_equal(alone[name], made[name].values[1, :20])


def test_a_single_cell_wants_a_number_for_its_step_size():
    with pytest.raises(ValueError, match="needs a number as its step_size"):
        study.cell(study.Config(), sgf.seeds(0, 4))
