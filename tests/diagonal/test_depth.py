"""Depth p >= 3, unequal weights, and the product parametrisation, each against its
evolution law.
"""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, outside_row_space, rms, slope, small_problem

import sgfbias as sgf
from sgfbias.core.rules import AbstractRule
from sgfbias.diagonal.theory.selection_deep import deep_potential

GAMMA = 0.02


def chosen(problem, runs, depth=3):
    pair = (runs.final["log_alpha_plus"], runs.final["log_alpha_minus"])
    return jax.vmap(lambda plus, minus: sgf.select(problem, (plus, minus), depth=depth).beta)(*pair)


class TransformedByHand(AbstractRule):
    """A rule of the user that calls an Optax transformation."""

    transformation: optax.GradientTransformation

    def init(self, parameters):
        return self.transformation.init(parameters)

    def update(self, gradient, memory, scale, point):
        with jax.numpy_dtype_promotion("standard"):
            return self.transformation.update(gradient, memory, point.parameters)


def middle(problem, runs, depth=3):
    """The control: the solutions at a single effective initialisation, the mean of
    both.
    """
    mean = (runs.final["log_alpha_plus"] + runs.final["log_alpha_minus"]) / 2
    return jax.vmap(lambda one: sgf.select(problem, one, depth=depth).beta)(mean)


@pytest.mark.slow
def test_depth_three_ends_where_the_programme_says_as_dt_falls():
    """The runs are in weights, where nothing of the statement holds by construction. As
    a control, with one effective initialisation instead of two the gap does not fall.
    """
    problem, net, widths = (
        small_problem(),
        sgf.DiagonalNetwork.init(alpha=0.3, d=25, depth=3),
        (1, 1 / 8),
    )
    gaps, stalled = [], []
    for width in widths:
        flow = sgf.StochasticGradientFlow(GAMMA, dt=width * GAMMA, brownian_dt=GAMMA / 8)
        runs = sgf.simulate(
            flow, net, problem, keys=sgf.seeds(0, 64), t1=200.0, coordinates="weights"
        )
        assert float(runs.final["loss"].max()) < 1e-11
        gaps.append(rms(chosen(problem, runs) - runs.final["beta"]))
        stalled.append(rms(middle(problem, runs) - runs.final["beta"]))
    assert slope(widths, gaps) > 0.4
    assert stalled[-1] > 4 * gaps[-1], "one effective initialisation is not enough"
    assert slope(widths, stalled) < 0.3


@pytest.mark.slow
def test_depth_three_in_mirror_coordinates_is_the_programme_at_any_time():
    """At finite time the iterate is the solution on its own fibre. In mirror
    coordinates this holds by construction; the test in weights above is the test of the
    evolution law.
    """
    problem, net, noise = (
        small_problem(),
        sgf.DiagonalNetwork.init(alpha=0.3, d=25, depth=3),
        sgf.MinibatchNoise(2),
    )
    flow = sgf.StochasticGradientFlow(GAMMA, noise)
    runs = sgf.simulate(flow, net, problem, keys=sgf.seeds(0, 4), steps=600)
    for i in range(2):
        fibre = sgf.SparseRegression(problem.X, problem.X @ runs.final["beta"][i])
        pair = runs.final["log_alpha_plus"][i], runs.final["log_alpha_minus"][i]
        np.testing.assert_allclose(
            sgf.select(fibre, pair, depth=3).beta, runs.final["beta"][i], atol=1e-10
        )


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_second_order_drift_is_one_motion_in_all_charts(depth):
    """The weights move along -grad(gamma/4 |grad L|^2), here computed by automatic
    differentiation. The change of log alpha is the same in every coordinate system.
    """
    problem, rng = small_problem(n=4, d=6), np.random.default_rng(depth)
    weights = rng.uniform(0.5, 1.0, (2, 6))
    net = (
        sgf.DiagonalNetwork.from_weights(*weights)
        if depth == 2
        else sgf.DeepDiagonalNetwork.from_weights(*weights, depth=depth)
    )
    flow = sgf.StochasticGradientFlow(GAMMA, sgf.NoNoise(), order=2)

    def risk(w):
        return jnp.mean(jnp.square(problem.X @ (w[0] ** depth - w[1] ** depth) - problem.y)) / 4

    expected = (
        -GAMMA
        / 4
        * jax.grad(lambda w: jnp.sum(jnp.square(jax.grad(risk)(w))))(jnp.asarray(weights))
    )
    moved, gained = {}, {}
    for name in ("weights", "mirror", *(["log"] if depth == 2 else [])):
        coordinates = net.coordinates(name, problem, flow)
        position = coordinates.encode(net)
        tangent = jax.jvp(
            coordinates.decode,
            (position,),
            (coordinates.second_order_drift(position, problem, jnp.asarray(GAMMA)),),
        )[1]
        if depth == 2:
            log_plus, log_minus = (
                tangent.log_alpha + tangent.log_ratio / 2,
                tangent.log_alpha - tangent.log_ratio / 2,
            )
            moved[name], gained[name] = (
                jnp.stack([log_plus, log_minus]) * weights,
                jnp.stack([tangent.log_alpha, tangent.offset]),
            )
        else:
            moved[name], gained[name] = (
                jnp.stack([tangent.plus, tangent.minus]),
                jnp.stack([tangent.log_alpha_plus, tangent.log_alpha_minus]),
            )
    for name, value in moved.items():
        np.testing.assert_allclose(value, expected, atol=1e-13, err_msg=name)
    for name, value in gained.items():
        np.testing.assert_allclose(value, gained["mirror"], atol=1e-13, err_msg=name)
    assert np.abs(gained["mirror"]).max() > 1e-4


