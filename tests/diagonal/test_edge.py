"""The stability edge against closed forms, against the exact map of second moments with
all batches written out, and against short runs.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, small_problem

import sgfbias as sgf
from sgfbias.diagonal.theory.edge_law import two_step
from sgfbias.diagonal.theory.landing_law import law_of_batches
from sgfbias.diagonal.theory.moments import remaining_moments

SGD = sgf.StochasticGradientDescent


def edge(problem, dynamics, at=None):
    return sgf.stability_edge(problem, dynamics, at).step_size


def one_example(x=(1.0, -2.0), beta=(0.5, -0.25)):
    """A problem of one example, its solution, and A = sum x^2 |beta|."""
    X, beta = np.array([x]), np.array(beta)
    return sgf.SparseRegression(X, X @ beta), beta, float(np.square(x) @ np.abs(beta))


def test_of_one_example_the_edge_is_known():
    problem, beta, A = one_example()
    # The flow has d E r^2 = (-4 A + 4 A^2 gamma) E r^2 dt. SGD has no noise, and
    # multiplies r by 1 - 2 A gamma.
    for dynamics in (sgf.PerSampleNoise(), sgf.MeanLossNoise(), SGD(0.1), sgf.GradientDescent(0.1)):
        assert edge(problem, dynamics, beta) == pytest.approx(1 / A)
    assert edge(problem, sgf.SVAG(0.1, 4), beta) == pytest.approx(4 / A)
    both = sgf.MeanLossNoise() + sgf.PerSampleNoise()
    assert edge(problem, both, beta) == pytest.approx(1 / (2 * A))
    # Minibatch noise of one example vanishes, and so does the flow's edge.
    assert edge(problem, sgf.MinibatchNoise(1), beta) == np.inf
    order_two = sgf.StochasticGradientFlow(0.1, sgf.NoNoise(), order=2)
    # Euler's factor is 1 - x - x^2/2 with x = 2 A gamma.
    assert edge(problem, order_two, beta) == pytest.approx((5**0.5 - 1) / (2 * A))
    for b in (0.3, 0.9):
        heavy, nesterov = (sgf.GradientDescent(0.1, momentum=b, nesterov=k) for k in (False, True))
        assert edge(problem, heavy, beta) == pytest.approx((1 + b) / A)
        assert edge(problem, nesterov, beta) == pytest.approx((1 + b) / (1 + 2 * b) / A)


def test_of_orthogonal_rows_each_residual_has_its_own():
    X = np.kron(np.eye(3), np.array([[1.0, 2.0]])) * np.array([[1.0], [2.0], [0.5]])
    beta = np.array([0.5, 0.0, 0.0, -0.3, 1.0, 0.2])
    problem, A = sgf.SparseRegression(X, X @ beta), np.square(X) @ np.abs(beta)
    for dynamics in (sgf.PerSampleNoise(), SGD(0.1)):
        assert edge(problem, dynamics, beta) == pytest.approx(1 / A.max())
    assert edge(problem, sgf.GradientDescent(0.1), beta) == pytest.approx(3 / A.max())


def test_mean_loss_noise_has_the_closed_form():
    problem = small_problem()
    beta = np.asarray(problem.beta_star)
    exact = 1 / float(problem.h @ jnp.abs(problem.beta_star))
    found = sgf.stability_edge(problem, sgf.MeanLossNoise(), beta)
    assert found.step_size == pytest.approx(exact)
    assert found.criterion == "mean-square"
    assert found.radius(0.3 * exact) == pytest.approx(0.3)
    # Euler's steps of tau = gamma / 2: gamma / n sum_i lam_i / (1 - tau lam_i / n) = 1.
    X = np.asarray(problem.X)
    lam = np.linalg.eigvalsh((X * np.abs(beta)) @ X.T)
    gamma = edge(problem, sgf.StochasticGradientFlow(0.1, per_iteration=2), beta)
    n = problem.n
    assert gamma / n * np.sum(lam / (1 - gamma / 2 * lam / n)) == pytest.approx(1)
    assert gamma < exact


def test_at_a_network_the_solution_is_the_one_that_it_selects():
    problem, start = small_problem(), network(0.05)
    chosen = np.asarray(sgf.select(problem, start.log_alpha).beta)
    xi = np.sqrt(chosen**2 + 4 * 0.05**4)
    found = sgf.stability_edge(problem, sgf.MeanLossNoise(), start)
    assert found.step_size == pytest.approx(1 / float(np.asarray(problem.h) @ xi))
    np.testing.assert_allclose(found.beta, chosen)
    # As alpha falls this becomes the edge at the solution of smallest l1 norm.
    least = edge(problem, sgf.MeanLossNoise())
    assert edge(problem, sgf.MeanLossNoise(), network(1e-12)) == pytest.approx(least, rel=0.05)
    assert edge(problem, sgf.MeanLossNoise(), sgf.minimum_l1(problem)) == pytest.approx(least)


def test_raw_units_and_the_loss_scale_only_scale_it():
    problem = small_problem()
    inputs, targets = 300.0, 2e-3
    raw = sgf.SparseRegression(inputs * problem.X, targets * problem.y)
    half = sgf.SparseRegression(problem.X, problem.y, loss_scale=0.5)
    for dynamics in (SGD(0.1, 3), sgf.PerSampleNoise()):
        gamma = edge(problem, dynamics)
        assert edge(raw, dynamics) == pytest.approx(gamma / (inputs * targets))
        assert edge(half, dynamics) == pytest.approx(gamma / 2)


def recursion(A, gamma, batch, momentum, nesterov):
    """The map of (residual, increment) in one iteration for one batch."""
    n = len(A)
    pick = np.zeros((n, n))
    for i in batch:
        pick[i, i] += 1 / len(batch)
    pull = -2 * A @ pick  # 4 A c of the batch's cotangent
    eye = np.eye(n)
    if not nesterov:
        return np.block([[eye + gamma * pull, momentum * eye], [gamma * pull, momentum * eye]])
    # The velocity p <- b p + c enters as (1 + b) c + b^2 p.
    return np.block(
        [
            [eye + gamma * (1 + momentum) * pull, momentum**2 * eye],
            [gamma * pull, momentum * eye],
        ]
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.4, 0.8])
@pytest.mark.parametrize(
    ("size", "sampling"),
    [(1, "with_replacement"), (2, "with_replacement"), (2, "without_replacement")],
)
def test_at_the_edge_the_exact_map_of_second_moments_has_radius_one(
    size, sampling, momentum, nesterov
):
    """All batches are written out, so the noise's covariance is not used."""
    problem = small_problem(n=3, d=6, sparsity=2)
    beta = np.asarray(problem.beta_star)
    X = np.asarray(problem.X)
    A = (X * np.abs(beta)) @ X.T
    dynamics = SGD(
        0.1, size, sampling=sampling, momentum=momentum, nesterov=nesterov and momentum is not None
    )
    found = sgf.stability_edge(problem, dynamics, beta)
    batches = (
        itertools.product(range(3), repeat=size)
        if sampling == "with_replacement"
        else itertools.combinations(range(3), size)
    )
    batches = list(batches)

    def radius(gamma):
        maps = [recursion(A, gamma, batch, momentum or 0.0, dynamics.nesterov) for batch in batches]
        moments = sum(np.kron(M, M) for M in maps) / len(maps)
        values = np.sort(np.abs(np.linalg.eigvals(moments)))[::-1]
        # A has rank 2, so one direction of the residuals does not move at all.
        return values[values < 1 - 1e-9].max(), values.max()

    assert radius(0.98 * found.step_size)[1] < 1 + 1e-7
    assert radius(1.02 * found.step_size)[1] > 1 + 1e-4
    assert found.radius(0.98 * found.step_size) < 1 < found.radius(1.02 * found.step_size)


