"""Several outputs: against closed forms, against the theory of one output, against
numbers of an independent program, and against finite systems.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.error import wrong_classes
from sgfbias.meanfield.kernels import Effective
from sgfbias.meanfield.solution import draw_effective, solve_drawn

LOGISTIC = sgf.LogisticLoss()
SOFTMAX = sgf.SoftmaxCrossEntropyLoss()
TRIANGLE = [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]
COUPLING = np.array([[0.8, 0.3], [0.3, 0.5]])
TEACHER = np.array([[1.0, 0.4], [-0.2, 0.7]])
BEGIN = np.array([[0.2, -0.1], [0.3, 0.5]])


def mean_and_error(values):
    values = np.asarray(values)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def near(values, listed, error):
    """Whether means over keys are within four joint standard errors of numbers."""
    mean, own = mean_and_error(values)
    gap = np.abs(mean - listed) / np.hypot(own, error)
    assert np.all(gap < 4), (mean, own, listed)


def diagonal(values):
    return np.diagonal(np.asarray(values), axis1=-2, axis2=-1)


def with_zero(r):
    """Three logits, the last of which is 0."""
    return jnp.append(r, jnp.zeros((), r.dtype))


def quadratic(r, y):
    gap = r - y
    return gap @ jnp.asarray(COUPLING, r.dtype) @ gap / 2


def cubature(steps):
    """Effective examples of two outputs and two directions, whose means and second
    moments are those of normal ones.
    """
    size = 2 + 2 * (steps + 1)
    points = np.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])
    along = points[:, :2]
    white = points[:, 2:].T.reshape(1, steps + 1, 2, 2 * size)
    masks = np.ones((1, steps, 2 * size))
    arrays = along, along @ TEACHER.T, masks, white
    return Effective(*(jnp.asarray(a, "float64") for a in arrays))


@functools.cache
def ridge_regression(steps):
    """Descent of a quadratic loss that couples two outputs, from an overlap."""
    loss = sgf.core.loss.as_loss(quadratic)
    data, rule = mf.Mixture(3.0, TRIANGLE), mf.MaskedDescent(0.1, ridge=0.5)
    return solve_drawn(data, loss, rule, mf.Start(BEGIN), cubature(steps), None, steps)


@pytest.mark.slow
def test_coupled_ridge_regression_is_exact():
    """In the eigenbasis of the coupling each output is a ridge regression of its own,
    which is an integral over the Marchenko-Pastur law.
    """
    steps, eta, lam = 18, 0.1, 0.5
    found = ridge_regression(steps)
    theta = np.arange(1, 2001) * np.pi / 2001
    x = 4 + 2 * np.sqrt(3) * np.cos(theta)
    w = 6 / 2001 * np.sin(theta) ** 2 / x
    beta, basis = np.linalg.eigh(COUPLING)
    k = beta[:, None] * x + lam
    t = np.arange(steps + 1)[:, None, None]
    shrink = (1 - eta * k) ** t
    phi = np.einsum("tix,im->timx", shrink, basis.T @ BEGIN)
    phi += np.einsum("tix,im->timx", beta[:, None] * x / k * (1 - shrink), basis.T @ TEACHER)
    phi = np.einsum("ai,timx->tamx", basis, phi)
    np.testing.assert_allclose(found["overlap"], phi @ w, atol=1e-12)
    correlation = np.einsum("tamx,ucmx,x->tuac", phi, phi, w)
    np.testing.assert_allclose(found["correlation"], correlation, atol=1e-12)
    decay = np.einsum("ai,tix,x,ci->tac", basis, shrink, w, basis)
    for lag in (1, 2, 7, steps):
        np.testing.assert_allclose(
            found["response"][steps, steps - lag], decay[lag - 1], atol=1e-12
        )


@pytest.mark.slow
def test_one_output_of_many_is_the_theory_of_one_output():
    """The same effective examples give the same curves, with replicas and masks."""
    steps = 20
    rule = mf.MaskedDescent(0.2, sgf.PersistentMask(0.4, persistence=5.0), ridge=0.1)
    start, one = mf.Start(0.2, 0.3), mf.GaussianMixture(2.0, spectrum=0.5)
    with jax.enable_x64(True):
        effective = draw_effective(one, rule, jax.random.key(0), steps, 300, 2, jnp.float64)
        expected = solve_drawn(one, LOGISTIC, rule, start, effective, None, steps)
        wide = effective._replace(drift=effective.drift[:, None], white=effective.white[:, :, None])
        many = mf.Mixture(2.0, [[-1.0], [1.0]], spectrum=0.5)
        loss = sgf.core.loss.as_loss(lambda r, y: jnp.logaddexp(0.0, -y * r[0]))
        begin = mf.Start([[0.2]], 0.3)
        found = solve_drawn(many, loss, rule, begin, wide, None, steps)
    for name in ("overlap", "correlation", "response", "loss", "distance"):
        shape = expected[name].shape
        np.testing.assert_allclose(found[name].reshape(shape), expected[name], atol=1e-11)


@pytest.mark.slow
def test_outputs_whose_losses_add_up_are_those_of_models_apart():
    """And those of a loss that couples them are not."""
    rule = mf.MaskedDescent(0.2, sgf.PersistentMask(0.4, persistence=5.0), ridge=0.1)
    options = {"steps": 12, "samples": 2000, "keys": sgf.seeds(0, 6)}

    def logistic(r, y):
        return jnp.logaddexp(jnp.zeros((), r.dtype), -(2 * y.astype(r.dtype) - 1) * r)

    def square(r, y):
        return jnp.square(2 * y.astype(r.dtype) - 1 - r) / 8

    apart, coupled = (
        mf.solve(
            mf.Mixture(2.0, [[-1.0], [1.0]], spectrum=0.5),
            loss,
            rule,
            outputs=2,
            start=mf.Start([[0.1], [0.3]], [[0.2, 0.0], [0.0, 0.4]]),
            **options,
        )
        for loss in (
            lambda r, y: logistic(r[0], y) + square(r[1], y),
            lambda r, y: logistic(r[0] + r[1], y) + square(r[1], y),
        )
    )
    single = mf.GaussianMixture(2.0, spectrum=0.5)
    losses = LOGISTIC, lambda r, y: jnp.square(y - r) / 8
    far = []
    for k, (loss, m0, r0) in enumerate(zip(losses, (0.1, 0.3), (0.2, 0.4), strict=True)):
        alone = mf.solve(single, loss, rule, start=mf.Start(m0, r0), **options)
        m, error = mean_and_error(alone.overlap[:, [6, 12]])
        near(apart.overlap[:, [6, 12], k, 0], m, error)
        near(
            apart.correlation[:, 12, [6, 12], k, k],
            *mean_and_error(alone.correlation[:, 12, [6, 12]]),
        )
        near(apart.response[:, 12, 4, k, k], *mean_and_error(alone.response[:, 12, 4]))
        other, own = mean_and_error(coupled.overlap[:, 12, k, 0])
        far.append(abs(other - m[1]) / np.hypot(own, error[1]))
    np.testing.assert_allclose(apart.response[..., 0, 1], 0, atol=1e-6)
    assert max(far) > 8
    assert np.abs(coupled.response[..., 0, 1]).max() > 0.05


def softmax(of, **options):
    data = mf.Mixture(3.0, TRIANGLE, spectrum=0.7)
    rule = mf.MaskedDescent(0.15, sgf.PersistentMask(0.4, persistence=1 / 0.15), ridge=0.1)
    return of(
        data,
        SOFTMAX,
        rule,
        steps=16,
        start=mf.Start(variance=0.2),
        readout=with_zero,
        outputs=2,
        replicas=2,
        **options,
    )


@functools.cache
def softmax_theory():
    return softmax(mf.solve, samples=4000, keys=sgf.seeds(0, 6))


@pytest.mark.slow
def test_softmax_of_three_classes_in_theory():
    theory = softmax_theory()
    near(diagonal(theory.overlap[:, -1]), [1.025, 1.032], [0.006, 0.006])
    near(diagonal(theory.correlation[:, -1, -1]), [1.772, 1.782], [0.014, 0.014])
    turned = np.transpose(theory.correlation, (0, 2, 1, 4, 3))
    np.testing.assert_allclose(theory.correlation, turned, atol=1e-13)
    assert np.all(np.asarray(theory.response)[:, *np.triu_indices(17)] == 0)
    stored = theory.to_xarray()
    assert stored["overlap"].dims == ("key", "time", "output", "direction")
    assert stored["response"].dims == ("key", "time", "earlier", "output", "other_output")
    assert theory.outputs == 2
    assert "status  6 finite" in repr(theory)


@pytest.mark.slow
def test_softmax_of_three_classes_in_finite_systems():
    """Overlaps, correlations, losses, errors and distances of replicas."""
    theory = softmax_theory()
    runs = softmax(mf.simulate, d=200, keys=sgf.seeds(0, 12))
    for t in (6, 16):
        near(runs.overlap[:, t], *mean_and_error(theory.overlap[:, t]))
        near(runs.correlation[:, t, 6], *mean_and_error(theory.correlation[:, t, 6]))
        near(runs.correlation[:, t, t], *mean_and_error(theory.correlation[:, t, t]))
        for name in ("loss", "test_error", "distance"):
            values = getattr(runs, name)[:, t], getattr(theory, name)[:, t]
            near(values[0], *mean_and_error(values[1]))


@pytest.mark.slow
def test_the_response_of_outputs_is_that_of_finite_systems():
    options = {"steps": 4, "keys": sgf.seeds(0, 8), "readout": with_zero, "outputs": 2}
    data = mf.Mixture(3.0, TRIANGLE, spectrum=0.7)
    rule = mf.MaskedDescent(0.3, sgf.BernoulliMask(0.5), ridge=0.1)
    theory = mf.solve(data, SOFTMAX, rule, samples=2000, **options)
    runs = mf.simulate(data, SOFTMAX, rule, d=100, probes=1, **options)
    assert runs.response.shape == (8, 5, 5, 2, 2)
    near(runs.response[:, 4, :3], *mean_and_error(theory.response[:, 4, :3]))
    mixed = np.asarray(theory.response).mean(axis=0)[4, 0, [0, 1], [1, 0]]
    assert np.all(np.abs(mixed) > 0.05), mixed
    chi = mf.effective_temperature(theory, 1).response[:, 3]
    np.testing.assert_allclose(
        chi, 0.3 * diagonal(theory.response[:, 4, 1:4]).mean(-1).sum(-1), rtol=1e-5
    )


@pytest.mark.slow
def test_a_covariance_of_two_levels_and_unequal_classes():
    """Stein's form of the theory, beside finite systems."""
    data = mf.Mixture(
        2.0, [[1.2, 0.0], [0.0, 0.8], [-0.5, -1.0]], spectrum=[0.2, 1.5], weights=[0.5, 0.2, 0.3]
    )
    rule = mf.MaskedDescent(0.1, sgf.PersistentMask(0.4, persistence=8.0), ridge=0.1)
    options = {"steps": 16, "start": mf.Start(np.array([[0.2, 0], [0, 0.1], [0, 0]]), 0.1)}
    theory = mf.solve(data, SOFTMAX, rule, samples=3000, keys=sgf.seeds(0, 6), **options)
    runs = mf.simulate(data, SOFTMAX, rule, d=200, keys=sgf.seeds(0, 12), **options)
    assert theory.overlap.shape == (6, 17, 3, 2)
    for t in (0, 8, 16):
        near(runs.loss[:, t], *mean_and_error(theory.loss[:, t]))
        if t:
            near(runs.overlap[:, t], *mean_and_error(theory.overlap[:, t]))
            near(runs.correlation[:, t, t], *mean_and_error(theory.correlation[:, t, t]))


