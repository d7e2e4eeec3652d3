"""Discrete algorithms that go on where the loss underflows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from sgfbias.core.algorithm import AbstractDescent
from sgfbias.core.checks import is_concrete
from sgfbias.core.trajectory import Status
from sgfbias.margin.degree import check_homogeneous
from sgfbias.margin.recorded import (
    UNITS,
    averaged,
    here,
    reason,
    values,
    warn_of_rounding,
)
from sgfbias.margin.rules import AbstractMarginRule, as_rule


class MarginDescent(AbstractDescent):
    """A discrete algorithm in a frame that moves with the loss: exactly what a program
    does while it can, and what it would do afterwards.

    Full batches only, on the mean loss. `Adam`, `Sign` and `RMSProp` take the step size
    as their learning rate, and agree with Optax's up to rounding as long as the loss is
    a float. `Identity` and `AdaGrad`, whose steps would vanish with the loss, take
    loss-scaled steps: the step size is the gain in nu that the first step intends. A
    step that gains less than half of what it intends is not taken, and the next one
    intends half of that; after every step that is taken the next one intends 15% more.
    A try that is not taken counts as an iteration.

    Recorded are `nu`, `log10_loss`, `q_min`, `hardest`, `margin_l2`, `margin_linf`, and
    `gap_l2`, `gap_linf` and `gap_metric` as for `MarginFlow`, with the gradient of nu
    averaged over about the last 50 iterations, `final["mean_gradient"]`.
    `final["conditioner"]` is h up to a factor that all weights share.

    **Arguments:**

    - `rule`: `Adam(b1, b2, eps)`, `Sign()`, `RMSProp(decay, eps)`, `AdaGrad(eps)` or
      `Identity()`.
    - `step_size`: positive, a number or a schedule.

    **Raises:** `ValueError` for a rule of another kind, for `batch_size`, and in
    `simulate` for a problem without labels of classes.
    """

    def __init__(self, rule: Any, step_size: Any = 1e-2, *, batch_size: Any = None):
        if batch_size is not None:
            raise ValueError(
                "MarginDescent takes full batches only, since its frame moves with the loss of all "
                f"examples, but batch_size={batch_size!r}: leave it out"
            )
        super().__init__(step_size, as_rule(rule))

    rule: AbstractMarginRule

    @property
    def references(self) -> Mapping[str, str]:
        """Keys of the bibliography -> what they are cited for."""
        return self.rule.references

    def suited(self, coordinates, network, problem):
        position = coordinates.encode(network)
        if is_concrete((position, problem)):
            check_homogeneous(coordinates, position, problem.inputs)
        return self

    def observables(self, network, problem, memory):
        at = here(network, problem, memory.average)
        log_loss = -(at.nu + jnp.log(jnp.asarray(problem.n, at.nu.dtype)))
        h = self.rule.conditioner(memory, log_loss)
        mean = averaged(memory.average, at.flat)
        return {**values(at, problem.n, h, mean), "mean_gradient": mean}

    def units(self):
        return UNITS

    def judge(self, status, final, end):
        warn_of_rounding(final["nu"], final["nu"].dtype)
        # The loss falls for ever, so no loss is one at which a run has converged.
        status = jnp.where(status == int(Status.CONVERGED), int(Status.MOVING), status)
        late = (status == int(Status.MOVING)) & ~(final["q_min"] > 0)
        return jnp.where(late, int(Status.STALLED), status)

    def explain(self, status, final):
        if status == Status.STALLED and not final["q_min"] > 0:
            return (
                f"stalled: the data are not fitted yet: q_min = {final['q_min']:.3g} for example "
                f"{int(final['hardest'])}; take more steps, unless nu = {final['nu']:.3g} no "
                "longer grows: the margin is defined once all examples are fitted"
            )
        return reason(status, final)
