"""The flow by the clock nu, against closed forms, identities and solutions by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffrax import Tsit5
from scipy.integrate import quad

import sgfbias as sgf
from sgfbias import margin

PAIR = np.array([[np.cos(np.pi / 8), np.sin(np.pi / 8)], [np.cos(np.pi / 20), np.sin(np.pi / 20)]])
ZERO = margin.Linear(jnp.zeros(2))
# One shape of data, two examples in two dimensions, so that few programs are compiled.
RECORD = sgf.Record(
    {
        "weights": lambda network: network.w,
        "conditioner": None,
        **dict.fromkeys(
            ("nu", "log10_loss", "log_time", "q_min", "margin_l2", "margin_linf", "gap_l2",
             "gap_linf", "gap_metric", "surrogate_margin", "loss_time_speed")
        ),
    },
    times=60,
)  # fmt: skip


def problem(X=PAIR, loss=None):
    return sgf.Problem(jnp.asarray(X), jnp.ones(2), loss=loss or margin.ExponentialLoss())


def follow(conditioner, X=PAIR, start=ZERO, t1=1e4, record=RECORD, **options):
    flow = margin.MarginFlow(conditioner, rtol=1e-10, atol=1e-12)
    return sgf.simulate(flow, start, problem(X), t1=t1, record=record, **options)


def unit(v):
    return np.asarray(v) / np.linalg.norm(v)


@pytest.fixture(scope="module")
def gd():
    start = margin.Linear(jnp.asarray([0.3, -0.2]))
    return follow(margin.Identity(), start=start, t1=1e3, solver=Tsit5())


@pytest.fixture(scope="module")
def adagrad():
    return follow(margin.AdaGrad(1e-8), t1=1e5)


def test_the_clock_is_nu(gd, adagrad):
    for run in (gd, adagrad):
        np.testing.assert_allclose(run["nu"], run.times, rtol=1e-7, atol=1e-7)
        assert run.reason().startswith(f"moving: nu = {float(run.times[-1]):.6g}, a loss of 10^-")
    w = np.asarray(gd["weights"])
    q = w @ PAIR.T
    np.testing.assert_allclose(gd["nu"], -np.logaddexp(-q[:, 0], -q[:, 1]), rtol=1e-12)
    assert np.all(q.min(axis=1) - np.log(2) <= gd["nu"] + 1e-12)
    assert np.all(gd["nu"] <= q.min(axis=1) + 1e-12)
    np.testing.assert_allclose(gd.final["log10_loss"], -(1e3 + np.log(2)) / np.log(10), rtol=1e-7)
    assert float(gd.final["loss"]) == 0
    assert float(gd.times[0]) == pytest.approx(float(margin.nu(gd.network, gd.problem)))


def test_what_is_recorded_is_what_it_says(gd, adagrad):
    for run in (gd, adagrad):
        w, h = np.asarray(run.networks.w), np.asarray(run.final["conditioner"])
        q = w @ PAIR.T
        share = np.exp(-q + np.logaddexp(-q[0], -q[1]) * -1)
        G = share @ PAIR
        np.testing.assert_allclose(run.final["q_min"], q.min(), rtol=1e-12)
        np.testing.assert_allclose(run.final["margin_l2"], q.min() / np.linalg.norm(w), rtol=1e-12)
        np.testing.assert_allclose(run.final["margin_linf"], q.min() / np.abs(w).max(), rtol=1e-12)
        rho = np.sqrt(np.sum(w**2 / h))
        np.testing.assert_allclose(
            run.final["surrogate_margin"], float(run.final["nu"]) / rho, rtol=1e-10
        )
        gaps = {
            "l2": 1 - w @ G / np.linalg.norm(w) / np.linalg.norm(G),
            "linf": 1 - w @ G / np.abs(w).max() / np.abs(G).sum(),
            "metric": 1 - w @ G / rho / np.sqrt(np.sum(h * G**2)),
        }
        for name, gap in gaps.items():
            np.testing.assert_allclose(run.final[f"gap_{name}"], gap, rtol=1e-6, atol=1e-10)


@pytest.mark.slow
def test_gradient_flow_is_gradient_flow():
    """By the flow time that the clock has counted, core's flow is at the same place."""
    start = margin.Linear(jnp.asarray([0.3, -0.2]))
    run = follow(margin.Identity(), start=start, t1=3.0, solver=Tsit5())
    t1 = float(np.exp(run.final["log_time"]))
    ours = sgf.simulate(sgf.GradientFlow(), start, problem(), t1=t1, solver=Tsit5())
    np.testing.assert_allclose(run.networks.w, ours.networks.w, rtol=1e-6)
    np.testing.assert_allclose(run.final["loss"], ours.final["loss"], rtol=1e-6)
    np.testing.assert_allclose(run.final["loss_integral"], ours.final["loss_integral"], rtol=1e-6)


