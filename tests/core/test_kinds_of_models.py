"""Models of other precisions, with typed keys inside, and with layers that couple
examples: they work, or are refused before the run in our words.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf

INPUTS = np.random.default_rng(0).normal(size=(10, 5))


class Computes(eqx.Module):
    """A linear model that computes in a precision of its own."""

    w: jax.Array
    dtype: str = eqx.field(static=True)

    def __call__(self, x):
        return jnp.dot(self.w.astype(self.dtype), x.astype(self.dtype))


def run(model, dtype="float32", dynamics=None, **options):
    problem = sgf.Problem(INPUTS.astype(dtype), INPUTS[:, 0].astype(dtype))
    dynamics = sgf.GradientDescent(0.05) if dynamics is None else dynamics
    return sgf.simulate(dynamics, model, problem, **({"steps": 30} | options))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_outputs_of_another_precision_are_cast(dtype):
    """The run is that of the problem's precision, up to the rounding of the model's."""
    runs = run(Computes(jnp.ones(5), dtype))
    assert runs["loss"].dtype == jnp.float32
    exact = run(Computes(jnp.ones(5), "float32"))["loss"]
    np.testing.assert_allclose(runs["loss"], exact, rtol=0.1, atol=1e-3)


def test_a_flow_of_a_model_in_bfloat16_runs():
    flow = sgf.StochasticGradientFlow(0.05, sgf.MinibatchNoise(2))
    runs = run(Computes(jnp.ones(5), "bfloat16"), dynamics=flow, keys=sgf.seeds(0, 3))
    assert np.isfinite(runs["loss"]).all()


class Masked(eqx.Module):
    """Random features: a fixed mask drawn from a key that the model keeps."""

    linear: eqx.nn.Linear
    key: jax.Array

    def __call__(self, x):
        return self.linear(jnp.where(jax.random.bernoulli(self.key, 0.5, x.shape), x, 0))


def masked(key):
    return Masked(eqx.nn.Linear(5, "scalar", key=jax.random.key(1)), key)


def test_a_typed_key_in_a_model_is_as_good_as_an_old_one():
    new, old = jax.random.key(3), jax.random.PRNGKey(3)
    runs, others = run(masked(new), "float64"), run(masked(old), "float64")
    np.testing.assert_array_equal(runs["loss"], others["loss"])
    assert runs.networks.key.dtype == new.dtype
    np.testing.assert_array_equal(jax.random.key_data(runs.networks.key), jax.random.key_data(new))


@pytest.mark.slow
def test_every_seed_keeps_its_typed_key():
    flow = sgf.StochasticGradientFlow(0.05)
    runs = run(masked(jax.random.key(3)), "float64", flow, keys=sgf.seeds(0, 3))
    assert runs.networks.key.shape == (3,)
    drawn = run(sgf.Drawn(masked), "float64", flow, keys=sgf.seeds(0, 3))
    words = jax.random.key_data(drawn.networks.key)
    assert len({tuple(row) for row in np.asarray(words).tolist()}) == 3


class Normed(eqx.Module):
    norm: eqx.nn.BatchNorm
    state: eqx.nn.State
    out: eqx.nn.Linear

    def __call__(self, x):
        return self.out(self.norm(x, self.state)[0])


def test_batch_norm_in_training_is_refused_and_in_inference_taken():
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(5, axis_name="batch", mode="batch")
    model = Normed(norm, state, eqx.nn.Linear(5, "scalar", key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"couples the examples.*inference_mode.*LayerNorm"):
        run(model)


class Raises(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        raise KeyError("a layer of that name")


def test_whatever_a_model_raises_is_told_before_the_run():
    with pytest.raises(ValueError, match=r"Raises cannot be evaluated on one example of shape"):
        run(Raises(jnp.ones(5)))


def test_numbers_that_the_precision_cannot_hold_are_refused():
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=r"float32 cannot hold, such as 1e\+300.*enable_x64"):
            sgf.Problem(np.array([[1e300], [1.0]]), np.ones(2))
        with pytest.raises(ValueError, match=r"int32 cannot hold, such as 1099511627776"):
            sgf.Problem(np.ones((2, 1)), np.array([2**40, 1]))
        assert sgf.Problem(INPUTS, INPUTS[:, 0]).dtype == jnp.float32


@pytest.mark.parametrize("kind", [">f8", "longdouble", object, "list", "float16 list"])
def test_arrays_of_other_kinds_are_converted(kind):
    numbers = [[1.0, 2.0], [3.0, 4.5]]
    given = numbers if "list" in str(kind) else np.array(numbers, dtype=kind)
    problem = sgf.Problem(given, np.ones(2))
    assert problem.dtype == jnp.float64
    np.testing.assert_array_equal(problem.inputs, numbers)
