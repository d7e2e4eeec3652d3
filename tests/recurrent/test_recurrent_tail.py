"""The tail of the impulse response, its derivative and penalty, late lags, spectra and
Hankel values, against sums lag by lag and closed forms.
"""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import recurrent as rec

KEY = jax.random.key(0)


def of_radius(network, radius):
    """The network with its transition rescaled to a spectral radius."""
    now = np.abs(np.linalg.eigvals(np.asarray(network.A))).max()
    return rec.LinearRNN(network.A * (radius / now), network.B, network.C)


@pytest.fixture(scope="module")
def pair():
    """A student of radius 0.9 and a teacher of radius 0.7, with 2 inputs, 3 outputs."""
    k1, k2 = jax.random.split(KEY)
    sizes = {"scale": 0.9, "gain": 1.0, "inputs": 2, "outputs": 3}
    student = rec.LinearRNN.gaussian(k1, state=6, **sizes)
    teacher = rec.LinearRNN.gaussian(k2, state=4, **sizes)
    return of_radius(student, 0.9), of_radius(teacher, 0.7)


def energy(student, lags, start):
    h = np.asarray(student.impulse_response(lags.shape[0]))
    return np.sum((h - lags)[start:] ** 2)


@pytest.mark.slow
def test_the_tail_is_the_sum_over_lags(pair):
    student, teacher = pair
    lags = np.asarray(teacher.impulse_response(4000))
    for start in (0, 5):
        wanted = energy(student, lags, start)
        np.testing.assert_allclose(rec.tail(student, teacher, start), wanted, rtol=1e-10)
    # A teacher that is given by lags is 0 beyond them.
    few = np.asarray(teacher.impulse_response(4))
    wanted = energy(student, np.pad(few, ((0, 3996), (0, 0), (0, 0))), 2)
    np.testing.assert_allclose(rec.tail(student, few, 2), wanted, rtol=1e-10)
    wanted = np.sum((np.asarray(student.impulse_response(50)) - lags[:50])[5:] ** 2)
    np.testing.assert_allclose(rec.tail(student, teacher, 5, 50), wanted, rtol=1e-10)


def test_one_state_in_closed_form():
    a, b = 0.8, 1.3
    one = rec.LinearRNN([[a]], [[b]], [[b]])
    lags = np.arange(9)
    np.testing.assert_allclose(one.impulse_response(9)[:, 0, 0], b**2 * a**lags, rtol=1e-12)
    wanted = b**4 * a**10 / (1 - a**2)
    np.testing.assert_allclose(rec.tail(one, b**2, 5), wanted, rtol=1e-12)
    np.testing.assert_allclose(rec.hankel_values(one), [b**2 / (1 - a**2)], rtol=1e-12)
    found = rec.spectrum(one, 3)
    np.testing.assert_allclose(found.half_lives, [np.log(0.5) / np.log(a)], rtol=1e-12)
    np.testing.assert_allclose(found.shares, [1.0])


def test_the_derivative_of_the_tail(pair):
    student, teacher = pair
    direction = jax.tree.map(
        lambda leaf: jax.random.normal(KEY, leaf.shape), student, is_leaf=lambda x: x is None
    )

    @jax.jit
    def at(t):
        moved = jax.tree.map(lambda w, v: w + t * v, student, direction)
        return rec.tail(moved, teacher, 5)

    slope = jax.grad(at)(0.0)
    step = 1e-5
    central = (at(step) - at(-step)) / (2 * step)
    np.testing.assert_allclose(slope, central, rtol=1e-6)


