"""Steps of a flow that are controlled by what they gain, not by an error estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_float
from sgfbias.core.dynamics import as_tolerance as positive

# The first step of a run without a given width, as a fraction of the run.
FIRST = 1e-2
# A step below this fraction of the run that gains nothing ends it.
SHORTEST = 1e-13
# The accuracy, as a fraction of the run, at which a clock that is measured reaches the
# end.
RESOLUTION = 1e-7


class _State(NamedTuple):
    """What a controller remembers.

    - `value`: the objective at the start of the next step.
    - `first`: the objective at the start of the run.
    - `begin`, `end`: of the run.
    """

    value: Array
    first: Array
    begin: Array
    end: Array


class GainController(dfx.AbstractStepSizeController):
    r"""A step $y_0 \to y_1$ is kept if $F(y_1) - F(y_0) \ge s\, \langle \nabla F(y_0),
    y_1 - y_0 \rangle$.

    This is a step-size controller of Diffrax that looks at the gain of an objective F.
    A step that gains less than the share s of what the slope at its start promises is
    rejected, and tried again with half the width. After one that is kept, the width
    grows a little. It is meant for models with kinks, such as ReLU networks, whose
    gradient jumps: an error estimate does not see that a step slides along a kink and
    gains nothing. For smooth models the solvers that control their error follow the
    flow far more accurately.

    `GradientFlow(control=GainController())` uses it for minus the loss.

    **Arguments:**

    - `objective`: F, a function of what moves to a number that is to grow. In
      `simulate` it is a function of the network, by default minus the loss, with the
      penalty. In `diffrax.diffeqsolve` it is a function of the state.
    - `share`: s, in (0, 1). Default 0.5.
    - `shrink`: in (0, 1), the factor of the width after a rejected step. Default 0.5.
    - `grow`: at least 1, the factor after a step that is kept. Default 1.15.
    - `first`: the width of the first step. Default: a hundredth of the run.
    - `widest`: the largest width. Default: none.
    - `clock`: whether time is meant to be F itself, as for a flow that is parametrised
      by its objective. Then the gain that is promised is the width, and after every
      step time continues from what F reads, so that both agree on the whole run. Values
      at times inside a step are interpolated.

    **Raises:** `ValueError` for arguments out of these ranges.
    """

    objective: Callable[[Any], Array] | None
    view: Callable[[Any], Any] | None
    share: float = eqx.field(static=True)
    shrink: float = eqx.field(static=True)
    grow: float = eqx.field(static=True)
    first: float | None = eqx.field(static=True)
    widest: float | None = eqx.field(static=True)
    clock: bool = eqx.field(static=True)

    def __init__(
        self,
        objective: Any = None,
        *,
        share: Any = 0.5,
        shrink: Any = 0.5,
        grow: Any = 1.15,
        first: Any = None,
        widest: Any = None,
        clock: bool = False,
    ):
        if objective is not None and not callable(objective):
            raise ValueError(
                "`objective` must be a function of the network that returns a number, but is "
                f"{objective!r}"
            )
        for value, name in ((share, "share"), (shrink, "shrink")):
            if not 0 < as_float(value, name) < 1:
                raise ValueError(f"`{name}` must be above 0 and below 1, but is {value}")
        if not as_float(grow, "grow") >= 1:
            raise ValueError(f"`grow` must be at least 1, but is {grow}")
        self.objective, self.view = objective, None
        self.share, self.shrink, self.grow = float(share), float(shrink), float(grow)
        self.first, self.widest = (
            None if width is None else positive(width, name)
            for width, name in ((first, "first"), (widest, "widest"))
        )
        self.clock = clock

    def watching(
        self, view: Callable[[Any], Any], default: Callable[[Any], Array]
    ) -> GainController:
        """The same controller for states of which `view` gives what the objective is a
        function of. `default` is the objective if the user gave none.
        """
        objective = default if self.objective is None else self.objective
        return eqx.tree_at(
            lambda c: (c.objective, c.view), self, (objective, view), is_leaf=lambda x: x is None
        )

    def value(self, y: Any) -> Array:
        """The objective of a state.

        **Raises:** `ValueError` for a controller without an objective.
        """
        if self.objective is None:
            raise ValueError(
                "GainController has no objective: give a function of the state, "
                "GainController(objective)"
            )
        found = jnp.asarray(self.objective(y if self.view is None else self.view(y)))
        if found.shape != ():
            raise ValueError(
                f"the objective of GainController must be one number, but has shape {found.shape}"
            )
        return found

    def wrap(self, direction):
        """The controller itself, as it only goes forwards."""
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """The end of the first step, and what is remembered."""
        value = self.value(y0)
        first = self.first if dt0 is None else dt0
        width = FIRST * (t1 - t0) if first is None else jnp.asarray(first, t0.dtype)
        return t0 + self._capped(width), _State(value, value, t0, t1)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, state):
        """Whether to keep the step, and the next one."""
        width, span = t1 - t0, state.end - state.begin
        value = self.value(y1_candidate)
        gain, promised = value - state.value, width
        if not self.clock:
            change = jax.tree.map(jnp.subtract, y1_candidate, y0)
            _, promised = jax.jvp(self.value, (y0,), (change,))
        # The gain is known up to rounding only.
        noise = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y1_candidate)]
        keep = (gain >= self.share * promised - noise) & jnp.all(jnp.stack(finite))
        after = t1
        if self.clock:
            read = state.begin + (value - state.first).astype(t1.dtype)
            # The end is reached by a step that ends there, so that it is recorded.
            short = state.end - RESOLUTION * span
            done = (t1 >= state.end) & (read >= short)
            after = jnp.maximum(t0, jnp.where(done, state.end, jnp.minimum(read, short)))
        start = jnp.where(keep, after, t0)
        following = self._capped(width * jnp.where(keep, self.grow, self.shrink))
        failed = ~keep & (following < SHORTEST * span)
        result = dfx.RESULTS.where(failed, dfx.RESULTS.dt_min_reached, dfx.RESULTS.successful)
        kept = state._replace(value=jnp.where(keep, value, state.value))
        return keep, start, start + following, False, kept, result

    def _capped(self, width: Array) -> Array:
        return width if self.widest is None else jnp.minimum(width, self.widest)
