r"""The largest step size at which second moments fall, from the data and a solution.

Near a solution the residuals of a depth-2 diagonal network obey a linear equation with
the matrix `A = X diag(xi) X^T`, xi = w_+^2 + w_-^2 (see `theory.moments`). Their second
moments S obey a linear map. They fall if and only if the radius of the noise's feedback
is below 1: of the map `S -> sum over time of the second moments that noise of the
covariance C(S) causes`. In the eigenvectors of A, noise of covariance N is turned into

    J_ij = N_ij G_ij,   G_ij = 16 lam_i lam_j / (1/g_ij + 16 c lam_i lam_j),

with c the coefficient of the law's term in S itself, and with g_ij, for
`mu = 2 lam / n` and `a = gamma mu`,

    flow in exact time      1 / (mu_i + mu_j)
    Euler's steps, SGD      1 / (mu_i + mu_j - tau mu_i mu_j)
    heavy ball, momentum b  gamma (1 - b^2) / (b (a_i - a_j)^2
                            + (1 - b)^2 ((1 + b) (a_i + a_j) - a_i a_j)).

The last is the sum over k of `psi_k(a_i) psi_k(a_j)`, the impulse responses of the
two-step recursion, by Cauchy's identity for complete homogeneous polynomials.
Nesterov's method has the same with a numerator of first degree. All entries of G grow
with gamma (for Nesterov's method a test finds this, on random spectra), so there is one
edge, and all smaller step sizes are stable. For mean-loss noise in exact time it is
`1 / <h, xi>`.

This is stability in the mean square. Pathwise stability, a negative top Lyapunov
exponent, asks for less: under per-sample noise on one example, with A a number,
`d log r^2 = -4 A (1 + A gamma) dt + noise` falls at every step size, and `E r^2` only
for gamma below 1 / A. Beyond the edge a path that falls makes excursions so large that
it leaves the neighbourhood of the solution, in which the linear equation holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from sgfbias.core.checks import (
    as_float,
    as_float_array,
    check_finite,
    check_shape,
    is_concrete,
)
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression, check_regression
from sgfbias.diagonal.theory.certificate import Selection
from sgfbias.diagonal.theory.edge_law import Motion, motion_of
from sgfbias.diagonal.theory.minimum_norm import minimum_l1
from sgfbias.diagonal.theory.selection import select

# Lanczos' method: the relative change of the radius that is enough, and the largest
# number of products.
ENOUGH, PRODUCTS = 1e-9, 200
# Share of seeds -> the largest fraction of the edge at which so many converged, over
# the four problems of the study `convergence` and on every one of ten draws of them.
ADVISED = {
    True: {0.75: 0.8, 0.98: 0.6, 0.99: 0.5},  # discrete algorithms
    False: {0.8: 0.6, 0.9: 0.5, 0.99: 0.4},  # flows, whose tails are heavier
}


class StabilityEdge(eqx.Module):
    """The edge of stability in the mean square of dynamics on a problem.

    - `step_size`: the largest step size at which second moments fall. It is infinite
      for a flow without noise.
    - `criterion`: "mean-square". Single paths may fall beyond it.
    - `words`: what moves.
    - `beta`: (d,). The solution at which the edge is taken.
    - `discrete`: whether the dynamics are a discrete algorithm.
    - `momentum`: the momentum of the algorithm, or 0.
    """

    references: ClassVar[dict[str, str]] = {"pesme2021": "the flow whose noise has this edge"}
    step_size: float
    beta: np.ndarray
    criterion: str = eqx.field(static=True)
    words: str = eqx.field(static=True)
    discrete: bool = eqx.field(static=True)
    momentum: float = eqx.field(static=True)
    _radius: Callable[[float], float] = eqx.field(static=True, repr=False)

    def radius(self, gamma: Any) -> float:
        """The radius of the noise's feedback at the step size `gamma`. Second moments
        fall if and only if it is below 1. It is infinite where not even the mean of the
        residuals falls.

        **Raises:** `ValueError` unless gamma is a positive number.
        """
        gamma = as_float(gamma, "gamma")
        if not 0 < gamma < np.inf:
            raise ValueError(f"`gamma` must be positive and finite, but is {gamma:g}")
        return self._radius(gamma)

    def advice(self, share: Any = 0.95) -> float:
        """A step size at which at least this share of the seeds can be expected to
        converge.

        It is a fraction of the edge, 0.6 for SGD and 0.4 for flows at the default. The
        fractions are not theory: they are what the study `convergence` measured, on
        problems with small alpha. On other problems try the advice before you trust it.

        **Raises:** `ValueError` for a share that is not above 0 and at most 0.99, and
        for an algorithm with momentum, for which nothing was measured.
        """
        if self.momentum > 0:
            raise ValueError(
                "the shares of seeds that converge were measured without momentum, which makes "
                "early oscillations larger: try step sizes below 0.4 times `step_size`"
            )
        share = as_float(share, "share")
        table = ADVISED[self.discrete]
        if not 0 < share <= max(table):
            raise ValueError(
                f"`share` must be above 0 and at most {max(table):g}, the largest share that was "
                f"measured, but is {share:g}; for more certainty take a smaller step size, or see "
                "guarantee(problem, network)"
            )
        return self.step_size * max(part for known, part in table.items() if known >= share)

    def __repr__(self) -> str:
        return (
            f"StabilityEdge({self.words}: second moments fall below the step size "
            f"{self.step_size:.4g})"
        )


def stability_edge(
    problem: SparseRegression, dynamics_or_noise: Any, at: Any = None
) -> StabilityEdge:
    """The largest step size at which the second moments of the residuals fall near a
    solution, from the data alone.

    **Arguments:**

    - `problem`: n up to 500 takes seconds. Data may be in any units.
    - `dynamics_or_noise`: a noise model of the flow in exact time (mean-loss,
      per-sample or minibatch noise, or sums of these); or a `StochasticGradientFlow`,
      which is solved by Euler's scheme, so that its `dt` stays in proportion to the
      step size; or `GradientDescent`, `StochasticGradientDescent` (any batch size,
      drawn with or without replacement, with heavy-ball or Nesterov's momentum) or
      `SVAG`. The step size of the dynamics does not matter.
    - `at`: the solution. A `DiagonalNetwork` stands for the one that its alpha and its
      offset select; a `Selection` or beta (d,) is taken as it is, with xi = |beta|. The
      default is the solution of smallest l1 norm, the limit of small alpha. Noise
      shrinks alpha along a run, which moves a run from the former towards the latter.

    **Returns:** a `StabilityEdge`.

    **Raises:** `ValueError` for dynamics without an edge, or whose second moments are
    not derived, with the reason: random reshuffling, transformations of Optax, label
    noise that is on, isotropic noise, schedules. Also if no beta fits the data, and
    for data that are being traced.
    """
    check_regression(problem)
    if not is_concrete((problem, dynamics_or_noise, at)):
        raise ValueError(
            "a stability edge is found by NumPy, from data that have values: compute it outside "
            "jit, vmap and grad"
        )
    motion = motion_of(dynamics_or_noise, problem.n)
    beta, xi = _solution(problem, at)
    X = np.asarray(problem.X, np.float64)
    lam, V = np.linalg.eigh((X * xi) @ X.T)
    there = lam > len(lam) * np.finfo(np.float64).eps * max(lam[-1], 0)
    lam, V, scale = lam[there], V[:, there], problem.time_scale

    def radius(gamma: float) -> float:
        return _radius_at(motion, lam, V, gamma * scale)

    return StabilityEdge(
        step_size=_edge(motion, lam, V) / scale,
        beta=beta,
        criterion="mean-square",
        words=motion.words,
        discrete=motion.discrete,
        momentum=motion.momentum,
        _radius=radius,
    )


def _solution(problem: SparseRegression, at: Any) -> tuple[np.ndarray, np.ndarray]:
    """The solution (d,) and xi (d,) there."""
    if isinstance(at, DiagonalNetwork):
        if at.d != problem.d:
            raise ValueError(
                f"`at` has {at.d} features, but the problem has {problem.d}: use "
                f"DiagonalNetwork.init(alpha=..., d={problem.d})"
            )
        chosen = select(problem, at.log_alpha, offset=at.offset)
        log_alpha = jnp.asarray(at.log_alpha, problem.dtype)
        xi = xi_from(log_alpha, u_from(chosen.beta, log_alpha))
        return np.asarray(chosen.beta, np.float64), np.asarray(xi, np.float64)
    if at is None:
        beta = np.asarray(minimum_l1(problem), np.float64)
    else:
        given = as_float_array(at.beta if isinstance(at, Selection) else at, "at")
        check_shape(given, "at", (problem.d,))
        check_finite(given, "at")
        beta = np.asarray(given, np.float64)
    return beta, np.abs(beta)


def _radius_at(motion: Motion, lam: np.ndarray, V: np.ndarray, gamma: float) -> float:
    """The radius at the step size `gamma` of loss scale 1/4."""
    if not len(lam):
        return 0.0
    G = motion.gains(lam, V.shape[0], gamma)
    if G is None:
        return float("inf")
    n = V.shape[0]
    own = gamma * float(motion.law.sample)
    all_ = own + gamma * float(motion.law.mean)
    if all_ == 0:
        return 0.0
    own, all_ = np.sqrt(own), np.sqrt(all_)

    def root(q: np.ndarray) -> np.ndarray:
        return own * q + (all_ - own) * q.mean()

    def move(p: np.ndarray) -> np.ndarray:
        inner = G * ((V.T * root(p)) @ V)
        return root(np.sum((V @ inner) * V, axis=1))

    return _largest(move, np.full(n, n**-0.5))


def _largest(move: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> float:
    """The largest eigenvalue of a symmetric positive map by Lanczos' method, from a
    start that its first eigenvector is not orthogonal to.
    """
    basis, value = [start], 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(PRODUCTS, len(start))):
        image = move(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):
            for vector in basis:
                image = image - (vector @ image) * vector
        size = float(np.linalg.norm(image))
        T = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        before, value = value, float(np.linalg.eigvalsh(T)[-1])
        if size <= 1e-13 * value or value - before <= ENOUGH * value:
            break
        beside.append(size)
        basis.append(image / size)
    return value


def _edge(motion: Motion, lam: np.ndarray, V: np.ndarray) -> float:
    """The step size of loss scale 1/4 at which the radius is 1."""
    if not len(lam):
        return float("inf")
    guess = V.shape[0] / lam.sum()  # the edge of mean-loss noise in exact time
    low, high, most, growth = 0.0, np.inf, 1e6 * guess, 1.05
    noiseless = float(motion.law.sample) + float(motion.law.mean) == 0
    if noiseless and motion.law.width == 0:
        return float("inf")
    for _ in range(200):
        radius = _radius_at(motion, lam, V, guess)
        if abs(radius - 1) < 1e-9:
            break
        if guess > most:  # the radius tends to a limit of at most 1
            return float("inf")
        low, high = (guess, high) if radius < 1 else (low, guess)
        # The solution, if the radius is proportional to the step size.
        step = guess / radius if 0 < radius < np.inf else np.inf
        if high == np.inf:
            guess, growth = min(max(step, growth * guess), 4 * guess), min(growth**2, 4)
        elif high - low <= 1e-10 * high:
            break
        else:
            margin = 1e-3 * (high - low)
            inside = abs(radius - 1) < 0.5 and low + margin < step < high - margin
            guess = step if inside else (low + high) / 2
    return float(guess)
