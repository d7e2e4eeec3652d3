"""Made-up detector data, a class that many bits tell a little about, and networks
trained on them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sgfbias.core.descent import OptaxDescent
from sgfbias.core.problem import Problem
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.two_class import LogisticLoss
from sgfbias.fourier.data import read_bits

BITS, HIDDEN = 64, 16
SIZES = {"train": 4000, "validation": 2000, "test": 1000}
# How much a bit tells about the class: some bits of a large shift of their probability,
# and the rest of a small one.
KINDS = {"even": (6, 0.30, 0.10), "lopsided": (4, 0.40, 0.05)}
Kind = Literal["even", "lopsided"]
RATE, BATCH = 1e-3, 32
FEWEST = 50  # examples of one's own


class Split(NamedTuple):
    """Examples: bits (n, d) in {-1, +1} and labels (n,) in {0, 1}."""

    inputs: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]


class Detector(NamedTuple):
    """Training, validation and test data of one draw."""

    train: Split
    validation: Split
    test: Split


def seed_of(root: int, seed: int) -> int:
    """The seed of the data and the network of one run: `seed` itself for the root 0."""
    if root == 0:
        return seed
    return int(np.random.SeedSequence([seed, root]).generate_state(1)[0]) >> 1


def draw_detector(seed: int, kind: Kind = "even", bits: int = BITS) -> Detector:
    """Draw data in which bit i is +1 with the probability
    `1/2 + delta_i (2 y - 1) s_i`.

    The signs s are uniform, and the label y is 0 or 1 with equal probabilities. Bits
    are independent given y.

    **Arguments:**

    - `seed`: seed of the signs and of all examples.
    - `kind`: "even" has delta = 0.30 on 6 bits and 0.10 on the others; "lopsided" has
      0.40 on 4 bits and 0.05 on the others.
    - `bits`: the number of bits, above 6.

    **Returns:** 4000 training, 2000 validation and 1000 test examples.

    **Raises:** `ValueError` for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be {' or '.join(map(repr, KINDS))}, but is {kind!r}")
    rng = np.random.default_rng(seed)
    few, large, small = KINDS[kind]
    delta = np.where(np.arange(bits) < few, large, small)
    signs = rng.choice([-1.0, 1.0], size=bits)

    def split(n: int) -> Split:
        y = rng.integers(0, 2, size=n)
        chance = 0.5 + delta * (2 * y - 1)[:, None] * signs
        return Split(np.where(rng.random((n, bits)) < chance, 1.0, -1.0), y)

    return Detector(*map(split, SIZES.values()))


def own_detector(path: Path, seed: int) -> Detector:
    """Bits of one's own, from a .npz or a libsvm file, in the proportions of
    `draw_detector` and in a random order.

    **Arguments:**

    - `path`: the file, see `read_bits`.
    - `seed`: seed of the order.

    **Raises:** `ValueError` for what `read_bits` refuses, for other than two classes,
    and for fewer than 50 examples.
    """
    bits = read_bits(path)
    n = len(bits.labels)
    if len(bits.classes) != 2 or n < FEWEST:
        raise ValueError(
            f"{path} must have two classes and at least {FEWEST} examples, but has "
            f"{len(bits.classes)} classes and {n} examples"
        )
    total = sum(SIZES.values())
    sizes = (n * SIZES["train"] // total, n * SIZES["validation"] // total)
    parts = bits.split(*sizes, seed=seed)
    return Detector(*(Split(np.asarray(part.inputs), np.asarray(part.labels)) for part in parts))


def half_tanh(z: Any) -> Array:
    """`tanh(z / 2)`, the sigmoid between -1 and 1."""
    return jnp.tanh(z / 2)


def new_network(seed: int, hidden: int = HIDDEN, bits: int = BITS, depth: int = 1) -> eqx.nn.MLP:
    """A network with hidden layers of equal width, before training.

    Its weights are normal, with the variance 1/64 into the first hidden layer for 64
    bits, and 1/16 further on for 16 units. Biases are 0.
    """
    first, second = jax.random.split(jax.random.key(seed))
    dtype = jnp.result_type(float)
    net = eqx.nn.MLP(bits, "scalar", hidden, depth, half_tanh, dtype=dtype, key=first)
    keys = [first, second, *(jax.random.fold_in(second, k) for k in range(1, depth))]
    return eqx.tree_at(
        lambda n: [leaf for layer in n.layers for leaf in (layer.weight, layer.bias)],
        net,
        [
            leaf
            for key, layer in zip(keys, net.layers, strict=True)
            for leaf in (
                jax.random.normal(key, layer.weight.shape, dtype) / np.sqrt(layer.weight.shape[1]),
                jnp.zeros_like(layer.bias),
            )
        ],
    )


@functools.cache
def _adam() -> OptaxDescent:
    """One object for all runs, which therefore share what is compiled."""
    return OptaxDescent(optax.adam(RATE), 1.0, BATCH, integral="batch")


def train(
    network: eqx.nn.MLP, data: Split, seed: int, steps: int = 2500, perturb: Any = None
) -> eqx.nn.MLP:
    """Train a detector by Adam with the step size 1e-3 on batches of 32 examples.

    **Arguments:**

    - `network`: the network before.
    - `data`: the examples.
    - `seed`: seed of the batches.
    - `steps`: number of steps; 2500 are 20 epochs of 4000 examples.
    - `perturb`: what `Problem` does to the inputs of a batch, if anything.

    **Returns:** the network after the last step.
    """
    options = {} if perturb is None else {"perturb": perturb}
    dtype = network.layers[0].weight.dtype
    problem = Problem(
        jnp.asarray(data.inputs, dtype),
        jnp.asarray(2.0 * data.labels - 1, dtype),
        loss=LogisticLoss(),
        **options,
    )
    run = simulate(
        _adam(),
        network,
        problem,
        keys=jax.random.key(seed),
        steps=steps,
        record=Record({}, times=2),
    )
    return run.networks
