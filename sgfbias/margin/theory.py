"""Closed forms: where AdaGrad goes on one example, when an average of squares is
overtaken by eps, and how fast Adam without eps moves.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sgfbias.core.checks import as_float, check_positive

RATES = 1001  # at which the equation of `adam_rate` is looked at, for its first root


class AdaGradLimit(NamedTuple):
    """The limit of AdaGrad's flow on one example, see `adagrad_limit`.

    - `direction`: (d,), the direction of the weights, of length 1.
    - `conditioner`: (d,), h at the end.
    - `path_sum`: `S = int e^(-2u) dt` at the end, so that `V_i = x_i^2 S`.

    S is infinite or 0, and h is 0, where they are out of the range of floats; the
    direction is right there, too.
    """

    direction: np.ndarray
    conditioner: np.ndarray
    path_sum: float


def adagrad_limit(x: Any, w0: Any, eps: float = 1e-8) -> AdaGradLimit:
    """Where AdaGrad's flow goes on one example x with label 1 and exponential loss.

    With `u = <w, x>` the squares are `V_i = x_i^2 S`, and along the path

        e^(-u) = e^(-u0) - 2 sum_i (sqrt(eps + x_i^2 S) - sqrt(eps)).

    This is derived from the flow here. S at the end solves it for u = infinity. Then
    `h = (eps + x^2 S)^(-1/2)` and the direction is `h x`. As eps -> 0 it is sign(x),
    and as eps -> infinity it is x.

    **Arguments:**

    - `x`: (d,), the example, not 0.
    - `w0`: (d,), the weights at the start.
    - `eps`: positive, inside the square root.

    **Returns:** an `AdaGradLimit`.

    **Raises:** `ValueError` for shapes that differ, entries that are NaN or infinite,
    x = 0, and eps that is not positive.
    """
    from scipy.optimize import brentq
    from scipy.special import logsumexp

    x, w0 = np.asarray(x, np.float64), np.asarray(w0, np.float64)
    if x.ndim != 1 or w0.shape != x.shape or not np.any(x):
        raise ValueError(
            "`x` must have shape (d,) and not be 0, and `w0` the same shape, but they have shapes "
            f"{x.shape} and {w0.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(w0).all()):
        raise ValueError("`x` or `w0` has entries that are NaN or infinite")
    check_positive(as_float(eps, "eps"), "eps")
    there = x != 0
    log_squares, log_eps = 2 * np.log(np.abs(x[there])), math.log(eps)

    def excess(log_s: float) -> float:
        # The logarithm of the sum over e^(-u0), which may not be a float.
        return float(math.log(2) + logsumexp(_log_rise(log_squares + log_s, log_eps)) + w0 @ x)

    low, high, width = -60.0, 60.0, 60.0
    while excess(low) > 0:
        low, width = low - width, 2 * width
    while excess(high) < 0:
        high, width = high + width, 2 * width
    log_s = brentq(excess, low, high, xtol=1e-14, rtol=1e-15, maxiter=500)
    log_h = np.full(x.shape, -log_eps / 2)
    log_h[there] = -np.logaddexp(log_eps, log_squares + log_s) / 2
    log_along = log_h[there] + log_squares / 2
    along = np.zeros(x.shape)
    along[there] = np.sign(x[there]) * np.exp(log_along - log_along.max())
    with np.errstate(over="ignore", under="ignore"):
        return AdaGradLimit(along / np.linalg.norm(along), np.exp(log_h), float(np.exp(log_s)))


def _log_rise(log_a: np.ndarray, log_eps: float) -> np.ndarray:
    """`log(sqrt(eps + a) - sqrt(eps))` without cancellation."""
    return log_a - np.logaddexp(np.logaddexp(log_eps, log_a) / 2, log_eps / 2)


def crossover(G: Any, *, n: int, eps: float, forgets: float = 1.0) -> float:
    """The nu at which the largest average of squared gradients falls to eps.

    Before, `RMSProp` and its like go to l_inf, as h is 1 / |G|; afterwards h is
    constant, and they go to l_2. While h is 1 / |G| the loss falls at a constant rate,
    and the average exceeds the last square by the factor `s^2`, with
    `s = A + sqrt(1 + A^2)` and `A = |G|_1 / c`. So

        nu_x = log(max_i |G_i| s) - log n - log(eps) / 2.

    Near the crossover eps slows the fall of the loss, so that the average lags less
    than by s. The formula neglects that, and the crossover is earlier by up to log s:
    on one data set in two dimensions by 0.03 at A = 0.37, on another in six by 0.06,
    0.10 and 0.16 at A = 0.16, 0.26 and 0.39.

    **Arguments:**

    - `G`: (d,), the gradient of nu before the crossover.
    - `n`: the number of examples.
    - `eps`: positive.
    - `forgets`: c, the rate per unit of flow time, `(1 - decay) / step_size`.

    **Raises:** `ValueError` for numbers that are not positive.
    """
    G = np.asarray(G, np.float64)
    for value, name in ((n, "n"), (eps, "eps"), (forgets, "forgets")):
        check_positive(as_float(value, name), name)
    check_positive(float(np.abs(G).max()), "the largest entry of G")
    a = float(np.abs(G).sum()) / forgets
    s = a + math.sqrt(1 + a * a)
    return math.log(float(np.abs(G).max()) * s) - math.log(n) - math.log(eps) / 2


def adam_rate(gamma_inf: float, lr: float, b1: float = 0.9, b2: float = 0.999) -> float:
    """By how much nu grows in one step of Adam with eps = 0, once its direction rests.

    The rate r solves

        r = g lr (1 - b1) / (1 - b1 e^r) sqrt((1 - b2 e^(2r)) / (1 - b2)),

    with g the maximal margin in l_inf, and lies below -log(b2)/2: the loss falls by at
    most about `e^(-(1 - b2)/2)` per step, however large lr is. For `b1 >= sqrt(b2)` the
    average of gradients forgets more slowly than the root of that of squares, and there
    is a rate for small lr only: beyond it the steps grow without end.

    **Arguments:**

    - `gamma_inf`: positive, g, see `max_margin(X, y, norm="linf")`.
    - `lr`: positive, the step size.
    - `b1`, `b2`: the decays, in [0, 1).

    **Raises:** `ValueError` for numbers out of these ranges, and where there is no
    steady rate.
    """
    from scipy.optimize import brentq, minimize_scalar

    for value, name in ((gamma_inf, "gamma_inf"), (lr, "lr")):
        check_positive(as_float(value, name), name)
    for value, name in ((b1, "b1"), (b2, "b2")):
        if not 0 <= as_float(value, name) < 1:
            raise ValueError(f"`{name}` must be at least 0 and below 1, but is {value}")
    if b2 == 0 and b1 == 0:
        return gamma_inf * lr  # sign descent
    ends = [-math.log(b) / k for b, k in ((b1, 1), (b2, 2)) if b > 0]

    def excess(r: float) -> float:
        shrink = math.sqrt(max(1 - b2 * math.exp(2 * r), 0) / (1 - b2))
        return r * (1 - b1 * math.exp(r)) - gamma_inf * lr * (1 - b1) * shrink

    # The rate that grows from 0 with lr is the first root.
    end = min(ends)
    grid = np.linspace(0, end, RATES)
    values = np.array([excess(r) for r in grid])
    if not (values >= 0).any():
        k = int(np.clip(values.argmax(), 1, RATES - 2))
        top = minimize_scalar(
            lambda r: -excess(r), bounds=(grid[k - 1], grid[k + 1]), method="bounded",
            options={"xatol": 1e-12 * end},
        )  # fmt: skip
        if not excess(top.x) >= 0:
            raise ValueError(
                f"there is no steady rate for b1 > sqrt(b2) at this step size: b1 = {b1:g}, "
                f"sqrt(b2) = {math.sqrt(b2):.4g} and lr = {lr:g}. The average of gradients forgets "
                "more slowly than the root of that of squares, so that the steps grow without "
                "end; take a smaller lr, or b1 below sqrt(b2)"
            )
        return float(brentq(excess, 0, top.x, xtol=1e-18, rtol=1e-14))
    first = grid[np.flatnonzero(values >= 0)[0]]
    return float(brentq(excess, 0, first, xtol=1e-18, rtol=1e-14))
