"""Any model and any loss: derivatives, exact covariances by enumeration, frozen parts
and microbatches.
"""

import itertools

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same

import sgfbias as sgf
from sgfbias.core.weights import Weights

N, GAMMA, KEYS = 7, 0.1, sgf.seeds(0, 2)
INPUTS = np.random.default_rng(0).normal(size=(N, 3))
LABELS = np.arange(N) % 3


def mlp(outputs=3, depth=1, key=0):
    return eqx.nn.MLP(
        3, outputs, 5, depth, activation=jnp.tanh, dtype=jnp.float64, key=jax.random.key(key)
    )


def classes(loss=None):
    return sgf.Problem(INPUTS, LABELS, loss=sgf.SoftmaxCrossEntropyLoss() if loss is None else loss)


def flat(network, count=None):
    """The parameters as vectors, (parameters,) or (count, parameters)."""
    leaves = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))
    shape = () if count is None else (count,)
    return np.concatenate([np.asarray(leaf).reshape(*shape, -1) for leaf in leaves], axis=-1)


def example_gradients(problem, model):
    """The gradient of each example, (n, parameters), each by its own reverse pass.

    This uses nothing of the flow's code.
    """

    def one(i):
        def loss(m):
            return problem.loss(
                problem.outputs(m, problem.inputs[i : i + 1]), problem.targets[i : i + 1]
            )[0]

        return flat(eqx.filter_grad(loss)(model))

    return np.stack([one(i) for i in range(problem.n)])


def flow_covariance(problem, model, noise, gamma):
    """The covariance of one step of length gamma, from columns of its square root."""
    coordinates = Weights(model, problem.dtype)
    position = coordinates.encode(model)
    outputs, vjp = coordinates.linearise(position, problem.inputs)
    slopes = problem.loss.derivative(outputs, problem.targets)
    zeros = jax.tree.map(
        jnp.zeros,
        noise.shapes(outputs.shape, None),
        is_leaf=lambda s: isinstance(s, tuple) and all(isinstance(i, int) for i in s),
    )
    vector, unravel = jax.flatten_util.ravel_pytree(zeros)
    column = jax.vmap(
        lambda e: jax.flatten_util.ravel_pytree(
            vjp(noise.sqrt_covariance(slopes, jnp.asarray(gamma), unravel(e)).examples)
        )[0]
    )
    root = np.asarray(column(jnp.eye(vector.size)))
    return gamma * root.T @ root


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("replace", [True, False])
def test_minibatch_covariance_of_an_mlp_by_enumeration(batch_size, replace):
    """The covariance is that of the mean gradient, times gamma^2, over all n^b ordered
    batches, or over all sets of b examples.
    """
    problem, model = classes(), mlp()
    gradients = example_gradients(problem, model)
    batches = (
        itertools.product(range(N), repeat=batch_size)
        if replace
        else itertools.combinations(range(N), batch_size)
    )
    steps = -GAMMA * np.stack([gradients[list(batch)].mean(0) for batch in batches])
    enumerated = np.cov(steps.T, bias=True)
    ours = flow_covariance(problem, model, sgf.MinibatchNoise(batch_size, replace=replace), GAMMA)
    np.testing.assert_allclose(ours, enumerated, atol=1e-12)
    assert np.abs(enumerated).max() > 1e-4
    if batch_size > 1:
        other = flow_covariance(
            problem, model, sgf.MinibatchNoise(batch_size, replace=not replace), GAMMA
        )
        assert np.abs(other - enumerated).max() > 1e-5, "control: the other way of drawing differs"


class Chatty(eqx.Module):
    """A user's model whose methods happen to have the names of `AbstractNetwork`'s."""

    w: jax.Array

    def __call__(self, x):
        return x @ self.w

    def predict(self, x):
        raise AssertionError("the package must not call this method")

    coordinates = observables = dims = units = predict