def test_gradient_flow_goes_to_the_svm(gd):
    svm = margin.max_margin(PAIR, np.ones(2))
    distance = np.linalg.norm(unit(gd.networks.w) - unit(svm.weights))
    assert distance < 2e-3
    np.testing.assert_allclose(gd.final["loss_time_speed"], 1, atol=1e-6)
    rises = np.diff(np.asarray(gd["surrogate_margin"])[np.asarray(gd.times) > 0])
    assert np.all(rises > 0)


def test_adagrad_on_the_pair(adagrad):
    """Numbers that were computed independently: h at the end, and the direction at nu =
    1e5, which is 4e-5 from its limit.
    """
    np.testing.assert_allclose(adagrad.final["conditioner"], [2.53848, 9.41054], atol=1e-5)
    np.testing.assert_allclose(unit(adagrad.networks.w), [0.86232, 0.50636], atol=1e-5)
    own = margin.max_margin(PAIR, np.ones(2), norm=1 / np.asarray(adagrad.final["conditioner"]))
    assert np.linalg.norm(unit(adagrad.networks.w) - unit(own.weights)) < 5e-5
    np.testing.assert_allclose(adagrad.final["loss_time_speed"], 1, atol=1e-6)


@pytest.mark.parametrize("angle", [0.05, 1.0])
@pytest.mark.parametrize("eps", [1e-8, 1e-3, 1.0])
def test_adagrad_on_one_example(adagrad, angle, eps):
    """Twice the same example is one. Its path, `e^(-u) = e^(-u0) - 2 sum ...`, and its
    limit are closed forms.
    """
    x = np.array([np.cos(angle), np.sin(angle)])
    start = np.array([0.4, -0.3])
    X, begin = np.stack([x, x]), margin.Linear(jnp.asarray(start))
    # At the end of a run nothing is interpolated.
    for t1 in (0.5, 3.0, 1e4):
        run = follow(margin.AdaGrad(eps), X, begin, t1=t1)
        w, h = np.asarray(run.networks.w), np.asarray(run.final["conditioner"])
        path = (h[1] ** -2 - eps) / x[1] ** 2
        rise = np.sum(np.sqrt(eps + path * x**2) - np.sqrt(eps))
        error = np.exp(-w @ x) - (np.exp(-start @ x) - 2 * rise)
        assert abs(error) < 1e-9
    limit = margin.adagrad_limit(x, start, eps=eps)
    np.testing.assert_allclose(h, limit.conditioner, rtol=1e-7)
    series, late = np.asarray(run["weights"]), np.asarray(run.times) > 1e3
    np.testing.assert_allclose(unit(w - series[late][0]), limit.direction, atol=1e-6)


def test_limits_of_adagrads_limit():
    x, w0 = np.array([0.8, -0.3, 0.05]), np.array([0.1, 0.2, -0.4])
    tiny = margin.adagrad_limit(x, w0, eps=1e-30)
    np.testing.assert_allclose(tiny.direction, unit(np.sign(x)), atol=1e-10)
    large = margin.adagrad_limit(x, w0, eps=1e24)
    np.testing.assert_allclose(large.direction, unit(x), atol=1e-10)
    for eps in (1e-20, 1e-3, 1e5):
        limit = margin.adagrad_limit(x, w0, eps=eps)
        rise = np.sum(np.sqrt(eps + x**2 * limit.path_sum) - np.sqrt(eps))
        np.testing.assert_allclose(2 * rise, np.exp(-x @ w0), rtol=1e-6)
    with pytest.raises(ValueError, match="and not be 0"):
        margin.adagrad_limit(np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="`eps` must be positive"):
        margin.adagrad_limit(np.ones(2), np.zeros(2), eps=0.0)