@pytest.mark.slow
def test_the_derivative_at_a_nilpotent_transition():
    # A^2 = 0, so the doubling meets matrices of zeros. The tail from lag 1 is h_1^2.
    def tail(x):
        A = jnp.asarray([[0.0, 0.0], [1.0, 0.0]]) * x
        return rec.tail(rec.LinearRNN(A, [[1.0], [0.0]], [[0.0, 1.0]]), 0.0, 1)

    value, slope = jax.value_and_grad(tail)(0.7)
    np.testing.assert_allclose([value, slope], [0.49, 1.4], rtol=1e-12)
    still = rec.LinearRNN(np.zeros((2, 2)), np.ones((2, 1)), np.ones((1, 2)))
    gradient = jax.grad(lambda n: rec.tail(n, 0.0, 1))(still)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_the_tail_can_be_differentiated_twice_and_in_both_modes():
    def tail(a):
        one = jnp.ones((1, 1))
        return rec.tail(rec.LinearRNN(a * one, one, one), 0.0, 3)

    # a^6 / (1 - a^2) has the derivatives a^5 (6 - 4 a^2) / (1 - a^2)^2, and so on.
    def slope(a):
        return a**5 * (6 - 4 * a**2) / (1 - a**2) ** 2

    a = 0.8
    np.testing.assert_allclose(jax.grad(tail)(a), slope(a), rtol=1e-12)
    np.testing.assert_allclose(jax.jvp(tail, (a,), (1.0,))[1], slope(a), rtol=1e-12)
    wanted = jax.grad(slope)(a)
    np.testing.assert_allclose(jax.grad(jax.grad(tail))(a), wanted, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.hessian(tail))(a), wanted, rtol=1e-12)


@pytest.mark.slow
def test_an_infinite_tail_has_no_derivative():
    def tail(network):
        return rec.tail(network, 1.0, 5)

    growing = rec.bad_interpolator(5, state=8, scale=1.1)
    for network, words in (
        (growing, "A has the eigenvalue .* of absolute value 1.1: .* tail"),
        (rec.two_lag_interpolator(), "of absolute value 1: "),
        (rec.LinearRNN([[1 - 1e-10]], [[1.0]], [[1.0]]), "close to 1 that .* take finitely many"),
    ):
        assert np.isinf(tail(network))
        with pytest.raises(ValueError, match=f"the derivative of `tail` needs .*{words}"):
            jax.grad(tail)(network)
        # Where no value is known, nothing can be refused, and nothing is made up.
        slopes = jax.tree.leaves(jax.jit(jax.grad(tail))(network))
        assert all(np.all(np.isnan(leaf)) for leaf in slopes)
    shrunk = of_radius(growing, 0.9)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), growing, shrunk)
    slopes = jax.vmap(jax.grad(tail))(both)
    assert np.all(np.isnan(slopes.A[0]))
    np.testing.assert_allclose(slopes.A[1], jax.grad(tail)(shrunk).A, rtol=1e-10, atol=1e-14)
    few = jax.grad(lambda n: rec.tail(n, 1.0, 5, 10))(growing)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(few))
    # A seed that gets there is lost, and the others go on.
    start = rec.LinearRNN([[0.5]], [[1.0]], [[1.0]])
    wild = rec.LinearRNN([[0.99]], [[3.0]], [[3.0]])
    risk = rec.PopulationRisk(1.0, 3, penalty=rec.TailPenalty(1.0, 3, 10.0))
    runs = sgf.simulate(sgf.GradientDescent(0.02), sgf.Stacked([start, wild]), risk, steps=30)
    assert runs.diverged.tolist() == [False, True]


def test_transients_do_not_overflow():
    # A chain of 25 states with links of 1e5: powers reach 1e120 before they decay.
    d, c = 25, 1e5
    A = 0.5 * np.eye(d) + c * np.eye(d, k=-1)
    B, C = np.eye(d)[:, :1], np.eye(d)[:1]
    # The first state does not see the chain: h_j = 2^-j.
    found = rec.tail(rec.LinearRNN(A, B, C), 0.0, 0)
    np.testing.assert_allclose(found, 4 / 3, rtol=1e-10)


