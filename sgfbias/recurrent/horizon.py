"""The error of a linear network at all lags beyond its training, in closed form."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_float, as_whole, check_positive, is_concrete
from sgfbias.recurrent.linear import LinearRNN, check_linear, check_stable, rescaled
from sgfbias.recurrent.teacher import as_teacher, check_fits, padded

# With 30 doublings the sum has 2^30 terms, which resolves 1 - radius >= 3e-8.
DOUBLINGS = 30
# The sum has ended if the last power of A has no entry above exp(-16). It goes on to
# exp(-400), so that no transient of a matrix that is not normal is lost.
ENDED, NOTHING = -16.0, -400.0


def tail(network: LinearRNN, teacher: Any, start: int, stop: int | None = None) -> Array:
    """`sum_j |h_j - h*_j|^2` over the lags j >= `start`, or `start` <= j < `stop`.

    This is the squared H2 norm of the error from lag `start` on. Half of it is what
    long sequences of white inputs add to the risk at length `start`. The infinite sum
    is `tr[M X M^T]` with `M = C A^start` and `X = A X A^T + B B^T`, of the system of
    the difference, and X is a sum by doubling. It can be differentiated any number of
    times, in both modes; a derivative costs about as much as the sum itself. Against a
    `LinearRNN` the energies of both networks cancel, so that about the machine epsilon
    times the energy of the teacher is resolved: compare long memories in float64.

    **Arguments:**

    - `network`: a `LinearRNN`.
    - `teacher`: as in `PopulationRisk`. A teacher that is given by lags is 0 beyond
      them.
    - `start`: the first lag, at least 0.
    - `stop`: the lag before which to stop, or None for infinity.

    **Returns:** a scalar. The infinite sum is infinity if the spectral radius of a
    transition is not below 1, and also if it is so close below 1 that 2^30 lags do not
    decide it. There it has no derivative. Finitely many lags have one everywhere.

    **Raises:** `ValueError` for a network that is not linear, for a teacher that does
    not fit it, for lags that are not whole numbers with `start < stop`, and for a
    derivative of an infinite sum, with the eigenvalue. Within `jax.jit` and `jax.vmap`,
    where no value is known, every entry of that derivative is NaN instead, so that a
    run of `simulate` ends with the status of a seed that is not finite.
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


@jax.custom_jvp
def gramian(A: Array, factor: Array) -> tuple[Array, Array]:
    """`X = sum_j A^j F F^T (A^j)^T` with F = `factor`, and the log of the size of the
    last power of A.

    X is differentiated as the solution of `X - A X A^T = F F^T`.
    """
    return _doubled(A, factor @ factor.T)


@gramian.defjvp
def _change_of_gramian(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """The derivative of X solves an equation with the same A; the log has none."""
    (A, factor), (dA, dF) = primals, tangents
    X, log = gramian(A, factor)
    half = dA @ X @ A.T + dF @ factor.T
    return (X, log), (_solved(A, half + half.T), jnp.zeros_like(log))


@jax.custom_jvp
def gramians(A: Array, B: Array, C: Array) -> tuple[Array, Array]:
    """`sum_j A^j B B^T (A^j)^T` and `sum_j (A^j)^T C^T C A^j`, from the same powers of
    A.
    """
    return _both_doubled(A, B @ B.T, C.T @ C)[:2]


@gramians.defjvp
def _change_of_gramians(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Each derivative solves the equation of its Gramian."""
    (A, B, C), (dA, dB, dC) = primals, tangents
    X, Y = gramians(A, B, C)
    half_X, half_Y = dA @ X @ A.T + dB @ B.T, dA.T @ Y @ A + dC.T @ C
    return (X, Y), (_solved(A, half_X + half_X.T), _solved(A.T, half_Y + half_Y.T))


def _solved(A: Array, right: Array) -> Array:
    """The solution X of `X - A X A^T = right`, which is linear in `right`."""
    return jax.lax.custom_linear_solve(
        lambda X: X - A @ X @ A.T,
        right,
        solve=lambda _, right: _doubled(A, right)[0],
        transpose_solve=lambda _, right: _doubled(A.T, right)[0],
    )


def _doubled(A: Array, right: Array) -> tuple[Array, Array]:
    """`sum_j A^j R (A^j)^T` with R = `right`, and the log of the size of the last power
    of A that was taken.
    """
    X, _, log = _both_doubled(A, right, None)
    return X, log


def _both_doubled(A: Array, right: Array, left: Array | None) -> tuple[Array, Any, Array]:
    """`sum_j A^j R (A^j)^T` with R = `right`, `sum_j (A^j)^T L A^j` with L = `left`
    unless it is None, and the log of the size of the last power of A that was taken.

    `X <- X + P X P^T` and `P <- P^2`, with P rescaled so that transients of matrices
    that are not normal do not overflow.
    """

    def double(now: Any) -> Any:
        count, X, Y, P, log = now
        moved = P * jnp.exp(log)
        X = X + moved @ X @ moved.T
        Y = None if Y is None else Y + moved.T @ Y @ moved
        squared, grown = rescaled(P @ P)
        # A power that has become 0 stays 0.
        return count + 1, X, Y, squared, jnp.maximum(2 * log + grown, -1e30)

    def unfinished(now: Any) -> Array:
        return (now[0] < DOUBLINGS) & (now[-1] > NOTHING)

    P, log = rescaled(A)
    start = (jnp.int32(0), right, left, P, jnp.maximum(log, -1e30))
    _, X, Y, _, log = jax.lax.while_loop(unfinished, double, start)
    return X, Y, log


def _infinite(system: LinearRNN, start: int) -> Array:
    """The energy of the impulse response from lag `start` on, or infinity."""
    X, log = gramian(system.A, system.B)
    M = system.C @ jnp.linalg.matrix_power(system.A, start)
    energy = jnp.trace(M @ X @ M.T)
    # Rounding may leave a small negative number; its derivative is still the right one.
    energy = energy + jax.lax.stop_gradient(jnp.maximum(energy, 0) - energy)
    return _if_decaying(energy, log, system.A)


@jax.custom_jvp
def _if_decaying(energy: Array, log: Array, A: Array) -> Array:
    """The energy if the powers of A have decayed to the size exp(log), or infinity."""
    return jnp.where(log < ENDED, energy, jnp.inf)


@_if_decaying.defjvp
def _slope_if_decaying(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The derivative, which an infinite energy does not have."""
    energy, log, A = primals
    decays = log < ENDED
    if is_concrete(decays) and not bool(decays):
        check_stable(A, "the derivative of `tail`")
        raise ValueError(
            "the derivative of `tail` needs a spectral radius below 1, but that of A is so close "
            "to 1 that 2^30 lags do not decide the sum: take finitely many, tail(..., stop=)"
        )
    return _if_decaying(energy, log, A), jnp.where(decays, 1.0, jnp.nan) * tangents[0]


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
