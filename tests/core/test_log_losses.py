"""Losses in the log domain: against direct values where these exist, against their
limits where they underflow, and in runs whose loss is below what a float can hold.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf

MARGINS = jnp.asarray([-800.0, -3.0, 0.0, 2.0, 29.0, 31.0, 100.0, 600.0])
SIGNS = jnp.asarray([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
LABELS = jnp.asarray([0, 2, 1, 1])
LOGITS = jnp.asarray([[1.0, 0.5, -2.0], [0.0, 1.0, 4.0], [3.0, 6.0, 3.0], [0.0, 0.1, 0.2]])


class Linear(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return x @ self.w


@pytest.mark.parametrize("loss", [sgf.LogisticLoss(), sgf.ExponentialLoss()])
def test_two_classes_agree_with_direct_values(loss):
    outputs = SIGNS * MARGINS
    value, log = loss(outputs, SIGNS), loss.log(outputs, SIGNS)
    fits = np.isfinite(value) & (np.asarray(value) > 0)
    assert fits.sum() >= 7
    np.testing.assert_allclose(log[fits], np.log(value)[fits], rtol=1e-14)
    direct = loss.derivative(outputs, SIGNS) / value
    np.testing.assert_allclose(loss.log_derivative(outputs, SIGNS)[fits], direct[fits], rtol=1e-13)
    traced = jax.grad(lambda f: jnp.sum(loss.log(f, SIGNS)))(outputs)
    np.testing.assert_allclose(traced, loss.log_derivative(outputs, SIGNS), rtol=1e-13)


@pytest.mark.slow
def test_cross_entropy_agrees_with_direct_values():
    loss = sgf.SoftmaxCrossEntropyLoss()
    value = np.asarray(loss(LOGITS, LABELS))
    np.testing.assert_allclose(loss.log(LOGITS, LABELS), np.log(value), rtol=1e-12)
    np.testing.assert_allclose(
        loss.log_derivative(LOGITS, LABELS),
        np.asarray(loss.derivative(LOGITS, LABELS)) / value[:, None],
        rtol=1e-12,
    )
    traced = jax.grad(lambda f: jnp.sum(loss.log(f, LABELS)))(LOGITS)
    np.testing.assert_allclose(traced, loss.log_derivative(LOGITS, LABELS), rtol=1e-13, atol=1e-15)
    # Probabilities have the general form.
    soft = jax.nn.one_hot(LABELS, 3, dtype=LOGITS.dtype)
    np.testing.assert_allclose(loss.log(LOGITS[:2], soft[:2]), np.log(value[:2]), rtol=1e-12)


def test_forms_hold_where_the_loss_underflows():
    """At a margin of 1e5 the log of the loss is -1e5, and its derivative is -1."""
    far = jnp.asarray([1e5, -1e5])
    signs = jnp.asarray([1.0, -1.0])
    for loss in (sgf.LogisticLoss(), sgf.ExponentialLoss()):
        assert np.all(loss(far, signs) == 0)
        np.testing.assert_array_equal(loss.log(far, signs), [-1e5, -1e5])
        np.testing.assert_array_equal(loss.log_derivative(far, signs), [-1, 1])
    logits, labels = jnp.asarray([[1e5, 0.0, 0.0]]), jnp.asarray([0])
    loss = sgf.SoftmaxCrossEntropyLoss()
    np.testing.assert_allclose(loss.log(logits, labels), [np.log(2) - 1e5], rtol=1e-15)
    np.testing.assert_allclose(loss.log_derivative(logits, labels), [[-1, 0.5, 0.5]], rtol=1e-15)
    # Two margins, 1e5 and 1e5 + 1: -1e5 + log(1 + 1/e) - log 2.
    problem = sgf.Problem(jnp.asarray([[1e5], [1e5 + 1]]), jnp.ones(2), loss=sgf.ExponentialLoss())
    log_risk = problem.log_risk(Linear(jnp.ones(1)))
    np.testing.assert_allclose(log_risk, -1e5 + np.log((1 + np.exp(-1)) / 2), rtol=1e-15)
    assert np.all(np.isfinite(jax.grad(problem.log_risk)(Linear(jnp.ones(1))).w))


def test_any_loss_has_a_logarithm():
    """The default is the log of the value, and derivative over value."""

    def fourth(output, target):
        return (output - target) ** 4 + 1

    problem = sgf.Problem(jnp.ones((3, 1)), jnp.arange(3.0), loss=fourth)
    network = Linear(jnp.asarray([2.0]))
    np.testing.assert_allclose(problem.log_risk(network), jnp.log(problem.risk(network)))
    outputs = problem.outputs(network)
    wanted = jax.grad(lambda f: jnp.sum(problem.loss.log(f, problem.targets)))(outputs)
    np.testing.assert_allclose(
        problem.loss.log_derivative(outputs, problem.targets), wanted, rtol=1e-14
    )
    squared = sgf.Problem(jnp.ones((2, 1)), jnp.ones(2))
    assert squared.log_risk(Linear(jnp.ones(1))) == -jnp.inf


def test_the_exponential_loss_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="ExponentialLoss needs labels -1 and 1, or 0 and 1"):
        sgf.Problem(jnp.ones((2, 1)), jnp.asarray([0.5, 2.0]), loss=sgf.ExponentialLoss())
    problem = sgf.Problem(jnp.ones((2, 1)), jnp.ones((2, 2)), loss=sgf.ExponentialLoss())
    model = eqx.nn.Linear(1, 2, use_bias=False, key=jax.random.key(0))
    with pytest.raises(ValueError, match="ExponentialLoss needs one output per example"):
        sgf.simulate(sgf.GradientDescent(0.1), model, problem, steps=1)


def test_a_loss_that_underflows_is_told_by_its_logarithm():
    """Gradient descent starts at a margin of 1000, where exp(-1000) is 0.0."""
    problem = sgf.Problem(jnp.ones((1, 1)), jnp.asarray([1]), loss=sgf.ExponentialLoss())
    start = Linear(jnp.asarray([1000.0]))
    run = sgf.simulate(sgf.GradientDescent(0.1), start, problem, steps=2)
    assert float(run.final["loss"]) == 0
    assert "loss 10^-434.3 is at or below the tolerance" in run.reason()
    with pytest.raises(ValueError, match="below the smallest loss that float64 can hold"):
        sgf.simulate(sgf.GradientDescent(0.1), start, problem, steps=2, stop=1e-310)
