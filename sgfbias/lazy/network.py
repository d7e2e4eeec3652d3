"""The deep ReLU network whose hidden weights move and whose read-out is fixed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.checks import as_float_array, as_whole
from sgfbias.core.network import AbstractNetwork


class DeepReLU(AbstractNetwork):
    """`f(x) = v^T s(W_L s(... s(W_1 x)))` with s(z) = max(z, 0), for a scalar output.

    The hidden weights W_l are the parameters. The read-out v is frozen.

    **Arguments:**

    - `weights`: W_1 of shape (m, d), and W_2, ..., W_L of shape (m, m); in general the
      columns of each are as many as the rows of the one before.
    - `readout`: v, (m,).

    **Raises:** `ValueError` if there is no weight, and for shapes that do not fit.
    """

    references: ClassVar[dict[str, str]] = {"zou2018": "the deep ReLU network"}
    layers: tuple[eqx.nn.Linear, ...]
    readout: Float[Array, " m"]

    def __init__(self, weights: Sequence[Any], readout: Any):
        weights = [as_float_array(w, "weights") for w in weights]
        readout = as_float_array(readout, "readout")
        shapes = [w.shape for w in weights]
        fits = bool(shapes) and all(len(shape) == 2 for shape in shapes)
        fits = fits and all(b[1] == a[0] for a, b in itertools.pairwise(shapes))
        if not fits or readout.shape != shapes[-1][:1]:
            raise ValueError(
                "`weights` must be matrices (m, d), (m, m), ..., each with as many columns as the "
                "one before has rows, and `readout` must have one entry for each row of the last, "
                f"but they have shapes {shapes} and {readout.shape}"
            )
        self.layers = tuple(_linear(w) for w in weights)
        self.readout = readout

    @classmethod
    def init(
        cls, key: Array, d: Any, *, width: Any = 512, depth: Any = 3, dtype: Any = None
    ) -> DeepReLU:
        """Draw the weights from N(0, 2/m), with a read-out of +1 for the first half of
        the units and -1 for the second (Zou, Cao, Zhou, Gu 2018).

        Then E |x_l|^2 = |x|^2 for the outputs x_l of every layer.

        **Arguments:**

        - `key`: a typed key.
        - `d`: the number of inputs.
        - `width`: m, the number of units of every hidden layer, an even number.
        - `depth`: L, the number of hidden layers.
        - `dtype`: the precision of the weights. Default: JAX's.

        **Raises:** `ValueError` for numbers that are not whole and positive, and for an
        odd width.
        """
        d, width, depth = as_whole(d, "d"), as_whole(width, "width"), as_whole(depth, "depth")
        if width % 2:
            raise ValueError(
                "`width` must be even, as half of the read-out is +1 and half is -1, but is "
                f"{width}"
            )
        dtype = jnp.result_type(float) if dtype is None else dtype
        sizes = (d, *(width,) * depth)
        weights = [
            math.sqrt(2 / width) * jax.random.normal(k, (width, columns), dtype)
            for k, columns in zip(jax.random.split(key, depth), sizes, strict=False)
        ]
        return cls(weights, jnp.repeat(jnp.asarray([1, -1], dtype), width // 2))

    @property
    def weights(self) -> tuple[Array, ...]:
        """The hidden weights W_1, ..., W_L."""
        return tuple(layer.weight for layer in self.layers)

    def activations(self, x: Array) -> tuple[Array, ...]:
        """The outputs x_1, ..., x_L of the hidden layers on one example, each (m,)."""
        found = []
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
            found.append(x)
        return tuple(found)

    def __call__(self, x: Array) -> Array:
        return jnp.dot(self.readout, self.activations(x)[-1])

    def trainable(self) -> Any:
        """The hidden weights."""
        return eqx.tree_at(lambda net: net.readout, jax.tree.map(lambda _: True, self), False)


def _linear(weight: Array) -> eqx.nn.Linear:
    """A linear layer without bias that has the given weight."""
    rows, columns = weight.shape
    shape = eqx.filter_eval_shape(
        eqx.nn.Linear, columns, rows, use_bias=False, key=jax.random.key(0)
    )
    return eqx.tree_at(lambda layer: layer.weight, shape, weight)
