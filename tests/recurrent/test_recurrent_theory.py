"""Ground truths of linear recurrent networks: the risk, conserved quantities, norms,
the scalar reduction, interpolators that do not extrapolate, and the late law.
"""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import recurrent as rec

KEY = jax.random.key(0)


def random_network(seed, state, inputs=1, outputs=1, scale=0.6, gain=0.5):
    return rec.LinearRNN.gaussian(
        jax.random.key(seed), state=state, scale=scale, gain=gain, inputs=inputs, outputs=outputs
    )


@pytest.fixture(scope="module")
def mimo():
    """A network and a teacher with two inputs and three outputs."""
    return random_network(0, 4, 2, 3), random_network(1, 3, 2, 3)


def errors(network, teacher, length):
    """`e_j = C A^j B - h*_j` written out in NumPy."""
    A, B, C = (np.asarray(leaf) for leaf in (network.A, network.B, network.C))
    wanted = np.asarray(teacher.impulse_response(length))
    return np.stack([C @ np.linalg.matrix_power(A, j) @ B - wanted[j] for j in range(length)])


@pytest.mark.slow
def test_the_risk_is_that_of_the_lags(mimo):
    network, teacher = mimo
    e = errors(network, teacher, 5)
    squares = np.sum(e**2, axis=(1, 2))
    white = rec.PopulationRisk(teacher, 5)
    np.testing.assert_allclose(white.risk(network), 0.5 * squares.sum(), rtol=1e-12)
    every = rec.PopulationRisk(teacher, 5, outputs="all")
    weighted = 0.5 * np.sum((5 - np.arange(5)) * squares)
    np.testing.assert_allclose(every.risk(network), weighted, rtol=1e-12)
    # Inputs of an AR(1) process.
    S = 0.7 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    inner = np.einsum("aoi,boi->ab", e, e)[::-1, ::-1]
    coloured = rec.PopulationRisk(teacher, 5, covariance=S)
    np.testing.assert_allclose(coloured.risk(network), 0.5 * np.sum(S * inner), rtol=1e-12)
    both = rec.PopulationRisk(teacher, 5, outputs="all", covariance=S)
    total = sum(
        0.5 * np.sum(S[:T, :T] * np.einsum("aoi,boi->ab", e[:T], e[:T])[::-1, ::-1])
        for T in range(1, 6)
    )
    np.testing.assert_allclose(both.risk(network), total, rtol=1e-12)
    # A white covariance is no covariance, and lags may be given as numbers.
    given = rec.PopulationRisk(teacher.impulse_response(7), 5, covariance=np.eye(5))
    np.testing.assert_allclose(given.risk(network), white.risk(network), rtol=1e-12)


def test_the_risk_is_the_mean_over_sequences(mimo):
    network, teacher = mimo
    S = 0.7 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    x = jax.random.normal(KEY, (100_000, 5, 2))
    x = jnp.einsum("ts,nsi->nti", np.linalg.cholesky(S), x)
    losses = 0.5 * np.sum(np.square(network.predict(x) - teacher.predict(x)), axis=1)
    risk = float(rec.PopulationRisk(teacher, 5, covariance=S).risk(network))
    error = losses.std() / np.sqrt(len(losses))
    assert abs(losses.mean() - risk) < 5 * error
    assert error < 0.02 * risk


def test_outputs_one_by_one(mimo):
    network, _ = mimo
    x = jax.random.normal(KEY, (3, 6, 2))
    every = rec.LinearRNN(network.A, network.B, network.C, outputs="all")
    found = every.predict(x)
    assert found.shape == (3, 6, 3)
    np.testing.assert_allclose(found[:, -1], network.predict(x), rtol=1e-12)
    np.testing.assert_allclose(network(x[0]), network.predict(x)[0], rtol=1e-12)
    np.testing.assert_allclose(found[1, 3], network(x[1, :4]), rtol=1e-12)


def test_starts():
    symmetric = rec.LinearRNN.symmetric(KEY, state=100, scale=0.8, gain=0.5, inputs=2)
    np.testing.assert_array_equal(symmetric.A, symmetric.A.T)
    np.testing.assert_array_equal(symmetric.C, symmetric.B.T)
    assert abs(rec.spectrum(symmetric).radius - 0.8) < 0.15
    assert abs(np.linalg.norm(symmetric.B[:, 0]) - 0.5) < 0.15
    free = random_network(0, 100, 2, 3, scale=0.8)
    assert abs(rec.spectrum(free).radius - 0.8) < 0.15
    assert (free.B.shape, free.C.shape) == ((100, 2), (3, 100))


