r"""Orders and constants of the two limits of the selected solution, alpha -> 0 (rich, minimum l1) and alpha -> infinity (kernel, minimum l2).

Woodworth, Gunasekar, Lee, Moroshko, Savarese, Golan, Soudry, Srebro 2020 (arXiv 2002.09277) have the limits, the bounds of `sufficient_alphas` and the
statement that alpha must be exponentially small at depth 2 and polynomially small above; the constants here are derived.

With multipliers nu, `z = X^T nu` and `beta_i = h(z_i)`: at depth 2 `h(z) = 2 alpha^2 sinh(4 z)`, at depth p `h(z) = (A - z)^{-q} - (A + z)^{-q}`, `A = alpha^{2-p}`,
`q = p / (p - 2)`. Where beta_i is not small `4 z_i` is `2 ln(1/alpha) + ln beta_i` at depth 2 and `z_i = A - beta_i^{-1/q}` above: to leading order
`c = z / max z` is a dual certificate of the l1 programme, and the correction is of relative order `1 / (2 ln(1/alpha))` or `alpha^{p-2}`.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq, linprog, minimize_scalar
from scipy.special import lambertw


def worst_excess(depth: int) -> tuple[float, float]:
    r"""The constant C of the worst excess `max_delta |beta_alpha|_1 / min l1 - 1` over the problems `beta_1 + (1 - delta) beta_2 = 1`, and where it is reached.

    - depth 2: `C / (2 ln(1/alpha))`, `C = W(1/e) = .2785`, at `delta = t / (2 ln(1/alpha))`, `t = 1 + W(1/e)`: there `beta_2 = beta_1 e^{-t}`, and
      `t / (1 + e^t)` is largest.
    - depth p: `C alpha^{p-2}`, at `delta = s alpha^{p-2}`: the largest `s beta_2` with `beta_2 = (s + (1 - beta_2)^{-1/q})^{-q}`.

    On any one problem the excess falls faster (`fixed_exponent`); these are the orders that hold for all problems at once.
    """
    if depth == 2:
        W = float(lambertw(np.exp(-1.0)).real)
        return W, 1 + W
    q = depth / (depth - 2)

    def second(s: float) -> float:
        return brentq(lambda b: b - (s + (1 - b) ** (-1 / q)) ** -q, 0.0, 1 - 1e-9, xtol=1e-15)

    best = minimize_scalar(lambda x: -np.exp(x) * second(float(np.exp(x))), bounds=(-6, 6), method="bounded", options={"xatol": 1e-9})
    return -float(best.fun), float(np.exp(best.x))


def worst_excess_next() -> float:
    """c of `C / T + c / T^2`, `T = 2 ln(1/alpha)`, at depth 2: `t^2 b (1 - b) (e^{-t} - ln b)` at `t = 1 + W(1/e)`, `b = 1 / (1 + e^{-t})`."""
    W, t = worst_excess(2)
    b = 1 / (1 + W)  # e^{-t} = W
    return t**2 * b * (1 - b) * (W - float(np.log(b)))


def largest_certificate(X: np.ndarray, beta: np.ndarray) -> float:
    """`min_mu max_{off the support} |X^T mu|` subject to `X^T mu = sign(beta)` on it: below 1 iff beta is the stable, only minimiser of l1."""
    on = np.abs(beta) > 1e-9 * np.abs(beta).max()
    n = X.shape[0]
    off = X[:, ~on].T
    one = np.ones((off.shape[0], 1))
    result = linprog(
        np.eye(n + 1)[n],
        A_ub=np.block([[off, -one], [-off, -one]]),
        b_ub=np.zeros(2 * off.shape[0]),
        A_eq=np.hstack([X[:, on].T, np.zeros((int(on.sum()), 1))]),
        b_eq=np.sign(beta[on]),
        bounds=(None, None),
        method="highs",
    )
    return float(result.fun) if result.status == 0 else np.nan


def fixed_exponent(depth: int, certificate: float) -> float:
    """k of the excess l1 norm `alpha^k` on one problem: off the support `beta_i` is of size `alpha^{2 (1 - |c_i|)}` at depth 2, `alpha^p` above, and the
    excess is `sum |beta_i| (1 - |c_i|)` there."""
    return 2 * (1 - certificate) if depth == 2 else float(depth)


def sufficient_alphas(eps: float, d: int, l1: float, l2: float) -> tuple[float, float]:
    """`(log alpha below which the l1 norm, log alpha above which the squared l2 norm)` is within a factor 1 + eps of the least, at depth 2 (their theorem 2).

    `l1`, `l2`: the least l1 and the least l2 norm.
    """
    rich = min(-(2 + eps) / (2 * eps) * np.log(2 * (1 + eps) * l1), -d / (eps * l1))
    return float(rich), float(np.log(2 * (1 + eps) * (1 + 2 / eps) * l2) / 2)


def kernel_shift(X: np.ndarray, beta: np.ndarray, depth: int) -> np.ndarray:
    """v (d,) of `beta_alpha = beta_l2 + v alpha^{-2p} + O(alpha^{-4p})`: `kappa (I - P) beta_l2^3`, P the projector on the row space.

    `kappa = (q + 1)(q + 2) / (24 q^2)` from the cubic term of h, 1/24 at depth 2 (q infinite).
    """
    q = np.inf if depth == 2 else depth / (depth - 2)
    kappa = (1 + 1 / q) * (1 + 2 / q) / 24
    cube = beta**3
    return kappa * (cube - np.linalg.lstsq(X, X @ cube, rcond=None)[0])


def peak(x: np.ndarray, y: np.ndarray) -> float:
    """The largest value of a smooth function tabulated on an even grid, by the polynomial through its 7 highest neighbours; NaN near an end of the grid."""
    k = int(np.argmax(y))
    if not 3 <= k < x.size - 3:
        return float("nan")
    t = np.arange(-3.0, 4.0)
    coefficients = np.polyfit(t, y[k - 3 : k + 4] / y[k], 6)
    roots = np.roots(np.polyder(coefficients))
    inside = roots.real[(np.abs(roots.imag) < 1e-9) & (np.abs(roots.real) < 1)]
    return float(y[k] * np.polyval(coefficients, inside).max()) if inside.size else float("nan")
