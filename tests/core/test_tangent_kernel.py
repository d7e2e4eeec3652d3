"""The tangent kernel of many kinds of models against the Jacobian that reverse mode
gives, against finite differences, and its refusals.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias.core import gram, tangent
from sgfbias.core.taps import reported

KEY = jax.random.key(3)


def normal(seed, *shape, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


class ConvNet(eqx.Module):
    layers: tuple
    head: eqx.nn.Linear
    options: dict = eqx.field(static=True)

    def __init__(self, key, **options):
        keys = jax.random.split(key, 3)
        first = {"stride": 2, "padding": 1} | options
        self.layers = (
            eqx.nn.Conv2d(2, 4, 3, key=keys[0], **first),
            eqx.nn.Conv2d(4, 3, 2, dilation=2, padding="SAME", use_bias=False, key=keys[1]),
        )
        self.head = eqx.nn.Linear(3, 3, key=keys[2])
        self.options = options

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(jnp.mean(x, axis=(1, 2)))


class Recurrent(eqx.Module):
    """A GRU in a scan, with a linear read-out."""

    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        self.cell = eqx.nn.GRUCell(2, 3, key=key)
        self.head = eqx.nn.Linear(3, 2, key=key)

    def __call__(self, x):
        h, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(3, x.dtype), x)
        return self.head(h)


class Attention(eqx.Module):
    """Embedded tokens, an attention block, a scale, and a mean over positions."""

    embedding: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    scale: jax.Array
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.embedding = eqx.nn.Embedding(5, 4, key=a)
        self.attention = eqx.nn.MultiheadAttention(2, 4, use_query_bias=True, key=b)
        self.scale = jnp.asarray([0.5, 1.5, -1.0, 2.0])
        self.head = eqx.nn.Linear(4, 2, key=c)

    def __call__(self, tokens):
        h = jax.vmap(self.embedding)(tokens)
        return self.head(jnp.mean((h + self.attention(h, h, h)) * self.scale, axis=0))


class Twice(eqx.Module):
    """One layer that is used twice, once on its own outputs."""

    layer: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        self.layer, self.head = eqx.nn.Linear(4, 4, key=key), eqx.nn.Linear(4, 2, key=key)

    def __call__(self, x):
        return self.head(jnp.tanh(self.layer(jnp.tanh(self.layer(x)))))


class Language(eqx.Module):
    """An embedding whose matrix is also the matrix of the read-out."""

    shared: eqx.nn.Shared

    def __init__(self, key):
        a, b = jax.random.split(key)
        layers = (eqx.nn.Embedding(4, 3, key=a), eqx.nn.Linear(3, 4, key=b))
        self.shared = eqx.nn.Shared(layers, lambda m: m[1].weight, lambda m: m[0].weight)

    def __call__(self, tokens):
        embedding, head = self.shared()
        return head(jnp.tanh(jnp.sum(jax.vmap(embedding)(tokens), axis=0)))


class Halves(eqx.Module):
    """Two linear layers with one weight and two biases, in a wrapper of Equinox."""

    shared: eqx.nn.Shared

    def __init__(self, key):
        a, b = jax.random.split(key)
        layers = (eqx.nn.Linear(3, 3, key=a), eqx.nn.Linear(3, 3, key=b))
        self.shared = eqx.nn.Shared(layers, lambda m: m[1].weight, lambda m: m[0].weight)

    def __call__(self, x):
        first, second = self.shared()
        return second(jnp.sin(first(x)))


class Elsewhere(eqx.Module):
    """A layer whose weight is used outside of it, too."""

    layer: eqx.nn.Linear

    def __init__(self, key):
        self.layer = eqx.nn.Linear(3, 3, key=key)

    def __call__(self, x):
        return self.layer(x) + self.layer.weight.T @ x


class Scalar(eqx.Module):
    """A scalar output, from layers with scalar inputs and outputs."""

    first: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        self.first = eqx.nn.Linear("scalar", 5, key=key)
        self.last = eqx.nn.Linear(5, "scalar", key=key)

    def __call__(self, x):
        return self.last(jax.nn.softplus(self.first(x)))


TOKENS = jax.random.randint(KEY, (5, 6), 0, 4)
# Name -> model, examples, and the groups of which the gradients are taken.
MODELS = {
    "MLP": (eqx.nn.MLP(4, 3, 6, 2, key=KEY), normal(1, 5, 4), set()),
    "convolutions": (ConvNet(KEY), normal(2, 4, 2, 6, 6), set()),
    "groups of channels": (ConvNet(KEY, groups=2), normal(2, 4, 2, 6, 6), {"layers[0]"}),
    "circular": (ConvNet(KEY, padding_mode="CIRCULAR"), normal(2, 4, 2, 6, 6), {"layers[0]"}),
    "GRU": (
        Recurrent(KEY),
        normal(3, 4, 5, 2),
        {"cell.weight_ih", "cell.weight_hh", "cell.bias", "cell.bias_n"},
    ),
    "attention": (Attention(KEY), TOKENS, {"scale"}),
    "one layer twice": (Twice(KEY), normal(4, 5, 4), set()),
    "one weight, two biases": (Halves(KEY), normal(5, 5, 3), set()),
    "language model": (Language(KEY), TOKENS, {"shared.pytree[0]", "shared.pytree[1]"}),
    "weight used elsewhere": (Elsewhere(KEY), normal(5, 5, 3), {"layer"}),
    "scalars": (Scalar(KEY), normal(6, 5), set()),
    "layer norm": (
        eqx.nn.Sequential([eqx.nn.Linear(3, 4, key=KEY), eqx.nn.LayerNorm(4)]),
        normal(7, 5, 3),
        {"layers[1].weight", "layers[1].bias"},
    ),
}


def jacobian_of(model, inputs):
    """The Jacobian (n, O, P) by reverse mode, one example at a time."""
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = jax.flatten_util.ravel_pytree(parameters)

    def outputs(w, x):
        return eqx.combine(unravel(w), rest)(x).reshape(-1)

    return jax.vmap(jax.jacrev(outputs), (None, 0))(flat, inputs)


def kernel_of(model, inputs, other=None):
    rows = jacobian_of(model, inputs)
    columns = rows if other is None else jacobian_of(model, other)
    kernel = np.einsum("iaq,jbq->ijab", rows, columns)
    return kernel[..., 0, 0] if model(inputs[0]).ndim == 0 else kernel


def few(*fast):
    """The names of all models, of which only some are among the fast tests."""
    return [pytest.param(n, marks=() if n in fast else pytest.mark.slow(cases=4)) for n in MODELS]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", few("MLP", "convolutions", "one weight, two biases", "weight used elsewhere")
)
def test_the_kernel_is_that_of_the_jacobian(name):
    model, inputs, by_gradients = MODELS[name]
    kernel = sgf.tangent_kernel(model, inputs)
    wanted = kernel_of(model, inputs)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(kernel.matrix, wanted, rtol=0, atol=1e-12 * scale)
    # The parts of the layers add up, and only what has no structure has its gradients
    # taken.
    np.testing.assert_allclose(sum(kernel.layers.values()), wanted, rtol=0, atol=1e-12 * scale)
    how = dict(zip(kernel.groups, kernel.methods, strict=True))
    assert {group for group, method in how.items() if "jacobian" in method} == by_gradients
    # A kernel has no negative eigenvalue beyond rounding.
    assert kernel.least >= -1e-12 * kernel.trace


@pytest.mark.parametrize("name", few("MLP", "scalars"))
def test_the_two_forms_and_the_blocks_agree(name, monkeypatch):
    """Pairs of positions and gradients give one kernel, in blocks of any size, and
    summed over the outputs.
    """
    model, inputs, _ = MODELS[name]
    wanted = sgf.tangent_kernel(model, inputs)
    chosen = gram._chosen

    def otherwise(part, calls, leaves, outputs, *, traced):
        found, *sizes = chosen(part, calls, leaves, outputs, traced=traced)
        return found._replace(pairs=not found.pairs), *sizes

    monkeypatch.setattr(gram, "_chosen", otherwise)
    found = sgf.tangent_kernel(model, inputs, other=inputs[1:], microbatch=2)
    tolerance = {"rtol": 0, "atol": 1e-12 * float(jnp.max(jnp.abs(wanted.matrix)))}
    np.testing.assert_allclose(found.matrix, wanted.matrix[:, 1:], **tolerance)
    for group, part in wanted.layers.items():
        np.testing.assert_allclose(found.layers[group], part[:, 1:], **tolerance)
    summed = sgf.tangent_kernel(model, inputs, outputs="trace", microbatch=3)
    full = wanted.matrix if wanted.matrix.ndim == 4 else wanted.matrix[..., None, None]
    np.testing.assert_allclose(summed.matrix, np.einsum("ijaa->ij", full), **tolerance)


@pytest.mark.parametrize("name", ["MLP", pytest.param("convolutions", marks=pytest.mark.slow)])
def test_float32(name):
    model, inputs, _ = MODELS[name]
    kernel = sgf.tangent_kernel(model, inputs.astype(jnp.float32))
    assert kernel.matrix.dtype == jnp.float32
    wanted = kernel_of(model, inputs)
    error = np.linalg.norm(np.asarray(kernel.matrix) - wanted) / np.linalg.norm(wanted)
    assert error < 1e-6
    blocks = sgf.tangent_kernel(model, inputs.astype(jnp.float32), microbatch=2).matrix
    np.testing.assert_allclose(blocks, kernel.matrix, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert kernel.least >= -1e-6 * kernel.trace


def test_tied_weights_against_finite_differences():
    """The gradients of all uses are summed first; the kernels of the uses do not add
    up.
    """
    model, inputs, _ = MODELS["one layer twice"]
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = jax.flatten_util.ravel_pytree(parameters)
    outputs = jax.jit(lambda w: jax.vmap(eqx.combine(unravel(w), rest))(inputs))
    h = 1e-5
    rows = np.stack(
        [(outputs(flat + e) - outputs(flat - e)) / (2 * h) for e in h * np.eye(len(flat))]
    )
    kernel = sgf.tangent_kernel(model, inputs)
    np.testing.assert_allclose(
        kernel.matrix, np.einsum("qia,qjb->ijab", rows, rows), rtol=0, atol=1e-8
    )

    class Untied(eqx.Module):
        first: eqx.nn.Linear
        second: eqx.nn.Linear
        head: eqx.nn.Linear

        def __call__(self, x):
            return self.head(jnp.tanh(self.second(jnp.tanh(self.first(x)))))

    untied = sgf.tangent_kernel(Untied(model.layer, model.layer, model.head), inputs)
    assert np.abs(untied.matrix - kernel.matrix).max() > 0.1


def test_layers_that_are_mapped_or_scanned_are_told_apart():
    _, calls = reported(Attention(KEY), jax.ShapeDtypeStruct((6,), jnp.int64))
    assert [(call.kind, call.mapped) for call in calls] == [
        ("embedding", 1),
        *[("linear", 1)] * 4,
        ("linear", 0),
    ]
    _, calls = reported(Recurrent(KEY), jax.ShapeDtypeStruct((5, 2), jnp.float64))
    assert [call.shape for call in calls] == [(2,)]


class Frozen(sgf.AbstractNetwork):
    first: eqx.nn.Linear
    last: eqx.nn.Linear

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))

    def trainable(self):
        return eqx.tree_at(lambda m: m.last, jax.tree.map(lambda _: True, self), False)


def test_trainable_declared_and_given():
    model = Frozen(eqx.nn.Linear(3, 4, key=KEY), eqx.nn.Linear(4, 2, key=KEY))
    inputs = normal(8, 5, 3)
    kernel = sgf.tangent_kernel(model, inputs)
    assert kernel.groups == ("first",)
    all_of = sgf.tangent_kernel(model, inputs, trainable=True)
    assert all_of.groups == ("first", "last")
    np.testing.assert_allclose(kernel.matrix, all_of.layers["first"], rtol=1e-12)


@pytest.mark.slow
def test_a_run_leaves_alone_what_is_frozen():
    """Unless it is told otherwise, also from starts of its own."""
    model = Frozen(eqx.nn.Linear(3, 4, key=KEY), eqx.nn.Linear(4, 2, key=KEY))
    problem = sgf.Problem(normal(8, 5, 3), normal(9, 5, 2))
    keys = {"keys": sgf.seeds(0, 2), "steps": 3}
    algorithm = sgf.StochasticGradientDescent(0.1, 2)
    start = model.last.weight
    runs = sgf.simulate(algorithm, model, problem, **keys)
    assert np.all(runs.networks.last.weight == start)
    assert np.all(np.any(runs.networks.first.weight != model.first.weight, axis=(1, 2)))
    runs = sgf.simulate(algorithm, model, problem, trainable=True, **keys)
    assert np.all(np.any(runs.networks.last.weight != start, axis=(1, 2)))
    starts = sgf.Stacked([model, model])
    runs = sgf.simulate(algorithm, starts, problem, **keys)
    assert np.all(runs.networks.last.weight == start)


def test_compiled_mapped_and_differentiated():
    model, inputs, _ = MODELS["MLP"]

    def least(scale):
        return sgf.tangent_kernel(model, scale * inputs, outputs="trace").least

    value, slope = jax.jit(jax.value_and_grad(least))(jnp.asarray(1.0))
    np.testing.assert_allclose(value, least(1.0), rtol=1e-9)
    h = 1e-5
    np.testing.assert_allclose(slope, (least(1 + h) - least(1 - h)) / (2 * h), rtol=1e-5)
    values = jax.vmap(least)(jnp.asarray([0.5, 1.0]))
    np.testing.assert_allclose(values, [least(0.5), least(1.0)], rtol=1e-9)


@pytest.mark.slow
def test_mapped_over_models_and_differentiated_in_their_weights():
    _, inputs, _ = MODELS["MLP"]
    keys = jax.random.split(KEY, 3)
    make = lambda key: eqx.nn.MLP(4, 3, 6, 1, key=key)  # noqa: E731
    trace = lambda model: sgf.tangent_kernel(model, inputs, outputs="trace").trace  # noqa: E731
    models = eqx.filter_vmap(make)(keys)
    found = eqx.filter_vmap(trace)(models)
    np.testing.assert_allclose(found, [trace(make(key)) for key in keys], rtol=1e-10)
    slope = eqx.filter_grad(trace)(make(KEY)).layers[1].weight[0, 0]
    moved = [
        trace(
            eqx.tree_at(
                lambda m: m.layers[1].weight,
                make(KEY),
                replace_fn=lambda w, h=h: w.at[0, 0].add(h),
            )
        )
        for h in (1e-5, -1e-5)
    ]
    np.testing.assert_allclose(slope, (moved[0] - moved[1]) / 2e-5, rtol=1e-5)


def test_products_extremes_and_trace():
    model, inputs, _ = MODELS["MLP"]
    kernel = sgf.tangent_kernel(model, inputs)
    products = sgf.tangent_kernel(model, inputs, method="products")
    v = normal(10, 5, 3)
    wanted = np.einsum("ijab,jb->ia", kernel.matrix, v)
    np.testing.assert_allclose(kernel.product(v), wanted, rtol=1e-12)
    np.testing.assert_allclose(products.product(v), wanted, rtol=1e-12)
    np.testing.assert_allclose(products.matrix, kernel.matrix, rtol=0, atol=1e-12)
    values = np.linalg.eigvalsh(kernel.flat)
    np.testing.assert_allclose(kernel.eigenvalues, values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(products.least, values[0], rtol=1e-8)
    np.testing.assert_allclose(products.largest, values[-1], rtol=1e-8)
    np.testing.assert_allclose(products.trace, np.trace(kernel.flat), rtol=1e-12)
    estimate = products.estimate_trace(jax.random.key(0), 64)
    assert abs(estimate.value - kernel.trace) < 4 * estimate.standard_error
    # The variance of z^T K z is twice the sum of squares off the diagonal.
    off = kernel.flat - np.diag(np.diag(kernel.flat))
    law = np.sqrt(2 * np.sum(np.square(off)) / 64)
    assert 0.5 * law < estimate.standard_error < 1.5 * law
    rectangle = sgf.tangent_kernel(model, inputs, other=inputs[:2], method="products")
    np.testing.assert_allclose(rectangle.matrix, kernel.matrix[:, :2], rtol=0, atol=1e-12)
    wanted = np.einsum("ijab,jb->ia", kernel.matrix[:, :2], v[:2])
    np.testing.assert_allclose(rectangle.product(v[:2]), wanted, rtol=1e-10)


def test_numbers_of_a_kernel_that_is_known():
    """A linear model with the identity as its examples has the identity as its kernel,
    a matrix of which everything is known.
    """

    class Linear(eqx.Module):
        w: jax.Array

        def __call__(self, x):
            return jnp.dot(self.w, x)

    kernel = sgf.tangent_kernel(Linear(jnp.zeros(4)), jnp.eye(4))
    assert kernel.shape == (4, 4)
    assert kernel.effective_rank == 4
    assert kernel.least == kernel.largest == 1
    y = jnp.asarray([1.0, 1.0, -1.0, 1.0])
    np.testing.assert_allclose(kernel.alignment(y), 4 / (2 * 4))
    # Two classes of two examples: Y Y^T has 8 entries of 1, 4 of them on the diagonal.
    np.testing.assert_allclose(kernel.alignment(jnp.asarray([0, 0, 2, 2])), 4 / (2 * np.sqrt(8)))
    table = kernel.to_xarray()
    assert table["kernel"].dims == ("example", "other_example")
    assert list(table["layer"].values) == ["w"]
    assert table.attrs["precision"] == "float64"
    singular = sgf.tangent_kernel(Linear(jnp.zeros(2)), jnp.ones((3, 2)))
    assert "least below the resolution" in repr(singular)
    assert "largest 6" in repr(singular)


def test_jointly_evaluated_problems():
    class Joint(sgf.Problem):
        """Every output is also that of the example before."""

        def outputs(self, network, inputs=None):
            inputs = self.inputs if inputs is None else inputs
            each = jax.vmap(network)(inputs)
            return each + jnp.roll(each, 1, axis=0)

    model, inputs, _ = MODELS["MLP"]
    problem = Joint(inputs, normal(1, 5, 3))
    plain = np.asarray(kernel_of(model, inputs))
    wanted = sum(np.roll(np.roll(plain, r, 0), c, 1) for r in (0, 1) for c in (0, 1))
    for method in ("auto", "jacobian", "products"):
        kernel = sgf.tangent_kernel(model, problem, method=method)
        np.testing.assert_allclose(kernel.matrix, wanted, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="evaluates its examples jointly, so there is no"):
        sgf.tangent_kernel(model, problem, method="structured")
    with pytest.raises(ValueError, match="leave out `microbatch`"):
        sgf.tangent_kernel(model, problem, microbatch=2)
    assert sgf.tangent_kernel(model, sgf.Problem(inputs, normal(1, 5, 3))).shape == (5, 5, 3, 3)


class Coupled(sgf.AbstractNetwork):
    layer: eqx.nn.Linear

    def __call__(self, x):
        return self.layer(x)

    def predict(self, inputs):
        outputs = jax.vmap(self)(inputs)
        return outputs - jnp.mean(outputs, axis=0)


def test_refusals(monkeypatch):
    model, inputs, _ = MODELS["MLP"]
    dropout = eqx.nn.Sequential([model, eqx.nn.Dropout(0.5)])
    with pytest.raises(ValueError, match="has no random numbers: use equinox.nn.inference_mode"):
        sgf.tangent_kernel(dropout, inputs)
    quiet = eqx.nn.inference_mode(dropout)
    np.testing.assert_allclose(
        sgf.tangent_kernel(quiet, inputs).matrix, sgf.tangent_kernel(model, inputs).matrix
    )
    with pytest.raises(ValueError, match="example i depends on example j in Coupled.predict"):
        sgf.tangent_kernel(Coupled(eqx.nn.Linear(4, 3, key=KEY)), inputs)

    class Normed(eqx.Module):
        def __call__(self, x):
            return x - jax.lax.pmean(x, "batch")

    with pytest.raises(ValueError, match="example i depends on example j, so a kernel"):
        sgf.tangent_kernel(eqx.nn.Sequential([model, eqx.nn.Lambda(Normed())]), inputs)
    with pytest.raises(ValueError, match="'structure'; did you mean structured"):
        sgf.tangent_kernel(model, inputs, method="structure")
    with pytest.raises(ValueError, match="leave out outputs='trace'"):
        sgf.tangent_kernel(model, inputs, method="products", outputs="trace")
    with pytest.raises(ValueError, match="forms no parts of layers"):
        sgf.tangent_kernel(model, inputs, method="products").layers  # noqa: B018
    with pytest.raises(ValueError, match="a leading axis of examples"):
        sgf.tangent_kernel(model, jnp.zeros((0, 4)))
    with pytest.raises(ValueError, match="`inputs` must be finite"):
        sgf.tangent_kernel(model, inputs.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="cannot be evaluated on examples of shape"):
        sgf.tangent_kernel(model, inputs[:, :3])
    with pytest.raises(ValueError, match="has nothing to train"):
        sgf.tangent_kernel(model, inputs, trainable=False)
    with pytest.raises(ValueError, match="between two sets of examples has no eigenvalues"):
        sgf.tangent_kernel(model, inputs, other=inputs).least  # noqa: B018
    kernel = sgf.tangent_kernel(model, inputs)
    with pytest.raises(ValueError, match=r"`v` must have shape \(5, 3\)"):
        kernel.product(jnp.zeros(5))
    with pytest.raises(ValueError, match="class labels must be from 0 to 2"):
        kernel.alignment(jnp.asarray([0, 1, 2, 3, 0]))
    with pytest.raises(ValueError, match="the model has 3 outputs, but `labels` have 1"):
        kernel.alignment(jnp.ones(5))
    monkeypatch.setattr(tangent, "_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"225 numbers.*method='products', which forms no"):
        sgf.tangent_kernel(model, inputs)


@pytest.mark.parametrize("microbatch", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_the_jacobian_of_a_problem(microbatch):
    model, inputs, _ = MODELS["MLP"]
    problem = sgf.Problem(inputs, normal(1, 5, 3))
    rows = np.asarray(jacobian_of(model, inputs)).reshape(15, -1)
    operator = problem.jacobian(model, microbatch=microbatch)
    flat, unravel = jax.flatten_util.ravel_pytree(operator.parameters)
    v, c = normal(2, *flat.shape), normal(3, 5, 3)
    np.testing.assert_allclose(
        operator.product(unravel(v)).reshape(-1), rows @ v, rtol=0, atol=1e-12
    )
    pulled = jax.flatten_util.ravel_pytree(operator.transpose_product(c))[0]
    np.testing.assert_allclose(pulled, rows.T @ c.reshape(-1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        operator.gram(c).reshape(-1), rows @ rows.T @ c.reshape(-1), rtol=0, atol=1e-11
    )
    np.testing.assert_allclose(operator.gram(), rows @ rows.T, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match=r"`cotangent` must have the shape.*\(5, 3\)"):
        operator.transpose_product(jnp.ones(5))
    with pytest.raises(ValueError, match="`tangent` must be a PyTree like the trainable"):
        operator.product(flat)
    with pytest.raises(ValueError, match="`network` must be an Equinox module"):
        problem.jacobian(3)
