"""Which losses are smooth enough for the theory, and how many derivatives they have."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import lazy
from sgfbias import meanfield as mf
from sgfbias.core.loss import as_loss
from sgfbias.meanfield.outputs import check_outputs
from sgfbias.meanfield.smooth import has_corner

SIGNS = np.asarray([-1.0, 1.0])
MIXTURE = mf.GaussianMixture(2.0)
RULE = mf.MaskedDescent(0.1)


def corner(loss, readout=None, targets=SIGNS):
    return has_corner(as_loss(loss), readout, targets)


def door(r):
    return r**2 - 0.49


SMOOTH = {
    "logistic": (sgf.LogisticLoss(), None),
    "exponential": (sgf.ExponentialLoss(), None),
    "squared": (sgf.SquaredLoss(), None),
    "logistic of a door": (sgf.LogisticLoss(), door),
    "squared of a door": (sgf.SquaredLoss(), door),
    "squared of a large unit": (sgf.SquaredLoss(), lambda r: 1e4 * jnp.tanh(r)),
    "hinge that is smoothed": (lambda o, y: jax.nn.softplus(200 * (1 - y * o)) / 200, None),
    "Huber that is smoothed": (lambda o, y: jnp.sqrt(1e-4 + (o - y) ** 2), None),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_losses_are_smooth(name):
    assert not corner(*SMOOTH[name])


@pytest.mark.parametrize("single", [False, True])
def test_losses_of_several_outputs_are_smooth(single):
    data = mf.Mixture(1.0, np.eye(3))

    def cross_entropy(r, y):
        r = r.astype("float32") if single else r
        return jax.nn.logsumexp(r) - r[y]

    for loss in (sgf.SoftmaxCrossEntropyLoss(), as_loss(cross_entropy)):
        assert not check_outputs(loss, None, 3, data)


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0])
def test_squared_hinges_have_a_corner(margin):
    assert corner(sgf.SquaredHingeLoss(margin))
    assert corner(sgf.SquaredHingeLoss(margin), lambda r: 3 * r - 0.1)


def test_other_losses_with_a_corner():
    assert corner(lazy.PowerLoss(0.5))
    assert corner(lambda o, y: (o - y) ** 2 / 2 + 0.05 * o * jnp.abs(o))
    assert not corner(lambda o, y: (o - y) ** 2 / 2 + 0.05 * jnp.abs(o) ** 3)


KINKS = {
    "beside a square": (lambda o, y: (o - y) ** 2 / 2 + 0.1 * jnp.abs(o), None),
    "small": (lambda o, y: (o - y) ** 2 / 2 + 0.01 * jnp.abs(o - 0.5), None),
    "beside an exponential": (lambda o, y: jnp.exp(-y * o) + 0.1 * jnp.abs(o), None),
    "of a readout": (sgf.LogisticLoss(), lambda r: r + 0.1 * jnp.abs(r)),
    "of a unit": (sgf.SquaredLoss(), jax.nn.relu),
}


@pytest.mark.parametrize("name", KINKS)
def test_small_kinks_are_found(name):
    with pytest.raises(ValueError, match="the first derivative of .* jumps"):
        corner(*KINKS[name])


def solved(loss, readout=None):
    options = {"steps": 2, "keys": jax.random.key(0), "samples": 8}
    return mf.solve(MIXTURE, loss, RULE, readout=readout, **options).loss[-1]


class Hinge(sgf.AbstractLoss):
    """The squared hinge, with a margin that may be traced."""

    margin: jax.Array

    def __call__(self, outputs, targets):
        return jnp.square(jnp.maximum(self.margin - targets * outputs, 0)) / 2


@pytest.mark.slow
def test_derivatives_in_a_margin_are_refused():
    def final(margin):
        return solved(Hinge(margin))

    with pytest.raises(ValueError, match="the second derivative of this loss jumps"):
        jax.grad(final)(1.0)
    with pytest.raises(ValueError, match="the second derivative of this loss jumps"):
        jax.jit(jax.grad(final))(1.0)


class Power(sgf.AbstractLoss):
    """`|f - y|^p`."""

    power: jax.Array

    def __call__(self, outputs, targets):
        return jnp.abs(outputs - targets) ** self.power


@pytest.mark.parametrize("trace", [jax.grad, jax.jit, lambda f: jax.jit(jax.grad(f))])
def test_traced_losses_are_looked_at_as_what_they_may_be(trace):
    """A power of 1 has a kink, and a power of 4 has none."""
    found = []

    def look(power):
        found.append(has_corner(Power(power), None, SIGNS))
        return power

    trace(look)(4.0)
    assert found == [False]

    class Scaled(Power):
        def __call__(self, outputs, targets):
            return self.power * jnp.abs(outputs - targets)

    with pytest.raises(ValueError, match="the first derivative of Scaled jumps"):
        trace(lambda power: has_corner(Scaled(power), None, SIGNS) + power)(2.0)


class Stretch(eqx.Module):
    """The readout `a r`."""

    factor: jax.Array

    def __call__(self, r):
        return self.factor * r


@pytest.mark.parametrize("trace", [jax.grad, jax.jit])
def test_numbers_that_a_function_closes_over_are_refused(trace):
    words = "put the number into an AbstractLoss, or for a readout into an equinox.Module"
    with pytest.raises(ValueError, match=words):
        trace(lambda a: solved(lambda o, y: a * (o - y) ** 2))(0.5)
    with pytest.raises(ValueError, match=words):
        trace(lambda a: solved(sgf.LogisticLoss(), lambda r: a * r))(0.5)


class Weighted(sgf.AbstractLoss):
    """The logistic loss with a weight for each class, in a margin that is scaled."""

    weights: jax.Array
    sharpness: jax.Array

    def __call__(self, outputs, targets):
        weight = jnp.where(targets > 0, self.weights[1], self.weights[0])
        margin = self.sharpness.astype(outputs.dtype) * targets * outputs
        return weight.astype(outputs.dtype) * jax.nn.softplus(-margin)


@pytest.mark.slow
def test_derivatives_in_the_array_of_a_loss_are_those_of_differences():
    """Each number of the loss, in fixed samples, through curves, correlations and
    responses, with masks.
    """
    rule = mf.MaskedDescent(0.2, sgf.PersistentMask(0.4, persistence=4.0), ridge=0.1)

    def final(loss):
        curves = mf.solve(
            MIXTURE,
            loss,
            rule,
            steps=4,
            samples=100,
            keys=jax.random.key(2),
            start=mf.Start(variance=0.3),
            dtype="float64",
        )
        return curves.loss[-1] + jnp.sum(curves.correlation[-1, 2] + curves.response[-1, 0])

    def moved(gap):
        return final(Weighted(jnp.asarray([0.7, 1.4]) + gap[:2], 1.3 + gap[2]))

    gradient = jax.grad(final)(Weighted(jnp.asarray([0.7, 1.4]), jnp.asarray(1.3)))
    found = jnp.append(gradient.weights, gradient.sharpness)
    expected = [(moved(step) - moved(-step)) / 2e-6 for step in 1e-6 * jnp.eye(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert np.all(np.abs(found) > 0.01)


@pytest.mark.slow
def test_derivatives_in_numbers_of_a_readout():
    """The logistic loss of `a r`, by its chain rule against differences."""

    def final(a):
        return solved(sgf.LogisticLoss(), Stretch(a))

    at, step = jnp.asarray(0.8), 1e-3
    expected = (final(at + step) - final(at - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(final)(at), expected, rtol=1e-3)
