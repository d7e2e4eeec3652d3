"""Attacks against a search through all inputs, and against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attacks import data, flip, half_tanh, least, margins, network, one_hot, swap
from hypothesis import given, settings
from hypothesis import strategies as st

from sgfbias import fourier
from sgfbias.fourier import climb, exhaust, search
from sgfbias.fourier.attack import METHODS
from sgfbias.fourier.pgd import project

ROUNDING = 1e-12
QUICK = ("greedy", "beam", "jsma", "fgsm")
GROUPS = ((0, 3, 5), (1, 2))


def slowly(value):
    """A parameter of the slow tests only."""
    return pytest.param(value, marks=pytest.mark.slow(cases=4))


KINDS = {
    "flips": (fourier.BitFlips(), lambda x: flip(x, range(7))),
    "some bits": (
        fourier.BitFlips(mutable=np.arange(7) % 3 != 0),
        lambda x: flip(x, [1, 2, 4, 5]),
    ),
    "only added": (
        fourier.BitFlips(direction="add"),
        lambda x: flip(x, np.flatnonzero(x < 0)),
    ),
    "only removed": (
        fourier.BitFlips(direction="remove"),
        lambda x: flip(x, np.flatnonzero(x > 0)),
    ),
    "categories": (fourier.OneHotSwaps(GROUPS), lambda x: swap(x, GROUPS)),
    "categories and flips": (
        fourier.OneHotSwaps(GROUPS, others=fourier.BitFlips()),
        lambda x: [*swap(x, GROUPS), *flip(x, [4, 6])],
    ),
}
SHAPES = {"scalar": ("scalar", 1), "classes": (3, 1), "deep": ("scalar", 2), "deep classes": (3, 2)}


# Some pairs are in the fast tests, more in the slow ones, and all before a release.
FAST = [("flips", "scalar"), ("only added", "deep"), ("categories and flips", "classes")]
PAIRS = [
    pytest.param(kind, shape, marks=() if (kind, shape) in FAST else pytest.mark.slow(cases=5))
    for i, kind in enumerate(KINDS)
    for j, shape in enumerate(SHAPES)
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shape"), PAIRS)
def test_exhaustive_finds_the_least_margin_of_all_inputs(kind, shape):
    (moves, one_move), (outputs, depth) = KINDS[kind], SHAPES[shape]
    net = network(7, 4, 1, outputs, depth)
    x = one_hot(3, GROUPS, 7, 2)
    y = np.array([0, 1, 0 if outputs == "scalar" else 2])
    truth = least(net, x, y, 3, one_move)
    found = fourier.attack(net, x, y, 3, method="exhaustive", moves=moves)
    np.testing.assert_allclose(found.margin, truth, atol=ROUNDING)
    np.testing.assert_allclose(margins(net, found.inputs, y), truth[-1], atol=ROUNDING)
    greedy = fourier.attack(net, x, y, 3, moves=moves).margin
    np.testing.assert_allclose(greedy[:2], truth[:2], atol=ROUNDING)


FAST_METHODS = [("greedy", "categories and flips"), ("pgd", "categories"), ("fgsm", "only added")]
METHODS_AND_KINDS = [
    pytest.param(
        method, kind, marks=() if (method, kind) in FAST_METHODS else pytest.mark.slow(cases=5)
    )
    for method in METHODS
    for kind in KINDS
]


@pytest.mark.parametrize(("method", "kind"), METHODS_AND_KINDS)
def test_inputs_have_their_margins_and_respect_the_moves(method, kind):
    """Ground truths 13 and 15: what may not move stays, and groups keep their sum."""
    moves, _ = KINDS[kind]
    net, x, y = network(7, 4, 3, 3), one_hot(4, GROUPS, 7, 4), np.array([0, 1, 2, 1])
    found = fourier.attack(net, x, y, 3, method=method, moves=moves)
    np.testing.assert_allclose(margins(net, found.inputs, y), found.margin[-1], atol=ROUNDING)
    np.testing.assert_allclose(margins(net, x, y), found.margin[0], atol=ROUNDING)
    np.testing.assert_array_equal(found.curve, (np.asarray(found.margin) > 0).mean(axis=1))
    after = np.asarray(found.inputs)
    if "categories" in kind:
        for group in GROUPS:
            np.testing.assert_array_equal(after[:, group].sum(axis=1), x[:, group].sum(axis=1))
        moved = (after != x).sum(axis=1) - sum(
            (after != x)[:, group].any(axis=1) for group in GROUPS
        )
    else:
        moved = (after != x).sum(axis=1)
    assert moved.max() <= 3
    changed = after != x
    if kind == "some bits":
        assert not changed[:, [0, 3, 6]].any()
    if kind == "only added":
        assert (x[changed] < 0).all()
    if kind == "only removed":
        assert (x[changed] > 0).all()
    if kind == "categories":
        assert not changed[:, [4, 6]].any()


@eqx.filter_jit
def all_margins(networks, x, y, moves):
    """The margins of every attack and of the certificate on a batch of networks."""

    def of_one(net, x, y):
        found = {
            method: fourier.attack(net, x, y, 3, method=method, moves=moves).margin
            for method in ("exhaustive", *QUICK)
        }
        return found | {"certificate": fourier.certify(net, x, y, 3, moves=moves).margin}

    return eqx.filter_vmap(of_one)(networks, x, y)


@pytest.mark.slow
@pytest.mark.parametrize(("outputs", "direction"), [("scalar", "any"), (3, "add")])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_no_attack_beats_the_search_through_all_sets_and_no_certificate_fails(
    outputs, direction, seed
):
    """Ground truth 9, on 40 random 12-5-1 or 12-5-3 networks of random steepness."""
    random = np.random.default_rng(seed)

    def make(key, scale):
        net = eqx.nn.MLP(12, outputs, 5, 1, activation=half_tanh, key=key)
        return jax.tree.map(lambda leaf: scale * leaf if eqx.is_array(leaf) else leaf, net)

    scales = jnp.asarray(random.uniform(1, 6, size=40))
    networks = eqx.filter_vmap(make)(jax.random.split(jax.random.key(seed), 40), scales)
    x = random.choice([-1.0, 1.0], size=(40, 4, 12))
    y = random.integers(0, 2 if outputs == "scalar" else 3, size=(40, 4))
    found = all_margins(networks, jnp.asarray(x), jnp.asarray(y), fourier.BitFlips(None, direction))
    truth = found["exhaustive"]
    assert (found["certificate"] <= truth + ROUNDING).all()
    for method in QUICK:
        assert (found[method] >= truth - ROUNDING).all(), method
        assert (np.diff(found[method], axis=1) <= 0).all()
    np.testing.assert_allclose(found["greedy"][:, 1], truth[:, 1], atol=ROUNDING)


@pytest.mark.parametrize("method", ["greedy", *map(slowly, (*QUICK[1:], "pgd"))])
def test_a_linear_model_has_a_closed_form(method):
    """Ground truths 10 and 11: the margin less twice the largest `w_i x_i y`."""
    net = eqx.nn.Linear(20, "scalar", key=jax.random.key(0))
    x, y = data(30, 20, 0)
    gains = np.where(y > 0, 1, -1)[:, None] * x * np.asarray(net.weight[0])
    falls = np.sort(np.maximum(gains, 0), axis=1)[:, ::-1].cumsum(axis=1)
    expected = margins(net, x, y) - 2 * np.vstack([np.zeros(30), falls[:, :6].T])
    found = fourier.attack(net, x, y, 6, method=method)
    atol = 0.02 if method == "pgd" else ROUNDING
    np.testing.assert_allclose(found.margin, expected, atol=atol)
    if method != "pgd":
        np.testing.assert_array_equal(found.curve, (expected > 0).mean(axis=1))


@pytest.mark.slow
def test_a_beam_of_one_set_is_greedy_and_a_wide_one_is_exhaustive():
    """With as many sets as there are, no set is left out, whatever its order."""
    net, (x, y) = network(6, 5, 8, scale=6.0), data(40, 6, 8)
    greedy = fourier.attack(net, x, y, 3)
    one = fourier.attack(net, x, y, 3, method="beam", width=1)
    np.testing.assert_allclose(one.margin, greedy.margin, atol=ROUNDING)
    np.testing.assert_array_equal(one.inputs, greedy.inputs)
    truth = fourier.attack(net, x, y, 3, method="exhaustive")
    wide = fourier.attack(net, x, y, 3, method="beam", width=20)
    np.testing.assert_allclose(wide.margin, truth.margin, atol=ROUNDING)
    assert (np.asarray(greedy.margin) > np.asarray(truth.margin) + 1e-3).any()


def test_an_exclusive_or_defeats_greedy_and_not_a_beam():
    """Two bits that only together change the output: the first step leads nowhere.

    The output is 1.5 - h(x_0 + x_1 - 1) - .1 h(x_2), with h a step at 0: only both
    bits of the pair matter, and the third bit lures the greedy attack away.
    """
    weight = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    net = network(3, 2, 0, activation=lambda z: jnp.where(z > 0, 1.0, 0.0))
    net = eqx.tree_at(
        lambda net: [leaf for layer in net.layers for leaf in (layer.weight, layer.bias)],
        net,
        [weight, jnp.array([-1.0, 0.0]), jnp.array([[-2.0, -0.1]]), jnp.array([1.5])],
    )
    x, y = -np.ones((1, 3)), [1]
    np.testing.assert_allclose(fourier.attack(net, x, y, 2).margin[:, 0], [1.5, 1.4, 1.4])
    for method in ("beam", "exhaustive"):
        found = fourier.attack(net, x, y, 2, method=method)
        np.testing.assert_allclose(found.margin[:, 0], [1.5, 1.4, -0.5])


def test_jsma_follows_its_definition_on_a_linear_model_with_three_classes():
    """Saliency by hand: the greatest product of what the target gains, others lose."""
    net = eqx.nn.Linear(8, 3, key=jax.random.key(4))
    x, y = data(12, 8, 4, 3)
    weight, chosen = np.asarray(net.weight), []
    for row, label in zip(x, y, strict=True):
        outputs = weight @ row + np.asarray(net.bias)
        outputs[label] = -np.inf
        target = outputs.argmax()
        moved = -2 * row * weight
        a, b = moved[target], moved.sum(axis=0) - moved[target]
        product = np.where((a > 0) & (b < 0), -a * b, -np.inf)
        chosen.append(product.argmax() if np.isfinite(product).any() else -1)
    after = x.copy()
    for i, bit in enumerate(chosen):
        if bit >= 0:
            after[i, bit] *= -1
    expected = np.minimum(margins(net, x, y), margins(net, after, y))
    known = np.array(chosen) >= 0
    assert known.sum() >= 8
    found = fourier.attack(net, x, y, 1, method="jsma").margin[1]
    np.testing.assert_allclose(np.asarray(found)[known], expected[known], atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy", "exhaustive", "beam", "jsma", "pgd"])
def test_permuted_bits_are_attacked_alike(method):
    """Ground truth 16. Margins are generic, so there are no ties."""
    net, (x, y) = network(9, 4, 5), data(6, 9, 5)
    order = np.random.default_rng(5).permutation(9)
    other = eqx.tree_at(lambda net: net.layers[0].weight, net, net.layers[0].weight[:, order])
    mutable = np.arange(9) < 7
    found = [
        fourier.attack(net, x, y, 2, method=method, moves=fourier.BitFlips(mutable), restarts=1),
        fourier.attack(
            other,
            x[:, order],
            y,
            2,
            method=method,
            moves=fourier.BitFlips(mutable[order]),
            restarts=1,
        ),
    ]
    np.testing.assert_allclose(found[0].margin, found[1].margin, atol=ROUNDING)
    np.testing.assert_array_equal(np.asarray(found[0].inputs)[:, order], found[1].inputs)


@pytest.mark.slow
def test_no_flips_leave_the_clean_accuracy():
    net, (x, y) = network(9, 4, 6), data(50, 9, 6)
    clean = (margins(net, x, y) > 0).mean()
    for method in METHODS:
        found = fourier.attack(net, x, y, 0, method=method)
        np.testing.assert_array_equal(found.curve, [clean])
        np.testing.assert_array_equal(found.inputs, x)
    np.testing.assert_array_equal(fourier.certify(net, x, y, 0).curve, [clean])


@pytest.mark.slow
def test_more_flips_than_bits_change_nothing_more():
    net, (x, y) = network(4, 3, 7), data(5, 4, 7)
    truth = fourier.attack(net, x, y, 9, method="exhaustive").margin
    assert truth.shape == (10, 5)
    np.testing.assert_array_equal(truth[4:], np.broadcast_to(truth[4], (6, 5)))
    whole = least(net, x, y, 4, lambda x: flip(x, range(4)))
    np.testing.assert_allclose(truth[:5], whole, atol=ROUNDING)
    moves = fourier.BitFlips(mutable=np.zeros(4, bool))
    for method in METHODS:
        still = fourier.attack(net, x, y, 2, method=method, moves=moves)
        np.testing.assert_array_equal(still.inputs, x)
        np.testing.assert_allclose(still.margin, np.tile(margins(net, x, y), (3, 1)), atol=ROUNDING)


@pytest.mark.slow(cases=2)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("moves", [fourier.BitFlips(), fourier.OneHotSwaps([(0, 1, 2), (4, 5)])])
def test_parts_of_the_work_give_what_the_whole_gives(monkeypatch, depth, moves):
    net, y = network(9, 4, 9, depth=depth), data(23, 9, 9)[1]
    x = one_hot(23, [(0, 1, 2), (4, 5)], 9, 9)
    whole = [
        fourier.attack(net, x, y, 2, method=method, moves=moves)
        for method in ("greedy", "beam", "exhaustive")
    ]
    for module, size in ((search, 40), (exhaust, 300)):
        monkeypatch.setattr(module, "AT_ONCE", size)
    monkeypatch.setattr(search.in_parts, "__kwdefaults__", {"at_once": 40})
    jax.clear_caches()
    for method, before in zip(("greedy", "beam", "exhaustive"), whole, strict=True):
        after = fourier.attack(net, x, y, 2, method=method, moves=moves)
        np.testing.assert_allclose(after.margin, before.margin, atol=ROUNDING)
        np.testing.assert_array_equal(after.inputs, before.inputs)
    jax.clear_caches()


@pytest.mark.slow
def test_a_batch_of_networks_is_attacked_as_each_is():
    x, y = data(10, 8, 11)

    def make(key):
        return eqx.nn.MLP(8, "scalar", 4, 1, activation=half_tanh, key=key)

    keys = jax.random.split(jax.random.key(11), 3)
    networks = eqx.filter_vmap(make)(keys)
    for method in ("greedy", "pgd"):
        found = eqx.filter_jit(
            eqx.filter_vmap(lambda net: fourier.attack(net, x, y, 2, method=method).margin)
        )(networks)
        for i in range(3):
            one = fourier.attack(make(keys[i]), x, y, 2, method=method).margin
            np.testing.assert_allclose(found[i], one, atol=ROUNDING)


@pytest.mark.slow
def test_single_precision_and_whole_numbers():
    net = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if eqx.is_array(leaf) else leaf, network(9, 4, 12)
    )
    x, y = data(20, 9, 12)
    wide = fourier.attack(network(9, 4, 12), x, y, 3)
    found = fourier.attack(net, x.astype(np.int8), y.astype(bool), 3)
    assert found.margin.dtype == found.inputs.dtype == jnp.float32
    np.testing.assert_allclose(found.margin, wide.margin, atol=2e-5)
    signed = fourier.attack(net, x, 2 * y - 1, 3)
    np.testing.assert_array_equal(signed.margin, found.margin)


@given(seed=st.integers(0, 10**6), budget=st.integers(1, 5))
@pytest.mark.slow
def test_the_projection_is_the_closest_point(seed, budget):
    """A point p of a convex set is the closest to q if (q - p).(r - p) <= 0 for all r
    in the set. It is enough to try the corners: the best has the largest entries.
    """
    random = np.random.default_rng(seed)
    q = random.normal(size=(1, 12)) * 2
    allowed = random.random((1, 12)) < 0.8
    p = np.asarray(project(jnp.asarray(q), jnp.asarray(allowed), jnp.asarray(float(budget))))
    assert p.min() >= 0
    assert p.max() <= 1
    assert p.sum() <= budget + 1e-5
    assert (p[~allowed] == 0).all()
    away = np.where(allowed, q - p, 0)
    best = np.sort(np.maximum(away, 0).ravel())[::-1][:budget].sum()
    assert best - (away * p).sum() <= 1e-4


def test_ties_do_not_matter_by_more_than_the_tie():
    """Equal weights: any bits give the same margins."""
    net = eqx.tree_at(
        lambda net: net.weight, eqx.nn.Linear(6, "scalar", key=jax.random.key(0)), jnp.ones((1, 6))
    )
    x = np.ones((1, 6))
    found = fourier.attack(net, x, [1], 3).margin[:, 0]
    np.testing.assert_allclose(found, 6 + np.asarray(net.bias) - 2 * np.arange(4))


REFUSED = [
    ({"method": "gredy"}, "must be one of 'greedy', .*did you mean greedy"),
    ({"flips": -1}, "`flips` must be a whole number >= 0"),
    ({"flips": 1.5}, "`flips` must be a whole number"),
    ({"inputs": np.zeros((2, 5))}, r"must be -1 or \+1, but 0 occurs: write 2\*x - 1"),
    ({"inputs": np.ones((2, 4))}, "have 4 bits, but the first layer of the network takes 5"),
    ({"inputs": np.ones(5)}, r"inputs must have shape \(n, d\)"),
    ({"y": [0, 3]}, r"must be in \{0, 1\} or in \{-1, 1\}"),
    ({"y": [0]}, "one label for each of the 2 examples"),
    ({"moves": "any"}, r"must be BitFlips\(...\) or OneHotSwaps\(groups\), but is the word 'any'"),
    ({"moves": fourier.BitFlips(np.ones(4, bool))}, "each of the 5 bits .* has 4 entries"),
    ({"moves": fourier.OneHotSwaps([[3, 5]])}, "has bit 5, but the inputs have the bits 0 to 4"),
    ({"moves": fourier.OneHotSwaps([[0, 1]])}, r"exactly one bit at \+1, but example 0 has 2"),
    ({"width": 0}, "`width` must be a whole number >= 1"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_makes_no_sense_is_refused(change, words):
    given = {"net": network(5, 2, 0), "inputs": np.ones((2, 5)), "y": [0, 1], "flips": 1} | change
    with pytest.raises(ValueError, match=words):
        fourier.attack(**given)


def test_an_exhaustive_search_without_end_is_refused():
    x, y = data(1000, 40, 0)
    with pytest.raises(
        ValueError, match=r"takes 1.0e\+08 evaluations.*use fewer flips or examples"
    ):
        fourier.attack(network(40, 2, 0), x, y, 4, method="exhaustive")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: fourier.BitFlips(direction="up"),
            "must be 'any', 'add', 'remove', but is the wor",
        ),
        (lambda: fourier.BitFlips(direction="removed"), "did you mean remove"),
        (lambda: fourier.BitFlips(mutable=[1, 0]), r"must be booleans of shape \(d,\)"),
        (lambda: fourier.OneHotSwaps([[0, 1], [1, 2]]), "must not overlap, but bit 1 is in two"),
        (lambda: fourier.OneHotSwaps([[0]]), "must be lists of two bits or more"),
        (lambda: fourier.OneHotSwaps([[-1, 0]]), "numbers of bits from 0 on, but has -1"),
        (lambda: fourier.OneHotSwaps("ab"), "`groups` must be lists"),
        (lambda: fourier.OneHotSwaps(3), "`groups` must be lists"),
    ],
)
def test_moves_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_beam_recognises_equal_sets():
    sums = jnp.array([[5, 3, 5, 3, 7, 5]], jnp.uint32)
    np.testing.assert_array_equal(climb._distinct(sums, 4)[0], [0, 1, 4, 2])
