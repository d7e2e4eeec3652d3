"""Integrals and sums along a run, against exponentials, geometric series, sums that
telescope and a loop written out.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, small_problem

import sgfbias as sgf
from sgfbias.core.observe import AbstractJoint

RATES = np.asarray([0.5, 2.0])


class Vector(eqx.Module):
    """The parameters w, each the output on one input, and one that is frozen."""

    w: jax.Array
    fixed: jax.Array

    def __call__(self, x):
        return jnp.dot(self.w, x) + 0 * self.fixed


START = Vector(jnp.asarray([1.0, -3.0]), jnp.asarray(2.0))
MOVES = Vector(True, False)
# The gradient of the mean loss is diag(RATES) w.
PROBLEM = sgf.Problem(jnp.diag(jnp.sqrt(4 * jnp.asarray(RATES))), jnp.zeros(2))
OPTIONS = {"trainable": MOVES}


def area(network):
    return network.w


def risk(network):
    return PROBLEM.risk(network)


def moved(network, change):
    assert change.fixed is None
    return change.w


def length(network, change):
    return jnp.linalg.norm(change.w)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [diffrax.Tsit5(), pytest.param(diffrax.Kvaerno5(), marks=pytest.mark.slow)]
)
def test_the_integral_of_an_exponential(solver):
    """`int_0^t w_i e^{-a_i s} ds = w_i (1 - e^{-a_i t}) / a_i`."""
    record = sgf.Record(times=6, integrals={"area": area, "elapsed": lambda net: 1.0})
    runs = sgf.simulate(
        sgf.GradientFlow(), START, PROBLEM, t1=3.0, record=record, solver=solver, **OPTIONS
    )
    t = np.asarray(runs.times)[:, None]
    wanted = np.asarray(START.w) * (1 - np.exp(-RATES * t)) / RATES
    np.testing.assert_allclose(runs["area"], wanted, atol=1e-7)
    np.testing.assert_allclose(runs.final["area"], wanted[-1], atol=1e-7)
    np.testing.assert_allclose(runs["elapsed"], t[:, 0], atol=1e-9)


@pytest.mark.parametrize("dt", [0.01, pytest.param(None, marks=pytest.mark.slow)])
def test_a_flow_that_stops_keeps_its_integral(dt):
    """At the loss `stop` every later value is the one at that time."""
    record = sgf.Record(times=30, integrals={"elapsed": lambda net: 1.0})
    flow = sgf.GradientFlow(dt=dt)
    runs = sgf.simulate(flow, START, PROBLEM, stop=0.5, record=record, t1=8.0, **OPTIONS)
    assert 0 < runs.stop_time < 8
    np.testing.assert_allclose(runs.final["elapsed"], runs.stop_time, rtol=1e-6)
    late = np.asarray(runs.times) > runs.stop_time
    assert np.ptp(runs["elapsed"][late]) == 0


@pytest.mark.parametrize("method", ["jit", "grad", "jvp", "vmap"])
def test_transformations(method):
    """Gradient descent: `gamma w (1 - q^k) / (1 - q)` with `q = 1 - gamma a`, and the
    path length of one coordinate is `|w| (1 - q^k)`.
    """
    gamma, steps = 0.1, 20

    def run(w):
        record = sgf.Record(times=3, integrals={"area": area}, sums={"length": length})
        start = eqx.tree_at(lambda net: net.w, START, w)
        found = sgf.simulate(
            sgf.GradientDescent(gamma), start, PROBLEM, steps=steps, record=record, **OPTIONS
        )
        return jnp.sum(found.final["area"]) + found.final["length"]

    w, q = jnp.asarray([1.0, 0.0]), 1 - gamma * RATES
    slope = (1 - q**steps) / RATES
    path = 1 - q[0] ** steps
    if method == "jit":
        np.testing.assert_allclose(jax.jit(run)(w), slope[0] + path, rtol=1e-12)
    elif method == "vmap":
        found = jax.vmap(run)(jnp.stack([w, 2 * w]))
        np.testing.assert_allclose(found, (slope[0] + path) * np.asarray([1, 2]), rtol=1e-12)
    else:
        e = jnp.asarray([1.0, 0.0])
        found = jax.jvp(run, (w,), (e,))[1] if method == "jvp" else jax.grad(run)(w)[0]
        np.testing.assert_allclose(found, slope[0] + path, rtol=1e-12)


STEP, COUNT = 0.05, 20
# Every algorithm with the flow time of its iterations.
ALGORITHMS = {
    "GD": (sgf.GradientDescent(STEP), STEP),
    "momentum": (sgf.GradientDescent(STEP, momentum=0.5, nesterov=True), 2 * STEP),
    "SGD": (
        sgf.StochasticGradientDescent(lambda k: STEP / (1 + 0.1 * k), 1),
        STEP / (1 + 0.1 * np.arange(COUNT)),
    ),
    "SVAG": (sgf.SVAG(STEP, 2, 1), STEP / 2),
    "Adam": (sgf.OptaxDescent(optax.adam(1e-2), STEP, 1), STEP),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        n if n in ("SGD", "Adam") else pytest.param(n, marks=pytest.mark.slow(cases=2))
        for n in ALGORITHMS
    ],
)
def test_changes_add_up_and_the_loss_is_integrated_as_ever(name):
    """Changes telescope, sums are those of a record of every iteration, and the
    integral of the loss is the loss integral.
    """
    algorithm, span = ALGORITHMS[name]
    keys = sgf.seeds(0, 3) if algorithm.is_stochastic else None
    spans = np.broadcast_to(span, (COUNT,))
    every = sgf.Record({"w": area}, times=np.concatenate([[0], np.cumsum(spans)]))
    runs, plain = (
        sgf.simulate(
            algorithm, START, PROBLEM, keys=keys, steps=COUNT, record=record, chunk=7, **OPTIONS
        )
        for record in (
            every._replace(
                integrals={"same": risk, "area": area},
                sums={"moved": moved, "length": length, "count": lambda net, change: 1},
            ),
            every,
        )
    )
    # Nothing else changes by a bit.
    for key in plain.series:
        np.testing.assert_array_equal(runs[key], plain[key])
    np.testing.assert_allclose(runs["same"], runs["loss_integral"], rtol=1e-12)
    w = np.asarray(runs["w"])
    assert w.shape[-2] == COUNT + 1
    np.testing.assert_allclose(runs["moved"], w - w[..., :1, :], atol=1e-13)
    np.testing.assert_array_equal(runs["count"], np.broadcast_to(runs.steps, w.shape[:-1]))
    parts = np.linalg.norm(np.diff(w, axis=-2), axis=-1)
    np.testing.assert_allclose(runs["length"][..., 1:], np.cumsum(parts, -1), rtol=1e-12)
    areas = np.cumsum(w[..., :-1, :] * spans[:, None], -2)
    np.testing.assert_allclose(runs["area"][..., 1:, :], areas, rtol=1e-12)
    # A path is longer than the distance of its ends, and here not by rounding only.
    distance = np.linalg.norm(w[..., -1, :] - w[..., 0, :], axis=-1)
    assert np.all(runs.final["length"] > distance * 1.001)


SOLVERS = {
    "Euler": None,
    "Heun": diffrax.Heun(),
    "Euler-Heun": diffrax.EulerHeun(),
    "Milstein": diffrax.ItoMilstein(),
    "predictor-corrector": sgf.PredictorCorrector(),
    "Chebyshev": sgf.RungeKuttaChebyshev(),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n if n == "Milstein" else pytest.param(n, marks=pytest.mark.slow(cases=2)) for n in SOLVERS],
)
def test_every_solver_integrates_as_it_does_the_loss(name):
    record = sgf.Record(times=4, integrals={"same": risk, "elapsed": lambda net: 1.0})
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(STEP),
        START,
        PROBLEM,
        keys=sgf.seeds(0, 2),
        steps=20,
        solver=SOLVERS[name],
        record=record,
        **OPTIONS,
    )
    np.testing.assert_allclose(runs["same"], runs["loss_integral"], rtol=1e-12)
    np.testing.assert_allclose(runs["elapsed"], np.broadcast_to(runs.times, (2, 4)), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_seed_has_its_digits_in_any_company(dtype):
    """Among few and many seeds, and in chunks of any size, also with products in f."""
    problem = sgf.Problem(*(jnp.asarray(a, dtype) for a in (PROBLEM.inputs, PROBLEM.targets)))
    matrix = jax.random.normal(jax.random.key(0), (3, 2), dtype)
    record = sgf.Record(
        times=3,
        integrals={"product": lambda net: matrix @ net.w},
        sums={"curved": lambda net, change: jnp.sum(jnp.square(matrix @ change.w))},
    )
    sgd = sgf.StochasticGradientDescent(STEP, 1)

    def run(count, chunk):
        return sgf.simulate(
            sgd,
            START,
            problem,
            keys=sgf.seeds(0, count),
            steps=25,
            record=record,
            chunk=chunk,
            **OPTIONS,
        )

    many, few = run(40, 1000), run(3, 8)
    for name in ("product", "curved"):
        assert few[name].dtype == dtype
        np.testing.assert_array_equal(many[name][:3], few[name])
    assert np.all(few.final["curved"] > 0)


def test_a_start_of_its_own_for_every_seed():
    starts = sgf.Drawn(lambda key: Vector(jax.random.normal(key, (2,)), jnp.asarray(2.0)))
    record = sgf.Record(times=3, sums={"moved": moved}, integrals={"area": area})
    runs = sgf.simulate(
        sgf.GradientDescent(STEP), starts, PROBLEM, keys=sgf.seeds(0, 3), steps=9, record=record,
        **OPTIONS,
    )  # fmt: skip
    change = runs.networks.w - runs.network.w
    np.testing.assert_allclose(runs.final["moved"], change, atol=1e-14)
    # dw = -diag(RATES) w dt, so that the integral of w is the change over -RATES.
    np.testing.assert_allclose(runs.final["area"], -change / RATES, rtol=1e-10)


@pytest.mark.slow
def test_a_network_with_coordinates_of_its_own():
    """The parameters of a diagonal network move by the sum of the changes, and its
    mirror coordinates integrate an observable that the network declares.
    """
    problem, start = small_problem(), network()
    record = sgf.Record(times=2, sums={"moved": lambda net, change: change["plus"]})
    runs = sgf.simulate(sgf.GradientDescent(0.02), start, problem, steps=5, record=record)
    (plus, minus), (then, _) = (
        np.exp([net.log_alpha + sign * net.log_ratio / 2 for sign in (1, -1)])
        for net in (runs.networks, start)
    )
    np.testing.assert_allclose(runs.final["moved"], plus - then, rtol=1e-10)
    assert not np.allclose(plus, minus)
    record = sgf.Record(times=3, integrals={"same": problem.risk, "path": lambda net: net.beta})
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(0.02),
        start,
        problem,
        keys=sgf.seeds(0, 2),
        steps=20,
        coordinates="mirror",
        record=record,
    )
    np.testing.assert_allclose(runs["same"], runs["loss_integral"], rtol=1e-10)
    assert runs["path"].shape == (2, 3, 25)


def test_a_value_that_is_not_finite_is_the_users_own():
    """It is recorded, and says nothing about how the seed ended."""
    record = sgf.Record(times=3, integrals={"log": lambda net: jnp.log(net.w[1])})
    runs = sgf.simulate(
        sgf.GradientDescent(STEP), START, PROBLEM, steps=9, record=record, stop=1e-9, **OPTIONS
    )
    assert np.isnan(runs.final["log"])
    assert runs.statuses() == {"moving": 1}


def test_a_changed_global_is_seen():
    scale = np.ones(())
    record = sgf.Record(times=2, integrals={"x": lambda net: jnp.asarray(scale)})

    def run():
        return sgf.simulate(
            sgf.GradientDescent(STEP), START, PROBLEM, steps=4, record=record, **OPTIONS
        ).final["x"]

    np.testing.assert_allclose(run(), 4 * STEP)
    scale[()] = 3
    np.testing.assert_allclose(run(), 12 * STEP)


@pytest.mark.parametrize(
    ("dynamics", "record", "words"),
    [
        (
            sgf.GradientFlow(dt=0.1),
            {"sums": {"length": length}},
            "`sums` of Record .* but GradientFlow is a flow.*integrals=",
        ),
        ("GD", {"sums": [length]}, "`sums` of Record must map names to functions of the network "),
        ("GD", {"integrals": {"a": 3}}, "`integrals` of Record must map names to functions of "),
        ("GD", {"integrals": {"loss": area}}, "the integral 'loss' needs another name.*built in"),
        ("GD", {"sums": {"loss_integral": moved}}, "the sum 'loss_integral' needs another name"),
        ("GD", {"sums": {"status": moved}}, "the sum 'status' needs another name.*status of every"),
        ("GD", {"sums": {"stop_time": moved}}, "the sum 'stop_time' needs another name"),
        ("GD", {"integrals": {"example_integral": area}}, "'example_integral' needs another name"),
        ("GD", {"integrals": {"final_loss": area}}, "is the name of the last 'loss'"),
        (
            "GD",
            {"integrals": {"a": area}, "sums": {"final_a": moved}},
            "the sum 'final_a' needs another name, because that is the name of the last 'a'",
        ),
        (
            "GD",
            {"observables": {"final_a": area}, "integrals": {"a": area}},
            "the observable 'final_a' needs another name",
        ),
        (
            "GD",
            {"observables": {"a": area}, "integrals": {"a": area}},
            "the integral 'a' needs another name.*an observable of this run",
        ),
        (
            "GD",
            {"integrals": {"a": area}, "sums": {"a": moved}},
            "name of an integral and of a sum",
        ),
        ("GD", {"integrals": {"a/b": area}}, "an integral's name must be a non-empty text"),
        ("GD", {"sums": {"a_0": moved}, "integrals": {"a": area}}, "calls a dimension of 'a' so"),
        (
            "GD",
            {"integrals": {"a": lambda net: 1j}},
            "'a' of Record must be a real number or .* has dtype",
        ),
        ("GD", {"integrals": {"a": lambda net: net}}, "'a' of Record must be a real number or an"),
    ],
)
def test_refusals(dynamics, record, words):
    dynamics = ALGORITHMS["GD"][0] if dynamics == "GD" else dynamics
    with pytest.raises(ValueError, match=words):
        sgf.simulate(
            dynamics, START, PROBLEM, steps=2, record=sgf.Record(times=2)._replace(**record),
            **OPTIONS,
        )  # fmt: skip


@pytest.mark.slow
def test_integrals_of_a_run_with_a_penalty():
    """With the penalty `|w|^2 / 2` rates grow by 1. Its name is taken in such a run."""

    def ridge(network, step):
        return jnp.sum(network.w**2) / 2

    problem = sgf.Problem(PROBLEM.inputs, PROBLEM.targets, penalty=ridge)
    record = sgf.Record(times=6, integrals={"area": area})
    runs = sgf.simulate(sgf.GradientFlow(), START, problem, t1=3.0, record=record, **OPTIONS)
    rates = RATES + 1
    times = np.asarray(runs.times)[:, None]
    wanted = np.asarray(START.w) * -np.expm1(-rates * times) / rates
    np.testing.assert_allclose(runs["area"], wanted, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(runs["penalty"][0], 5)
    record = sgf.Record(integrals={"penalty": area})
    with pytest.raises(ValueError, match="the integral 'penalty' needs another name"):
        sgf.simulate(sgf.GradientFlow(), START, problem, t1=3.0, record=record, **OPTIONS)


def test_observables_of_one_joint_object_are_computed_once():
    """Under the names of the record, of a network that is traced once per place."""
    calls = []

    class Joint(AbstractJoint):
        scale: jax.Array

        def __call__(self, network, names):
            calls.append(names)
            both = {"sum": jnp.sum(network.w), "twice": 2 * jnp.sum(network.w)}
            return {name: self.scale * both[name] for name in names}

    joint = Joint(jnp.asarray(3.0))
    alone = {name: joint.observable(name) for name in ("sum", "twice")}
    np.testing.assert_allclose(alone["twice"](START), 3 * 2 * (1 - 3))
    calls.clear()
    record = sgf.Record({"a": alone["sum"], "b": alone["twice"], "w": area}, times=3)
    runs = sgf.simulate(
        sgf.GradientDescent(STEP), START, PROBLEM, steps=4, record=record, **OPTIONS
    )
    assert set(calls) == {("sum", "twice")}
    np.testing.assert_allclose(runs["a"], 3 * np.sum(runs["w"], axis=-1), rtol=1e-12)
    np.testing.assert_allclose(runs["b"], 2 * runs["a"], rtol=1e-12)


@pytest.mark.slow
def test_two_recorded_times_are_the_start_and_the_end():
    """`w_i e^{-a_i t}`: of an adaptive run too."""
    record = sgf.Record(times=2, observables={"w": area})
    run = sgf.simulate(sgf.GradientFlow(), START, PROBLEM, t1=1.5, record=record, **OPTIONS)
    np.testing.assert_allclose(run.times, [0, 1.5])
    wanted = START.w * np.exp(-1.5 * RATES)
    np.testing.assert_allclose(run["w"], [START.w, wanted], rtol=1e-6)
    np.testing.assert_allclose(run.networks.w, wanted, rtol=1e-6)