def test_several_classes_of_ones_own_have_their_means_and_covariance():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [60, 90, 150])
    X = (rng.normal(size=(3, 6))[y] + rng.normal(size=(300, 6)) * np.linspace(0.5, 2, 6)) / 6**0.5
    law = mf.fit(X, y)
    np.testing.assert_allclose(law.shares, [0.2, 0.3, 0.5], rtol=1e-12)
    means = np.array([X[y == c].mean(axis=0) for c in range(3)])
    centred = means - means.mean(axis=0)
    np.testing.assert_allclose(law.direction, 6 * centred, rtol=1e-10)
    within = sum(6 * (y == c).mean() * np.cov(X[y == c].T, bias=True) for c in range(3))
    np.testing.assert_allclose(law.covariance, within, rtol=1e-10, atol=1e-12)
    bins = law.bins()
    gram = np.einsum("b,bce->ce", bins.weights, bins.energies)
    np.testing.assert_allclose(gram, 6 * centred @ centred.T, atol=1e-10)
    sample = law.sample(None, 6, jnp.float32)
    assert sample.targets.dtype == jnp.int32
    np.testing.assert_allclose(sample.inputs, X - means.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert repr(law) == "FittedClasses of 300 examples of 3 classes in 6 dimensions"
    with pytest.raises(ValueError, match="but has 1, 2, 3; more classes have the labels 0, 1"):
        mf.fit(X, y + 1)


@pytest.mark.slow
def test_directions_that_are_not_independent_give_the_same_curves():
    """The three class means, which add up to 0, against two orthogonal directions."""
    means = np.array(TRIANGLE)
    plane = mf.Mixture(3.0, TRIANGLE, spectrum=[0.7])
    law = mf.fit(np.eye(6), np.arange(6) % 3)
    law = eqx.tree_at(
        lambda law: (law.alpha, law.values, law.energies),
        law,
        (plane.alpha, jnp.asarray([0.7]), jnp.asarray((means @ means.T)[None])),
    )
    rule = mf.MaskedDescent(0.15, sgf.PersistentMask(0.4, persistence=5.0), ridge=0.1)
    options = {
        "steps": 8,
        "samples": 200,
        "keys": jax.random.key(0),
        "start": mf.Start(variance=0.2),
        "dtype": "float64",
        "outputs": 3,
    }
    one, other = (mf.solve(data, SOFTMAX, rule, **options) for data in (plane, law))
    for name in ("correlation", "response", "loss", "test_error"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), atol=1e-10)
    np.testing.assert_allclose(other.overlap, one.overlap @ means.T, atol=1e-10)


