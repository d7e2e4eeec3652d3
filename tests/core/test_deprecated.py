"""Old names work, and warn with the new names."""

import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias.core import noise
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.flow import GradientFlow
from sgfbias.core.weights import Weights


@pytest.mark.slow
def test_a_noise_written_with_the_old_names_runs_and_warns():
    with pytest.warns(DeprecationWarning, match="Kick is now called .*NoiseIncrement"):
        kick = noise.Kick
    with pytest.warns(DeprecationWarning, match="Mine.root is now called Mine.sqrt_covariance"):

        class Mine(sgf.AbstractNoise):
            def shapes(self, outputs, features):
                return outputs

            def root(self, derivatives, step_size, dB):
                return kick(examples=derivatives * dB)

            def covariance(self, derivatives, step_size):
                return noise.Covariance(jnp.square(derivatives))

    problem = sgf.SparseRegression(np.eye(4, 6), np.ones(4))
    flow = sgf.StochasticGradientFlow(0.01, noise=Mine())
    runs = sgf.simulate(
        flow, sgf.DiagonalNetwork.init(alpha=0.1, d=6), problem, keys=sgf.seeds(0, 2), steps=5
    )
    assert np.isfinite(runs.final["loss"]).all()


def test_old_methods_warn_and_do_what_the_new_ones_do():
    model = sgf.MeanLossNoise()
    slopes, step = jnp.ones(3), jnp.asarray(0.1)
    with pytest.warns(DeprecationWarning, match="MeanLossNoise.sqrt_covariance"):
        old = model.root(slopes, step, jnp.ones(3)).examples
    np.testing.assert_array_equal(old, model.sqrt_covariance(slopes, step, jnp.ones(3)).examples)
    problem = sgf.SparseRegression(np.eye(4, 6), np.ones(4))
    with pytest.warns(DeprecationWarning, match="time_scale"):
        assert problem.pace == problem.time_scale
    weights = Weights(sgf.DiagonalNetwork.init(alpha=0.1, d=6), jnp.float64)
    with pytest.warns(DeprecationWarning, match="GradientFlow.state_coordinates"):
        assert GradientFlow().chart(weights) is weights
    with (
        pytest.warns(DeprecationWarning, match="Weights.vjp_features"),
        pytest.raises(ValueError, match="no feature channel"),
    ):
        weights.pull_features(None, jnp.ones(6))


def test_an_unknown_name_of_a_module_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Kicks'"):
        _ = noise.Kicks
    assert "pull_features" in vars(AbstractCoordinates)