@pytest.mark.slow
def test_second_order_flow_of_depth_three_ends_on_the_pair_it_has_moved():
    """Without noise and in weights, the gap to the program falls in proportion to dt.
    With the effective initialisations of the start it does not fall.
    """
    problem, widths, gamma = small_problem(), (1 / 2, 1 / 8), 0.05
    net, gaps, stays = sgf.DiagonalNetwork.init(alpha=0.5, d=25, depth=3), [], []
    for width in widths:
        flow = sgf.StochasticGradientFlow(gamma, sgf.NoNoise(), dt=width * gamma, order=2)
        runs = sgf.simulate(
            flow, net, problem, keys=sgf.seeds(0, 1), t1=100.0, coordinates="weights"
        )
        assert float(runs.final["loss"].max()) < 1e-12
        gaps.append(rms(chosen(problem, runs) - runs.final["beta"]))
        stays.append(
            rms(sgf.select(problem, net.log_alpha_plus, depth=3).beta - runs.final["beta"])
        )
    assert slope(widths, gaps) > 0.8
    assert stays[-1] > 5 * gaps[-1]


@pytest.mark.parametrize("by", ["optax", "rule"])
def test_adam_on_a_deep_network_ends_where_a_network_that_starts_there_stays(by):
    """An Optax transformation has no evolution law of A: the effective initialisations
    that come back are the weights themselves.
    """
    problem, net = small_problem(), sgf.DiagonalNetwork.init(alpha=0.5, d=25, depth=3)
    # At a constant rate the loss under Adam would rise again and again, once its second
    # moments are close to 0.
    adam = optax.adam(optax.exponential_decay(1e-2, 1000, 0.1))
    algorithm = (
        sgf.OptaxDescent(adam, 1.0)
        if by == "optax"
        else sgf.RuleDescent(TransformedByHand(adam), 1.0)
    )
    run = sgf.simulate(algorithm, net, problem, steps=3_000)
    assert float(run.final["loss"]) < 1e-20
    pair = run.final["log_alpha_plus"], run.final["log_alpha_minus"]
    np.testing.assert_allclose(
        sgf.select(problem, pair, depth=3).beta, run.final["beta"], atol=1e-10
    )
    assert rms(sgf.select(problem, jnp.log(0.5), depth=3).beta - run.final["beta"]) > 1e-3, (
        "control"
    )