@pytest.mark.slow
def test_derivatives_are_those_of_differences():
    """Along a line in the step size, the ridge, a variance, a mean and Delta."""
    mask = sgf.PersistentMask(0.4, persistence=4.0)

    def final(numbers):
        eta, lam, r0, mean, delta = numbers
        means = jnp.asarray(TRIANGLE).at[0, 0].set(mean)
        curves = mf.solve(
            mf.Mixture(2.0, means, spectrum=delta),
            SOFTMAX,
            mf.MaskedDescent(eta, mask, ridge=lam),
            steps=3,
            samples=100,
            keys=jax.random.key(1),
            start=mf.Start(variance=r0 * jnp.asarray(COUPLING)),
            outputs=2,
            readout=with_zero,
            dtype="float64",
        )
        return curves.loss[-1] + curves.correlation[-1, 1, 0, 1]

    at = jnp.asarray([0.3, 0.1, 0.3, 1.1, 0.6])
    along = jnp.asarray([1.0, -2.0, 0.7, 0.4, -0.5])
    expected = (final(at + 1e-6 * along) - final(at - 1e-6 * along)) / 2e-6
    np.testing.assert_allclose(jax.grad(final)(at) @ along, expected, rtol=1e-5)


def test_the_share_of_wrong_classes_of_two_clusters_is_known():
    """Two outputs that are opposite are one output, whose error is a normal tail."""
    m = jnp.asarray([[[0.3], [-0.3]], [[0.9], [-0.9]]])
    v = jnp.asarray([[1.0, -1.0], [-1.0, 1.0]]) * 0.4
    covariance = jnp.stack([v, 2 * v])
    classes = jnp.asarray([[1.0], [-1.0]]), jnp.asarray([0.3, 0.7])
    found = wrong_classes(m, covariance, None, *classes)
    expected = mf.error.upper_tail(np.array([0.3, 0.9]) / np.sqrt([0.4, 0.8]))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    scalar = wrong_classes(m, covariance, lambda r: r[1] - r[0], *classes)
    np.testing.assert_allclose(scalar, expected, atol=2e-3)
    alone = wrong_classes(-m[:, :1], v[:1, :1] * jnp.asarray([[[1.0]], [[2.0]]]), None, *classes)
    np.testing.assert_allclose(alone, expected, atol=2e-3)
