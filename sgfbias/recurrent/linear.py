"""The linear recurrent network, its impulse response, and its starts."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import (
    as_float,
    as_float_array,
    as_whole,
    check_finite,
    check_positive,
    is_concrete,
)
from sgfbias.recurrent.cell import AbstractRecurrent, check_outputs

FEW = 16  # lags that are computed one after the other


class LinearRNN(AbstractRecurrent):
    """`s_t = A s_{t-1} + B x_t`, `y_t = C s_t`, `s_0 = 0`.

    The last output is `y_T = sum_j h_j x_{T-j}` with the impulse response
    `h_j = C A^j B`. A sequence (T, i) is mapped to (o,).

    **Arguments:**

    - `A`: (d, d), the transition.
    - `B`: (d, i), from the inputs.
    - `C`: (o, d), to the outputs.
    - `outputs`: "last", or "all" for the outputs at all times, (T, o).

    **Raises:** `ValueError` for shapes that do not fit, and for entries that are NaN or
    infinite.
    """

    A: Array
    B: Array
    C: Array
    outputs: str = eqx.field(static=True)

    def __init__(self, A: Any, B: Any, C: Any, *, outputs: str = "last"):
        self.A, self.B, self.C = (
            as_float_array(given, name) for given, name in ((A, "A"), (B, "B"), (C, "C"))
        )
        shape = self.A.shape
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
            raise ValueError(f"A must be square, (d, d), but has shape {shape}")
        d = shape[0]
        if self.B.ndim != 2 or self.B.shape[0] != d or self.B.shape[1] == 0:
            raise ValueError(
                f"A has shape {shape}, so B must be ({d}, i), but is {tuple(self.B.shape)}"
            )
        if self.C.ndim != 2 or self.C.shape[1] != d or self.C.shape[0] == 0:
            raise ValueError(
                f"A has shape {shape}, so C must be (o, {d}), but is {tuple(self.C.shape)}"
            )
        for name in ("A", "B", "C"):
            check_finite(getattr(self, name), name)
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(self.A, self.B, self.C)
        self.A, self.B, self.C = (leaf.astype(dtype) for leaf in (self.A, self.B, self.C))
        self.outputs = check_outputs(outputs)

    @classmethod
    def symmetric(
        cls, key: Array, *, state: int, scale: Any, gain: Any, inputs: int = 1
    ) -> LinearRNN:
        """A start with `A = A^T` and `C = B^T`, which gradient flow and descent keep.

        `A = scale (G + G^T) / (2 sqrt(2 d))` with G standard normal, so that the
        spectral radius is about `scale`, and `B = gain N(0, 1) / sqrt(d)`.

        **Arguments:**

        - `key`: a random key.
        - `state`: d, the number of states.
        - `scale`: the spectral radius of A for large d, at least 0.
        - `gain`: positive; the norm of a column of B for large d.
        - `inputs`: i, which is also the number of outputs.

        **Raises:** `ValueError` for numbers outside these ranges.
        """
        d, scale, gain = _sizes(key, state, scale, gain)
        first, second = jax.random.split(key)
        G = jax.random.normal(first, (d, d))
        B = gain * jax.random.normal(second, (d, as_whole(inputs, "inputs"))) / math.sqrt(d)
        return cls(scale * (G + G.T) / (2 * math.sqrt(2 * d)), B, B.T)

    @classmethod
    def gaussian(
        cls,
        key: Array,
        *,
        state: int,
        scale: Any,
        gain: Any,
        inputs: int = 1,
        outputs: int = 1,
    ) -> LinearRNN:
        """A start with independent normal entries: `A = scale G / sqrt(d)`, whose
        spectral radius is about `scale`, and B and C of standard deviation
        `gain / sqrt(d)`.

        **Arguments:** those of `symmetric`, and `outputs`, the number of outputs.

        **Raises:** `ValueError` as `symmetric` does.
        """
        d, scale, gain = _sizes(key, state, scale, gain)
        keys = jax.random.split(key, 3)
        root = math.sqrt(d)
        A = scale * jax.random.normal(keys[0], (d, d)) / root
        B = gain * jax.random.normal(keys[1], (d, as_whole(inputs, "inputs"))) / root
        C = gain * jax.random.normal(keys[2], (as_whole(outputs, "outputs"), d)) / root
        return cls(A, B, C)

    def rest(self, x):
        return jnp.zeros(self.A.shape[0], jnp.result_type(self.A, x))

    def advance(self, state, x):
        return self.A @ state + self.B @ x

    def read(self, state):
        return self.C @ state

    def predict(self, inputs):
        """The outputs on many sequences, (n, T, i).

        The last outputs are one product with the impulse response.
        """
        if inputs.ndim != 3 or inputs.shape[2] != self.B.shape[1]:
            raise ValueError(
                f"the network has {self.B.shape[1]} inputs, so the sequences must be (n, T, "
                f"{self.B.shape[1]}), but have shape {tuple(inputs.shape)}"
            )
        if self.outputs == "all":
            return jax.vmap(self)(inputs)
        response = self.impulse_response(inputs.shape[1])
        return jnp.einsum("joi,nji->no", response, inputs[:, ::-1])

    def impulse_response(self, length: int) -> Array:
        """`h_j = C A^j B` for the lags j = 0, ..., `length` - 1, shape (length, o, i).

        With k about the square root of the length, the response at lag `m k + j` is the
        product of `C A^j` and `A^(m k) B`, so two short loops replace a long one. Few
        lags are computed one after the other, since A^k alone costs more.

        **Raises:** `ValueError` for a length below 1, and for a stack of networks.
        """
        check_linear(self)
        length = as_whole(length, "length")
        if length <= FEW:
            reached = [self.B]
            for _ in range(length - 1):
                reached.append(self.A @ reached[-1])
            return self.C @ jnp.stack(reached)
        block = math.isqrt(length - 1) + 1
        leap = jnp.linalg.matrix_power(self.A, block)
        rows = jax.lax.scan(lambda row, _: (row @ self.A, row), self.C, None, block)[1]
        columns = jax.lax.scan(
            lambda column, _: (leap @ column, column), self.B, None, math.ceil(length / block)
        )[1]
        blocks = jnp.einsum("jod,mdi->mjoi", rows, columns)
        return blocks.reshape(-1, *blocks.shape[2:])[:length]

    def log_impulse(self, lag: int) -> tuple[Array, Array]:
        """The direction of `h_lag`, (o, i), of unit Frobenius norm, and the log of its
        norm, which neither under- nor overflows.

        The power of A is taken by squaring, rescaled at every step. If `h_lag` is 0,
        the direction is 0 and the log is -infinity. What is smaller than the largest
        entry of the power by more than the range of floats is lost: a response that
        only fast modes carry is 0 then, beside slow modes that it does not see. Such
        responses need `memory`.

        **Raises:** `ValueError` for a lag that is not a whole number >= 0.
        """
        lag = as_whole(lag, "lag", least=0)
        moved, log = rescaled(self.B)
        power, log_power = rescaled(self.A)
        while lag:
            if lag & 1:
                moved, more = rescaled(power @ moved)
                log = log + log_power + more
            power, more = rescaled(power @ power)
            log_power = 2 * log_power + more
            lag >>= 1
        response = self.C @ moved
        size = jnp.linalg.norm(response)
        safe = jnp.where(size > 0, size, 1)
        return response / safe, log + jnp.log(size)


def rescaled(matrix: Array) -> tuple[Array, Array]:
    """A matrix divided by its largest entry, and the log of that entry.

    The scale has no derivative, which is right wherever the two are put together again.
    A matrix of zeros has the log -infinity.
    """
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix)))
    return matrix / jnp.where(size > 0, size, 1), jnp.log(size)


def check_linear(network: Any, name: str = "network") -> LinearRNN:
    """Return a linear recurrent network.

    **Raises:** `ValueError` for anything else.
    """
    if not isinstance(network, LinearRNN):
        raise ValueError(f"`{name}` must be a LinearRNN, but is {type(network).__name__}")
    check_single(network, name)
    return network


def check_single(network: Any, name: str = "network") -> None:
    """Refuse a stack of linear networks, such as the networks of several seeds.

    **Raises:** `ValueError` that says how to take one of them.
    """
    if isinstance(network, LinearRNN) and network.A.ndim != 2:
        raise ValueError(
            f"`{name}` is a stack of networks, A has shape {tuple(network.A.shape)}: take one of "
            "them, jax.tree.map(lambda leaf: leaf[0], networks), or map over all, "
            "equinox.filter_vmap(f)(networks)"
        )


def check_stable(A: Array, what: str) -> None:
    """Refuse a transition whose powers do not decay, if its values are known.

    **Raises:** `ValueError` that names the eigenvalue.
    """
    if not is_concrete(A) or A.ndim != 2:
        return
    values = np.linalg.eigvals(np.asarray(A, dtype=np.float64))
    value = complex(values[np.argmax(np.abs(values))])
    if abs(value) >= 1:
        shown = f"{value.real:.6g}" if value.imag == 0 else f"{value:.6g}"
        raise ValueError(
            f"{what} needs a spectral radius below 1, but A has the eigenvalue {shown} of absolute "
            f"value {abs(value):.6g}: start with a smaller scale, or look at finitely many lags, "
            "as tail(..., stop=) does"
        )


def _sizes(key: Any, state: Any, scale: Any, gain: Any) -> tuple[int, float, float]:
    """The arguments of a start, checked."""
    check_keys(key)
    scale, gain = as_float(scale, "scale"), as_float(gain, "gain")
    check_positive(scale, "scale", zero_allowed=True)
    check_positive(gain, "gain")
    return as_whole(state, "state"), scale, gain
