"""The system `fourier`: its theory against closed forms, and its main study."""

import jax
import numpy as np
import pytest
from study_case import StudyCase, small_run

import sgfbias as sgf
from sgfbias.fourier import draw, flow_variance, stationary_variance


def test_the_stationary_variance_is_a_fixed_point_of_the_recursion():
    gamma, spread = np.array([0.1, 0.5, 1.5]), 2.0
    v = stationary_variance(gamma, spread)
    np.testing.assert_allclose((1 - gamma) ** 2 * v + gamma**2 * spread, v, rtol=1e-14)


def test_small_steps_have_the_variance_of_the_flow():
    """The two formulas differ by a factor 1 - gamma / 2."""
    gamma = 1e-6
    assert flow_variance(gamma, 1.0) / stationary_variance(gamma, 1.0) == 1 - gamma / 2


def test_gradient_descent_follows_its_closed_form():
    problem, network = draw(jax.random.key(0), n=5)
    run = sgf.simulate(sgf.GradientDescent(0.1), network, problem, steps=30)
    expected = (1 - 0.9**30) * problem.targets.mean()
    np.testing.assert_allclose(run.networks.w, expected, rtol=1e-12)


def test_one_example_has_no_variance():
    with pytest.raises(ValueError, match="n must be at least 2"):
        draw(jax.random.key(0), n=1)


class TestMain(StudyCase):
    study = "fourier"
    small = "--seeds 4096"
    mutations = {
        "another variance": ("end", lambda v: 1.3 * v, "over seeds is gamma s^2 / (2 - gamma)"),
        "the flow's variance": ("end", lambda v: v * 0.75**0.5, "does not describe SGD"),
    }
    refusals = [({"step_size": 1.5}, "step_size must be above 0 and below 1")]

    @classmethod
    def make(cls):
        """The small run itself, which takes a second."""
        return small_run("fourier")
