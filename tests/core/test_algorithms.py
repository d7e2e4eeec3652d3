"""The discrete algorithms and the flows of second order.

Each is compared with its textbook recursion or with its evolution law.
"""

import itertools

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
from helpers import network, rms, same, small_problem

import sgfbias as sgf
from sgfbias.core.sampling import RandomReshuffling, WithoutReplacement

GAMMA = 0.03
KEYS = sgf.seeds(0, 3)


class Linear(eqx.Module):
    """A linear model, for which least squares has closed forms."""

    w: jax.Array

    def __call__(self, x):
        return x @ self.w


def least_squares(n=6, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return sgf.Problem(X, X @ rng.normal(size=d) + 0.3 * rng.normal(size=n)), Linear(
        jnp.asarray(rng.normal(size=d))
    )


def run(dynamics, steps=60, keys=KEYS, net=None, problem=None, **options):
    net, problem = (
        network() if net is None else net,
        small_problem() if problem is None else problem,
    )
    # With few cuts, runs of all lengths share one compiled program.
    options = {"record": sgf.Record(times=2), **options}
    return sgf.simulate(
        dynamics,
        net,
        problem,
        keys=keys if dynamics.is_stochastic else None,
        steps=steps,
        **options,
    )


def test_svag_with_l_1_is_sgd_bit_for_bit():
    same(run(sgf.SVAG(GAMMA, 1, 3)).final, run(sgf.StochasticGradientDescent(GAMMA, 3)).final)


@pytest.mark.slow
def test_svag_steps_are_those_of_the_paper_and_keep_mean_and_covariance():
    """All n^2 outcomes of one step are enumerated. They are those of the formula, their
    mean is the step of gradient descent, and their covariance is 1/l of SGD's.
    """
    problem, net, l = *least_squares(n=3), 4
    X, r = (
        np.asarray(problem.X if hasattr(problem, "X") else problem.inputs),
        np.asarray(problem.residuals(net)),
    )
    gradients = r[:, None] / 2 * X
    pairs = itertools.product(range(3), repeat=2)
    root = np.sqrt(2 * l - 1)
    formula = np.array(
        [
            -GAMMA / l * ((1 + root) / 2 * gradients[i] + (1 - root) / 2 * gradients[j])
            for i, j in pairs
        ]
    )
    ends = (
        run(
            sgf.SVAG(GAMMA, l), steps=1, keys=sgf.seeds(0, 256), net=net, problem=problem
        ).networks.w
        - net.w
    )
    seen = np.unique(np.round(np.asarray(ends), 12), axis=0)
    np.testing.assert_allclose(seen, np.unique(np.round(formula, 12), axis=0), atol=2e-12)
    np.testing.assert_allclose(formula.mean(0), -GAMMA / l * gradients.mean(0), atol=1e-15)
    np.testing.assert_allclose(
        np.cov(formula.T, bias=True), GAMMA**2 / l * np.cov(gradients.T, bias=True), atol=1e-15
    )


@pytest.mark.slow
def test_time_of_svag_and_momentum_is_flow_time():
    assert float(run(sgf.SVAG(GAMMA, 4), steps=8).times[-1]) == pytest.approx(2 * GAMMA)
    assert float(
        run(sgf.GradientDescent(GAMMA, momentum=0.75), steps=8).times[-1]
    ) == pytest.approx(32 * GAMMA)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.6}, {"momentum": 0.6, "nesterov": True}],
    ids=["plain", "heavy ball", "nesterov"],
)
def test_optax_sgd_is_sgd(options):
    ours = run(sgf.StochasticGradientDescent(GAMMA, 2, **options))
    theirs = run(sgf.OptaxDescent(optax.sgd(GAMMA, **options), GAMMA, 2))
    np.testing.assert_allclose(theirs.final["beta"], ours.final["beta"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        theirs.final["log_alpha"], ours.final["log_alpha"], rtol=1e-12, atol=1e-13
    )


def test_optax_adam_on_a_model_is_the_loop_one_would_write():
    problem = sgf.Problem(
        np.random.default_rng(0).normal(size=(7, 3)),
        np.arange(7) % 3,
        loss=sgf.SoftmaxCrossEntropyLoss(),
    )
    model, adam = eqx.nn.MLP(3, 3, 5, 1, dtype=jnp.float64, key=jax.random.key(0)), optax.adam(1e-2)
    moving, still = eqx.partition(model, eqx.is_inexact_array)
    memory = adam.init(moving)

    @jax.jit
    def step(moving, memory):
        gradient = jax.grad(lambda p: problem.risk(eqx.combine(p, still)))(moving)
        updates, memory = adam.update(gradient, memory, moving)
        return optax.apply_updates(moving, updates), memory

    with jax.numpy_dtype_promotion("standard"):
        for _ in range(40):
            moving, memory = step(moving, memory)
    runs = sgf.simulate(sgf.OptaxDescent(adam, 1.0), model, problem, steps=40, chunk=16)
    for ours, theirs in zip(
        jax.tree.leaves(eqx.filter(runs.networks, eqx.is_inexact_array)),
        jax.tree.leaves(moving),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_batch_of_all_without_replacement_is_gradient_descent():
    ends = run(sgf.StochasticGradientDescent(GAMMA, 10, sampling="without_replacement")).final[
        "beta"
    ]
    expected = run(sgf.GradientDescent(GAMMA)).final["beta"]
    np.testing.assert_allclose(ends, np.broadcast_to(expected, ends.shape), rtol=1e-11, atol=1e-14)
    spread = (
        run(sgf.StochasticGradientDescent(GAMMA, 9, sampling="without_replacement"))
        .final["beta"]
        .std(0)
    )
    assert float(spread.max()) > 1e-6, "control: nine of ten is not all"


@pytest.mark.parametrize(("n", "batch_size"), [(6, 2), (7, 3), (5, 5), (4, 1)])
def test_reshuffling_visits_every_example_once_an_epoch(n, batch_size):
    stream, epoch = jax.random.key(5), n // batch_size
    sampling = RandomReshuffling(batch_size)
    draw = jax.vmap(lambda k: sampling.draw((), stream, k, n)[0].index)
    batches = np.asarray(draw(jnp.arange(4 * epoch))).reshape(4, epoch * batch_size)
    assert all(len(set(row)) == epoch * batch_size for row in batches.tolist())
    if n == epoch * batch_size:
        assert all(set(row) == set(range(n)) for row in batches.tolist())
    assert n == batch_size or len({tuple(row) for row in batches.tolist()}) > 1, (
        "a new order each epoch"
    )


def test_without_replacement_is_distinct_and_uniform():
    draws = np.asarray(
        jax.vmap(lambda k: WithoutReplacement(2).draw((), jax.random.key(1), k, 5)[0].index)(
            jnp.arange(20_000)
        )
    )
    assert (draws[:, 0] != draws[:, 1]).all()
    counts = np.bincount(5 * draws[:, 0] + draws[:, 1], minlength=25)
    expected = 20_000 / 20
    assert np.abs(counts[counts > 0] - expected).max() < 5 * np.sqrt(expected)
    assert (counts > 0).sum() == 20


def momentum_by_hand(problem, gamma, b, nesterov, steps, alpha=0.2):
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    w = np.full(50, alpha)
    memory = np.zeros(50)
    for _ in range(steps):
        g = X.T @ (X @ (w[:25] ** 2 - w[25:] ** 2) - y) / 10
        gradient = np.concatenate([w[:25] * g, -w[25:] * g])
        memory = gradient + b * memory
        w = w - gamma * (gradient + b * memory if nesterov else memory)
    return w[:25] ** 2 - w[25:] ** 2


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_and_nesterov_are_the_textbook_recursions(nesterov):
    problem = small_problem()
    runs = run(
        sgf.GradientDescent(GAMMA, momentum=0.7, nesterov=nesterov), steps=80, net=network(0.2)
    )
    np.testing.assert_allclose(
        runs.final["beta"],
        momentum_by_hand(problem, GAMMA, 0.7, nesterov, 80),
        rtol=1e-10,
        atol=1e-13,
    )


@pytest.mark.slow
def test_momentum_flow_and_its_law():
    """SciPy solves the momentum flow together with the integral in the evolution law of
    log alpha. The selection program, with the final log alpha and offset, gives the
    same solution.
    """
    problem, net, lam = small_problem(n=4, d=8, sparsity=2), network(0.3, 8), 0.1
    X, y = np.asarray(problem.X), np.asarray(problem.y)

    def rhs(t, state):
        w, v = state[:16], state[16:32]
        g = X.T @ (X @ (w[:8] ** 2 - w[8:] ** 2) - y) / 4
        return np.concatenate(
            [
                v,
                (-np.concatenate([w[:8] * g, -w[8:] * g]) - v) / lam,
                (v / w)[:8] ** 2 + (v / w)[8:] ** 2,
            ]
        )

    begin = np.concatenate([np.full(16, 0.3), np.zeros(24)])
    reference = scipy.integrate.solve_ivp(
        rhs, (0, 300), begin, rtol=1e-10, atol=1e-12, method="LSODA"
    ).y[:, -1]
    runs = sgf.simulate(sgf.MomentumFlow(lam), net, problem, t1=300.0)
    beta = reference[:8] ** 2 - reference[8:16] ** 2
    assert float(runs.final["loss"]) < 1e-14
    np.testing.assert_allclose(runs.final["beta"], beta, atol=1e-6)
    law = np.log(0.3) - lam / 2 * reference[32:]
    np.testing.assert_allclose(runs.final["log_alpha"], law, atol=1e-5)
    assert np.abs(law - np.log(0.3)).max() > 0.01, "momentum does shrink"
    chosen = sgf.select(problem, runs.final["log_alpha"], offset=runs.final["offset"]).beta
    np.testing.assert_allclose(chosen, runs.final["beta"], atol=1e-6)
    assert rms(sgf.select(problem, net.log_alpha).beta - runs.final["beta"]) > 1e-3, (
        "control: the initial alpha"
    )


@pytest.mark.parametrize(("b", "nesterov"), [(0.5, False), (0.5, True), (0.0, False)])
def test_the_flow_that_follows_momentum_shrinks_as_much(b, nesterov):
    """The total shrinkage of log alpha of the algorithm, divided by that of the flow,
    tends to 1 as gamma falls. With the lambda of the limit b -> 1 it is off by a
    factor.
    """
    problem, net, gamma = small_problem(), network(0.3), 0.01
    flow = sgf.MomentumFlow.following(gamma, b, nesterov=nesterov, dt=0.004)
    wrong = gamma / (1 - b) ** 2
    factor = float(flow.lam) / wrong
    assert factor == pytest.approx(
        {(0.5, False): 0.75, (0.5, True): 0.5, (0.0, False): 0.5}[(b, nesterov)]
    )

    def shrinkage(dynamics, solver=None, **options):
        runs = sgf.simulate(
            dynamics, net, problem, record=sgf.Record(times=2), solver=solver, **options
        )
        assert float(runs.final["loss"]) < 1e-12
        return np.log(0.3) - np.asarray(runs.final["log_alpha"])

    discrete = shrinkage(
        sgf.GradientDescent(gamma, momentum=b, nesterov=nesterov), steps=30_000
    ).sum()
    followed = shrinkage(flow, dfx.Heun(), t1=300.0).sum()
    assert abs(discrete / followed - 1) < 0.05
    assert (
        abs(
            discrete
            / shrinkage(sgf.MomentumFlow(wrong, dt=0.004), dfx.Heun(), t1=300.0).sum()
            / factor
            - 1
        )
        < 0.1
    ), "control: the quoted lambda is off by its factor"


def test_schedules_of_optax_in_gradient_descent():
    problem, schedule = small_problem(), optax.cosine_decay_schedule(0.05, 100)
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    plus = minus = np.full(25, 0.1)
    for k in range(90):
        g = float(schedule(k)) * X.T @ (X @ (plus**2 - minus**2) - y) / 10
        plus, minus = plus * (1 - g), minus * (1 + g)
    runs = run(sgf.GradientDescent(schedule), steps=90)
    np.testing.assert_allclose(runs.final["beta"], plus**2 - minus**2, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(
        runs.times[-1], sum(float(schedule(k)) for k in range(90)), rtol=1e-6
    )


STEPPED = optax.piecewise_constant_schedule(0.04, {50: 0.25})


@pytest.mark.slow
def test_a_scheduled_step_size_enters_the_law_as_int_gamma_L():
    problem, net, fine = small_problem(), network(), 2
    at = 50 * 0.04
    flow = sgf.StochasticGradientFlow(STEPPED, per_iteration=fine)
    runs = sgf.simulate(
        flow,
        net,
        problem,
        keys=KEYS,
        steps=500 * fine,
        coordinates="log",
        record=sgf.Record(times=np.array([0.0, at])),
    )
    first, last = runs["loss_integral"][:, 1], runs.final["loss_integral"]
    predicted = net.log_alpha - 2 * problem.h * (0.04 * first + 0.01 * (last - first))[:, None]
    np.testing.assert_allclose(runs.final["log_alpha"], predicted, atol=1e-7)
    assert float(jnp.abs(first / last).max()) < 0.95, "both pieces count"
    mirror = sgf.simulate(flow, net, problem, keys=KEYS, steps=500 * fine)
    np.testing.assert_allclose(mirror.final["beta"], runs.final["beta"], rtol=1e-8, atol=1e-11)
    constant = sgf.simulate(
        sgf.StochasticGradientFlow(0.04, per_iteration=fine),
        net,
        problem,
        keys=KEYS,
        steps=50 * fine,
    )
    early = sgf.simulate(flow, net, problem, keys=KEYS, steps=50 * fine)
    np.testing.assert_allclose(early.final["beta"], constant.final["beta"], rtol=1e-6, atol=1e-9)


def test_a_scheduled_label_noise_enters_the_law_as_int_delta_squared():
    problem, net, gamma = small_problem(), network(), 0.02

    def delta(k):
        return jnp.where(k < 100, 0.3, 0.0)

    runs = sgf.simulate(
        sgf.StochasticGradientFlow(gamma, sgf.LabelNoise(delta)),
        net,
        problem,
        keys=KEYS,
        steps=300,
        coordinates="log",
    )
    total = runs.final["loss_integral"] + 0.3**2 * 100 * gamma
    np.testing.assert_allclose(
        runs.final["log_alpha"], net.log_alpha - 2 * gamma * problem.h * total[:, None], atol=1e-9
    )


def test_noisy_labels_are_seen_at_every_step():
    """With one example and one step, the two outcomes are those of l' + delta and
    l' - delta, and are equally frequent.
    """
    problem, net = sgf.Problem(np.array([[2.0]]), np.array([1.0])), Linear(jnp.array([0.3]))
    ends = np.asarray(
        run(
            sgf.StochasticGradientDescent(0.1, label_noise=0.5),
            steps=1,
            keys=sgf.seeds(0, 400),
            net=net,
            problem=problem,
        ).networks.w
    )
    slope = (0.6 - 1) / 2
    low, high = 0.3 - 0.1 * 2 * (slope + 0.5), 0.3 - 0.1 * 2 * (slope - 0.5)
    is_low = np.abs(ends[:, 0] - low) < 1e-12
    np.testing.assert_allclose(ends[~is_low, 0], high, atol=1e-12)
    assert abs(is_low.mean() - 0.5) < 5 * 0.5 / np.sqrt(400)


@pytest.mark.slow
def test_least_squares_mean_of_the_flow_is_the_gradient_flow():
    """As the drift is linear, the mean over seeds solves the gradient flow whatever the
    noise. The closed form is a matrix exponential.
    """
    problem, net = least_squares()
    X, y = np.asarray(problem.inputs), np.asarray(problem.targets)
    H, best = X.T @ X / 12, np.linalg.lstsq(X, y, rcond=None)[0]
    values, vectors = np.linalg.eigh(H)
    t, dt, gamma = 2.0, 0.01, 0.5
    exact = best + vectors @ (np.exp(-values * t) * (vectors.T @ (np.asarray(net.w) - best)))
    for noise in (sgf.MinibatchNoise(1), sgf.MeanLossNoise()):
        flow = sgf.StochasticGradientFlow(gamma, noise, dt=dt)
        ends = np.asarray(
            run(flow, steps=200, keys=sgf.seeds(0, 2048), net=net, problem=problem).networks.w
        )
        error = ends.std(0, ddof=1) / np.sqrt(2048)
        # The mean of Euler's scheme has the factor (1 - dt H)^k, which differs from the
        # exponential by at most dt t H^2 / 2.
        bias = dt * t * np.linalg.norm(H @ H, 2) / 2 * np.linalg.norm(net.w - best)
        assert error.max() > 3e-3, "there is noise"
        assert (np.abs(ends.mean(0) - exact) < 4.5 * error + bias).all()
        assert np.abs(ends.mean(0) - best).max() > 10 * (error.max() + bias), (
            "control: it is not simply the end"
        )


DISCRETE = {
    "momentum": sgf.StochasticGradientDescent(GAMMA, 2, momentum=0.5),
    "svag": sgf.SVAG(GAMMA, 3, 2),
    "adam": sgf.OptaxDescent(optax.adam(1e-2), 1.0, 2, sampling="random_reshuffling"),
    "scheduled": sgf.StochasticGradientFlow(
        STEPPED, sgf.MinibatchNoise(2) + sgf.LabelNoise(lambda k: 0.1 / (1 + k), mean_loss=False)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRETE)
def test_chunks_and_neighbours_do_not_change_a_bit(name):
    whole = run(DISCRETE[name], steps=200, keys=sgf.seeds(0, 70), chunk=73)
    alone = run(DISCRETE[name], steps=200, keys=sgf.seeds(66, 67))
    same(jax.tree.map(lambda v: v[66:67], whole.final), alone.final)


@pytest.mark.slow
def test_algorithms_in_float32_stay_close_and_keep_their_precision():
    problem, model = least_squares()
    single = sgf.Problem(
        np.asarray(problem.inputs, np.float32), np.asarray(problem.targets, np.float32)
    )
    for dynamics in (sgf.StochasticGradientDescent(GAMMA, momentum=0.5), sgf.SVAG(GAMMA, 2)):
        high = run(dynamics, net=model, problem=problem)
        low = run(dynamics, net=model, problem=single)
        assert low.networks.w.dtype == low["loss"].dtype == jnp.float32
        np.testing.assert_allclose(low.networks.w, high.networks.w, atol=2e-5)


@pytest.mark.slow
def test_every_dynamics_in_weights_runs_under_jit():
    """With a traced step size no check may need the value of a traced number."""

    def outcomes(gamma):
        kinds = (
            sgf.GradientDescent(gamma),
            sgf.StochasticGradientDescent(gamma),
            sgf.MomentumFlow(4 * gamma, dt=gamma),
            sgf.StochasticGradientFlow(gamma),
        )
        return [run(kind, coordinates="weights").final["beta"] for kind in kinds]

    for traced, plain in zip(jax.jit(outcomes)(jnp.asarray(GAMMA)), outcomes(GAMMA), strict=True):
        np.testing.assert_allclose(traced, plain, atol=1e-12)


def test_times_can_be_chosen_under_jit_where_the_step_size_has_a_value():
    problem, model = least_squares()
    dynamics, times = sgf.GradientDescent(GAMMA), GAMMA * np.array([0, 3, 10])

    def weights(w):
        network = eqx.tree_at(lambda net: net.w, model, w)
        record = sgf.Record({"w": lambda net: net.w}, times)
        return sgf.simulate(dynamics, network, problem, steps=10, record=record)["w"]

    np.testing.assert_allclose(jax.jit(weights)(model.w), weights(model.w), rtol=1e-12)


@pytest.mark.slow
def test_line_searches_and_transformations_that_draw():
    """L-BFGS is given the function for its line search, so that with 3 parameters it
    converges in a few steps. The noise that Optax draws differs between seeds.
    """
    problem, model = least_squares()
    best = np.linalg.lstsq(np.asarray(problem.inputs), np.asarray(problem.targets))[0]
    quick = run(sgf.OptaxDescent(optax.lbfgs(), 1.0), steps=12, net=model, problem=problem)
    np.testing.assert_allclose(quick.networks.w, best, atol=1e-7)

    noisy = sgf.OptaxDescent(optax.chain(optax.add_noise(0.3, 0.0, 0), optax.sgd(GAMMA)), GAMMA)
    runs = run(noisy, net=model, problem=problem)
    assert np.ptp(np.asarray(runs.final["loss"])) > 1e-6
    same(runs.final, run(noisy, net=model, problem=problem, chunk=7).final)
    one = run(noisy, steps=1, keys=sgf.seeds(0, 4000), net=model, problem=problem)
    kicks = np.asarray(one.networks.w) - np.asarray(
        run(sgf.GradientDescent(GAMMA), steps=1, net=model, problem=problem).networks.w
    )
    # The variance is 0.3 per coordinate and step. An estimate from 12,000 normal
    # numbers has a relative standard error of sqrt(2/12000).
    np.testing.assert_allclose(np.mean(kicks**2) / GAMMA**2, 0.3, rtol=5 * np.sqrt(2 / 12_000))
