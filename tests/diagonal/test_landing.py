"""Landing by second moments: the linear equation against closed forms and simulation,
and the limits that it predicts against runs that go there.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

import sgfbias as sgf
from sgfbias.diagonal.potential import beta_from, bregman_from, u_from, xi_from
from sgfbias.diagonal.theory.landing_law import law_of
from sgfbias.diagonal.theory.landing_rest import expected_fall
from sgfbias.diagonal.theory.moments import NoiseLaw, shrinkage
from sgfbias.diagonal.theory.moments import remaining_moments as solve
from sgfbias.diagonal.theory.selection import select_many

remaining_moments = jax.jit(solve, static_argnames="differentiable")

N, D = 12, 30
GAMMA = 0.03
PROBLEM = sgf.SparseRegression.sample(jax.random.key(0), n=N, d=D, sparsity=2)
NETWORK = sgf.DiagonalNetwork.init(alpha=0.1, d=D)
KEYS = sgf.seeds(0, 64)
DYNAMICS = {
    "SGD": sgf.StochasticGradientDescent(GAMMA),
    "SGD, batches of 3": sgf.StochasticGradientDescent(GAMMA, 3),
    "SGD without replacement": sgf.StochasticGradientDescent(
        GAMMA, 3, sampling="without_replacement"
    ),
    "SVAG": sgf.SVAG(GAMMA, 2),
    "per-sample flow": sgf.StochasticGradientFlow(GAMMA, sgf.PerSampleNoise(), per_iteration=2),
    "minibatch flow": sgf.StochasticGradientFlow(GAMMA, sgf.MinibatchNoise(3)),
    "sum of noises": sgf.StochasticGradientFlow(
        GAMMA, sgf.MeanLossNoise() + sgf.PerSampleNoise(), per_iteration=2
    ),
    "gradient descent": sgf.GradientDescent(GAMMA),
}


def number(x):
    return jnp.asarray(x, float)


def law(sample=0.0, mean=0.0, cross=0.0, width=0.0, drift=0.0):
    return NoiseLaw(*(number(x) for x in (sample, mean, cross, width, drift)))


def per_sample(gamma, n):
    return law(sample=gamma / (4 * n))


def sgd(gamma, n, batch=1):
    return law(gamma / (4 * n * batch), 0, gamma / (4 * n**2 * batch), gamma, gamma)


def metric(key, n=6, d=15):
    X = jax.random.normal(jax.random.key(key), (n, d))
    zeta = jnp.exp(jax.random.normal(jax.random.key(key + 1), (d,)))
    return X, (X * zeta) @ X.T / 5, jax.random.normal(jax.random.key(key + 2), (n,))


# The linear equation


def dense(A, r, given):
    """J by the Kronecker form of the equation."""
    A, r, n = np.asarray(A), np.asarray(r), len(r)
    eye = np.eye(n)
    a, b, c, tau, _ = (float(x) for x in given)
    noise = -c * np.eye(n * n)
    for i in range(n):
        noise[i * n + i, i * n + i] += a
        for k in range(n):
            noise[i * n + i, k * n + k] += b / n
    AA = np.kron(A, A)
    drift = (2 / n) * (np.kron(A, eye) + np.kron(eye, A)) - tau * (2 / n) ** 2 * AA
    return np.linalg.solve(drift - 16 * AA @ noise, np.kron(r, r)).reshape(n, n), np.linalg.solve(
        drift + 16 * c * AA, 16 * AA @ (noise + c * np.eye(n * n))
    )


@pytest.mark.slow(cases=3)
@pytest.mark.parametrize("kind", ["per-sample", "mean", "both", "sgd", "batches", "descent"])
def test_the_equation_is_solved_and_its_radius_is_that_of_the_dense_map(kind):
    _, A, r = metric(0)
    g = 0.02
    given = {
        "per-sample": per_sample(g, 6),
        "mean": law(mean=g / 24),
        "both": law(sample=g / 24, mean=g / 24),
        "sgd": sgd(g, 6),
        "batches": sgd(g, 6, 3),
        "descent": law(width=g, drift=g),
    }[kind]
    J, feedback = dense(A, r, given)
    found = remaining_moments(A, r, given)
    np.testing.assert_allclose(found.J, J, rtol=1e-6, atol=1e-9 * np.abs(J).max())
    radius = np.max(np.linalg.eigvals(feedback).real)
    np.testing.assert_allclose(found.radius, radius, rtol=2e-3, atol=1e-9)
    assert bool(found.known)
    assert radius < 1
    plain = remaining_moments(A, r, given, differentiable=False)
    np.testing.assert_allclose(plain.J, found.J, rtol=1e-6, atol=1e-9 * np.abs(J).max())
    np.testing.assert_allclose(plain.energy, r @ np.linalg.solve(A, r), rtol=1e-9)


def test_one_example_has_a_closed_form():
    A, r, gamma = jnp.asarray([[0.7]]), jnp.asarray([0.3]), 0.2
    J = remaining_moments(A, r, per_sample(gamma, 1)).J
    np.testing.assert_allclose(J[0, 0], 0.3**2 / (4 * 0.7 - 16 * 0.7**2 * gamma / 4), rtol=1e-10)


def test_orthogonal_examples_do_not_see_each_other():
    a, r, n, gamma = np.array([0.3, 1.1, 0.6]), np.array([0.2, -0.5, 1.0]), 3, 0.1
    J = remaining_moments(jnp.diag(jnp.asarray(a)), jnp.asarray(r), per_sample(gamma, n)).J
    np.testing.assert_allclose(np.diagonal(J), r**2 / (4 * a / n - 4 * gamma * a**2 / n), rtol=1e-9)


def test_in_an_isotropic_metric_the_trace_has_a_closed_form():
    n, a, gamma = 5, 0.8, 0.1
    r = jnp.asarray([0.1, 0.4, -0.3, 0.7, 0.2])
    J = remaining_moments(a * jnp.eye(n), r, per_sample(gamma, n)).J
    np.testing.assert_allclose(
        jnp.trace(J), (r @ r) / (4 * a / n - 4 * gamma * a**2 / n), rtol=1e-9
    )


def test_without_noise_the_moments_are_those_of_gradient_flow_and_the_fall_is_linear_in_gamma():
    X, A, r = metric(3)
    lam, V = np.linalg.eigh(A)
    s = V.T @ np.asarray(r)
    J0 = V @ (np.outer(s, s) * (6 / 2) / (lam[:, None] + lam[None, :])) @ V.T
    np.testing.assert_allclose(remaining_moments(A, r, law()).J, J0, rtol=1e-9)
    falls = [
        shrinkage(X, remaining_moments(A, r, per_sample(g, 6)).J, per_sample(g, 6)) / g
        for g in (1e-3, 5e-4)
    ]
    expected = 2 * (np.diagonal(J0) / 24) @ np.asarray(X) ** 2
    gaps = [np.linalg.norm(fall - expected) for fall in falls]
    assert 1.9 < gaps[0] / gaps[1] < 2.1
    assert gaps[1] < 0.02 * np.linalg.norm(expected)


def test_moments_do_not_fall_beyond_the_edge_and_the_radius_is_linear_in_gamma():
    _, A, r = metric(5)
    low = remaining_moments(A, r, per_sample(0.02, 6))
    beyond = 0.02 / float(low.radius) * 1.02
    high = remaining_moments(A, r, per_sample(beyond, 6))
    # Far below the edge the radius is known to a percent.
    np.testing.assert_allclose(high.radius, 1.02, rtol=1e-2)
    assert bool(low.known)
    assert not bool(high.known)
    below = remaining_moments(A, r, per_sample(beyond * 0.95 / 1.02, 6))
    assert bool(below.known)
    assert float(below.gain) > 5
    # Gradient descent beyond 2 / (largest eigenvalue of the Hessian): no radius at all.
    width = 1.1 * 2 / (2 / 6 * float(jnp.linalg.eigvalsh(A)[-1]))
    assert np.isinf(remaining_moments(A, r, law(width=width, drift=width)).radius)


@pytest.mark.slow
def test_the_equation_holds_for_iterations_of_the_linear_recursion():
    """Sampled paths of `r <- r - 2 gamma/n A (s r)` with one example per iteration."""
    X, A, r = metric(7)
    n, gamma, paths = 6, 0.03, 40_000
    given = sgd(gamma, n)
    key = jax.random.key(1)

    def step(state, key):
        rest, fall = state
        drawn = jax.random.randint(key, (paths,), 0, n)
        c = (
            jnp.zeros((paths, n))
            .at[jnp.arange(paths), drawn]
            .set(-gamma * n * rest[jnp.arange(paths), drawn] / (2 * n))
        )
        fall = fall + 2 * jnp.mean(jnp.square(c @ X), axis=0), 2 * jnp.square(c @ X[:, :3])
        return (rest + 4 * c @ A, fall[0]), fall[1]

    start = (jnp.tile(r, (paths, 1)), jnp.zeros(X.shape[1]))
    (_, mean), each = jax.lax.scan(step, start, jax.random.split(key, 1500))
    each = jnp.sum(each, axis=0)
    predicted = shrinkage(X, remaining_moments(A, r, given).J, given)
    error = jnp.std(each, axis=0) / np.sqrt(paths)
    assert np.all(np.abs(mean[:3] - predicted[:3]) < 4 * error)
    assert np.all(error < 0.01 * predicted[:3])
    # Control: without the noise's feedback the fall is too small, by far more.
    alone = remaining_moments(A, r, law(width=gamma, drift=gamma)).J
    assert np.all(shrinkage(X, alone, given)[:3] < predicted[:3] - 10 * error)


@pytest.mark.slow
def test_derivatives_of_the_moments_are_exact():
    X, A, r = metric(9)

    def total(gamma, r, tilt):
        given = sgd(gamma, 6)
        solved = remaining_moments(A + tilt * (X @ X.T), r, given)
        return jnp.sum(shrinkage(X, solved.J, given)) + solved.energy

    at = (jnp.asarray(0.02), r, jnp.asarray(0.0))
    slopes = jax.grad(total, (0, 1, 2))(*at)
    for k, h in ((0, 1e-6), (1, 1e-5), (2, 1e-6)):
        move = jnp.ones_like(at[k])
        up, down = (
            total(*(a + s * h * move if i == k else a for i, a in enumerate(at))) for s in (1, -1)
        )
        np.testing.assert_allclose(jnp.sum(slopes[k]), (up - down) / (2 * h), rtol=2e-5)
        tangents = tuple(move if i == k else jnp.zeros_like(a) for i, a in enumerate(at))
        np.testing.assert_allclose(jax.jvp(total, at, tangents)[1], jnp.sum(slopes[k]), rtol=1e-5)


@pytest.mark.slow
def test_mean_loss_agrees_with_the_closed_form_as_the_distance_falls():
    """`tr J/(4n)` against `D/(2 (1 - gamma <h, xi>))`, up to the first order."""
    chosen = sgf.select(PROBLEM, jnp.log(0.1))
    log_alpha = jnp.full(D, jnp.log(0.1))
    u = u_from(chosen.beta, log_alpha)
    move = PROBLEM.X.T @ jax.random.normal(jax.random.key(2), (N,)) / 10
    gaps = []
    for distance in (0.1, 0.05):
        present = u + distance * move
        xi = xi_from(log_alpha, u)
        r = PROBLEM.X @ beta_from(log_alpha, present) - PROBLEM.y
        given = law(mean=GAMMA / (4 * N))
        J = remaining_moments((PROBLEM.X * xi) @ PROBLEM.X.T, r, given).J
        exact = bregman_from(log_alpha, u, present) / (2 * (1 - GAMMA * PROBLEM.h @ xi))
        gaps.append(float(jnp.trace(J) / (4 * N) / exact - 1))
    assert abs(gaps[0]) < 0.2, gaps
    assert 1.7 < gaps[0] / gaps[1] < 2.3, gaps


# Runs and their limits


def limits_of(dynamics, network=NETWORK, problem=PROBLEM, *, early, late, keys=KEYS):
    """The runs at `early` iterations, and the limits of the same seeds."""
    keys = keys if dynamics.is_stochastic else None
    per = 1
    if getattr(dynamics, "ratio", None) is not None:
        per = int(dynamics.ratio[1])
    per = getattr(dynamics, "l", per) if not dynamics.is_flow else per
    options = {"keys": keys, "record": sgf.Record(times=2)}
    runs = sgf.simulate(dynamics, network, problem, steps=early * per, **options)
    end = sgf.simulate(dynamics, network, problem, steps=late * per, **options)
    batch = [jnp.atleast_2d(end.final[k]) for k in ("log_alpha", "offset")]
    return runs, end, np.asarray(select_many(problem, batch[0], offset=batch[1]).beta)


def distance(a, b):
    return np.linalg.norm(np.atleast_2d(a) - b, axis=1)


@pytest.mark.slow(cases=3)
@pytest.mark.parametrize("name", DYNAMICS)
def test_the_limit_of_each_seed_is_known_early(name):
    runs, end, limit = limits_of(DYNAMICS[name], early=600, late=12_000)
    landed, raw = sgf.land(runs), sgf.land(runs, correct=False)
    error, before = distance(landed.beta, limit), distance(raw.beta, limit)
    assert np.median(distance(runs.final["beta"], limit)) > 200 * np.median(before)
    assert np.median(error) < np.median(before) / 4
    estimate = np.atleast_1d(landed.error)
    # 90% of the seeds, less three standard deviations of a share of 64.
    assert np.mean(error <= estimate) >= 0.9 - 3 * np.sqrt(0.9 * 0.1 / 64)
    assert np.median(estimate / error) < 30
    assert np.all(np.asarray(landed.radius) < 1)
    assert bool(jnp.all(landed.selection.converged))
    moved = np.atleast_2d(end.final["log_alpha"] - runs.final["log_alpha"])
    predicted = np.atleast_2d(landed.log_alpha - runs.final["log_alpha"])
    scatter = np.std((moved - predicted).mean(axis=1)) / np.sqrt(len(moved))
    # Besides the scatter of seeds, the linear equation leaves out terms of second order
    # in the distance, of which half the size of the correction's scale is generous.
    assert abs(moved.mean() - predicted.mean()) < 4 * scatter + 0.02 * abs(moved.mean())


@pytest.mark.slow
def test_controls_of_the_correction():
    """Without the feedback of the noise, or by the law of another noise, the rest is
    wrong by much more than it is off.
    """
    runs, end, _ = limits_of(DYNAMICS["per-sample flow"], early=600, late=12_000)
    moved = np.asarray(runs.final["log_alpha"] - end.final["log_alpha"])
    right = np.asarray(runs.final["log_alpha"] - sgf.land(runs).log_alpha)
    other = eqx.tree_at(
        lambda r: r.dynamics,
        runs,
        sgf.StochasticGradientFlow(GAMMA, sgf.MeanLossNoise(), per_iteration=2),
    )
    wrong = np.asarray(runs.final["log_alpha"] - sgf.land(other).log_alpha)
    # Feature by feature, relative to the mean fall of each feature.
    off = [np.abs(x.mean(0) / moved.mean(0) - 1) for x in (right, wrong)]
    assert np.max(off[0]) < 0.1 < 3 * np.max(off[0]) < np.max(off[1]), off


@pytest.mark.slow
def test_beyond_mean_square_stability_the_present_law_is_landed_on_and_the_radius_is_told():
    dynamics = sgf.StochasticGradientFlow(0.8, sgf.PerSampleNoise(), per_iteration=64)
    runs = sgf.simulate(dynamics, NETWORK, PROBLEM, keys=KEYS, steps=40)
    landed, kept = sgf.land(runs), ~np.asarray(runs.diverged)
    assert kept.any()
    assert np.all(np.asarray(landed.radius)[kept] > 1)
    assert np.all(np.isinf(landed.error))
    assert "beyond mean-square stability" in repr(landed)
    np.testing.assert_array_equal(landed.log_alpha[kept], runs.final["log_alpha"][kept])


@pytest.mark.slow
def test_a_landed_seed_does_not_depend_on_its_company():
    dynamics = DYNAMICS["SGD"]
    runs = sgf.simulate(dynamics, NETWORK, PROBLEM, keys=KEYS, steps=600)
    whole = sgf.land(runs)
    few = sgf.land(sgf.simulate(dynamics, NETWORK, PROBLEM, keys=sgf.seeds(5, 8), steps=600))
    np.testing.assert_array_equal(few.beta, whole.beta[5:8])


@pytest.mark.slow
def test_jit_vmap_and_derivatives_of_landed_sgd():
    dynamics = DYNAMICS["SGD"]
    runs = sgf.simulate(dynamics, NETWORK, PROBLEM, keys=KEYS, steps=600)
    whole = sgf.land(runs)
    inside = jax.jit(lambda scale: scale * sgf.land(runs).beta)(1.0)
    np.testing.assert_allclose(inside, whole.beta, atol=1e-9)

    def outcome(log_alpha):
        network = sgf.DiagonalNetwork.init(log_alpha=log_alpha, d=D)
        run = sgf.simulate(dynamics, network, PROBLEM, keys=sgf.seeds(0, 1)[0], steps=300)
        return sgf.land(run).beta @ jnp.arange(D, dtype=float)

    at = jnp.log(0.1)
    slope, h = jax.grad(outcome)(at), 1e-5
    np.testing.assert_allclose(slope, (outcome(at + h) - outcome(at - h)) / (2 * h), rtol=1e-5)
    np.testing.assert_allclose(jax.jacfwd(outcome)(at), slope, rtol=1e-7)
    both = jax.vmap(outcome)(jnp.stack([at, at + 0.1]))
    np.testing.assert_allclose(both[0], outcome(at), rtol=1e-7)


@pytest.mark.slow
def test_in_float32_the_error_has_a_floor():
    narrow = sgf.SparseRegression(PROBLEM.X.astype(jnp.float32), PROBLEM.y.astype(jnp.float32))
    network = sgf.DiagonalNetwork.init(alpha=0.1, d=D, dtype=jnp.float32)
    runs, _, limit = limits_of(DYNAMICS["SGD"], network, narrow, early=3000, late=12_000)
    landed = sgf.land(runs)
    error = distance(landed.beta, limit)
    assert landed.beta.dtype == jnp.float32
    assert np.mean(error <= np.asarray(landed.error)) > 0.8
    assert np.median(landed.error) < 1e-3


@pytest.mark.slow
def test_label_noise_that_has_been_switched_off_is_landed():
    def until(k):
        return jnp.where(k < 200, 0.1, 0.0)

    flow = sgf.StochasticGradientFlow(GAMMA, sgf.LabelNoise(until))
    runs, _, limit = limits_of(flow, early=800, late=12_000)
    landed = sgf.land(runs)
    assert np.median(distance(landed.beta, limit)) < 1e-3
    assert np.mean(distance(landed.beta, limit) <= np.asarray(landed.error)) > 0.8
    descent = sgf.StochasticGradientDescent(GAMMA, label_noise=until)
    runs, _, limit = limits_of(descent, early=800, late=12_000)
    assert np.mean(distance(sgf.land(runs).beta, limit) <= np.asarray(sgf.land(runs).error)) > 0.8
    with pytest.raises(ValueError, match="label noise is on"):
        law_of(sgf.simulate(descent, NETWORK, PROBLEM, keys=KEYS, steps=100))


@pytest.mark.slow
def test_another_loss_scale_is_the_same_run():
    scaled = sgf.SparseRegression(PROBLEM.X, PROBLEM.y, loss_scale=0.5)
    runs = sgf.simulate(DYNAMICS["SGD"], NETWORK, PROBLEM, keys=KEYS, steps=600)
    again = sgf.simulate(
        sgf.StochasticGradientDescent(GAMMA / 2), NETWORK, scaled, keys=KEYS, steps=600
    )
    one, two = sgf.land(runs), sgf.land(again)
    np.testing.assert_allclose(one.beta, two.beta, atol=1e-8)
    np.testing.assert_allclose(one.error, two.error, rtol=1e-3)
    np.testing.assert_allclose(one.remaining, two.remaining, rtol=1e-6)


REFUSED = {
    "momentum": (
        sgf.StochasticGradientDescent(0.02, momentum=0.5),
        "momentum is not derived.*velo",
    ),
    "reshuffling": (
        sgf.StochasticGradientDescent(0.02, sampling="random_reshuffling"),
        "random reshuffling is not derived.*without_replacement",
    ),
    "schedule": (sgf.StochasticGradientDescent(lambda k: 0.02), "step_size is a schedule"),
    "label noise": (sgf.GradientDescent(0.02, label_noise=0.1), "label noise is on"),
    "isotropic sum": (
        sgf.StochasticGradientFlow(0.02, sgf.PerSampleNoise() + sgf.IsotropicNoise(0.1)),
        "isotropic noise leaves the row space",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_landed_says_why(case):
    dynamics, message = REFUSED[case]
    keys = sgf.seeds(0, 2)
    with pytest.raises(ValueError, match=message):
        sgf.land(sgf.simulate(dynamics, NETWORK, PROBLEM, keys=keys, steps=10))


def test_a_schedule_of_label_noise_cannot_be_judged_while_it_is_traced():
    def traced(log_alpha):
        network = sgf.DiagonalNetwork.init(log_alpha=log_alpha, d=D)
        descent = sgf.GradientDescent(0.02, label_noise=lambda k: jnp.where(k < 5, 0.1, 0.0))
        return sgf.land(
            sgf.simulate(descent, network, PROBLEM, keys=sgf.seeds(0, 1)[0], steps=20)
        ).error

    with pytest.raises(ValueError, match="cannot be seen while the run is being traced"):
        jax.jit(traced)(jnp.log(0.1))


def test_optax_is_refused():
    import optax

    runs = sgf.simulate(sgf.OptaxDescent(optax.adam(1e-3), 1.0), NETWORK, PROBLEM, steps=10)
    with pytest.raises(ValueError, match="OptaxDescent is not derived.*transformation"):
        sgf.land(runs)


def regression(name):
    """Real data in their own units, with a target that can be fitted."""
    load = {"digits": load_digits, "diabetes": load_diabetes}[name]
    X, y = (array[::50][:8].astype(float) for array in load(return_X_y=True))
    if name == "diabetes":
        X = np.concatenate([X, X**2], axis=1)
    y = y - y.mean()
    scale = np.linalg.norm(X, axis=1).max() / np.sqrt(X.shape[1])
    return sgf.SparseRegression(X / scale, y / np.abs(y).max())


CASES = {
    "wide": (sgf.SparseRegression.sample(jax.random.key(1), n=20, d=50, sparsity=3), 0.1, 0.03),
    "tiny alpha": (
        sgf.SparseRegression.sample(jax.random.key(2), n=12, d=30, sparsity=2),
        1e-3,
        0.1,
    ),
    "alpha of 1": (
        sgf.SparseRegression.sample(jax.random.key(3), n=15, d=60, sparsity=2),
        1.0,
        0.002,
    ),
    "near the edge": (
        sgf.SparseRegression.sample(jax.random.key(4), n=20, d=40, sparsity=3),
        0.1,
        0.12,
    ),
    "diabetes": (regression("diabetes"), 0.1, None),
    "digits": (regression("digits"), 0.1, None),
}


@pytest.mark.slow(cases=3)
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_covers_on_other_problems(case):
    """At several times of SGD's run, from where seeds have come near to far."""
    problem, alpha, gamma = CASES[case]
    network = sgf.DiagonalNetwork.init(alpha=alpha, d=problem.d)
    if gamma is None:
        gamma = 0.3 / float(jnp.max(jnp.sum(jnp.square(problem.X), axis=1)))
    keys = sgf.seeds(0, 64)
    dynamics = sgf.StochasticGradientDescent(gamma)
    end = sgf.simulate(dynamics, network, problem, keys=keys, steps=300_000, stop=1e-18)
    limit = np.asarray(sgf.land(end).beta)
    tried = 0
    for steps in (100, 300, 1000, 3000, 10_000, 30_000):
        runs = sgf.simulate(dynamics, network, problem, keys=keys, steps=steps)
        landed = sgf.land(runs)
        # What is left at the end must be small beside what is predicted.
        fits = np.asarray(end.final["loss"]) < 1e-3 * np.asarray(runs.final["loss"])
        if np.mean(fits) < 0.9:
            break
        error, estimate = distance(landed.beta, limit)[fits], np.asarray(landed.error)[fits]
        floor = 100 * 1e-12 * np.linalg.norm(limit[0])
        if np.median(distance(runs.final["beta"], limit)) > 0.3 * np.linalg.norm(limit[0]):
            continue  # far from convergence, where there is nothing to land on yet
        if np.median(error) < floor:
            continue
        tried += 1
        cover = np.mean(error <= estimate)
        assert cover >= 0.9 - 3 * np.sqrt(0.9 * 0.1 / len(error)), (steps, cover)
        assert np.median(estimate / error) < 30, (steps, np.median(estimate / error))
    assert tried


@pytest.mark.slow
def test_the_expected_fall_is_what_landing_adds_and_without_feedback_it_is_less():
    runs = sgf.simulate(DYNAMICS["SGD"], NETWORK, PROBLEM, keys=KEYS, steps=600)
    landed, raw = sgf.land(runs), sgf.land(runs, correct=False)
    fall = expected_fall(runs, raw.beta)
    added = runs.final["log_alpha"] - landed.log_alpha
    # The solutions are feasible to 1e-12 only, and the divergence is quadratic in that.
    np.testing.assert_allclose(fall, added, rtol=1e-5)
    assert bool(jnp.all(expected_fall(runs, raw.beta, feedback=False) < fall))
    flow = sgf.StochasticGradientFlow(GAMMA)
    runs = sgf.simulate(flow, NETWORK, PROBLEM, keys=KEYS, steps=600)
    landed, raw = sgf.land(runs), sgf.land(runs, correct=False)
    fall = expected_fall(runs, raw.beta)
    np.testing.assert_allclose(fall, runs.final["log_alpha"] - landed.log_alpha, rtol=1e-5)
    alone = expected_fall(runs, raw.beta, feedback=False)
    np.testing.assert_allclose(alone, fall * (1 - landed.radius[:, None]), rtol=1e-5)
