"""`selected_errors`, the errors of the solutions that the evolution law of each run
selects, against the limit of small steps.
"""

import jax.numpy as jnp
import pytest
from helpers import network, small_problem

import sgfbias as sgf
from sgfbias.diagonal.theory.selected import selected_errors


@pytest.mark.slow
def test_gradient_descent_tends_to_the_programme_at_the_initial_alpha():
    """As gamma goes to 0 the evolution law of discrete steps converges to that of the
    flow, which without noise is theorem 1 at the initial alpha.
    """
    problem, net = small_problem(n=20, d=50), network(alpha=0.02, d=50)
    limit = float(problem.validation_error(sgf.select(problem, jnp.log(0.02)).beta))
    gaps = []
    for gamma, steps in ((0.1, 4000), (0.05, 8000), (0.025, 16000)):
        runs = sgf.simulate(
            sgf.GradientDescent(gamma), net, problem, steps=steps, record=sgf.Record(times=2)
        )
        gaps.append(abs(selected_errors(runs, problem)[0] - limit))
    assert gaps[1] < 0.7 * gaps[0]
    assert gaps[2] < 0.7 * gaps[1]
