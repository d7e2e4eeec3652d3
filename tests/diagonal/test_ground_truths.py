"""The ground truths G1 to G12: statements of the theory, each tested where it can fail.
G7 is a claim of the study weak-error, see test_weak_error.
"""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import network, outside_row_space, rms, slope, small_problem

import sgfbias as sgf
from sgfbias.core.brownian import SAMPLING_STREAM
from sgfbias.core.sampling import WithReplacement
from sgfbias.diagonal.coordinates import DiagonalWeights
from sgfbias.diagonal.potential import (
    bregman,
    dual_potential,
    potential,
    potential_gradient,
    potential_hessian,
)

GAMMA = 0.02
NOISES = {
    "mean-loss": sgf.MeanLossNoise(),
    "per-sample": sgf.PerSampleNoise(),
    "minibatch": sgf.MinibatchNoise(2, replace=False),
    "label": sgf.LabelNoise(0.3),
}


def ladder(
    problem,
    net,
    widths,
    *,
    seeds=64,
    t1=20.0,
    coordinates="weights",
    noise=None,
    finest=None,
    gamma=GAMMA,
):
    """Runs at several dt on the same Brownian paths."""
    finest = min(widths) if finest is None else finest
    return [
        sgf.simulate(
            sgf.StochasticGradientFlow(gamma, noise, dt=w * gamma, brownian_dt=finest * gamma),
            net,
            problem,
            keys=sgf.seeds(0, seeds),
            steps=round(t1 / (w * gamma)),
            coordinates=coordinates,
        )
        for w in widths
    ]


@pytest.mark.slow
def test_g1_product_law_in_log_weights_to_rounding():
    problem, net = small_problem(), network()
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(GAMMA),
        net,
        problem,
        keys=sgf.seeds(0, 8),
        steps=2000,
        coordinates="log",
    )
    predicted = net.log_alpha - 2 * GAMMA * problem.h * runs.final["loss_integral"][:, None]
    np.testing.assert_allclose(runs.final["log_alpha"], predicted, atol=1e-11)


@pytest.mark.slow
def test_g1_product_law_in_weights_falls_with_dt():
    """Euler's scheme gives `log(w_+ w_-)` as `sum log(1 - z^2)`, where `E z^2` is the
    value of the evolution law. The error is of order 1/2 pathwise and of order 1 in the
    mean.
    """
    problem, net, widths = small_problem(), network(), (1, 1 / 2, 1 / 4, 1 / 8)
    errors = []
    for runs in ladder(problem, net, widths, seeds=512):
        predicted = net.log_alpha - 2 * GAMMA * problem.h * runs.final["loss_integral"][:, None]
        errors.append(np.asarray(runs.final["log_alpha"] - predicted))
    assert 0.4 < slope(widths, [rms(e) for e in errors]) < 1.2
    # The mean over seeds and features must be within 3 standard errors of the line
    # through the origin whose slope is given by the widest step.
    means = np.array([e.mean() for e in errors])
    deviations = np.array([e.mean(axis=1).std(ddof=1) / np.sqrt(512) for e in errors])
    assert abs(means[0]) > 4 * deviations[0], "the bias must be seen to be tested"
    np.testing.assert_array_less(
        np.abs(means - means[0] * np.array(widths)),
        3 * np.hypot(deviations, deviations[0] * np.array(widths)),
    )


def test_g2_row_space_in_log_weights():
    problem, net = small_problem(), network()
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(GAMMA),
        net,
        problem,
        keys=sgf.seeds(0, 8),
        steps=2000,
        coordinates="log",
    )
    slopes = np.arcsinh(
        np.asarray(runs.final["beta"]) / (2 * np.exp(2 * np.asarray(runs.final["log_alpha"])))
    )
    assert outside_row_space(problem.X, slopes).max() < 1e-10


@pytest.mark.slow
def test_g2_row_space_in_weights_falls_with_dt():
    problem, net, widths = small_problem(), network(), (1, 1 / 4, 1 / 16)
    errors = []
    for runs in ladder(problem, net, widths):
        slopes = np.arcsinh(
            np.asarray(runs.final["beta"]) / (2 * np.exp(2 * np.asarray(runs.final["log_alpha"])))
        )
        errors.append(rms(outside_row_space(problem.X, slopes)))
    assert slope(widths, errors) > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.3, 0.1])
