"""Networks, inputs and a search through all moves that is written in NumPy, for the
tests of attacks and certificates.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def half_tanh(z):
    return jnp.tanh(z / 2)


def network(d, m, seed, outputs="scalar", depth=1, activation=half_tanh, scale=3.0):
    """A random network with weights large enough to bend its units."""
    net = eqx.nn.MLP(d, outputs, m, depth, activation=activation, key=jax.random.key(seed))
    return jax.tree.map(lambda leaf: scale * leaf if eqx.is_array(leaf) else leaf, net)


def data(n, d, seed, classes=2):
    random = np.random.default_rng(seed)
    return random.choice([-1.0, 1.0], size=(n, d)), random.integers(0, classes, size=n)


def margins(net, inputs, labels):
    """Margins by whole forward passes."""
    outputs = np.array(jax.vmap(net)(jnp.asarray(inputs))).reshape(len(inputs), -1)
    if outputs.shape[1] == 1:
        return np.where(np.asarray(labels) > 0, 1, -1) * outputs[:, 0]
    rows = np.arange(len(inputs))
    own = outputs[rows, labels].copy()
    outputs[rows, labels] = -np.inf
    return own - outputs.max(axis=1)


def reachable(x, flips, moves):
    """All inputs that at most `flips` of the moves lead to from x.

    `moves(x)` lists the inputs that one move leads to.
    """
    found = {tuple(x)}
    new = found
    for _ in range(flips):
        new = {tuple(after) for before in new for after in moves(np.array(before))} - found
        found = found | new
    return np.array(sorted(found))


def flip(x, bits):
    """The inputs with one of the bits flipped."""
    for bit in bits:
        after = x.copy()
        after[bit] = -after[bit]
        yield after


def swap(x, groups):
    """The inputs with another category in one of the groups."""
    for group in groups:
        for old, new in itertools.permutations(group, 2):
            if x[old] > 0:
                after = x.copy()
                after[old], after[new] = -1.0, 1.0
                yield after


def least(net, inputs, labels, flips, moves):
    """The true least margin with at most 0, 1, ... moves, (flips + 1, n)."""
    found = np.empty((flips + 1, len(inputs)))
    for i, x in enumerate(inputs):
        for k in range(flips + 1):
            every = reachable(x, k, moves)
            found[k, i] = margins(net, every, np.repeat(labels[i], len(every))).min()
    return found


def one_hot(n, groups, d, seed):
    """Inputs with one bit set in each group, and random others."""
    random = np.random.default_rng(seed)
    x = random.choice([-1.0, 1.0], size=(n, d))
    for group in groups:
        x[:, group] = -1
        x[np.arange(n), random.choice(group, size=n)] = 1
    return x
