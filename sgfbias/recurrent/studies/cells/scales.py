"""Cells of three kinds that return their last input, from starts with recurrent weights
of several sizes: their loss on longer sequences, and their memory.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias import Problem, Record, Stacked, simulate
from sgfbias.recurrent import Unroll, memory
from sgfbias.recurrent.studies.cells import SCALED, SCALES, Config
from sgfbias.recurrent.studies.cells.tasks import echo, examples
from sgfbias.recurrent.studies.cells.training import MSE, PROBES, adam, curve_of, unstacked
from sgfbias.study import Columns, Log

SEQUENCES = 256  # sequences of training
# Which parts of the family the kinds have: the gates, and the tanh.
PARTS = {"linear": (False, False), "tanh": (False, True), "gru": (True, True)}


class Cell(eqx.Module):
    """A GRU cell whose gates can be held open and whose tanh can be left out. So cells
    of three kinds have one structure, and one program trains them all at once.

    The next state is `(1 - z) c + z h` with the candidate `c = tanh(x_c + r h_c)`. Held
    open, the gates are z = 0 and r = 1.
    """

    own: Array
    recurrent: Array
    bias: Array
    has_gates: Array
    has_tanh: Array
    hidden_size: int = eqx.field(static=True)

    def __call__(self, x: Array, hidden: Array) -> Array:
        xr, xz, xc = jnp.split(self.own @ x + self.bias, 3)
        hr, hz, hc = jnp.split(self.recurrent @ hidden, 3)
        r = jnp.where(self.has_gates, jax.nn.sigmoid(xr + hr), 1)
        z = jnp.where(self.has_gates, jax.nn.sigmoid(xz + hz), 0)
        c = xc + r * hc
        return (1 - z) * jnp.where(self.has_tanh, jnp.tanh(c), c) + z * hidden


def start(kind: str, factor: float, hidden: int, rng: np.random.Generator) -> Unroll:
    """A network with weights as PyTorch draws them, uniform within one over the root of
    `hidden`, and recurrent ones that are `factor` times as large. For a linear cell,
    which has no bias, `factor` is the spectral radius for many states.
    """

    def draw(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape) / np.sqrt(hidden)

    own, recurrent, bias = draw(3 * hidden, 1), draw(3 * hidden, hidden), draw(3 * hidden)
    if kind == "linear":
        # The variance of these weights is 1/3 of that of a radius of 1.
        recurrent, bias = recurrent * np.sqrt(3), 0 * bias
    has_gates, has_tanh = (jnp.asarray(part) for part in PARTS[kind])
    cell = Cell(
        *(jnp.asarray(part, jnp.float32) for part in (own, factor * recurrent, bias)),
        has_gates,
        has_tanh,
        hidden,
    )
    weight, offset = jnp.asarray(draw(1, hidden), jnp.float32), jnp.zeros(1, jnp.float32)
    blank = eqx.filter_eval_shape(eqx.nn.Linear, hidden, 1, key=jax.random.key(0))
    readout = eqx.tree_at(lambda r: (r.weight, r.bias), blank, (weight, offset))
    return Unroll(cell, readout)


def scaled_cells(out: Columns, lengths: tuple[int, ...], config: Config, log: Log) -> None:
    """Train the cells on sequences of the shortest of the lengths, and add their loss
    there and at the longest one, and their memory.
    """
    log("cells with recurrent weights of several sizes")
    ends = (lengths[0], lengths[-1])
    starts = [
        start(kind, factor, config.hidden, np.random.default_rng((config.root_seed, seed)))
        for kind, factor in SCALES
        for seed in range(SCALED)
    ]
    x, y = examples(echo, config.keys(1000, 1000 + SEQUENCES), config.length)
    runs = simulate(
        adam(config.rate, None),
        Stacked(starts),
        Problem(x, y, loss=MSE),
        steps=-(-config.steps // 2),
        record=Record(observables=(), times=2),
    )
    held = config.keys(10**6, 10**6 + config.tests)
    probes = examples(echo, held[:PROBES], ends[1])[0]
    nets = unstacked(runs.networks, len(starts))
    loss = [curve_of(net, echo, ends, held).loss for net in nets]
    gain = [np.asarray(memory(net, probes).log_gain) for net in nets]
    shape = (len(SCALES), SCALED, -1)
    out.axes |= {
        "scaled": [f"{kind} {factor:g}" for kind, factor in SCALES],
        "end": np.asarray(ends),
    }
    dims = ("scaled", "start")
    out.add("scaled_loss", (*dims, "end"), np.reshape(loss, shape), "variance of the target")
    out.add("scaled_gain", (*dims, "lag"), np.reshape(gain, shape), "log of the gain")
