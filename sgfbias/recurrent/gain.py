"""How strongly the output depends on inputs long ago, and how states spread."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, as_whole, check_finite
from sgfbias.recurrent.cell import AbstractRecurrent, check_recurrent
from sgfbias.recurrent.linear import check_single


class Memory(NamedTuple):
    """The gain of the last output over the input at every lag.

    - `log_gain`: (T,), half the log of the mean over sequences of
      `|d y_T / d x_{T-j}|_F^2`, for the lags j = 0, ..., T - 1. It is -infinity where
      all derivatives are 0.
    """

    log_gain: Array

    def half_life(self, start: int = 1, stop: int | None = None) -> float:
        """The lags after which the gain halves, by a least-squares line through the
        logs from lag `start` to `stop`; infinity if it does not fall, NaN if fewer than
        two are finite.
        """
        logs = np.asarray(self.log_gain, dtype=np.float64)[start:stop]
        lags = np.arange(len(logs))[np.isfinite(logs)]
        if len(lags) < 2:
            return float("nan")
        slope = np.polynomial.polynomial.polyfit(lags, logs[lags], 1)[1]
        return float(np.log(0.5) / slope) if slope < 0 else float("inf")

    def __str__(self) -> str:
        logs = np.asarray(self.log_gain)
        last, life = len(logs) - 1, self.half_life()
        falls = f"it halves every {life:.3g} lags" if np.isfinite(life) else "it does not fall"
        if np.isnan(life):
            falls = "too few lags have a gain to tell how it falls"
        return (
            f"memory over {len(logs)} lags: log gain {logs[0]:.4g} at lag 0, {logs[last]:.4g} at "
            f"lag {last}; {falls}"
        )


def memory(network: Any, inputs: Any) -> Memory:
    """How strongly the last output depends on the input at every lag.

    The derivative of the output is pulled back through the states of the sequence, and
    is rescaled at every step, so that it neither under- nor overflows, also at lag
    100,000.

    **Arguments:**

    - `network`: an `Unroll` or a `LinearRNN`.
    - `inputs`: sequences (n, T, i), or one sequence (T, i), over which the squares are
      averaged.

    **Returns:** a `Memory`.

    **Raises:** `ValueError` for another network, for a stack of networks, and for
    inputs of another shape.
    """
    network = check_recurrent(network)
    check_single(network)
    x = as_float_array(inputs, "inputs")
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise ValueError(
            "`inputs` must be sequences (n, T, i), or one sequence (T, i), but has shape "
            f"{tuple(x.shape)}"
        )
    check_finite(x, "inputs")
    return Memory(_log_gain(network, x[None] if x.ndim == 2 else x))


@eqx.filter_jit
def _log_gain(network: AbstractRecurrent, x: Array) -> Array:
    """Half the log of the mean over sequences of the squared gain, (T,)."""
    logs = jax.vmap(lambda one: _log_gains(network, one))(x)
    total = jax.scipy.special.logsumexp(2 * logs, axis=0) - jnp.log(x.shape[0])
    return 0.5 * total


def _log_gains(network: AbstractRecurrent, x: Array) -> Array:
    """The log of the Frobenius norm of `d y_T / d x_{T-j}` for every lag j, (T,)."""
    before, last = network.states(x)
    flat, unravel = _as_numbers(last)

    def advance(state: Array, now: Array) -> Array:
        return _as_numbers(network.advance(unravel(state), now))[0]

    adjoint = jax.jacrev(lambda s: jnp.ravel(network.read(unravel(s))))(flat)
    rows = jax.vmap(lambda s: _as_numbers(s)[0])(before)

    def back(now: Any, step: Any) -> tuple[Any, Array]:
        adjoint, log = now
        state, given = step
        _, vjp = jax.vjp(advance, state, given)
        earlier, gain = jax.vmap(vjp)(adjoint)
        found = log.value + jnp.log(jnp.linalg.norm(gain))
        size = jnp.linalg.norm(earlier)
        safe = jnp.where(size > 0, size, 1)
        return (earlier / safe, log.plus(jnp.log(size))), found

    start = (adjoint, _Sum.zero(flat[0]))
    return jax.lax.scan(back, start, (rows, x), reverse=True)[1][::-1]


class _Sum(NamedTuple):
    """A sum of many numbers that keeps what rounding takes away (Kahan's summation), as
    100,000 logs in float32 would lose their third digit without it.

    - `value`: the sum.
    - `lost`: what it has too much.
    """

    value: Array
    lost: Array

    @classmethod
    def zero(cls, like: Array) -> _Sum:
        return cls(jnp.zeros_like(like), jnp.zeros_like(like))

    def plus(self, more: Array) -> _Sum:
        more = more - self.lost
        value = self.value + more
        # An infinite sum has lost nothing.
        return _Sum(value, jnp.where(jnp.isfinite(value), (value - self.value) - more, 0))


def _as_numbers(state: Any) -> tuple[Array, Any]:
    """A state as real numbers, (numbers,), and the function that makes the state of
    them. A complex number counts as its real and its imaginary part.
    """
    leaves, structure = jax.tree.flatten(state)
    is_complex = [jnp.iscomplexobj(leaf) for leaf in leaves]
    parts = [
        (leaf.real, leaf.imag) if split else leaf
        for leaf, split in zip(leaves, is_complex, strict=True)
    ]
    flat, unravel = jax.flatten_util.ravel_pytree(parts)

    def back(numbers: Array) -> Any:
        whole = [
            jax.lax.complex(*part) if split else part
            for part, split in zip(unravel(numbers), is_complex, strict=True)
        ]
        return jax.tree.unflatten(structure, whole)

    return flat, back


def lyapunov(network: Any, long_input: Any, *, warmup: int = 0, count: int | None = None) -> Array:
    """The Lyapunov exponents of the state along a sequence, per step, largest first.

    An orthonormal frame is moved by the derivative of the step along the states of the
    network, and made orthonormal again at every step. The exponents are the means of
    the logs of how its axes grow. For a linear cell they are the logs of the absolute
    eigenvalues. A positive exponent means that states that start close to each other
    separate. A complex number of the state counts as two, its real and its imaginary
    part.

    **Arguments:**

    - `network`: an `Unroll` or a `LinearRNN`.
    - `long_input`: one sequence, (T, i).
    - `warmup`: the number of first steps that move the frame and are not counted. The
      error of the start falls as 1 over the number of steps.
    - `count`: the number of leading exponents, by default all.

    **Returns:** (count,).

    **Raises:** `ValueError` for an input of another shape, for a warm-up as long as the
    sequence, and for more exponents than there are states.
    """
    network = check_recurrent(network)
    check_single(network)
    x = as_float_array(long_input, "long_input")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"`long_input` must be one sequence (T, i), but has shape {tuple(x.shape)}"
        )
    check_finite(x, "long_input")
    warmup = as_whole(warmup, "warmup", least=0)
    if warmup >= x.shape[0]:
        raise ValueError(
            f"`warmup` must be below the length of the sequence, {x.shape[0]}, but is {warmup}"
        )
    size = _as_numbers(network.rest(x))[0].size
    count = size if count is None else as_whole(count, "count", most=size)
    return _exponents(network, x, warmup, count)


@eqx.filter_jit
def _exponents(network: AbstractRecurrent, x: Array, warmup: int, count: int) -> Array:
    """The mean logs of the diagonal of R along the sequence, (count,)."""
    start, unravel = _as_numbers(network.rest(x))

    def step(now: Any, given: Any) -> tuple[Any, None]:
        state, frame, total = now
        counted, x = given

        def advance(s: Array) -> Array:
            return _as_numbers(network.advance(unravel(s), x))[0]

        moved, push = jax.linearize(advance, state)
        frame, upper = jnp.linalg.qr(jax.vmap(push, in_axes=1, out_axes=1)(frame))
        logs = jnp.log(jnp.abs(jnp.diagonal(upper)))
        return (moved, frame, total.plus(jnp.where(counted, logs, 0))), None

    frame = jnp.eye(start.size, count, dtype=start.dtype)
    counted = jnp.arange(x.shape[0]) >= warmup
    (_, _, total), _ = jax.lax.scan(step, (start, frame, _Sum.zero(start[:count])), (counted, x))
    return jnp.sort(total.value / (x.shape[0] - warmup))[::-1]