def test_the_rates_of_the_matrix_and_of_norms(mimo):
    network, teacher = mimo
    risk = rec.PopulationRisk(teacher, 5)
    gradient = jax.grad(risk.risk)(network)
    wanted = rec.norm_rates(network, teacher, 5)
    # The derivative of the matrix along the flow is 0.
    _, change = jax.jvp(rec.conserved, (network,), (gradient,))
    assert np.abs(change).max() < 1e-14
    assert np.abs(gradient.A).max() > 1e-3
    rates = [-2 * float(jnp.vdot(getattr(network, n), getattr(gradient, n))) for n in "ABC"]
    np.testing.assert_allclose(rates, [wanted[0], wanted[1], wanted[1]], rtol=1e-12)
    # With a teacher without memory the norm of A falls.
    assert float(rec.norm_rates(random_network(3, 4), 1.0, 5)[0]) < 0


@pytest.mark.slow
def test_the_matrix_is_conserved_to_the_tolerance(mimo):
    network, teacher = mimo
    flow = sgf.GradientFlow(rtol=1e-10, atol=1e-12)
    risk, Q = rec.PopulationRisk(teacher, 5), rec.conserved(network)
    runs = sgf.simulate(flow, network, risk, t1=20.0)
    assert np.abs(rec.conserved(runs.networks) - Q).max() < 1e-11
    runs = sgf.simulate(sgf.GradientFlow(), network, risk, t1=20.0)
    assert np.abs(rec.conserved(runs.networks) - Q).max() < 1e-8
    assert float(jnp.linalg.norm(runs.networks.A - network.A)) > 0.01


@pytest.mark.slow
def test_descent_drifts_in_proportion_to_its_step(mimo):
    network, teacher = mimo
    risk = rec.PopulationRisk(teacher, 5)
    drift = []
    for step in (0.1, 0.05, 0.025):
        runs = sgf.simulate(sgf.GradientDescent(step), network, risk, t1=20.0)
        drift.append(np.linalg.norm(rec.conserved(runs.networks) - rec.conserved(network)))
    ratios = np.divide(drift[:-1], drift[1:])
    assert np.all((ratios > 1.7) & (ratios < 2.3))


@pytest.mark.slow
def test_the_scalar_reduction():
    u = np.asarray([1.0, 2.0, 2.0]) / 3
    network = rec.LinearRNN(0.9 * np.eye(3), 0.3 * u[:, None], 0.3 * u[None])
    record = sgf.Record(
        {"a": lambda n: u @ n.A @ u, "b": lambda n: jnp.linalg.norm(n.B)},
        np.asarray([1.0, 3.0, 6.0]),
    )
    flow = sgf.GradientFlow(rtol=1e-9, atol=1e-11)
    risk = rec.PopulationRisk(1.0, 5)
    runs = sgf.simulate(flow, network, risk, t1=6.0, record=record, solver=dfx.Tsit5())
    np.testing.assert_allclose(runs["b"], [0.508780, 0.890631, 0.998842], atol=1e-6)
    np.testing.assert_allclose(runs["a"], [0.770054, 0.280657, 0.017422], atol=1e-6)
    # The rates of the two numbers are those of the matrices, and the rest of A stays.
    gradient = jax.grad(risk.risk)(network)
    da, db = rec.scalar_rates(0.9, 0.3, 1.0, 5)
    np.testing.assert_allclose(-gradient.A, float(da) * np.outer(u, u), atol=1e-12)
    np.testing.assert_allclose(-gradient.B[:, 0], float(db) * u, atol=1e-12)


def test_bad_interpolators_are_stationary():
    bad = rec.bad_interpolator(5, state=8, scale=1.1, gain=np.sqrt(2.0))
    h = bad.impulse_response(10)[:, 0, 0]
    wanted = np.zeros(10)
    wanted[[0, 8]] = 2, 2 * 1.1**8
    np.testing.assert_allclose(h, wanted, rtol=1e-12)
    risk = rec.PopulationRisk(2.0, 5)
    # sqrt(2)^2 is 2 up to rounding.
    assert float(risk.risk(bad)) < 1e-30
    unit = rec.bad_interpolator(5, state=8, scale=1.1)
    value, gradient = jax.value_and_grad(rec.PopulationRisk(1.0, 5).risk)(unit)
    assert float(value) == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(unit.impulse_response(9)[8, 0, 0], 2.14358881, atol=1e-12)
    assert rec.bad_interpolator(5).A.shape == (5, 5)