def test_without_decay_the_tail_is_infinite():
    growing = rec.bad_interpolator(5, state=8, scale=1.1)
    assert np.isinf(rec.tail(growing, 1.0, 5))
    np.testing.assert_allclose(rec.tail(growing, 1.0, 5, 10), 1.1**16, rtol=1e-12)
    assert np.isinf(rec.tail(rec.two_lag_interpolator(), 1.0, 5))
    slow = rec.LinearRNN([[1 - 1e-6]], [[1.0]], [[1.0]])
    np.testing.assert_allclose(rec.tail(slow, 1.0, 1), 1 / (1 - (1 - 1e-6) ** 2) - 1, rtol=1e-9)
    text = str(rec.spectrum(growing))
    assert "infinite, as the eigenvalue" in text
    assert np.isnan(rec.spectrum(growing).shares).all()
    for call in (rec.hankel_values, lambda n: run_with_penalty(n, 1)):
        with pytest.raises(ValueError, match=r"needs a spectral radius below 1, but A has the eig"):
            call(growing)


def test_late_lags_neither_under_nor_overflow():
    B = np.asarray([[1.0], [2.0], [3.0]])
    network = rec.LinearRNN(np.diag([0.9, -0.5, 0.3]), B, B.T)
    direction, log = network.log_impulse(100_000)
    assert abs(float(log) - -10536.0515658) < 1e-7
    np.testing.assert_array_equal(direction, [[1.0]])
    for lag in (0, 1, 7):
        direction, log = network.log_impulse(lag)
        wanted = network.impulse_response(lag + 1)[lag]
        np.testing.assert_allclose(direction * jnp.exp(log), wanted, rtol=1e-12)
    growing = rec.bad_interpolator(5, state=8, scale=1.1)
    assert abs(float(growing.log_impulse(80_000)[1]) - 80_000 * np.log(1.1)) < 1e-7
    direction, log = growing.log_impulse(80_001)
    assert float(log) == -np.inf
    np.testing.assert_array_equal(direction, [[0.0]])


def test_hankel_values_are_those_of_a_long_hankel_matrix(pair):
    student, _ = pair
    h = np.asarray(student.impulse_response(400))
    H = np.block([[h[i + j] for j in range(200)] for i in range(200)])
    wanted = np.linalg.svd(H, compute_uv=False)[:6]
    np.testing.assert_allclose(rec.hankel_values(student), wanted, rtol=1e-6, atol=1e-6)


MAPPED = """
import jax
import sgfbias as sgf

rec = sgf.recurrent
draw = lambda key: rec.LinearRNN.gaussian(key, state=20, scale=0.6, gain=0.5)
systems = jax.vmap(draw)(sgf.seeds(0, 256))
mapped = jax.jit(jax.vmap(lambda n: jax.value_and_grad(lambda n: rec.hankel_values(n)[0])(n)))
for _ in range(20):
    jax.block_until_ready(mapped(systems))
"""


@pytest.mark.slow
def test_mapped_hankel_values_end_on_two_threads():
    """Two calls of LAPACK at once waited for each other here, with the default flags of
    XLA, which the tests do not have.
    """
    given = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(
        [sys.executable, "-c", MAPPED], env=given | {"NPROC": "2"}, check=True, timeout=300
    )


