"""The evolution laws of the effective initialisation."""

import jax.numpy as jnp
import numpy as np
from helpers import network, small_problem

from sgfbias.diagonal.theory.effective import mean_loss_law, per_sample_law


def test_the_laws_agree_where_all_examples_have_one_loss():
    problem, start = small_problem(n=6, d=14), network(d=14)
    X, integral = np.asarray(problem.X), np.array([0.3, 2.0])
    law = mean_loss_law(problem, start.log_alpha, 0.1, jnp.asarray(integral))
    np.testing.assert_allclose(
        law, np.log(0.1) - 0.2 * integral[:, None] * np.mean(X**2, axis=0), rtol=1e-12
    )
    each = jnp.broadcast_to(integral[:, None], (2, 6))
    np.testing.assert_allclose(per_sample_law(problem, start.log_alpha, 0.1, each), law, rtol=1e-12)
