r"""The limit alpha -> 0 of the gradient flow: a path of saddles and the times at which it jumps from one to the next.

Pesme, Flammarion 2023 (arXiv 2304.00488), algorithm 1, for `beta = w_+^2 - w_-^2` and any quadratic loss L. With `Lambda = log(1/alpha)`, flow
time `t = Lambda tau` and the dual variable `s(tau) = -int_0^tau grad L`, the flow has `grad phi_alpha(beta) = Lambda s` and
`|beta_i| = alpha^(2 - 4 |s_i|)` up to rounding of both signs, so a coordinate is of order one only where `|s_i| = 1/2`. Hence beta rests at
the minimiser of L over `beta_i >= 0` where `s_i = 1/2`, `<= 0` where `s_i = -1/2`, `= 0` elsewhere, s moves in a straight line, and the
next jump is when another coordinate of s reaches +-1/2.

In the paper `beta = u v` and the loss is 1/(2n), twice this one: its dual is 2 s, its bound 1, its times the same, and its
`alpha = sqrt(2) alpha` here, which moves times by a relative `log(2) / (2 Lambda)`.

At finite alpha a jump takes O(1) of flow time and the coordinate's own constant enters as `log |beta_i| / 2`, so
`t_k = Lambda tau_k + c_k + (exponentially small in Lambda)`: the relative error of `t_k / Lambda` is of order exactly 1 / Lambda, and the slope
of t_k against Lambda is tau_k far more precisely (derived).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from sgfbias.diagonal.problem import SparseRegression

BOUND = 0.5
SMALL = 1e-10  # relative gradient that counts as 0
TIE = 1e-12  # distance to the bound that counts as reached


class SaddlePath(NamedTuple):
    """Successive saddles. K jumps, K + 1 saddles of which the first is 0.

    - `times` (K,): rescaled times tau of the jumps. `betas` (K + 1, d): the saddles. `losses` (K + 1,), `gradients` (K + 1, d): L and grad L there.
    - `duals` (K + 1, d): s at the beginning of each rest. `rates` (K + 1,): the slowest exponential rate, in flow time, at which the flow comes
      near or leaves the saddle: that of its active coordinates, and of the others that are at, or next at, the bound. 0 for a last saddle that has
      a coordinate at the bound and yet 0: its gradient vanishes with the loss, and it decays as 1/t.
    """

    times: np.ndarray
    betas: np.ndarray
    losses: np.ndarray
    gradients: np.ndarray
    duals: np.ndarray
    rates: np.ndarray

    def piece(self, tau: np.ndarray) -> np.ndarray:
        """Number of the saddle at each rescaled time: (times,) of whole numbers."""
        return np.searchsorted(self.times, tau, side="right")

    def dual(self, tau: np.ndarray) -> np.ndarray:
        """s at each rescaled time, (times, d)."""
        k = self.piece(tau)
        start = np.concatenate([[0.0], self.times])[k]
        return self.duals[k] - (np.asarray(tau) - start)[:, None] * self.gradients[k]

    def relaxations(self, end: float) -> np.ndarray:
        """How many relaxation times each rest lasts, per unit of Lambda, if the flow runs to tau = `end`: (K + 1,).

        Half way through a rest of R of them the flow is nearer to the saddle than about `exp(-R / 2)`.
        """
        return self.rates * np.diff(np.concatenate([[0.0], self.times, [end]]))


def saddle_path(problem: SparseRegression, *, max_jumps: int = 10_000) -> SaddlePath:
    """Saddles and jump times for a uniform alpha -> 0. Concrete data only.

    **Raises:** `RuntimeError` after `max_jumps` jumps.
    """
    X, y, scale = np.asarray(problem.X, np.float64), np.asarray(problem.y, np.float64), 2 * problem.loss_scale / problem.n
    beta, s, tau = np.zeros(problem.d), np.zeros(problem.d), 0.0
    gradient = scale * X.T @ (X @ beta - y)
    small = SMALL * np.abs(gradient).max()
    rows = [(beta, gradient, s)]
    times: list[float] = []
    while np.abs(gradient).max() > small:
        if len(times) == max_jumps:
            raise RuntimeError(f"the path of saddles has not reached a minimum after {max_jumps} jumps")
        moving = np.abs(gradient) > small
        room = np.where(moving, BOUND + np.sign(gradient) * s, np.inf) / np.where(moving, np.abs(gradient), 1.0)
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
    """Least squares over signed coordinates of `active`, the others 0."""
    weights, _ = nnls(X[:, active] * sign[active], y)
    support, beta = active[weights > SMALL * weights.max()], np.zeros(X.shape[1])
    beta[support] = np.linalg.lstsq(X[:, support], y, rcond=None)[0]
    return beta


def _rate(hessian: np.ndarray, beta: np.ndarray, gradient: np.ndarray, s: np.ndarray, small: float) -> float:
    """`d beta = -4 |beta| (Hess L) (beta - saddle) dt` on the support, `d log|beta_i| = -4 sign(s_i) grad_i L dt` off it."""
    on, moving = beta != 0, np.abs(gradient) > small
    if np.any((np.abs(s) == BOUND) & ~on & ~moving):
        return 0.0
    rates = [np.inf]
    if on.any():
        root = np.sqrt(np.abs(beta[on]))
        rates.append(4 * np.linalg.eigvalsh(root[:, None] * hessian[np.ix_(on, on)] * root)[0])
    if moving.any():
        room = np.where(moving, BOUND + np.sign(gradient) * s, np.inf) / np.where(moving, np.abs(gradient), 1.0)
        rates.append(4 * np.abs(gradient[np.argmin(room)]))
        inward = moving & (np.abs(s) == BOUND)
        rates.extend(4 * np.abs(gradient[inward]))
    return float(min(rates))


def first_jump_constant(problem: SparseRegression) -> tuple[float, float]:
    """`(c_1, q)`: the flow's loss is half way to the first saddle at `t = Lambda tau_1 + c_1 + O(alpha^(2 (1 - q)))`.

    Before the second coordinate matters the flow is logistic, `d beta = 2 |beta| (c - h beta) dt` with `c = |X^T y / n|` of the first
    coordinate and h its `H_ii`, and the loss is half way at `beta = (1 - 1/sqrt 2) c / h`: `c_1 = log((sqrt 2 - 1) c / h) / (2 c)` (derived; loss 1/(4n),
    other scales take 1/(4 s) of the time). q is the second largest `|X^T y|` over the largest.
    """
    slopes = np.abs(np.asarray(problem.X, np.float64).T @ np.asarray(problem.y, np.float64)) / problem.n
    second, first = np.argsort(slopes)[-2:]
    c, h = slopes[first], float(problem.h[first])
    return float(np.log((np.sqrt(2) - 1) * c / h) / (2 * c) / problem.pace), float(slopes[second] / c)


def greedy_path(problem: SparseRegression, steps: int) -> np.ndarray:
    """Orthogonal matching pursuit: least squares on the coordinates of largest gradient so far, (steps + 1, d); repeats its last solution."""
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
