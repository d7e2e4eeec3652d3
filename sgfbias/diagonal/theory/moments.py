r"""The second moments of the residuals that are still to come, by a linear equation.

Near convergence the residuals r = X beta - y of a depth-2 diagonal network move
linearly. With A = X diag(zeta) X^T, zeta = w_+^2 + w_-^2, a cotangent c moves them by
`4 A c`, the drift of the loss `1/(4n) sum r_i^2` is `c = -r/(2n)`, and the noise has a
covariance rate C(E r r^T) that is linear in the second moments. Their integral
`J = int E r r^T dt` over the rest of the run therefore solves

    (2/n) (A J + J A) - tau (2/n)^2 A J A - 16 A C(J) A = r r^T,
    C(J) = diag(a q + b mean(q)) - c J,     q = diag(J),

with r the present residuals. For a discrete algorithm tau is its step, and J is tau
times the sum over iterations; for a flow tau is 0, or the width of Euler's steps. In
the eigenvectors of A all terms but `diag(a q + b mean(q))` are diagonal, which leaves a
symmetric system of n unknowns. It is positive definite if and only if the second
moments decay. Its largest eigenvalue, the radius of the noise's feedback, is 1 at the
edge of mean-square stability.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Conjugate gradients: the largest number of steps; the number of steps from which the
# radius is computed; and the residual that is enough, as single paths scatter around
# their mean by a percent of the correction and more.
STEPS, RITZ = 48, 24
ENOUGH = {"float64": 1e-7, "float32": 1e-5}


class NoiseLaw(NamedTuple):
    """How the covariance rate of the cotangent follows from second moments, for the
    loss scale 1/4: `C(S) = diag(sample * diag(S) + mean * mean(diag(S))) - cross * S`.

    - `sample`, `mean`, `cross`: the coefficients a, b and c of the module's equation.
    - `width`: tau, the flow time of one iteration or of one Euler step, or 0.
    - `drift`: tau if the mean of the cotangent shrinks log alpha as its noise does,
      which it does in discrete algorithms, or 0.
    """

    sample: Array
    mean: Array
    cross: Array
    width: Array
    drift: Array

    def feedback(self, q: Array) -> Array:
        """The diagonal part of C for second moments of diagonal q (n,)."""
        return self.sample * q + self.mean * jnp.mean(q)

    def root(self, q: Array) -> Array:
        """The symmetric square root of `feedback`, applied to q (n,)."""
        own, all_ = jnp.sqrt(self.sample), jnp.sqrt(self.sample + self.mean)
        return own * q + (all_ - own) * jnp.mean(q)


class Modes(NamedTuple):
    """The eigenvalues `lam` (n,) and eigenvectors `V` (n, n) of A, and `inverse`
    (n, n), the inverse of the part of the equation that is diagonal in them. It is 0
    for directions in which A vanishes.
    """

    lam: Array
    V: Array
    inverse: Array
    stable: Array  # whether that part is positive, so the mean of the residuals decays


class Remaining(NamedTuple):
    """The solution of the equation.

    - `J`: (n, n). The integral of the second moments.
    - `energy`: `r^T A^-1 r`, which is 8 times the Bregman divergence from the limit to
      first order.
    - `radius`: the radius of the noise's feedback, infinite if the mean of the
      residuals does not decay.
    - `known`: whether the second moments decay and the equation was solved.
    - `gain`: the trace of J relative to its value without the noise's feedback.
    - `modes`: the eigenvectors that were used.
    """

    J: Array
    energy: Array
    radius: Array
    known: Array
    gain: Array
    modes: Modes


def modes_of(A: Array, law: NoiseLaw) -> Modes:
    """The eigenvectors of A (n, n), which are not differentiated."""
    n = A.shape[0]
    lam, V = jnp.linalg.eigh(jax.lax.stop_gradient(A))
    law = jax.lax.stop_gradient(law)
    lam = jnp.maximum(lam, 0)
    there = lam > n * jnp.finfo(A.dtype).eps * lam[-1]
    pairs = there[:, None] & there[None, :]
    product = lam[:, None] * lam[None, :]
    diagonal = (2 / n) * (lam[:, None] + lam[None, :]) - (
        law.width * (2 / n) ** 2 - 16 * law.cross
    ) * product
    stable = jnp.all((diagonal > 0) | ~pairs) & (law.width * (2 / n) * lam[-1] < 2)
    usable = pairs & (diagonal > 0)
    return Modes(lam, V, jnp.where(usable, 1 / jnp.where(usable, diagonal, 1), 0), stable)


def _diagonal(V: Array, inner: Array) -> Array:
    """The diagonal of `V inner V^T`."""
    return jnp.sum((V @ inner) * V, axis=1)


def _transfer(modes: Modes, f: Array) -> Array:
    """The diagonal of the second moments that noise of the diagonal covariance f (n,)
    adds. It is a symmetric and positive map.
    """
    inner = (modes.V.T * f) @ modes.V
    outer = 16 * modes.inverse * modes.lam[:, None] * modes.lam[None, :]
    return _diagonal(modes.V, outer * inner)


def _with_feedback(modes: Modes, law: NoiseLaw, q: Array) -> tuple[Array, Array, Array]:
    """Solve `(I - T F) s = q` by conjugate gradients, with the transfer T and the
    feedback F.

    **Returns:** s (n,), the radius, and whether the solution is accurate.
    """

    def move(p: Array) -> Array:
        return p - law.root(_transfer(modes, law.root(p)))

    right = law.root(q)
    scale = jnp.vdot(right, right)
    goal = scale * ENOUGH[q.dtype.name] ** 2
    tiny = jnp.finfo(q.dtype).tiny

    def unfinished(state):
        _, _, _, left, k, _, _, ok = state
        return (left > goal) & (k < STEPS) & ok

    def advance(state):
        x, rest, p, left, k, lengths, ratios, _ = state
        image = move(p)
        curvature = jnp.vdot(p, image)
        length = left / jnp.where(curvature == 0, tiny, curvature)
        ok = curvature > 0
        x = jnp.where(ok, x + length * p, x)
        rest = rest - length * image
        new = jnp.vdot(rest, rest)
        ratio = new / jnp.maximum(left, tiny)
        return (
            x,
            rest,
            rest + ratio * p,
            new,
            k + 1,
            lengths.at[k].set(length),
            ratios.at[k].set(ratio),
            ok,
        )

    zeros = jnp.zeros(STEPS, q.dtype)
    start = (jnp.zeros_like(q), right, right, scale, jnp.int32(0), zeros, zeros, jnp.asarray(True))
    x, _, _, left, k, lengths, ratios, ok = jax.lax.while_loop(unfinished, advance, start)
    radius = 1 - _least_ritz_value(lengths, ratios, k)
    return q + _transfer(modes, law.root(x)), radius, ok & (left <= 1e-4 * scale)


def _least_ritz_value(lengths: Array, ratios: Array, count: Array) -> Array:
    """The least eigenvalue of the tridiagonal matrix of the first steps of conjugate
    gradients, by bisection with Sturm's sequence, or 1 without any step.
    """
    lengths, ratios = lengths[:RITZ], ratios[:RITZ]
    used = jnp.arange(RITZ, dtype=jnp.int32) < count
    inverse = 1 / jnp.where(used, lengths, 1)
    before = jnp.concatenate([jnp.zeros(1, lengths.dtype), (ratios * inverse)[:-1]])
    diagonal = jnp.where(used, inverse + before, 1)
    # Squares of the entries beside the diagonal; 0 separates the rows that are unused.
    beside = jnp.where(used, jnp.roll(ratios * jnp.square(inverse), 1).at[0].set(0), 0)
    tiny = jnp.finfo(lengths.dtype).tiny ** 0.5

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        pivot, below = jnp.ones_like(middle), jnp.asarray(False)
        for row in range(RITZ):
            pivot = jnp.where(jnp.abs(pivot) < tiny, tiny, pivot)
            pivot = diagonal[row] - middle - beside[row] / pivot
            below = below | (pivot < 0)
        return jnp.where(below, low, middle), jnp.where(below, middle, high)

    bound = jnp.minimum(jnp.min(diagonal), 1) - 2 * jnp.sum(jnp.sqrt(jnp.abs(beside)))
    low, high = jax.lax.fori_loop(0, 40, halve, (bound, jnp.ones((), lengths.dtype)))
    return (low + high) / 2


def remaining_moments(
    A: Array, residuals: Array, law: NoiseLaw, *, differentiable: bool = True
) -> Remaining:
    """Solve the module's equation for the present residuals (n,) and the metric A
    (n, n).

    J and the energy are differentiable in all arguments, any number of times, by the
    implicit function theorem, unless `differentiable` is False, which compiles faster.
    """
    n = A.shape[0]
    modes = modes_of(A, law)
    lam, V, inverse, stable = modes
    frozen = jax.lax.stop_gradient(law)
    rest = jax.lax.stop_gradient(V.T @ residuals)
    alone = inverse * jnp.outer(rest, rest)
    q, radius, accurate = _with_feedback(modes, frozen, _diagonal(V, alone))
    there = lam > n * jnp.finfo(A.dtype).eps * lam[-1]
    reciprocal = jnp.where(there, 1 / jnp.where(there, lam, 1), 0)
    if differentiable:
        J = _solve(A, jnp.outer(residuals, residuals), law, modes)
        dual = jax.lax.custom_linear_solve(
            lambda w: A @ w, residuals, lambda _, r: V @ (reciprocal * (V.T @ r)), symmetric=True
        )
        energy = jnp.vdot(residuals, dual)
    else:
        J = V @ (alone + inverse * _fed(modes, law, q)) @ V.T
        energy = jnp.sum(reciprocal * jnp.square(rest))
    total = jnp.trace(alone)
    positive = total > 0
    return Remaining(
        J,
        energy,
        jnp.where(stable, radius, jnp.inf),
        stable & accurate & (radius < 1),
        jnp.where(positive, jnp.sum(q) / jnp.where(positive, total, 1), 1),
        modes,
    )


def _fed(modes: Modes, law: NoiseLaw, q: Array) -> Array:
    """The noise `16 A C A` of the diagonal covariance that q (n,) causes, in the
    eigenvectors of A.
    """
    lam, V, *_ = modes
    return 16 * lam[:, None] * lam[None, :] * ((V.T * law.feedback(q)) @ V)


def _solve(A: Array, right: Array, law: NoiseLaw, modes: Modes) -> Array:
    """The solution J of the equation with the right-hand side `right`, differentiable
    in A, `right` and `law`.
    """
    n = A.shape[0]
    lam, V, inverse, _ = modes
    frozen = jax.lax.stop_gradient(law)
    product = lam[:, None] * lam[None, :]

    def equation(J: Array) -> Array:
        C = jnp.diag(law.feedback(jnp.diagonal(J))) - law.cross * J
        drift = (2 / n) * (A @ J + J @ A) - law.width * (2 / n) ** 2 * (A @ J @ A)
        return drift - 16 * (A @ C @ A)

    def solution(R: Array) -> Array:
        inner = V.T @ R @ V
        q, *_ = _with_feedback(modes, frozen, _diagonal(V, inverse * inner))
        return V @ (inverse * (inner + _fed(modes, frozen, q))) @ V.T

    def adjoint(R: Array) -> Array:
        inner = V.T @ R @ V
        q, *_ = _with_feedback(modes, frozen, _diagonal(V, product * inverse * inner))
        return V @ (inverse * (inner + 16 * ((V.T * frozen.feedback(q)) @ V))) @ V.T

    return jax.lax.custom_linear_solve(
        equation, right, lambda _, R: solution(R), transpose_solve=lambda _, R: adjoint(R)
    )


def shrinkage(X: Array, J: Array, law: NoiseLaw) -> Array:
    """`2 diag(X^T Q(J) X)`, by which log alpha is expected to fall, (d,)."""
    n = X.shape[0]
    own = law.feedback(jnp.diagonal(J)) @ jnp.square(X)
    factor = law.drift / (4 * n**2) - law.cross
    return 2 * (own + factor * jnp.sum(X * (J @ X), axis=0))
