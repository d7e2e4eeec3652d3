"""`simulate`: reproducibility, stopping, recording, statuses, precision, other models,
transformations.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network, rms, same, slope, small_problem

import sgfbias as sgf
from sgfbias.core.brownian import BROWNIAN_STREAM, StepBrownianPath
from sgfbias.core.cached import shapes_of

FLOW = sgf.StochasticGradientFlow(0.02)
SGD = sgf.StochasticGradientDescent(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", [FLOW, SGD], ids=["flow", "sgd"])
def test_chunks_seed_count_and_neighbours_do_not_change_a_bit(dynamics):
    problem, net = small_problem(), network()
    whole = sgf.simulate(dynamics, net, problem, keys=sgf.seeds(0, 130), steps=700)
    chopped = sgf.simulate(dynamics, net, problem, keys=sgf.seeds(0, 130), steps=700, chunk=97)
    same((whole.series, whole.final), (chopped.series, chopped.final))
    alone = sgf.simulate(dynamics, net, problem, keys=sgf.seeds(100, 101), steps=700)
    same(
        jax.tree.map(lambda v: v[100:101], (whole.series, whole.final)), (alone.series, alone.final)
    )
    single = sgf.simulate(dynamics, net, problem, keys=sgf.seeds(100, 101)[0], steps=700)
    same(jax.tree.map(lambda v: v[100], whole.final), single.final)
    assert not np.array_equal(whole.final["beta"][0], whole.final["beta"][1])


def test_a_flow_and_sgd_with_one_seed_are_independent():
    key = sgf.seeds(0, 1)[0]
    assert not np.array_equal(
        jax.random.key_data(jax.random.fold_in(key, BROWNIAN_STREAM)), jax.random.key_data(key)
    )


def test_coarse_increments_are_sums_of_fine_ones():
    key, width = jax.random.key(3), jnp.asarray(0.4)
    coarse = StepBrownianPath(key, jnp.int32(5), width, (7,), jnp.float64, jnp.int32(4))
    fine = StepBrownianPath(key, jnp.int32(20), width / 4, (7,), jnp.float64)
    total = sum(fine.evaluate(jnp.asarray(float(j)), jnp.asarray(float(j + 1))) for j in range(4))
    np.testing.assert_allclose(
        coarse.evaluate(jnp.asarray(0.0), jnp.asarray(1.0)), total, rtol=1e-13
    )


def test_brownian_increments_have_the_right_moments():
    path = StepBrownianPath(jax.random.key(0), jnp.int32(0), jnp.asarray(0.25), (4,), jnp.float64)
    draws = np.asarray(jax.vmap(lambda k: path.evaluate(k, k + 1))(jnp.arange(40_000.0)))
    n = draws.size
    assert abs(draws.mean()) < 4 * 0.5 / np.sqrt(n)
    assert abs(draws.var() / 0.25 - 1) < 4 * np.sqrt(2 / n)
    assert abs(np.corrcoef(draws[:-1].T, draws[1:].T)[:4, 4:]).max() < 5 / np.sqrt(len(draws)), (
        "steps are independent"
    )


@pytest.mark.slow
def test_adding_a_noise_leaves_the_path_of_the_first():
    problem, net = small_problem(), network()
    plain = sgf.simulate(FLOW, net, problem, keys=sgf.seeds(0, 2), steps=50)
    both = sgf.StochasticGradientFlow(0.02, sgf.MeanLossNoise() + sgf.IsotropicNoise(1e-12))
    np.testing.assert_allclose(
        sgf.simulate(both, net, problem, keys=sgf.seeds(0, 2), steps=50).final["beta"],
        plain.final["beta"],
        rtol=1e-8,
    )


def test_stopped_seeds_are_frozen_and_the_rest_goes_on():
    problem, net, keys = small_problem(), network(), sgf.seeds(0, 6)
    free = sgf.simulate(FLOW, net, problem, keys=keys, steps=6000)
    level = float(jnp.median(free.final["loss"]))
    runs = sgf.simulate(FLOW, net, problem, keys=keys, steps=6000, stop=level)
    stopped = np.isfinite(np.asarray(runs.stop_time))
    assert 0 < stopped.sum() < 6 or stopped.all()
    for i in range(6):
        times, loss = np.asarray(runs.times), np.asarray(runs["loss"][i])
        if stopped[i]:
            after = times >= float(runs.stop_time[i])
            assert len(set(loss[after])) == 1
            assert loss[-1] <= level
            before = times < float(runs.stop_time[i])
            np.testing.assert_array_equal(loss[before], np.asarray(free["loss"][i])[before])
        else:
            np.testing.assert_array_equal(loss, np.asarray(free["loss"][i]))
    assert runs.statuses().get("converged", 0) == stopped.sum()
    chopped = sgf.simulate(FLOW, net, problem, keys=keys, steps=6000, stop=level, chunk=500)
    same(runs.final, chopped.final)


def test_recording_a_grid_of_times_and_functions_of_the_network():
    problem, net = small_problem(), network()
    record = sgf.Record(
        {"l1": lambda m: jnp.sum(jnp.abs(m.beta)), "beta": None}, np.array([0.0, 0.2, 1.0])
    )
    runs = sgf.simulate(FLOW, net, problem, keys=sgf.seeds(0, 3), steps=50, record=record)
    assert runs["l1"].shape == (3, 3)
    assert runs["beta"].shape == (3, 3, 25)
    np.testing.assert_allclose(runs.times, [0, 0.2, 1.0])
    np.testing.assert_allclose(runs["l1"], np.abs(runs["beta"]).sum(-1), rtol=1e-14)
    np.testing.assert_array_equal(runs["beta"][:, -1], runs.final["beta"])
    assert float(jnp.abs(runs["beta"][:, 0]).max()) == 0
    with pytest.raises(KeyError, match=r"validation_error.*final"):
        runs["validation_error"]


def test_time_is_flow_time_for_flows_and_algorithms():
    problem, net = small_problem(), network()
    for dynamics in (FLOW, SGD):
        runs = sgf.simulate(dynamics, net, problem, keys=sgf.seeds(0, 2), t1=3.0)
        assert int(runs.steps[-1]) == 150
        np.testing.assert_allclose(runs.times[-1], 3.0)
    wide = sgf.simulate(
        sgf.StochasticGradientFlow(0.02, dt=0.06), net, problem, keys=sgf.seeds(0, 2), steps=50
    )
    np.testing.assert_allclose(wide.times[-1], 3.0)


def test_divergence_is_marked_counted_and_leaves_the_rest():
    problem, net = small_problem(), network()
    runs = sgf.simulate(
        sgf.StochasticGradientDescent(0.5), net, problem, keys=sgf.seeds(0, 64), steps=3000
    )
    counts = runs.statuses()
    assert counts.get("non-finite", 0) > 0
    bad = np.asarray(runs.diverged)
    assert bad.sum() == counts.get("non-finite", 0) + counts.get("stalled high", 0)
    assert "non-finite" in runs.reason(int(np.flatnonzero(np.asarray(runs.status) == 3)[0]))
    assert "non-finite" in repr(runs)
    if not bad.all():
        good = int(np.flatnonzero(~bad)[0])
        alone = sgf.simulate(
            sgf.StochasticGradientDescent(0.5),
            net,
            problem,
            keys=sgf.seeds(good, good + 1),
            steps=3000,
        )
        np.testing.assert_array_equal(runs.final["beta"][good], alone.final["beta"][0])


def test_divergence_without_nan_is_stalled_high():
    """Far beyond the limit of stability in mean square, the loss of the mirror flow
    stays high and finite.
    """
    problem, net = small_problem(), network(0.05)
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(0.6, dt=0.02), net, problem, keys=sgf.seeds(0, 32), t1=200.0
    )
    stalled = np.asarray(runs.status) == sgf.Status.STALLED
    assert stalled.sum() > 0
    assert np.isfinite(np.asarray(runs.final["loss"])[stalled]).all()
    assert "stalled high" in runs.reason(int(np.flatnonzero(stalled)[0]))
    small = sgf.simulate(
        sgf.StochasticGradientFlow(0.01), net, problem, keys=sgf.seeds(0, 32), t1=200.0
    )
    assert not bool(small.diverged.any()), "control"


@pytest.mark.slow
def test_a_minimum_that_is_not_zero_is_no_divergence():
    """In least squares without an interpolating solution, gradient descent converges to
    the least loss. The least value of a loss that a user writes is unknown, unless
    `stop` is given.
    """
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 25)), rng.normal(size=40)
    problem, best = sgf.SparseRegression(X, y), np.linalg.lstsq(X, y)[1][0] / 160
    run = sgf.simulate(sgf.GradientDescent(0.02), network(0.3), problem, steps=20_000)
    assert run.statuses() == {"converged": 1}
    np.testing.assert_allclose(run.tolerance, best, rtol=1e-9)
    short = sgf.simulate(sgf.GradientDescent(0.02), network(0.3), problem, steps=400)
    assert short.statuses() == {"moving": 1}

    below = sgf.Problem(X, y, loss=lambda f, t: jnp.square(f - t) / 4 - 1)
    unknown = sgf.simulate(sgf.GradientDescent(0.02), network(0.3), below, steps=20_000)
    assert unknown.statuses() == {"moving": 1}
    assert "give `stop`" in unknown.reason()
    stopped = sgf.simulate(
        sgf.GradientDescent(0.02),
        network(0.3),
        below,
        steps=20_000,
        stop=float(unknown.final["loss"]) + 1e-9,
    )
    assert stopped.statuses() == {"converged": 1}
    up = sgf.simulate(
        sgf.StochasticGradientDescent(0.3), network(0.3), below, keys=sgf.seeds(0, 16), steps=20_000
    )
    assert int(up.diverged.sum()) > 0


@pytest.mark.slow
def test_float32_sees_the_same_path_and_stays_close():
    problem, net = small_problem(), network()
    single = sgf.SparseRegression(
        *(np.asarray(a, np.float32) for a in (problem.X, problem.y, problem.beta_star))
    )
    low = sgf.DiagonalNetwork.init(alpha=0.1, d=25, dtype=jnp.float32)
    a = sgf.simulate(FLOW, net, problem, keys=sgf.seeds(0, 8), steps=2000)
    b = sgf.simulate(FLOW, low, single, keys=sgf.seeds(0, 8), steps=2000)
    assert b["loss"].dtype == jnp.float32
    # 2,000 steps with a rounding of 6e-8 in a contracting system differ by far less
    # than the Euler error, which is about 1e-3.
    assert rms(a.final["beta"] - b.final["beta"].astype(jnp.float64)) < 1e-5


def test_float32_time_does_not_merge_steps():
    """The run has more steps than float32 time could count in one solve. The loss stays
    at 1 and gamma is 2^-10, so the integral counts the steps exactly.
    """
    single = sgf.SparseRegression(np.zeros((1, 2), np.float32), np.full(1, 2.0, np.float32))
    low = sgf.DiagonalNetwork.init(alpha=0.1, d=2, dtype=jnp.float32)
    steps = 150_001
    runs = sgf.simulate(sgf.GradientDescent(2.0**-10), low, single, steps=steps)
    assert float(runs.final["loss_integral"]) * 1024 == steps


@pytest.mark.slow
def test_sgd_and_gd_are_the_textbook_iterations():
    problem, net, gamma = small_problem(), network(), 0.03
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    plus = minus = np.full(25, 0.1)
    integral = 0.0
    for _ in range(200):
        r = X @ (plus**2 - minus**2) - y
        integral += gamma * np.mean(r**2) / 4
        g = gamma * X.T @ r / 10
        plus, minus = plus * (1 - g), minus * (1 + g)
    runs = sgf.simulate(sgf.GradientDescent(gamma), net, problem, steps=200)
    np.testing.assert_allclose(runs.final["beta"], plus**2 - minus**2, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(runs.final["loss_integral"], integral, rtol=1e-12)
    # The mean step of minibatches is that of the full batch, within 5 standard errors.
    ensemble = sgf.simulate(
        sgf.StochasticGradientDescent(gamma, 5), net, problem, keys=sgf.seeds(0, 512), steps=1
    ).final["beta"]
    first = sgf.simulate(sgf.GradientDescent(gamma), net, problem, steps=1).final["beta"]
    error = ensemble.std(0) / np.sqrt(512)
    assert (np.abs(ensemble.mean(0) - first) < 5 * error + 1e-4).all()


@pytest.mark.slow
def test_three_charts_agree_on_one_path_as_dt_falls():
    problem, net, gamma, widths = small_problem(), network(), 0.02, (1, 1 / 4, 1 / 16)
    # With this noise the covariance has a diagonal and a rank-one part.
    for noise in (sgf.MinibatchNoise(1),):
        gaps = {"log": [], "weights": []}
        for width in widths:
            flow = sgf.StochasticGradientFlow(
                gamma, noise, dt=gamma * width, brownian_dt=gamma / 16
            )

            def run(name, flow=flow, width=width):
                keys = sgf.seeds(0, 16)
                return sgf.simulate(
                    flow, net, problem, keys=keys, steps=round(300 / width), coordinates=name
                ).final["beta"]

            mirror = run("mirror")
            for name, gap in gaps.items():
                gap.append(rms(run(name) - mirror))
        assert max(gaps["log"]) < 1e-10, (
            "log and mirror are the same scheme in two coordinate systems"
        )
        assert slope(widths, gaps["weights"]) > 0.4


@pytest.mark.slow
def test_any_model_with_the_same_verb():
    """For an MLP with two outputs, the flow's Euler step equals one written by hand
    with an explicit Jacobian.
    """
    key = jax.random.key(0)
    model = eqx.nn.MLP(3, 2, 8, 1, dtype=jnp.float64, key=key)
    inputs, labels = jax.random.normal(key, (6, 3)), jax.random.normal(jax.random.key(1), (6, 2))
    problem = sgf.Problem(inputs, labels, loss=sgf.SquaredLoss(0.5))
    gamma, keys = 0.1, sgf.seeds(0, 2)
    for noise in (sgf.MinibatchNoise(2),):
        runs = sgf.simulate(
            sgf.StochasticGradientFlow(gamma, noise), model, problem, keys=keys, steps=3
        )
        params, static = eqx.partition(model, eqx.is_inexact_array)
        flat, unravel = jax.flatten_util.ravel_pytree(params)

        def outputs(p, static=static, unravel=unravel):
            return jax.vmap(eqx.combine(unravel(p), static))(inputs)

        path = StepBrownianPath(
            jax.random.fold_in(keys[1], BROWNIAN_STREAM),
            jnp.int32(0),
            jnp.asarray(gamma),
            noise.shapes((6, 2), None),
            jnp.float64,
        )
        w = flat
        for k in range(3):
            J = jax.jacobian(outputs)(w).reshape(12, -1)
            slopes = outputs(w) - labels
            increment = noise.sqrt_covariance(
                slopes,
                jnp.asarray(gamma),
                path.evaluate(jnp.asarray(float(k)), jnp.asarray(k + 1.0)),
            ).examples
            w = w + J.T @ (-slopes / 6 * gamma + increment).ravel()
        final = jax.flatten_util.ravel_pytree(
            jax.tree.map(lambda v: v[1], eqx.filter(runs.networks, eqx.is_inexact_array))
        )[0]
        np.testing.assert_allclose(final, w, rtol=1e-10, atol=1e-12)
    # 70 seeds are more than one tile.
    sgd = sgf.simulate(
        sgf.StochasticGradientDescent(0.1, 3), model, problem, keys=sgf.seeds(0, 70), steps=200
    )
    assert float(sgd.final["loss"].max()) < float(problem.risk(model))
    assert "70" in repr(sgd)
    with pytest.raises(ValueError, match="only the coordinates 'weights'"):
        sgf.simulate(
            sgf.StochasticGradientFlow(0.1),
            model,
            problem,
            keys=keys,
            steps=1,
            coordinates="mirror",
        )


@pytest.mark.slow
def test_gradient_flow_with_fixed_steps_tends_to_the_adaptive_one():
    problem, net = small_problem(), network()
    exact = sgf.simulate(sgf.GradientFlow(), net, problem, t1=10.0).final["beta"]
    errors = [
        rms(sgf.simulate(sgf.GradientFlow(dt=dt), net, problem, t1=10.0).final["beta"] - exact)
        for dt in (0.1, 0.05, 0.025)
    ]
    assert 0.8 < slope((0.1, 0.05, 0.025), errors) < 1.3
    runs = sgf.simulate(sgf.GradientFlow(dt=0.1), net, problem, t1=10.0, solver=dfx.Tsit5())
    assert rms(runs.final["beta"] - exact) < 1e-5
    stopped = sgf.simulate(sgf.GradientFlow(), net, problem, t1=1e4, stop=1e-8)
    assert float(stopped.stop_time) < 1e4
    assert stopped.statuses() == {"converged": 1}
    assert float(stopped["loss"][-1]) <= 1e-8


def test_trajectory_prints_itself_and_becomes_a_dataset():
    problem, net = small_problem(), network()
    runs = sgf.simulate(FLOW, net, problem, keys=sgf.seeds(0, 3), steps=100)
    text = repr(runs)
    for words in ("3", "float64", "MB", "moving", "mirror", "100 steps"):
        assert words in text
    table = runs.to_xarray()
    assert table["loss"].dims == ("seed", "time")
    assert table["final_beta"].dims == ("seed", "feature")
    assert table["time"].attrs["units"] == "flow time"
    for name in ("config", "versions", "device", "precision", "prng", "revision"):
        assert table.attrs[name]
    single = sgf.simulate(sgf.GradientDescent(0.02), net, problem, steps=100)
    assert single["loss"].ndim == 1
    assert single.to_xarray()["loss"].dims == ("time",)


def test_progress_is_reported_once_per_chunk():
    problem, net, seen = small_problem(), network(), []
    sgf.simulate(
        FLOW,
        net,
        problem,
        keys=sgf.seeds(0, 70),
        steps=250,
        chunk=100,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(k, 6) for k in range(1, 7)], "two tiles of three chunks"


@pytest.mark.slow
def test_gradient_flow_in_float32_arrives_and_agrees():
    problem, net = small_problem(), network()
    single = sgf.SparseRegression(
        *(np.asarray(a, np.float32) for a in (problem.X, problem.y, problem.beta_star))
    )
    low = sgf.DiagonalNetwork.init(alpha=0.1, d=25, dtype=jnp.float32)
    runs = sgf.simulate(sgf.GradientFlow(), low, single, t1=1e4)
    assert runs.status != sgf.Status.GAVE_UP
    np.testing.assert_allclose(
        runs.final["beta"],
        sgf.simulate(sgf.GradientFlow(), net, problem, t1=1e4).final["beta"],
        atol=1e-4,
    )


@pytest.mark.slow
def test_an_adaptive_solver_that_gives_up_says_so(monkeypatch):
    monkeypatch.setattr("sgfbias.core.dynamics.ADAPTIVE_STEPS", 9)
    runs = sgf.simulate(sgf.GradientFlow(rtol=1e-10), network(0.07), small_problem(5), t1=1e3)
    assert runs.statuses() == {"gave up": 1}
    assert "ran out of steps" in runs.reason()
    assert np.isnan(np.asarray(runs["loss"])[-1]), "what was not reached is not made up"
    assert np.isfinite(np.asarray(runs["loss"])[1])


def test_long_times_are_counted_to_the_step():
    from sgfbias.core.arguments import count_steps

    flow = sgf.StochasticGradientFlow(0.05)
    assert count_steps(None, 200_000.0, flow, flow.clock) == 4_000_000
    assert count_steps(None, 1.01, flow, flow.clock) == 21


class _Repeats(eqx.Module):
    times: Any = eqx.field(static=True)
    scale: Any

    def __call__(self, x):
        return jnp.tile(x * self.scale, 2 if self.times is True else self.times)


def test_what_is_remembered_of_tracing_depends_on_all_that_shapes_depend_on():
    """The cache keeps apart settings that are equal but not identical (1 and True),
    shapes, dtypes, and whether float64 is enabled. The order of the calls would reveal
    a stale answer.
    """
    x = jnp.ones(3)
    for times, size in ((1, 3), (True, 6), (1, 3), (3, 9)):
        assert shapes_of(_Repeats(times, 1.0), x).shape == (size,)
    assert shapes_of(_Repeats(1, 1.0), jnp.ones(5)).shape == (5,)
    assert shapes_of(_Repeats(1, 1.0), jnp.ones(3, jnp.float32)).dtype == jnp.float32
    assert shapes_of(_Repeats(1, 1), jnp.ones(3, jnp.int32)).dtype == jnp.int32
    assert shapes_of(_Repeats(1, 1.0), x).dtype == jnp.float64
    assert shapes_of(jnp.linspace, 0.0, 1.0).dtype == jnp.float64
    with jax.enable_x64(False):
        assert shapes_of(jnp.linspace, 0.0, 1.0).dtype == jnp.float32
    assert [shapes_of(lambda x, k=k: jnp.zeros(k), x).shape for k in (1, 2)] == [(1,), (2,)]


def test_a_bar_without_a_terminal_prints_nothing(capsys):
    sgf.simulate(FLOW, network(), small_problem(), keys=sgf.seeds(0, 2), steps=4, progress=True)
    assert capsys.readouterr() == ("", "")
