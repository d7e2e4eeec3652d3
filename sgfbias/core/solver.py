"""Solvers of Itô equations that Diffrax does not have.

They take any Diffrax terms, of this package or others.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.polynomial import chebyshev


class _FrozenNoise(dfx.AbstractItoSolver):
    r"""A solver that evaluates the drift several times per step, and the noise once.

    The noise is evaluated at the start of a step, so that the equation remains Itô's.
    For the terms see `PredictorCorrector`.
    """

    term_structure: ClassVar[Any] = dfx.AbstractTerm
    interpolation_cls: ClassVar[Any] = dfx.LocalLinearInterpolation

    def order(self, terms):
        """The order without noise."""
        return 2

    def strong_order(self, terms):
        """The strong order with noise that does not commute."""
        return 0.5

    def init(self, terms, t0, t1, y0, args):
        """None, as the solver has no state."""
        return None

    def func(self, terms, t0, y0, args):
        """The vector field, if the terms have one."""
        return terms.vf(t0, y0, args)


class PredictorCorrector(_FrozenNoise):
    r"""$y^* = y + a(y) h + b(y) \Delta B$, then $y_1 = y + \frac12 (a(y) + a(y^*)) h +
    b(y) \Delta B$.

    Euler's step predicts, and then the drift is averaged over both ends (Kloeden,
    Platen 1992, section 15.5, with the noise not corrected, so that the equation
    remains Itô's). The strong order is 1/2 and the weak order 1, as for Euler. Errors
    are much smaller if the drift is stiff compared with the noise, as the method is
    Heun's without noise. It is stable up to the same step as Euler's, `h = 2 /` the
    largest curvature. It evaluates the drift twice per step.

    Terms are `MultiTerm(ODETerm(...), ControlTerm(...))`, an `ODETerm` alone, without
    noise, or one term that fuses drift and noise, such as those of this package's
    flows. A fused term has the methods `drift_and_noise(t, y, args, control)` and
    `drift_prod(t, y, args, control)`.
    """

    references: ClassVar[Mapping[str, str]] = {
        "kloeden1992": "the predictor-corrector scheme, section 15.5"
    }

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; no error estimate."""
        control = terms.contr(t0, t1)
        first, noise = _drift_and_noise(terms, t0, y0, args, control)
        predicted = jax.tree.map(lambda y, a, b: y + (a + b), y0, first, noise)
        second = _drift(terms, t1, predicted, args, control)
        y1 = jax.tree.map(lambda y, a, b: y + (b - a) / 2, predicted, first, second)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