def test_the_gains_grow_with_the_step_size():
    """So there is one edge. Without momentum and for heavy ball this is proved."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        b, mu = rng.uniform(0.01, 0.99), np.sort(np.exp(2 * rng.normal(size=6)))
        for nesterov, top in ((False, 2 * (1 + b)), (True, 2 * (1 + b) / (1 + 2 * b))):
            steps = np.linspace(0.01, 0.999, 40) * top / mu[-1]
            gains = np.array([g**2 / two_step(g * mu, b, nesterov) for g in steps])
            assert np.all(gains > 0)
            assert np.all(np.diff(gains, axis=0) > 0)


def test_sgd_in_batches_of_one_has_the_edge_of_the_per_sample_flow():
    """The second moment of SGD's cotangent, with its mean, is that of per-sample
    noise.
    """
    problem = small_problem()
    assert edge(problem, SGD(0.1)) == pytest.approx(edge(problem, sgf.PerSampleNoise()))
    assert edge(problem, SGD(0.1)) < edge(problem, sgf.MinibatchNoise(1))


def test_the_edge_grows_with_the_batch_until_it_is_that_of_gradient_descent():
    problem = small_problem()
    n = problem.n
    edges = [edge(problem, SGD(0.1, b)) for b in (1, 2, 4, 8)]
    assert np.all(np.diff(edges) > 0)
    assert np.all(np.array(edges) < edges[0] * np.array([1.001, 2, 4, 8]))
    descent = edge(problem, sgf.GradientDescent(0.1))
    assert edge(problem, SGD(0.1, n, sampling="without_replacement")) == pytest.approx(descent)
    assert edge(problem, SGD(0.1, 2, sampling="without_replacement")) > edges[1]


@pytest.mark.slow
def test_the_radius_is_that_of_the_landing():
    problem = small_problem()
    xi = np.abs(np.asarray(problem.beta_star)) + 0.01
    X = np.asarray(problem.X)
    A = jnp.asarray((X * xi) @ X.T)
    for dynamics in (SGD(0.05, 2), sgf.SVAG(0.05, 2)):
        law = law_of_batches(dynamics, jnp.asarray(0.05), problem.n)
        landed = remaining_moments(A, jnp.ones(problem.n), law, differentiable=False)
        found = sgf.stability_edge(problem, dynamics, xi).radius(0.05)
        assert found == pytest.approx(float(landed.radius), rel=1e-2)


@pytest.mark.slow
def test_runs_fall_below_it_and_not_far_above():
    problem = small_problem()
    below, above = (0.4 * edge(problem, SGD(0.1)), 2.5 * edge(problem, SGD(0.1)))
    shares = []
    for gamma in (below, above):
        runs = sgf.simulate(SGD(gamma), network(), problem, keys=sgf.seeds(0, 32), t1=60.0)
        shares.append(np.mean(np.asarray(runs.final["loss"] < 0.01 * runs["loss"][:, 0])))
    assert shares[0] >= 0.95
    assert shares[1] <= 0.1


@pytest.mark.parametrize(
    ("dynamics", "words"),
    [
        (sgf.GradientFlow(), "a stability edge is the step size.*but is"),
        (sgf.OptaxDescent(optax.sgd(0.1), 0.1), "not derived, because its transformation"),
        (SGD(0.1, 2, sampling="random_reshuffling"), "batches of an epoch depend on each other"),
        (SGD(lambda k: 0.1), "step_size is a schedule: give a constant one"),
        (sgf.StochasticGradientFlow(lambda k: 0.1), "step_size is a schedule"),
        (SGD(0.1, label_noise=0.5), "label noise is on, so second moments never fall"),
        (sgf.LabelNoise(0.5), "label noise is on"),
        (sgf.IsotropicNoise(0.5), "under IsotropicNoise are not derived"),
        (SGD(0.1, 99), "batch"),
        (0.1, "must be a noise model such as MeanLossNoise"),
    ],
)
def test_what_has_no_edge_is_refused(dynamics, words):
    with pytest.raises(ValueError, match=words):
        sgf.stability_edge(small_problem(), dynamics)


def test_other_refusals():
    problem = small_problem()
    with pytest.raises(ValueError, match="`at` has 7 features, but the problem has 25"):
        sgf.stability_edge(problem, SGD(0.1), network(d=7))
    with pytest.raises(ValueError, match=r"at.*shape \(25,\)"):
        sgf.stability_edge(problem, SGD(0.1), np.ones(3))
    with pytest.raises(ValueError, match="no beta satisfies"):
        sgf.stability_edge(sgf.SparseRegression(np.ones((2, 2)), [1.0, 2.0]), SGD(0.1))
    found = sgf.stability_edge(problem, SGD(0.1))
    with pytest.raises(ValueError, match="`gamma` must be positive and finite, but is -1"):
        found.radius(-1.0)
    with pytest.raises(ValueError, match="compute it outside jit, vmap and grad"):
        jax.jit(lambda y: edge(sgf.SparseRegression(problem.X, y), SGD(0.1)))(problem.y)
    assert "SGD in batches of 1: second moments fall below the step size" in repr(found)
    assert found.radius(1e3) == np.inf


def test_the_advice_is_a_fraction_of_the_edge():
    problem = small_problem()
    for dynamics, expected in ((SGD(0.1), (0.8, 0.6, 0.5)), (sgf.MeanLossNoise(), (0.6, 0.4, 0.4))):
        found = sgf.stability_edge(problem, dynamics)
        for share, fraction in zip((0.5, 0.95, 0.99), expected, strict=True):
            assert found.advice(share) == pytest.approx(fraction * found.step_size)
        assert found.advice() == found.advice(0.95)
        for wrong in (0.0, 0.999):
            with pytest.raises(ValueError, match="`share` must be above 0 and at most 0.99"):
                found.advice(wrong)
    with pytest.raises(ValueError, match="measured without momentum"):
        sgf.stability_edge(problem, SGD(0.1, momentum=0.9)).advice()


def test_nothing_to_fit_has_no_edge():
    problem = sgf.SparseRegression(np.eye(2, 3), np.zeros(2))
    assert edge(problem, SGD(0.1)) == np.inf
    assert sgf.stability_edge(problem, SGD(0.1)).radius(1.0) == 0


def test_it_works_without_double_precision():
    with jax.enable_x64(False):
        problem = sgf.SparseRegression.sample(jax.random.key(0), n=10, d=25, sparsity=3)
        single = edge(problem, SGD(0.1))
    assert single == pytest.approx(
        edge(sgf.SparseRegression(np.asarray(problem.X), np.asarray(problem.y)), SGD(0.1)), rel=1e-4
    )
