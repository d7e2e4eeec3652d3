"""Solvers of Itô equations that Diffrax does not have. They take any Diffrax terms, here or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import diffrax as dfx
import jax
from jaxtyping import Array


class PredictorCorrector(dfx.AbstractItoSolver):
    r"""Euler's step predicts, and the drift is averaged over both ends: $y^* = y + a(y) h + b(y) \Delta B$, then
    $y_1 = y + \frac12 (a(y) + a(y^*)) h + b(y) \Delta B$.

    Strong order 1/2 and weak order 1 as Euler's (Kloeden, Platen 1992, section 15.5, with the noise not corrected, so that the equation stays
    Itô's), with much smaller errors where the drift is stiff beside the noise: Heun's method without noise, stable to the same step, `h = 2 /`
    the largest curvature. Costs two evaluations of the drift per step.

    Terms: one that fuses drift and noise and has a method `drift_prod(t, y, args, control)`, such as those of this package's flows; or
    `MultiTerm(ODETerm(...), ControlTerm(...))`.
    """

    references: ClassVar[Mapping[str, str]] = {"kloeden1992": "the predictor-corrector scheme, section 15.5"}
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

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; no error estimate."""
        control = terms.contr(t0, t1)
        whole = terms.vf_prod(t0, y0, args, control)
        first = _drift(terms, t0, y0, args, control)
        predicted = jax.tree.map(lambda y, w: y + w, y0, whole)
        second = _drift(terms, t1, predicted, args, control)
        y1 = jax.tree.map(lambda y, w, a, b: y + w + (b - a) / 2, y0, whole, first, second)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The vector field, where there is one."""
        return terms.vf(t0, y0, args)


def _drift(terms: Any, t: Array, y: Any, args: Any, control: Any) -> Any:
    """The drift over a step. Diffrax wraps the terms it is given, which run forwards here."""
    while hasattr(terms, "term"):
        terms = terms.term
    if isinstance(terms, dfx.MultiTerm):
        return terms.terms[0].vf_prod(t, y, args, control[0])
    return terms.drift_prod(t, y, args, control)
