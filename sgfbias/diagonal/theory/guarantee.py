r"""The guarantee of Theorem 1 with its constants: a step size below which the flow with
mean-loss noise converges, and bounds that hold for all times.

Write B = |beta*|_1 for an interpolator beta*, m = min alpha^2, lam = lambda_max(X^T X /
n), `a = max{B ln(sqrt2 B / m), |alpha|_2^2}` and l = ln(4/p). All follows from the
identity of `theory.lyapunov`,

    V_t = |alpha|^2/2 - 2 int L (1 - (gamma/2) <h, xi + |beta*|>) ds + S_t.

1. `exp(theta S - theta^2 <S> / 2)` is a supermartingale. So with probability at least
   1 - p/2, `|S_t| <= a + l <S>_t / (2 a)` for all t.
2. `V_t >= |xi_t|_1/4 - (B/4) ln(|xi_t|_1 / m)`, and `<S> <= 2 gamma lam int L
   (|beta|_2^2 + |beta*|_2^2)`. As long as |xi|_1 <= 18 a, a step size
   `gamma <= 1/(400 l lam a)` makes V at most `|alpha|^2/2 + a - int L`, which keeps
   |xi|_1 below 18 a.
3. The same inequality bounds int L from above.
4. At the end `V <= |alpha|^2/2 - W + gamma <h, |beta*|> int L`, where
   `W = min phi_alpha - phi_alpha(0)` over the solutions, since phi grows as alpha
   falls. So `2 int L >= W + S`, and with the level W/2 in step 1,
   `int L >= (W/4) / (1 + gamma l M / (2 W))` with `M = 650 lam a^2`, with probability
   1 - p/2 once more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.checks import as_float, as_float_array, check_finite, check_shape, is_concrete
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import potential
from sgfbias.diagonal.problem import SparseRegression, check_regression
from sgfbias.diagonal.theory.minimum_norm import minimum_l1
from sgfbias.diagonal.theory.selection import select

STEP, RADIUS = 400, 18  # the constants of the step size and of the bound on |xi|_1


class Guarantee(eqx.Module):
    """What holds with probability at least `probability` for the flow with mean-loss
    noise, in exact time, at every step size up to `step_size`.

    - `step_size`: at most this, every run converges to the interpolator of Theorem 1.
    - `l1_bound`: `|beta_t|_1 <= |xi_t|_1 <= l1_bound` for all times t.
    - `integral`: (low, high), between which the loss integral over all times lies at
      `step_size`. The upper end holds at every smaller step size, too.
    - `log_alpha`: (low, high), each (d,). The effective log alpha of every coordinate
      lies between these at `step_size`.
    - `probability`: the probability with which all of these hold together.
    - `constants`: the numbers of the module's derivation by name: `B`, `lam`, `a`, `b`,
      `W` and `M`.
    """

    references: ClassVar[Mapping[str, str]] = {
        "pesme2021": "the convergence guarantee, Theorem 1, Propositions 3 and 4, Lemmas 2 to 7"
    }
    step_size: Float[Array, ""]
    l1_bound: Float[Array, ""]
    integral: tuple[Float[Array, ""], Float[Array, ""]]
    log_alpha: tuple[Float[Array, " d"], Float[Array, " d"]]
    constants: dict[str, Array]
    probability: float = eqx.field(static=True)

    def __repr__(self) -> str:
        if not is_concrete(self.step_size):
            return "Guarantee(traced)"
        low, high = self.integral
        ratio = [float(jnp.min(self.log_alpha[k])) for k in (0, 1)]
        return (
            f"Guarantee: with probability {self.probability:g}, the flow with mean-loss noise at "
            f"step size {float(self.step_size):.3g}\n"
            "  converges to the interpolator of Theorem 1;\n"
            f"  |beta_t|_1 stays at most {float(self.l1_bound):.3g};\n"
            f"  its loss integral lies between {float(low):.3g} and {float(high):.3g};\n"
            "  the effective alpha of coordinate j lies between exp(log_alpha[0][j]) and "
            f"exp(log_alpha[1][j]), the smallest between exp({ratio[0]:.6g}) and "
            f"exp({ratio[1]:.6g})."
        )


def guarantee(
    problem: SparseRegression,
    network: DiagonalNetwork,
    probability: float = 0.95,
    *,
    interpolator: Any = None,
) -> Guarantee:
    """The step size below which Theorem 1 guarantees convergence, and bounds that hold
    along the run and at its end, before any run.

    All bounds are proved, and none is sharp: runs usually converge at step sizes that
    are thousands of times larger. `stability_edge` predicts where they cease to.

    **Arguments:**

    - `problem`: the data, with a solution of X beta = y.
    - `network`: the start, with `w_+ = w_-`. Its alpha may be a vector.
    - `probability`: from 1/2 to below 1.
    - `interpolator`: beta* (d,), a solution of X beta = y. The default is the one of
      smallest l1 norm, which gives the best constants. It has to be given where the
      data are being traced.

    **Returns:** a `Guarantee`. It is differentiable in alpha, and with `interpolator`
    also in the data.

    **Raises:** `ValueError` for a probability outside of these bounds, for a network
    with unequal weights, for an interpolator that does not fit the data, and if no beta
    fits them.
    """
    check_regression(problem)
    problem.require_interpolation()
    probability = as_float(probability, "probability")
    if not 0.5 <= probability < 1:
        raise ValueError(
            "`probability` must be at least 0.5 and below 1, for which the theorem is proved, but "
            f"is {probability:g}"
        )
    if network.d != problem.d:
        raise ValueError(
            f"the network has {network.d} features, but the problem has {problem.d}: use "
            f"DiagonalNetwork.init(alpha=..., d={problem.d})"
        )
    if is_concrete(network) and bool(jnp.any(network.log_ratio != 0)):
        raise ValueError(
            "the theorem is proved for a start at beta = 0, but w_+ and w_- of this network "
            "differ: use DiagonalNetwork.init(alpha=...)"
        )
    beta = minimum_l1(problem) if interpolator is None else _fitting(problem, interpolator)
    dtype, p = problem.dtype, 1 - probability
    log_alpha = network.log_alpha.astype(dtype)
    B = jnp.sum(jnp.abs(beta))
    log_m, square = 2 * jnp.min(log_alpha), jnp.sum(jnp.exp(2 * log_alpha))
    lam = jnp.linalg.eigvalsh(problem.X @ problem.X.T)[-1] / problem.n
    some = B > 0
    log_B = jnp.log(jnp.where(some, B, 1))
    a = jnp.where(some, jnp.maximum(B * (math.log(2) / 2 + log_B - log_m), square), square)
    level = math.log(4 / p)
    gamma = 1 / (STEP * level * lam * a)
    high = B / 4 * (math.log(RADIUS * math.sqrt(2)) + jnp.log(a) - log_m) + 2 * a
    chosen = select(problem, log_alpha).beta
    W = potential(chosen, log_alpha) - potential(jnp.zeros_like(chosen), log_alpha)
    W = jnp.maximum(W, 0)
    M = 2 * (RADIUS**2 + 1) * lam * jnp.square(a)
    safe = jnp.where(W > 0, W, 1)
    low = jnp.where(W > 0, safe / 4 / (1 + gamma * level * M / (2 * safe)), 0)
    ends = tuple(log_alpha - 2 * gamma * problem.h * S for S in (high, low))
    return Guarantee(
        step_size=gamma / problem.time_scale,
        l1_bound=RADIUS * a,
        integral=(low, high),
        log_alpha=ends,
        constants={"B": B, "lam": lam, "a": a, "b": level / (2 * a), "W": W, "M": M},
        probability=probability,
    )


def _fitting(problem: SparseRegression, interpolator: Any) -> Array:
    """The interpolator as an array, if it fits the data."""
    beta = as_float_array(interpolator, "interpolator").astype(problem.dtype)
    check_shape(beta, "interpolator", (problem.d,))
    check_finite(beta, "interpolator")
    if is_concrete((problem, beta)):
        gap = float(jnp.linalg.norm(problem.X @ beta - problem.y))
        scale = float(jnp.linalg.norm(jnp.abs(problem.X) @ jnp.abs(beta) + jnp.abs(problem.y)))
        if gap > 1e3 * float(jnp.finfo(problem.dtype).eps) * scale:
            raise ValueError(
                "`interpolator` must solve X beta = y, but its relative residual is "
                f"{gap / scale:.1e}; leave it out for the solution of smallest l1 norm"
            )
    return beta
