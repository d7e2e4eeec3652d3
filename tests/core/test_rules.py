"""Update rules of the user, and projections after the step, against loops."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sgfbias as sgf
from sgfbias.core.rules import AbstractRule

N, D, GAMMA = 12, 3, 0.1
START_W = np.array([0.3, -0.2, 0.1])


class Linear(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return jnp.dot(self.w, x)


START = Linear(jnp.asarray(START_W))


class Signs(AbstractRule):
    """`w <- w - gamma sign(m)` with the mean m of gradients, as Signum does."""

    observed: ClassVar[bool] = True
    kept: float = 0.9

    def init(self, parameters):
        return jax.tree.map(jnp.zeros_like, parameters)

    def update(self, gradient, memory, scale, point):
        memory = jax.tree.map(lambda m, g: self.kept * m + g, memory, gradient)
        return jax.tree.map(lambda m: -point.step_size * jnp.sign(m), memory), memory


class Normalised(AbstractRule):
    """`w <- w - gamma grad log L`, normalised gradient descent."""

    logarithmic: ClassVar[bool] = True

    def update(self, gradient, memory, scale, point):
        return jax.tree.map(lambda g: -point.step_size * g, gradient), memory


class Halving(AbstractRule):
    """A plain step that is halved until the objective falls, and the last length."""

    logarithmic: ClassVar[bool] = True

    def init(self, parameters):
        return jnp.ones((), jax.tree.leaves(parameters)[0].dtype)

    def update(self, gradient, memory, scale, point):
        step = jax.tree.map(lambda g: -memory * g, gradient)
        there = point.objective(jax.tree.map(jnp.add, point.parameters, step))
        good = there <= point.value
        step = jax.tree.map(lambda s: jnp.where(good, s, 0), step)
        return step, jnp.where(good, 1.5 * memory, memory / 2)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D))
    return X, np.where(X @ np.array([1.0, -2.0, 0.5]) > 0, 1.0, -1.0)


def squared(data):
    return sgf.Problem(jnp.asarray(data[0]), jnp.asarray(data[1]), loss=sgf.SquaredLoss(scale=0.5))


def exponential(data):
    return sgf.Problem(jnp.asarray(data[0]), jnp.asarray(data[1]), loss=sgf.ExponentialLoss())


def test_a_rule_with_a_memory_is_its_loop(data):
    (X, y), problem = data, squared(data)

    class Seen(sgf.RuleDescent):
        def observables(self, network, problem, memory):
            return {"mean": memory.w, "size": jnp.sum(jnp.abs(memory.w))}

    run = sgf.simulate(Seen(Signs(), 0.01), START, problem, steps=30, chunk=7)
    w, m = START_W, np.zeros(D)
    for _ in range(30):
        m = 0.9 * m + (X @ w - y) @ X / N
        w = w - 0.01 * np.sign(m)
    np.testing.assert_allclose(run.networks.w, w, rtol=1e-13)
    np.testing.assert_allclose(run.final["mean"], m, rtol=1e-12)
    np.testing.assert_allclose(run["size"][-1], np.abs(m).sum(), rtol=1e-12)


def test_batches_and_starts_of_a_rule_are_as_ever(data):
    problem = squared(data)

    class Same(AbstractRule):
        def update(self, gradient, memory, scale, point):
            assert scale == 0.0
            return jax.tree.map(lambda g: -point.step_size * g, gradient), memory

    keys = sgf.seeds(3)
    ours = sgf.simulate(sgf.RuleDescent(Same(), GAMMA, 4), START, problem, keys=keys, steps=20)
    wanted = sgf.simulate(
        sgf.StochasticGradientDescent(GAMMA, 4), START, problem, keys=keys, steps=20
    )
    np.testing.assert_allclose(ours.networks.w, wanted.networks.w, rtol=1e-13)
    assert np.ptp(np.asarray(ours.networks.w), axis=0).min() > 1e-3


def test_a_logarithmic_rule_goes_on_where_the_loss_is_zero(data):
    X, y = data
    rule = sgf.RuleDescent(Normalised(), GAMMA)
    separator = np.array([1.0, -2.0, 0.5])
    # The least margin of `far` is about 2,000, so that the loss underflows.
    far = separator * 2000 / np.min(y * (X @ separator))
    problem = exponential(data)
    for start in (START_W, far):
        end = sgf.simulate(rule, Linear(jnp.asarray(start)), problem, steps=40).networks.w
        w = start
        for _ in range(40):
            margins = y * (X @ w)
            p = np.exp(margins.min() - margins)
            w = w + GAMMA * ((p / p.sum()) * y) @ X
        np.testing.assert_allclose(end, w, rtol=1e-12)
        assert np.abs(end - start).max() > 0.1
    stuck = sgf.simulate(
        sgf.GradientDescent(GAMMA), Linear(jnp.asarray(far)), problem, steps=40
    ).networks.w
    np.testing.assert_array_equal(stuck, far, "control: the gradient of L is 0.0 there")


def test_a_rule_may_try_its_step(data):
    """A rejected step leaves the weights, and log L never rises."""
    record = sgf.Record({"log L": exponential(data).log_risk}, times=GAMMA * np.arange(41))
    run = sgf.simulate(
        sgf.RuleDescent(Halving(), GAMMA), START, exponential(data), steps=40, record=record
    )
    change = np.diff(run["log L"])
    assert np.all(change <= 0)
    assert np.any(change == 0)
    assert run["log L"][-1] < run["log L"][0] - 1


def test_projections_follow_the_step(data):
    (X, y), problem = data, squared(data)
    run = sgf.simulate(
        sgf.GradientDescent(GAMMA, momentum=0.5, project=sgf.Sphere(2.0)), START, problem, steps=15
    )
    w, m = START_W, np.zeros(D)
    for _ in range(15):
        m = 0.5 * m + (X @ w - y) @ X / N
        w = w - GAMMA * m
        w = 2 * w / np.linalg.norm(w)
    np.testing.assert_allclose(run.networks.w, w, rtol=1e-12)


def test_a_sphere_takes_all_arrays_or_those_that_are_chosen():
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    both = sgf.Sphere(3.0)(model)
    total = sum(float(jnp.sum(v**2)) for v in jax.tree.leaves(eqx.filter(both, eqx.is_array)))
    assert total == pytest.approx(9.0)
    one = sgf.Sphere(3.0, where=lambda m: m.layers[0].weight)(model)
    assert float(jnp.linalg.norm(one.layers[0].weight)) == pytest.approx(3.0)
    np.testing.assert_array_equal(one.layers[1].weight, model.layers[1].weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: sgf.StochasticGradientDescent(GAMMA, 4, project=p),
        lambda p: sgf.SVAG(GAMMA, 2, 4, project=p),
        lambda p: sgf.OptaxDescent(optax.adam(0.1), 1.0, 4, project=p),
    ],
)
@pytest.mark.slow
def test_every_algorithm_is_projected(make, data):
    run = sgf.simulate(
        make(sgf.Sphere(1.5)), START, squared(data), keys=sgf.seeds(2), steps=5, trainable=True
    )
    np.testing.assert_allclose(jnp.linalg.norm(run.networks.w, axis=1), 1.5, rtol=1e-12)


def refused(project, model=START, **options):
    problem = sgf.Problem(jnp.ones((4, D)), jnp.ones(4))
    return sgf.simulate(
        sgf.GradientDescent(0.1, project=project), model, problem, steps=2, **options
    )


class Two(eqx.Module):
    w: jax.Array
    u: jax.Array

    def __call__(self, x):
        return jnp.dot(self.w * self.u, x)


TWO = Two(jnp.ones(D), jnp.ones(D))
FIRST = Two(True, False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: refused(sgf.Sphere), "`project` must be a function .* such as Sphere"),
        (lambda: refused(lambda network: 1 / 0), "on a Linear it raises ZeroDivisionError"),
        (lambda: refused(lambda network: network.w), "of the same structure and shapes"),
        (lambda: refused(lambda network: Linear(network.w[:2])), "returns another"),
        (
            lambda: refused(sgf.Sphere(1.0), TWO, trainable=FIRST),
            "`project` changes arrays of Two that are frozen",
        ),
        (
            lambda: sgf.simulate(
                sgf.GradientDescent(0.1, project=sgf.Sphere(1.0)),
                sgf.DiagonalNetwork.init(alpha=0.1, d=D),
                sgf.SparseRegression(jnp.ones((4, D)), jnp.ones(4)),
                steps=2,
            ),
            "`project` is for models that move in their own weights",
        ),
        (lambda: sgf.Sphere(0.0), "`radius` must be positive"),
        (lambda: sgf.Sphere(1.0, where="w"), "`where` must be a function of the network"),
        (lambda: sgf.Sphere(1.0, where=lambda m: ())(START), "chooses no floating-point array"),
        (lambda: sgf.RuleDescent(optax.adam(0.1), 0.1), "take OptaxDescent"),
        (lambda: sgf.RuleDescent(Normalised(), 0.1, 4), "leave out `batch_size`, `sampling`"),
        (
            lambda: sgf.simulate(
                sgf.RuleDescent(Normalised(), 0.1),
                START,
                sgf.Problem(jnp.ones((4, D)), jnp.ones(4), penalty=lambda m, k: jnp.sum(m.w**2)),
                steps=2,
            ),
            "leave out the penalty of the problem",
        ),
    ],
)
def test_refusals_of_rules_and_projections(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_only_what_is_chosen_moves_to_the_sphere():
    run = refused(sgf.Sphere(1.0, where=lambda m: m.w), TWO, trainable=FIRST)
    assert float(jnp.linalg.norm(run.networks.w)) == pytest.approx(1.0)
    np.testing.assert_array_equal(run.networks.u, TWO.u)


def test_squared_hinge_is_the_square_of_what_is_short():
    loss = sgf.SquaredHingeLoss(margin=0.5)
    f, y = jnp.asarray([2.0, 0.2, -1.0, 0.2]), jnp.asarray([1, 1, 1, -1])
    np.testing.assert_allclose(loss(f, y), [0, 0.045, 1.125, 0.245], rtol=1e-12)
    np.testing.assert_allclose(loss.derivative(f, y), [0, -0.3, -1.5, 0.7], rtol=1e-12)
    with pytest.raises(ValueError, match="`margin` must be"):
        sgf.SquaredHingeLoss(margin=-1.0)
