"""The limit alpha -> 0 of the gradient flow: a path of saddles, and the times at which
it jumps from one to the next.

This is algorithm 1 of Pesme, Flammarion 2023 (arXiv 2304.00488), for
`beta = w_+^2 - w_-^2` and any quadratic loss L. Let `Lambda = log(1/alpha)`, let the
flow time be `t = Lambda tau`, and let the dual variable be
`s(tau) = -int_0^tau grad L`. The flow has `grad phi_alpha(beta) = Lambda s`. Hence
`|beta_i| = alpha^(2 - 4 |s_i|)` up to the negligible term `alpha^(2 + 4 |s_i|)` of the
opposite sign, and a coordinate is of order one only where `|s_i| = 1/2`. So beta rests
at the minimiser of L over `beta_i >= 0` where `s_i = 1/2`, `<= 0` where `s_i = -1/2`,
`= 0` elsewhere. Meanwhile s moves in a straight line, and the next jump happens when
another coordinate of s reaches +-1/2.

In the paper `beta = u v`, and the loss is 1/(2n), twice the loss here. The dual
variable of the paper is 2 s, its bound is 1, and its times are the same. The alpha of
the paper is sqrt(2) times the alpha here, which changes times by a relative
`log(2) / (2 Lambda)`.

At finite alpha a jump takes O(1) of flow time, and the constant of the coordinate
itself enters as `log |beta_i| / 2`, so
`t_k = Lambda tau_k + c_k + (exponentially small in Lambda)`. The relative error of
`t_k / Lambda` is therefore of order exactly 1 / Lambda, and the slope of t_k against
Lambda is tau_k far more precisely (derived).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from sgfbias.diagonal.problem import SparseRegression

BOUND = 0.5
SMALL = 1e-10  # A gradient that is smaller than this, relatively, counts as 0.
LONGER = 1.25  # A flow runs at most for this many times its last jump time.
STABLE = 3.0  # The explicit solver is stable if step size times rate is below about this.
TIE = 1e-12  # The bound counts as reached within this distance.


class SaddlePath(NamedTuple):
    """Successive saddles of a path with K jumps. There are K + 1 saddles, of which the
    first is 0.

    - `times`: (K,). Rescaled times tau of the jumps.
    - `betas`: (K + 1, d). The saddles.
    - `losses`: (K + 1,). The loss L at the saddles.
    - `gradients`: (K + 1, d). grad L at the saddles.
    - `duals`: (K + 1, d). The dual variable s at the beginning of each rest.
    - `rates`: (K + 1,). The slowest exponential rate, in flow time, with which the flow
      approaches or leaves the saddle. It is the smallest among the rates of the active
      coordinates and of those other coordinates that are at the bound or reach it next.
      It is 0 for a last saddle with a coordinate at the bound that is nevertheless 0:
      the gradient of that coordinate vanishes with the loss, and the coordinate decays
      as 1/t.
    """

    times: np.ndarray
    betas: np.ndarray
    losses: np.ndarray
    gradients: np.ndarray
    duals: np.ndarray
    rates: np.ndarray

    def until(self, jumps: int) -> SaddlePath:
        """The path up to and including the saddle after the first `jumps` jumps."""
        return SaddlePath(self.times[:jumps], *(part[: jumps + 1] for part in self[1:]))

    def piece(self, tau: np.ndarray) -> np.ndarray:
        """The number of the saddle at each rescaled time, (times,) whole numbers."""
        return np.searchsorted(self.times, tau, side="right")

    def dual(self, tau: np.ndarray) -> np.ndarray:
        """The dual variable s at each rescaled time, (times, d)."""
        k = self.piece(tau)
        start = np.concatenate([[0.0], self.times])[k]
        return self.duals[k] - (np.asarray(tau) - start)[:, None] * self.gradients[k]

    def relaxations(self, end: float) -> np.ndarray:
        """The number of relaxation times that each rest lasts, per unit of Lambda, if
        the flow runs to tau = `end`: (K + 1,).

        Half way through a rest of R relaxation times the flow is closer to the saddle
        than about `exp(-R / 2)`.
        """
        return self.rates * np.diff(np.concatenate([[0.0], self.times, [end]]))

    def clearances(self) -> np.ndarray:
        """How far all coordinates that are not at the bound are from it at the start of
        each rest, as `-log |beta_i|` of the largest of them per unit of Lambda:
        (K + 1,). At a jump that nearly switches on another coordinate it is small.
        """
        distance = BOUND - np.abs(self.duals)
        return 4 * np.where(distance > 0, distance, BOUND).min(axis=1)


def saddle_path(problem: SparseRegression, *, max_jumps: int = 10_000) -> SaddlePath:
    """The saddles and jump times for a uniform alpha -> 0.

    It cannot be computed inside `jax.jit` or `jax.grad`.

    **Raises:** `RuntimeError` if the path has not ended after `max_jumps` jumps.
    """
    X, y, scale = (
        np.asarray(problem.X, np.float64),
        np.asarray(problem.y, np.float64),
        2 * problem.loss_scale / problem.n,
    )
    beta, s, tau = np.zeros(problem.d), np.zeros(problem.d), 0.0
    gradient = scale * X.T @ (X @ beta - y)
    small = SMALL * np.abs(gradient).max()
    rows = [(beta, gradient, s)]
    times: list[float] = []
    while np.abs(gradient).max() > small:
        if len(times) == max_jumps:
            raise RuntimeError(
                f"the path of saddles has not reached a minimum after {max_jumps} jumps"
            )
        moving = np.abs(gradient) > small
        room = np.where(moving, BOUND + np.sign(gradient) * s, np.inf) / np.where(
            moving, np.abs(gradient), 1.0
        )
        wait = room.min()
        tau, s = tau + wait, s - wait * np.where(moving, gradient, 0.0)
        at_bound = np.abs(s) > BOUND - TIE
        s = np.where(at_bound, BOUND * np.sign(s), s)
        beta = _constrained(X, y, np.flatnonzero(at_bound), np.sign(s))
        gradient = np.where(beta != 0, 0.0, scale * X.T @ (X @ beta - y))
        gradient = np.where(np.abs(gradient) > small, gradient, 0.0)
        times.append(tau)
        rows.append((beta, gradient, s))
    betas, gradients, duals = (np.stack(part) for part in zip(*rows, strict=True))
    losses = problem.loss_scale * np.mean(np.square(betas @ X.T - y), axis=1)
    rates = np.array([_rate(scale * X.T @ X, *row, small) for row in rows])
    return SaddlePath(np.array(times), betas, losses, gradients, duals, rates)


def _constrained(X: np.ndarray, y: np.ndarray, active: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Least squares over the coordinates `active` with the given signs; the other
    coordinates are 0.
    """
    weights, _ = nnls(X[:, active] * sign[active], y)
    support, beta = active[weights > SMALL * weights.max()], np.zeros(X.shape[1])
    beta[support] = np.linalg.lstsq(X[:, support], y, rcond=None)[0]
    return beta


