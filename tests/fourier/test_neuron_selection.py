"""Rules that choose neurons, against loops over networks that are evaluated as a whole,
and the frontier.
"""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgfbias import fourier
from sgfbias.fourier.selection import gains_of, stabilised_subsets

D, M, N = 10, 6, 201


def data(seed=0, n=N):
    """Bits, and labels of which a linear rule knows most."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], size=(n, D))
    y = (x @ rng.normal(size=D) + rng.normal(size=n) > 0).astype(int)
    return x, y


def network(seed=0, out="scalar", depth=1):
    net = eqx.nn.MLP(D, out, M, depth, jnp.tanh, key=jax.random.key(seed))
    # Weights of very different sizes, so that stabilising them changes labels.
    spread = jnp.exp(jax.random.normal(jax.random.key(seed + 50), (M, D)))
    return eqx.tree_at(lambda n: n.layers[0].weight, net, net.layers[0].weight * spread)


NETWORKS = {
    "scalar": (network(1), data(1)),
    "classes": (network(3, out=3), (data(3)[0], np.arange(N) % 3)),
    "deeper": (network(4, depth=2), data(4)),
}


def fitted(net, y, x):
    """Labels that the network gives to most examples, so that accuracy can fall."""
    outputs = np.asarray(jax.vmap(net)(jnp.asarray(x)))
    own = outputs.argmax(1) if outputs.ndim == 2 else (outputs > 0).astype(int)
    return np.where(np.arange(len(y)) % 10 == 0, y, own)


def case(name):
    net, (x, y) = NETWORKS[name]
    return net, x, fitted(net, y, x)


def accuracy(net, x, y):
    outputs = np.asarray(jax.vmap(net)(jnp.asarray(x)))
    if outputs.ndim == 2:
        return np.mean(outputs.argmax(axis=1) == y)
    return np.mean((outputs > 0) == (y > 0))


class Table:
    """The validation accuracy of all 2^m networks, each evaluated as a whole."""

    def __init__(self, net, x, y):
        masks = itertools.product([False, True], repeat=M)
        self.accuracy = {
            mask: accuracy(fourier.stabilise(net, np.array(mask)), x, y) for mask in masks
        }
        self.gains = np.asarray(gains_of(net.layers[0].weight))
        self.base = self.accuracy[(False,) * M]

    def fits(self, mask, budget):
        return self.accuracy[tuple(map(bool, mask))] >= self.base - budget - 1e-9

    def gain(self, mask):
        return self.gains[np.asarray(mask, bool)].sum()

    def exact(self, budget):
        return max(self.gain(mask) for mask in self.accuracy if self.fits(mask, budget))

    def by_gain(self, budget):
        """The allowed numbers of neurons with the largest gains."""
        order = np.argsort(-self.gains)
        prefixes = [np.isin(np.arange(M), order[:k]) for k in range(M + 1)]
        return [k for k in range(M + 1) if self.fits(prefixes[k], budget)], prefixes

    def gmb(self, budget):
        allowed, prefixes = self.by_gain(budget)
        k = next(k for k in range(M + 1) if k + 1 not in allowed)
        return self.gain(prefixes[k])

    def gmbc(self, budget):
        mask = np.zeros(M, bool)
        while True:
            best = None
            for j in np.flatnonzero(~mask):
                new = mask | (np.arange(M) == j)
                if self.fits(new, budget):
                    loss = (
                        self.accuracy[tuple(map(bool, mask))] - self.accuracy[tuple(map(bool, new))]
                    )
                    value = self.gains[j] / (loss if loss > 1e-9 else 1e-20)
                    if best is None or value > best[0]:
                        best = value, new
            if best is None:
                return self.gain(mask)
            mask = best[1]


@functools.cache
def table_of(name):
    return Table(*case(name))


RULES = [
    pytest.param(name, method, marks=() if fast else pytest.mark.slow(cases=2))
    for name in NETWORKS
    for method in ("exact", "gmb", "gmbc", "bisect")
    for fast in [name == "scalar" or (name, method) == ("classes", "gmbc")]
]


@pytest.mark.parametrize(("name", "method"), RULES)
def test_the_rules_are_those_of_the_loops(name, method):
    """At every budget of the path: the choice is what it says, keeps the floor, and has
    the gain of a loop over networks.
    """
    net, x, y = case(name)
    pick, table = fourier.select(net, x, y, 0.04, method), table_of(name)
    assert len({round(a, 6) for a in table.accuracy.values()}) > 5
    path, expected = pick.path, []
    budgets = [float(b) for b in path.budget]
    assert budgets == sorted(budgets)
    assert len(budgets) == 22
    for k, budget in enumerate(budgets):
        mask = tuple(map(bool, path.neurons[k]))
        np.testing.assert_allclose(path.accuracy[k], table.accuracy[mask])
        np.testing.assert_allclose(path.gain[k], table.gain(mask))
        assert table.fits(mask, budget)
        if method != "bisect":
            expected.append(getattr(table, method)(budget))
            continue
        allowed, prefixes = table.by_gain(budget)
        assert any(np.array_equal(mask, prefixes[j]) for j in allowed)
        # Where the allowed numbers have no gaps, bisection finds the largest.
        steady = allowed == list(range(len(allowed)))
        expected.append(table.gain(prefixes[allowed[-1]]) if steady else float(path.gain[k]))
    np.testing.assert_allclose(path.gain, np.maximum.accumulate(expected), rtol=1e-12)
    at = budgets.index(0.04)
    np.testing.assert_array_equal(pick.neurons, path.neurons[at])
    np.testing.assert_allclose([pick.gain, pick.accuracy], [path.gain[at], path.accuracy[at]])
    np.testing.assert_allclose(pick.base, table.base)
    np.testing.assert_allclose(accuracy(pick.network, x, y), pick.accuracy)


def test_a_path_may_have_other_budgets():
    net, x, y = case("scalar")
    path = fourier.select(net, x, y, 0.03, "gmb", budgets=[0.2, 0.0]).path
    np.testing.assert_allclose(path.budget, [0.0, 0.03, 0.2])


@pytest.mark.slow
def test_robust_takes_the_neuron_that_helps_most_under_attack():
    net, x, y = case("scalar")
    moves = fourier.BitFlips(direction="add")

    def attacked(mask):
        new = fourier.stabilise(net, mask)
        return float(fourier.attack(new, x, y, 2, moves=moves).curve[2])

    mask, found = np.zeros(M, bool), [(attacked(np.zeros(M, bool)), np.zeros(M, bool))]
    base = accuracy(net, x, y)
    while True:
        tries = [mask | (np.arange(M) == j) for j in np.flatnonzero(~mask)]
        tries = [new for new in tries if accuracy(fourier.stabilise(net, new), x, y) >= base - 0.05]
        if not tries:
            break
        values = [attacked(new) for new in tries]
        mask = tries[int(np.argmax(values))]
        found.append((max(values), mask))
    expected = max(found, key=lambda row: row[0])
    pick = fourier.select(net, x, y, 0.05, "robust", flips=2, moves=moves)
    np.testing.assert_array_equal(pick.neurons, expected[1])
    np.testing.assert_allclose(pick.path.robust, [expected[0]])
    assert expected[0] > found[0][0]


def test_gains_count_the_weights_that_can_grow():
    weight = jnp.asarray([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 3.0, -3.0, 3.0]])
    np.testing.assert_allclose(gains_of(weight), [3 - 3.5 / 2, 0.0, 0.0])


@pytest.mark.slow
def test_blocks_of_subsets_do_not_matter(monkeypatch):
    masks = jnp.asarray(list(itertools.product([False, True], repeat=M)))
    for name in ("classes", "deeper"):
        net, x, y = case(name)
        subsets = stabilised_subsets(net, x, y)
        whole = subsets.correct(masks)
        monkeypatch.setattr("sgfbias.fourier.selection.BLOCK", 7 * 3 * N)
        np.testing.assert_array_equal(subsets.correct(masks), whole)
        monkeypatch.undo()


def test_thresholds_may_be_refitted():
    net, x, y = case("scalar")
    pick = fourier.select(net, x, y, 0.05, "exact", refit_bias=x)
    whole = fourier.stabilise(net, pick.neurons, refit_bias=x)
    assert eqx.tree_equal(pick.network, whole)
    plain = fourier.select(net, x, y, 0.05, "exact")
    assert not np.allclose(plain.network.layers[0].bias, pick.network.layers[0].bias)


@pytest.mark.slow
def test_float32_chooses_as_float64_does():
    """Accuracies are counts, so rounding of the outputs does not matter."""
    net, x, y = case("scalar")
    single = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if eqx.is_array(leaf) else leaf, net
    )
    for method in ("exact", "gmb"):
        picks = [fourier.select(n, x, y, 0.03, method) for n in (net, single)]
        np.testing.assert_array_equal(picks[0].neurons, picks[1].neurons)
        assert picks[1].network.layers[0].weight.dtype == np.float32


@pytest.mark.slow
def test_it_is_jitted_and_batched_over_networks():
    nets = [network(seed) for seed in (1, 2)]
    x, y = data(1)
    params = [eqx.filter(net, eqx.is_array) for net in nets]
    static = eqx.partition(nets[0], eqx.is_array)[1]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    found = jax.jit(
        jax.vmap(lambda p: fourier.select(eqx.combine(p, static), x, y, 0.05, "gmbc").neurons)
    )(stack)
    for k, net in enumerate(nets):
        np.testing.assert_array_equal(found[k], fourier.select(net, x, y, 0.05, "gmbc").neurons)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "robst"}, "no method 'robst'; did you mean robust\\? the methods are gmb"),
        ({"budget": 1.0}, "a budget must be at least 0 and below 1, but is 1"),
        ({"budget": -0.1}, "but is -0.1"),
        ({"budget": np.nan}, "but is nan"),
        ({"budgets": [0.1, 2.0]}, "but is 2"),
        ({"y_val": np.ones(N, int)}, "two classes or more, but all labels are 1"),
        ({"X_val": np.zeros((N, D))}, "X_val must be -1 or \\+1, but 0 occurs"),
        ({"flips": -1}, "`flips` must be a whole number >= 0, but is -1"),
    ],
)
def test_what_makes_no_sense_is_refused(change, words):
    net, x, y = case("scalar")
    with pytest.raises(ValueError, match=words):
        fourier.select(**{"net": net, "X_val": x, "y_val": y} | change)


def test_the_exact_selection_of_many_neurons_is_refused():
    net = eqx.nn.MLP(D, "scalar", 17, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="at most 16 neurons, .* has 17: use method='gmbc'"):
        fourier.select(net, *data(), method="exact")


@pytest.mark.slow
def test_the_frontier_has_the_accuracies_of_its_networks():
    """Each copy is made by `stabilise`, and attacked and certified by itself."""
    net, x, y = case("scalar")
    test_x, test_y = data(1, n=60)
    f = fourier.frontier(net, x, y, test_x, test_y, flips=(1, 3), levels=4)
    assert f.neurons.shape == (M + 1 + 4, M)
    np.testing.assert_array_equal(f.neurons.sum(axis=1), [*range(M + 1), *[M] * 4])
    np.testing.assert_allclose(f.levels, [*[0.0] * (M + 1), 1.0, 0.75, 0.5, 0.25])
    for k, (mask, level) in enumerate(zip(f.neurons, map(float, f.levels), strict=True)):
        new = fourier.stabilise(net, np.asarray(mask), level=level or None)
        found = f.network(k).layers[0].weight
        np.testing.assert_allclose(found, new.layers[0].weight, rtol=1e-14)
        if k in (0, 2, M, M + 1, M + 3):
            np.testing.assert_allclose(f.validation[k], accuracy(new, x, y))
            attacked = fourier.attack(new, test_x, test_y, 3).curve
            np.testing.assert_allclose(f.clean[k], attacked[0])
            np.testing.assert_allclose(f.robust[k], attacked[jnp.array([1, 3])])
            certified = fourier.certify(new, test_x, test_y, 3).curve
            np.testing.assert_allclose(f.certified[k], certified[jnp.array([1, 3])])
    np.testing.assert_allclose(f.robust[0], f.robust[M + 1])  # the network itself, twice
    assert repr(f) == "Frontier(11 copies, 6 neurons, attacks of 1, 3 flips)"
    chosen = [tuple(map(bool, mask)) for mask in f.neurons[: M + 1]]
    steps = [table_of("scalar").accuracy[mask] for mask in chosen]
    np.testing.assert_allclose(f.validation[: M + 1], steps)


@pytest.mark.slow
def test_a_network_that_cannot_be_certified_has_a_frontier():
    net = eqx.nn.MLP(D, "scalar", 3, 1, jax.nn.gelu, key=jax.random.key(0))
    x, y = data()
    f = fourier.frontier(net, x, y, x[:30], y[:30], flips=(1,), levels=2, scale="l2")
    assert f.certified is None
    assert f.robust.shape == (6, 1)


@pytest.mark.slow
def test_certificates_may_be_left_out():
    net, x, y = case("scalar")
    f = fourier.frontier(net, x, y, x[:30], y[:30], (1,), 2, certificates=False)
    assert f.certified is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flips": ()}, "flips must have at least one"),
        ({"levels": -1}, "`levels` must be a whole number >= 0"),
        ({"X": np.zeros((N, D))}, "X must be -1 or"),
    ],
)
def test_a_frontier_of_nothing_is_refused(change, words):
    net, x, y = case("scalar")
    options = {"net": net, "X_val": x, "y_val": y, "X": x, "y": y}
    with pytest.raises(ValueError, match=words):
        fourier.frontier(**options | change)
