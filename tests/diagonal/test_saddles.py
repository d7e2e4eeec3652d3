"""The path of saddles, tested by its defining conditions, and the adaptive flow from
initialisations far below the smallest float.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_problem

import sgfbias as sgf
from sgfbias.diagonal.theory.minimum_norm import minimum_l1
from sgfbias.diagonal.theory.saddles import (
    first_jump_constant,
    greedy_path,
    memoryless_times,
    saddle_path,
)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def orthogonal(slopes):
    """A problem with n = d and X / sqrt(n) = I, in which the coordinates do not
    interact: `L = sum (beta_i - slopes_i)^2 / 4`.
    """
    slopes = np.asarray(slopes)
    return sgf.SparseRegression(
        np.sqrt(len(slopes)) * np.eye(len(slopes)), np.sqrt(len(slopes)) * slopes
    )


def test_alone_each_coordinate_jumps_to_its_place_at_one_over_its_slope():
    path = saddle_path(orthogonal([0.5, -2.0, 1.0]))
    np.testing.assert_allclose(path.times, [0.5, 1.0, 2.0])
    np.testing.assert_allclose(path.betas, [[0, 0, 0], [0, -2, 0], [0, -2, 1], [0.5, -2, 1]])
    np.testing.assert_allclose(
        path.dual(np.array([0.25, 1.5])), [[0.0625, -0.25, 0.125], [0.375, -0.5, 0.5]]
    )
    # The slopes at the saddles are 1, 1/2 and 1/4.
    np.testing.assert_allclose(memoryless_times(path), [0.5, 1.5, 3.5])
    # The rates are 4 times the slopes of the coordinates that leave next, 1 and 1/2.
    np.testing.assert_allclose(path.relaxations(3.0)[:2], [2.0, 1.0])


@pytest.mark.parametrize("seed", range(4))
def test_every_saddle_is_optimal_under_its_signs_and_the_last_is_minimum_l1(seed):
    problem = small_problem(seed)
    path = saddle_path(problem)
    assert np.all(np.diff(path.times) > 0)
    assert np.all(np.abs(path.duals) <= 0.5 + 1e-12)
    for beta, gradient, s in zip(path.betas[1:], path.gradients[1:], path.duals[1:], strict=True):
        assert np.all((beta == 0) | (np.sign(beta) == np.sign(s)) & (np.abs(s) > 0.5 - 1e-9))
        np.testing.assert_allclose(gradient[beta != 0], 0, atol=1e-12)
        at_bound = (np.abs(s) == 0.5) & (beta == 0)
        # Such a coordinate would not grow.
        assert np.all(np.sign(s[at_bound]) * gradient[at_bound] >= 0)
    np.testing.assert_allclose(path.dual(path.times * (1 - 1e-12)), path.duals[1:], atol=1e-9)
    np.testing.assert_allclose(path.betas[-1], minimum_l1(problem), atol=1e-9)


def test_the_loss_scale_only_stretches_time():
    problem = small_problem(1)
    double = sgf.SparseRegression(problem.X, problem.y, loss_scale=0.5)
    np.testing.assert_allclose(saddle_path(double).times, saddle_path(problem).times / 2)
    assert first_jump_constant(double)[0] == pytest.approx(first_jump_constant(problem)[0] / 2)


def test_too_many_jumps_are_an_error():
    with pytest.raises(RuntimeError, match="after 2 jumps"):
        saddle_path(small_problem(), max_jumps=2)


def test_greedy_is_least_squares_on_a_growing_support():
    problem = small_problem(2)
    greedy = greedy_path(problem, 12)
    assert [int(np.sum(b != 0)) for b in greedy[:4]] == [0, 1, 2, 3]
    np.testing.assert_allclose(greedy[-1] @ problem.X.T, problem.y, atol=1e-9)


@pytest.mark.slow
def test_an_overflowing_trial_step_does_not_stop_the_adaptive_solver():
    """From alpha = 1e-20 the flow rests for a long time, so the steps grow until one of
    them reaches points where exp overflows.
    """
    import diffrax as dfx

    problem = small_problem(1)
    network = sgf.DiagonalNetwork.init(log_alpha=-46.0, d=problem.d, dtype=jnp.float64)
    runs = sgf.simulate(
        sgf.GradientFlow(),
        network,
        problem,
        t1=400.0,
        solver=dfx.Tsit5(),
        record=sgf.Record(times=3),
    )
    assert runs.status != sgf.Status.GAVE_UP
    assert np.isfinite(runs["loss"]).all()
