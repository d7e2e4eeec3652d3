"""Few seeds run in small tiles, and keep the digits that they have among many."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias.core import stepped
from sgfbias.core.products import ALONE_DECIDE, Product, Steady, choose
from sgfbias.core.steady import products_of, steady

SHAPES = [(40, 100), (7, 3), (37, 101)]
DYNAMICS = {
    "mirror": (sgf.StochasticGradientFlow(0.02), "mirror"),
    "weights": (sgf.StochasticGradientFlow(0.02), "weights"),
    "per sample": (sgf.StochasticGradientFlow(0.02, sgf.PerSampleNoise()), "weights"),
    "SGD": (sgf.StochasticGradientDescent(0.02, batch_size=3), None),
}
COUNTS = (1, 2, 5, 12, 33)


def sizes_of(monkeypatch):
    """A list to which every run appends the number of seeds of its tiles."""
    chosen = []
    original = stepped._members

    def spy(*args):
        found = original(*args)
        chosen.append(found[0])
        return found

    monkeypatch.setattr(stepped, "_members", spy)
    return chosen


def check(run, most, monkeypatch):
    """Runs of a few seeds equal the first seeds of a run of many, in smaller tiles."""
    sizes = sizes_of(monkeypatch)
    many = run(sgf.seeds(0, most))
    found = (many.series, many.final, eqx.filter(many.networks, eqx.is_array))
    assert not np.array_equal(many["loss"][0], many["loss"][1])
    for count in COUNTS:
        few = run(sgf.seeds(0, count))
        jax.tree.map(
            lambda a, b, count=count: np.testing.assert_array_equal(a[:count], b),
            found,
            (few.series, few.final, eqx.filter(few.networks, eqx.is_array)),
        )
    if ALONE_DECIDE:
        assert sizes[0] > sizes[1], "one seed ran in a tile as large as that of many"


@pytest.mark.slow(cases=4)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_few_seeds_have_the_digits_of_many(shape, name, dtype, monkeypatch):
    dynamics, coordinates = DYNAMICS[name]
    problem = sgf.SparseRegression.sample(
        jax.random.key(0), n=shape[0], d=shape[1], sparsity=2, dtype=dtype
    )
    network = sgf.DiagonalNetwork.init(alpha=0.1, d=shape[1], dtype=dtype)

    def run(keys):
        return sgf.simulate(
            dynamics,
            network,
            problem,
            keys=keys,
            steps=60,
            coordinates=coordinates,
            record=sgf.Record(times=3),
        )

    check(run, 130, monkeypatch)


@pytest.mark.slow(cases=2)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [5, 27])
@pytest.mark.parametrize("start", ["one", "drawn"])
def test_few_seeds_of_a_model_have_the_digits_of_many(start, width, dtype, monkeypatch):
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((96, 16)).astype(dtype)
    problem = sgf.Problem(inputs, generator.standard_normal((96, 4)).astype(dtype))

    def make(key):
        return eqx.nn.MLP(16, 4, width, 1, key=key)

    network = make(jax.random.key(1)) if start == "one" else sgf.Drawn(make)

    def run(keys):
        return sgf.simulate(
            sgf.StochasticGradientFlow(0.02),
            network,
            problem,
            keys=keys,
            steps=20,
            record=sgf.Record(times=3),
        )

    check(run, 66, monkeypatch)


@pytest.mark.slow
def test_a_stored_run_does_not_change_when_seeds_are_added_one_by_one():
    problem = sgf.SparseRegression.sample(
        jax.random.key(0), n=9, d=20, sparsity=2, dtype=jnp.float32
    )
    network = sgf.DiagonalNetwork.init(alpha=0.1, d=20, dtype=jnp.float32)
    dynamics = sgf.StochasticGradientFlow(0.02)
    whole = sgf.simulate(dynamics, network, problem, keys=sgf.seeds(0, 9), steps=50)
    for seed in range(9):
        one = sgf.simulate(dynamics, network, problem, keys=sgf.seeds(seed, seed + 1), steps=50)
        np.testing.assert_array_equal(whole.final["beta"][seed], one.final["beta"][0])


@pytest.mark.slow
def test_inexact_runs_agree_up_to_rounding_and_run_alone(monkeypatch):
    sizes = sizes_of(monkeypatch)
    problem = sgf.SparseRegression.sample(jax.random.key(0), n=9, d=20, sparsity=2)
    network = sgf.DiagonalNetwork.init(alpha=0.1, d=20)

    def run(**options):
        return sgf.simulate(
            sgf.StochasticGradientFlow(0.02),
            network,
            problem,
            keys=sgf.seeds(0, 1),
            steps=50,
            **options,
        ).final["beta"]

    exact, inexact = run(), run(exact=False)
    assert sizes == [2 if ALONE_DECIDE else 64, 1]
    np.testing.assert_allclose(exact, inexact, rtol=1e-11, atol=1e-15)


def test_exact_must_be_true_or_false():
    problem = sgf.SparseRegression.sample(jax.random.key(0), n=4, d=6, sparsity=1)
    with pytest.raises(ValueError, match="`exact` must be True or False, but is 'no'"):
        sgf.simulate(
            sgf.StochasticGradientFlow(0.02),
            sgf.DiagonalNetwork.init(alpha=0.1, d=6),
            problem,
            keys=sgf.seeds(0, 1),
            steps=2,
            exact="no",
        )


def nested(x, matrix):
    """Products in a scan, in a branch, in a while loop and in a function of its own."""

    @jax.jit
    def inner(v):
        return jnp.tanh(v @ matrix)

    def body(carry, k):
        carry = jax.lax.cond(k > 1, inner, lambda v: v @ matrix.T, carry)
        return carry, jnp.sum(carry)

    carry, sums = jax.lax.scan(body, x, jnp.arange(3))
    carry = jax.lax.while_loop(lambda v: jnp.sum(v**2) > 1, lambda v: 0.5 * inner(v), carry)
    return carry, sums


@pytest.mark.parametrize("with_transpose", [False, True])
def test_a_program_with_other_products_computes_the_same(with_transpose):
    generator = np.random.default_rng(0)
    matrix = jnp.asarray(generator.standard_normal((6, 6)))
    rows = jnp.asarray(generator.standard_normal((64, 6)))

    @jax.jit
    def both(rows, matrix, transpose):
        pair = (matrix, transpose) if with_transpose else None

        def function(x):
            return nested(x, matrix)

        seen = set()
        split = products_of(function, rows)
        ours = jax.vmap(steady(function, Steady(split), transposed=pair, seen=seen))(rows)
        # The product with the transposed matrix is another. It is in a branch, which is
        # given its arrays anew, so that the transpose is not found there.
        assert len(seen) == len(split) == 2
        return ours, jax.vmap(function)(rows)

    ours, plain = both(rows, matrix, matrix.T)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, plain)


def test_the_transpose_that_is_given_is_used():
    matrix, other = jnp.eye(3), jnp.ones((3, 3))

    def function(x):
        return x @ matrix.T

    found = jax.vmap(steady(function, Steady(), transposed=(matrix, other)))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(found, 3.0)


def test_an_unknown_operation_is_told():
    def convolve(x):
        return jnp.convolve(x, jnp.ones(3))

    assert products_of(convolve, jnp.ones((2, 8))) is None
    assert products_of(jnp.cumsum, jnp.ones((2, 8))) == frozenset()


def test_a_product_whose_digits_depend_on_the_tile_makes_the_tile_larger(monkeypatch):
    """A product that differs below 16 seeds needs a tile of 16; one that never agrees
    needs the largest.
    """
    product = Product((((2,), (2, 2))), ("float64", "float64"), (True, False), ())
    for least, expected in ((2, 4), (16, 16), (999, 64)):

        def take(asked, least=least):
            for key in asked:
                size = key[2]
                digits = [b"many" if size >= least else b"few %d" % size] * size
                products.setdefault(key, digits)

        products = {}
        monkeypatch.setattr("sgfbias.core.products._DIGITS", products)
        monkeypatch.setattr("sgfbias.core.products._take", take)
        monkeypatch.setattr(Product, "block", 32)
        assert choose.__wrapped__(frozenset([product]), 4, 64)[0] == expected


def test_a_decomposition_is_an_unknown_operation():
    assert products_of(jnp.linalg.cholesky, jnp.ones((2, 3, 3))) is None
