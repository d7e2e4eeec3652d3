"""What theory predicts: pure functions of arrays, each tested against a closed form."""

from __future__ import annotations

from typing import Any


def stationary_variance(step_size: Any, variance: Any) -> Any:
    """The variance of w in the long run, under SGD with batches of one example.

    One step maps the variance v to `(1 - gamma)^2 v + gamma^2 s^2`, with s^2 the
    variance of the targets, so the fixed point is `gamma s^2 / (2 - gamma)`.

    **Arguments:**

    - `step_size`: gamma, above 0 and below 2.
    - `variance`: s^2, the mean squared distance of the targets from their mean.
    """
    return step_size * variance / (2 - step_size)


def flow_variance(step_size: Any, variance: Any) -> Any:
    """The same for the stochastic flow: `gamma s^2 / 2`, which SGD has as gamma -> 0.

    The flow is the Ornstein-Uhlenbeck process
    `dw = -(w - mean y) dt + sqrt(gamma) s dB` (Li, Tai, E 2017). The
    arguments are those of `stationary_variance`.
    """
    return step_size * variance / 2