def test_a_length_of_2_is_too_short_for_one_atom():
    assert [rec.sufficient_length(m) for m in (1, 2, 3)] == [3, 5, 7]
    short = rec.two_lag_interpolator(1.0)
    h = short.impulse_response(4)[:, 0, 0]
    np.testing.assert_allclose(h, [1, 0, 1, 0], atol=1e-15)
    assert float(rec.PopulationRisk(1.0, 2).risk(short)) < 1e-30
    assert float(rec.PopulationRisk(1.0, 3).risk(short)) > 0.49


def measure(atoms, weights):
    root = np.sqrt(np.asarray(weights))[:, None]
    return rec.LinearRNN(np.diag(atoms), root, root.T)


def test_zero_risk_at_the_sufficient_length_means_all_lags():
    # Two atoms +-a have the moments 1, 0, a^2, 0, a^4. Three atoms 0 and +-b share the
    # first four of them, but not the fifth.
    teacher = measure([0.5, -0.5], [0.5, 0.5])
    share = 0.5**2 / 0.8**2
    other = measure([0.8, 0.0, -0.8], [share / 2, 1 - share, share / 2])
    assert float(rec.PopulationRisk(teacher, 4).risk(other)) < 1e-30
    assert float(rec.tail(other, teacher, 4)) > 0.01
    assert float(rec.PopulationRisk(teacher, 5).risk(other)) > 1e-3
    # At length 5 the integral of (x^2 - a^2)^2 is 0, so a student of four states with
    # zero risk has the atoms of the teacher; extra states have no weight.
    same = measure([0.5, -0.5, 0.9, 0.5], [0.3, 0.5, 0.0, 0.2])
    assert float(rec.PopulationRisk(teacher, 5).risk(same)) < 1e-30
    assert float(rec.tail(same, teacher, 5)) < 1e-15


@pytest.mark.slow
def test_descent_keeps_the_symmetric_manifold_and_a_transition_of_0():
    risk, descent = rec.PopulationRisk(1.0, 5), sgf.GradientDescent(0.1)
    still = rec.LinearRNN(np.zeros((6, 6)), 0.3 * np.eye(6)[:, :1], 0.3 * np.eye(6)[:1])
    start = rec.LinearRNN.symmetric(KEY, state=6, scale=0.6, gain=0.5)
    record = sgf.Record(
        {"A": lambda n: jnp.max(jnp.abs(n.A)), "loss_at_7": lambda n: n.impulse_response(8)[7]},
        times=20,
    )
    runs = sgf.simulate(descent, sgf.Stacked([start, still]), risk, steps=3000, record=record)
    ends = runs.networks
    assert np.abs(ends.A[0] - ends.A[0].T).max() < 1e-14
    assert np.abs(ends.C[0] - ends.B[0].T).max() < 1e-14
    assert np.abs(ends.A[0] - start.A).max() > 1e-3
    # A transition of 0 stays 0: exact extrapolation along the whole run.
    assert np.abs(runs["A"][1]).max() < 1e-14
    assert np.abs(runs["loss_at_7"][1]).max() < 1e-14
    assert float(runs["loss"][1, -1]) < 1e-25


@pytest.mark.slow
def test_the_late_law():
    starts = rec.LinearRNN.symmetric(KEY, state=5, scale=0.1, gain=0.5)
    record = sgf.Record({"h": lambda n: n.impulse_response(3)[:, 0, 0]}, np.asarray([1e5]))
    for w in (1.0, 2.0):
        runs = sgf.simulate(
            sgf.GradientFlow(), starts, rec.PopulationRisk(w, 5), t1=1e5, record=record
        )
        ratio = float(runs["h"][0, 2]) / float(rec.late_error(w, 1e5))
        assert abs(ratio - 1) < 0.01
        loss = 0.5 * float(rec.late_error(w, 1e5)) ** 2
        assert abs(float(runs.final["loss"]) / loss - 1) < 0.03
    # A transition of 0 stays 0 under the flow, too.
    still = eqx.tree_at(lambda n: n.A, starts, jnp.zeros((5, 5)))
    runs = sgf.simulate(sgf.GradientFlow(), still, rec.PopulationRisk(2.0, 5), t1=1e5)
    assert np.abs(runs.networks.A).max() < 1e-14