@pytest.mark.slow
def test_deep_sgd_ends_where_its_own_effective_initialisations_say():
    depth = 4
    problem, net = small_problem(), sgf.DiagonalNetwork.init(alpha=0.5, d=25, depth=depth)
    runs = sgf.simulate(
        sgf.StochasticGradientDescent(GAMMA),
        net,
        problem,
        keys=sgf.seeds(0, 3),
        steps=30_000,
        stop=1e-22,
    )
    assert float(runs.final["loss"].max()) <= 1e-22
    np.testing.assert_allclose(chosen(problem, runs, depth), runs.final["beta"], atol=1e-9)
    assert rms(middle(problem, runs, depth) - runs.final["beta"]) > 1e-4, "control"


@pytest.mark.slow
def test_deep_gradient_flow_from_unequal_weights():
    depth = 3
    problem, rng = small_problem(), np.random.default_rng(0)
    plus, minus = rng.uniform(0.2, 0.6, 25), rng.uniform(0.2, 0.6, 25)
    net = sgf.DeepDiagonalNetwork.from_weights(plus, minus, depth=depth)
    runs = sgf.simulate(sgf.GradientFlow(), net, problem, t1=3000.0)
    assert float(runs.final["loss"]) < 1e-18
    np.testing.assert_allclose(
        sgf.select(problem, (np.log(plus), np.log(minus)), depth=depth).beta,
        runs.final["beta"],
        atol=1e-7,
    )
    wrong = sgf.select(problem, (np.log(minus), np.log(plus)), depth=depth).beta
    assert rms(wrong - runs.final["beta"]) > 1e-3, "control: the signs exchanged"


@pytest.mark.slow
def test_gradient_flow_from_unequal_weights_at_depth_two():
    problem, rng = small_problem(), np.random.default_rng(1)
    net = sgf.DiagonalNetwork.from_weights(rng.uniform(0.1, 0.5, 25), -rng.uniform(0.1, 0.5, 25))
    np.testing.assert_allclose(
        net.beta, np.exp(2 * net.log_alpha) * 2 * np.sinh(net.log_ratio), rtol=1e-12
    )
    runs = sgf.simulate(
        sgf.GradientFlow(dt=0.1), net, problem, t1=2000.0, coordinates="weights", solver=dfx.Tsit5()
    )
    landed = sgf.select(problem, net.log_alpha, offset=net.offset).beta
    np.testing.assert_allclose(landed, runs.final["beta"], atol=1e-7)
    np.testing.assert_allclose(
        sgf.land(sgf.simulate(sgf.GradientFlow(), net, problem, t1=1.0)).beta, landed, atol=1e-7
    )
    assert rms(sgf.select(problem, net.log_alpha).beta - landed) > 1e-3, (
        "control: without the offset"
    )


@pytest.mark.parametrize("depth", [3, 4, 6])
@pytest.mark.parametrize("alpha", [1e3, 1.0, 0.1, 1e-3, 1e-6])
def test_certificate_at_depth(depth, alpha):
    problem = small_problem()
    found = sgf.select(problem, np.log(alpha), depth=depth)
    assert bool(found.converged)
    assert float(found.stationarity) < 1e-10
    if alpha >= 0.1:
        assert float(found.duality_gap) < 1e-10
    l1, l2 = sgf.minimum_l1(problem), sgf.minimum_l2(problem)
    if alpha == 1e3:
        np.testing.assert_allclose(found.beta, l2, atol=1e-9)
    if alpha == 1e-6:
        np.testing.assert_allclose(jnp.sum(jnp.abs(found.beta)), jnp.sum(jnp.abs(l1)), rtol=1e-6)


@pytest.mark.slow
def test_deep_programme_is_the_minimum_of_its_potential():
    """phi at the solution is below phi at feasible neighbours, the gradient of phi is
    h^{-1}, and the implicit derivative agrees with differences.
    """
    problem, pair = small_problem(), (np.log(0.2), np.log(0.3))
    best = sgf.select(problem, pair, depth=3)
    here = float(deep_potential(best.beta, *pair, 3))
    null = np.linalg.svd(np.asarray(problem.X))[2][10:]
    for seed in range(5):
        step = null.T @ np.random.default_rng(seed).normal(size=15)
        for size in (1e-3, 0.3):
            assert float(deep_potential(best.beta + size * step, *pair, 3)) > here
    h = 1e-5
    e = np.zeros(25)
    e[3] = h
    numeric = (
        deep_potential(best.beta + e, *pair, 3) - deep_potential(best.beta - e, *pair, 3)
    ) / (2 * h)
    # beta = (A_+ - z)^-3 - (A_- + z)^-3 with z = grad phi
    z = float(numeric)
    np.testing.assert_allclose((1 / 0.2 - z) ** -3 - (1 / 0.3 + z) ** -3, best.beta[3], rtol=1e-6)

    def outcome(t):
        return problem.validation_error(
            sgf.select(
                problem, (pair[0] + t, pair[1] - t * jnp.linspace(0.0, 1.0, 25)), depth=3
            ).beta
        )

    np.testing.assert_allclose(
        jax.grad(outcome)(0.0), (outcome(h) - outcome(-h)) / (2 * h), rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "flow"])
