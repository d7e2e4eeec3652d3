"""The linear model, whose limits are known, and a network that fits its data."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.margin.linear import max_margin

DEGREE = 3  # of a squared-ReLU network with one hidden layer
DRAWS = 100  # of hidden layers


class Linear(eqx.Module):
    """`f(x) = <w, x>`, or `W x` for several classes.

    **Arguments:**

    - `w`: (d,), or (C, d) for C classes.
    """

    w: Float[Array, "*c d"]

    def __init__(self, w: Any):
        self.w = jnp.asarray(w)

    def __call__(self, x: Array) -> Array:
        return self.w @ x


def squared_relu(z: Array) -> Array:
    """`max(z, 0)^2`. One function for all networks, so that one program serves them."""
    return jnp.square(jax.nn.relu(z))


def fitting_network(
    key: Array, X: Float[Array, "n d"], y: Float[Array, " n"], *, units: int, nu: float
) -> eqx.nn.MLP:
    """A squared-ReLU network without biases that fits all data.

    Its output layer is that of maximal margin for its hidden layer, which is the one of
    100 normal ones with the largest margin: small ones make the flow stiff. As at a KKT
    point in l2 the square of the norm of the first is twice that of the second.

    **Arguments:**

    - `key`: of the hidden layer.
    - `X`, `y`: the examples and their labels, -1 and 1.
    - `units`: the number of hidden units.
    - `nu`: the nu of the network with the exponential loss, positive. So no loss is 1
      or more, in a run from here on either.

    **Returns:** a network of degree 3, in the dtype of the examples.

    **Raises:** `ValueError` if none of the hidden layers lets an output layer fit.
    """
    from scipy.optimize import brentq
    from scipy.special import logsumexp

    n, d = X.shape
    best = 0.0
    for layer in np.asarray(jax.random.normal(key, (DRAWS, units, d), X.dtype), np.float64):
        found = np.square(np.maximum(np.asarray(X, np.float64) @ layer.T, 0))
        try:
            output = max_margin(found, y).weights
        except ValueError:  # this hidden layer does not separate the classes
            continue
        margin = 1 / (np.sum(layer**2) * np.linalg.norm(output))
        if margin > best:
            best, hidden, features, last = margin, layer, found, output
    if best == 0:
        raise ValueError(
            f"none of {DRAWS} hidden layers of {units} units lets an output layer fit the {n} "
            "examples: take more units or fewer examples"
        )
    balance = (np.sum(hidden**2) / (2 * np.sum(last**2))) ** (1 / DEGREE)
    q = np.asarray(y, np.float64) * (features @ last)
    # nu >= q_min - log n, and q_min is 1.
    factor = brentq(lambda c: -logsumexp(-c * q) - nu, 0.0, nu + np.log(n) + 1)
    scale = factor ** (1 / DEGREE)
    parts = (scale * balance**-0.5 * hidden, scale * balance * last[None])
    network = eqx.nn.MLP(
        d, "scalar", units, 1, use_bias=False, use_final_bias=False, activation=squared_relu,
        dtype=X.dtype, key=key,
    )  # fmt: skip
    return eqx.tree_at(
        lambda made: (made.layers[0].weight, made.layers[1].weight),
        network,
        tuple(jnp.asarray(part, X.dtype) for part in parts),
    )