def test_methods_of_a_users_model_are_its_own_affair():
    problem = sgf.SparseRegression(
        INPUTS, INPUTS @ np.ones(3), np.ones(3), validation=(INPUTS[:2], np.zeros(2))
    )
    run = sgf.simulate(sgf.GradientDescent(0.5), Chatty(jnp.zeros(3)), problem, steps=40)
    other = sgf.simulate(sgf.GradientDescent(0.5), mlp("scalar", depth=0), problem, steps=40)
    assert float(run.final["loss"]) < float(run["loss"][0]) / 10
    error = jnp.mean(jnp.square(INPUTS[:2] @ run.networks.w))
    np.testing.assert_allclose(run.final["validation_error"], error, rtol=1e-12)
    assert set(run.to_xarray()) == set(other.to_xarray())
    # A model without a beta has no distance from the truth.
    plain = sgf.SparseRegression(INPUTS, INPUTS @ np.ones(3), np.ones(3))
    assert (
        "validation_error"
        not in sgf.simulate(sgf.GradientDescent(0.5), Chatty(jnp.zeros(3)), plain, steps=40).final
    )


@pytest.mark.slow
def test_a_loss_may_close_over_what_is_differentiated_and_be_undefined_where_no_output_is():
    def outcome(scale):
        problem = sgf.Problem(INPUTS, np.ones(N), loss=lambda f, y: scale * jnp.sqrt(f + 3) * y)
        return sgf.simulate(
            sgf.GradientDescent(0.1),
            Chatty(jnp.zeros(3)),
            problem,
            steps=20,
            record=sgf.Record(times=2),
        ).final["loss"]

    slope = jax.grad(outcome)(1.0)
    np.testing.assert_allclose(slope, (outcome(1 + 1e-5) - outcome(1 - 1e-5)) / 2e-5, rtol=1e-6)


def test_covariance_of_noisy_labels_by_enumeration():
    """The n * 2^C outcomes of one step with C outputs, over all examples and signs,
    have the covariance of minibatch noise plus label noise.
    """
    problem, model, delta = (
        sgf.Problem(INPUTS, np.random.default_rng(1).normal(size=(N, 2))),
        mlp(2),
        0.4,
    )
    steps = []
    for i, signs in itertools.product(range(N), itertools.product((1, -1), repeat=2)):
        shifted = sgf.Problem(
            problem.inputs, problem.targets.at[i].add(-2 * delta * jnp.asarray(signs, jnp.float64))
        )
        steps.append(
            -GAMMA
            * example_gradients(
                sgf.Problem(shifted.inputs[i : i + 1], shifted.targets[i : i + 1]), model
            )[0]
        )
    enumerated = np.cov(np.stack(steps).T, bias=True)
    noise = sgf.MinibatchNoise(1) + sgf.LabelNoise(delta, mean_loss=False)
    np.testing.assert_allclose(
        flow_covariance(problem, model, noise, GAMMA), enumerated, atol=1e-12
    )


def test_mean_loss_noise_with_several_outputs_has_the_exact_trace_over_outputs():
    """The covariance rate `gamma/n mean_i |l'_i|^2 / C` times the identity on R^{nC}
    has the trace of the exact second moment, whatever C.
    """
    problem, model = classes(), mlp()
    slopes = problem.derivatives(model)
    rate = sgf.MeanLossNoise().covariance(slopes, jnp.asarray(GAMMA)).diagonal
    np.testing.assert_allclose(
        rate * slopes.size, GAMMA * np.mean(np.sum(np.square(slopes), axis=1)), rtol=1e-13
    )


def cross_entropy(output, label):
    return jax.nn.logsumexp(output) - output[label]


