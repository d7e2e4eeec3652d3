"""A transformation of Optax that is made again is not compiled again, and one that
differs in anything is another one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, small_problem

import sgfbias as sgf
from sgfbias.core.optax_same import first_of_its_kind

PROBLEM = small_problem()
count = 0


def seen(net):
    count_up()
    return jnp.sum(net.beta)


def count_up():
    # A run compiles again if a variable changes that its observables read by name.
    globals()["count"] += 1


def run(transformation):
    record = sgf.Record(observables={"seen": seen}, times=2)
    return sgf.simulate(
        sgf.OptaxDescent(transformation, 1.0), network(0.3), PROBLEM, steps=5, record=record
    ).final["seen"]


def test_a_loop_that_makes_its_optimiser_compiles_once():
    first = run(optax.adam(1e-2))
    traced = count
    assert traced > 0
    np.testing.assert_array_equal(run(optax.adam(1e-2)), first)
    assert count == traced
    assert float(run(optax.adam(2e-2))) != float(first)
    assert count > traced


MADE = {
    "adam": lambda: optax.adam(1e-3),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 100))
    ),
    "line search": optax.lbfgs,
    "noise": lambda: optax.add_noise(0.1, 0.5, 0),
    "hyperparameters": lambda: optax.inject_hyperparams(optax.adam)(1e-3),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_in_the_same_way_is_one(name):
    assert first_of_its_kind(MADE[name]()) is first_of_its_kind(MADE[name]())


PAIRS = {
    "numbers": (lambda: optax.adam(1e-3), lambda: optax.adam(1.1e-3)),
    "types of numbers": (lambda: optax.sgd(1), lambda: optax.sgd(1.0)),
    "signs of zero": (lambda: optax.scale(0.0), lambda: optax.scale(-0.0)),
    "flags": (lambda: optax.adam(1e-3), lambda: optax.adam(1e-3, nesterov=True)),
    "kinds": (lambda: optax.adam(1e-3), lambda: optax.adamw(1e-3)),
    "length": (
        lambda: optax.chain(optax.scale(2.0)),
        lambda: optax.chain(optax.scale(2.0), optax.scale(2.0)),
    ),
    "schedules of the user": (
        lambda: optax.adam(lambda count: 0.1),
        lambda: optax.adam(lambda count: 0.1),
    ),
    "arrays": (lambda: optax.scale(jnp.ones(())), lambda: optax.scale(jnp.ones(()))),
    "functions of the user": (
        lambda: optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (g, s)),
        lambda: optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (g, s)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_is_not(name):
    one, other = PAIRS[name]
    a, b = one(), other()
    assert first_of_its_kind(a) is a or name in ("numbers", "flags", "kinds")
    assert first_of_its_kind(b) is not first_of_its_kind(a)


def test_functions_of_one_code_with_another_closure_differ():
    def schedule(rate):
        return optax.piecewise_constant_schedule(rate, {3: 0.5})

    one, other = (optax.sgd(schedule(rate)) for rate in (0.1, 0.2))
    assert first_of_its_kind(one) is not first_of_its_kind(other)
    halves = optax.sgd(optax.piecewise_constant_schedule(0.1, {4: 0.5}))
    assert first_of_its_kind(halves) is not first_of_its_kind(one)
    assert jax.tree.leaves(first_of_its_kind(one))
