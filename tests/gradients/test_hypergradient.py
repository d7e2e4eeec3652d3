"""Tests of derivatives of expected outcomes: both modes agree with central differences
with common random numbers, and bad seeds are excluded and reported.
"""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, small_problem

import sgfbias as sgf

KEYS = sgf.seeds(0, 3)
LAST = sgf.Record(times=2)
PROBLEM = small_problem()


def central(outcome, hyper, direction, h=1e-5):
    """Central difference of the mean outcome along a direction. It uses the compiled
    function of the gradient.
    """
    up, down = (jax.tree.map(lambda v, e, s=s: v + s * h * e, hyper, direction) for s in (1, -1))
    return float(
        sgf.hypergradient(outcome, up, keys=KEYS).value
        - sgf.hypergradient(outcome, down, keys=KEYS).value
    ) / (2 * h)


def check(outcome, hyper, rtol=1e-5):
    """Assert that forward mode, reverse mode and central differences agree, for each
    hyperparameter along a random direction.
    """
    report = sgf.hypergradient(outcome, hyper, keys=KEYS)
    forward = sgf.hypergradient(outcome, hyper, keys=KEYS, mode="forward")
    rng = np.random.default_rng(0)
    for name in hyper:
        scale = np.max(np.abs(report.gradient[name]))
        assert scale > 1e-6, f"{name} has no effect"
        np.testing.assert_allclose(
            forward.gradient[name], report.gradient[name], atol=1e-10 * scale, err_msg=name
        )
        shape = np.shape(hyper[name])
        direction = {
            k: jnp.asarray(rng.choice([-1.0, 1.0], shape) if k == name else np.zeros(np.shape(v)))
            for k, v in hyper.items()
        }
        expected = float(jnp.sum(report.gradient[name] * direction[name]))
        np.testing.assert_allclose(
            central(outcome, hyper, direction), expected, rtol=rtol, atol=rtol * scale, err_msg=name
        )


@pytest.mark.slow
def test_flow_in_weights_with_every_kind_of_noise():
    """The hyperparameters are an alpha for each coordinate, a real batch size, two
    schedules, the strength of isotropic noise, and the targets. The schedules are a
    warm-up from step size 0, where the root in the noise has no derivative, and a
    decaying label noise.
    """

    def outcome(h, key):
        noise = sgf.MinibatchNoise(h["batch"]) + sgf.LabelNoise(
            lambda k: h["delta"] / (1 + h["decay"] * k), mean_loss=False
        )
        flow = sgf.StochasticGradientFlow(
            lambda k: h["gamma"] * jnp.minimum(k, 4) / 4, noise + sgf.IsotropicNoise(h["sigma"])
        )
        problem = sgf.SparseRegression(PROBLEM.X, h["y"], PROBLEM.beta_star)
        net = sgf.DiagonalNetwork.init(log_alpha=h["log_alpha"])
        runs = sgf.simulate(
            flow, net, problem, keys=key, steps=25, coordinates="weights", record=LAST
        )
        return runs.final["validation_error"] + runs.final["loss_integral"]

    hyper = {
        "batch": 2.5,
        "delta": 0.3,
        "decay": 0.1,
        "gamma": 0.05,
        "sigma": 0.4,
        "log_alpha": np.full(25, -1.0),
        "y": np.asarray(PROBLEM.y),
    }
    check(outcome, hyper)


@pytest.mark.slow
def test_sgd_with_momentum_along_fixed_draws_on_a_model():
    """The hyperparameters are the momentum, the step size, the label noise, the scale
    of the model's initialisation, and the inputs.
    """
    model = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, dtype=jnp.float64, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(6, 2))

    def outcome(h, key):
        start = jax.tree.map(
            lambda leaf: leaf * h["scale"] if eqx.is_inexact_array(leaf) else leaf, model
        )
        sgd = sgf.StochasticGradientDescent(h["gamma"], 2, momentum=h["b"], label_noise=h["delta"])
        return sgf.simulate(
            sgd, start, sgf.Problem(h["X"], targets), keys=key, steps=20, record=LAST
        ).final["loss"]

    check(
        outcome, {"scale": 1.0, "gamma": 0.1, "b": 0.6, "delta": 0.2, "X": rng.normal(size=(6, 3))}
    )