def test_product_network_moves_as_the_diagonal_network(kind):
    """`u v` under 1/(2n) and `w_+^2 - w_-^2` under 1/(4n) have one trajectory, with an
    alpha smaller by a factor of sqrt 2.
    """
    problem, alpha = small_problem(), 0.2
    doubled = sgf.SparseRegression(problem.X, problem.y, problem.beta_star, loss_scale=0.5)
    dynamics, keys = {
        "sgd": (sgf.StochasticGradientDescent(GAMMA, 2), sgf.seeds(0, 3)),
        "flow": (sgf.StochasticGradientFlow(GAMMA, sgf.MinibatchNoise(1)), sgf.seeds(0, 3)),
    }[kind]
    product = sgf.ProductNetwork.init(alpha=alpha, d=25)
    np.testing.assert_allclose(product.diagonal().log_alpha, np.log(alpha / 2**0.5), rtol=1e-12)
    runs = [
        sgf.simulate(dynamics, net, p, keys=keys, steps=500, coordinates="weights")
        for net, p in ((product, doubled), (network(alpha / 2**0.5), problem))
    ]
    np.testing.assert_allclose(runs[0].final["beta"], runs[1].final["beta"], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(runs[0].final["log_alpha"], runs[1].final["log_alpha"], atol=1e-9)
    np.testing.assert_allclose(
        runs[0].final["loss_integral"], 2 * runs[1].final["loss_integral"], rtol=1e-9
    )


@pytest.mark.slow
def test_a_loss_scale_is_a_change_of_step_size_and_time():
    problem, keys = small_problem(), sgf.seeds(0, 3)
    doubled = sgf.SparseRegression(problem.X, problem.y, problem.beta_star, loss_scale=0.5)
    runs = sgf.simulate(sgf.StochasticGradientFlow(GAMMA), network(), doubled, keys=keys, steps=800)
    same = sgf.simulate(
        sgf.StochasticGradientFlow(2 * GAMMA), network(), problem, keys=keys, steps=800
    )
    np.testing.assert_allclose(runs.final["beta"], same.final["beta"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(runs.final["loss_integral"], same.final["loss_integral"], rtol=1e-9)
    np.testing.assert_allclose(sgf.land(runs).beta, sgf.land(same).beta, atol=1e-9)
    curve = sgf.solution_curve(doubled, np.log(0.1), step_size=GAMMA, integrals=[0.0, 1.0, 2.0])
    np.testing.assert_allclose(
        curve(2.0),
        sgf.select(problem, np.log(0.1) - 2 * (2 * GAMMA) * problem.h * 2.0).beta,
        atol=1e-9,
    )


@pytest.mark.slow
def test_isotropic_noise_breaks_the_span_at_depth_three_too():
    problem, net = small_problem(), sgf.DiagonalNetwork.init(alpha=0.3, d=25, depth=3)

    def outside(noise):
        runs = sgf.simulate(
            sgf.StochasticGradientFlow(GAMMA, noise), net, problem, keys=sgf.seeds(0, 4), steps=300
        )
        z = np.exp(-np.asarray(runs.final["log_alpha_plus"])) - 1 / np.asarray(runs.networks.plus)
        return outside_row_space(problem.X, z)

    assert outside(sgf.MeanLossNoise()).max() < 1e-9
    assert outside(sgf.MeanLossNoise() + sgf.IsotropicNoise(0.5)).min() > 1e-3