def test_g3_one_example_closed_form(alpha):
    x, y = np.array([0.7, -1.2, 0.4]), 0.9
    problem = sgf.SparseRegression(x[None], np.array([y]))
    runs = sgf.simulate(sgf.GradientFlow(), network(alpha, 3), problem, t1=2000.0)
    k = scipy.optimize.brentq(lambda k: x @ (2 * alpha**2 * np.sinh(k * x)) - y, 0, 100, xtol=1e-15)
    np.testing.assert_allclose(runs.final["beta"], 2 * alpha**2 * np.sinh(k * x), atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "coordinates",
    ["weights", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mirror", "log"))],
)
def test_g4_integral_identity_of_the_gradient_flow(coordinates):
    problem, net = small_problem(), network(0.2)
    runs = sgf.simulate(sgf.GradientFlow(), net, problem, t1=5000.0, coordinates=coordinates)
    assert float(runs.final["loss"]) < 1e-16
    zero = jnp.zeros(problem.d)
    predicted = 0.5 * (
        potential(runs.final["beta"], net.log_alpha) - potential(zero, net.log_alpha)
    )
    assert abs(float(runs.final["loss_integral"] - predicted)) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", ["mirror", pytest.param("log", marks=pytest.mark.slow)])
def test_g5_theorem_1_at_the_limit(coordinates):
    problem, net = small_problem(), network()
    flow = sgf.StochasticGradientFlow(GAMMA)
    runs = sgf.simulate(
        flow,
        net,
        problem,
        keys=sgf.seeds(0, 16),
        steps=200_000,
        stop=1e-14,
        coordinates=coordinates,
    )
    assert runs.statuses() == {"converged": 16}
    predicted = net.log_alpha - 2 * GAMMA * problem.h * runs.final["loss_integral"][:, None]
    chosen = jax.vmap(lambda la: sgf.select(problem, la).beta)(predicted)
    assert float(jnp.max(jnp.linalg.norm(chosen - runs.final["beta"], axis=1))) < 1e-6
    start = sgf.select(problem, net.log_alpha).beta
    assert float(jnp.min(jnp.linalg.norm(start - runs.final["beta"], axis=1))) > 1e-4, (
        "control: the initial alpha is not it"
    )


@pytest.mark.slow
def test_g5_theorem_1_in_weights_falls_with_dt():
    problem, net, widths, gamma = small_problem(), network(0.2), (1, 1 / 4, 1 / 16), 0.05
    gaps = []
    for runs in ladder(problem, net, widths, t1=130.0, seeds=32, gamma=gamma):
        assert float(runs.final["loss"].max()) < 1e-10
        predicted = net.log_alpha - 2 * gamma * problem.h * runs.final["loss_integral"][:, None]
        chosen = jax.vmap(lambda la: sgf.select(problem, la).beta)(predicted)
        gaps.append(rms(jnp.linalg.norm(chosen - runs.final["beta"], axis=1)))
    assert slope(widths, gaps) > 0.4


@pytest.mark.slow
def test_g6_discrete_law_with_offset():
    problem, net, gamma, steps = small_problem(), network(), 0.05, 40_000
    keys = sgf.seeds(0, 3)
    runs = sgf.simulate(sgf.StochasticGradientDescent(gamma), net, problem, keys=keys, steps=steps)
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    for seed in range(3):
        stream = jax.random.fold_in(keys[seed], SAMPLING_STREAM)
        index = np.asarray(
            jax.vmap(lambda k: WithReplacement(1).draw((), stream, k, problem.n)[0].index)(
                jnp.arange(steps)
            )
        )[:, 0]
        plus = minus = np.full(problem.d, 0.1)
        log_product, offset = np.full(problem.d, 2 * np.log(0.1)), np.zeros(problem.d)
        for i in index:
            g = gamma * (X[i] @ (plus**2 - minus**2) - y[i]) * X[i]
            plus, minus = plus * (1 - g), minus * (1 + g)
            log_product += np.log(np.abs(1 - g**2))
            offset += np.log(np.abs((1 - g) / (1 + g))) + 2 * g
        np.testing.assert_allclose(
            2 * runs.final["log_alpha"][seed], log_product, atol=1e-12 * steps**0.5
        )
        np.testing.assert_allclose(runs.final["offset"][seed], offset, atol=1e-11)
        with_offset = sgf.select(
            problem, runs.final["log_alpha"][seed], offset=runs.final["offset"][seed]
        )
        without = sgf.select(problem, runs.final["log_alpha"][seed])
        assert float(runs.final["loss"][seed]) < 1e-18
        assert float(jnp.linalg.norm(with_offset.beta - runs.final["beta"][seed])) < 1e-8
        assert float(jnp.linalg.norm(without.beta - runs.final["beta"][seed])) > 1e-5, (
            "control: without the offset it is not"
        )


@pytest.mark.parametrize(("alpha", "tolerance"), [(1e3, 1e-3), (1e2, 1e-3)])
def test_g8_large_alpha_selects_minimum_l2(alpha, tolerance):
    problem = small_problem(noise=0.3)
    beta = sgf.select(problem, np.log(alpha)).beta
    assert float(jnp.linalg.norm(beta - sgf.minimum_l2(problem))) < tolerance


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_g8_small_alpha_selects_minimum_l1(noise):
    """The excess l1 norm is at most c / ln(1/alpha), with c fitted at alpha = 1e-2."""
    problem = small_problem(noise=noise)
    best = float(jnp.sum(jnp.abs(sgf.minimum_l1(problem))))

    def excess(alpha):
        return float(jnp.sum(jnp.abs(sgf.select(problem, np.log(alpha)).beta))) - best

    c = excess(1e-2) * np.log(1e2)
    for alpha in (1e-4, 1e-8, 1e-20, 1e-50, 1e-100):
        assert -1e-9 <= excess(alpha) <= c / np.log(1 / alpha) + 1e-9


@pytest.mark.slow
def test_g9_strong_order_of_euler():
    problem, net, widths = small_problem(), network(), (4, 2, 1, 1 / 2, 1 / 4)
    *runs, reference = ladder(problem, net, (*widths, 1 / 32), coordinates="mirror")
    errors = [rms(r.final["beta"] - reference.final["beta"]) for r in runs]
    assert slope(widths, errors) > 0.4


@pytest.mark.slow
def test_g9_weak_order_of_euler():
    """The mean of a smooth observable has order 1, by differences on coupled paths."""
    problem, net, widths = small_problem(), network(), (8, 4, 2)
    *runs, reference = ladder(
        problem, net, (*widths, 1 / 4), seeds=1024, coordinates="mirror", t1=16.0
    )
    difference = [
        np.asarray(r.final["loss_integral"] - reference.final["loss_integral"]) for r in runs
    ]
    means = [abs(v.mean()) for v in difference]
    deviation = [v.std(ddof=1) / np.sqrt(v.size) for v in difference]
    assert all(m > 5 * s for m, s in zip(means, deviation, strict=True)), (
        "the bias must be seen to be tested"
    )
    assert 0.8 < slope(widths, means) < 1.3


@pytest.mark.slow
def test_g10_landing():
    problem, net, flow = (
        small_problem(1, n=20, d=50),
        network(0.01, 50),
        sgf.StochasticGradientFlow(0.05),
    )
    keys = sgf.seeds(0, 64)
    limit = sgf.land(sgf.simulate(flow, net, problem, keys=keys, steps=20_000)).beta
    early = sgf.simulate(flow, net, problem, keys=keys, steps=1000)
    corrected, landed = sgf.land(early), sgf.land(early, correct=False)

    def distance(beta):
        return np.linalg.norm(np.asarray(beta - limit), axis=1)

    assert np.mean(distance(corrected.beta) <= corrected.error) >= 0.9
    assert np.mean(distance(landed.beta) <= landed.error) >= 0.9
    assert np.median(distance(landed.beta)) < np.median(distance(early.final["beta"])) / 10
    assert np.median(distance(corrected.beta)) < np.median(distance(landed.beta)) / 5


@pytest.mark.slow
def test_g11_isotropic_noise_breaks_stationarity_and_the_others_do_not():
    problem, net = small_problem(), network()

    def outside(noise):
        flow = sgf.StochasticGradientFlow(GAMMA, noise)
        runs = sgf.simulate(flow, net, problem, keys=sgf.seeds(0, 4), steps=1000, coordinates="log")
        slopes = np.arcsinh(
            np.asarray(runs.final["beta"]) / (2 * np.exp(2 * np.asarray(runs.final["log_alpha"])))
        )
        return outside_row_space(problem.X, slopes)

    # test_studies covers all noises in weights coordinates.
    for name, noise in list(NOISES.items())[2:3]:
        assert outside(noise).max() < 1e-10, name
    assert outside(sgf.MeanLossNoise() + sgf.IsotropicNoise(0.5)).min() > 1e-2


def test_g12_covariance_of_one_sgd_step_by_enumeration():
    problem, gamma = small_problem(), 0.03
    net = eqx.tree_at(lambda m: m.log_ratio, network(), jnp.linspace(-1, 1, 25))
    weights = DiagonalWeights(net, problem, None)
    position = weights.encode(net)
    X, r = np.asarray(problem.X), np.asarray(problem.residuals(net))
    w = np.concatenate([position["plus"], position["minus"]])
    signed = np.concatenate([X, -X], axis=1)
    steps = -gamma * r[:, None] * signed * w[None]  # one row per drawn sample
    enumerated = np.cov(steps.T, bias=True)
    middle = np.diag(r**2) / problem.n - np.outer(r, r) / problem.n**2
    formula = gamma**2 * (w[:, None] * signed.T) @ middle @ (signed * w[None])
    np.testing.assert_allclose(enumerated, formula, atol=1e-12)

    # The covariance of the flow over one step of length gamma, computed from its square
    # root column by column.
    noise, derivatives = sgf.MinibatchNoise(1), problem.derivatives(net)
    _, vjp = weights.linearise(position, problem.X)

    def column(e):
        move = vjp(noise.sqrt_covariance(derivatives, jnp.asarray(gamma), e).examples)
        return jnp.concatenate([move["plus"], move["minus"]])

    root = np.asarray(jax.vmap(column)(jnp.eye(problem.n))).T
    np.testing.assert_allclose(gamma * root @ root.T, formula, atol=1e-12)


@pytest.mark.slow
def test_potential_formulas():
    """Values, gradients and the conjugate agree with the printed formulas, and
    Fenchel's equality holds.
    """
    beta, log_alpha = jnp.array([0.5, -2.0, 0.0, 1e-3]), jnp.log(jnp.array([0.1, 1.0, 0.5, 2.0]))
    alpha = np.exp(np.asarray(log_alpha))
    b = np.asarray(beta)
    printed = 0.25 * np.sum(b * np.arcsinh(b / (2 * alpha**2)) - np.sqrt(b**2 + 4 * alpha**4))
    np.testing.assert_allclose(potential(beta, log_alpha), printed, rtol=1e-13)
    np.testing.assert_allclose(
        jax.grad(potential)(beta, log_alpha),
        potential_gradient(beta, log_alpha),
        rtol=1e-10,
        atol=1e-14,
    )
    np.testing.assert_allclose(
        potential_hessian(beta, log_alpha), 1 / (4 * np.sqrt(b**2 + 4 * alpha**4)), rtol=1e-13
    )
    z = potential_gradient(beta, log_alpha)
    np.testing.assert_allclose(
        dual_potential(z, log_alpha),
        0.5 * np.sum(alpha**2 * np.cosh(4 * np.asarray(z))),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        potential(beta, log_alpha) + dual_potential(z, log_alpha),
        float(jnp.vdot(beta, z)),
        rtol=1e-11,
    )
    other = beta + 0.3
    definition = (
        potential(other, log_alpha) - potential(beta, log_alpha) - jnp.vdot(z, other - beta)
    )
    np.testing.assert_allclose(bregman(other, beta, log_alpha), definition, rtol=1e-10)


@pytest.mark.parametrize("name", ["mean-loss", "per-sample", "minibatch"])
def test_stratonovich_correction_is_the_closed_form(name):
    """The extra drift in eta = 2 sqrt(n) c is `-gamma K rb`, `-gamma n diag(K) rb` or
    `-gamma c_b n (K o P) rb`, for diagonal networks in mirror coordinates.
    """
    problem, gamma, noise = small_problem(), 0.07, NOISES[name]
    net = eqx.tree_at(lambda m: m.log_ratio, network(), 0.3 * problem.X[0])
    flow = sgf.StochasticGradientFlow(gamma, noise)
    mirror = net.coordinates("mirror", problem, flow)
    position = mirror.encode(net)
    term = flow.build(mirror, problem, position, jax.random.key(0), jnp.int32(0), dfx.Heun())
    correction = (
        term._ito_to_stratonovich(position, term.control(jnp.int32(0)))["c"]
        * 2
        * np.sqrt(problem.n)
    )
    n, Xb, rb = (
        problem.n,
        np.asarray(problem.X) / np.sqrt(problem.n),
        np.asarray(problem.residuals(net)) / np.sqrt(problem.n),
    )
    K = Xb @ np.diag(net.xi) @ Xb.T
    c_b, P = (n - 2) / (2 * (n - 1)), np.eye(n) - 1 / n
    printed = {
        "mean-loss": K @ rb,
        "per-sample": n * np.diag(K) * rb,
        "minibatch": c_b * n * (K * P) @ rb,
    }[name]
    np.testing.assert_allclose(correction, gamma * printed, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [dfx.Heun(), pytest.param(dfx.EulerHeun(), marks=pytest.mark.slow)],
    ids=["Heun", "EulerHeun"],
)
def test_stratonovich_solver_converges_to_the_ito_flow(solver):
    """With the corrected drift the solver converges to Euler's result on the same path,
    at order 1/2 because the noise does not commute.
    """
    problem, net, gamma, widths = small_problem(), network(), 0.1, (1, 1 / 8)

    def run(width, solver):
        flow = sgf.StochasticGradientFlow(gamma, dt=width * gamma, brownian_dt=gamma / 32)
        return sgf.simulate(
            flow, net, problem, keys=sgf.seeds(0, 32), steps=round(30 / width), solver=solver
        ).final["beta"]

    reference = run(1 / 32, None)
    errors = [rms(run(w, solver) - reference) for w in widths]
    assert slope(widths, errors) > 0.4