def _rate(
    hessian: np.ndarray, beta: np.ndarray, gradient: np.ndarray, s: np.ndarray, small: float
) -> float:
    """The slowest rate at one saddle. On the support
    `d beta = -4 |beta| (Hess L) (beta - saddle) dt`, off it
    `d log|beta_i| = -4 sign(s_i) grad_i L dt`.
    """
    on, moving = beta != 0, np.abs(gradient) > small
    if np.any((np.abs(s) == BOUND) & ~on & ~moving):
        return 0.0
    rates = [np.inf]
    if on.any():
        root = np.sqrt(np.abs(beta[on]))
        rates.append(4 * np.linalg.eigvalsh(root[:, None] * hessian[np.ix_(on, on)] * root)[0])
    if moving.any():
        room = np.where(moving, BOUND + np.sign(gradient) * s, np.inf) / np.where(
            moving, np.abs(gradient), 1.0
        )
        rates.append(4 * np.abs(gradient[np.argmin(room)]))
        inward = moving & (np.abs(s) == BOUND)
        rates.extend(4 * np.abs(gradient[inward]))
    return float(min(rates))


def fastest_rates(problem: SparseRegression, path: SaddlePath) -> np.ndarray:
    """The largest exponential rate, in flow time, with which the flow approaches each
    saddle: (K + 1,). An explicit solver is stable only if its steps are at most about
    `STABLE` divided by this rate.
    """
    X = np.asarray(problem.X, np.float64)
    hessian = 2 * problem.loss_scale / problem.n * X.T @ X
    roots = np.sqrt(np.abs(path.betas))
    return np.array([4 * np.linalg.eigvalsh(r[:, None] * hessian * r)[-1] for r in roots])


