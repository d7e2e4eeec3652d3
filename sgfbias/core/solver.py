"""Solvers of Itô equations that Diffrax does not have. They take any Diffrax terms, here or elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array
from numpy.polynomial import chebyshev


class _FrozenNoise(dfx.AbstractItoSolver):
    r"""Solvers that hold the noise at what it is at the start of a step, which keeps the equation Itô's, and move the drift in several passes.

    Terms: `MultiTerm(ODETerm(...), ControlTerm(...))`, or one that fuses drift and noise, such as those of this package's flows, and has the methods
    `drift_and_noise(t, y, args, control)` and `drift_prod(t, y, args, control)`.
    """

    term_structure: ClassVar[Any] = dfx.AbstractTerm
    interpolation_cls: ClassVar[Any] = dfx.LocalLinearInterpolation

    def order(self, terms):
        """Without noise."""
        return 2

    def strong_order(self, terms):
        """With noise that does not commute."""
        return 0.5

    def init(self, terms, t0, t1, y0, args):
        """No state."""
        return None

    def func(self, terms, t0, y0, args):
        """The vector field, where there is one."""
        return terms.vf(t0, y0, args)


class PredictorCorrector(_FrozenNoise):
    r"""Euler's step predicts, and the drift is averaged over both ends: $y^* = y + a(y) h + b(y) \Delta B$, then
    $y_1 = y + \frac12 (a(y) + a(y^*)) h + b(y) \Delta B$.

    Strong order 1/2 and weak order 1 as Euler's (Kloeden, Platen 1992, section 15.5, with the noise not corrected, so that the equation stays
    Itô's), with much smaller errors where the drift is stiff beside the noise: Heun's method without noise, stable to the same step, `h = 2 /`
    the largest curvature. Costs two evaluations of the drift per step.

    Terms: `MultiTerm(ODETerm(...), ControlTerm(...))`, or one that fuses drift and noise, such as those of this package's flows, and has the methods
    `drift_and_noise(t, y, args, control)` and `drift_prod(t, y, args, control)`.
    """

    references: ClassVar[Mapping[str, str]] = {"kloeden1992": "the predictor-corrector scheme, section 15.5"}

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; no error estimate."""
        control = terms.contr(t0, t1)
        first, noise = _drift_and_noise(terms, t0, y0, args, control)
        predicted = jax.tree.map(lambda y, a, b: y + (a + b), y0, first, noise)
        second = _drift(terms, t1, predicted, args, control)
        y1 = jax.tree.map(lambda y, a, b: y + (b - a) / 2, predicted, first, second)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


class RungeKuttaChebyshev(_FrozenNoise):
    r"""The stabilised method of second order of Sommeijer, Shampine, Verwer 1998 for the drift, with the noise of a step, $b(y) \Delta B$, as a
    constant force in every stage.

    s stages are stable to `h = .65 (s^2 - 1) /` the largest eigenvalue of the drift's Jacobian, where Euler and `PredictorCorrector` end at 2: for small
    step sizes gamma, where the drift's stiffness limits the step rather than the noise, a step 2.6 times (s = 3) or 4.9 times (s = 4) as long. Strong
    order 1/2 and weak order 1. Near the edge of stability in mean square, where noise and drift are of one size, its damping makes means
    worse than those of `PredictorCorrector` at the same step.

    Terms as for `PredictorCorrector`.

    **Arguments:** `stages`: s >= 2, evaluations of the drift per step.

    **Raises:** `ValueError` unless `stages` is a whole number >= 2.
    """

    references: ClassVar[Mapping[str, str]] = {"sommeijer1998": "the stabilised Runge-Kutta-Chebyshev method"}
    stages: int = eqx.field(static=True, default=3)

    def __check_init__(self):
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or self.stages < 2:
            raise ValueError(f"`stages` must be a whole number >= 2, but is {self.stages!r}")

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; no error estimate."""
        first, rows = chebyshev_tableau(self.stages)
        control = terms.contr(t0, t1)
        drift, noise = _drift_and_noise(terms, t0, y0, args, control)
        noise = jax.lax.optimization_barrier(noise)  # else its random numbers are drawn again in every stage
        whole = jax.tree.map(lambda a, b: a + b, drift, noise)
        before, now = y0, jax.tree.map(lambda y, w: y + first * w, y0, whole)
        for row in rows:
            force = jax.tree.map(lambda a, b: a + b, _drift(terms, t1, now, args, control), noise)
            after = jax.tree.map(row.combine, y0, now, before, force, whole)
            before, now = now, after
        return now, None, {"y0": y0, "y1": now}, None, dfx.RESULTS.successful


class _Stage(NamedTuple):
    """Weights of the last two stages, of the force at the last one and of the force at the start."""

    last: float
    before: float
    force: float
    start: float

    def combine(self, y0: Array, now: Array, before: Array, force: Array, first: Array) -> Array:
        return (1 - self.last - self.before) * y0 + self.last * now + self.before * before + self.force * force + self.start * first


@functools.cache
def chebyshev_tableau(stages: int) -> tuple[float, tuple[_Stage, ...]]:
    """Length of the first stage and the rows of the others, s - 1 of them (Sommeijer, Shampine, Verwer 1998, section 2, damping 2/13).

    Shifted Chebyshev polynomials, scaled so that they agree with the exponential to second order and stay below 1 - damping / 3 as long as they can.
    """
    place = 1 + 2 / 13 / stages**2
    T, slope, curvature = (
        [float(chebyshev.chebval(place, chebyshev.chebder(np.eye(stages + 1)[j], m))) for j in range(stages + 1)] for m in (0, 1, 2)
    )
    scale = slope[stages] / curvature[stages]
    b = [curvature[max(j, 2)] / slope[max(j, 2)] ** 2 for j in range(stages + 1)]
    rows = []
    for j in range(2, stages + 1):
        force = 2 * b[j] * scale / b[j - 1]
        rows.append(_Stage(2 * b[j] * place / b[j - 1], -b[j] / b[j - 2], force, -(1 - b[j - 1] * T[j - 1]) * force))
    return b[1] * scale, tuple(rows)


def _drift(terms: Any, t: Array, y: Any, args: Any, control: Any) -> Any:
    """The drift over a step."""
    terms = _unwrapped(terms)
    if isinstance(terms, dfx.MultiTerm):
        return terms.terms[0].vf_prod(t, y, args, control[0])
    return terms.drift_prod(t, y, args, control)


def _drift_and_noise(terms: Any, t: Array, y: Any, args: Any, control: Any) -> tuple[Any, Any]:
    terms = _unwrapped(terms)
    if isinstance(terms, dfx.MultiTerm):
        return tuple(term.vf_prod(t, y, args, part) for term, part in zip(terms.terms, control, strict=True))
    return terms.drift_and_noise(t, y, args, control)


def _unwrapped(terms: Any) -> Any:
    """Diffrax wraps the terms it is given, which run forwards here."""
    while hasattr(terms, "term"):
        terms = terms.term
    return terms


OURS = {solver.__name__: solver for solver in (PredictorCorrector, RungeKuttaChebyshev)}
