"""A linear teacher whose inputs have a covariance: against moments of sample
covariances, and against finite systems.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.kernels import Effective
from sgfbias.meanfield.solution import solve_drawn

SQUARE = sgf.SquaredLoss(0.5)
LEVELS = np.array([0.2, 0.2, 0.2, 1.5, 1.5])
ENERGIES = np.array([0.5, 0.5, 0.5, 2.0, 1.0])


def mean_and_error(values):
    values = np.asarray(values)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def near(values, listed, error):
    mean, own = mean_and_error(values)
    assert np.all(np.abs(mean - listed) < 4 * np.hypot(own, error)), (mean, own, listed)


def exact(data, rule, start, steps):
    """The curves of a quadratic loss without masks, from examples whose second moments
    are those of normal ones.
    """
    size, scale = steps + 2, np.sqrt(float(data.scale))
    points = np.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])
    along, white = points[:, 0], points[:, 1:].T[None]
    masks = np.ones((1, steps, 2 * size))
    arrays = (along / scale, scale * along, masks, white)
    effective = Effective(*(jnp.asarray(a, "float64") for a in arrays))
    return solve_drawn(data, SQUARE, rule, start, effective, None, steps)


@pytest.mark.slow
def test_the_first_steps_are_moments_of_sample_covariances():
    """From 0, `w_t = eta sum_{j<t} (1 - eta lam - eta S)^j S v` with S the sample
    covariance times alpha. The first three mean powers of S are polynomials of Sigma.
    """
    alpha, eta, lam = 2.0, 0.3, 0.2
    data = mf.LinearTeacher(alpha, spectrum=LEVELS, energy=ENERGIES)
    found = exact(data, mf.MaskedDescent(eta, ridge=lam), mf.Start(), 3)
    one, two = LEVELS.mean(), (LEVELS**2).mean()
    powers = [
        alpha * LEVELS,
        alpha**2 * LEVELS**2 + alpha * one * LEVELS,
        alpha**3 * LEVELS**3
        + alpha**2 * (2 * one * LEVELS**2 + two * LEVELS)
        + alpha * one**2 * LEVELS,
    ]
    a, b, c = (np.mean(p * ENERGIES) for p in powers)
    keep = 1 - eta * lam
    steps = [a, keep * a - eta * b, keep**2 * a - 2 * eta * keep * b + eta**2 * c]
    expected = eta * np.cumsum([0.0, *steps])
    np.testing.assert_allclose(found["overlap"], expected, atol=1e-12)
    # |w_1|^2 / d = eta^2 v . S^2 v / d.
    np.testing.assert_allclose(found["correlation"][1, 1], eta**2 * b, atol=1e-12)


@pytest.mark.slow
def test_a_covariance_without_direction_is_the_isotropic_form():
    """Two derivations: with h0 in the examples, and by Stein."""
    rule, start = mf.MaskedDescent(0.1, ridge=0.5), mf.Start(0.2, 0.3)
    split = exact(mf.LinearTeacher(3.0, spectrum=[1.0, 1.0]), rule, start, 14)
    plain = exact(mf.LinearTeacher(3.0), rule, start, 14)
    for name in ("overlap", "correlation", "response", "loss", "test_error"):
        np.testing.assert_allclose(split[name], plain[name], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("readout", [None, jnp.tanh])
def test_finite_systems_are_as_predicted(readout):
    """With masks that remember, replicas, a start along the teacher, and with a readout
    that makes the loss no quadratic.
    """
    data = mf.LinearTeacher(2.0, label_noise=0.3, spectrum=LEVELS, energy=ENERGIES)
    rule = mf.MaskedDescent(0.1, sgf.PersistentMask(0.4, persistence=10.0), ridge=0.1)
    options = {"steps": 20, "start": mf.Start(-0.3, 0.1), "replicas": 2, "readout": readout}
    theory = mf.solve(data, SQUARE, rule, samples=3000, keys=sgf.seeds(0, 6), **options)
    runs = mf.simulate(data, SQUARE, rule, d=400, keys=sgf.seeds(0, 12), **options)
    for t in (7, 20):
        for name in ("overlap", "loss", "test_error", "distance"):
            near(getattr(runs, name)[:, t], *mean_and_error(getattr(theory, name)[:, t]))
        for u in (0, 7, t):
            near(runs.correlation[:, t, u], *mean_and_error(theory.correlation[:, t, u]))
    # An isotropic covariance of the same trace, with the same variance of h0, learns at
    # another speed.
    level = LEVELS.mean()
    other = mf.LinearTeacher(2.0, label_noise=0.3, spectrum=level, energy=data.scale / level)
    control = mf.solve(other, SQUARE, rule, samples=3000, keys=sgf.seeds(0, 6), **options)
    mean, error = mean_and_error(runs.loss[:, 3])
    value, own = mean_and_error(control.loss[:, 3])
    assert abs(mean - value) > 8 * np.hypot(error, own)
