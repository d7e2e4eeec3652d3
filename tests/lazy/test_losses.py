"""The losses whose derivative is a power of the loss, against their definition, and the
condition on losses, which a loss of another family misses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import lazy

Z = jnp.concatenate([jnp.linspace(-4, 1.9, 60), jnp.linspace(2.1, 8, 40)])
ONES = jnp.ones(Z.size)


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.5, 0.8, 1.0])
def test_the_derivative_is_a_power_of_the_loss(power):
    loss = lazy.PowerLoss(power)
    value, slope = loss(Z, ONES), loss.derivative(Z, ONES)
    np.testing.assert_allclose(-slope, np.minimum(1, value**power), atol=1e-12)
    whole = jax.grad(lambda z: jnp.sum(loss(z, ONES)))(Z)
    np.testing.assert_allclose(slope, whole, atol=1e-12)
    # Both classes, and the closed forms.
    np.testing.assert_allclose(loss(-Z, -ONES), value, rtol=1e-12)
    np.testing.assert_allclose(loss.derivative(-Z, -ONES), -slope, rtol=1e-12)
    wanted = {0.5: np.maximum(1 - Z / 2, 0) ** 2, 1.0: np.exp(-Z)}.get(power)
    if wanted is not None:
        np.testing.assert_allclose(value[Z >= 0], wanted[Z >= 0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(value[Z < 0], 1 - Z[Z < 0], rtol=1e-12)
    # It falls to 0, and its derivative is smooth with the constant p.
    assert np.all(np.diff(value[jnp.argsort(Z)]) <= 0)
    rises = np.diff(np.asarray(slope)) / np.diff(np.asarray(Z))
    assert -1e-12 < rises.min() <= rises.max() <= loss.smoothness + 1e-9


def test_the_condition_of_the_paper():
    """`-l' >= min(a, b l^p)` with p = 1 for the logistic loss, and for no constants for
    the hinge-like loss below, whose derivative vanishes while it is positive.
    """
    logistic = sgf.LogisticLoss()
    value, slope = logistic(Z, ONES), -logistic.derivative(Z, ONES)
    assert np.all(slope >= np.minimum(0.5, value / (2 * np.log(2))) * (1 - 1e-12))
    np.testing.assert_allclose(slope, 1 - np.exp(-value), rtol=1e-10)
    # A loss that does not fall to 0 has a derivative below every power of it.
    stays = lambda z: 1 + jnp.logaddexp(0.0, -z)  # noqa: E731
    ratio = -jax.vmap(jax.grad(stays))(10 * Z) / stays(10 * Z)
    assert ratio.min() < 1e-10


def test_it_is_trained_with():
    problem = lazy.SeparatedSphere.sample(
        jax.random.key(0), n=6, d=5, separation=0.5, loss=lazy.PowerLoss(0.5)
    )
    network = lazy.DeepReLU.init(jax.random.key(1), 5, width=8, depth=1)
    run = sgf.simulate(sgf.GradientDescent(0.5), network, problem, steps=200, stop=0.05)
    assert run.statuses() == {"converged": 1}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lazy.PowerLoss(0.4), "`power` must be from 1/2 to 1, where .* but is 0.4"),
        (lambda: lazy.PowerLoss(2), "`power` must be from 1/2 to 1"),
        (
            lambda: sgf.Problem(jnp.eye(2), jnp.asarray([0.0, 1.0]), loss=lazy.PowerLoss()),
            "needs labels -1 and 1, but the targets take the values 0, 1",
        ),
        (
            lambda: lazy.PowerLoss().check(jax.ShapeDtypeStruct((2, 3), jnp.float64), jnp.ones(2)),
            "needs one output per example",
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