@pytest.mark.slow
def test_the_crossover_is_where_it_is_predicted():
    """With c = 5, the largest average of squares falls to eps within 0.1 of nu_x."""
    record = RECORD._replace(times=np.linspace(0, 90, 1801))
    for eps in (1e-4, 1e-8, 1e-12, 1e-16, 1e-24):
        run = follow(margin.RMSProp(0.0, eps, step_size=0.2), t1=90.0, record=record)
        largest = np.max(np.asarray(run["conditioner"]) ** -2 - eps, axis=1)
        nus = np.asarray(run.times)
        after = int(np.flatnonzero(largest > eps)[-1]) + 1
        a, b = np.log(largest[after - 1 : after + 1] / eps)
        seen = nus[after - 1] + (nus[after] - nus[after - 1]) * a / (a - b)
        w = np.asarray(run["weights"])[after]
        share = np.exp(-w @ PAIR.T)
        predicted = margin.crossover(share @ PAIR / share.sum(), n=2, eps=eps, forgets=5.0)
        assert abs(seen - predicted) < 0.1, (eps, seen, predicted)
        # Before it the direction is that of l_inf, and at the end it nears that of l2.
        early = int(np.searchsorted(nus, predicted - 2))
        assert eps == 1e-4 or float(run["gap_linf"][early]) < 0.01, eps
    assert float(run["gap_l2"][-1]) < float(run["gap_l2"][early])


def test_rates_of_adam_and_its_bound():
    """Without decays Adam is sign descent, and the equation holds at the root."""
    assert margin.adam_rate(0.37, 0.01, b1=0.0, b2=0.0) == 0.37 * 0.01
    assert 0.99 < margin.adam_rate(0.3714, 10.0) / (-np.log(0.999) / 2) < 1
    for lr in (1e-3, 1e-2):
        r = margin.adam_rate(0.3714, lr)
        shrink = np.sqrt((1 - 0.999 * np.exp(2 * r)) / (1 - 0.999))
        np.testing.assert_allclose(r, 0.3714 * lr * 0.1 / (1 - 0.9 * np.exp(r)) * shrink, rtol=1e-6)
    np.testing.assert_allclose(margin.adam_rate(0.37138878, 0.01), 4.916e-4, atol=1e-7)
    with pytest.raises(ValueError, match="`b2` must be at least 0 and below 1"):
        margin.adam_rate(0.3, 0.1, b2=1.0)
    with pytest.raises(ValueError, match="`eps` must be positive"):
        margin.crossover(np.ones(2), n=2, eps=0.0)


class Product(eqx.Module):
    """`f(x) = x w_1 ... w_L`."""

    w: jax.Array

    def __call__(self, x):
        return x * jnp.prod(self.w)


@pytest.mark.slow
def test_a_product_of_equal_weights_takes_the_time_of_the_closed_form():
    """`t = int e^q / (L q^(2 - 2/L)) dq` from q = 0.5 to 30, with L = 3."""
    ones = sgf.Problem(jnp.ones(1), jnp.ones(1), loss=margin.ExponentialLoss())
    start = Product(jnp.full(3, 0.5 ** (1 / 3)))
    run = sgf.simulate(margin.MarginFlow(rtol=1e-10), start, ones, t1=30.0)
    np.testing.assert_allclose(run.final["log_time"], 24.4136786755, rtol=1e-9)
    time, _ = quad(lambda q: np.exp(q - 30) / (3 * q ** (4 / 3)), 0.5, 30, epsabs=0, epsrel=1e-11)
    np.testing.assert_allclose(run.final["log_time"], np.log(time) + 30, rtol=1e-9)
    # L_mean t (log t)^(2 - 2/L) L -> 1, from below.
    t = np.asarray(run["log_time"])[1:]
    limit = np.exp(-np.asarray(run["nu"])[1:] + t) * 3 * np.abs(t) ** (4 / 3)
    assert 0.7 < limit[-1] < 1


@pytest.mark.slow
def test_a_product_of_two_weights_conserves_the_difference_of_their_squares():
    ones = sgf.Problem(jnp.ones(1), jnp.ones(1), loss=sgf.LogisticLoss())
    start = Product(jnp.asarray([0.2, 0.9]))
    record = sgf.Record({"difference": lambda net: net.w[0] ** 2 - net.w[1] ** 2})
    flow = margin.MarginFlow(rtol=1e-12, atol=1e-12)
    run = sgf.simulate(flow, start, ones, t1=1e4, record=record, solver=Tsit5())
    np.testing.assert_allclose(run["difference"], 0.2**2 - 0.9**2, atol=1e-8)
    assert float(run.final["nu"]) == pytest.approx(1e4, rel=1e-8)


