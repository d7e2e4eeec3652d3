"""The identity behind the guarantee, along paths in every coordinate system."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network, same, slope, small_problem

import sgfbias as sgf

PROBLEM, START = small_problem(), network()
KEYS = sgf.seeds(0, 64)
GAMMA, TIME = 0.04, 16.0
RECORD = sgf.Record((), 9, path_sums=True)


def run(problem=PROBLEM, start=START, *, per_iteration=1, noise=None, record=RECORD, **options):
    flow = sgf.StochasticGradientFlow(GAMMA, noise, per_iteration=per_iteration)
    return sgf.simulate(flow, start, problem, keys=KEYS, t1=TIME, record=record, **options)


@pytest.fixture(scope="module")
def paths():
    """The identity at three widths on shared Brownian paths, by coordinates."""

    def at(coordinates, k):
        flow = sgf.StochasticGradientFlow(GAMMA, per_iteration=k, brownian_dt=GAMMA / 16)
        runs = sgf.simulate(
            flow, START, PROBLEM, keys=KEYS, t1=TIME, record=RECORD, coordinates=coordinates
        )
        return sgf.lyapunov_identity(runs)

    return {c: [at(c, k) for k in (1, 4, 16)] for c in ("mirror", "log", "weights")}


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", ["mirror", "log", "weights"])
def test_the_gap_falls_with_the_step(paths, coordinates):
    """In the mean at first order, on single paths at the strong order of Euler's
    scheme, 1/2, or faster while the mean dominates.
    """
    ends = [v.difference[:, -1] for v in paths[coordinates]]
    widths = np.array([1, 1 / 4, 1 / 16])
    assert 0.8 < slope(widths, [abs(np.mean(end)) for end in ends]) < 1.3
    assert slope(widths, [np.sqrt(np.mean(end**2)) for end in ends]) > 0.45
    size = np.std(paths[coordinates][-1].martingale[:, -1])
    assert np.median(paths[coordinates][-1].gap) < 0.03 * size


@pytest.mark.slow
def test_coordinates_agree(paths):
    mirror, log, weights = (paths[c][-1] for c in ("mirror", "log", "weights"))
    np.testing.assert_allclose(mirror.martingale, log.martingale, rtol=1e-8, atol=1e-10)
    scale = float(jnp.std(mirror.martingale[:, -1]))
    assert np.median(np.abs(mirror.martingale[:, -1] - weights.martingale[:, -1])) < 0.05 * scale


@pytest.mark.slow
def test_the_quadratic_variation_is_that_of_the_martingale(paths):
    v = paths["mirror"][-1]
    square, mean = np.square(v.martingale[:, -1]), np.mean(v.quadratic_variation[:, -1])
    assert abs(square.mean() - mean) < 4 * square.std() / 8
    assert abs(np.mean(v.martingale[:, -1])) < 4 * np.sqrt(mean) / 8


@pytest.mark.slow
def test_the_terms_are_those_of_the_lemma():
    """Against the formulas written out, from every step of one short run."""
    times = np.arange(21) * GAMMA
    flow = sgf.StochasticGradientFlow(GAMMA)
    record = sgf.Record({"beta": None, "xi": _xi}, times, True)
    runs = sgf.simulate(flow, START, PROBLEM, keys=KEYS, steps=20, record=record)
    v = sgf.lyapunov_identity(runs)
    L, h, least = (np.asarray(x) for x in (runs["loss"], PROBLEM.h, sgf.minimum_l1(PROBLEM)))
    beta, xi = np.asarray(runs["beta"]), np.asarray(runs["xi"])
    rate = -2 * L * (1 - GAMMA / 2 * ((xi + np.abs(least)) @ h))
    np.testing.assert_allclose(v.drift[:, 1:], np.cumsum(rate * GAMMA, 1)[:, :-1], rtol=1e-9)
    np.testing.assert_allclose(
        v.quadratic_variation[:, 1:], np.cumsum(4 * GAMMA * L**2 * GAMMA, 1)[:, :-1], rtol=1e-9
    )
    z = np.asarray(runs["log_ratio"]) / 4
    alpha = np.exp(np.asarray(runs["log_alpha"]))
    phi = np.sum(beta * z, -1) - np.sum(np.sqrt(beta**2 + 4 * alpha**4), -1) / 4
    lost = np.asarray(runs["loss_integral"]) * GAMMA * (h @ np.abs(least))
    np.testing.assert_allclose(v.value, -phi + np.sum(z * (beta - least), -1) + lost, rtol=1e-9)
    assert float(v.value[0, 0]) == pytest.approx(25 * 0.1**2 / 2)


def _xi(w):
    return w.xi


@pytest.mark.slow
def test_the_run_is_the_same_with_and_without_sums():
    plain = run(record=sgf.Record(["beta"], 9))
    summed = run(record=sgf.Record(["beta"], 9, True))
    same(plain["beta"], summed["beta"])
    same(plain.final["log_alpha"], summed.final["log_alpha"])
    same(sgf.land(plain).beta, sgf.land(summed).beta)
    assert set(summed.to_xarray().data_vars) >= {"residual_work", "shrinkage", "final_xi_variation"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise", [sgf.PerSampleNoise(), sgf.MinibatchNoise(2) + sgf.LabelNoise(0.1, mean_loss=False)]
)
def test_other_noise_has_its_own_identity(noise):
    gaps = [
        np.abs(np.mean(sgf.lyapunov_identity(run(noise=noise, per_iteration=k)).difference[:, -1]))
        for k in (1, 8)
    ]
    assert gaps[1] < gaps[0] / 3


@pytest.mark.slow
def test_in_single_precision_and_at_another_loss_scale(paths):
    with jax.enable_x64(False):
        data = np.asarray(PROBLEM.X, np.float32), np.asarray(PROBLEM.y, np.float32)
        problem = sgf.SparseRegression(*data)
        single = sgf.lyapunov_identity(run(problem, sgf.DiagonalNetwork.init(alpha=0.1, d=25)))
    assert single.value.dtype == np.float32
    double = sgf.lyapunov_identity(run())
    np.testing.assert_allclose(single.value, double.value, atol=2e-4)
    np.testing.assert_allclose(single.martingale, double.martingale, atol=2e-4)
    half = sgf.SparseRegression(PROBLEM.X, PROBLEM.y, loss_scale=0.5)
    v = sgf.lyapunov_identity(run(half, per_iteration=16))
    assert np.median(v.gap) < 0.05 * np.std(v.martingale[:, -1])


@pytest.mark.slow
def test_controls_with_another_beta_and_the_other_sign_fail():
    runs = run(per_iteration=16)
    right = sgf.lyapunov_identity(runs)
    assert np.median(right.gap) < 0.05 * np.std(right.martingale[:, -1])
    other = sgf.lyapunov_identity(runs, interpolator=sgf.minimum_l2(PROBLEM))
    np.testing.assert_allclose(other.difference, right.difference, atol=1e-10)
    wrong = sgf.lyapunov_identity(runs, interpolator=1.1 * sgf.minimum_l1(PROBLEM))
    assert np.median(wrong.gap) > 10 * np.median(right.gap)
    flipped = right.difference + 2 * right.martingale
    assert np.median(np.abs(flipped[:, -1])) > 10 * np.median(right.gap)


@pytest.mark.slow
def test_it_prints_itself_and_takes_a_single_run():
    flow = sgf.StochasticGradientFlow(GAMMA)
    runs = sgf.simulate(flow, START, PROBLEM, keys=KEYS[0], t1=TIME, record=RECORD)
    v = sgf.lyapunov_identity(runs)
    assert v.gap.shape == ()
    assert repr(v).startswith("LyapunovIdentity(1 paths, median gap")


@pytest.mark.parametrize(
    ("dynamics", "start", "words"),
    [
        (sgf.StochasticGradientDescent(0.1), START, "those of a first-order stochastic flow"),
        (sgf.StochasticGradientFlow(0.1, order=2), START, "StochasticGradientFlow of order 2"),
        (
            sgf.StochasticGradientFlow(0.1, sgf.IsotropicNoise(0.1)),
            START,
            "isotropic noise acts on the features",
        ),
        (
            sgf.StochasticGradientFlow(0.1),
            sgf.DiagonalNetwork.init(alpha=0.1, d=25, depth=3),
            "DeepDiagonalNetwork sums nothing along its path",
        ),
        (
            sgf.StochasticGradientFlow(0.1),
            sgf.Drawn(lambda key: network()),
            "every seed of this run has a start of its own",
        ),
        (
            sgf.StochasticGradientFlow(0.1),
            eqx.nn.Linear(25, "scalar", key=jax.random.key(0)),
            "Linear sums nothing along its path",
        ),
    ],
)
def test_what_has_no_sums_is_refused(dynamics, start, words):
    with pytest.raises(ValueError, match=words):
        sgf.simulate(dynamics, start, PROBLEM, keys=KEYS, steps=2, record=RECORD)


def test_runs_without_sums_are_refused():
    runs = run(record=None)
    with pytest.raises(ValueError, match=r"run them again with record=Record\(path_sums=True\)"):
        sgf.lyapunov_identity(runs)
