"""A user's function that was compiled is compiled again when what it reads has
changed.
"""

import functools
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias.core.stale import drop_stale_programs

PROBLEM = sgf.SparseRegression.sample(jax.random.key(0), n=4, d=6, sparsity=1)
NETWORK = sgf.DiagonalNetwork.init(alpha=0.3, d=6)
rate = 0.01
table = np.array([0.01])
places = {"rate": [0.01]}
module = types.ModuleType("module_of_test")
module.rate = 0.01


class Settings:
    rate = 0.01


class Holder:
    def __init__(self):
        self.rate = 0.01

    def schedule(self, k):
        return self.rate


class Schedule(eqx.Module):
    factor: float = 1.0

    def __call__(self, k):
        return self.factor * rate


holder = Holder()


def reads_global(k):
    return rate


def reads_array(k):
    return jnp.asarray(table)[0]


def reads_mapping(k):
    return places["rate"][0]


def reads_module(k):
    return module.rate


def reads_class(k):
    return Settings.rate


def reads_object(k):
    return holder.rate


def body(total, _):
    return total + rate, None


def scans(k):
    """JAX keeps the body of a scan by its identity, also for another function."""
    return jax.lax.scan(body, 0.0, None, length=1)[0]


@jax.jit
def jitted(k):
    return rate


@eqx.filter_jit
def filter_jitted(k):
    return rate


def calls(k, inner=reads_global):
    return inner(k)


def closing():
    value = 0.01

    def schedule(k):
        return value

    def change(new):
        nonlocal value
        value = new

    return schedule, change


CLOSED, change_closed = closing()


def change_global(new):
    global rate
    rate = new


CASES = {
    "a global": (reads_global, change_global),
    "an array, in place": (reads_array, lambda new: table.__setitem__(0, new)),
    "a mapping, in place": (reads_mapping, lambda new: places["rate"].__setitem__(0, new)),
    "a module": (reads_module, lambda new: setattr(module, "rate", new)),
    "a class": (reads_class, lambda new: setattr(Settings, "rate", new)),
    "an object": (reads_object, lambda new: setattr(holder, "rate", new)),
    "a bound method": (holder.schedule, lambda new: setattr(holder, "rate", new)),
    "a closure": (CLOSED, change_closed),
    "an Equinox module": (Schedule(), change_global),
    "a scan's body": (scans, change_global),
    "a jitted function": (jitted, change_global),
    "a filter_jitted function": (filter_jitted, change_global),
    "a function's default": (calls, change_global),
    "a partial": (functools.partial(calls, inner=reads_global), change_global),
}


FAST = ("a global", "a scan's body", "a jitted function", "a bound method")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in FAST else pytest.mark.slow) for c in CASES]
)
def test_a_schedule_is_what_it_reads_now(case):
    schedule, change = CASES[case]

    def run():
        runs = sgf.simulate(
            sgf.GradientDescent(schedule), NETWORK, PROBLEM, steps=4, record=sgf.Record(times=2)
        )
        return float(runs.times[-1]), float(runs.final["loss"])

    change(0.01)
    first = run()
    change(0.05)
    second = run()
    change(0.01)
    fresh = sgf.simulate(
        sgf.GradientDescent(0.05), NETWORK, PROBLEM, steps=4, record=sgf.Record(times=2)
    )
    assert first[0] == pytest.approx(0.04)
    assert second == pytest.approx((0.2, float(fresh.final["loss"])), rel=1e-12)
    assert run() == first


scale = 1.0


class Loss(sgf.AbstractLoss):
    def __call__(self, outputs, targets):
        return scale * (outputs - targets) ** 2


class Model(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return scale * jnp.dot(self.w, x)


class Noise(sgf.MeanLossNoise):
    def sqrt_covariance(self, derivatives, step_size, dB):
        return super().sqrt_covariance(scale * derivatives, step_size, dB)


def observed(network):
    return scale * jnp.sum(network.beta)


def simulated(**changes):
    parts = {
        "dynamics": sgf.GradientDescent(0.05),
        "network": NETWORK,
        "problem": PROBLEM,
        "keys": None,
        "steps": 3,
    } | changes
    return sgf.simulate(
        parts.pop("dynamics"), parts.pop("network"), parts.pop("problem"), **parts
    ).final


RUNS = {
    "loss": lambda: simulated(problem=sgf.Problem(PROBLEM.X, PROBLEM.y, loss=LOSS))["loss"],
    "model": lambda: simulated(
        network=MODEL, problem=sgf.Problem(PROBLEM.X, PROBLEM.y), steps=None, t1=2.0,
        dynamics=sgf.GradientFlow(),
    )["loss"],
    "noise": lambda: simulated(
        dynamics=sgf.StochasticGradientFlow(0.05, NOISE), keys=sgf.seeds(0, 2)
    )["loss"],
    "observable": lambda: simulated(record={"seen": observed})["seen"],
    "outcome": lambda: sgf.hypergradient(outcome, {"a": 2.0}, keys=sgf.seeds(0, 2)).value,
}  # fmt: skip
LOSS, MODEL, NOISE = Loss(), Model(jnp.ones(6)), Noise()


def outcome(hyper, key):
    return scale * hyper["a"] ** 2 + 0 * jax.random.normal(key)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k == "outcome" else pytest.mark.slow) for k in RUNS]
)
def test_other_functions_are_what_they_read_now(kind, monkeypatch):
    before = np.asarray(RUNS[kind]())
    monkeypatch.setitem(globals(), "scale", 2.0)
    changed = np.asarray(RUNS[kind]())
    monkeypatch.setitem(globals(), "scale", 1.0)
    assert not np.allclose(changed, before)
    np.testing.assert_array_equal(RUNS[kind](), before)


count = 0
unread = 1


def counted(network):
    count_up()
    return scale * jnp.sum(network.beta)


def count_up():
    globals()["count"] += 1


def test_nothing_is_compiled_again_if_nothing_that_is_read_has_changed(monkeypatch):
    run = functools.partial(simulated, record={"seen": counted})
    run()
    traced = count
    monkeypatch.setitem(globals(), "unread", 2)
    monkeypatch.setitem(globals(), "scale", 1.0)
    run()
    assert count == traced
    monkeypatch.setitem(globals(), "scale", 3.0)
    run()
    assert count > traced


def test_it_says_what_has_changed(monkeypatch, caplog):
    caplog.set_level("INFO", logger="sgfbias")
    drop_stale_programs(observed)  # another test may have left another value
    caplog.clear()
    drop_stale_programs(observed)
    assert not caplog.records
    monkeypatch.setitem(globals(), "scale", 4.0)
    drop_stale_programs(observed)
    assert "what observed reads has changed" in caplog.text


def test_a_traced_call_neither_drops_programs_nor_hides_a_change(monkeypatch, caplog):
    """The change is still seen by the next call that is not traced."""
    caplog.set_level("INFO", logger="sgfbias")
    drop_stale_programs(observed)  # another test may have left another value
    caplog.clear()
    monkeypatch.setitem(globals(), "scale", 5.0)
    jax.jit(lambda x: drop_stale_programs(observed, x))(jnp.ones(2))
    assert not caplog.records
    drop_stale_programs(observed, jnp.ones(2))
    assert "what observed reads has changed" in caplog.text
