"""What the system says of arguments that do not fit, and of results that it has not."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.parts import check_size
from sgfbias.meanfield.report import NoiseReport
from sgfbias.meanfield.system import Linear

KEY = jax.random.key(0)
MIXTURE = mf.GaussianMixture(2.0, spectrum=0.5)
RULE = mf.MaskedDescent(0.1)
LOGISTIC = sgf.LogisticLoss()


def refused(words):
    return pytest.raises(ValueError, match=words)


def solved(data=MIXTURE, loss=LOGISTIC, rule=RULE, **options):
    return mf.solve(data, loss, rule, **{"steps": 2, "keys": KEY, "samples": 8, **options})


def simulated(data=MIXTURE, loss=LOGISTIC, rule=RULE, **options):
    return mf.simulate(data, loss, rule, **{"steps": 2, "keys": KEY, "d": 4, **options})


def stationary(data=MIXTURE, loss=LOGISTIC, **options):
    return mf.stationary_point(data, loss, ridge=0.1, **options)


def made_classes():
    rng = np.random.default_rng(0)
    y = np.repeat([-1.0, 1.0], 10)
    return (y[:, None] * 0.3 + rng.normal(size=(20, 4))) / 2, y


@pytest.mark.parametrize("run", [solved, simulated, stationary])
def test_readouts_of_one_output_that_are_no_functions_of_a_number(run):
    with refused("`readout` must be a function of the pre-activation, .* but is 2.0"):
        run(readout=2.0)
    with refused("`readout` must return one number .* but returns shape \\(2,\\)"):
        run(readout=lambda r: jnp.stack([r, r]))
    with refused("`readout` must return one number .* but returns tuple"):
        run(readout=lambda r: (r, r))
    with refused("`readout` must be a function of one pre-activation, a number, but fails on one"):
        run(readout=lambda r: r[0] + r[1])


@pytest.mark.parametrize("run", [solved, simulated])
def test_data_of_ones_own_have_no_readout(run):
    with refused("the test error of data from `fit` is known only without `readout`: leave it out"):
        run(mf.fit(*made_classes()), readout=jnp.tanh)


def test_the_error_where_w_sees_no_noise_is_certain():
    """With m > 0 all examples are on their side, and with m < 0 none."""
    clean = mf.GaussianMixture(2.0, spectrum=0.0)
    overlaps = jnp.asarray([0.5, -0.5, 0.0])
    error = clean.test_error(overlaps, jnp.zeros(3), None)
    np.testing.assert_array_equal(error, [0, 1, 0.5])
    slopes = jax.grad(lambda m: jnp.sum(clean.test_error(m, jnp.zeros(3), None)))(overlaps)
    np.testing.assert_array_equal(slopes, 0)
    X, y = made_classes()
    np.testing.assert_array_equal(
        mf.fit(X, y).test_error(overlaps, jnp.zeros(3), None), [0, 1, 0.5]
    )


@pytest.mark.slow
def test_clean_clusters_are_classified_without_error():
    clean = mf.GaussianMixture(2.0, spectrum=0.0)
    start = mf.Start(overlap=0.5)
    for curves in (solved(clean, start=start), simulated(clean, start=start)):
        np.testing.assert_array_equal(curves.test_error, 0)


def report():
    """A report with the lags 0, 1, 3 and 10."""
    drop, chi = jnp.asarray([[0.0, 1.0, 2.0, 3.0]] * 2), jnp.asarray([[0.0, 2.0, 8.0, 24.0]] * 2)
    steps = jnp.asarray([0, 5, 6, 8, 15])
    flat = jnp.zeros((2, 5))
    last = drop[:, -1] / chi[:, -1]
    return NoiseReport(steps, flat[0], jnp.ones(2), drop, chi, last, flat, waiting=5, numbers=7)


def test_the_slope_of_a_report_is_at_a_lag():
    found = report()
    np.testing.assert_array_equal(found.lags, [0, 1, 3, 10])
    for lag, expected in ((1, 0.5), (3, 0.25), (10, 0.125), (np.int64(3), 0.25)):
        np.testing.assert_array_equal(found.slope(lag), expected)
    assert "0.5 +- 0 at lag 1" in repr(found)
    for lag in (0, 2, 4, -1):
        with refused(f"`lag` must be one of those measured, 1, 3, 10, but is {lag}"):
            found.slope(lag)


@pytest.mark.parametrize("size", [(1000, 6000, 1, None, 4), (600, 100_000, 2, 590, 8)])
def test_the_memory_that_is_recommended_is_accepted(size):
    """And is the largest one, so that one lag more is refused again."""
    steps, samples, replicas, memory, itemsize = size
    with refused("write memory=") as caught:
        check_size(steps, samples, replicas, memory, itemsize)
    fits = int(str(caught.value).split("memory=")[1].split(",")[0])
    check_size(steps, samples, replicas, fits, itemsize)
    with refused("write memory="):
        check_size(steps, samples, replicas, fits + 1, itemsize)


def test_where_no_memory_fits_only_fewer_samples_are_recommended():
    with refused("GiB: take fewer samples$"):
        check_size(1000, 10**8, 1, None, 4)


def test_means_and_spectra_outside_their_ranges():
    for energy in (0.0, [0.0, 0.0]):
        with refused("no direction to learn, as every `mean_energy` is 0"):
            mf.GaussianMixture(2.0, spectrum=[1.0, 2.0], mean_energy=energy)
    for name in ("spectrum", "mean_energy"):
        words = f"`{name}` must have only finite entries that are not negative, but has"
        with refused(f"{words} inf"):
            mf.GaussianMixture(2.0, **{name: float("inf")})
        with refused(f"{words} -1"):
            mf.GaussianMixture(2.0, **{name: -1.0})
        with refused(f"`{name}` must be an array of numbers, but is the word 'flat'"):
            mf.GaussianMixture(2.0, **{name: "flat"})


def test_a_loss_that_is_not_finite_at_the_start_is_no_matter_of_the_step_size():
    flat = jnp.zeros((2, 4))
    lost = eqx.tree_at(lambda c: c.loss, solved(keys=sgf.seeds(0, 2), steps=3), flat + jnp.nan)
    assert "before the first step, so that the loss has no finite value" in lost.status()
    assert "step size" not in lost.status()
    later = eqx.tree_at(lambda c: c.loss, lost, flat.at[0, 2].set(jnp.inf))
    assert later.status() == (
        "1 finite, 1 non-finite from step 2 on: the step size is too large, take a smaller one"
    )


def test_the_stationary_point_is_not_traced():
    def at(ridge):
        return mf.stationary_point(MIXTURE, LOGISTIC, ridge=ridge).overlap

    for trace in (jax.jit, jax.grad):
        with refused("cannot be traced by jit, vmap or grad"):
            trace(at)(0.1)
    with refused("put the number into an AbstractLoss"):
        jax.grad(lambda a: stationary(loss=lambda o, y: a * (o - y) ** 2).overlap)(0.5)


def test_the_stationary_point_says_why_data_are_not_isotropic():
    with refused(r"these data have \|v\|\^2 / d = 2: use solve"):
        stationary(mf.GaussianMixture(2.0, mean_energy=2.0))
    with refused("these data have 2 eigenvalues: use solve"):
        stationary(mf.GaussianMixture(2.0, spectrum=[1.0, 2.0]))
    with refused("these data have a teacher with the eigenvalue 2, which must be 1"):
        stationary(mf.LinearTeacher(2.0, spectrum=2.0), sgf.SquaredLoss())
    with refused("given as an array: give numbers"):
        stationary(mf.GaussianMixture(2.0, spectrum=[1.0]))


def test_ranges_of_other_numbers():
    for wrong in (1, "yes", None):
        with refused("`sphere` must be True or False, but is"):
            mf.MaskedDescent(0.1, sphere=wrong)
    with refused("`step_size` must be positive and finite, but is 0.0"):
        mf.least_squares_temperature(4.0, 0.0, 0.3)
    with refused("`ridge` must be non-negative and finite, but is -0.1"):
        mf.least_squares_temperature(4.0, 0.05, 0.3, ridge=-0.1)
    with refused("`alpha` must be positive and finite, but is -1.0"):
        mf.marchenko_pastur(-1.0)
    with refused("`ridge` must be non-negative and finite, but is -0.1"):
        mf.stationary_point(MIXTURE, LOGISTIC, ridge=-0.1)
    curves = solved(steps=6)
    with refused("`lags` must be a whole number >= 2 and <= 4, but is 5"):
        mf.effective_temperature(curves, 2, lags=5)
    X, y = made_classes()
    X[3, 1] = np.nan
    with refused("`X` must be finite, but 1 of 80 entries are NaN or infinite"):
        mf.fit(X, y)


def test_reports_need_a_problem_and_runs_that_are_finite():
    problem = sgf.Problem(jnp.ones((4, 2)), jnp.ones(4), loss=sgf.SquaredLoss())
    options = {"keys": sgf.seeds(0, 2), "steps": 6, "waiting": 2}
    model = Linear(jnp.ones(2))
    with refused("`problem` must be a Problem, but is tuple; wrap the data: Problem"):
        mf.noise_report(
            sgf.StochasticGradientDescent(0.1), model, (problem.inputs, problem.targets), **options
        )
    fast = sgf.StochasticGradientDescent(1e200)
    with refused(r"some runs are not finite, .*: take a smaller step size than 1e\+200"):
        mf.noise_report(fast, model, problem, **options)


USER = """
import jax, numpy as np, sgfbias as sgf
assert not jax.config.jax_enable_x64
mf, loss = sgf.meanfield, sgf.LogisticLoss()
def single(tree):
    wide = [a for a in jax.tree.leaves(tree) if getattr(a, "dtype", None) == np.float64]
    assert not wide, wide
