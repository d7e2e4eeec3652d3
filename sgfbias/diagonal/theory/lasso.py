"""The Lasso that a flow with persistent label noise solves in time average, with a
certificate.

While label noise is on, `log alpha_t` falls for ever and
`u = arcsinh(beta / 2 alpha_t^2)` grows in proportion to time. On the support
`u_i / T -> +-4 gamma h_i (delta^2 + mean L)`; off the support, where beta_i vanishes,
`u_i / T` stays between these two values. On the other hand
`u(T) = -4 int_0^T grad L dt + martingale`, and a martingale divided by time goes to 0.
Since grad L is linear in beta, the time average b of beta satisfies (derived)

    |grad L(b)|_i <= gamma h_i (delta^2 + mean L),
    with equality and the sign of -b_i on the support.

These are the optimality conditions of `min L(b) + lambda sum_i h_i |b_i|` with
`lambda = gamma (delta^2 + mean L)`. For L = |r|^2 / (4n) they read
`|mean X^T r / n|_i <= 2 gamma h_i (delta^2 + mean L)`. The left-point sums of Euler's
scheme in mirror coordinates satisfy them at any step width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sgfbias.diagonal.problem import SparseRegression

MAX_SWEEPS = 100_000
ROUNDING = 1e-12


class LassoSolution(NamedTuple):
    """The solution of a Lasso problem.

    - `beta`: (d,). The minimiser.
    - `gap`: the primal minus the dual value, divided by the loss at 0. It bounds from
      above how far the objective is from its minimum.
    """

    beta: np.ndarray
    gap: float


def lasso(problem: SparseRegression, penalties: Any) -> LassoSolution:
    """Minimiser of `L(b) + sum_i penalties_i |b_i|`, where L is the problem's loss.

    It cannot be computed inside `jax.jit` or `jax.grad`. Coordinate descent runs until
    the linear equations of its support solve the optimality conditions.

    **Arguments:**

    - `penalties`: positive, a scalar or (d,).

    **Raises:** `ValueError` for penalties that are not positive and finite;
    `RuntimeError` if the method does not converge.
    """
    p = np.broadcast_to(np.asarray(penalties, np.float64), problem.d)
    if not (np.isfinite(p).all() and (p > 0).all()):
        raise ValueError("`penalties` must be positive and finite")
    X, y = np.asarray(problem.X, np.float64), np.asarray(problem.y, np.float64)
    scale = 2 * problem.loss_scale / problem.n
    gram, correlation = scale * X.T @ X, scale * X.T @ y
    curvature = np.maximum(np.diagonal(gram), np.finfo(float).tiny)
    beta, slope = np.zeros(problem.d), -correlation
    for sweep in range(MAX_SWEEPS):
        for i in range(problem.d):
            centre = curvature[i] * beta[i] - slope[i]
            new = np.sign(centre) * max(abs(centre) - p[i], 0) / curvature[i]
            if new != beta[i]:
                slope = slope + gram[i] * (new - beta[i])
                beta[i] = new
        if sweep % 10 == 0:
            solved = _on_support(gram, correlation, p, beta)
            if solved is not None:
                return LassoSolution(solved, _duality_gap(problem, X, y, p, solved))
    raise RuntimeError(f"the Lasso was not solved in {MAX_SWEEPS:,} sweeps")


def _on_support(
    gram: np.ndarray, correlation: np.ndarray, p: np.ndarray, beta: np.ndarray
) -> np.ndarray | None:
    """The solution with the support and the signs of `beta`, or None if it is not
    optimal.
    """
    on, sign = beta != 0, np.sign(beta)
    exact = np.zeros_like(beta)
    if on.any():
        exact[on] = np.linalg.lstsq(gram[np.ix_(on, on)], (correlation - p * sign)[on], rcond=None)[
            0
        ]
    slope = gram @ exact - correlation
    fits = np.abs(slope + p * sign)[on] <= ROUNDING * np.abs(correlation).max() * 100
    optimal = (
        np.all(np.sign(exact) == sign) and np.all(np.abs(slope) <= p * (1 + 1e-9)) and np.all(fits)
    )
    return exact if optimal else None


def _duality_gap(
    problem: SparseRegression, X: np.ndarray, y: np.ndarray, p: np.ndarray, beta: np.ndarray
) -> float:
    """The relative duality gap. With `nu = 2 s r / n` scaled to `|X^T nu|_i <= p_i`,
    the dual value is `-<nu, y> - n |nu|^2 / (4 s)`.
    """
    s, residual = problem.loss_scale, X @ beta - y
    nu = 2 * s * residual / problem.n
    nu = nu * min(1.0, float(np.min(p / np.maximum(np.abs(X.T @ nu), np.finfo(float).tiny))))
    primal = s * np.mean(residual**2) + np.sum(p * np.abs(beta))
    dual = -nu @ y - problem.n * (nu @ nu) / (4 * s)
    return float((primal - dual) / max(s * np.mean(y**2), np.finfo(float).tiny))


def label_noise_lasso(
    problem: SparseRegression, step_size: float, delta: float, *, dt: float = 0.0
) -> tuple[LassoSolution, float]:
    """The time average under label noise and the stationary mean loss, without a run.

    Stationarity of `sum |beta|` gives, up to the covariance of L and <h, |beta|>,
    `mean L = (L(b) + gamma delta^2 S) / (1 - gamma S)` with `S = <h, |b|> = tr K` and
    `K = X diag|b| X^T / n` (derived; loss 1/(4n)). This equation is solved together
    with the Lasso for b. For steps of width dt, of Euler's scheme in mirror coordinates
    or of SGD (dt = gamma), linear stability at b gives `S = tr K (I - dt K)^-1`
    instead.

    **Arguments:**

    - `step_size`: gamma.
    - `delta`: the label noise, which adds +-delta to every derivative `l'_i`.
    - `dt`: the step width; 0 for the flow in continuous time.

    **Returns:** the solution of the Lasso and the stationary mean loss.

    **Raises:** `ValueError` for a loss of another scale than 1/4; `RuntimeError` if
    gamma S or dt K reaches 1, where nothing is stationary.
    """
    if problem.loss_scale != 0.25:
        raise ValueError(
            "the formula for the mean loss is derived for loss_scale = 0.25, but loss_scale is "
            f"{problem.loss_scale}"
        )
    X, y, h, mean_loss = np.asarray(problem.X), np.asarray(problem.y), np.asarray(problem.h), 0.0
    for _ in range(1000):
        solution = lasso(problem, step_size * (delta**2 + mean_loss) * h)
        kernel = np.linalg.eigvalsh((X * np.abs(solution.beta)) @ X.T / problem.n)
        spread = step_size * float(np.sum(kernel / (1 - dt * kernel)))
        if dt * kernel[-1] >= 1 or spread >= 1:
            raise RuntimeError(
                f"gamma S = {spread:.3g} and dt K = {dt * kernel[-1]:.3g} must be below 1: use a "
                "smaller step_size"
            )
        new = (np.mean((X @ solution.beta - y) ** 2) / 4 + delta**2 * spread) / (1 - spread)
        if abs(new - mean_loss) <= 1e-10 * (delta**2 + new):
            return solution, float(new)
        mean_loss = new
    raise RuntimeError("the stationary mean loss was not found within 1,000 iterations")


def sample_weights(problem: SparseRegression, path: np.ndarray, delta: float) -> np.ndarray:
    """Weights (d,) of SGD's own penalty, `delta^2 h_i + mean_j x_ji^2 r_j^2 / 4`. They
    replace the flow's `(delta^2 + mean L) h_i`.

    In the noise of SGD the squared residual of example j multiplies its own x_ji^2,
    whereas the flow multiplies the mean of the squared residuals by the mean of the
    x_ji^2. The weights follow from `mean log(1 - gamma g) = 0` for the factors by which
    SGD multiplies the weights (derived; loss 1/(4n)).

    **Arguments:**

    - `path`: (seeds, times, d). Iterates over which the squared residual of every
      example is averaged.
    - `delta`: the label noise, which adds +-delta to every derivative `l'_i`.
    """
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    squares = np.mean([np.mean((beta @ X.T - y) ** 2, axis=0) for beta in path], axis=0)
    return delta**2 * np.asarray(problem.h) + np.mean(np.square(X) * squares[:, None], axis=0) / 4


def descent_constant(beta: Any, h: Any, fourth: Any, *, step_size: float, delta: float) -> float:
    """`-<b, mean X^T r / n> / <penalty, |b|>` for SGD. To leading order it is 2; with
    the next order it is `2 (1 + 2 gamma^2 delta^2 m_4 / h)`, averaged over the support
    with weights |b|.

    The next order comes from the fourth power in the logarithm of SGD's factors
    (derived).

    **Arguments:**

    - `beta`: (d,). The Lasso solution.
    - `h`: (d,). Mean squares of the features.
    - `fourth`: (d,). Mean fourth powers m_4 of the features.
    - `step_size`: gamma.
    - `delta`: the label noise, which adds +-delta to every derivative `l'_i`.
    """
    size = np.abs(np.asarray(beta))
    return float(
        2 * (1 + 2 * step_size**2 * delta**2 * (np.asarray(fourth) @ size) / (np.asarray(h) @ size))
    )
