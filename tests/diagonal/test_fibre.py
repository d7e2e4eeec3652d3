"""The distance to the minimiser on the fibre of an iterate: compared with a
one-dimensional solution, measured by projection, and in runs where it is 0 and where it
is not.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network, small_problem
from scipy.optimize import brentq

import sgfbias as sgf
from sgfbias.diagonal.potential import u_from
from sgfbias.diagonal.theory.fibre import fibre_distance, minimisers_on_fibres, outside_row_space


def test_one_example_by_a_root_of_one_variable():
    """With n = 1 the minimiser is `2 alpha^2 sinh(4 x nu + offset)` at the nu that
    keeps the output `<x, beta>`.
    """
    x, alpha, beta, offset = (
        np.array([0.7, -1.2]),
        np.array([0.3, 0.2]),
        np.array([0.5, 0.4]),
        np.array([0.1, -0.2]),
    )

    def at(nu):
        return 2 * alpha**2 * np.sinh(4 * x * nu + offset)

    expected = at(brentq(lambda nu: x @ at(nu) - x @ beta, -50, 50, xtol=1e-15))
    problem = sgf.SparseRegression(x[None], np.array([0.9]))
    found = minimisers_on_fibres(
        problem, jnp.asarray(beta)[None], jnp.log(alpha)[None], jnp.asarray(offset)[None]
    )
    np.testing.assert_allclose(found.beta[0], expected, rtol=1e-9)
    np.testing.assert_allclose(found.distance, np.linalg.norm(beta - expected), rtol=1e-9)
    np.testing.assert_allclose(
        found.relative, np.linalg.norm(beta - expected) / np.linalg.norm(beta), rtol=1e-9
    )


@pytest.mark.slow
def test_it_is_0_where_theorem_1_holds_long_before_convergence_and_not_at_another_alpha():
    problem, net = small_problem(), network()
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(0.05), net, problem, keys=sgf.seeds(0, 4), steps=60
    )
    assert float(runs.final["loss"].min()) > 1e-4  # far from converged
    assert float(fibre_distance(problem, runs).relative.max()) < 1e-9
    start = jnp.broadcast_to(net.log_alpha, runs.final["log_alpha"].shape)
    assert float(fibre_distance(problem, runs, log_alpha=start).relative.min()) > 1e-4


@pytest.mark.slow
def test_sgd_needs_its_offset():
    problem, net = small_problem(), network(0.3)
    runs = sgf.simulate(
        sgf.StochasticGradientDescent(0.1), net, problem, keys=sgf.seeds(0, 4), steps=200
    )
    assert float(fibre_distance(problem, runs).relative.max()) < 1e-8
    assert float(fibre_distance(problem, runs, with_offset=False).relative.min()) > 1e-6


def test_by_projection_it_is_0_at_the_same_points():
    problem, net = small_problem(), network()
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(0.05), net, problem, keys=sgf.seeds(0, 3), steps=60
    )
    rows = np.linalg.qr(np.asarray(problem.X).T)[0].T
    slopes = {
        name: u_from(runs.final["beta"], value)
        for name, value in (("own", runs.final["log_alpha"]), ("start", net.log_alpha))
    }
    assert outside_row_space(rows, slopes["own"]).max() < 1e-9
    assert outside_row_space(rows, slopes["start"]).min() > 1e-4
    np.testing.assert_array_equal(
        outside_row_space(np.broadcast_to(rows, (3, *rows.shape)), slopes["start"]),
        outside_row_space(rows, slopes["start"]),
    )


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_seed_that_diverged_is_nan_and_leaves_the_others_alone():
    problem, net = small_problem(), network()
    runs = sgf.simulate(
        sgf.StochasticGradientDescent(3.0), net, problem, keys=sgf.seeds(0, 8), steps=300
    )
    good = sgf.simulate(
        sgf.StochasticGradientDescent(0.1), net, problem, keys=sgf.seeds(0, 8), steps=300
    )
    assert bool(runs.diverged.all())
    assert np.isnan(fibre_distance(problem, runs).relative).all()
    assert np.isfinite(fibre_distance(problem, good).relative).all()
