"""Schedules are checked over the whole run, and a NaN is not blamed on the step
size.
"""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sgfbias as sgf

PROBLEM = sgf.SparseRegression.sample(jax.random.key(0), n=4, d=6, sparsity=1)
NETWORK = sgf.DiagonalNetwork.init(alpha=0.3, d=6)
KEYS = sgf.seeds(0, 2)


def run(dynamics, steps=40, **options):
    options = {"keys": KEYS if dynamics.is_stochastic else None} | options
    return sgf.simulate(
        dynamics, NETWORK, PROBLEM, steps=steps, record=sgf.Record(times=3), **options
    )


def falls(k):
    """0.05 less 0.02 per iteration: negative from iteration 3 on."""
    return 0.05 - 0.02 * k


def late(value):
    return lambda k: jnp.where(k == 17, value, 0.05)


CASES = {
    "negative": (lambda: sgf.StochasticGradientFlow(falls), "step_size", 3, "-0.0"),
    "negative, discrete": (lambda: sgf.GradientDescent(falls), "step_size", 3, "-0.0"),
    "NaN in the midst": (lambda: sgf.GradientDescent(late(jnp.nan)), "step_size", 17, "nan"),
    "infinite": (lambda: sgf.StochasticGradientDescent(late(jnp.inf)), "step_size", 17, "inf"),
    "several steps an iteration": (
        lambda: sgf.StochasticGradientFlow(falls, per_iteration=4), "step_size", 3, "-0.0",
    ),
    "label noise": (
        lambda: sgf.StochasticGradientDescent(0.05, label_noise=falls), "noise", 3, "-0.0",
    ),
    "the flow's label noise": (
        lambda: sgf.StochasticGradientFlow(0.05, sgf.LabelNoise(late(jnp.nan))),
        "noise.delta", 17, "nan",
    ),
    "an Optax schedule": (
        lambda: sgf.GradientDescent(optax.linear_schedule(0.05, -0.05, 10)), "step_size", 6, "-0.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_value_anywhere_in_the_run_is_refused(case):
    make, name, iteration, value = CASES[case]
    with pytest.raises(
        ValueError,
        match=rf"`{re.escape(name)}` as a schedule .*at iteration {iteration} it is {value}",
    ):
        run(make())


def test_what_comes_after_the_run_does_not_count():
    runs = run(sgf.GradientDescent(lambda k: jnp.where(k < 40, 0.05, -1.0)))
    assert float(runs.times[-1]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="at iteration 40 it is -1"):
        run(sgf.GradientDescent(lambda k: jnp.where(k < 40, 0.05, -1.0)), steps=41)


def test_zero_is_a_value():
    runs = run(sgf.GradientDescent(lambda k: jnp.where(k < 20, 0.05, 0.0)))
    assert float(runs.times[-1]) == pytest.approx(1.0)


def test_times_increase_with_every_schedule_that_is_taken():
    times = run(sgf.StochasticGradientFlow(optax.cosine_decay_schedule(0.05, 40))).times
    assert (np.diff(times) > 0).all()


class Model(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return self.w @ x


def test_a_nan_at_the_start_is_not_blamed_on_the_step_size():
    problem = sgf.Problem(np.eye(3), np.ones(3))
    lost = sgf.simulate(sgf.GradientDescent(0.1), Model(jnp.full(3, jnp.nan)), problem, steps=5)
    assert "at the start, before the first step" in lost.reason()
    assert "step size" not in lost.reason()
    grown = sgf.simulate(sgf.GradientDescent(100.0), Model(jnp.zeros(3)), problem, steps=500)
    assert re.search(r"infinite by flow time \d+; the step size is too large", grown.reason())
