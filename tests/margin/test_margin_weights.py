"""Certificates, landings and gaps of runs that moved some arrays only, that gave up, or
that are asked for with numbers that do not fit.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffrax import Tsit5

import sgfbias as sgf
from sgfbias import margin

INPUTS = jax.random.normal(jax.random.key(1), (7, 4))
LABELS = jnp.where(INPUTS[:, 0] > 0, 1.0, -1.0)
PROBLEM = sgf.Problem(INPUTS, LABELS, loss=margin.ExponentialLoss())


class Scaled(eqx.Module):
    """`f(x) = a <w, x>` with a factor a, of degree 2 in both and of degree 1 in w."""

    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        return self.a * (self.w @ x)


@pytest.mark.parametrize("active", [0, -1, -0.0, float("nan")])
def test_no_constraint_is_active_without_a_width(active):
    with pytest.raises(ValueError, match="`active` must be positive, since constraints"):
        margin.certify(margin.Linear(jnp.eye(4)[0]), PROBLEM, active=active)


@pytest.mark.parametrize("geometry", ["l2", "linf"])
def test_the_least_margin_is_active_whatever_the_width(geometry):
    """The scale is that of the least margin, which is 1 there, and 1 + 1e-20 is 1."""
    found = margin.certify(margin.Linear(jnp.eye(4)[0]), PROBLEM, geometry=geometry, active=1e-20)
    assert found.support == 1
    assert found.multipliers[np.argmin(found.margins)] > 0


def test_a_run_with_frozen_arrays_is_looked_at_as_it_was_made():
    """Of `a <w, x>` with a frozen, the certificate is that of the linear model with the
    weights a w.
    """
    model = Scaled(jnp.asarray([3.0, 0.1, -0.2, 0.3]), jnp.asarray(2.0))
    trainable = Scaled(True, False)
    descent = margin.MarginDescent(margin.Identity(), 0.1)
    run = sgf.simulate(descent, model, PROBLEM, steps=3, trainable=trainable)
    for function in (margin.certify, margin.land):
        with pytest.raises(ValueError, match="the run moved 4 of 5 weights: give trainable= as in"):
            function(run)
    only = Scaled(False, True)
    with pytest.raises(ValueError, match="the run moved 4 weights, but trainable= names 1 of them"):
        margin.certify(run, trainable=only)
    found = margin.certify(run, trainable=trainable)
    linear = margin.certify(margin.Linear(2 * run.networks.w), PROBLEM)
    assert found.degree == 1
    np.testing.assert_allclose(found.margin, 2 * linear.margin, rtol=1e-12)
    np.testing.assert_allclose(found.stationarity, linear.stationarity, rtol=1e-9)
    landed = margin.land(run, trainable=trainable)
    best = margin.max_margin(INPUTS, LABELS)
    np.testing.assert_allclose(2 * landed.network.w, best.weights, rtol=1e-9)


def gave_up(t1, times, most_steps):
    """Gradient flow from weights that fit the data, with too few steps."""
    flow = margin.MarginFlow(most_steps=most_steps)
    start = margin.Linear(jnp.asarray([3.0, 0.1, -0.2, 0.3]) / 0.05)
    record = sgf.Record(dict.fromkeys(("nu", "gap_l2", "gap_linf", "gap_metric")), times)
    return sgf.simulate(flow, start, PROBLEM, t1=t1, record=record, solver=Tsit5())


@pytest.mark.slow
def test_which_reads_what_a_run_that_gave_up_has_reached():
    """Its ratio is that of a tenth of the last time that it reached to that time; and a
    run that reached too little is refused with the reason why it ended.
    """
    times = np.geomspace(10, 1e9, 66)
    run = gave_up(1e9, times, 600)
    assert run.statuses() == {"gave up": 1}
    reached = np.isfinite(np.asarray(run["nu"]))
    assert 0 < reached.sum() < times.size
    found = margin.which(run)
    gap = np.asarray(run["gap_l2"])[reached]
    np.testing.assert_allclose(found.gaps[0], gap[-1])
    np.testing.assert_allclose(found.ratios[0], gap[-10] / gap[-1])  # 8.1 times in a tenfold
    assert found.ratios[0] > 1
    words = "goes from nu = 10 to .*The run gave up at nu = 2.*ran out of its 60 steps"
    with pytest.raises(ValueError, match=words):
        margin.which(gave_up(1e9, times, 60))