class RungeKuttaChebyshev(_FrozenNoise):
    r"""The stabilised Runge-Kutta-Chebyshev method of second order, with noise.

    The drift is integrated by the method of Sommeijer, Shampine, Verwer 1998. The noise
    of a step, $b(y) \Delta B$, is a constant force in every stage. The strong order is
    1/2 and the weak order 1.

    With s stages it is stable up to `h = .65 (s^2 - 1) /` the largest eigenvalue of the
    Jacobian of the drift, whereas Euler and `PredictorCorrector` are stable up to 2 /
    that eigenvalue. Use it for small step sizes gamma, for which the stiffness of the
    drift, rather than the noise, limits the step. There a step can be 2.6 times (s = 3)
    or 4.9 times (s = 4) as long. Near the limit of stability in mean square, where
    noise and drift are of the same size, its damping makes means worse than those of
    `PredictorCorrector` at the same step.

    Terms are as for `PredictorCorrector`.

    **Arguments:**

    - `stages`: s, a whole number >= 2. The evaluations of the drift per step. Default
      3.

    **Raises:** `ValueError` unless `stages` is a whole number >= 2.
    """

    references: ClassVar[Mapping[str, str]] = {
        "sommeijer1998": "the stabilised Runge-Kutta-Chebyshev method"
    }
    stages: int = eqx.field(static=True, default=3)

    def __check_init__(self):
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or self.stages < 2:
            raise ValueError(f"`stages` must be a whole number >= 2, but is {self.stages!r}")

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; no error estimate."""
        first, rows = chebyshev_tableau(self.stages)
        control = terms.contr(t0, t1)
        drift, noise = _drift_and_noise(terms, t0, y0, args, control)
        # Without this barrier every stage would draw the random numbers again.
        noise = jax.lax.optimization_barrier(noise)
        whole = jax.tree.map(lambda a, b: a + b, drift, noise)
        before, now = y0, jax.tree.map(lambda y, w: y + first * w, y0, whole)
        for row in rows:
            force = jax.tree.map(lambda a, b: a + b, _drift(terms, t1, now, args, control), noise)
            after = jax.tree.map(row.combine, y0, now, before, force, whole)
            before, now = now, after
        return now, None, {"y0": y0, "y1": now}, None, dfx.RESULTS.successful


class _Stage(NamedTuple):
    """The weights of one stage.

    They multiply the last stage, the stage before it, the force at the last stage, and
    the force at the start.
    """

    last: float
    before: float
    force: float
    start: float

    def combine(self, y0: Array, now: Array, before: Array, force: Array, first: Array) -> Array:
        """The next stage, in which `y0` and the last two stages have total weight 1."""
        return (
            (1 - self.last - self.before) * y0
            + self.last * now
            + self.before * before
            + self.force * force
            + self.start * first
        )


@functools.cache
def chebyshev_tableau(stages: int) -> tuple[float, tuple[_Stage, ...]]:
    """The length of the first stage, and the weights of the s - 1 others.

    They come from shifted Chebyshev polynomials, which are scaled so that they agree
    with the exponential to second order, and stay below 1 - damping / 3 on the longest
    possible interval (Sommeijer, Shampine, Verwer 1998, section 2, damping 2/13).
    """
    place = 1 + 2 / 13 / stages**2
    T, slope, curvature = (
        [
            float(chebyshev.chebval(place, chebyshev.chebder(np.eye(stages + 1)[j], m)))
            for j in range(stages + 1)
        ]
        for m in (0, 1, 2)
    )
    scale = slope[stages] / curvature[stages]
    b = [curvature[max(j, 2)] / slope[max(j, 2)] ** 2 for j in range(stages + 1)]
    rows = []
    for j in range(2, stages + 1):
        force = 2 * b[j] * scale / b[j - 1]
        rows.append(
            _Stage(
                2 * b[j] * place / b[j - 1],
                -b[j] / b[j - 2],
                force,
                -(1 - b[j - 1] * T[j - 1]) * force,
            )
        )
    return b[1] * scale, tuple(rows)


def _drift(terms: Any, t: Array, y: Any, args: Any, control: Any) -> Any:
    """The drift over a step."""
    terms = _unwrapped(terms)
    if isinstance(terms, dfx.MultiTerm):
        return terms.terms[0].vf_prod(t, y, args, control[0])
    if isinstance(terms, dfx.ODETerm):
        return terms.vf_prod(t, y, args, control)
    return terms.drift_prod(t, y, args, control)


def _drift_and_noise(terms: Any, t: Array, y: Any, args: Any, control: Any) -> tuple[Any, Any]:
    """The drift and the noise over a step."""
    terms = _unwrapped(terms)
    if isinstance(terms, dfx.MultiTerm):
        return tuple(
            term.vf_prod(t, y, args, part) for term, part in zip(terms.terms, control, strict=True)
        )
    if isinstance(terms, dfx.ODETerm):
        drift = terms.vf_prod(t, y, args, control)
        return drift, jax.tree.map(jnp.zeros_like, drift)
    return terms.drift_and_noise(t, y, args, control)


def _unwrapped(terms: Any) -> Any:
    """The terms without Diffrax's wrapper for the direction of time, here forwards."""
    while hasattr(terms, "term"):
        terms = terms.term
    return terms


OURS = {solver.__name__: solver for solver in (PredictorCorrector, RungeKuttaChebyshev)}
