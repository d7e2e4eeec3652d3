"""The dynamical mean-field theory against closed forms of linear models."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.kernels import Effective
from sgfbias.meanfield.solution import solve_drawn

SQUARE = sgf.SquaredLoss(0.5)
TEACHER = mf.LinearTeacher(3.0)
RIDGE = mf.MaskedDescent(0.1, ridge=0.5)
MIXTURE = mf.GaussianMixture(2.0, spectrum=0.5)


def spectrum(alpha, nodes=2000):
    """Nodes and weights of the Marchenko-Pastur law of `X^T X` for alpha > 1."""
    theta = np.arange(1, nodes + 1) * np.pi / (nodes + 1)
    x = 1 + alpha + 2 * np.sqrt(alpha) * np.cos(theta)
    return x, 2 * alpha / (nodes + 1) * np.sin(theta) ** 2 / x


def cubature(steps, dtype="float64"):
    """Effective examples whose means and second moments are those of normal ones."""
    size = steps + 3
    points = np.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])
    along, white = points[:, 0], points[:, 2:].T[None]
    masks = np.ones((1, steps, 2 * size))
    return Effective(*(jnp.asarray(a, dtype) for a in (along, along, masks, white)))


@functools.cache
def exact(steps, memory=None, dtype="float64"):
    """Ridge regression by full-batch descent from an overlap of 0.2."""

    @eqx.filter_jit
    def solve(effective):
        start = mf.Start(0.2)
        return solve_drawn(TEACHER, SQUARE, RIDGE, start, effective, None, steps, memory)

    return solve(cubature(steps, dtype))


def closed_form(steps, m0, eta=0.1, lam=0.5, alpha=3.0):
    """The overlap, the correlation without it, and the response of ridge regression."""
    x, w = spectrum(alpha)
    k = x + lam
    t = np.arange(steps + 1)[:, None]
    phi = (1 - eta * k) ** t * m0 + x / k * (1 - (1 - eta * k) ** t)
    m = phi @ w
    lag = t - t.T - 1
    decay = np.array([(1 - eta * k) ** n @ w for n in range(steps)])
    response = np.where(lag >= 0, decay[np.clip(lag, 0, steps - 1)], 0)
    return m, (phi * w) @ phi.T - np.outer(m, m), response


def test_the_moments_of_the_spectral_law():
    x, w = spectrum(3.0)
    moments = [w @ x**k for k in range(1, 5)]
    np.testing.assert_allclose(moments, [3, 12, 57, 300], rtol=1e-12)
    v = w @ (1 / (x + 0.5))
    assert abs(1 / v - 0.5 - 3 / (1 + v)) < 1e-12


def test_gradient_descent_of_ridge_regression_is_exact():
    """Overlaps, correlations and responses are those of the Marchenko-Pastur law."""
    steps = 32
    found = exact(steps)
    m, rest, response = closed_form(steps, 0.2)
    listed = [0.2, 0.43, 0.5555, 0.630775, 0.67928375]
    np.testing.assert_allclose(found["overlap"][:5], listed, atol=1e-12)
    np.testing.assert_allclose(found["overlap"], m, atol=1e-12)
    np.testing.assert_allclose(found["response"], response, atol=1e-12)
    np.testing.assert_allclose(found["correlation"] - np.outer(m, m), rest, atol=1e-12)
    assert found["distance"] is None


@pytest.mark.slow
def test_effective_examples_in_single_precision_are_exact_to_1e_5():
    found = exact(32, dtype="float32")
    m, rest, response = closed_form(32, 0.2)
    np.testing.assert_allclose(found["overlap"], m, atol=1e-5)
    np.testing.assert_allclose(found["response"], response, atol=1e-5)
    np.testing.assert_allclose(found["correlation"] - np.outer(m, m), rest, atol=1e-5)


@pytest.mark.slow
def test_the_long_run_reaches_the_ridge_solution_and_needs_the_memory():
    """Without the memory of the stiffness it would end elsewhere."""
    x, w = spectrum(3.0)
    limit = w @ (x / (x + 0.5))
    assert abs(limit - 0.81385934) < 1e-8
    m, _, _ = closed_form(100, 0.2)
    np.testing.assert_allclose(exact(100)["overlap"], m, atol=1e-12)
    assert abs(m[-1] - limit) < 2e-7
    assert abs(exact(100, memory=0)["overlap"][-1] - 0.8235) < 1e-3


@pytest.mark.slow
def test_a_first_step_from_zero_is_known_in_closed_form():
    """Logistic loss, two clusters: m = eta alpha/2 and Cp = eta^2 alpha Delta/(4 b)."""
    b, eta, alpha, delta = 0.3, 0.1, 2.0, 0.5
    rule = mf.MaskedDescent(eta, sgf.BernoulliMask(b))
    found = mf.solve(
        MIXTURE, sgf.LogisticLoss(), rule, steps=1, samples=100_000, keys=sgf.seeds(0, 4)
    )
    assert found.overlap.shape == (4, 2)
    assert found.response.shape == (4, 2, 2)
    m = found.overlap[:, 1]
    rest = found.correlation[:, 1, 1] - m**2
    error = mf.error.upper_tail(np.sqrt(b * alpha / (delta * (b * alpha + delta))))
    assert abs(float(error) - 0.14813) < 1e-5
    # Standard errors of one step with 400,000 examples: f = -s c / 2.
    spread = eta * alpha / 2 * np.sqrt((1 - b) / b + delta / b) / np.sqrt(4e5)
    assert abs(np.mean(m) - eta * alpha / 2) < 4 * spread
    np.testing.assert_allclose(np.mean(rest), eta**2 * alpha * delta / (4 * b), rtol=4 * 0.0025)
    np.testing.assert_allclose(np.mean(found.test_error[:, 1]), error, rtol=0.01)


def small(rule, replicas=2, **options):
    """A run of the mixture, of one block, with few samples."""
    options = {"steps": 12, "samples": 400, "keys": jax.random.key(3), **options}
    start = mf.Start(0.1, 0.3)
    return mf.solve(MIXTURE, sgf.LogisticLoss(), rule, start=start, replicas=replicas, **options)


@pytest.mark.slow
def test_replicas_without_masks_stay_together():
    rule = mf.MaskedDescent(0.2, sgf.PersistentMask(1.0, persistence=5.0), ridge=0.1)
    found = small(rule)
    assert np.all(np.asarray(found.distance) == 0)
    full = small(mf.MaskedDescent(0.2, ridge=0.1))
    np.testing.assert_array_equal(full.overlap, found.overlap)


@pytest.mark.slow
def test_masks_without_memory_are_independent_masks():
    """A persistence of 1/b is the law of independent masks, and a longer one is not."""
    b, found = 0.4, []
    masks = [sgf.BernoulliMask(b), *(sgf.PersistentMask(b, persistence=q) for q in (2.5, 8.0))]
    for k, mask in enumerate(masks):
        keys = sgf.seeds(16 * k, 16 * k + 16)
        runs = small(mf.MaskedDescent(0.2, mask, ridge=0.1), keys=keys)
        last = np.asarray(runs.distance[:, -1])
        found.append((last.mean(), last.std(ddof=1) / 4))
    (one, error), (same, error_same), (other, _) = found
    assert abs(one - same) < 4 * np.hypot(error, error_same)
    assert other > 1.5 * one


@pytest.mark.parametrize("directions", [None, 2])
def test_the_correlation_of_smooth_paths_is_positive_semidefinite(directions):
    """With full batches paths are smooth, so nearly all eigenvalues of the correlation
    are 0 up to rounding. That of single precision in the sum over effective examples
    lets a few solutions in a hundred run away.
    """
    data, options = mf.LinearTeacher(4.0, label_noise=1.0), {}
    if directions:
        data = mf.CommitteeTeacher(4.0, lambda h: h[0] - h[1], directions=2)
        options = {"readout": lambda r: r[0] - r[1], "outputs": 2}
    found = mf.solve(
        data,
        SQUARE,
        mf.MaskedDescent(0.05),
        steps=40,
        samples=300,
        keys=sgf.seeds(0, 2),
        start=mf.Start(variance=0.01),
        **options,
    )
    correlation, overlap = np.asarray(found.correlation), np.asarray(found.overlap)
    if directions:  # one matrix of all times and outputs
        size = 41 * directions
        correlation = correlation.transpose(0, 1, 3, 2, 4).reshape(2, size, size)
        overlap = overlap.reshape(2, size, directions)
    else:
        overlap = overlap[..., None]
    values = np.linalg.eigvalsh(correlation - overlap @ overlap.mT)
    assert np.all(values[:, 0] > -1e-13 * values[:, -1]), values[:, 0]


def test_the_response_is_causal_and_the_correlation_symmetric():
    found = small(mf.MaskedDescent(0.2, sgf.PersistentMask(0.4, persistence=4.0)))
    assert np.all(np.triu(np.asarray(found.response)) == 0)
    assert np.all(np.diag(np.asarray(found.response), -1) == 1)
    np.testing.assert_array_equal(found.correlation, found.correlation.T)
    assert int(found.diverged_at) == -1


@pytest.mark.slow
def test_the_monte_carlo_error_falls_as_the_root_of_the_samples():
    """Standard deviations of the overlap and of the correlation after 30 steps, within
    a factor of 2 of those of an independent program.
    """
    mask = sgf.PersistentMask(0.3, persistence=10.0)
    listed = {1000: (0.026, 0.051), 4000: (0.0089, 0.023)}
    spreads = {}
    for samples in listed:
        found = mf.solve(
            MIXTURE,
            sgf.LogisticLoss(),
            mf.MaskedDescent(0.1, mask, ridge=0.1),
            steps=30,
            samples=samples,
            keys=sgf.seeds(0, 40),
            start=mf.Start(variance=0.01),
        )
        last = found.overlap[:, 30], found.correlation[:, 30, 30]
        spreads[samples] = np.std(last, axis=1, ddof=1)
        ratio = spreads[samples] / listed[samples]
        assert np.all((ratio > 0.5) & (ratio < 2)), spreads
    # The ratio of two standard deviations of 40 numbers has a relative error of 0.16.
    ratio = spreads[1000] / spreads[4000]
    assert np.all(np.abs(ratio / 2 - 1) < 3 * 0.16), spreads


@pytest.mark.slow
def test_sgd_on_least_squares_has_its_closed_form_at_all_times():
    """With independent masks the mean over masks is full-batch descent, and masks of
    variance g add fluctuations in every eigenspace of `X^T X`, which the mean squared
    residual v drives. Two replicas have in common what the mean over masks keeps.
    """
    alpha, eta, lam, b, s0, r0, steps = 2.0, 0.1, 0.1, 0.3, 1.0, 0.01, 24
    x, w = spectrum(alpha)
    k, g = x + lam, (1 - b) / b
    t = np.arange(steps + 1)[:, None]
    shrink = (1 - eta * k) ** t
    phi, psi = x / k * (1 - shrink), (1 - shrink) / k
    seen = x * (phi - 1) ** 2 + s0**2 * (x * psi - 1) ** 2 + x * r0 * shrink**2
    sigma, added, residual = np.zeros_like(x), [], []
    for k_t in seen:
        v = w @ (k_t + x * sigma) / alpha + s0**2 * (1 - 1 / alpha)
        added.append(w @ sigma)
        residual.append(v)
        sigma = (1 - eta * k) ** 2 * sigma + eta**2 * g * x * v
    shared = (phi**2 + s0**2 * x * psi**2 + r0 * shrink**2) @ w
    found = mf.solve(
        mf.LinearTeacher(alpha, label_noise=s0),
        SQUARE,
        mf.MaskedDescent(eta, sgf.BernoulliMask(b), ridge=lam),
        steps=steps,
        samples=2000,
        keys=sgf.seeds(0, 16),
        start=mf.Start(variance=r0),
        replicas=2,
    )
    expected = {
        "overlap": phi @ w,
        "norm": shared + added,
        "distance": 2 * np.asarray(added),
        "loss": np.asarray(residual) / 2,
    }
    norm = np.diagonal(found.correlation, axis1=1, axis2=2)
    for name, exact in expected.items():
        values = np.asarray(norm if name == "norm" else getattr(found, name))[:, 4::4]
        error = values.std(axis=0, ddof=1) / 4
        gap = np.abs(values.mean(axis=0) - exact[4::4]) / error
        assert np.all(gap < 4), (name, gap)
        assert np.all(error < 0.05 * exact[-1]), (name, error)