def test_a_negative_teacher_cannot_be_reached_from_the_manifold():
    start = rec.LinearRNN.symmetric(KEY, state=6, scale=0.6, gain=0.5)
    # At late times, rounding leaves the manifold, on which 0 is a minimum, while it is
    # a saddle off it: asymmetry grows as exp(t). So the run ends at t = 15.
    runs = sgf.simulate(sgf.GradientDescent(0.1), start, rec.PopulationRisk(-1.0, 5), steps=150)
    assert 0.5 <= float(runs.final["loss"]) < 0.5 + 1e-6


def test_what_does_not_fit_is_refused(mimo):
    network, _ = mimo
    ok, row = np.eye(2), np.ones((1, 2))

    def refused(words, call, *args, **options):
        with pytest.raises(ValueError, match=words):
            call(*args, **options)

    refused("A must be square", rec.LinearRNN, row, row.T, row)
    refused(
        r"A has shape \(2, 2\), so B must be \(2, i\), but is \(1, 2\)", rec.LinearRNN, ok, row, row
    )
    refused(r"so C must be \(o, 2\)", rec.LinearRNN, ok, row.T, row.T)
    refused("`A` must be finite", rec.LinearRNN, ok * np.nan, row.T, row)
    refused("`outputs` must be 'last' or 'all'", rec.LinearRNN, ok, row.T, row, outputs="first")
    refused("`scale` must be non-negative", random_network, 0, 4, scale=-1.0)
    refused("`gain` must be positive", random_network, 0, 4, gain=0.0)
    refused("`length` must be a whole number >= 1", rec.PopulationRisk, 1.0, 0)
    refused("`length` must be a whole number", network.impulse_response, 0)
    refused("`lag` must be a whole number >= 0", network.log_impulse, -1)
    refused(
        "the teacher has 3 lags, fewer than the length 5", rec.PopulationRisk, np.ones((3, 1, 1)), 5
    )
    refused("`teacher` must be a number, an array", rec.PopulationRisk, np.ones(3), 2)
    refused("but is 'no'", rec.PopulationRisk, "no", 2)
    S = np.asarray([[1.0, 2.0], [2.0, 1.0]])
    refused("its least eigenvalue is -1", rec.PopulationRisk, 1.0, 2, covariance=S)
    refused("must be symmetric", rec.PopulationRisk, 1.0, 2, covariance=[[1.0, 2.0], [0.0, 1.0]])
    refused(r"must be \(k, k\) = \(3, 3\)", rec.PopulationRisk, 1.0, 3, covariance=S)
    refused("state = 4 states comes back after 4 lags", rec.bad_interpolator, 5, state=4)
    refused(r"the network has \(3, 2\)", rec.norm_rates, network, 1.0, 5)
    refused("`network` must be a LinearRNN", rec.conserved, eqx.nn.Identity())
    refused("`w` must be positive", rec.two_lag_interpolator, -1.0)
    refused("`w` must be positive", rec.late_error, -1.0, 10.0)

    one = random_network(0, 3)
    risk = rec.PopulationRisk(1.0, 4)

    def run(network, dynamics=None, risk=risk, **options):
        return sgf.simulate(dynamics or sgf.GradientDescent(0.1), network, risk, steps=2, **options)

    sgd = sgf.StochasticGradientDescent(0.1)
    refused("this risk is an expectation", run, one, sgd, keys=sgf.seeds(0, 2))
    cell = rec.Unroll(eqx.nn.GRUCell(1, 3, key=KEY), eqx.nn.Linear(3, 1, key=KEY))
    refused("linear in their inputs, but Unroll is not: .* sample sequences", run, cell)
    every = rec.LinearRNN(one.A, one.B, one.C, outputs="all")
    refused("the network must have outputs='last'|targets must have", run, every)
    refused("cannot be evaluated on one example", run, network)


def test_any_model_that_is_linear_in_its_inputs_is_taken():
    class Cell(eqx.Module):
        A: jax.Array
        B: jax.Array

        def __call__(self, x, hidden):
            return self.A @ hidden + self.B @ x

    one = random_network(0, 3)
    model = rec.Unroll(Cell(one.A, one.B), lambda hidden: one.C @ hidden, initial=jnp.zeros(3))
    risk = rec.PopulationRisk(1.0, 4)
    np.testing.assert_allclose(risk.risk(model), risk.risk(one), rtol=1e-12)
    runs = sgf.simulate(sgf.GradientDescent(0.1), model, risk, steps=3)
    frozen = sgf.simulate(
        sgf.GradientDescent(0.1),
        one,
        risk,
        steps=3,
        trainable=eqx.tree_at(lambda n: n.C, jax.tree.map(lambda _: True, one), False),
    )
    np.testing.assert_allclose(runs.networks.cell.A, frozen.networks.A, rtol=1e-12)
