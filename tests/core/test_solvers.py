"""The package's solvers have their known orders and stability, for the package's flows
and for Diffrax's own terms. Two-point increments have their moments and their uses.
"""

import diffrax as dfx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import network, rms, slope, small_problem

import sgfbias as sgf
from sgfbias.core.counter import fair_signs, normals, threefry

PROBLEM = small_problem()
LAST = sgf.Record(times=2)


def end(flow, steps, **options):
    return sgf.simulate(
        flow, network(0.3), PROBLEM, keys=sgf.seeds(0, 64), steps=steps, record=LAST, **options
    ).final


@pytest.mark.slow
def test_without_noise_they_are_of_second_order():
    """The error against the adaptive flow falls as dt squared, and as dt for Euler."""
    exact = sgf.simulate(sgf.GradientFlow(), network(0.3), PROBLEM, t1=2.0, record=LAST).final[
        "beta"
    ]
    widths = np.array([0.1, 0.05, 0.025])
    for solver, expected in (
        (sgf.PredictorCorrector(), 2),
        (sgf.RungeKuttaChebyshev(), 2),
        (sgf.RungeKuttaChebyshev(6), 2),
        (dfx.Euler(), 1),
    ):
        errors = []
        for dt in widths:
            flow = sgf.StochasticGradientFlow(0.05, sgf.NoNoise(), dt=dt)
            runs = sgf.simulate(
                flow,
                network(0.3),
                PROBLEM,
                keys=sgf.seeds(0, 1),
                steps=round(2 / dt),
                solver=solver,
                record=LAST,
            )
            errors.append(rms(runs.final["beta"][0] - exact))
        assert slope(widths, errors) == pytest.approx(expected, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", ["mirror", pytest.param("weights", marks=pytest.mark.slow)])
def test_on_one_path_they_tend_to_the_ito_flow_and_are_nearer_than_euler(coordinates):
    fine = 0.05 / 16

    def error(solver, dt):
        flow = sgf.StochasticGradientFlow(0.05, dt=dt, brownian_dt=fine)
        return rms(
            end(flow, round(3.2 / dt), solver=solver, coordinates=coordinates)["beta"] - reference
        )

    # Euler's scheme in mirror coordinates solves the Itô equation.
    reference = end(sgf.StochasticGradientFlow(0.05, dt=fine), round(3.2 / fine))["beta"]
    widths = np.array([0.2, 0.1, 0.05])
    errors = {
        type(s).__name__: [error(s, dt) for dt in widths]
        for s in (sgf.PredictorCorrector(), sgf.RungeKuttaChebyshev(), dfx.Euler())
    }
    for name in ("PredictorCorrector", "RungeKuttaChebyshev"):
        assert slope(widths, errors[name]) > 0.4
        assert (np.array(errors[name]) < np.array(errors["Euler"])).all()


@pytest.mark.slow
@pytest.mark.parametrize("solver", [sgf.PredictorCorrector(), sgf.RungeKuttaChebyshev()])
def test_they_are_solvers_for_any_terms(solver):
    """The solvers solve geometric Brownian motion, with drift and diffusion as
    Diffrax's MultiTerm. The mean grows by the factor of the scheme.
    """

    def solve(key, drift, noise):
        path = dfx.UnsafeBrownianPath((), key)
        terms = dfx.MultiTerm(
            dfx.ODETerm(lambda t, y, args: drift * y),
            dfx.ControlTerm(lambda t, y, args: noise * y, path),
        )
        return dfx.diffeqsolve(terms, solver, 0.0, 1.0, 0.1, 1.0, adjoint=dfx.DirectAdjoint()).ys[
            -1
        ]

    keys = jax.random.split(jax.random.key(0), 4000)
    ends = jax.vmap(lambda key: solve(key, 1.0, 0.3))(keys)
    # The noise has mean 0 in every stage, so the mean grows as without noise.
    step = float(solve(keys[0], 1.0, 0.0))
    assert step == pytest.approx(np.e, abs=0.01)
    assert abs(float(ends.mean()) - step) < 4.5 * float(ends.std()) / np.sqrt(4000)
    # For the Stratonovich equation the mean would be larger by the factor e^(0.3^2 /
    # 2), which this sample can distinguish.
    assert step * np.expm1(0.3**2 / 2) > 9 * float(ends.std()) / np.sqrt(4000)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(None, marks=pytest.mark.slow),
        sgf.Record(integrals={"size": lambda n: jnp.sum(n.beta**2)}),
    ],
)
def test_they_solve_equations_without_noise(record):
    """The predictor-corrector is Heun's method, and both are of second order."""
    problem = sgf.SparseRegression.sample(jax.random.key(0), n=8, d=12, sparsity=2)
    network = sgf.DiagonalNetwork.init(alpha=0.3, d=12)

    def end(solver, dt, time):
        flow, steps = sgf.GradientFlow(dt=dt), round(time / dt)
        options = {} if record is None else {"record": record}
        return sgf.simulate(flow, network, problem, steps=steps, solver=solver, **options).final

    ours, heun = end(sgf.PredictorCorrector(), 0.05, 2), end(dfx.Heun(), 0.05, 2)
    np.testing.assert_allclose(ours["beta"], heun["beta"], rtol=1e-12, atol=1e-14)
    if record is None:
        fine = end(dfx.Heun(), 0.002, 2)["beta"]
        for solver in (sgf.PredictorCorrector(), sgf.RungeKuttaChebyshev()):
            errors = [
                np.linalg.norm(end(solver, dt, 2)["beta"] - fine) for dt in (0.1, 0.05, 0.025)
            ]
            assert slope([0.1, 0.05, 0.025], errors) == pytest.approx(2, abs=0.3)
    else:
        np.testing.assert_allclose(ours["size"], heun["size"], rtol=1e-12)
        assert float(ours["size"]) > 0


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
def test_the_chebyshev_solver_is_stable_as_far_as_its_stages_promise(stages):
    """For y' = -y one step of width h multiplies y by a polynomial in h of degree s.

    The polynomial agrees with the exponential to second order. Its absolute value is
    below 1 up to h = .65 (s^2 - 1). It is above 1 at s^2, as for every polynomial of
    this degree and order. For Euler and the predictor-corrector it is above 1 beyond 2.
    """

    def factor(solver, h):
        terms = dfx.MultiTerm(
            dfx.ODETerm(lambda t, y, args: -y),
            dfx.ControlTerm(
                lambda t, y, args: 0.0 * y, dfx.UnsafeBrownianPath((), jax.random.key(0))
            ),
        )
        return solver.step(
            terms, jnp.asarray(0.0), jnp.asarray(h), jnp.asarray(1.0), None, None, False
        )[0]

    solver = sgf.RungeKuttaChebyshev(stages)
    widths = np.linspace(0.01, 0.65 * (stages**2 - 1), 60)
    assert max(abs(float(factor(solver, h))) for h in widths) < 1
    assert abs(float(factor(solver, float(stages**2)))) > 1
    assert abs(float(factor(sgf.PredictorCorrector(), 2.05))) > 1
    small = np.array([0.02, 0.04])
    assert slope(
        small, [abs(float(factor(solver, h)) - np.exp(-h)) for h in small]
    ) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("stages", [1, 0, True])
