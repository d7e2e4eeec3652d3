"""Steps controlled by what they gain, on plain models with and without kinks."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf


class Distance(eqx.Module):
    """Outputs `w - x`, of which the absolute value is the loss: kinks and no noise."""

    w: jax.Array

    def __call__(self, x):
        return self.w - x


def absolute(output, target):
    return jnp.sum(jnp.abs(output) * target)


def valley(a, b):
    """`L = a |w_1| + b |w_2|`: a valley along the axis of w_2."""
    return sgf.Problem(jnp.zeros((1, 2)), jnp.asarray([[a, b]]), loss=absolute)


START = Distance(jnp.asarray([0.31, 4.0]))


def test_a_step_is_kept_if_it_gains_its_share():
    """Steps of Euler on `F = -w^2/2` of width h gain `1 - h/2` of the slope's promise,
    so with share s those with `h <= 2 (1 - s)` are kept.
    """
    for share, width, wanted in ((0.5, 0.99, True), (0.5, 1.01, False), (0.9, 0.21, False)):
        control = sgf.GainController(lambda w: -jnp.sum(w**2) / 2, share=share, first=width)
        start, end = jnp.zeros(()), jnp.asarray(5.0)
        w = jnp.asarray([3.0])
        t1, state = control.init(None, start, end, w, None, None, None, 1)
        np.testing.assert_allclose(t1, width)
        kept = control.adapt_step_size(start, t1, w, w * (1 - width), None, None, 1, state)
        assert bool(kept[0]) == wanted
        np.testing.assert_allclose(kept[1], width if wanted else 0)
        np.testing.assert_allclose(kept[2] - kept[1], width * (1.15 if wanted else 0.5))
        np.testing.assert_allclose(kept[4].value, -4.5 * ((1 - width) ** 2 if wanted else 1))


def test_a_step_that_overflows_is_rejected():
    control = sgf.GainController(lambda w: -jnp.sum(w), first=1.0)
    w = jnp.ones(1)
    t1, state = control.init(None, jnp.zeros(()), jnp.ones(()), w, None, None, None, 1)
    found = control.adapt_step_size(jnp.zeros(()), t1, w, w * jnp.nan, None, None, 1, state)
    assert not bool(found[0])
    np.testing.assert_allclose(found[4].value, -1)


def test_a_clock_is_what_the_objective_reads():
    """`w' = 1/(2w)` has `F = w^2` as its clock; Euler's steps gain more than their
    width, and time goes on from what F reads.
    """
    control = sgf.GainController(lambda w: w**2, first=0.3, clock=True)
    solution = dfx.diffeqsolve(
        dfx.ODETerm(lambda t, w, args: 1 / (2 * w)),
        dfx.Euler(),
        jnp.asarray(1.0),
        jnp.asarray(9.0),
        None,
        jnp.asarray(1.0),
        stepsize_controller=control,
        saveat=dfx.SaveAt(ts=jnp.asarray([4.0, 9.0])),
    )
    # The last step gains a little more than its width, by convexity.
    assert 9 <= float(solution.ys[-1]) ** 2 < 9.05
    np.testing.assert_allclose(solution.ys[0], 2, rtol=0.02)


def test_gradient_flow_of_a_smooth_model_is_followed():
    """Narrow steps of Euler are the flow; the objective is minus the loss."""
    problem = sgf.Problem(jnp.eye(2), jnp.asarray([1.0, -2.0]))
    model = eqx.nn.Linear(2, "scalar", use_bias=False, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.weight, model, jnp.zeros((1, 2)))
    flow = sgf.GradientFlow(control=sgf.GainController(widest=0.01))
    run = sgf.simulate(flow, model, problem, t1=3.0)
    exact = np.array([1.0, -2.0]) * (1 - np.exp(-3.0 / 4))  # the loss is r^2 / 4
    np.testing.assert_allclose(run.networks.weight[0], exact, rtol=0.02)
    assert run.solver == "Euler"


def test_a_kink_is_followed():
    """The flow of `0.3 |w_1| + |w_2|` goes to `w_1 = 0` at t = 1.03 and along this
    kink, with w_2 falling at rate 1 all the time. Steps across it still gain most of
    what they promise.
    """
    flow = sgf.GradientFlow(control=sgf.GainController(first=0.01))
    run = sgf.simulate(flow, START, valley(0.3, 1.0), t1=3.0)
    np.testing.assert_allclose(run.networks.w[1], 1, rtol=1e-6)
    assert np.all(np.diff(np.asarray(run["loss"])) <= 1e-12)
    assert float(run.final["loss"]) < 1.2


def test_a_run_that_gains_nothing_gives_up():
    """Along the kink of `5 |w_1| + 0.5 |w_2|` a step gains a hundredth of what the
    slope promises, so that the steps across it shrink for ever.
    """
    flow = sgf.GradientFlow(control=sgf.GainController(first=0.01))
    run = sgf.simulate(flow, START, valley(5.0, 0.5), t1=6.0)
    assert run.statuses() == {"gave up": 1}


def test_an_objective_of_the_user_and_what_is_refused():
    problem = valley(5.0, 0.5)
    own = sgf.GainController(lambda network: -jnp.sum(jnp.abs(network.w)), first=0.01)
    run = sgf.simulate(sgf.GradientFlow(control=own), START, problem, t1=0.5)
    assert float(jnp.sum(jnp.abs(run.networks.w))) < float(jnp.sum(jnp.abs(START.w)))
    with pytest.raises(ValueError, match="`share` must be above 0 and below 1, but is 1"):
        sgf.GainController(share=1)
    with pytest.raises(ValueError, match="`shrink` must be above 0"):
        sgf.GainController(shrink=0)
    with pytest.raises(ValueError, match="`grow` must be at least 1"):
        sgf.GainController(grow=0.9)
    with pytest.raises(ValueError, match="`widest` must be positive"):
        sgf.GainController(widest=0)
    with pytest.raises(ValueError, match="`objective` must be a function of the network"):
        sgf.GainController(3.0)
    with pytest.raises(ValueError, match="has no objective"):
        sgf.GainController().value(START)
    with pytest.raises(ValueError, match=r"must be one number, but has shape \(2,\)"):
        sgf.GainController(lambda w: w).value(jnp.ones(2))
    with pytest.raises(ValueError, match="`control` must be a GainController"):
        sgf.GradientFlow(control=dfx.PIDController(rtol=1e-3, atol=1e-3))
    with pytest.raises(ValueError, match="leave `dt`, `rtol` and `atol` out"):
        sgf.GradientFlow(control=own, rtol=1e-3)
    with pytest.raises(ValueError, match="GainController does not control the error that the impl"):
        sgf.simulate(sgf.GradientFlow(control=own), START, problem, t1=0.5, solver=dfx.Kvaerno3())
    penalised = sgf.Problem(
        problem.inputs, problem.targets, loss=absolute, penalty=lambda net, step: jnp.sum(net.w)
    )
    with pytest.raises(ValueError, match="say what it is to raise"):
        sgf.simulate(sgf.GradientFlow(control=sgf.GainController()), START, penalised, t1=0.5)
