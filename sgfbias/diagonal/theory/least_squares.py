"""Closed forms on least squares: the first and second moments of SGD, and of flows with
any noise that is quadratic in the residuals.

With `L(w) = s/n sum_i r_i^2`, `r = X w - y`, every dynamics here is linear in the
augmented moment `M = E[v v^T]`, `v = (w, 1)`. The residuals are `R v` with
`R = (X, -y)`, the gradients are linear in v, and the covariance of a step is quadratic
in v. So the moment at any time is a power, or an exponential, of one matrix applied to
M, without sampling error and without solver error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg


class LeastSquares:
    """The moments of dynamics on `s/n sum_i (x_i^T w - y_i)^2`, in NumPy and float64.

    **Arguments:**

    - `X`: (n, d). The inputs.
    - `y`: (n,). The targets.
    - `scale`: s.
    """

    def __init__(self, X: Any, y: Any, scale: float = 0.25):
        self.X = np.asarray(X, np.float64)
        self.n, self.d = self.X.shape
        self.R = np.hstack([self.X, -np.asarray(y, np.float64)[:, None]])
        self.scale = scale
        # G v = grad L = (2 s / n) X^T R v. The last row is 0, so that the entry 1 of v
        # does not change.
        self.G = np.vstack([2 * scale / self.n * self.X.T @ self.R, np.zeros(self.d + 1)])
        self.risk_matrix = scale / self.n * self.R.T @ self.R

    def start(self, w: Any) -> np.ndarray:
        """The moment of a fixed start `w` (d,)."""
        v = np.append(np.asarray(w, np.float64), 1.0)
        return np.outer(v, v)

    def risk(self, M: np.ndarray) -> float:
        """`E L`, the mean loss."""
        return float(np.sum(self.risk_matrix * M))

    def variance(self, M: np.ndarray) -> float:
        """Total variance of the weights, the trace of their covariance."""
        mean = M[:-1, -1]
        return float(np.trace(M[:-1, :-1] - np.outer(mean, mean)))

    def covariance(self, M: np.ndarray) -> np.ndarray:
        """The exact covariance of the gradient on one random example,
        `1/n sum g_i g_i^T - g g^T`, averaged over the distribution of w and padded with
        zeros.
        """
        second = np.sum((self.R @ M) * self.R, axis=1)  # E r_i^2
        slopes = (2 * self.scale) ** 2 / self.n * (self.X.T * second) @ self.X
        out = np.zeros((self.d + 1, self.d + 1))
        out[:-1, :-1] = slopes
        return out - self.G @ M @ self.G.T

    def mean_loss_covariance(self, M: np.ndarray) -> np.ndarray:
        """The covariance of the mean-loss model, `mean l'^2 / n X^T X`, padded with
        zeros.
        """
        out = np.zeros((self.d + 1, self.d + 1))
        out[:-1, :-1] = 4 * self.scale / self.n * self.risk(M) * self.X.T @ self.X
        return out

    def sgd(self, M: np.ndarray, step_size: float, steps: int) -> np.ndarray:
        """The moment after `steps` steps of SGD with batches of one."""
        A = np.eye(self.d + 1) - step_size * self.G
        return self._iterate(lambda m: A @ m @ A.T + step_size**2 * self.covariance(m), M, steps)

    def euler(
        self, M: np.ndarray, step_size: float, steps: int, *, dt: float, noise: str, order: int
    ) -> np.ndarray:
        """The moment after `steps` Euler steps of a flow; `noise` and `order` are as in
        `flow`.
        """
        A = np.eye(self.d + 1) - dt * self._drift(step_size, order)
        return self._iterate(
            lambda m: A @ m @ A.T + dt * step_size * self._noise(noise, m), M, steps
        )

    def flow(
        self, M: np.ndarray, step_size: float, time: float, *, noise: str, order: int
    ) -> np.ndarray:
        """The moment of a flow at the flow time `time`; `noise` is 'exact', 'mean-loss'
        or 'none', and `order` is 1 or 2.
        """
        F = self._drift(step_size, order)
        generator = self._matrix(lambda m: -F @ m - m @ F.T + step_size * self._noise(noise, m))
        return (scipy.linalg.expm(time * generator) @ M.ravel()).reshape(M.shape)

    def _noise(self, name: str, M: np.ndarray) -> np.ndarray:
        if name == "none":
            return np.zeros_like(M)
        return self.covariance(M) if name == "exact" else self.mean_loss_covariance(M)

    def _drift(self, step_size: float, order: int) -> np.ndarray:
        # grad(L + gamma/4 |grad L|^2) = (I + gamma/2 H) grad L
        if order == 1:
            return self.G
        H = np.zeros((self.d + 1, self.d + 1))
        H[:-1, :-1] = self.G[:-1, :-1]
        return self.G + step_size / 2 * H @ self.G

    def _matrix(self, linear: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        size = self.d + 1
        basis = np.eye(size * size).reshape(-1, size, size)
        return np.stack([linear(e).ravel() for e in basis], axis=1)

    def _iterate(
        self, linear: Callable[[np.ndarray], np.ndarray], M: np.ndarray, steps: int
    ) -> np.ndarray:
        return (np.linalg.matrix_power(self._matrix(linear), steps) @ M.ravel()).reshape(M.shape)
