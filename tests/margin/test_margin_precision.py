"""Single precision against formulas in double precision: factors such as the loss and
1/eps leave the range of float32 long before their products do.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import margin
from sgfbias.margin.conditioners import FASTEST, Moment
from sgfbias.margin.rules import Moments, as_rule

G = np.array([0.5, -0.2, 0.03])
N = 4
PAIR = np.array([[np.cos(np.pi / 8), np.sin(np.pi / 8)], [np.cos(np.pi / 20), np.sin(np.pi / 20)]])


def single(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("eps", [1e-8, 1e-20, 1e-30])
@pytest.mark.parametrize("nu", [0.5, 15.0, 25.0, 60.0])
def test_averages_of_squares_relax_as_their_equation_says(nu, eps):
    """`dV/dnu = k (g^2 - V)` with `g = e^(-nu) G / n` and `k = c n e^nu / N`, of which
    the fastest that is followed is 100; and AdaGrad's `dV/dnu = e^(-nu) G^2 / (n N)`.
    """
    squares = (G * np.exp(-nu) / N) ** 2 * np.array([0.5, 2.0, 0.0])
    b, h = np.log1p(squares / eps), (eps + squares) ** -0.5
    speed = np.sum(h * G**2)
    now = Moment(single(nu), N, single(0.0))
    arguments = single(b), single(G), now, single(np.sqrt(eps) * speed)
    k = min(0.1 * N * np.exp(nu) / speed, FASTEST)
    wanted = k * ((G * np.exp(-nu) / N) ** 2 - squares) / (eps + squares)
    found = margin.RMSProp(0.9, eps).rate(*arguments)
    # What is far below eps is not followed any more.
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-9)
    wanted = np.exp(-nu) * G**2 / (N * speed) / (eps + squares)
    np.testing.assert_allclose(margin.AdaGrad(eps).rate(*arguments), wanted, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("nu", [0.5, 25.0, 60.0])
def test_adam_without_momentum_begins_with_the_square_itself(nu):
    """At t = 0 the corrected average is g^2: `sqrt(eps) h = (1 + g^2/eps)^(-1/2)`."""
    eps = 1e-20
    now = Moment(single(nu), N, single(0.0))
    found = margin.AdamNoMomentum(0.9, eps).factor(single(np.zeros(3)), single(G), now)
    wanted = (1 + (G * np.exp(-nu) / N) ** 2 / eps) ** -0.5
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("log_loss", [-30.0, -60.0])
def test_eps_counts_as_it_does_in_units_of_the_loss(log_loss):
    """Adam's `sqrt(v) + eps` and RMSProp's `sqrt(v + eps)`, both over the loss."""
    eps = 1e-20
    U = np.array([0.25, 4.0, 0.0])
    small = eps / np.exp(log_loss)
    taken = single(1e9)  # so that no average has to be corrected for its start
    memory = Moments(single(U), single(U), single(U), taken, single(log_loss))
    found = margin.Adam(eps=eps)._root(memory)
    np.testing.assert_allclose(found, np.sqrt(U) + small, rtol=1e-4)
    found = as_rule(margin.RMSProp(0.9, eps**2))._root(memory)
    np.testing.assert_allclose(found, np.hypot(np.sqrt(U), small), rtol=1e-4)
    np.testing.assert_array_equal(margin.Adam(eps=0.0)._root(memory), np.sqrt(single(U)))


@pytest.mark.slow
def test_long_after_the_crossover_the_conditioner_is_constant():
    """The average falls to eps = 1e-20 near nu = 23, and at nu = 80 it is nothing
    beside it, so that h is eps^(-1/2) in every weight.
    """
    problem = sgf.Problem(single(PAIR), single(np.ones(2)), loss=margin.ExponentialLoss())
    flow = margin.MarginFlow(margin.RMSProp(0.9, 1e-20))
    run = sgf.simulate(flow, margin.Linear(single(np.zeros(2))), problem, t1=80.0)
    h = np.asarray(run.final["conditioner"])
    assert h.dtype == np.float32
    np.testing.assert_allclose(h, 1e10, rtol=1e-3)