@pytest.mark.slow
def test_hankel_values_are_differentiated(pair):
    """Along a direction of A, B and C, against central differences."""
    student, _ = pair
    leaves, structure = jax.tree.flatten(student)
    change = jax.tree.unflatten(
        structure,
        [
            jax.random.normal(key, leaf.shape)
            for key, leaf in zip(jax.random.split(KEY, 3), leaves, strict=True)
        ],
    )

    def value(by):
        moved = jax.tree.map(lambda now, way: now + by * way, student, change)
        return rec.hankel_values(moved)[:3]

    slope = jax.jvp(value, (0.0,), (1.0,))[1]
    wanted = (value(1e-5) - value(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)
    pulled = jax.vjp(value, 0.0)[1](jnp.ones(3))[0]
    np.testing.assert_allclose(pulled, jnp.sum(slope), rtol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_the_impulse_response_is_lag_by_lag_c_a_to_the_j_b(pair, length):
    A, B, C = map(np.asarray, jax.tree.leaves(pair[0]))
    wanted = [C @ np.linalg.matrix_power(A, lag) @ B for lag in range(length)]
    np.testing.assert_allclose(pair[0].impulse_response(length), wanted, rtol=1e-12, atol=1e-14)


def test_shares_add_up_to_the_energy():
    # Two modes that do not overlap much in time, with the energy of each known.
    B = np.sqrt([[1.0], [0.2]])
    network = rec.LinearRNN(np.diag([0.2, 0.9]), B, B.T)
    found = rec.spectrum(network, 5)
    np.testing.assert_allclose(found.eigenvalues, [0.9, 0.2])
    np.testing.assert_allclose(found.shares.sum(), 1)
    mixed = 0.2 * 0.18**5 / (1 - 0.18)
    own = np.asarray([0.04 * 0.81**5 / (1 - 0.81), 0.04**5 / (1 - 0.04)])
    np.testing.assert_allclose(found.shares, (own + mixed) / np.sum(own + mixed), rtol=1e-12)
    assert "share" in str(found)


def run_with_penalty(network, steps, weight=1.0, optimiser=None):
    risk = rec.PopulationRisk(1.0, 5, penalty=rec.TailPenalty(1.0, 5, weight))
    return sgf.simulate(optimiser or sgf.GradientDescent(0.1), network, risk, steps=steps)


def test_the_penalty_makes_a_network_extrapolate():
    start = of_radius(rec.LinearRNN.gaussian(KEY, state=6, scale=0.9, gain=0.5), 0.9)
    plain = sgf.simulate(sgf.GradientDescent(0.1), start, rec.PopulationRisk(1.0, 5), steps=600)
    cured = run_with_penalty(start, 600)
    before, after = (float(rec.tail(runs.networks, 1.0, 5)) for runs in (plain, cured))
    assert after < before / 100
    assert float(cured.final["loss"]) < 1e-4
    np.testing.assert_allclose(cured.final["penalty"], after, rtol=1e-10)


def test_what_does_not_fit_is_refused(pair):
    student, _ = pair
    gru = rec.Unroll(eqx.nn.GRUCell(1, 3, key=KEY))

    def refused(words, call, *args):
        with pytest.raises(ValueError, match=words):
            call(*args)

    refused("`network` must be a LinearRNN, but is Unroll", rec.tail, gru, 1.0, 5)
    refused(r"has \(outputs, inputs\) = \(1, 1\), but the network has", rec.tail, student, 1.0, 5)
    one = rec.LinearRNN([[0.5]], [[1.0]], [[1.0]])
    refused("`start` must be a whole number >= 0", rec.tail, one, 1.0, -1)
    refused("`stop` must be a whole number >= 6", rec.tail, one, 1.0, 5, 5)
    refused("`weight` must be positive", rec.TailPenalty, 1.0, 5, 0.0)
    refused("`length` must be a whole number", rec.TailPenalty, 1.0, 0)
    refused("TailPenalty is for a LinearRNN", rec.TailPenalty(1.0, 5), gru, 0)
    refused("`start` must be", rec.spectrum, one, -1)
    refused("the network has 1 inputs, so the sequences", one.predict, jnp.zeros((3, 4, 2)))


def test_decay_moves_along_networks_of_zero_risk_without_memory():
    # A -> c A takes h_j to c^j h_j, so the risk stays 0 where only h_0 is not.
    bad = rec.bad_interpolator(5, state=8, scale=1.1)
    risk = rec.PopulationRisk(1.0, 5)
    for c in (0.9, 0.1):
        assert float(risk.risk(rec.LinearRNN(c * bad.A, bad.B, bad.C))) == 0
    # With memory it does not: the atoms move.
    root = np.sqrt([[0.81], [0.49]])
    teacher = rec.LinearRNN(np.diag([0.8, -0.5]), root, root.T)
    risk = rec.PopulationRisk(teacher, 5)
    slope = jax.grad(lambda c: risk.risk(rec.LinearRNN(c * teacher.A, root, root.T)))
    assert float(slope(jnp.asarray(0.9))) < -0.01
