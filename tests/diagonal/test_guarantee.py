"""The guarantee of Theorem 1: its constants written out again, the inequalities of its
proof on random points, and runs within its bounds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network, small_problem

import sgfbias as sgf
from sgfbias.diagonal.theory.effective import gradient_flow_integral

PROBLEM, START = small_problem(n=20, d=40), network(d=40)
KEYS = sgf.seeds(0, 32)


@pytest.fixture(scope="module")
def found():
    return sgf.guarantee(PROBLEM, START)


def test_the_constants_are_those_of_the_theorem(found):
    X = np.asarray(PROBLEM.X)
    B = np.abs(np.asarray(sgf.minimum_l1(PROBLEM))).sum()
    a = max(B * np.log(np.sqrt(2) * B / 0.1**2), 40 * 0.1**2)
    lam = np.linalg.eigvalsh(X.T @ X / 20)[-1]
    assert float(found.step_size) == pytest.approx(1 / (400 * np.log(4 / 0.05) * lam * a))
    assert float(found.l1_bound) == pytest.approx(18 * a)
    high = B / 4 * np.log(18 * np.sqrt(2) * a / 0.01) + 2 * a
    assert float(found.integral[1]) == pytest.approx(high)
    drop = (np.log(0.1) - np.asarray(found.log_alpha)) / np.asarray(PROBLEM.h)
    np.testing.assert_allclose(drop[0], 2 * float(found.step_size) * high)
    np.testing.assert_allclose(drop[1], 2 * float(found.step_size) * float(found.integral[0]))


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_the_step_size_closes_the_argument(alpha, size):
    """At |xi|_1 = 18 a the two bounds on V contradict each other, and before that V
    falls by at least int L. These are the inequalities behind the constants.
    """
    problem = sgf.SparseRegression(PROBLEM.X, size * PROBLEM.y)
    for p in (0.5, 0.05, 1e-6):
        one = sgf.guarantee(problem, network(alpha, d=40), 1 - p)
        B, lam, a, b = (float(one.constants[name]) for name in ("B", "lam", "a", "b"))
        gamma, radius = float(one.step_size), float(one.l1_bound)
        # h <= lam and |beta|_2 <= |xi|_1
        fall = 2 - gamma * lam * (radius + B) - 2 * b * gamma * lam * (radius**2 + B**2)
        assert fall >= 1
        square = 40 * alpha**2
        assert radius / 4 - B / 4 * np.log(radius / alpha**2) > square / 2 + a
        # int L at its bound would make V smaller than it can be.
        least = B / 4 * (1 - np.log(B / alpha**2))
        assert square / 2 + a - fall * float(one.integral[1]) <= least + 1e-9
        W, M = float(one.constants["W"]), float(one.constants["M"])
        low = float(one.integral[0])
        # 2 int L = W + S at the level W / 2, with <S> <= gamma M int L
        level = np.log(4 / p) / W
        assert 2 * low == pytest.approx(W - W / 2 - level * gamma * M * low, rel=1e-6)


def test_gradient_flow_lies_within(found):
    exact = float(gradient_flow_integral(PROBLEM, START.log_alpha))
    assert float(found.integral[0]) < exact < float(found.integral[1])
    assert float(found.integral[0]) == pytest.approx(
        exact / 2 / (1 + 650 / 800 * float(found.constants["a"] / found.constants["W"])), rel=1e-6
    )


@pytest.mark.slow
def test_runs_far_above_the_guaranteed_step_size_are_within_the_bounds(found):
    flow = sgf.StochasticGradientFlow(1000 * float(found.step_size))
    runs = sgf.simulate(
        flow, START, PROBLEM, keys=KEYS, t1=100.0, record=sgf.Record({"xi": lambda w: w.xi.sum()})
    )
    assert not np.any(np.asarray(runs.diverged))
    assert np.max(runs["xi"]) < float(found.l1_bound)
    integral = np.asarray(runs.final["loss_integral"])
    assert np.all((integral > float(found.integral[0])) & (integral < float(found.integral[1])))


def test_the_loss_scale_changes_the_step_size_only(found):
    half = sgf.guarantee(sgf.SparseRegression(PROBLEM.X, PROBLEM.y, loss_scale=0.5), START)
    assert float(half.step_size) == pytest.approx(float(found.step_size) / 2)
    assert float(half.integral[1]) == pytest.approx(float(found.integral[1]))
    np.testing.assert_allclose(half.log_alpha[0], found.log_alpha[0])


def test_alpha_may_be_a_vector_and_very_small():
    alpha = jnp.linspace(0.05, 0.2, 40)
    one = sgf.guarantee(PROBLEM, sgf.DiagonalNetwork.init(alpha=alpha))
    B = float(one.constants["B"])
    assert float(one.constants["a"]) == pytest.approx(B * np.log(np.sqrt(2) * B / 0.05**2))
    tiny = sgf.guarantee(PROBLEM, sgf.DiagonalNetwork.init(log_alpha=-500.0, d=40))
    assert float(tiny.constants["a"]) == pytest.approx(B * (np.log(np.sqrt(2) * B) + 1000))
    assert np.isfinite(float(tiny.integral[0]))


@pytest.mark.slow
def test_it_is_differentiable_in_alpha_and_with_an_interpolator_in_the_targets():
    def width(log_alpha):
        start = sgf.DiagonalNetwork.init(log_alpha=log_alpha, d=40)
        return sgf.guarantee(PROBLEM, start).integral[0]

    x = jnp.asarray(-2.0)
    finite = (width(x + 1e-5) - width(x - 1e-5)) / 2e-5
    assert float(jax.grad(width)(x)) == pytest.approx(float(finite), rel=1e-6)

    def step(size):
        problem = sgf.SparseRegression(PROBLEM.X, size * PROBLEM.y)
        least = size * sgf.minimum_l1(PROBLEM)
        return sgf.guarantee(problem, START, interpolator=least).step_size

    one = jnp.asarray(1.0)
    finite = (step(one + 1e-5) - step(one - 1e-5)) / 2e-5
    assert float(jax.grad(step)(one)) == pytest.approx(float(finite), rel=1e-6)


def test_nothing_to_fit_needs_no_loss():
    problem = sgf.SparseRegression(PROBLEM.X, 0 * PROBLEM.y)
    one = sgf.guarantee(problem, START)
    assert float(one.constants["a"]) == pytest.approx(0.4)
    assert float(one.integral[0]) == 0


def test_it_prints_itself(found):
    text = repr(found)
    assert text.startswith("Guarantee: with probability 0.95, the flow with mean-loss noise")
    assert "the effective alpha of coordinate j lies between" in text


def test_refusals():
    for wrong in (0.3, 1.0):
        with pytest.raises(ValueError, match=r"at least 0.5 and below 1, .* but is"):
            sgf.guarantee(PROBLEM, START, wrong)
    with pytest.raises(ValueError, match="the network has 7 features, but the problem has 40"):
        sgf.guarantee(PROBLEM, network(d=7))
    unequal = sgf.DiagonalNetwork.from_weights(jnp.full(40, 0.1), jnp.full(40, 0.2))
    with pytest.raises(ValueError, match="w_\\+ and w_- of this network differ"):
        sgf.guarantee(PROBLEM, unequal)
    with pytest.raises(ValueError, match="`interpolator` must solve X beta = y"):
        sgf.guarantee(PROBLEM, START, interpolator=jnp.ones(40))
    with pytest.raises(ValueError, match="no beta satisfies"):
        sgf.guarantee(sgf.SparseRegression(np.ones((2, 2)), [1.0, 2.0]), network(d=2))
