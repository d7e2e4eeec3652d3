"""Flows with an inner state and a clock of their own, on a plain model.

The flow here is gradient flow by the clock `c = log(1 + t)`, which remembers the length
of its path. On `L = (w - y)^2 / 4` the weight is `y + (w0 - y) e^{-t/2}`.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias.core.dynamics import AbstractDeterministicFlow


class Slow(AbstractDeterministicFlow):
    rate: Any = 1.0
    dt: None = None
    rtol: float | None = eqx.field(static=True, default=None)
    atol: float | None = eqx.field(static=True, default=None)
    begin: float = eqx.field(static=True, default=0.0)
    budget: int = eqx.field(static=True, default=1000)

    @property
    def clock_name(self):
        return "log time"

    @property
    def most_steps(self):
        return self.budget

    def default_solver(self, dtype, size):
        return dfx.Tsit5()

    def memory(self, position):
        return {"path": jnp.zeros(()), "time": jnp.expm1(jnp.asarray(self.begin))}

    def begins(self, coordinates, network, problem):
        return self.begin * self.rate

    def observables(self, network, problem, memory):
        return {"path": memory["path"], "log_time": jnp.log(memory["time"]), "pair": jnp.ones(2)}

    def units(self):
        return {"path": "parameter"}

    def judge(self, status, final, end):
        return jnp.where(final["path"] > 10, int(sgf.Status.STALLED), status)

    def explain(self, status, final):
        return f"far: {final['path']:.1f}" if status == sgf.Status.STALLED else None

    def build(self, coordinates, problem, position, key, offset, solver):
        def move(t, y, args):
            (w, _), _ = y
            outputs, vjp = coordinates.base.linearise(w, problem.inputs)
            speed = self.rate * jnp.exp(t)
            slope = vjp(-problem.loss.derivative(outputs, problem.targets) / problem.n)
            step = jax.tree.map(lambda v: v * speed, slope)
            path = jnp.sum(jnp.abs(jax.tree.leaves(step)[0]))
            risk = jnp.mean(problem.loss(outputs, problem.targets))
            return (step, {"path": path, "time": speed}), risk * speed

        return dfx.ODETerm(move)


class Weight(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return self.w * x


PROBLEM = sgf.Problem(jnp.ones(1), jnp.ones(1))
START = Weight(jnp.asarray(3.0))


@pytest.fixture(scope="module")
def run():
    record = sgf.Record(times=jnp.asarray([0.0, 0.5, 1.0, 2.0]))
    return sgf.simulate(Slow(rate=jnp.asarray(1.0)), START, PROBLEM, t1=2.0, record=record)


def test_the_flow_moves_by_its_own_clock(run):
    np.testing.assert_allclose(run.times, [0, 0.5, 1, 2])
    t = np.expm1(np.asarray(run.times))
    np.testing.assert_allclose(run["loss"], np.exp(-t), rtol=1e-6)
    np.testing.assert_allclose(run["path"], 2 * (1 - np.exp(-t / 2)), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(run["log_time"][1:], np.log(t[1:]), rtol=1e-6)
    # The loss integral is that over flow time.
    np.testing.assert_allclose(run["loss_integral"], 1 - np.exp(-t), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(run.final["pair"], [1, 1])
    assert "pair" not in run.series
    assert run.statuses() == {"moving": 1}


def test_what_comes_back_names_the_clock(run):
    ds = run.to_xarray()
    assert ds["time"].attrs["units"] == "log time"
    assert ds["path"].attrs["units"] == "parameter"
    assert "time    log time 0 to 2" in repr(run)
    assert run.plot("path").axes[0].get_xlabel() == "log time"


@pytest.mark.slow
def test_the_dynamics_judge_and_explain():
    far = sgf.simulate(Slow(rate=jnp.asarray(1.0)), Weight(jnp.asarray(30.0)), PROBLEM, t1=3.0)
    assert far.statuses() == {"stalled high": 1}
    assert far.reason().startswith("far: 29")
    short = sgf.simulate(Slow(rate=jnp.asarray(1.0), budget=3), START, PROBLEM, t1=2.0)
    assert short.statuses() == {"gave up": 1}


@pytest.mark.slow
def test_a_run_that_begins_late_records_from_there():
    """From c = 1 on, `log_time` is the log of the whole flow time."""
    late = sgf.simulate(
        Slow(rate=jnp.asarray(1.0), begin=1.0), START, PROBLEM, t1=2.0, record=sgf.Record(times=9)
    )
    assert late.times.shape == (9,)
    assert (late.times[0], late.times[-1]) == (1, 2)
    np.testing.assert_allclose(late["log_time"], np.log(np.expm1(np.asarray(late.times))))
    with pytest.raises(ValueError, match="already has log time = 1 at its start, but t1=0.5"):
        sgf.simulate(Slow(rate=jnp.asarray(1.0), begin=1.0), START, PROBLEM, t1=0.5)
    with pytest.raises(ValueError, match="must lie within the run, 1 to 2, but go from 0.5"):
        record = sgf.Record(times=jnp.asarray([0.5, 2.0]))
        sgf.simulate(Slow(rate=jnp.asarray(1.0), begin=1.0), START, PROBLEM, t1=2.0, record=record)


@pytest.mark.slow
def test_the_clock_may_depend_on_what_is_differentiated():
    def end(w):
        flow = Slow(rate=w / w, begin=1.0)
        runs = sgf.simulate(flow, Weight(3 * w), PROBLEM, t1=2.0, adjoint=dfx.ForwardMode())
        return runs.networks.w

    # dw/dt = (1 - w)/2 from 3 at t = e - 1 to e^2 - 1.
    wanted = 3 * np.exp(-(np.exp(2) - np.exp(1)) / 2)
    np.testing.assert_allclose(jax.jacfwd(end)(jnp.asarray(1.0)), wanted, rtol=1e-5)


def test_names_of_the_dynamics_are_refused_for_other_observables():
    with pytest.raises(ValueError, match="'path' needs another name.*or the dynamics"):
        record = sgf.Record(observables={"path": lambda net: net.w})
        sgf.simulate(Slow(rate=jnp.asarray(1.0)), START, PROBLEM, t1=2.0, record=record)
    both = sgf.Record(observables={"path": None, "size": lambda net: jnp.abs(net.w)}, times=3)
    run = sgf.simulate(Slow(rate=jnp.asarray(1.0)), START, PROBLEM, t1=2.0, record=both)
    assert set(run.series) == {"loss", "loss_integral", "path", "size"}


def test_what_is_defined_in_flow_time_is_refused():
    """Integrals and penalties are in flow time, and would have another meaning here."""
    record = sgf.Record(integrals={"size": lambda net: jnp.abs(net.w)})
    with pytest.raises(ValueError, match="taken over flow time, but Slow runs by a clock of its"):
        sgf.simulate(Slow(rate=jnp.asarray(1.0)), START, PROBLEM, t1=2.0, record=record)
    ridge = sgf.Problem(jnp.ones(1), jnp.ones(1), penalty=lambda net, step: net.w**2)
    with pytest.raises(ValueError, match="`penalty` is for dynamics in flow time, but Slow runs"):
        sgf.simulate(Slow(rate=jnp.asarray(1.0)), START, ridge, t1=2.0)
