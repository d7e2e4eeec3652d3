"""The error of a linear network at all lags beyond its training, in closed form."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_float, as_whole, check_positive
from sgfbias.recurrent.linear import LinearRNN, check_linear, rescaled
from sgfbias.recurrent.teacher import as_teacher, check_fits, padded

# With 30 doublings the sum has 2^30 terms, which resolves 1 - radius >= 3e-8.
DOUBLINGS = 30
# The sum has ended if the last power of A has a norm below exp(-16).
ENDED = -16.0


def tail(network: LinearRNN, teacher: Any, start: int, stop: int | None = None) -> Array:
    """`sum_j |h_j - h*_j|^2` over the lags j >= `start`, or `start` <= j < `stop`.

    This is the squared H2 norm of the error from lag `start` on. Half of it is what
    long sequences of white inputs add to the risk at length `start`. The infinite sum
    is `tr[M X M^T]` with `M = C A^start` and `X = A X A^T + B B^T`, of the system of
    the difference, and X is a sum by doubling. It can be differentiated.

    **Arguments:**

    - `network`: a `LinearRNN`.
    - `teacher`: as in `PopulationRisk`. A teacher that is given by lags is 0 beyond
      them.
    - `start`: the first lag, at least 0.
    - `stop`: the lag before which to stop, or None for infinity.

    **Returns:** a scalar. The infinite sum is infinity, with derivatives that are NaN,
    if the spectral radius of a transition is not below 1, and also if it is so close
    below 1 that 2^30 lags do not decide it.

    **Raises:** `ValueError` for a network that is not linear, for a teacher that does
    not fit it, and for lags that are not whole numbers with `start < stop`.
    """
    network, teacher = check_linear(network), as_teacher(teacher)
    check_fits(network, teacher)
    start = as_whole(start, "start", least=0)
    if stop is not None:
        stop = as_whole(stop, "stop", least=start + 1)
        return _finite(network, teacher, start, stop)
    if isinstance(teacher, LinearRNN):
        return _infinite(_difference(network, teacher), start)
    lags = teacher.shape[0]
    if start >= lags:
        return _infinite(network, start)
    return _finite(network, teacher, start, lags) + _infinite(network, lags)


class TailPenalty(eqx.Module):
    """`weight * tail(network, teacher, length)`, a penalty of a problem that is added
    to its loss.

    With it a linear network extrapolates although its data have length `length`. It is
    for a `LinearRNN` with a spectral radius below 1; for other cells train on sequences
    of mixed lengths.

    **Arguments:**

    - `teacher`, `length`: as in `PopulationRisk`.
    - `weight`: positive.

    **Raises:** `ValueError` for numbers outside these ranges.
    """

    teacher: Any
    length: int = eqx.field(static=True)
    weight: float

    def __init__(self, teacher: Any, length: int, weight: Any = 1.0):
        self.teacher, self.length = as_teacher(teacher), as_whole(length, "length")
        self.weight = as_float(weight, "weight")
        check_positive(self.weight, "weight")

    def __call__(self, network: Any, step: Any) -> Array:
        if not isinstance(network, LinearRNN):
            raise ValueError(
                "TailPenalty is for a LinearRNN, whose tail has a closed form: train "
                f"{type(network).__name__} on sequences of mixed lengths"
            )
        return self.weight * tail(network, self.teacher, self.length)


def gramian(A: Array, factor: Array) -> tuple[Array, Array]:
    """`X = sum_j A^j F F^T (A^j)^T` with F = `factor`, and the log of the size of the
    last power of A.

    `X <- X + P X P^T` and `P <- P^2`, with P rescaled so that transients of matrices
    that are not normal do not overflow.
    """

    def double(now: Any, _: None) -> tuple[Any, None]:
        X, P, log = now
        more = jnp.exp(log)
        moved = P * more
        X = X + moved @ X @ moved.T
        squared, grown = rescaled(P @ P)
        # A power that has become 0 stays 0.
        return (X, squared, jnp.maximum(2 * log + grown, -1e30)), None

    P, log = rescaled(A)
    start = (factor @ factor.T, P, jnp.maximum(log, -1e30))
    (X, _, log), _ = jax.lax.scan(double, start, None, DOUBLINGS)
    return X, log


def _infinite(system: LinearRNN, start: int) -> Array:
    """The energy of the impulse response from lag `start` on, or infinity."""
    X, log = gramian(system.A, system.B)
    M = system.C @ jnp.linalg.matrix_power(system.A, start)
    energy = jnp.maximum(jnp.trace(M @ X @ M.T), 0)
    return jnp.where(log < ENDED, energy, jnp.inf)


def _difference(student: LinearRNN, teacher: LinearRNN) -> LinearRNN:
    """The network whose impulse response is the error."""
    dtype = student.A.dtype
    A, B, C = (leaf.astype(dtype) for leaf in (teacher.A, teacher.B, teacher.C))
    return LinearRNN(
        jax.scipy.linalg.block_diag(student.A, A),
        jnp.concatenate([student.B, B]),
        jnp.concatenate([student.C, -C], axis=1),
    )


def _finite(student: LinearRNN, teacher: Array | LinearRNN, start: int, stop: int) -> Array:
    """The energy of the error from lag `start` to `stop` - 1, lag by lag."""

    def step(moved: Any, wanted: Array) -> tuple[Any, Array]:
        error = student.C @ moved - wanted
        return student.A @ moved, jnp.sum(jnp.square(error))

    first = jnp.linalg.matrix_power(student.A, start) @ student.B
    if isinstance(teacher, LinearRNN):
        lags = teacher.impulse_response(stop)[start:]
    else:
        lags = padded(teacher, stop)[start:]
    return jnp.sum(jax.lax.scan(step, first, lags.astype(student.A.dtype))[1])
