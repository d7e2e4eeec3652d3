"""Models with kinks, such as ReLU networks: how they are recognised, and the solver
that does not slide along their kinks.
"""

from __future__ import annotations

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.network import evaluate

# The examples and the points of a line on which slopes are compared.
EXAMPLES, POINTS, HALVINGS = 64, 65, 14
# A change of the slope that is left after that many halvings, as a fraction of the
# first one. If the slope is differentiable it is about 2^-HALVINGS, and for that of
# relu(z)^1.5, which is continuous only, the root of that.
STAYS = 0.05
# The number of intervals in which a jump is looked for.
CANDIDATES = 12
# Changes of the slope below this fraction of the slope are none.
STRAIGHT = 1e-4
# The share of the last gradient in the average from which gaps are computed.
LATEST = 0.02


def has_kinks(coordinates: Any, position: Any, inputs: Array) -> bool:
    """Whether the derivative of the outputs in the position jumps, as that of ReLU,
    leaky ReLU, the absolute value and max pooling does.

    The slopes of all outputs along a line through the position are compared at 65
    points. A dozen intervals whose change differs most from that of the next one are
    halved fourteen times, each time to the half with the larger change. That is then
    2^-14 of the first one for a model with a differentiable derivative, and stays for
    one that jumps.
    """
    inputs = inputs[:EXAMPLES]
    leaves, structure = jax.tree.flatten(position)
    keys = jax.random.split(jax.random.key(1), len(leaves))

    def moved(leaf: Array, key: Array) -> Array:
        size = jnp.sqrt(jnp.mean(jnp.square(leaf)))
        return jnp.where(size > 0, size, 1) * jax.random.normal(key, leaf.shape, leaf.dtype)

    # Through random weights, and on to as far behind them.
    middle = jax.tree.unflatten(structure, [moved(a, k) for a, k in zip(leaves, keys, strict=True)])
    away = jax.tree.map(jnp.subtract, middle, position)
    points = np.linspace(0.0, 2.0, POINTS)
    slopes = np.stack([np.asarray(_slopes(coordinates, position, away, inputs, s)) for s in points])
    changes = np.abs(np.diff(slopes, axis=0))
    # A kink makes the change of one interval another than that of its neighbours.
    signed = np.diff(slopes, axis=0)
    odd = np.abs(np.diff(signed, axis=0, prepend=signed[:1]))
    odd = np.maximum(odd, np.abs(np.diff(signed, axis=0, append=signed[-1:])))
    least = STRAIGHT * float(np.abs(slopes).max())

    def slope(s: float, output: int) -> float:
        return float(np.asarray(_slopes(coordinates, position, away, inputs, s))[output])

    for flat in np.argsort(odd, axis=None)[::-1][:CANDIDATES]:
        at, output = np.unravel_index(int(flat), changes.shape)
        first = float(changes[at, output])
        if first <= least:
            continue
        low, high = points[at], points[at + 1]
        left, right = slopes[at, output], slopes[at + 1, output]
        for _ in range(HALVINGS):
            half = (low + high) / 2
            between = slope(half, output)
            if abs(between - left) >= abs(right - between):
                high, right = half, between
            else:
                low, left = half, between
        if abs(right - left) > STAYS * first:
            return True
    return False


@eqx.filter_jit
def _slopes(coordinates: Any, position: Any, away: Any, inputs: Array, s: float) -> Array:
    """The derivatives of all outputs, flat, along the line at `position + s away`."""
    at = jax.tree.map(lambda a, b: a + jnp.asarray(s, a.dtype) * b, position, away)
    return jax.jvp(lambda p: evaluate(coordinates.decode(p), inputs).reshape(-1), (at,), (away,))[1]


class KinkEuler(dfx.AbstractSolver):
    """Euler's method for `MarginFlow`, whose memory it keeps positive.

    What a conditioner remembers is `b = log(1 + V/eps)`. Euler's step is one of V, so
    `b <- b + log(1 + b' dnu)`, which is bounded where b' is large at the start. Each
    step takes a share of 0.02 of its gradient into the average of gradients. It gives
    no error estimate: a `GainController` chooses the steps.
    """

    term_structure: ClassVar[Any] = dfx.AbstractTerm
    interpolation_cls: ClassVar[Any] = dfx.LocalLinearInterpolation

    def order(self, terms):
        """1."""
        return 1

    def init(self, terms, t0, t1, y0, args):
        """None, as the solver has no state."""
        return None

    def func(self, terms, t0, y0, args):
        """The vector field."""
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; no error estimate."""
        (w, memory), integral = y0
        (slope, change), rate = terms.vf(t0, y0, args)
        width = t1 - t0

        def forwards(a: Any, b: Any) -> Any:
            return jax.tree.map(lambda x, v: x + width * v, a, b)

        squares = jax.tree.map(
            lambda b, v: b + jnp.log1p(jnp.maximum(width * v, -0.9)),
            memory.squares,
            change.squares,
        )
        # The scaled time falls by e^-dnu, and gains dnu / N.
        time = (memory.time + width * (change.time + memory.time)) * jnp.exp(-width)
        average = jax.tree.map(lambda a, v: a + LATEST * v, memory.average, change.average)
        later = memory._replace(squares=squares, time=time, average=average)
        y1 = ((forwards(w, slope), later), forwards(integral, rate))
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful
