"""How far the rest of a single run may take it from its expected limit.

The expected rest of a run is known from `theory.moments`. A single path scatters around
it. The energy `r^T A^-1 r` of the residuals falls by a martingale whose variance rate
is `64 r^T C(r r^T) r`. Integrated along the mean path it gives, to leading order in the
noise, the relative spread of the rest. The change of the solution follows from the
change of log alpha by the implicit function theorem.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.diagonal.theory.moments import NoiseLaw, Remaining

# The number of standard deviations that an estimate allows.
DEVIATIONS = 3.0
# Random signs, the same for all seeds: directions in which the examples' shares of the
# rest of the run scatter, or in which the features' offsets move.
DIRECTIONS = 4
_SIGNS = np.random.default_rng(0).choice([-1.0, 1.0], (DIRECTIONS, 4096))
# The number of points of the quadrature over the logarithm of time, and the smallest
# rate relative to the largest that it resolves.
POINTS, SLOWEST = 32, 1e-8


class Scatter(NamedTuple):
    """What the rest of a run does besides its expected part: an `absolute` distance of
    the solution, and a distance `relative` to that of the expected part. The two add in
    quadrature.
    """

    absolute: Array
    relative: Array


def scatter(
    X: Array,
    beta: Array,
    zeta: Array,
    movement: Array,
    residuals: Array,
    fall: Array,
    scale: Array,
    rest: Remaining,
    law: NoiseLaw,
) -> Scatter:
    """Estimate the scatter of one seed.

    **Arguments:**

    - `beta`, `zeta`, `residuals`: (d,), (d,), (n,). The landed solution, the metric,
      and the present residuals.
    - `movement`: (d,). How far the metric still moves.
    - `fall`: (d,). The expected fall of log alpha.
    - `scale`: the factor by which the linear equation was corrected.
    - `rest`, `law`: the solution of the equation, and its law.
    """
    arrays = X, beta, zeta, movement, residuals, fall, scale, rest, law
    arrays = jax.lax.stop_gradient(arrays)
    X, beta, zeta, movement, residuals, fall, scale, rest, law = arrays
    n, d = X.shape
    lam, V, *_ = rest.modes
    there = lam > n * jnp.finfo(X.dtype).eps * lam[-1]
    reciprocal = jnp.where(there, 1 / jnp.where(there, lam, 1), 0)

    def tangent(move: Array) -> Array:
        """The part of a move of beta (..., d) that keeps the fit to the data."""
        return move - zeta * ((((move @ X.T) @ V) * reciprocal) @ V.T @ X)

    def size(move: Array) -> Array:
        """The root mean square length of tangent moves (k, d)."""
        return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(tangent(move)), axis=-1)))

    q = jnp.diagonal(rest.J)
    shares = 2 * jax.vmap(law.feedback)(_signs(n, X.dtype) * q) @ jnp.square(X)
    relative, drawn = _relative(residuals, rest, law)
    # In a flow the examples' parts of the rest scatter independently, each by more than
    # their sum. In SGD they scatter with what is drawn, which is counted below.
    tiny = jnp.finfo(X.dtype).tiny
    several = jnp.square(jnp.sum(q)) / jnp.maximum(jnp.sum(jnp.square(q)), tiny)
    shares = shares * jnp.where(law.drift > 0, 1, jnp.sqrt(several))
    # With batches of one example the energy decides what the examples' shares sum to.
    whole = jnp.where(jnp.isclose(4 * n * law.sample, law.drift), 0, size(2 * beta * fall[None]))
    # The squares of normal numbers have the relative standard deviation sqrt(2).
    pattern = size(2 * beta * fall * _signs(d, X.dtype))
    squares = jnp.sqrt(2.0) * drawn * pattern
    moved = relative * jnp.hypot(whole, size(2 * beta * shares))
    absolute = DEVIATIONS * jnp.hypot(moved, squares)
    # An iteration moves the offset by 2 atanh(2 a) - 4 a = 16/3 a^3 + ..., where `fall`
    # is the sum of the expected 2 a^2.
    first = _first_step(X, residuals, law)
    cubes = 8 / 3 * DEVIATIONS * jnp.sqrt(jnp.maximum(first, 0)) * fall
    absolute = absolute + size(zeta * cubes * _signs(d, X.dtype))
    # A metric that falls exponentially with the slowest residual is 2/3 of the way back
    # from its limit in the mean over the rest of that residual's square, and has not
    # moved over that of the fastest. The scale mends a mean of the two, so what is left
    # is at most 1/3 of the movement m, and another pattern over the features.
    w = X.T @ (V @ (reciprocal * (V.T @ residuals)))
    energy = jnp.maximum(jnp.abs(rest.energy), tiny)
    moved_metric = jnp.square(w) @ movement / energy
    absolute = jnp.hypot(absolute, moved_metric / 3 * pattern)
    return Scatter(absolute, jnp.abs(scale - 1) + moved_metric / 3)


def _signs(count: int, dtype: np.dtype) -> Array:
    """Random signs (directions, count)."""
    return jnp.asarray(np.resize(_SIGNS[:, : min(count, 4096)], (DIRECTIONS, count)), dtype)


def _first_step(X: Array, residuals: Array, law: NoiseLaw) -> Array:
    """The mean of `a^2` in the next iteration, (d,): half of what log alpha falls
    by.
    """
    squares = jnp.square(residuals)
    own = law.feedback(squares) @ jnp.square(X)
    factor = law.drift / (4 * X.shape[0] ** 2) - law.cross
    return law.drift * (own + factor * jnp.square(residuals @ X))


def _relative(residuals: Array, rest: Remaining, law: NoiseLaw) -> tuple[Array, Array]:
    """Two standard deviations of the rest of a run relative to its mean: that of the
    energy, and that of which examples are drawn.
    """
    n = residuals.shape[0]
    lam, V, *_ = rest.modes
    largest = jnp.maximum(lam[-1], jnp.finfo(lam.dtype).tiny)
    slowest = jnp.maximum(lam[0], SLOWEST * largest)
    ends = jnp.log(0.01 * n / largest), jnp.log(2 * n / slowest)
    width = (ends[1] - ends[0]) / (POINTS - 1)
    times = jnp.exp(ends[0] + width * jnp.arange(POINTS, dtype=lam.dtype))
    path = ((V.T @ residuals) * jnp.exp(-(2 / n) * times[:, None] * lam)) @ V.T
    squares = jnp.square(path)
    total = jnp.sum(squares, axis=1)
    rate = law.sample * jnp.sum(jnp.square(squares), axis=1)
    rate = rate + (law.mean / n - law.cross) * jnp.square(total)
    variance = 64 * jnp.sum(jnp.maximum(rate, 0) * times) * width
    tiny = jnp.finfo(lam.dtype).tiny
    energy = jnp.maximum(jnp.abs(rest.energy), tiny)
    # The effective number of iterations that are left is the square of the sum of the
    # squares over the sum of their squares. Without noise nothing is drawn.
    sums = jnp.sum(total * times) * width, jnp.sum(jnp.square(total) * times) * width
    left = jnp.square(sums[0]) / jnp.maximum(law.drift * sums[1], tiny)
    drawn = jnp.where((law.drift > 0) & (law.sample > 0), 1 / jnp.sqrt(jnp.maximum(left, 1)), 0)
    return jnp.sqrt(variance) / energy * rest.gain, drawn
