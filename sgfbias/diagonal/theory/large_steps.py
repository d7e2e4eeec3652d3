"""Gradient descent and SGD at large step sizes: the exact evolution of gain and offset
step by step, in the weights and with the gain of the paper.

Even, Pesme, Gunasekar, Flammarion 2023: `beta = u v` under `1/(2n) sum r_i^2` from
`u = sqrt(2) alpha`, `v = 0` converges to the minimiser of the potential at
`alpha_inf^2 = alpha^2 exp(-gain)`, displaced by an offset. This is `DiagonalNetwork`
from `alpha / sqrt(2)` under `1/(4n) sum r_i^2` at the same step size, where the gain is
`2 log(alpha / alpha_inf)`. This module does not use that network.
"""

from __future__ import annotations

import numpy as np


def recursion(
    X: np.ndarray,
    y: np.ndarray,
    gamma: np.ndarray,
    alpha: float,
    steps: int,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The iteration written out: beta, gain and offset of m runs after `steps` steps.

    Each step is `u <- u - gamma v g`, `v <- v - gamma u g` with
    `g = grad_beta 1/(2n) sum r_i^2`. The gain is computed by its definition (theorem
    1), `sum_k q(gamma g_k)` with `q(x) = -1/2 ln((1 - x^2)^2)`. The offset is
    `sum_k ln|(1 - x)/(1 + x)| + 2 x` with `x = gamma g_k`; it is what the steps leave
    outside the row space.

    **Arguments:**

    - `X`: (m, n, d). The inputs of every run.
    - `y`: (m, n). The targets of every run.
    - `gamma`: (m,). The step size of every run.
    - `alpha`: the scale of the initialisation in the convention of the paper.
    - `steps`: number of steps.
    - `rng`: draws one example per run and step, for SGD with batches of one. Without it
      the full gradient is used.

    **Returns:** beta, gain and offset, each (m, d). They are not finite where a run
    diverged.
    """
    m, n, d = X.shape
    u, v = np.full((m, d), np.sqrt(2) * alpha), np.zeros((m, d))
    gain, offset, lane = np.zeros((m, d)), np.zeros((m, d)), np.arange(m)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(steps):
            if rng is None:
                g = np.einsum("mnd,mn->md", X, np.einsum("mnd,md->mn", X, u * v) - y) / n
            else:
                one = rng.integers(0, n, m)
                x = X[lane, one]
                g = x * (np.sum(x * u * v, axis=1) - y[lane, one])[:, None]
            x = gamma[:, None] * g
            gain -= np.log(np.square(1 - np.square(x))) / 2
            offset += np.log(np.abs((1 - x) / (1 + x))) + 2 * x
            u, v = u - v * x, v - u * x
    return u * v, gain, offset


def first_unevenness(n: int, sparsity: int) -> tuple[float, float]:
    """The mean squared gradient at beta = 0 on the support of the truth, divided by
    that off the support: `(n + 1)/s + 1` for the full batch and `1 + 2/s` for one
    example.

    These are Gaussian moments, for standard normal inputs, n examples, and a truth with
    s independent standard normal entries.
    """
    return (n + 1) / sparsity + 1, 1 + 2 / sparsity
