"""Quantities of two networks against counts and norms by hand, and the linearised, the
rescaled and the kernel's training against linear algebra.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import calls_at_once

import sgfbias as sgf
from sgfbias import lazy
from sgfbias.lazy.flips import switches

KEY = jax.random.key(5)
N, D = 8, 6


@pytest.fixture(scope="module")
def problem():
    return lazy.SeparatedSphere.sample(KEY, n=N, d=D, separation=0.4)


@pytest.fixture(scope="module")
def network():
    return lazy.DeepReLU.init(KEY, D, width=16, depth=2)


@pytest.fixture(scope="module")
def probe(network, problem):
    return lazy.Probe(network, problem)


@pytest.fixture(scope="module")
def runs(network, problem, probe):
    record = sgf.Record(probe.observables, times=4, sums=probe.sums)
    algorithm = sgf.StochasticGradientDescent(0.3, 4)
    return sgf.simulate(algorithm, network, problem, keys=sgf.seeds(0, 2), steps=30, record=record)


def end_of(runs, seed=0):
    arrays = jax.tree.map(lambda a: a[seed], eqx.filter(runs.networks, eqx.is_array))
    return eqx.combine(arrays, runs.networks)


def by_hand(network, x):
    """The signs of the pre-activations of all layers, each (n, m)."""
    h, found = np.asarray(x), []
    for weight in network.weights:
        z = h @ np.asarray(weight).T
        found.append(z > 0)
        h = np.maximum(z, 0)
    return found


def test_a_network_is_not_far_from_itself(network, problem):
    same = lazy.measure(network, network, problem)
    for value in (
        same.distance,
        same.spectral_distance,
        same.relative_distance,
        same.flips,
        same.kernel_drift,
        same.tangent_error,
    ):
        assert np.all(np.asarray(value) == 0)
    np.testing.assert_allclose(same.kernel_alignment, 1, rtol=1e-12)
    np.testing.assert_allclose(same.least, lazy.ntk(network, problem).least, rtol=1e-9)


def test_the_quantities_of_a_trained_network(network, problem, runs):
    trained = end_of(runs)
    found = lazy.measure(network, trained, problem)
    before, after = by_hand(network, problem.inputs), by_hand(trained, problem.inputs)
    kernels = [
        lazy.ntk(net, problem.inputs, method="jacobian").matrix for net in (network, trained)
    ]
    for l, (then, now) in enumerate(zip(network.weights, trained.weights, strict=True)):
        change = np.asarray(now - then)
        np.testing.assert_allclose(found.distance[l], np.linalg.norm(change), rtol=1e-10)
        np.testing.assert_allclose(
            found.spectral_distance[l], np.linalg.svd(change)[1][0], rtol=1e-10
        )
        np.testing.assert_allclose(
            found.relative_distance[l], found.distance[l] / np.linalg.norm(then), rtol=1e-10
        )
        assert found.flips[l] == np.mean(before[l] != after[l])
    assert np.all(found.flips > 0)
    change = np.linalg.norm(kernels[1] - kernels[0]) / np.linalg.norm(kernels[0])
    np.testing.assert_allclose(found.kernel_drift, change, rtol=1e-9)
    cosine = np.sum(kernels[0] * kernels[1]) / np.prod([np.linalg.norm(k) for k in kernels])
    np.testing.assert_allclose(found.kernel_alignment, cosine, rtol=1e-9)
    linear = lazy.linearise(network)
    moved = eqx.tree_at(lambda m: m.model, linear, trained)
    f0, f1, line = (jax.vmap(net)(problem.inputs) for net in (network, trained, moved))
    wanted = np.linalg.norm(f1 - line) / np.linalg.norm(line - f0)
    np.testing.assert_allclose(found.tangent_error, wanted, rtol=1e-9)
    text = repr(found)
    assert "layers[1]" in text
    assert f"{float(found.flips[1]):.2%}" in text


def test_a_run_records_what_measure_finds(network, problem, runs, probe):
    assert runs["distance"].shape == runs["flips"].shape == (2, len(runs.times), 2)
    assert runs["kernel_drift"].shape == (2, len(runs.times))
    for seed in range(2):
        found = lazy.measure(network, end_of(runs, seed), problem)
        for name in ("distance", "relative_distance", "flips", "kernel_drift", "tangent_error"):
            np.testing.assert_allclose(
                runs.final[name][seed], getattr(found, name), rtol=1e-8, atol=1e-12
            )
    # A path is longer than the distance of its ends, and as long after one step.
    assert runs["path_length"].shape == runs["distance"].shape
    np.testing.assert_array_equal(runs.steps[:2], [0, 1])
    path, distance = (np.asarray(runs[name]) for name in ("path_length", "distance"))
    np.testing.assert_allclose(path[:, :2], distance[:, :2], rtol=1e-10)
    assert np.all(path[:, 2:] > distance[:, 2:])
    # The floor under the gradient holds at every time, and is no identity.
    ratio = np.asarray(runs["gradient_ratio"])
    assert np.all(ratio >= 1)
    assert np.all(ratio < np.inf)
    trained = end_of(runs)
    gradient = jax.grad(problem.risk)(trained).weights[1]
    part = lazy.ntk(trained, problem).layers["layers[1]"]
    slopes = np.abs(problem.derivatives(trained))
    wanted = N**3 * np.sum(gradient**2) / (np.linalg.eigvalsh(part)[0] * slopes.sum() ** 2)
    np.testing.assert_allclose(runs.final["gradient_ratio"][0, 1], wanted, rtol=1e-8)
    # The step size beyond which the linearised model diverges.
    largest = np.linalg.eigvalsh(lazy.ntk(network, problem).matrix)[-1]
    np.testing.assert_allclose(probe.largest_step, 2 * N / largest, rtol=1e-9)
    assert "layers[0], layers[1]" in repr(probe)


ACTIVATIONS = {
    "relu": (jax.nn.relu, True),
    "leaky relu": (jax.nn.leaky_relu, True),
    "abs": (jnp.abs, True),
    "tanh": (jnp.tanh, False),
    "gelu": (jax.nn.gelu, False),
    "softplus": (jax.nn.softplus, False),
    "none": (lambda x: x, False),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "tanh" else pytest.param(n, marks=pytest.mark.slow) for n in ACTIVATIONS],
)
def test_kinks_are_found_where_they_are(name):
    activation, kinked = ACTIVATIONS[name]
    model = eqx.nn.MLP(D, 2, 8, 2, activation=activation, key=KEY)
    x = jax.random.normal(KEY, (5, D))
    # Two hidden layers; the last layer gives the outputs.
    assert switches(model, x).kinked == ((0, 1) if kinked else ())


@pytest.mark.slow
def test_without_a_kink_there_are_no_flips(problem):
    model = eqx.nn.MLP(D, "scalar", 8, 1, activation=jnp.tanh, key=KEY)
    probe = lazy.Probe(model, problem)
    assert "flips" not in probe.observables
    assert "no flips: no pre-activation" in repr(probe)
    found = lazy.measure(model, model, problem.inputs)
    assert found.flips is None
    assert "no flips: no pre-activation" in repr(found)
    # A normalisation has no kink, though it turns over at 0.
    normed = eqx.nn.Sequential(
        [eqx.nn.Linear(D, 6, key=KEY), eqx.nn.LayerNorm(6), eqx.nn.Linear(6, 2, key=KEY)]
    )
    assert switches(normed, problem.inputs).kinked == ()


def test_the_linearised_model_trains_as_its_kernel_says(network, problem):
    """`f_k - y = (I - gamma K / (2 n))^k (f_0 - y)` with the squared loss of scale 1/4,
    and the kernel stays.
    """
    squared = sgf.Problem(problem.inputs, problem.targets)
    linear = lazy.linearise(network)
    kernel = np.asarray(lazy.ntk(network, squared).matrix)
    np.testing.assert_allclose(lazy.ntk(linear, squared).matrix, kernel, rtol=1e-9)
    rate, steps = 0.05, 40
    runs = sgf.simulate(sgf.GradientDescent(rate), linear, squared, steps=steps)
    f0 = np.asarray(jax.vmap(network)(squared.inputs))
    y = np.asarray(squared.targets)
    power = np.linalg.matrix_power(np.eye(N) - rate * kernel / (2 * N), steps)
    end = jax.vmap(runs.networks)(squared.inputs)
    np.testing.assert_allclose(end - y, power @ (f0 - y), rtol=0, atol=1e-8)
    # Nothing but the hidden weights has moved, and the distance is that of the kernel's
    # geometry: sqrt(a^T K a) with f_k - f_0 = K a.
    assert eqx.tree_equal(runs.networks.start, network)
    assert np.all(runs.networks.model.readout == network.readout)
    a = np.linalg.solve(kernel, np.asarray(end) - f0)
    squares = sum(
        np.sum((now - then) ** 2)
        for now, then in zip(runs.networks.model.weights, network.weights, strict=True)
    )
    np.testing.assert_allclose(squares, a @ kernel @ a, rtol=1e-8)


@pytest.mark.slow
def test_the_kernel_flow(network, problem):
    """A matrix exponential for the squared loss, and the gradient flow of the
    linearised model for the logistic one.
    """
    squared = sgf.Problem(problem.inputs, problem.targets)
    kernel = lazy.ntk(network, squared)
    f0, y = jax.vmap(network)(squared.inputs), squared.targets
    times = np.asarray([0.0, 0.5, 2.0])
    curve = lazy.kernel_flow(kernel, squared, f0, t1=2.0, times=times)
    for t, f in zip(times, curve.outputs, strict=True):
        power = scipy.linalg.expm(-t * np.asarray(kernel.matrix) / (2 * N))
        np.testing.assert_allclose(f, y + power @ (f0 - y), rtol=0, atol=1e-7)
    np.testing.assert_allclose(curve.loss[0], squared.risk(network), rtol=1e-9)
    curve = lazy.kernel_flow(kernel, problem, f0, t1=2.0, times=times)
    record = sgf.Record({"f": Outputs(problem.inputs)}, times=times)
    # The default solver takes much longer to compile.
    runs = sgf.simulate(
        sgf.GradientFlow(),
        lazy.linearise(network),
        problem,
        t1=2.0,
        record=record,
        solver=diffrax.Tsit5(),
    )
    np.testing.assert_allclose(curve.outputs, runs["f"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_kernel_flow_of_several_outputs(problem):
    """The kernel as a matrix and by products gives one curve, that of the linearised
    model.
    """
    times = np.asarray([0.0, 0.5, 2.0])
    model = eqx.nn.MLP(D, 3, 8, 1, key=KEY)
    classes = sgf.Problem(problem.inputs, jnp.arange(N) % 3, loss=sgf.SoftmaxCrossEntropyLoss())
    f0 = jax.vmap(model)(classes.inputs)
    curves = [
        lazy.kernel_flow(
            lazy.ntk(model, classes, method=method), classes, f0, t1=2.0, times=times
        ).outputs
        for method in ("auto", "products")
    ]
    np.testing.assert_allclose(*curves, rtol=0, atol=1e-7)


class Recurrent(eqx.Module):
    """A GRU in a scan, and a classifier of its last state."""

    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        self.cell = eqx.nn.GRUCell(2, 3, key=key)
        self.head = eqx.nn.Linear(3, 2, key=key)

    def __call__(self, x):
        h, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(3, x.dtype), x)
        return self.head(h)


class Attention(eqx.Module):
    """An attention block with a ReLU layer after it, and a mean over positions."""

    attention: eqx.nn.MultiheadAttention
    scale: jax.Array
    inner: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(1, 2, key=a)
        self.scale = jnp.asarray([0.5, 1.5])
        self.inner, self.head = eqx.nn.Linear(2, 4, key=b), eqx.nn.Linear(4, 2, key=c)

    def __call__(self, x):
        h = (x + self.attention(x, x, x)) * self.scale
        return self.head(jnp.mean(jax.nn.relu(jax.vmap(self.inner)(h)), axis=0))


@pytest.mark.slow
def test_the_eigenvalues_of_a_run_are_found_in_one_call(network, probe):
    """Several calls at once could wait for each other forever; see `calls_at_once`."""
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), network)

    def observed(names):
        # What a run records together is computed together.
        joint = probe.observables["least"].joint
        return lambda net: joint(net, names)

    both = jax.vmap(observed(("least", "gradient_ratio")))
    assert calls_at_once(both, stack) == []
    found, alone = both(stack), jax.vmap(observed(("gradient_ratio",)))(stack)
    np.testing.assert_allclose(found["gradient_ratio"], alone["gradient_ratio"], rtol=1e-9)
    np.testing.assert_allclose(found["least"], jax.vmap(probe.observables["least"])(stack))
    twice = jax.vmap(lambda net: [jnp.linalg.eigvalsh(w.T @ w) for w in net.weights])
    assert calls_at_once(twice, stack) != []


@pytest.mark.parametrize("kind", [Recurrent, Attention])
def test_models_of_sequences(kind):
    """All quantities of a run, and the models made from it, against Jacobians."""
    inputs = jax.random.normal(KEY, (5, 4, 2))
    problem = sgf.Problem(inputs, jnp.arange(5) % 2, loss=sgf.SoftmaxCrossEntropyLoss())
    model = kind(KEY)
    probe = lazy.Probe(model, problem)
    assert ("flips" in probe.observables) == (kind is Attention)
    record = sgf.Record(probe.observables, times=2, sums=probe.sums)
    run = sgf.simulate(sgf.GradientDescent(0.5), model, problem, steps=20, record=record)
    found = lazy.measure(model, run.networks, problem)
    kernels = [lazy.ntk(net, problem, method="jacobian").matrix for net in (model, run.networks)]
    change = jnp.linalg.norm(kernels[1] - kernels[0]) / jnp.linalg.norm(kernels[0])
    np.testing.assert_allclose(found.kernel_drift, change, rtol=1e-9)
    parts = [eqx.filter(net, eqx.is_inexact_array) for net in (model, run.networks)]
    flat = [jax.flatten_util.ravel_pytree(part)[0] for part in parts]
    np.testing.assert_allclose(
        jnp.linalg.norm(found.distance), jnp.linalg.norm(flat[1] - flat[0]), rtol=1e-10
    )
    for name in ("distance", "kernel_drift", "tangent_error"):
        np.testing.assert_allclose(run.final[name], getattr(found, name), rtol=1e-8)
    if kind is Attention:
        # One layer has units that switch.
        assert np.isfinite(found.flips).sum() == 1
        before, after = (
            jax.vmap(jax.vmap(net.inner))(
                jax.vmap(lambda x, net=net: (x + net.attention(x, x, x)) * net.scale)(inputs)
            )
            > 0
            for net in (model, run.networks)
        )
        share = float(found.flips[probe.layers.index("inner")])
        np.testing.assert_allclose(share, np.mean(before != after), rtol=1e-12)
    f0 = jax.vmap(model)(inputs)
    curve = lazy.kernel_flow(lazy.ntk(model, problem), problem, f0, t1=1.0, times=2)
    linear = sgf.simulate(
        sgf.GradientDescent(1e-3), lazy.linearise(model), problem, steps=1000
    ).networks
    # Euler's method with the step size 1e-3.
    np.testing.assert_allclose(jax.vmap(linear)(inputs), curve.outputs[-1], rtol=0, atol=1e-3)


class Outputs(eqx.Module):
    inputs: jax.Array

    def __call__(self, network):
        return jax.vmap(network)(self.inputs)


def test_the_rescaled_model(network, problem):
    """Its outputs are scaled, and the distance for one loss falls as 1/alpha."""
    moved = jax.tree.map(lambda a: 1.1 * a if eqx.is_array(a) else a, network)
    for centred in (True, False):
        scaled = lazy.rescale(network, 3.0, centred=centred)
        scaled = eqx.tree_at(lambda m: m.model, scaled, moved)
        f0, f1 = (jax.vmap(net)(problem.inputs) for net in (network, moved))
        wanted = 3 * (f1 - f0) if centred else 3 * f1
        np.testing.assert_allclose(jax.vmap(scaled)(problem.inputs), wanted, rtol=1e-12)
    kernel = lazy.ntk(lazy.rescale(network, 3.0), problem)
    assert kernel.methods == ("structured",) * 2
    np.testing.assert_allclose(kernel.matrix, 9 * lazy.ntk(network, problem).matrix, rtol=1e-9)
    alphas = np.asarray([16.0, 64.0, 256.0])
    distances = []
    for alpha in alphas:
        run = sgf.simulate(
            sgf.GradientDescent(0.3 / alpha**2), lazy.rescale(network, alpha), problem, steps=50
        )
        assert np.all(run.networks.start.weights[0] == network.weights[0])
        assert run.networks.scale == alpha
        distances.append(np.linalg.norm(run.networks.model.weights[0] - network.weights[0]))
    slope = np.polyfit(np.log(alphas), np.log(distances), 1)[0]
    assert abs(slope + 1) < 0.02


def test_wrappers_keep_what_a_model_declares():
    class Chosen(sgf.AbstractNetwork):
        a: jax.Array
        b: jax.Array

        def __call__(self, x):
            return self.a * x + self.b * x**2

        def trainable(self):
            return lambda leaf: leaf.ndim == 0

    model = Chosen(jnp.asarray(1.0), jnp.ones(1))
    x = jnp.asarray([1.0, 2.0])
    for wrapped in (lazy.linearise(model), lazy.rescale(model, 2.0)):
        assert lazy.ntk(wrapped, x).groups == ("model.a",)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net, p: lazy.rescale(net, 0.0), "`alpha` must be positive"),
        (lambda net, p: lazy.linearise(3), "`model` must be an Equinox module"),
        (lambda net, p: lazy.Probe(net, p.inputs), "`problem` must be a Problem.*wrap the data"),
        (
            lambda net, p: lazy.measure(net, lazy.DeepReLU.init(KEY, D, width=8, depth=2), p),
            "must have the same structure",
        ),
        (
            lambda net, p: lazy.kernel_flow(lazy.ntk(net, p), p, jnp.zeros(3), t1=1.0),
            r"`f0` must have the shape of the model's outputs, \(8,\)",
        ),
        (
            lambda net, p: lazy.kernel_flow(
                lazy.ntk(net, p, other=p.inputs), p, jnp.zeros(N), t1=1.0
            ),
            "the kernel must be that of the problem's 8 examples",
        ),
        (
            lambda net, p: lazy.kernel_flow(lazy.ntk(net, p), p, jnp.zeros(N), t1=0.0),
            "`t1` must be positive",
        ),
    ],
)
def test_refusals(call, words, network, problem):
    with pytest.raises(ValueError, match=words):
        call(network, problem)