def landed(h, key):
    net = sgf.DiagonalNetwork.init(log_alpha=h["log_alpha"])
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(h["gamma"]), net, PROBLEM, keys=key, steps=200, record=LAST
    )
    return sgf.land(runs).validation_error


@pytest.mark.slow
def test_the_landed_solution_is_differentiated_through_its_program():
    check(landed, {"log_alpha": np.full(25, -2.0), "gamma": 0.05})


@pytest.mark.slow
def test_second_derivatives_and_fixed_time():
    """A second derivative agrees with a difference of gradients. With a separate `dt`,
    the step size only scales the noise.
    """

    @jax.jit
    def outcome(gamma, dt):
        flow = sgf.StochasticGradientFlow(gamma, dt=dt)
        return (
            sgf.simulate(flow, network(0.3), PROBLEM, keys=KEYS, steps=30, record=LAST)
            .final["loss_integral"]
            .mean()
        )

    at, h = (jnp.asarray(0.05), jnp.asarray(0.05)), 1e-5
    slope = jax.jit(jax.grad(outcome, argnums=(0, 1)))
    curved = jax.jvp(lambda gamma: slope(gamma, at[1])[0], (at[0],), (1.0,))[1]
    np.testing.assert_allclose(
        curved, (slope(at[0] + h, at[1])[0] - slope(at[0] - h, at[1])[0]) / (2 * h), rtol=1e-5
    )
    fixed_steps = (outcome(at[0] + h, at[1] + h) - outcome(at[0] - h, at[1] - h)) / (2 * h)
    np.testing.assert_allclose(sum(slope(*at)), fixed_steps, rtol=1e-5)
    assert abs(float(slope(*at)[1])) > 1e-3, "the two derivatives differ"


