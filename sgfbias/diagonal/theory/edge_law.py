"""How residuals move near a solution under every dynamics that has a stability edge,
and the gains with which noise becomes second moments, see `theory.edge`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sgfbias.core.algorithm import AbstractDescent
from sgfbias.core.checks import shown
from sgfbias.core.descent import SVAG, GradientDescent, StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.noise import (
    AbstractNoise,
    MeanLossNoise,
    MinibatchNoise,
    NoNoise,
    PerSampleNoise,
    SumOfNoises,
)
from sgfbias.core.sampling import RandomReshuffling, WithReplacement, is_independent
from sgfbias.diagonal.theory.landing_law import law_of_batches, law_of_noise
from sgfbias.diagonal.theory.moments import NoiseLaw


class Motion(NamedTuple):
    """How residuals move near a solution, for a step size of 1 at loss scale 1/4.

    - `law`: the law of the noise, whose coefficients are proportional to the step size.
    - `momentum`, `nesterov`: of a discrete algorithm.
    - `second`: whether the drift is that of the second-order modified equation.
    - `discrete`: whether it is an algorithm.
    - `words`: what moves, for people.
    """

    law: NoiseLaw
    momentum: float
    nesterov: bool
    second: bool
    discrete: bool
    words: str

    def gains(self, lam: np.ndarray, n: int, gamma: float) -> np.ndarray | None:
        """The matrix G (k, k) of `theory.edge` at the step size `gamma`, or
        None where already the mean of the residuals does not fall.
        """
        mu = 2 * lam / n
        width, cross = gamma * float(self.law.width), gamma * float(self.law.cross)
        if self.second:
            mu = mu + gamma * mu**2 / 2
        product = 16 * lam[:, None] * lam[None, :]
        if self.momentum > 0:
            inverse = two_step(gamma * mu, self.momentum, self.nesterov)
            if inverse is None:
                return None
            inverse = inverse / gamma
        else:
            if width * mu[-1] >= 2:
                return None
            inverse = mu[:, None] + mu[None, :] - width * mu[:, None] * mu[None, :]
        return product / (inverse + cross * product)


def motion_of(dynamics: Any, n: int) -> Motion:
    """How residuals move near a solution under `dynamics`, or under the flow in exact
    time with a noise model.

    **Raises:** `ValueError` for everything else, with the reason.
    """
    unit = jnp.ones(())
    if isinstance(dynamics, AbstractNoise):
        dynamics.check(n)
        return Motion(_noise_law(dynamics, unit, n), 0.0, False, False, False, _flow(dynamics))
    if isinstance(dynamics, StochasticGradientFlow):
        if dynamics.is_scheduled:
            raise ValueError(_SCHEDULE)
        dynamics.check(n)
        law = _noise_law(dynamics.noise, unit, n)
        gamma = float(dynamics.step_size)
        share = 1.0 if dynamics.dt is None else float(dynamics.dt) / gamma
        words = f"{_flow(dynamics.noise)}, Euler's steps of {share:g} times the step size"
        law = law._replace(width=share * unit)
        return Motion(law, 0.0, False, dynamics.order == 2, False, words)
    if not isinstance(dynamics, AbstractDescent):
        raise ValueError(
            "a stability edge is the step size of a stochastic flow or of a discrete algorithm: "
            "`dynamics_or_noise` must be a noise model such as MeanLossNoise(), a "
            "StochasticGradientFlow, GradientDescent, StochasticGradientDescent or SVAG, but is "
            f"{shown(dynamics)}"
        )
    name = type(dynamics).__name__
    if not isinstance(dynamics, GradientDescent | StochasticGradientDescent | SVAG):
        raise ValueError(
            f"the second moments under {name} are not derived, because its transformation of the "
            "gradient need not be linear in it: use StochasticGradientDescent, or try step sizes"
        )
    if dynamics.project is not None:
        raise ValueError(
            f"the second moments under {name} with `project` are not derived: leave it out"
        )
    if not is_independent(dynamics.sampling) and not isinstance(
        dynamics.sampling, RandomReshuffling
    ):
        raise ValueError(
            f"the second moments under {type(dynamics.sampling).__name__} are not derived: an edge "
            "is for batches of a given size that are independent of each other"
        )
    if not is_independent(dynamics.sampling):
        raise ValueError(
            "the second moments under random reshuffling are not derived, because the batches of "
            "an epoch depend on each other: use sampling='without_replacement', whose batches "
            "have the same size and are independent"
        )
    if callable(dynamics.step_size):
        raise ValueError(_SCHEDULE)
    if dynamics.label_noise is not None:
        raise ValueError(_LABELS)
    dynamics.check(n)
    momentum = 0.0 if dynamics.momentum is None else float(dynamics.momentum)
    law = law_of_batches(dynamics, unit, n)
    return Motion(law, momentum, bool(dynamics.nesterov), False, True, _algorithm(dynamics))


_SCHEDULE = (
    "a stability edge belongs to one step size, but step_size is a schedule: give a constant one "
    "(its value does not matter), and compare the edge with the schedule's values"
)
_LABELS = (
    "label noise is on, so second moments never fall to 0: give the dynamics without it, whose "
    "edge is also the one below which second moments under label noise stay bounded"
)


def _noise_law(noise: AbstractNoise, unit: Any, n: int) -> NoiseLaw:
    parts = noise.parts if isinstance(noise, SumOfNoises) else (noise,)
    for part in parts:
        if not isinstance(part, NoNoise | MeanLossNoise | PerSampleNoise | MinibatchNoise):
            if type(part).__name__ == "LabelNoise":
                raise ValueError(_LABELS)
            raise ValueError(
                f"the second moments under {type(part).__name__} are not derived: an edge needs a "
                "noise whose covariance on the examples is quadratic in the residuals, which "
                "mean-loss, per-sample and minibatch noise have"
            )
    return law_of_noise(parts, unit, n)


def _flow(noise: AbstractNoise) -> str:
    parts = noise.parts if isinstance(noise, SumOfNoises) else (noise,)
    return "flow with " + " + ".join(type(part).__name__ for part in parts)


def _algorithm(dynamics: AbstractDescent) -> str:
    words = "gradient descent"
    if dynamics.sampling is not None:
        words = f"{'SVAG' if dynamics.l > 1 else 'SGD'} in batches of {int(dynamics.batch_size)}"
        words += "" if type(dynamics.sampling) is WithReplacement else " without replacement"
    if dynamics.momentum is not None:
        method = "Nesterov's" if dynamics.nesterov else "heavy-ball"
        words += f", {method} momentum {float(dynamics.momentum):g}"
    return words


def two_step(a: np.ndarray, b: float, nesterov: bool) -> np.ndarray | None:
    """1/g (k, k) of heavy ball or of Nesterov's method, for `a = gamma mu` and the
    momentum b, or None where the recursion of the mean is unstable.
    """
    one, other = a[:, None], a[None, :]
    if not nesterov:
        if a[-1] >= 2 * (1 + b):
            return None
        denominator = b * (one - other) ** 2 + (1 - b) ** 2 * (
            (1 + b) * (one + other) - one * other
        )
        return denominator / (1 - b**2)
    if a[-1] >= 2 * (1 + b) / (1 + 2 * b):
        return None
    # The recursion r' = s r - q r_before, driven by (1 + b) c - b c_before.
    s, t, q, p = (1 + b) * (1 - one), (1 + b) * (1 - other), b * (1 - one), b * (1 - other)
    determinant = 1 - s * t + p * (s**2 - 2 * q) + q * t**2 - p * q * s * t + (p * q) ** 2
    numerator = ((1 + b) ** 2 + b**2) * (1 - p * q) - b * (1 + b) * (s - q * t + t - p * s)
    return determinant / numerator
