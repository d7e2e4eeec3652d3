"""Orders and constants of the two limits of the selected solution: alpha -> 0 (the rich
limit, minimum l1) and alpha -> infinity (the kernel limit, minimum l2).

Woodworth, Gunasekar, Lee, Moroshko, Savarese, Golan, Soudry, Srebro 2020 (arXiv
2002.09277) prove the limits, the bounds of `sufficient_alphas`, and that alpha must be
exponentially small at depth 2 and polynomially small above. The constants are derived
here.

Let nu be the multipliers, `z = X^T nu` and `beta_i = h(z_i)`. At depth 2
`h(z) = 2 alpha^2 sinh(4 z)`; at depth p `h(z) = (A - z)^{-q} - (A + z)^{-q}` with
`A = alpha^{2-p}`, `q = p / (p - 2)`. Where beta_i is not small, `4 z_i` is
`2 ln(1/alpha) + ln beta_i` at depth 2, and `z_i = A - beta_i^{-1/q}` above. So to
leading order `c = z / max z` is a dual certificate of the l1 program, and the
correction is of relative order `1 / (2 ln(1/alpha))` at depth 2 and `alpha^{p-2}`
above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq, linprog, minimize_scalar
from scipy.special import lambertw


def order_of(log_alpha: Any, depth: int) -> Any:
    """The order of the worst excess at a given alpha: `1 / (2 ln(1/alpha))` at depth 2,
    `alpha^{p-2}` above.
    """
    return -1 / (2 * log_alpha) if depth == 2 else np.exp((depth - 2) * log_alpha)


def log_alpha_of(order: Any, depth: int) -> Any:
    """The log alpha at which the worst excess has a given order: the inverse of
    `order_of`.
    """
    return -1 / (2 * order) if depth == 2 else np.log(order) / (depth - 2)


def worst_excess(depth: int) -> tuple[float, float]:
    """The constant C of the worst excess `max_delta |beta_alpha|_1 / min l1 - 1` over
    the problems `beta_1 + (1 - delta) beta_2 = 1`, and the scaled delta, t or s, at
    which it is reached.

    - At depth 2 the worst excess is `C / (2 ln(1/alpha))` with `C = W(1/e) = .2785`. It
      is reached at `delta = t / (2 ln(1/alpha))`, `t = 1 + W(1/e)`. There
      `beta_2 = beta_1 e^{-t}`, and t maximises `t / (1 + e^t)`.
    - At depth p the worst excess is `C alpha^{p-2}`, reached at
      `delta = s alpha^{p-2}`. C is the largest value over s of `s beta_2` with
      `beta_2 = (s + (1 - beta_2)^{-1/q})^{-q}`.

    On any single problem the excess falls faster (`fixed_exponent`). These are the
    orders that hold for all problems at once.
    """
    if depth == 2:
        W = float(lambertw(np.exp(-1.0)).real)
        return W, 1 + W
    q = depth / (depth - 2)

    def second(s: float) -> float:
        return brentq(lambda b: b - (s + (1 - b) ** (-1 / q)) ** -q, 0.0, 1 - 1e-9, xtol=1e-15)

    best = minimize_scalar(
        lambda x: -np.exp(x) * second(float(np.exp(x))),
        bounds=(-6, 6),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return -float(best.fun), float(np.exp(best.x))


def worst_excess_next() -> float:
    """The constant c of the expansion `C / T + c / T^2`, `T = 2 ln(1/alpha)`, of the
    worst excess at depth 2: `t^2 b (1 - b) (e^{-t} - ln b)` at `t = 1 + W(1/e)`,
    `b = 1 / (1 + e^{-t})`.
    """
    W, t = worst_excess(2)
    b = 1 / (1 + W)  # e^{-t} = W
    return t**2 * b * (1 - b) * (W - float(np.log(b)))


def largest_certificate(X: np.ndarray, beta: np.ndarray) -> float:
    """`min_mu max_{off the support} |X^T mu|` subject to `X^T mu = sign(beta)` on the
    support. It is below 1 if and only if beta is the stable and only minimiser of the
    l1 norm.
    """
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
    """The exponent k with which the excess of the l1 norm falls as `alpha^k` on one
    problem.

    Off the support `beta_i` is of size `alpha^{2 (1 - |c_i|)}` at depth 2 and `alpha^p`
    above, and the excess is the sum of `|beta_i| (1 - |c_i|)` there.

    **Arguments:**

    - `depth`: p.
    - `certificate`: the largest |c_i| off the support, see `largest_certificate`.
    """
    return 2 * (1 - certificate) if depth == 2 else float(depth)


def largest_deviation(target: float, factor: float) -> float:
    """The largest relative deviation of a local exponent from the exponent of the
    leading power, `W(factor / e) / ln(1 / target)` with Lambert's W.

    The sum of two powers is `target (1 + factor * target^x)`, so its local exponent
    exceeds that of `target` by a relative
    `x factor target^x / (1 + factor target^x)`. The maximum over all x > 0 is reached
    at `x ln(1 / target) = 1 + W(factor / e)` (derived).

    **Arguments:**

    - `target`: the leading power, below 1.
    - `factor`: the constant of the second power divided by that of the leading one.
    """
    return float(lambertw(factor / np.e).real / np.log(1 / target))


def sufficient_alphas(eps: float, d: int, l1: float, l2: float) -> tuple[float, float]:
    """The log alpha below which the l1 norm, and the log alpha above which the squared
    l2 norm, is within a factor 1 + eps of the least, at depth 2 (theorem 2 of Woodworth
    et al. 2020).

    **Arguments:**

    - `eps`: the relative excess allowed.
    - `d`: number of features.
    - `l1`, `l2`: the least l1 norm and the least l2 norm.
    """
    rich = min(-(2 + eps) / (2 * eps) * np.log(2 * (1 + eps) * l1), -d / (eps * l1))
    return float(rich), float(np.log(2 * (1 + eps) * (1 + 2 / eps) * l2) / 2)


def kernel_shift(X: np.ndarray, beta: np.ndarray, depth: int) -> np.ndarray:
    """The vector v (d,) of the expansion
    `beta_alpha = beta_l2 + v alpha^{-2p} + O(alpha^{-4p})`:
    `v = kappa (I - P) beta_l2^3`, where P is the projector on the row space.

    The cubic term of h gives `kappa = (q + 1)(q + 2) / (24 q^2)`, which is 1/24 at
    depth 2 (q infinite).
    """
    q = np.inf if depth == 2 else depth / (depth - 2)
    kappa = (1 + 1 / q) * (1 + 2 / q) / 24
    cube = beta**3
    return kappa * (cube - np.linalg.lstsq(X, X @ cube, rcond=None)[0])


def peak(x: np.ndarray, y: np.ndarray) -> float:
    """The largest value of a smooth function tabulated on an even grid, from the
    polynomial through the 7 points around the highest one. It is NaN if that point is
    near an end of the grid.
    """
    k = int(np.argmax(y))
    if not 3 <= k < x.size - 3:
        return float("nan")
    t = np.arange(-3.0, 4.0)
    coefficients = np.polyfit(t, y[k - 3 : k + 4] / y[k], 6)
    roots = np.roots(np.polyder(coefficients))
    inside = roots.real[(np.abs(roots.imag) < 1e-9) & (np.abs(roots.real) < 1)]
    return float(y[k] * np.polyval(coefficients, inside).max()) if inside.size else float("nan")


def defining_potential(beta: np.ndarray, alpha: float) -> float:
    """The potential of Woodworth et al. 2020, `Q_alpha = sum alpha^2 q(beta / alpha^2)`
    with `q(z) = int_0^z arcsinh(t / 2) dt`, at depth 2, by quadrature of its
    definition; `beta` is (d,).
    """
    q = sum(
        quad(lambda t: np.arcsinh(t / 2), 0, float(b) / alpha**2, epsrel=1e-12, limit=500)[0]
        for b in beta
    )
    return float(alpha**2 * q)
