r"""The evolution law of the weights along the momentum flow
$\lambda \ddot w + \dot w + \nabla L(w) = 0$, and step sizes that correspond to a given
lambda.

Papazov, Pesme, Flammarion 2024 (arXiv 2403.05293). With `s = w'/w`, each weight
satisfies `log w(t) = log w(0) + int force dt - lambda int s^2 dt - lambda s(t)`. The
forces on w_+ and w_- are opposite and lie in the row space. So no force enters
`log(w_+ w_-)`, and the part of `log(w_+/w_-)` that leaves the row space is the offset.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.interpolate import CubicSpline

from sgfbias.core.flow import MomentumFlow


class MomentumLaw(NamedTuple):
    """The predictions of the evolution law for a run, and how well the run follows it,
    feature by feature.

    - `log_alpha`, `offset`: (d,). The predictions at the end of the run.
    - `gap`: (d,). The largest deviation at any time of `log(w_+ w_-)` from its
      evolution law.
    - `crossings`: (d,), of bool. Whether a weight goes through 0, beyond which the law
      says nothing.
    """

    log_alpha: Float[np.ndarray, " d"]
    offset: Float[np.ndarray, " d"]
    gap: Float[np.ndarray, " d"]
    crossings: Bool[np.ndarray, " d"]


def momentum_law(
    times: Float[np.ndarray, " times"], logs: Float[np.ndarray, "times 2 d"], lam: Any
) -> MomentumLaw:
    """The evolution law of the momentum flow along a run, computed by splines from the
    recorded weights alone.

    **Arguments:**

    - `times`: (times,), from 0, where s = 0. The flow times of the records.
    - `logs`: (times, 2, d). `log|w_+|` and `log|w_-|`.
    - `lam`: lambda of the flow.
    """
    # The records are log-spaced in time, and the shortest scale is about lambda.
    clock = np.log(times + lam / 2)
    speed = CubicSpline(clock, logs, axis=0)(clock, 1) / (times + lam / 2)[:, None, None]
    squares = CubicSpline(times, np.square(speed), axis=0).antiderivative()(times)
    lost = lam * (squares + speed)
    mean = logs[0].mean(axis=0)[None] - lost.mean(axis=1)
    # If w crosses zero between two records, |w| changes by a factor of 3 from one
    # record to the next, wherever between them the zero lies.
    jumps = np.max(np.abs(np.diff(logs, axis=0)), axis=(0, 1))
    return MomentumLaw(
        mean[-1],
        lost[-1, 1] - lost[-1, 0],
        np.max(np.abs(logs.sum(axis=1) - 2 * mean), axis=0),
        jumps > 0.5,
    )


def step_size_following(lam: float, momentum: float, *, nesterov: bool) -> float:
    """The step size gamma with which heavy ball, or Nesterov's method, follows the
    momentum flow of this lambda according to `MomentumFlow.following`.
    """
    return lam / float(MomentumFlow.following(1.0, momentum, nesterov=nesterov).lam)
