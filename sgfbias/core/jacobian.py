"""The Jacobian of a model's outputs in its parameters, as a linear operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.cached import shapes_of
from sgfbias.core.checks import as_float_array, as_numbers, as_whole
from sgfbias.core.network import declared_trainable
from sgfbias.core.weights import Weights, cast, check_real

# Unit cotangents that are pulled back at a time where a caller does not say.
CHUNK = 64


class Jacobian(eqx.Module):
    """`J = df/dw`, the derivative of the outputs f (n, ...) in the parameters w.

    J is never formed: a product costs about one evaluation of the model and its
    derivative, and memory is that of one gradient. It is made by
    `Problem.jacobian(network)`.
    """

    network: Any
    inputs: Any
    # (network, inputs) -> outputs
    outputs: Callable
    weights: Weights

    @property
    def parameters(self) -> Any:
        """The trainable parameters at which J is taken, with None in place of the
        rest.
        """
        return self.weights.encode(self.network)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the outputs, (n, ...)."""
        return self._output().shape

    @property
    def dtype(self) -> Any:
        """The precision of the outputs."""
        return self._output().dtype

    def product(self, tangent: Any) -> Array:
        """`J v`, the derivative of the outputs along a change v of the parameters.

        **Arguments:**

        - `tangent`: v, a PyTree of the structure of `parameters`.

        **Returns:** (n, ...), the shape of the outputs.

        **Raises:** `ValueError` for another structure, and for other shapes.
        """
        return _product(self, _like(tangent, self.parameters, "tangent"))

    def transpose_product(self, cotangent: Any) -> Any:
        """`J^T c`, the gradient of `sum(c * f)` in the parameters.

        **Arguments:**

        - `cotangent`: c, (n, ...), the shape of the outputs.

        **Returns:** a PyTree of the structure of `parameters`.

        **Raises:** `ValueError` for another shape.
        """
        return _transpose_product(self, self._cotangent(cotangent))

    def gram(self, cotangent: Any = None) -> Array:
        """`J J^T c`; or `J J^T` itself, if no c is given.

        The matrix is formed by products, some columns at a time.
        `sgfbias.tangent_kernel` forms it faster where a model consists of known layers.

        **Arguments:**

        - `cotangent`: c, (n, ...), the shape of the outputs.

        **Returns:** (n, ...), the shape of the outputs; or the matrix (N, N), where
        N is the number of all outputs.

        **Raises:** `ValueError` for another shape.
        """
        if cotangent is None:
            count = self._output().size
            return self.columns(jnp.arange(count)).reshape(count, count)
        return _gram(self, self._cotangent(cotangent))

    def columns(self, which: Any) -> Array:
        """The columns of `J J^T` for some outputs, as rows.

        **Arguments:**

        - `which`: (k,), whole numbers, the outputs counted from 0 to N - 1.

        **Returns:** (k, N).
        """
        return _columns(self, jnp.atleast_1d(as_numbers(which, "which")))

    def rows(self) -> Any:
        """J itself: a PyTree of the structure of `parameters` with a leading axis of
        all N outputs.
        """
        return _rows(self)

    def square_norms(self) -> Array:
        """The trace of `J J^T`: the sum of the squared gradients of all outputs."""
        return _square_norms(self)

    def _output(self) -> Any:
        return shapes_of(self.outputs, self.network, self.inputs)

    def _cotangent(self, cotangent: Any) -> Array:
        cotangent, wanted = as_float_array(cotangent, "cotangent"), self._output()
        if cotangent.shape != wanted.shape:
            raise ValueError(
                f"`cotangent` must have the shape of the outputs, {wanted.shape}, but has shape "
                f"{cotangent.shape}"
            )
        return cotangent.astype(wanted.dtype)

    def _at(self, parameters: Any) -> Array:
        """The outputs with other parameters."""
        return self.outputs(self.weights.decode(parameters), self.inputs)