@pytest.mark.slow
def test_a_step_size_is_differentiated_at_fixed_steps_or_at_fixed_time():
    """Gradient descent with one weight, w <- (1 - a gamma) w, has closed forms: after
    20 steps of 0.04, and at time 0.79 with a shorter last step.
    """
    a, w0, steps, gamma, time = 1.7, 0.3, 20, 0.04, 0.79
    problem, line = sgf.Problem(np.array([[np.sqrt(2 * a)]]), np.zeros(1)), Slope(jnp.asarray(w0))

    def end(step_size):
        return sgf.simulate(
            sgf.GradientDescent(step_size), line, problem, steps=steps, record=LAST
        ).networks.w

    shrink = 1 - a * gamma
    np.testing.assert_allclose(
        jax.grad(end)(gamma), -steps * a * shrink ** (steps - 1) * w0, rtol=1e-12
    )
    rest = 1 - a * (time - (steps - 1) * gamma)
    expected = (steps - 1) * a * w0 * (shrink ** (steps - 1) - rest * shrink ** (steps - 2))
    fixed = jax.value_and_grad(lambda g: end(sgf.UntilTime(g, t1=time, steps=steps)))
    np.testing.assert_allclose(
        fixed(gamma), (rest * shrink ** (steps - 1) * w0, expected), rtol=1e-11
    )
    assert np.isnan(fixed(2 * gamma)[0]), "time is over before the last step"
    runs = sgf.simulate(
        sgf.StochasticGradientDescent(sgf.UntilTime(gamma, t1=time, steps=steps)),
        line,
        problem,
        keys=KEYS,
        steps=steps,
    )
    assert float(runs.times[-1]) == pytest.approx(time)
    for action, message in (
        (
            lambda: sgf.UntilTime(gamma, t1=0.5, steps=20),
            r"would be -0.26 long, but must be between 0 and 0.08; take steps=12",
        ),
        (lambda: sgf.UntilTime(gamma, t1=0.5, steps=0), "whole number >= 1"),
        (
            lambda: end(sgf.UntilTime(gamma, t1=0.4, steps=10)),
            "ends after 10 iterations .* but the run has 20",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            action()


@pytest.mark.slow
def test_an_adaptive_flow_is_differentiated_in_the_mode_asked_for():
    """The validation error of the gradient flow is differentiated in log alpha."""

    def outcome(adjoint):
        def one(h, key):
            net = sgf.DiagonalNetwork.init(log_alpha=h, d=25)
            runs = sgf.simulate(
                sgf.GradientFlow(),
                net,
                PROBLEM,
                t1=5.0,
                record=LAST,
                adjoint=adjoint,
                solver=dfx.Tsit5(),
            )
            return runs.final["validation_error"]

        return one

    key = sgf.seeds(0, 1)
    reverse = sgf.hypergradient(outcome(None), -1.0, keys=key).gradient
    forward = sgf.hypergradient(outcome(dfx.ForwardMode()), -1.0, keys=key, mode="forward").gradient
    np.testing.assert_allclose(forward, reverse, rtol=1e-10)
    with pytest.raises(
        ValueError, match=r"no forward derivative: .* adjoint=diffrax.ForwardMode\(\)"
    ):
        sgf.hypergradient(outcome(None), -1.0, keys=key, mode="forward")
    with pytest.raises(ValueError, match="no reverse derivative: leave out"):
        sgf.hypergradient(outcome(dfx.ForwardMode()), -1.0, keys=key)
    with pytest.raises(ValueError, match="`adjoint` is for adaptive flows"):
        sgf.simulate(
            sgf.GradientDescent(0.1), network(), PROBLEM, steps=2, adjoint=dfx.ForwardMode()
        )
    with pytest.raises(ValueError, match="`adjoint` must be one of Diffrax's"):
        sgf.simulate(sgf.GradientFlow(), network(), PROBLEM, t1=1.0, adjoint="forward")


def noisy(h, key):
    """An outcome whose gradient in x is normal with mean 2 and variance 1. If "break"
    is 1, seeds with a normal number above 1 are not finite.
    """
    z = jax.random.normal(key)
    return (2 + z) * h["x"] + jnp.where(h["break"] * z > 1, jnp.nan, 0.0)


def test_seeds_that_are_not_finite_are_excluded_counted_and_warned_of():
    keys = sgf.seeds(0, 400)
    whole = sgf.hypergradient(noisy, {"x": 1.0, "break": 0.0}, keys=keys)
    assert whole.excluded == 0
    z = np.asarray(jax.vmap(jax.random.normal)(keys))
    np.testing.assert_allclose(whole.gradient["x"], 2 + z.mean(), rtol=1e-12)
    np.testing.assert_allclose(whole.gradient_error["x"], z.std(ddof=1) / 20, rtol=1e-12)
    with pytest.warns(UserWarning, match="seeds are not finite and are left out"):
        part = sgf.hypergradient(noisy, {"x": 1.0, "break": 1.0}, keys=keys)
    assert part.excluded == (z > 1).sum() > 0
    np.testing.assert_allclose(part.gradient["x"], 2 + z[z <= 1].mean(), rtol=1e-12)
    assert f"{part.excluded} excluded" in repr(part)
    with pytest.warns(UserWarning, match="400 of 400"):
        none = sgf.hypergradient(lambda h, key: h["x"] * jnp.nan, {"x": 1.0}, keys=keys)
    assert np.isnan(none.value)
    assert np.isnan(none.gradient["x"])


def test_a_gradient_that_one_seed_dominates_is_warned_of():
    def wild(h, key):
        return jnp.exp(20 * jax.random.normal(key)) * h

    with pytest.warns(UserWarning, match="one seed makes up"):
        assert sgf.hypergradient(wild, 1.0, keys=sgf.seeds(0, 64)).dominated
    assert not sgf.hypergradient(
        noisy, {"x": 1.0, "break": 0.0}, keys=sgf.seeds(0, 64)
    ).dominated, "control"


@pytest.mark.slow
def test_a_tangent_that_outgrew_all_others_is_warned_of():
    """With one weight, the tangent in the start is the product of the factors
    |1 - gamma x_i^2 / 2| of the drawn examples. At gamma = 1 they range from 1 to 31,
    so the products of different seeds are orders of magnitude apart. The outcome does
    not depend on the start, so its gradient does not show this.
    """
    x = np.array([0.1, 3.0, 4.0, 5.0, 8.0])
    problem = sgf.Problem(x[:, None], np.zeros(5))

    def growth(h, key, gamma=1.0):
        return sgf.tangent_growth(
            sgf.StochasticGradientDescent(gamma),
            Slope(jnp.asarray(0.3)),
            problem,
            steps=40,
            keys=key,
        )

    def outcome(h, key):
        return h * (1 + 0.1 * jax.random.normal(key))

    keys = sgf.seeds(0, 16)
    with pytest.warns(UserWarning, match="one seed makes up .* of the squared tangents"):
        wild = sgf.hypergradient(outcome, 1.0, keys=keys, growth=growth)
    squares = np.exp(2 * np.asarray(wild.growth.exponent * wild.growth.time))
    np.testing.assert_allclose(wild.growth_share, squares.max() / squares.sum(), rtol=1e-9)
    assert wild.share < 0.2
    assert "tangents grew" in repr(wild)
    tame = sgf.hypergradient(outcome, 1.0, keys=keys, growth=lambda h, key: growth(h, key, 0.01))
    assert not tame.dominated, "control"
    assert float(tame.growth_share) == pytest.approx(1 / 16)


BAD = {
    "a batch": (
        lambda: sgf.hypergradient(lambda h, key: h * jnp.ones(3), 1.0, keys=KEYS),
        r"must return a scalar for one key, but returns \(3,\)",
    ),
    "empty": (lambda: sgf.hypergradient(noisy, {}, keys=KEYS), "`hyper` is empty"),
    "text": (
        lambda: sgf.hypergradient(noisy, {"x": "a"}, keys=KEYS),
        r"\['x'\] must be real numbers",
    ),
    "complex": (lambda: sgf.hypergradient(noisy, {"x": 1j}, keys=KEYS), "dtype complex128"),
    "keys": (
        lambda: sgf.hypergradient(noisy, {"x": 1.0}, keys=jnp.arange(3)),
        "`keys` must be an array of typed PRNG keys",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    action, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        action()


def quadratic(h, key):
    """An outcome whose mean over keys is smallest at a = (0.3, 0.03) and b = 2 + the
    mean of the normal numbers.
    """
    pull = jax.random.normal(key)
    return jnp.sum(jnp.square(jnp.log(h["a"]) - jnp.log(jnp.array([0.3, 0.03])))) + jnp.square(
        h["b"] - 2 - pull
    )


START = {"a": np.array([0.1, 0.1]), "b": 0.0}
LIMITS = {"a": (1e-3, 1.0), "b": None}


@pytest.mark.slow
def test_tune_finds_a_minimum_within_bounds():
    keys = sgf.seeds(0, 50)
    found = sgf.tune(
        quadratic,
        START,
        keys=keys,
        bounds=LIMITS,
        optimiser=optax.adam(0.1),
        iterations=400,
        tolerance=1e-9,
    )
    np.testing.assert_allclose(found.hyper["a"], [0.3, 0.03], rtol=1e-3)
    np.testing.assert_allclose(
        found.hyper["b"], 2 + float(jax.vmap(jax.random.normal)(keys).mean()), atol=1e-3
    )
    assert found.history.sizes["iteration"] < 400
    assert "did not fall by" in found.reason
    assert (found.history["a"].values > 1e-3).all()
    assert (found.history["a"].values < 1).all()
    edge = sgf.tune(
        lambda h, key: -h,
        0.5,
        keys=keys,
        bounds=(0.0, 1.0),
        optimiser=optax.sgd(1.0),
        iterations=200,
    )
    assert 0.9 < float(edge.hyper) < 1


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
def test_tune_goes_on_from_its_checkpoint_to_the_same_numbers(tmp_path, fresh):
    options = {"keys": sgf.seeds(0, 8), "bounds": LIMITS, "fresh": fresh, "mode": "forward"}
    whole = sgf.tune(quadratic, START, iterations=12, **options)
    file = tmp_path / "search.npz"
    sgf.tune(quadratic, START, iterations=5, checkpoint=file, **options)
    resumed = sgf.tune(quadratic, START, iterations=12, checkpoint=file, **options)
    assert resumed.history.equals(whole.history)
    again = np.asarray(sgf.hypergradient(quadratic, whole.hyper, keys=sgf.seeds(0, 8)).value)
    assert (again == whole.value) is not fresh, "fresh seeds are other seeds"
    with pytest.raises(ValueError, match="of another outcome: its code has changed"):
        sgf.tune(
            lambda h, key: 1.001 * quadratic(h, key),
            START,
            iterations=12,
            checkpoint=file,
            **options,
        )
    with pytest.raises(ValueError, match="of another optimiser: its code has changed"):
        sgf.tune(
            quadratic,
            START,
            iterations=12,
            checkpoint=file,
            optimiser=optax.adam(0.06),
            **options,
        )
    with pytest.raises(ValueError, match="of another search"):
        sgf.tune(quadratic, {**START, "b": 1.0}, iterations=12, checkpoint=file, **options)


def test_tune_counts_bad_seeds_and_stops_where_none_is_left():
    part = sgf.tune(noisy, {"x": 1.0, "break": 1.0}, keys=sgf.seeds(0, 40), iterations=3)
    assert (part.history["excluded"] > 0).all()
    none = sgf.tune(lambda h, key: h * jnp.nan, 1.0, keys=sgf.seeds(0, 4), iterations=3)
    assert none.history.sizes["iteration"] == 1
    assert "no seed is finite" in none.reason
    for bounds, message in (
        ((2.0, 3.0), "strictly between 2.0 and 3.0, but is 1.0"),
        ((3.0, 2.0), "low < high"),
        ({"y": None}, "in the structure"),
    ):
        with pytest.raises(ValueError, match=message):
            sgf.tune(lambda h, key: h, 1.0, keys=sgf.seeds(0, 4), bounds=bounds)


class Slope(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return x[0] * self.w


@pytest.mark.slow
def test_tangent_growth_of_a_line_is_the_mean_logarithm_of_its_factors():
    """With one weight, w <- (1 - gamma x_i^2 / 2) w + ..., every step multiplies a
    difference by the factor of its example. Beyond the edge of stability it grows.
    """
    x = np.array([0.5, 1.0, 2.0])
    problem, line = sgf.Problem(x[:, None], np.ones(3)), Slope(jnp.asarray(0.3))
    for gamma in (0.1, 1.5):
        growth = sgf.tangent_growth(sgf.GradientDescent(gamma), line, problem, steps=40)
        assert float(growth.time) == pytest.approx(40 * gamma)
        np.testing.assert_allclose(
            growth.exponent, np.log(abs(1 - gamma * np.mean(x**2) / 2)) / gamma, rtol=1e-9
        )
    gamma, steps = 1.5, 400
    rates = np.asarray(
        sgf.tangent_growth(
            sgf.StochasticGradientDescent(gamma), line, problem, keys=sgf.seeds(0, 8), steps=steps
        ).exponent
    )
    factors = np.log(np.abs(1 - gamma * x**2 / 2))
    assert abs(rates.mean() - factors.mean() / gamma) < 5 * factors.std() / gamma / np.sqrt(
        8 * steps
    )
    with pytest.raises(ValueError, match="needs fixed steps; give GradientFlow a `dt`"):
        sgf.tangent_growth(sgf.GradientFlow(), line, problem, steps=3)


TARGET = {"x": 1.0}


def to_target(h, key):
    return (h - TARGET["x"]) ** 2 + 0 * jax.random.normal(key)


def test_a_checkpoint_is_of_what_the_outcome_reads(tmp_path, monkeypatch):
    """A global that is read counts. An open file cannot be compared, and is refused."""
    file = tmp_path / "search.npz"
    options = {"keys": sgf.seeds(0, 2), "checkpoint": file}
    sgf.tune(to_target, 0.5, iterations=1, **options)
    monkeypatch.setitem(TARGET, "x", 2.0)
    with pytest.raises(ValueError, match="of another outcome"):
        sgf.tune(to_target, 0.5, iterations=2, **options)
    with (
        (tmp_path / "notes.txt").open("w") as notes,
        pytest.raises(ValueError, match="the outcome -> <lambda>: notes is a _io"),
    ):
        sgf.tune(lambda h, key: print(h, file=notes), 0.5, iterations=1, **options)


def test_a_checkpoint_of_an_older_version_is_compared_by_its_value(tmp_path):
    """Versions before 0.2 stored neither the outcome nor the optimiser."""
    file = tmp_path / "search.npz"
    options = {"keys": sgf.seeds(0, 2), "checkpoint": file}
    sgf.tune(to_target, 0.5, iterations=1, **options)
    with np.load(file) as stored:
        older = {name: stored[name] for name in stored if name not in ("outcome", "optimiser")}
    np.savez(file, **older)
    with pytest.raises(ValueError, match=r"of another outcome: at the start it was .*, now it is"):
        sgf.tune(lambda h, key: 1.001 * to_target(h, key), 0.5, iterations=2, **options)
    np.savez(file, **older)
    assert sgf.tune(to_target, 0.5, iterations=2, **options).history.sizes["iteration"] == 2