def test_a_number_of_stages_that_is_none_is_refused(stages):
    with pytest.raises(ValueError, match="whole number >= 2"):
        sgf.RungeKuttaChebyshev(stages)


def test_fair_signs_are_signs_and_fair():
    signs = np.asarray(
        jax.vmap(lambda k: fair_signs(k, jnp.int32(3), (5, 9), jnp.float64))(
            jax.random.split(jax.random.key(1), 4000)
        )
    )
    assert set(np.unique(signs)) == {-1.0, 1.0}
    flat = signs.reshape(4000, -1)
    assert np.abs(flat.mean(axis=0)).max() < 4.5 / np.sqrt(4000)
    covariance = flat.T @ flat / 4000 - np.eye(45)
    assert np.abs(covariance).max() < 5 / np.sqrt(4000)


@pytest.mark.slow
def test_two_point_increments_keep_the_statistics_and_refuse_a_path():
    """The mean and variance over seeds of the loss integral agree with those of
    Gaussian increments of the same width. Results do not depend on chunks or on other
    seeds.
    """
    keys, found = sgf.seeds(0, 2048), {}
    for increments in ("gaussian", "two-point"):
        flow = sgf.StochasticGradientFlow(0.05, dt=0.025, increments=increments)
        found[increments] = np.asarray(
            sgf.simulate(flow, network(0.3), PROBLEM, keys=keys, steps=200, record=LAST).final[
                "loss_integral"
            ]
        )
    a, b = found.values()
    assert abs(a.mean() - b.mean()) < 4.5 * np.hypot(a.std(), b.std()) / np.sqrt(2048)
    assert np.log(a.var() / b.var()) == pytest.approx(0, abs=0.25)
    flow = sgf.StochasticGradientFlow(0.05, dt=0.025, increments="two-point")
    alone = sgf.simulate(
        flow, network(0.3), PROBLEM, keys=sgf.seeds(7, 9), steps=200, record=LAST, chunk=33
    ).final["loss_integral"]
    np.testing.assert_array_equal(alone, b[7:9])
    with pytest.raises(ValueError, match="two-point increments do not converge pathwise"):
        sgf.StochasticGradientFlow(0.05, increments="two-point", brownian_dt=0.01)
    with pytest.raises(ValueError, match="must be 'gaussian' or 'two-point'"):
        sgf.StochasticGradientFlow(0.05, increments="three-point")


def test_the_cipher_is_that_of_jax():
    key = jax.random.key(11)
    data = jax.random.key_data(key)
    counters = jnp.arange(12, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    first, second = threefry((data[0], data[1]), counters[:6], counters[6:])
    expected = jax.extend.random.threefry_2x32(data, counters)
    assert np.array_equal(np.concatenate([first, second]), expected)
    assert not np.array_equal(threefry((data[1], data[0]), counters[:6], counters[6:])[0], first)


def test_normals_by_counter_are_normal_and_independent():
    keys = sgf.seeds(0, 500)
    # The axes are seed, step and place.
    draws = np.asarray(
        jax.vmap(lambda key: jax.vmap(lambda k: normals(key, k, (7,)))(jnp.arange(40)))(keys),
        np.float64,
    )
    count = draws.size
    # The estimates of the first four moments of a standard normal number have the
    # variances 1/count, 2/count, 15/count and 96/count.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(draws**power) - expected) < 4.5 * np.sqrt(variance / count), power
    assert scipy.stats.kstest(draws.ravel(), "norm").pvalue > 1e-4
    # Neighbours in seed, in step and in place are uncorrelated.
    for axis in range(3):
        a, b = (
            np.take(draws, range(draws.shape[axis] - 1), axis),
            np.take(draws, range(1, draws.shape[axis]), axis),
        )
        assert abs(np.mean(a * b)) < 4.5 / np.sqrt(a.size)


def test_keys_of_another_cipher_are_drawn_by_jax():
    other = jax.random.key(3, impl="unsafe_rbg")
    expected = jax.random.normal(jax.random.fold_in(other, 5), (4,), jnp.float32)
    assert np.array_equal(normals(other, jnp.int32(5), (4,)), expected)
