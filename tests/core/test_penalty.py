"""A penalty that is added to the loss: ridge regression in closed form, linear
equations, loops written out, and what is refused.
"""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import sgfbias as sgf

N, D = 12, 3


class Linear(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return jnp.dot(self.w, x)


class Ridge(eqx.Module):
    """`strength/2 |w|^2`."""

    strength: jax.Array

    def __call__(self, network, step):
        return 0.5 * self.strength * jnp.sum(jnp.square(network.w))


class Ramp(eqx.Module):
    """`step c . w`, whose gradient is `step c`."""

    c: jax.Array

    def __call__(self, network, step):
        return jnp.asarray(step).astype(self.c.dtype) * jnp.dot(self.c, network.w)


def problem_with(penalty, dtype="float64"):
    rng = np.random.default_rng(0)
    X, y = jnp.asarray(rng.normal(size=(N, D)), dtype), jnp.asarray(rng.normal(size=N), dtype)
    return sgf.Problem(X, y, penalty=penalty)


def hessian_and_slope(problem):
    """H and b of the gradient `H w - b` of the loss."""
    X, y = np.asarray(problem.inputs), np.asarray(problem.targets)
    return X.T @ X / (2 * N), X.T @ y / (2 * N)


LAM = 0.3
START = Linear(jnp.asarray([0.3, -0.2, 0.1]))
RIDGE = problem_with(Ridge(jnp.asarray(LAM)))
H, B = hessian_and_slope(RIDGE)
BEST = np.linalg.solve(H + LAM * np.eye(D), B)
EVERY = {"batch_size": N, "sampling": "without_replacement"}


@pytest.mark.slow
def test_gradient_flow_solves_the_equation_of_ridge_regression():
    times = np.asarray([0.0, 1.0, 3.0, 10.0, 60.0])
    record = sgf.Record({"w": lambda network: network.w}, times)
    runs = sgf.simulate(sgf.GradientFlow(), START, RIDGE, t1=60.0, record=record)
    for t, w, loss, penalty in zip(times, runs["w"], runs["loss"], runs["penalty"], strict=True):
        wanted = BEST + scipy.linalg.expm(-(H + LAM * np.eye(D)) * t) @ (np.asarray(START.w) - BEST)
        np.testing.assert_allclose(w, wanted, atol=1e-7)
        residuals = np.asarray(RIDGE.inputs) @ wanted - np.asarray(RIDGE.targets)
        # The loss is clean, and the penalty is a series of its own.
        np.testing.assert_allclose(loss, np.mean(residuals**2) / 4, rtol=1e-6)
        np.testing.assert_allclose(penalty, 0.5 * LAM * np.sum(wanted**2), rtol=1e-6)
    np.testing.assert_allclose(runs.networks.w, BEST, atol=1e-7)
    np.testing.assert_allclose(runs.final["penalty"], 0.5 * LAM * np.sum(BEST**2), rtol=1e-6)
    # Without the penalty the flow ends elsewhere.
    plain = sgf.simulate(sgf.GradientFlow(), START, problem_with(None), t1=60.0)
    assert np.abs(np.asarray(plain.networks.w) - BEST).max() > 0.01
    assert "penalty" not in plain.series
    assert "penalty" not in plain.final


@pytest.mark.slow
def test_the_momentum_flow_solves_its_linear_equation():
    lam, t1 = 0.7, 5.0
    runs = sgf.simulate(sgf.MomentumFlow(lam), START, RIDGE, t1=t1, solver=dfx.Tsit5())
    A = H + LAM * np.eye(D)
    M = np.block([[np.zeros((D, D)), np.eye(D)], [-A / lam, -np.eye(D) / lam]])
    start = np.concatenate([np.asarray(START.w) - BEST, np.zeros(D)])
    wanted = BEST + (scipy.linalg.expm(M * t1) @ start)[:D]
    np.testing.assert_allclose(runs.networks.w, wanted, atol=1e-6)


C = np.asarray([0.01, -0.02, 0.03])


def plain_steps(count, gamma, *, momentum=0.0, nesterov=False, per=1):
    """Iterations of `H w - b + k c + lam w` at iteration k written out."""
    w, t = np.asarray(START.w), np.zeros(D)
    for step in range(count):
        g = H @ w - B + (step // per) * C + LAM * w
        t = g + momentum * t
        w = w - gamma * (g + momentum * t if nesterov else t)
    return w


class Both(eqx.Module):
    parts: tuple

    def __call__(self, network, step):
        return self.parts[0](network, step) + self.parts[1](network, step)


BOTH = problem_with(Both((Ridge(jnp.asarray(LAM)), Ramp(jnp.asarray(C)))))
LOOPS = {
    "GD": (sgf.GradientDescent(0.1), {}),
    "heavy ball": (sgf.GradientDescent(0.1, momentum=0.5), {"momentum": 0.5}),
    "Nesterov": (
        sgf.GradientDescent(0.1, momentum=0.5, nesterov=True),
        {"momentum": 0.5, "nesterov": True},
    ),
    "SGD of all": (sgf.StochasticGradientDescent(0.1, **EVERY), {}),
    "Optax": (sgf.OptaxDescent(optax.sgd(0.1), 0.1), {}),
    "flow": (sgf.GradientFlow(dt=0.1), {}),
    "noiseless flow": (sgf.StochasticGradientFlow(0.1, sgf.NoNoise()), {}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_algorithms_and_fixed_steps_follow_the_loop(name):
    algorithm, options = LOOPS[name]
    keys = sgf.seeds(0, 2) if algorithm.is_stochastic else None
    runs = sgf.simulate(algorithm, START, BOTH, keys=keys, steps=20)
    wanted = plain_steps(20, 0.1, **options)
    w = jnp.broadcast_to(runs.networks.w, (2, D))[0]
    np.testing.assert_allclose(w, wanted, rtol=1e-11)
    last = jnp.ravel(runs.final["penalty"])[0]
    total = 20 * C @ wanted + 0.5 * LAM * np.sum(wanted**2)
    np.testing.assert_allclose(last, total, rtol=1e-11)


def test_svag_counts_the_iterations_of_sgd():
    svag = sgf.SVAG(0.1, 2, N, sampling="without_replacement")
    runs = sgf.simulate(svag, START, BOTH, keys=sgf.seeds(0, 1), steps=20)
    np.testing.assert_allclose(runs.networks.w[0], plain_steps(20, 0.05, per=2), rtol=1e-11)


def test_an_adaptive_flow_gives_the_flow_time():
    c = C
    problem = problem_with(Ramp(jnp.asarray(c)))
    runs = sgf.simulate(sgf.GradientFlow(), START, problem, t1=4.0, solver=dfx.Tsit5())
    # w' = b - H w - t c, with the stationary ramp w = p + q t as a particular solution.
    q = -np.linalg.solve(H, c)
    p = np.linalg.solve(H, B - q)
    wanted = p + 4 * q + scipy.linalg.expm(-4 * H) @ (np.asarray(START.w) - p)
    np.testing.assert_allclose(runs.networks.w, wanted, atol=1e-7)
    np.testing.assert_allclose(runs.final["penalty"], 4 * c @ wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "transformation",
    [optax.adam(0.05), pytest.param(optax.lbfgs(), marks=pytest.mark.slow)],
    ids=["Adam", "line search"],
)
def test_transformations_see_the_whole_objective(transformation):
    def objective(network):
        return RIDGE.risk(network) + RIDGE.penalty(network, 0)

    network, update = START, optax.with_extra_args_support(transformation).update
    with jax.numpy_dtype_promotion("standard"):
        memory = transformation.init(START)
        for _ in range(8):
            value, gradient = jax.value_and_grad(objective)(network)
            step, memory = update(
                gradient, memory, network, value=value, grad=gradient, value_fn=objective
            )
            network = optax.apply_updates(network, step)
    runs = sgf.simulate(sgf.OptaxDescent(transformation, 1.0), START, RIDGE, steps=8)
    np.testing.assert_allclose(runs.networks.w, network.w, rtol=1e-9)


def test_the_drift_of_second_order_has_the_penalty():
    flow = sgf.StochasticGradientFlow(0.1, sgf.NoNoise(), order=2)
    runs = sgf.simulate(flow, START, RIDGE, keys=sgf.seeds(0, 1), steps=7)
    w, A = np.asarray(START.w), H + LAM * np.eye(D)
    for _ in range(7):
        g = H @ w - B + LAM * w
        w = w - 0.1 * (g + 0.05 * A @ g)
    np.testing.assert_allclose(runs.networks.w[0], w, rtol=1e-11)


def test_the_penalty_has_no_noise():
    # The penalty takes the data's gradient away at the start, so that only the noise of
    # the data moves the weights in the first step.
    class Against(eqx.Module):
        g: jax.Array

        def __call__(self, network, step):
            return -jnp.dot(self.g, network.w)

    pull = jax.grad(problem_with(None).risk)(START).w
    flow = sgf.StochasticGradientFlow(0.1, sgf.MinibatchNoise(1))
    keys = sgf.seeds(0, 3)
    held = sgf.simulate(flow, START, problem_with(Against(pull)), keys=keys, steps=1)
    free = sgf.simulate(flow, START, problem_with(None), keys=keys, steps=1)
    np.testing.assert_allclose(
        held.networks.w, free.networks.w + 0.1 * np.asarray(pull), rtol=1e-12
    )
    assert np.std(np.asarray(held.networks.w), axis=0).min() > 1e-4


@pytest.mark.slow
def test_derivatives_pass_through_the_penalty():
    I = np.eye(D)

    def end(strength):
        problem = problem_with(Ridge(strength))
        return sgf.simulate(sgf.GradientFlow(dt=0.2), START, problem, steps=400).networks.w

    # At rest (H + s) w = b, so dw/ds = -(H + s)^-1 w.
    wanted = -np.linalg.solve(H + LAM * I, BEST)
    np.testing.assert_allclose(jax.jacrev(end)(jnp.asarray(LAM)), wanted, rtol=1e-6)

    # A penalty that closes over what is differentiated.
    def closed(strength):
        problem = problem_with(lambda network, step: 0.5 * strength * jnp.sum(network.w**2))
        return sgf.simulate(sgf.GradientFlow(dt=0.2), START, problem, steps=400).networks.w

    np.testing.assert_allclose(jax.jacfwd(closed)(jnp.asarray(LAM)), wanted, rtol=1e-6)


def test_no_seed_converges_without_stop():
    # A strong penalty on a model that fits the data exactly, from a perfect fit.
    X, y = RIDGE.inputs, RIDGE.inputs @ START.w
    still = sgf.Problem(X, y, penalty=lambda network, step: jnp.zeros(()))
    runs = sgf.simulate(sgf.GradientDescent(0.1), START, still, steps=5)
    assert float(runs.final["loss"]) == 0
    assert runs.statuses() == {"moving": 1}
    assert "with a penalty the run does not aim at the least loss" in runs.reason()
    assert sgf.simulate(sgf.GradientDescent(0.1), START, sgf.Problem(X, y), steps=5).statuses() == {
        "converged": 1
    }
    record = sgf.Record(times=0.1 * np.arange(31))
    ramp = sgf.Problem(X, y + 0.01, penalty=Ramp(jnp.full(D, 1e-6)))
    stopped = sgf.simulate(
        sgf.GradientDescent(0.1), START, ramp, steps=30, stop=2.4e-5, record=record
    )
    assert stopped.statuses() == {"converged": 1}
    at = int(np.searchsorted(np.asarray(stopped.times), float(stopped.stop_time)))
    assert 0 < at < 30
    # A frozen seed keeps the penalty of the step at which it was frozen.
    wanted = at * 1e-6 * jnp.sum(stopped.networks.w)
    np.testing.assert_allclose(stopped["penalty"][at:], wanted, rtol=1e-12)
    np.testing.assert_allclose(stopped.final["penalty"], wanted, rtol=1e-12)


def test_a_strong_penalty_is_not_a_stall():
    strong = problem_with(Ridge(jnp.asarray(5.0)))
    runs = sgf.simulate(
        sgf.StochasticGradientDescent(0.05, 4),
        Linear(BEST * 0),
        strong,
        keys=sgf.seeds(0, 3),
        steps=300,
    )
    assert "converged" not in runs.statuses()
    far = Linear(jnp.asarray([3.0, -2.0, 1.0]))
    runs = sgf.simulate(sgf.GradientDescent(0.05), far, strong, steps=300)
    assert runs.statuses() == {"moving": 1}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_seed_does_not_depend_on_company_or_chunks(dtype):
    problem = problem_with(Ramp(jnp.asarray([0.01, -0.02, 0.03], dtype)), dtype)
    sgd = sgf.StochasticGradientDescent(0.1, 4)
    many = sgf.simulate(sgd, START, problem, keys=sgf.seeds(0, 70), steps=40)
    few = sgf.simulate(sgd, START, problem, keys=sgf.seeds(66, 69), steps=40, chunk=7)
    assert many.networks.w.dtype == many.final["penalty"].dtype == dtype
    np.testing.assert_array_equal(many.networks.w[66:69], few.networks.w)
    np.testing.assert_array_equal(many["penalty"][66:69, -1], few["penalty"][:, -1])


@pytest.mark.slow
def test_starts_of_their_own_and_datasets():
    starts = sgf.Stacked([START, Linear(START.w + 1)])
    for flow, options in (
        (sgf.GradientFlow(), {"t1": 60.0, "solver": dfx.Tsit5()}),
        (sgf.GradientFlow(dt=0.2), {"steps": 300}),
    ):
        runs = sgf.simulate(flow, starts, RIDGE, **options)
        np.testing.assert_allclose(runs.networks.w, np.stack([BEST, BEST]), atol=1e-6)
        assert runs["penalty"].shape == runs["loss"].shape
        dataset = runs.to_xarray()
        assert dataset["penalty"].attrs["units"] == "loss"
        assert dataset["final_penalty"].dims == ("seed",)


def test_what_does_not_fit_is_refused():
    def refused(words, penalty, network=START, **options):
        with pytest.raises(ValueError, match=words):
            sgf.simulate(
                sgf.GradientDescent(0.1), network, problem_with(penalty), steps=2, **options
            )

    refused(r"returns a value of shape \(3,\)", lambda network, step: network.w)
    refused("in floating point, but returns NoneType", lambda network, step: None)
    refused("of shape .* and int", lambda network, step: jnp.asarray(1))
    refused("on a Linear it raises KeyError", lambda network, step: {}["missing"])
    refused("`penalty` must be a function .* but is 0.3", 0.3)
    refused("`penalty` must be a function", Ridge)
    network = sgf.DiagonalNetwork.init(alpha=0.5, d=D)
    for coordinates in (None, "weights"):
        refused(
            "`penalty` is for models that move in their own weights",
            lambda network, step: jnp.sum(network.beta**2),
            network,
            coordinates=coordinates,
        )
    mine = {"penalty": lambda network: jnp.sum(network.w)}
    refused("'penalty' needs another name", Ridge(jnp.asarray(1.0)), record=mine)
    # Without a penalty the name is free, as it was.
    runs = sgf.simulate(sgf.GradientDescent(0.1), START, problem_with(None), steps=2, record=mine)
    assert runs["penalty"].shape == runs["loss"].shape


class Expectation(sgf.Problem):
    """The risk over normal inputs of covariance S, as a mean over the rows of a root of
    `n S`.
    """

    sampled = False


def test_an_expectation_takes_full_batches_only():
    S = np.asarray([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.7]])
    roots = jnp.asarray(np.sqrt(D) * scipy.linalg.sqrtm(S).real)
    target = jnp.asarray([1.0, -1.0, 0.5])
    risk = Expectation(roots, roots @ target)
    # E (x . (w - v))^2 / 4 = (w - v)^T S (w - v) / 4.
    gap = np.asarray(START.w - target)
    np.testing.assert_allclose(risk.risk(START), gap @ S @ gap / 4, rtol=1e-12)
    runs = sgf.simulate(sgf.GradientDescent(0.2), START, risk, steps=9)
    wanted = np.asarray(target) + np.linalg.matrix_power(np.eye(D) - 0.1 * S, 9) @ gap
    np.testing.assert_allclose(runs.networks.w, wanted, rtol=1e-12)
    # Noise on the weights is not noise of the examples.
    noisy = sgf.OptaxDescent(optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)), 0.1)
    assert not noisy.draws_examples
    words = "this risk is an expectation: its examples are not data; use GradientFlow or"
    for dynamics in (
        sgf.StochasticGradientDescent(0.1),
        sgf.SVAG(0.1, 2),
        sgf.GradientDescent(0.1, label_noise=0.1),
        sgf.OptaxDescent(optax.sgd(0.1), 0.1, 2),
        sgf.StochasticGradientFlow(0.1),
        sgf.StochasticGradientFlow(0.1, sgf.MinibatchNoise(2)),
    ):
        with pytest.raises(ValueError, match=words):
            sgf.simulate(dynamics, START, risk, keys=sgf.seeds(0, 2), steps=2)
    changing = Expectation(roots, roots @ target, perturb=lambda network, x, t, key: x)
    with pytest.raises(ValueError, match="Expectation was given `perturb`"):
        sgf.simulate(sgf.GradientDescent(0.1), START, changing, keys=sgf.seeds(0, 2), steps=2)


def test_a_problem_may_refuse_a_network():
    class Picky(sgf.Problem):
        def check_network(self, network):
            raise ValueError(f"not this {type(network).__name__}")

    problem = Picky(RIDGE.inputs, RIDGE.targets)
    with pytest.raises(ValueError, match="not this Linear"):
        sgf.simulate(sgf.GradientDescent(0.1), START, problem, steps=2)
