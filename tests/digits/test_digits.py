"""The study `digits`: made-up datasets decide every claim, and every claim can fail.

A small run of the study, too short for its claims to hold, must be complete.
"""

import subprocess
import sys

import numpy as np
import pytest
from helpers import made_up, mutated
from study_case import StudyCase, small_run

from sgfbias.digits.studies.main import Config

SEEDS, TIMES = 8, 61


class TestDigits(StudyCase):
    study = "digits"
    small = "--seeds 8 --steps 60 --hidden 8 --train 64"
    mutations = {
        "no learning": (
            lambda ds: ds.assign(
                {name: ds[name] * 0.5 for name in ("flow_test_accuracy", "sgd_test_accuracy")}
            ),
            "learn, and no seed",
        ),
        "seeds lost": ("sgd_status", lambda v: np.full_like(v, 3), "no seed diverges"),
        "no effect on the loss": (
            "gd_test_loss",
            lambda v: v + 0.03,
            "The noise matters: SGD's mean test loss",
        ),
        "a gradient descent that is lost": (
            "gd_test_loss",
            lambda v: v * np.nan,
            "The noise matters: SGD's mean test loss",
        ),
        "a flow of another loss": (
            "flow_test_loss",
            lambda v: v + 0.02,
            "explains the effect: its mean test loss",
        ),
        "a flow of another accuracy": (
            "flow_test_accuracy",
            lambda v: v + 0.02,
            "explains the effect: its mean test accuracy",
        ),
        "a flow without the effect on the loss": (
            "flow_test_loss",
            lambda v: v - 0.03,
            "the same distance of test loss shows",
        ),
        "a flow without the effect on the accuracy": (
            "flow_test_accuracy",
            lambda v: v + 0.02,
            "the same distance of test accuracy shows",
        ),
    }
    refusals = [
        ({"batch_size": 600}, "batch_size must be at most train = 512"),
        ({"steps": 100}, "steps must be a multiple of 60"),
    ]

    @classmethod
    def make(cls):
        """Made-up curves whose means differ as the claims say, with a spread over
        seeds.
        """
        rng, variables = np.random.default_rng(0), {}
        for quantity, middle, effect in (
            ("loss", 0.1, 0.03),
            ("test_loss", 0.2, 0.03),
            ("test_accuracy", 0.9, -0.02),
        ):
            variables[f"gd_{quantity}"] = (("time",), np.full(TIMES, middle))
            for name, shift in (
                ("sgd", 0.0),
                ("flow", 0.0),
                ("coarse", 0.0),
                ("mean_loss", 3 * effect),
            ):
                values = (
                    middle + effect + shift + rng.normal(size=(SEEDS, 1)) * 0.001 * np.ones(TIMES)
                )
                variables[f"{name}_{quantity}"] = (("seed", "time"), values)
                variables[f"{name}_status"] = (("seed",), np.zeros(SEEDS, int))
        return made_up(
            Config(seeds=SEEDS, steps=60),
            variables,
            {"time": np.arange(TIMES) * 0.05, "seed": np.arange(SEEDS)},
        )

    def test_an_effect_that_is_not_resolved_is_not_compared(self, made):
        """The seeds spread so much that equal means would say nothing."""
        rng = np.random.default_rng(1)
        wide = mutated(made, "flow_test_loss", lambda v: v + 0.05 * rng.normal(size=(SEEDS, 1)))
        rows = [c for c in self.module.claims(wide) if c.verdict == "not applicable"]
        assert [("test loss" in c.statement, "not within 33%" in c.reason) for c in rows] == [
            (True, True)
        ] * 3

    def test_a_small_displacement_is_seen_but_informs_only(self, made):
        apart = mutated(made, "flow_test_loss", lambda v: v + 0.004)
        row = next(c for c in self.module.claims(apart) if "shows no difference" in c.statement)
        assert (row.verdict, row.must_hold) == ("fails", False)

    def test_mean_loss_noise_that_does_as_well_is_reported(self, made):
        same = made.assign(mean_loss_test_loss=made["sgd_test_loss"])
        before, after = (
            next(c for c in self.module.claims(d) if "covariance" in c.statement)
            for d in (made, same)
        )
        assert (before.verdict, after.verdict, after.must_hold) == ("holds", "fails", False)

    @pytest.mark.slow
    def test_a_small_one_is_complete_and_learns(self):
        dataset = small_run(self.study)
        assert dataset["flow_test_accuracy"].sizes == {"seed": 8, "time": 61}
        assert float(dataset["sgd_loss"][:, -1].mean()) < float(dataset["sgd_loss"][:, 0].mean())
        assert self.module.plot(dataset) is not None


@pytest.mark.slow
def test_without_scikit_learn_it_says_what_to_install():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from sgfbias.digits.problem import load_digits\n"
        "try: load_digits(0, 10)\nexcept ValueError as e: print(e)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "pip install 'sgfbias[digits]'" in out
