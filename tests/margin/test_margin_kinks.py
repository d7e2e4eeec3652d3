"""Models with kinks: how they are recognised, and steps that do not slide along
them.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import margin

KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (8, 4))
LABELS = jnp.where(INPUTS[:, 0] * INPUTS[:, 1] > 0, 1.0, -1.0)


def mlp(activation, depth=1):
    return eqx.nn.MLP(
        4, "scalar", 6, depth, use_bias=False, use_final_bias=False, activation=activation, key=KEY
    )


class Pooled(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return jnp.max(self.w @ x)


@pytest.mark.parametrize(
    ("model", "kinks"),
    [
        (mlp(jax.nn.relu), True),
        (mlp(jax.nn.leaky_relu, 2), True),
        (Pooled(jax.random.normal(KEY, (3, 4))), True),
        (mlp(lambda z: jax.nn.relu(z) ** 2), False),
        (margin.Linear(jnp.ones(4)), False),
        pytest.param(mlp(jnp.abs), True, marks=pytest.mark.slow),
        pytest.param(mlp(jax.nn.relu, 3), True, marks=pytest.mark.slow),
        pytest.param(mlp(lambda z: jax.nn.relu(z) ** 1.5), False, marks=pytest.mark.slow),
        pytest.param(mlp(lambda z: z), False, marks=pytest.mark.slow),
    ],
)
def test_kinks_are_recognised(model, kinks):
    found = margin.homogeneity(model, INPUTS)
    assert found.kinks == kinks
    assert ("with kinks" in repr(found)) == kinks


def problem():
    return sgf.Problem(INPUTS, LABELS, loss=margin.ExponentialLoss())


@pytest.mark.slow
def test_a_relu_network_is_followed_by_its_own_clock():
    """Where the solver that controls its error falls behind, nu is the clock."""
    model = mlp(jax.nn.relu)
    run = sgf.simulate(margin.MarginFlow(), model, problem(), t1=500.0)
    assert run.dynamics.kinks
    assert run.solver == "KinkEuler"
    assert run.statuses() == {"moving": 1}
    np.testing.assert_allclose(run.final["nu"], 500, atol=0.11)  # the widest step
    assert np.all(np.abs(np.asarray(run["nu"]) - np.asarray(run.times)) < 0.11)
    late = np.asarray(run.times) > 5
    margins = np.asarray(run["margin_l2"])[late]
    assert margins[-1] > margins[0]
    assert run.final["mean_gradient"].shape == (30,)
    found = margin.certify(run)
    np.testing.assert_allclose(found.alignment_gap, run.final["gap_l2"], rtol=1e-9)
    # log t = nu + log n - log N up to log 2.
    assert abs(float(run.final["log_time"]) - 500) < 10
    landed = margin.land(run)
    assert landed.certificate.margin >= float(run.final["margin_l2"]) * (1 - 1e-9)


@pytest.mark.slow
def test_on_smooth_models_the_steps_follow_the_flow():
    """On a linear model the steps for kinks end where the flow ends; AdaGrad's limit on
    one example is a closed form, which Euler's method has up to its order.
    """
    x = np.array([0.8, 0.3])
    one = sgf.Problem(jnp.asarray(x)[None], jnp.ones(1), loss=margin.ExponentialLoss())
    flow = margin.MarginFlow(margin.AdaGrad(1e-3), kinks=True)
    run = sgf.simulate(flow, margin.Linear(jnp.zeros(2)), one, t1=100.0)
    limit = margin.adagrad_limit(x, np.zeros(2), eps=1e-3)
    h = np.asarray(run.final["conditioner"])
    np.testing.assert_allclose(h, limit.conditioner, rtol=0.1)
    labels = jnp.where(INPUTS[:, 0] > 0, 1.0, -1.0)
    linear = sgf.Problem(INPUTS, labels, loss=sgf.LogisticLoss())
    run = sgf.simulate(
        margin.MarginFlow(margin.RMSProp(0.9, 1e-3), kinks=True), margin.Linear(jnp.zeros(4)),
        linear, t1=1e3,
    )  # fmt: skip
    best = margin.max_margin(INPUTS, labels).weights
    w = np.asarray(run.networks.w)
    assert np.linalg.norm(w / np.linalg.norm(w) - best / np.linalg.norm(best)) < 0.02
    np.testing.assert_allclose(run.final["loss_time_speed"], 1, rtol=0.1)


def test_what_the_option_refuses():
    with pytest.raises(ValueError, match="`kinks` must be True, False or None, but is 2"):
        margin.MarginFlow(kinks=2)