LOSSES = {
    "squared": (
        sgf.SquaredLoss(0.5),
        np.random.default_rng(2).normal(size=(N, 3)),
        3,
        lambda f, y: 0.5 * np.sum((f - y) ** 2),
    ),
    "logistic -1, 1": (
        sgf.LogisticLoss(),
        2 * (np.arange(N) % 2) - 1,
        "scalar",
        lambda f, y: np.log1p(np.exp(-y * f)),
    ),
    "logistic 0, 1": (
        sgf.LogisticLoss(),
        np.arange(N) % 2,
        "scalar",
        lambda f, y: np.log1p(np.exp(-(2 * y - 1) * f)),
    ),
    "softmax": (
        sgf.SoftmaxCrossEntropyLoss(),
        LABELS,
        3,
        lambda f, y: np.log(np.exp(f).sum()) - f[y],
    ),
    "softmax, probabilities": (
        sgf.SoftmaxCrossEntropyLoss(),
        np.random.default_rng(3).dirichlet(np.ones(3), N),
        3,
        lambda f, y: np.log(np.exp(f).sum()) - f @ y,
    ),
    "a function": (cross_entropy, LABELS, 3, lambda f, y: np.log(np.exp(f).sum()) - f[y]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_derivatives(name):
    loss, targets, outputs, formula = LOSSES[name]
    problem, model = sgf.Problem(INPUTS, targets, loss=loss), mlp(outputs)
    f = np.asarray(problem.outputs(model))
    np.testing.assert_allclose(
        problem.risk(model),
        np.mean([formula(fi, yi) for fi, yi in zip(f, targets, strict=True)]),
        rtol=1e-12,
    )
    h, numeric = 1e-6, np.zeros_like(f)
    for at in np.ndindex(f.shape):
        up, down = f.copy(), f.copy()
        up[at] += h
        down[at] -= h
        numeric[at] = (
            formula(up[at[0]], targets[at[0]]) - formula(down[at[0]], targets[at[0]])
        ) / (2 * h)
    np.testing.assert_allclose(problem.derivatives(model), numeric, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax", "logistic 0, 1"])
def test_classifiers_learn_with_the_flow_and_with_sgd(name):
    loss, targets, outputs, _ = LOSSES[name]
    problem, model = sgf.Problem(INPUTS, targets, loss=loss), mlp(outputs)
    for dynamics in (
        sgf.StochasticGradientFlow(GAMMA, sgf.MinibatchNoise(2)),
        sgf.StochasticGradientDescent(GAMMA, 2),
    ):
        runs = sgf.simulate(dynamics, model, problem, keys=KEYS, steps=800)
        assert float(runs.final["loss"].max()) < 0.5 * float(problem.risk(model))


@pytest.mark.slow
def test_frozen_parts_stay_and_the_rest_moves_as_if_alone():
    """With the first layer frozen, the flow is the flow of the last layer on fixed
    features.
    """
    problem, model = classes(), mlp()
    frozen = eqx.tree_at(
        lambda m: m.layers[0],
        jax.tree.map(eqx.is_inexact_array, model),
        replace_fn=lambda part: jax.tree.map(lambda _: False, part),
    )
    flow = sgf.StochasticGradientFlow(GAMMA, sgf.MinibatchNoise(2))
    runs = sgf.simulate(flow, model, problem, keys=KEYS, steps=50, trainable=frozen)
    same(runs.networks.layers[0].weight, jnp.broadcast_to(model.layers[0].weight, (2, 5, 3)))
    features = jax.vmap(lambda x: jnp.tanh(model.layers[0](x)))(problem.inputs)
    alone = sgf.simulate(
        flow,
        model.layers[1],
        sgf.Problem(features, LABELS, loss=sgf.SoftmaxCrossEntropyLoss()),
        keys=KEYS,
        steps=50,
    )
    np.testing.assert_allclose(runs.networks.layers[1].weight, alone.networks.weight, rtol=1e-10)
    assert np.abs(np.asarray(alone.networks.weight[0] - model.layers[1].weight)).max() > 0.01
    algorithm = sgf.simulate(
        sgf.StochasticGradientDescent(GAMMA, momentum=0.5),
        model,
        problem,
        keys=KEYS,
        steps=20,
        trainable=frozen,
    )
    same(algorithm.networks.layers[0].bias, jnp.broadcast_to(model.layers[0].bias, (2, 5)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "dynamics",
    [sgf.StochasticGradientFlow(GAMMA, sgf.MinibatchNoise(2)), sgf.GradientDescent(GAMMA)],
    ids=["flow", "gd"],
)
def test_microbatches_change_memory_not_numbers(dynamics):
    problem, model, keys = classes(), mlp(), KEYS if dynamics.is_stochastic else None
    whole = sgf.simulate(dynamics, model, problem, keys=keys, steps=20)
    pieces = sgf.simulate(dynamics, model, problem, keys=keys, steps=20, microbatch=3)
    np.testing.assert_allclose(flat(pieces.networks), flat(whole.networks), rtol=1e-11, atol=1e-13)


def test_microbatches_hold_the_activations_of_one_piece():
    """The compiler reports the temporary memory of a compiled gradient step."""
    inputs = np.random.default_rng(0).normal(size=(512, 3))
    model = eqx.nn.MLP(3, 1, 256, 3, activation=jnp.tanh, dtype=jnp.float64, key=jax.random.key(0))

    def bytes_of(microbatch):
        coordinates = Weights(model, jnp.float64, microbatch=microbatch)

        def step(position, x):
            outputs, vjp = coordinates.linearise(position, x)
            return vjp(jnp.ones_like(outputs))

        return (
            jax.jit(step)
            .lower(coordinates.encode(model), jnp.asarray(inputs))
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert bytes_of(16) < bytes_of(None) / 4


def test_a_flow_step_never_holds_one_gradient_per_example():
    """The gradients of 512 examples in 133,633 parameters would take 547 MB."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(512, 3)))
    model = eqx.nn.MLP(3, 1, 256, 3, activation=jnp.tanh, dtype=jnp.float64, key=jax.random.key(0))
    problem, flow = (
        sgf.Problem(inputs, np.zeros((512, 1))),
        sgf.StochasticGradientFlow(GAMMA, sgf.MinibatchNoise(1)),
    )
    coordinates = Weights(model, jnp.float64)
    position = coordinates.encode(model)

    def step(position, key):
        term = flow.build(
            coordinates, problem, position, key, jnp.int32(0), flow.default_solver(jnp.float64, 1)
        )
        y = (position, jnp.zeros(()))
        return term.vf_prod(0.0, y, None, term.contr(jnp.asarray(0.0), jnp.asarray(1.0)))

    memory = (
        jax.jit(step)
        .lower(position, jax.random.key(0))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    parameters = flat(model).size
    assert memory < 512 * parameters * 8 / 10


def test_a_momentum_flow_moves_any_model():
    """For small lambda the momentum flow is the gradient flow up to O(lambda)."""
    problem, model = classes(), mlp()
    plain = flat(sgf.simulate(sgf.GradientFlow(dt=0.002), model, problem, t1=3.0).networks)
    moved = [
        flat(sgf.simulate(sgf.MomentumFlow(lam, dt=0.002), model, problem, t1=3.0).networks)
        for lam in (0.02, 0.01)
    ]
    gaps = [np.abs(end - plain).max() for end in moved]
    assert gaps[0] < 0.05
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.1)


def test_an_array_of_labels_and_a_model_in_float32_keep_their_types():
    problem = sgf.Problem(INPUTS.astype(np.float32), LABELS, loss=sgf.SoftmaxCrossEntropyLoss())
    model = eqx.nn.MLP(3, 3, 5, 1, key=jax.random.key(0), dtype=jnp.float32)
    runs = sgf.simulate(sgf.StochasticGradientFlow(GAMMA), model, problem, keys=KEYS, steps=5)
    assert runs["loss"].dtype == jnp.float32
    assert runs.networks.layers[0].weight.dtype == jnp.float32
    assert problem.targets.dtype == LABELS.dtype


@pytest.mark.slow
@pytest.mark.parametrize(
    ("small", "large"), [(0, 10**9), (0, 0)], ids=["tiles of 8", "one at a time"]
)
def test_neighbours_do_not_change_a_bit_in_smaller_tiles(monkeypatch, small, large):
    """Heavy models run in smaller tiles, down to one seed at a time. The model decides
    the size of the tile, and the number of seeds never does.
    """
    monkeypatch.setattr("sgfbias.core.tiles.SMALL", small)
    monkeypatch.setattr("sgfbias.core.tiles.LARGE", large)
    problem, model, flow = (
        classes(),
        mlp(),
        sgf.StochasticGradientFlow(GAMMA, sgf.MinibatchNoise(2)),
    )
    runs = sgf.simulate(flow, model, problem, keys=sgf.seeds(0, 10), steps=20)
    alone = sgf.simulate(flow, model, problem, keys=sgf.seeds(9, 10), steps=20)
    single = sgf.simulate(flow, model, problem, keys=sgf.seeds(9, 10)[0], steps=20)
    np.testing.assert_array_equal(flat(runs.networks, 10)[9], flat(alone.networks, 1)[0])
    np.testing.assert_array_equal(flat(alone.networks, 1)[0], flat(single.networks))
    np.testing.assert_array_equal(runs["loss"][9], single["loss"])
    assert np.abs(flat(runs.networks, 10)[8] - flat(single.networks)).max() > 1e-6