rng = np.random.default_rng(0)
y = np.repeat([-1, 1], 12)
X = (0.3 * y[:, None] + rng.normal(size=(24, 4))) / 2
two = mf.fit(X, y)
single(two)
three = mf.fit(X, np.arange(24) % 3)
single(three)
start, keys = mf.Start(variance=0.01), sgf.seeds(0, 2)
def run(law, loss, **options):
    return mf.solve(law, loss, rule, steps=2, keys=keys, samples=8, start=start, **options)
rule = mf.MaskedDescent(0.1, sgf.BernoulliMask(0.5))
for curves in (
    run(two, loss),
    run(three, sgf.SoftmaxCrossEntropyLoss()),
    mf.simulate(two, loss, rule, steps=2, keys=keys, start=start),
):
    single(curves)
    assert np.isfinite(curves.loss).all() and curves.loss.dtype == np.float32
def last(eta):
    return mf.solve(two, loss, mf.MaskedDescent(eta), steps=2, keys=keys).loss[0, -1]
try:
    jax.grad(last)(0.1)
except ValueError as error:
    assert "the theory needs float64 from the outside: write jax.config.update" in str(error), error
else:
    raise AssertionError("derivatives in float32 were not refused")
print("all in float32")
"""


@pytest.mark.slow
def test_the_precision_of_a_user_who_sets_nothing():
    done = subprocess.run(
        [sys.executable, "-c", USER],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "all in float32" in done.stdout, done.stderr[-2000:]