class PerExample(eqx.Module):
    """The outputs of a model on many examples, some at a time."""

    evaluate: Callable
    microbatch: int | None = eqx.field(static=True, default=None)

    def __call__(self, network: Any, inputs: Any) -> Array:
        n, m = inputs.shape[0], self.microbatch
        if m is None or m >= n:
            return self.evaluate(network, inputs)
        arrays, rest = eqx.partition(network, eqx.is_array)

        @jax.checkpoint
        def piece(arrays: Any, x: Any) -> Array:
            return self.evaluate(eqx.combine(arrays, rest), x)

        whole = n - n % m
        head = inputs[:whole].reshape(n // m, m, *inputs.shape[1:])
        done = jax.lax.map(lambda x: piece(arrays, x), head)
        done = done.reshape(whole, *done.shape[2:])
        return done if whole == n else jnp.concatenate([done, piece(arrays, inputs[whole:])])


def jacobian(
    network: Any,
    inputs: Any,
    evaluate: Callable,
    dtype: Any,
    *,
    trainable: Any = None,
    microbatch: Any = None,
) -> Jacobian:
    """The Jacobian of `evaluate(network, inputs)` in the parameters of the network.

    **Raises:** `ValueError` for a network that is no module, that has complex or no
    trainable parameters, and for a `microbatch` that is no whole number >= 1.
    """
    if not callable(network):
        raise ValueError(
            "`network` must be an Equinox module that maps one example to its output, but is "
            f"{type(network).__name__}"
        )
    microbatch = None if microbatch is None else as_whole(microbatch, "microbatch")
    network = cast(network, dtype)
    check_real(network)
    chosen = declared_trainable(network) if trainable is None else trainable
    weights = Weights(network, dtype, trainable=True if chosen is None else chosen)
    return Jacobian(network, inputs, PerExample(evaluate, microbatch), weights)


@eqx.filter_jit
def _product(operator: Jacobian, tangent: Any) -> Array:
    return jax.jvp(operator._at, (operator.parameters,), (tangent,))[1]


@eqx.filter_jit
def _transpose_product(operator: Jacobian, cotangent: Array) -> Any:
    return jax.vjp(operator._at, operator.parameters)[1](cotangent)[0]


@eqx.filter_jit
def _gram(operator: Jacobian, cotangent: Array) -> Array:
    parameters = operator.parameters
    (tangent,) = jax.vjp(operator._at, parameters)[1](cotangent)
    return jax.jvp(operator._at, (parameters,), (tangent,))[1]


@eqx.filter_jit
def _columns(operator: Jacobian, which: Array) -> Array:
    parameters = operator.parameters
    outputs, vjp = jax.vjp(operator._at, parameters)

    def column(k: Array) -> Array:
        unit = jnp.zeros(outputs.size, outputs.dtype).at[k].set(1).reshape(outputs.shape)
        (tangent,) = vjp(unit)
        return jax.jvp(operator._at, (parameters,), (tangent,))[1].reshape(-1)

    return jax.lax.map(column, which, batch_size=min(CHUNK, which.shape[0]))


@eqx.filter_jit
def _rows(operator: Jacobian) -> Any:
    outputs, vjp = jax.vjp(operator._at, operator.parameters)
    units = jnp.eye(outputs.size, dtype=outputs.dtype).reshape(-1, *outputs.shape)
    return jax.lax.map(lambda c: vjp(c)[0], units, batch_size=min(CHUNK, outputs.size))


@eqx.filter_jit
def _square_norms(operator: Jacobian) -> Array:
    outputs, vjp = jax.vjp(operator._at, operator.parameters)

    def one(k: Array) -> Array:
        unit = jnp.zeros(outputs.size, outputs.dtype).at[k].set(1).reshape(outputs.shape)
        gradient = jax.tree.leaves(vjp(unit)[0])
        return jnp.sum(jnp.stack([jnp.sum(jnp.square(g)) for g in gradient]))

    every = jnp.arange(outputs.size)
    return jnp.sum(jax.lax.map(one, every, batch_size=min(CHUNK, outputs.size)))


def _like(tree: Any, wanted: Any, name: str) -> Any:
    """The tree with the dtypes of `wanted`.

    **Raises:** `ValueError` if the structures or the shapes differ.
    """
    shapes = [jax.tree.map(jnp.shape, t) for t in (tree, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`{name}` must be a PyTree like the trainable parameters (`parameters` of the "
            "Jacobian), with arrays of the same shapes and None in place of what is frozen"
        )
    return jax.tree.map(lambda value, like: jnp.asarray(value).astype(like.dtype), tree, wanted)
