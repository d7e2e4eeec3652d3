"""States that are complex, inputs that are whole numbers, float32, and what is refused
of stacks of networks.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import calls_at_once

import sgfbias as sgf
from sgfbias import recurrent as rec

KEY = jax.random.key(0)


class Diagonal(eqx.Module):
    """A diagonal state-space cell, `s <- a s + B x` with complex numbers a."""

    log_size: jax.Array
    angle: jax.Array
    B: jax.Array

    def __call__(self, x, state):
        a = jnp.exp(jax.lax.complex(self.log_size, self.angle))
        return a * state + (self.B @ x).astype(state.dtype)


class RealPart(eqx.Module):
    C: jax.Array

    def __call__(self, state):
        return self.C @ jnp.real(state)


def diagonal(dtype=jnp.float64):
    """A complex cell, and the linear network that it is."""
    size, angle = np.asarray([0.9, 0.5]), np.asarray([0.7, 2.0])
    B, C = np.asarray([[1.0], [0.5]]), np.asarray([[0.3, -0.8]])
    cell = Diagonal(*(jnp.asarray(v, dtype) for v in (np.log(size), angle, B)))
    network = rec.Unroll(cell, RealPart(jnp.asarray(C, dtype)), initial=jnp.zeros(2, complex))
    a, b = size * np.cos(angle), size * np.sin(angle)
    A = np.block([[np.diag(a), -np.diag(b)], [np.diag(b), np.diag(a)]])
    real = rec.LinearRNN(
        *(
            jnp.asarray(v, dtype)
            for v in (A, np.concatenate([B, 0 * B]), np.concatenate([C, 0 * C], axis=1))
        )
    )
    return network, real


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_complex_state_is_the_linear_network_of_its_parts(dtype):
    network, real = diagonal(dtype)
    x = jax.random.normal(KEY, (12, 1), dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 1e-12}
    np.testing.assert_allclose(network(x), real(x), **tolerance)
    for call in (rec.memory, rec.lyapunov):
        found, wanted = (jax.tree.leaves(call(n, x))[0] for n in (network, real))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, wanted, **tolerance)


def test_a_state_that_becomes_complex_is_refused():
    wrong = rec.Unroll(lambda x, s: jax.lax.complex(s, s), initial=jnp.zeros(2))
    with pytest.raises(ValueError, match="becomes complex, but begins real: give a complex"):
        wrong(jnp.ones((3, 1)))


def test_whole_numbers_are_read_as_numbers():
    """As tokens are: their state has the default precision, not that of the tokens."""
    cell = rec.Unroll(lambda x, s: jnp.tanh(0.5 * s + x.astype(s.dtype)), initial=jnp.zeros(2))
    tokens = jnp.asarray([[0, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(cell(tokens), cell(tokens.astype(float)))
    gru = rec.Unroll(eqx.nn.GRUCell(2, 3, key=KEY), initial=None)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_array_equal(gru(tokens), gru(tokens.astype(float)))


def test_float32_keeps_the_logs_of_late_lags():
    """One mode 0.9 over 100,000 lags; without care the sum of logs loses its third
    digit.
    """
    T = 100_000
    one = rec.LinearRNN(*(np.full((1, 1), v, np.float32) for v in (0.9, 1.0, 1.0)))
    log = np.log(np.float64(np.float32(0.9)))
    x = jnp.zeros((T, 1), jnp.float32)
    logs = rec.memory(one, x).log_gain
    assert logs.dtype == jnp.float32
    np.testing.assert_allclose(logs[-1], (T - 1) * log, rtol=3e-7)
    np.testing.assert_allclose(rec.lyapunov(one, x), [log], rtol=3e-7)


@pytest.mark.slow
def test_an_error_that_rounding_hides_has_its_slope():
    """In float32 the tail against a close teacher may round to 0, but must not lose the
    direction downhill.
    """

    def tail(a, dtype):
        teacher, student = (
            rec.LinearRNN(jnp.asarray([[v]], dtype), *2 * [jnp.ones((1, 1), dtype)])
            for v in (0.9, a)
        )
        return rec.tail(student, teacher, 0)

    for above in (3e-5, -3e-5):
        rough = jax.grad(lambda a: tail(a, jnp.float32))(jnp.float32(0.9 + above))
        exact = jax.grad(lambda a: tail(a, jnp.float64))(0.9 + above)
        np.testing.assert_allclose(rough, exact, rtol=0.1)


@pytest.mark.slow
def test_hankel_values_of_a_network_with_idle_states_have_derivatives():
    """A second mode without inputs has the value 0, and no effect on the first."""
    network = rec.LinearRNN(np.diag([0.5, 0.3]), [[1.0], [0.0]], [[2.0, 1.0]])
    values, slope = jax.jvp(
        lambda a: rec.hankel_values(eqx.tree_at(lambda n: n.A, network, jnp.diag(a))),
        (jnp.asarray([0.5, 0.3]),),
        (jnp.asarray([1.0, 1.0]),),
    )
    # 2 / (1 - a^2), whose derivative is 4 a / (1 - a^2)^2.
    np.testing.assert_allclose(values, [2 / 0.75, 0], atol=1e-7)
    np.testing.assert_allclose(slope, [2 / 0.75**2, 0], rtol=1e-10)
    wide = rec.LinearRNN.symmetric(KEY, state=20, scale=0.6, gain=0.5)
    assert jnp.all(
        jnp.isfinite(
            jax.jacfwd(lambda c: rec.hankel_values(eqx.tree_at(lambda n: n.A, wide, c * wide.A)))(
                1.0
            )
        )
    )


@pytest.mark.slow
def test_library_functions_are_mapped_and_compiled():
    """In float32 and float64, under jit and vmap, as one network after the other."""
    make = rec.LinearRNN.gaussian
    for dtype, tolerance in ((jnp.float64, 1e-10), (jnp.float32, 2e-4)):
        stack = jax.vmap(lambda k: make(k, state=3, scale=0.5, gain=1.0))(sgf.seeds(0, 2))
        stack = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), stack)
        x = jax.random.normal(KEY, (9, 1), dtype)
        for call in (
            lambda n, x=x: rec.memory(n, x).log_gain,
            lambda n, x=x: rec.lyapunov(n, x),
            lambda n: rec.hankel_values(n),
            lambda n: n.impulse_response(7),
            lambda n: n.log_impulse(5)[1],
            lambda n: rec.tail(n, 1.0, 4),
            lambda n, x=x: n.predict(x[None]),
        ):
            mapped = jax.jit(jax.vmap(call))(stack)
            assert mapped.dtype == dtype
            for k in range(2):
                alone = call(jax.tree.map(lambda leaf, k=k: leaf[k], stack))
                np.testing.assert_allclose(mapped[k], alone, rtol=tolerance, atol=tolerance)


def test_stacks_and_unlike_precisions():
    stack = jax.vmap(lambda k: rec.LinearRNN.gaussian(k, state=3, scale=0.5, gain=1.0))(
        sgf.seeds(0, 2)
    )
    x = jnp.ones((4, 1))
    for call in (
        lambda: rec.tail(stack, 1.0, 4),
        lambda: rec.conserved(stack),
        lambda: rec.hankel_values(stack),
        lambda: rec.spectrum(stack),
        lambda: stack.impulse_response(4),
        lambda: rec.memory(stack, x),
        lambda: rec.lyapunov(stack, x),
    ):
        with pytest.raises(ValueError, match=r"is a stack of networks, A has shape \(2, 3, 3\)"):
            call()
    mixed = rec.LinearRNN(np.eye(2, dtype=np.float32) / 2, np.ones((2, 1)), np.ones((1, 2)))
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed)} == {np.dtype(np.float64)}
    np.testing.assert_allclose(mixed.impulse_response(3)[:, 0, 0], [2, 1, 0.5])


def test_modes_that_decay_at_once_have_no_shares_and_late_ones_do():
    nilpotent = rec.LinearRNN([[0.0, 1.0], [0.0, 0.0]], [[1.0], [1.0]], [[1.0, 1.0]])
    assert np.isnan(rec.spectrum(nilpotent).shares).all()
    late = rec.LinearRNN(np.diag([0.5, 0.4]), [[1.0], [1.0]], [[1.0, 1.0]])
    np.testing.assert_allclose(rec.spectrum(late, 2000).shares, [1, 0], atol=1e-12)


def test_files_and_rules_that_do_not_fit(tmp_path):
    for name, content in (("mine.npy", b""), ("mine.txt", b"1")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="must be a .npz file with X and y, or a .csv file"):
            rec.read_sequences(tmp_path / name)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="is not a readable .npz file"):
        rec.read_sequences(tmp_path / "broken.npz")
    assert rec.Sequences(np.ones((5, 2)), np.ones(5)).targets.shape == (1, 5, 1)

    network = rec.LinearRNN.gaussian(KEY, state=2, scale=0.5, gain=1.0, inputs=2)
    with pytest.raises(ValueError, match="the state of a LinearRNN moves on: leave keep out"):
        rec.MixedLengths(2, keep=1)(network, jnp.ones((3, 4, 2)), jnp.ones((3, 1)), KEY)


def test_mapped_hankel_values_call_lapack_once_at_a_time():
    stack = jax.vmap(lambda k: rec.LinearRNN.gaussian(k, state=3, scale=0.5, gain=1.0))(
        sgf.seeds(0, 2)
    )
    assert calls_at_once(jax.vmap(rec.hankel_values), stack) == []
