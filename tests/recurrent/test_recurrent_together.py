"""Sequences that advance together are a map over sequences, without its transposes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sgfbias as sgf
from sgfbias import recurrent as rec
from sgfbias.recurrent.cell import Together

KEY = jax.random.key(0)
HIDDEN = 3


class Scaled(eqx.Module):
    """A cell with a scalar, a vector that meets a product, and a choice."""

    W: jax.Array
    a: jax.Array
    b: jax.Array
    scale: jax.Array
    kind: str = "tanh"

    def __call__(self, x, state):
        moved = self.W @ state + jnp.sum(x) * self.b
        moved = jnp.where(self.a @ state > 0, moved, self.scale * moved)
        return getattr(jnp, self.kind)(moved)


class Turned(eqx.Module):
    """A diagonal cell with complex numbers."""

    angle: jax.Array
    B: jax.Array

    def __call__(self, x, state):
        turn = jnp.exp(jax.lax.complex(jnp.log(0.9) + 0 * self.angle, self.angle))
        return turn * state + (self.B @ x).astype(state.dtype)


class Embedded(eqx.Module):
    """A cell of tokens, which are whole numbers."""

    rows: jax.Array
    W: jax.Array
    hidden_size: int = HIDDEN

    def __call__(self, token, state):
        return jnp.tanh(self.rows[token] + self.W @ state)


class Real(eqx.Module):
    def __call__(self, state):
        return jnp.concatenate([jnp.real(state), jnp.imag(state)])


def normal(k, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, k), shape)


def networks():
    gru = eqx.nn.GRUCell(2, HIDDEN, key=KEY)
    lstm = eqx.nn.LSTMCell(2, HIDDEN, key=KEY)
    read = eqx.nn.Linear(HIDDEN, 2, key=jax.random.key(1))
    zeros = jnp.zeros(HIDDEN)
    own = Scaled(normal(1, HIDDEN, HIDDEN), normal(2, HIDDEN), normal(3, HIDDEN), normal(4))
    turned = Turned(normal(5, HIDDEN), normal(6, HIDDEN, 2))
    return {
        "GRU": rec.Unroll(gru, read),
        "GRU at all times": rec.Unroll(gru, read, outputs="all"),
        "LSTM": rec.Unroll(lstm, read, initial=(zeros, zeros + 0.1)),
        "own": rec.Unroll(own, eqx.nn.Linear(HIDDEN, "scalar", key=KEY), initial=zeros + 0.2),
        "complex": rec.Unroll(turned, Real(), initial=jnp.zeros(HIDDEN, complex)),
        "linear": rec.LinearRNN(0.3 * normal(7, 4, 4), normal(8, 4, 2), normal(9, 1, 4)),
        "linear at all times": rec.LinearRNN(
            0.3 * normal(7, 4, 4), normal(8, 4, 2), normal(9, 1, 4), outputs="all"
        ),
    }


def mapped(network, x):
    return jax.vmap(network)(x)


@pytest.mark.parametrize("name", networks())
def test_outputs_and_derivatives_are_those_of_a_map(name):
    network, x = networks()[name], normal(10, 5, 7, 2)
    np.testing.assert_allclose(network.predict(x), mapped(network, x), rtol=1e-12, atol=1e-14)

    def slopes(outputs):
        return eqx.filter_grad(lambda n: jnp.sum(jnp.sin(outputs(n, x))))(network)

    found, wanted = slopes(lambda n, x: n.predict(x)), slopes(mapped)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert jnp.any(other != 0) or name in ("own", "LSTM", "complex")  # frozen starts
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


def test_tokens_are_whole_numbers():
    cell = Embedded(normal(1, 4, HIDDEN), normal(2, HIDDEN, HIDDEN))
    network = rec.Unroll(cell, eqx.nn.Linear(HIDDEN, 1, key=KEY))
    tokens = jax.random.randint(KEY, (6, 5), 0, 4)
    found = network.predict(tokens)
    assert (found.dtype, found.shape) == (jnp.float64, (6, 1))
    np.testing.assert_allclose(found, mapped(network, tokens), rtol=1e-12)


def test_a_step_of_a_gru_transposes_nothing():
    """A map over the first axis does, which is why sequences lie along the last."""
    network = networks()["GRU"]
    together = Together(network, 5)
    step = jax.make_jaxpr(together.advance)(jnp.zeros((HIDDEN, 5)), jnp.zeros((2, 5)))
    assert "transpose" not in str(step)
    first = jax.make_jaxpr(jax.vmap(network.advance))(jnp.zeros((5, HIDDEN)), jnp.zeros((5, 2)))
    assert "transpose" in str(first)


@pytest.mark.slow
def test_the_numbers_of_a_seed_do_not_depend_on_its_company():
    x = normal(1, 20, 4, 2)
    network = networks()["GRU"]
    problem = sgf.Problem(x, x[:, 0], loss=sgf.SquaredLoss(scale=0.5))

    def ends(keys):
        descent = sgf.StochasticGradientDescent(0.1, batch_size=4)
        return sgf.simulate(descent, network, problem, keys=keys, steps=30).final["loss"]

    keys = sgf.seeds(0, 9)
    every = ends(keys)
    assert len(set(np.asarray(every).tolist())) == 9
    for few in (slice(0, 1), slice(3, 5), slice(2, 7)):
        np.testing.assert_array_equal(ends(keys[few]), every[few])


@pytest.mark.slow
def test_a_gru_learns_to_repeat_by_adam_as_by_a_loop():
    """`simulate` beside optax and `jax.vmap`, step by step."""
    x = normal(1, 16, 4, 2)
    network, adam = networks()["GRU"], optax.adam(1e-2)
    problem = sgf.Problem(x, x[:, 0], loss=sgf.SquaredLoss(scale=0.5))
    found = sgf.simulate(sgf.OptaxDescent(adam, 1.0), network, problem, steps=25).final["loss"]
    weights, other = eqx.partition(network, eqx.is_inexact_array)

    def loss(weights):
        errors = jax.vmap(eqx.combine(weights, other))(x) - x[:, 0]
        return 0.5 * jnp.mean(jnp.sum(errors**2, axis=-1))

    state, slope = adam.init(weights), jax.jit(jax.grad(loss))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes precisions
        for _ in range(25):
            move, state = adam.update(slope(weights), state, weights)
            weights = optax.apply_updates(weights, move)
    np.testing.assert_allclose(found, loss(weights), rtol=1e-9)


@pytest.mark.parametrize("length", [1, 2, 5, 16, 17, 40])
def test_few_lags_and_many_are_the_powers_of_the_transition(length):
    network = networks()["linear"]
    wanted = [network.C @ np.linalg.matrix_power(network.A, j) @ network.B for j in range(length)]
    np.testing.assert_allclose(network.impulse_response(length), wanted, rtol=1e-11, atol=1e-15)
