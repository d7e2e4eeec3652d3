"""Theory against numbers of an independent program and against finite systems, for
spectra, doors, spheres and responses; derivatives and batches of hyperparameters.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf

LOGISTIC = sgf.LogisticLoss()
KEYS = sgf.seeds(0, 8)


def mean_and_error(values):
    values = np.asarray(values)
    return values.mean(), values.std(ddof=1) / np.sqrt(values.size)


def near(values, listed, error, *, slack=0.0):
    """Whether a mean over keys is within four joint standard errors of a number."""
    mean, own = mean_and_error(values)
    assert abs(mean - listed) < 4 * np.hypot(own, error) + slack, (mean, own, listed)


def test_the_door_has_its_closed_form_error():
    data = mf.GaussianMixture(2.0, clusters=3)
    m, variance, width = jnp.asarray(0.6), jnp.asarray(0.4), 0.7
    found = data.test_error(m, variance, lambda r: r**2 - width**2)
    np.testing.assert_allclose(found, mf.door_error(m, variance, width), atol=2e-4)


@pytest.mark.slow
def test_a_covariance_of_two_levels():
    spectrum = [0.2] * 3 + [1.5] * 2
    data = mf.GaussianMixture(2.0, spectrum=spectrum, mean_energy=[0.5] * 3 + [1.75] * 2)
    rule = mf.MaskedDescent(0.1, sgf.PersistentMask(0.4, persistence=10.0), ridge=0.1)
    options = {"steps": 36, "keys": KEYS, "start": mf.Start(variance=0.05)}
    theory = mf.solve(data, LOGISTIC, rule, samples=3000, **options)
    runs = mf.simulate(data, LOGISTIC, rule, d=400, **options)
    for curves in (theory, runs):
        near(curves.overlap[:, -1], 1.081, 0.007)
        near(curves.correlation[:, -1, -1], 1.856, 0.022)
        near(curves.loss[:, -1], 0.309, 0.004)


@pytest.mark.slow
def test_one_bin_is_the_isotropic_form():
    """Two derivations: with the component along v in the examples, and by Stein."""
    one = mf.GaussianMixture(2.0, spectrum=0.5)
    other = mf.GaussianMixture(2.0, spectrum=[0.5, 0.5])
    rule = mf.MaskedDescent(0.1, sgf.PersistentMask(0.3, persistence=10.0), ridge=0.1)
    a, b = (mf.solve(x, LOGISTIC, rule, steps=20, keys=KEYS, replicas=2) for x in (one, other))
    for name in ("overlap", "loss", "distance", "test_error"):
        values = [np.asarray(getattr(c, name))[:, -1] for c in (a, b)]
        near(values[0], *mean_and_error(values[1]))


@pytest.mark.slow
def test_a_door_of_three_clusters():
    width = 0.7
    data = mf.GaussianMixture(2.0, spectrum=0.5, clusters=3)
    rule = mf.MaskedDescent(0.1, sgf.PersistentMask(0.5, persistence=10.0), ridge=0.1)
    options = {
        "steps": 40,
        "keys": KEYS,
        "start": mf.Start(0.3, 0.3),
        "readout": lambda r: r**2 - width**2,
    }
    theory = mf.solve(data, LOGISTIC, rule, samples=3000, **options)
    runs = mf.simulate(data, LOGISTIC, rule, d=400, **options)
    near(theory.overlap[:, -1], 0.750, 0.010)
    near(theory.correlation[:, -1, -1], 1.639, 0.02)
    near(runs.overlap[:, -1], *mean_and_error(theory.overlap[:, -1]))
    near(runs.test_error[:, -1], *mean_and_error(theory.test_error[:, -1]), slack=0.002)


@pytest.mark.slow
def test_a_perceptron_on_the_sphere():
    data, loss = mf.RandomLabels(3.0), sgf.SquaredHingeLoss()
    mask = sgf.PersistentMask(0.3, persistence=10.0)
    rule = mf.MaskedDescent(0.05, mask, sphere=True)
    options = {"steps": 40, "keys": KEYS, "start": mf.Start(variance=1.0), "replicas": 2}
    theory = mf.solve(data, loss, rule, samples=3000, **options)
    runs = mf.simulate(data, loss, rule, d=400, **options)
    for curves in (theory, runs):
        near(curves.distance[:, -1], 0.204, 0.005)
        near(curves.correlation[:, 40, 0], 0.612, 0.006)
        diagonal = np.diagonal(np.asarray(curves.correlation), axis1=1, axis2=2)
        np.testing.assert_allclose(diagonal, 1, atol=1e-5)
    assert np.all(np.asarray(theory.test_error) == 0.5)


@pytest.mark.slow
def test_the_response_is_that_of_finite_systems():
    data = mf.GaussianMixture(2.0, spectrum=0.5)
    rule = mf.MaskedDescent(0.2, sgf.PersistentMask(0.3, persistence=5.0), ridge=0.1)
    options = {"steps": 40, "start": mf.Start(variance=1.0)}
    theory = mf.solve(data, LOGISTIC, rule, keys=sgf.seeds(0, 4), **options)
    chi = mf.effective_temperature(theory, 15).response[:, -1]
    assert abs(float(np.mean(chi)) - 3.127) < 0.03
    runs = mf.simulate(data, LOGISTIC, rule, keys=sgf.seeds(0, 2), d=120, probes=2, **options)
    assert np.all(np.triu(np.asarray(runs.response)) == 0)
    own = mf.effective_temperature(runs, 15).response[:, -1]
    assert abs(float(np.mean(own)) - 3.127) < 0.25


def finite_response(rng, d):
    """chi(40, 15) of a finite system by NumPy: the trace over d of the derivative of w
    after 40 steps in a constant force from step 15 on, along the same masks.
    """
    eta, lam, b, q, delta, n = 0.2, 0.1, 0.3, 5.0, 0.5, 2 * d
    y = rng.choice([-1.0, 1.0], n)
    x = y[:, None] * np.ones(d) / d + np.sqrt(delta / d) * rng.normal(size=(n, d))
    w, moved, inside = rng.normal(size=d), np.zeros((d, d)), rng.random(n) < b
    for t in range(40):
        chance = 1 / (1 + np.exp(y * (x @ w)))
        if t >= 15:
            stiff = inside / b * chance * (1 - chance)
            moved = (1 - eta * lam) * moved - eta * x.T @ (stiff[:, None] * (x @ moved))
            moved += eta * np.eye(d)
        w = w - eta * (lam * w - x.T @ (inside / b * y * chance))
        u = rng.random(n)
        inside = np.where(inside, u >= (1 - b) / (b * q), u < 1 / q)
    return np.trace(moved) / d


@pytest.mark.slow
def test_the_response_of_finite_systems_is_the_listed_one():
    """By exact traces, whose scatter is that of a few systems."""
    found = [finite_response(np.random.default_rng(seed), 240) for seed in range(8)]
    mean, error = mean_and_error(found)
    assert error < 0.012
    assert abs(mean - 3.127) < 0.03


@pytest.mark.slow
def test_derivatives_are_those_of_differences():
    data = mf.GaussianMixture(2.0, spectrum=0.5)
    mask = sgf.PersistentMask(0.4, persistence=4.0)

    def final(numbers):
        eta, lam, m0, r0 = numbers
        rule = mf.MaskedDescent(eta, mask, ridge=lam)
        curves = mf.solve(
            data,
            LOGISTIC,
            rule,
            steps=8,
            samples=200,
            keys=jax.random.key(1),
            start=mf.Start(m0, r0),
            dtype="float64",
        )
        return curves.loss[-1] + curves.correlation[-1, 3]

    at = jnp.asarray([0.2, 0.1, 0.3, 0.2])
    gradient = jax.grad(final)(at)
    for k, step in enumerate(1e-6 * np.eye(4)):
        expected = (final(at + step) - final(at - step)) / 2e-6
        np.testing.assert_allclose(gradient[k], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_hyperparameters_can_be_mapped_over():
    data = mf.GaussianMixture(2.0, spectrum=0.5)

    def last(eta, q):
        rule = mf.MaskedDescent(eta, sgf.PersistentMask(0.4, persistence=q))
        curves = mf.solve(
            data, LOGISTIC, rule, steps=6, samples=200, keys=sgf.seeds(0, 2), dtype="float64"
        )
        return curves.overlap[:, -1]

    etas, qs = jnp.asarray([0.1, 0.2]), jnp.asarray([2.5, 6.0])
    together = eqx.filter_jit(jax.vmap(last))(etas, qs)
    alone = jnp.stack([last(eta, q) for eta, q in zip(etas, qs, strict=True)])
    np.testing.assert_allclose(together, alone, rtol=1e-9)


def test_a_step_size_that_is_too_large_is_said():
    data = mf.LinearTeacher(3.0)
    rule = mf.MaskedDescent(1e30)
    curves = mf.solve(
        data, sgf.SquaredLoss(0.5), rule, steps=12, samples=400, keys=jax.random.key(0)
    )
    assert int(curves.diverged_at) > 0
    assert "non-finite from step" in repr(curves)