@pytest.mark.slow
def test_several_classes_go_to_the_margin_of_all_pairs():
    """Cross-entropy: the distance to the SVM of all pairs, times nu, is constant."""
    rng = np.random.default_rng(0)
    y = np.arange(12) % 3
    X = 2 * np.eye(3)[y] + 0.4 * rng.normal(size=(12, 3))
    best = unit(margin.max_margin(X, y).weights.reshape(-1))
    pairs = sgf.Problem(jnp.asarray(X), jnp.asarray(y), loss=sgf.SoftmaxCrossEntropyLoss())
    start = margin.Linear(jnp.zeros((3, 3)))
    record = sgf.Record({"weights": lambda net: net.w.reshape(-1)}, [1e2, 1e3, 1e4])
    run = sgf.simulate(margin.MarginFlow(), start, pairs, t1=1e4, record=record)
    w = np.asarray(run["weights"])
    distance = np.linalg.norm(w / np.linalg.norm(w, axis=1, keepdims=True) - best, axis=1)
    scaled = distance * np.array([1e2, 1e3, 1e4])
    assert scaled[0] > 0.05
    np.testing.assert_allclose(scaled[2], scaled[1], rtol=0.02)
    found = margin.certify(run)
    assert found.multipliers.shape == (12, 2)
    assert found.stationarity < 1e-3


@pytest.mark.slow
def test_adam_without_momentum_begins_like_sign_descent():
    """The corrected average is g^2 at the start, so h = (eps + g^2)^(-1/2)."""
    run = follow(margin.AdamNoMomentum(0.9, 1e-8))
    first = 0.5 * PAIR.sum(axis=0)
    wanted = (1e-8 + first**2) ** -0.5
    np.testing.assert_allclose(run["conditioner"][0], wanted, rtol=1e-10)
    # Later it is the mean of the squares so far; g falls by about e^(-0.1) to nu + 0.1.
    assert float(run.times[1] - run.times[0]) == pytest.approx(0.1, rel=1e-3)
    ratio = np.asarray(run["conditioner"][1]) / wanted
    assert np.all((ratio > 1) & (ratio < 1.01 * np.exp(0.1)))
    svm = margin.max_margin(PAIR, np.ones(2))
    assert np.linalg.norm(unit(run.networks.w) - unit(svm.weights)) < 1e-3


@pytest.mark.slow
def test_the_end_is_differentiable_in_eps():
    """Forward mode through the solver against a difference quotient."""
    import diffrax as dfx

    def end(eps):
        flow = margin.MarginFlow(margin.AdaGrad(eps))
        run = sgf.simulate(flow, ZERO, problem(), t1=50.0, adjoint=dfx.ForwardMode())
        return run.networks.w / jnp.linalg.norm(run.networks.w)

    eps = 0.3
    slope = jax.jacfwd(end)(jnp.asarray(eps))
    difference = (end(jnp.asarray(eps + 1e-3)) - end(jnp.asarray(eps - 1e-3))) / 2e-3
    np.testing.assert_allclose(slope, difference, rtol=1e-4)


@pytest.mark.slow
def test_data_that_no_weights_fit_stall():
    """Two examples on one ray with opposite labels."""
    X = np.array([[1.0, 0.0], [-0.5, 0.0]])
    flow = margin.MarginFlow(most_steps=300)
    run = sgf.simulate(flow, ZERO, problem(X), t1=10.0, solver=Tsit5())
    assert run.statuses() == {"stalled high": 1}
    assert "the data are not fitted: q_min = " in run.reason()
    assert "for example" in run.reason()


@pytest.mark.slow
def test_too_few_steps_give_up_and_single_precision_is_warned_of():
    flow = margin.MarginFlow(most_steps=12)
    run = sgf.simulate(flow, ZERO, problem(), t1=1e6, solver=Tsit5())
    assert run.statuses() == {"gave up": 1}
    assert "ran out of its 12 steps" in run.reason()
    single = sgf.Problem(
        jnp.asarray(PAIR, jnp.float32), jnp.ones(2, jnp.float32), loss=margin.ExponentialLoss()
    )
    with pytest.warns(UserWarning, match="float32 resolves differences of margins up to nu = 1000"):
        sgf.simulate(margin.MarginFlow(), margin.Linear(jnp.zeros(2, jnp.float32)), single, t1=2e3)