def followed(
    problem: SparseRegression, path: SaddlePath, scale: float, most_steps: float
) -> tuple[int, float]:
    """How far an explicit solver can follow a path at `Lambda = scale` within a number
    of steps.

    A flow that is followed to a jump is run until half way through the rest after this
    jump, but no longer than `LONGER` times the time of the jump.

    **Returns:** the number of jumps, at least 1, and the rescaled time tau at which the
    run ends.
    """
    rates = fastest_rates(problem, path)
    half = np.append((path.times[:-1] + path.times[1:]) / 2, np.inf)
    ends = np.minimum(half, LONGER * path.times)
    steps = rates[1:] * (ends - path.times)
    steps[1:] += np.cumsum(rates[1:-1] * np.diff(path.times))
    count = max(int(np.sum(steps * scale / STABLE <= most_steps)), 1)
    return count, float(ends[count - 1])


def first_jump_constant(problem: SparseRegression) -> tuple[float, float]:
    """The constants `(c_1, q)` of the first jump: the loss of the flow is half way to
    the first saddle at `t = Lambda tau_1 + c_1 + O(alpha^(2 (1 - q)))`.

    Before the second coordinate matters, the flow is logistic,
    `d beta = 2 |beta| (c - h beta) dt`, where c is `|X^T y / n|` of the first
    coordinate and h its `H_ii`. The loss is half way at `beta = (1 - 1/sqrt 2) c / h`,
    hence `c_1 = log((sqrt 2 - 1) c / h) / (2 c)` (derived for loss 1/(4n); at scale s
    all times are shorter by a factor 1/(4 s)). q is the second largest `|X^T y|`
    divided by the largest.
    """
    slopes = (
        np.abs(np.asarray(problem.X, np.float64).T @ np.asarray(problem.y, np.float64)) / problem.n
    )
    second, first = np.argsort(slopes)[-2:]
    c, h = slopes[first], float(problem.h[first])
    return float(np.log((np.sqrt(2) - 1) * c / h) / (2 * c) / problem.time_scale), float(
        slopes[second] / c
    )


def memoryless_times(path: SaddlePath) -> np.ndarray:
    """The jump times (K,) if the dual variable started from 0 at every saddle, so that
    each wait is `1 / (2 max |grad L|)`. They are a control and not the times of the
    flow.
    """
    return np.cumsum(BOUND / np.abs(path.gradients[:-1]).max(axis=1))


def greedy_path(problem: SparseRegression, steps: int) -> np.ndarray:
    """Orthogonal matching pursuit, (steps + 1, d): each step adds the coordinate of
    largest gradient and solves least squares on all coordinates so far. Once it has n
    coordinates it repeats its last solution.
    """
    X, y = np.asarray(problem.X, np.float64), np.asarray(problem.y, np.float64)
    support: list[int] = []
    betas = [np.zeros(problem.d)]
    for _ in range(steps):
        if len(support) < problem.n:
            support.append(int(np.argmax(np.abs(X.T @ (y - X @ betas[-1])))))
        beta = np.zeros(problem.d)
        beta[support] = np.linalg.lstsq(X[:, support], y, rcond=None)[0]
        betas.append(beta)
    return np.stack(betas)
