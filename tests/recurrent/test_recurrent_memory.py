"""Cells over sequences: memory gains and Lyapunov exponents against closed forms and
Jacobians written out, and losses at other lengths.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import recurrent as rec
from sgfbias.recurrent.lengths import padded_length

KEY = jax.random.key(0)
SQUARED = sgf.SquaredLoss(scale=0.5)


def now(key, length):
    """The task without memory: the target is the last input."""
    x = jax.random.normal(key, (length, 1))
    return x, x[-1]


@pytest.fixture(scope="module")
def gru():
    k1, k2 = jax.random.split(KEY)
    return rec.Unroll(eqx.nn.GRUCell(2, 3, key=k1), eqx.nn.Linear(3, 2, key=k2))


@pytest.mark.slow
def test_unroll_is_the_loop(gru):
    x = jax.random.normal(KEY, (5, 2))
    hidden, seen = jnp.zeros(3), []
    for one in x:
        hidden = gru.cell(one, hidden)
        seen.append(gru.readout(hidden))
    np.testing.assert_allclose(gru(x), seen[-1], rtol=1e-12)
    every = rec.Unroll(gru.cell, gru.readout, outputs="all")
    np.testing.assert_allclose(every(x), np.stack(seen), rtol=1e-12)
    np.testing.assert_allclose(rec.Unroll(gru.cell)(x), hidden, rtol=1e-12)
    pair = rec.Unroll(
        eqx.nn.LSTMCell(2, 3, key=KEY), gru.readout, initial=(jnp.zeros(3), jnp.zeros(3))
    )
    state = (jnp.zeros(3), jnp.zeros(3))
    for one in x:
        state = pair.cell(one, state)
    np.testing.assert_allclose(pair(x), gru.readout(state[0]), rtol=1e-12)
    # The initial state does not move in training.
    problem = sgf.Problem(x[None], jnp.ones((1, 2)))
    runs = sgf.simulate(sgf.GradientDescent(0.5), pair, problem, steps=2)
    np.testing.assert_array_equal(runs.networks.initial[0], jnp.zeros(3))
    assert np.abs(runs.networks.cell.weight_hh - pair.cell.weight_hh).max() > 0


@pytest.mark.slow
def test_memory_is_the_norm_of_the_jacobian(gru):
    x = jax.random.normal(KEY, (4, 6, 2))
    found = rec.memory(gru, x)
    jacobians = jax.vmap(jax.jacrev(gru))(x)  # (sequence, output, time, input)
    squares = np.mean(np.sum(np.square(jacobians), axis=(1, 3)), axis=0)[::-1]
    np.testing.assert_allclose(found.log_gain, 0.5 * np.log(squares), rtol=1e-10)
    one = rec.memory(gru, x[0]).log_gain
    wanted = 0.5 * np.log(np.sum(np.square(jacobians[0]), axis=(0, 2)))[::-1]
    np.testing.assert_allclose(one, wanted, rtol=1e-10)
    assert "it halves every" in str(found)


def test_memory_of_a_linear_cell_is_its_impulse_response():
    network = rec.LinearRNN.gaussian(KEY, state=4, scale=0.7, gain=1.0, inputs=2, outputs=3)
    h = np.asarray(network.impulse_response(20))
    found = rec.memory(network, jax.random.normal(KEY, (3, 20, 2)))
    norms = np.sqrt(np.sum(h**2, axis=(1, 2)))
    np.testing.assert_allclose(np.exp(found.log_gain), norms, rtol=1e-10)
    decaying = rec.LinearRNN([[0.5]], [[1.0]], [[1.0]])
    np.testing.assert_allclose(rec.memory(decaying, jnp.ones((9, 1))).half_life(), 1, rtol=1e-9)
    # Exact at a lag at which the gain itself underflows.
    B = np.asarray([[1.0], [2.0], [3.0]])
    slow = rec.LinearRNN(np.diag([0.9, -0.5, 0.3]), B, B.T)
    late = rec.memory(slow, jnp.ones((100_001, 1))).log_gain[-1]
    assert abs(float(late) - 1e5 * np.log(0.9)) < 1e-6
    nothing = rec.LinearRNN([[0.0]], [[1.0]], [[1.0]])
    logs = np.asarray(rec.memory(nothing, jnp.ones((3, 1))).log_gain)
    assert logs[0] == 0
    assert np.all(logs[1:] == -np.inf)


def test_lyapunov_exponents():
    network = rec.LinearRNN.gaussian(KEY, state=4, scale=0.8, gain=1.0)
    x = jax.random.normal(KEY, (4000, 1))
    wanted = np.sort(np.log(np.abs(np.linalg.eigvals(np.asarray(network.A)))))[::-1]
    found = rec.lyapunov(network, x)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    leading = rec.lyapunov(network, x, warmup=100, count=2)
    np.testing.assert_allclose(leading, wanted[:2], atol=1e-3)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    rotation = rec.LinearRNN(turn, network.B, network.C)
    np.testing.assert_allclose(rec.lyapunov(rotation, x[:50]), np.zeros(4), atol=1e-10)


def test_exponents_of_a_cell_that_is_not_linear():
    class Tanh(eqx.Module):
        W: jax.Array

        def __call__(self, x, hidden):
            return jnp.tanh(self.W @ hidden + x)

    W = 1.5 * np.asarray([[0.6, -0.3], [0.4, 0.5]])
    cell = rec.Unroll(Tanh(jnp.asarray(W)), initial=jnp.zeros(2))
    x = np.asarray(jax.random.normal(KEY, (30, 2)))
    hidden, log = np.zeros(2), 0.0
    for one in x:
        hidden = np.tanh(W @ hidden + one)
        log += np.linalg.slogdet(np.diag(1 - hidden**2) @ W)[1]
    # The exponents of finitely many steps add up to the log of the determinant.
    found = float(jnp.sum(rec.lyapunov(cell, x)))
    np.testing.assert_allclose(30 * found, log, rtol=1e-9)


@pytest.mark.slow
def test_the_loss_at_other_lengths():
    keys = sgf.seeds(0, 64)
    # h = w, 0, w, 0, ...: at length T the error is the sum of the inputs at even lags.
    network = rec.two_lag_interpolator(1.0)
    curve = rec.extrapolate(network, now, lengths=(9, 2, 3), trained=2, keys=keys, loss=SQUARED)
    np.testing.assert_array_equal(curve.lengths, [2, 3, 9])
    for length, loss, error in zip(curve.lengths, curve.loss, curve.error, strict=True):
        x = np.asarray(jax.vmap(lambda key, n=int(length): now(key, n)[0])(keys))[:, ::-1, 0]
        losses = 0.5 * np.sum(x[:, 2::2], axis=1) ** 2
        np.testing.assert_allclose(loss, losses.mean(), rtol=1e-9, atol=1e-25)
        np.testing.assert_allclose(error, losses.std(ddof=1) / 8, rtol=1e-9, atol=1e-25)
    assert curve.horizon() == 2
    assert "stays within 10 times that to length 2" in str(curve)
    assert curve.to_xarray()["loss"].dims == ("length",)
    growing = rec.Curve(np.asarray([4, 6, 8, 10]), np.asarray([9, 1, 5, 20.0]), np.ones(4), 6, 2)
    assert [growing.horizon(f) for f in (1.5, 10, 20)] == [6, 8, 10]
    lost = rec.Curve(np.asarray([6, 8]), np.asarray([1, np.nan]), np.ones(2), 6, 2)
    assert lost.horizon(100.0) == 6
    nothing = rec.Curve(np.asarray([6, 8]), np.asarray([np.nan, 1]), np.ones(2), 6, 2)
    assert nothing.horizon() == 0
    assert "the loss at that length is not finite" in str(nothing)
    infinite = rec.Curve(np.asarray([6, 8]), np.asarray([np.inf, np.inf]), np.ones(2), 6, 2)
    assert infinite.horizon() == infinite.horizon(level=1.0) == 0
    assert [growing.horizon(level=v) for v in (0.5, 1.0, 5.0, 30.0)] == [0, 6, 8, 10]


@pytest.mark.slow
def test_several_lengths_share_a_program():
    traced = []

    class Cell(eqx.Module):
        def __call__(self, x, hidden):
            traced.append(x.shape)
            return 0.5 * hidden + x

    network = rec.Unroll(Cell(), initial=jnp.zeros(1))

    def curve(*lengths, network=network):
        return rec.extrapolate(
            network, now, lengths=lengths, trained=64, keys=sgf.seeds(0, 300), loss=SQUARED
        )

    once = (curve(64), len(traced))[1]
    found = curve(17, 20, 33, 63, 64)
    assert len(traced) == once
    curve(5, 16, 64)
    assert len(traced) == 2 * once
    # A network of which no state is known is compiled for every length.
    plain = curve(17, 20, 33, 63, 64, network=lambda x: network(x))
    np.testing.assert_allclose(found.loss, plain.loss, rtol=1e-12)
    np.testing.assert_allclose(found.error, plain.error, rtol=1e-12)
    assert [padded_length(n, 60) for n in (60, 16, 15, 6, 4, 1)] == [60, 60, 15, 15, 4, 1]


@pytest.mark.slow
def test_prefixes_are_one_program():
    network = rec.LinearRNN.gaussian(KEY, state=3, scale=0.9, gain=1.0)
    every = rec.LinearRNN(network.A, network.B, network.C, outputs="all")

    def sums(key, length):
        x = jax.random.normal(key, (length, 1))
        return x, jnp.cumsum(x, axis=0)

    options = {"lengths": (2, 5, 7), "trained": 5, "keys": sgf.seeds(0, 300), "loss": SQUARED}
    curve = rec.extrapolate(every, sums, prefixes=True, **options)
    x, y = jax.vmap(lambda key: sums(key, 7))(options["keys"])
    losses = 0.5 * np.square(np.asarray(every.predict(x) - y))[..., 0].mean(axis=0)
    np.testing.assert_allclose(curve.loss, losses[[1, 4, 6]], rtol=1e-10)


def test_what_does_not_fit_is_refused(gru):
    keys = sgf.seeds(0, 4)
    linear = rec.two_lag_interpolator()

    def refused(words, call, *args, **options):
        with pytest.raises(ValueError, match=words):
            call(*args, **options)

    good = {"lengths": (2, 4), "trained": 2, "keys": keys}

    def curve(network=linear, task=now, **changed):
        return rec.extrapolate(network, task, **(good | changed))

    refused("`trained` must be one of the lengths, .* 3 is not among 2, 4", curve, trained=3)
    refused("`lengths` must be a whole number >= 1", curve, lengths=(0, 2))
    refused("`keys` must be two keys or more", curve, keys=keys[:1])
    refused("`task` must be a function", curve, task=None)
    refused("must return a pair", curve, task=lambda key, length: jnp.zeros((length, 1)))
    refused(
        r"the length that it is asked for, 2, but returns one of shape \(5, 1\)",
        curve,
        task=lambda key, length: (jnp.zeros((5, 1)), jnp.zeros(1)),
    )
    refused("the targets must have the shape", curve, task=lambda k, n: (now(k, n)[0], 0.0))
    refused("there must be an output and a target at every time", curve, prefixes=True)
    refused("`factor` must be at least 1", curve().horizon, 0.5)
    refused("`level` must be positive", curve().horizon, level=0.0)
    refused("LSTMCell is a pair .* give initial=", rec.Unroll, eqx.nn.LSTMCell(1, 2, key=KEY))
    refused("is unknown, as the cell has no `hidden_size`", rec.Unroll, lambda x, h: h)
    refused("`cell` must be a module that can be called", rec.Unroll, None)
    refused("`readout` must be a module", rec.Unroll, gru.cell, 3)
    refused("`outputs` must be", rec.Unroll, gru.cell, outputs="some")
    refused("must be a LinearRNN or an Unroll", rec.memory, eqx.nn.Identity(), jnp.ones((3, 1)))
    refused(r"`inputs` must be sequences \(n, T, i\)", rec.memory, gru, jnp.ones(3))
    refused("`long_input` must be one sequence", rec.lyapunov, gru, jnp.ones(3))
    refused(
        "`warmup` must be below the length of the sequence, 5",
        rec.lyapunov,
        gru,
        jnp.ones((5, 2)),
        warmup=5,
    )
    refused("`count` must be .* <= 3", rec.lyapunov, gru, jnp.ones((5, 2)), count=4)
