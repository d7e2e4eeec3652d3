"""The conditioned flow by the clock nu, which follows a run to any loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_whole, is_concrete
from sgfbias.core.dynamics import AbstractDeterministicFlow, as_tolerance
from sgfbias.core.gain import GainController
from sgfbias.core.references import merge
from sgfbias.core.trajectory import Status
from sgfbias.margin.conditioners import AbstractConditioner, Identity, Moment
from sgfbias.margin.degree import check_homogeneous
from sgfbias.margin.geometry import norm
from sgfbias.margin.kinks import KinkEuler, has_kinks
from sgfbias.margin.objective import check_classification, nu_and_gradient
from sgfbias.margin.recorded import (
    UNITS,
    averaged,
    here,
    over,
    reason,
    values,
    warn_of_rounding,
)

# The largest state for which an implicit solver is the default.
LARGEST_IMPLICIT = 600
# The relative difference of nu and the clock beyond which a run is not to be trusted.
CLOCK_ERROR = 1e-3
# The width in nu of the first step on a model with kinks.
FIRST_STEP = 0.05
# The largest width in nu on such a model, so that the path is that of the flow.
WIDEST_STEP = 0.1
# The steps after which a run gives up. Those on a model with kinks are short and cheap.
MOST_STEPS = 200_000
MOST_STEPS_AT_KINKS = 2_000_000


class Memory(NamedTuple):
    """The inner state of a `MarginFlow`.

    - `squares`: b of the conditioner, like the position; of leaves without entries if
      nothing is remembered.
    - `time`: `t e^(-nu) / (n sqrt(eps))`, with the flow time t.
    - `average`: the gradient of nu, averaged over about the last 50 steps, for models
      with kinks. Otherwise like the position, of leaves without entries.
    """

    squares: Any
    time: Array
    average: Any


class MarginFlow(AbstractDeterministicFlow):
    r"""$\frac{dw}{d\nu} = \frac{h\,G}{\sum_k h_k G_k^2}$, with $G = \nabla \nu$ and
    $\nu = -\log \sum_i l_i$.

    This is the flow $\dot w = -h \nabla L$ by another clock: nu instead of the flow
    time, so that `t1` and the recorded times are values of nu. `t1=2302.6` is a sum of
    losses of 1e-1000. The flow time is the series `log_time`. Nothing underflows.

    Recorded are

    - `nu`, computed from the weights; `log10_loss`, of the mean loss; `log_time`.
    - `q_min`, the least margin, and `hardest`, the number of its example.
    - `margin_l2`, `margin_linf`: the normalised margins `q_min / |w|^L`.
    - `surrogate_margin`: `nu / |h^(-1/2) w|^L`.
    - `gap_l2`, `gap_linf`, `gap_metric`: the alignment gaps, see `certify`.
    - `loss_time_speed`: `L t N` with `N = sum_k h_k G_k^2`, which tends to 1.

    `final["conditioner"]` is h, flat in the order of the trainable arrays.

    Models that are smooth in their parameters, such as linear ones, products and powers
    of ReLU above 1, are followed by a solver that controls its error. Along the kinks
    of ReLU networks such a solver slides, and its clock runs ahead of nu. So on models
    with kinks, which are recognised by jumps of their derivatives, the steps are
    Euler's, and a `GainController` keeps those that gain at least half of the nu that
    they promise. The clock is then nu as it is measured after every step. There

    - the gaps are those of the gradient of nu averaged over about the last 50 steps,
      `final["mean_gradient"]`, since the gradient itself jumps between the pieces that
      meet at a kink.
    - recorded values are interpolated inside a step, so the series `nu` may differ from
      the recorded time by a part of a step. `log_time` is right up to a constant below
      log 2.

    **Arguments:**

    - `conditioner`: `Identity()`, which is the default, `AdaGrad(eps)`,
      `RMSProp(decay, eps)` or `AdamNoMomentum(decay, eps)`.
    - `rtol`, `atol`: tolerances of the adaptive solver, as in `GradientFlow`. The
      solver is the implicit Kvaerno3 up to 600 numbers in float64, otherwise Tsit5.
      They are not used on models with kinks.
    - `most_steps`: the number of solver steps after which a run gives up. Default:
      200,000, and 2,000,000 on models with kinks, where a step is at most 0.1 wide in
      nu, or 0.01 for the averages of `RMSProp` and `AdamNoMomentum`.
    - `kinks`: whether the model has kinks. Default: it is looked at. While derivatives
      are taken, that is not possible, and the default is False.

    **Raises:** `ValueError` for a conditioner of another kind; in `simulate`, for a
    problem without labels of classes, and for a model that is not homogeneous.
    """

    conditioner: AbstractConditioner
    budget: int | None = eqx.field(static=True)
    kinks: bool | None = eqx.field(static=True)
    dt: None = eqx.field(static=True)
    rtol: float | None = eqx.field(static=True)
    atol: float | None = eqx.field(static=True)

    def __init__(
        self,
        conditioner: Any = None,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        most_steps: int | None = None,
        kinks: Any = None,
    ):
        self.conditioner = Identity() if conditioner is None else conditioner
        if not isinstance(self.conditioner, AbstractConditioner):
            raise ValueError(
                "`conditioner` must be Identity(), AdaGrad(eps), RMSProp(decay, eps) or "
                f"AdamNoMomentum(decay, eps), but is {conditioner!r}; Adam with momentum and sign "
                "descent are discrete algorithms: as a flow the sign has the conditioner 1/|g|, "
                "which is unbounded where a component of the gradient vanishes; use MarginDescent"
            )
        self.rtol, self.atol = as_tolerance(rtol, "rtol"), as_tolerance(atol, "atol")
        self.budget = None if most_steps is None else as_whole(most_steps, "most_steps")
        if kinks not in (None, True, False):
            raise ValueError(f"`kinks` must be True, False or None, but is {kinks!r}")
        self.kinks = kinks
        self.dt = None

    @property
    def references(self) -> Mapping[str, str]:
        """Keys of the bibliography -> what they are cited for."""
        return merge({"wang2021": "the conditioned flow"}, self.conditioner.references)

    @property
    def clock_name(self):
        return "nu"

    @property
    def most_steps(self):
        if self.budget is not None:
            return self.budget
        return MOST_STEPS_AT_KINKS if self.kinks else MOST_STEPS

    @property
    def _widest(self) -> float:
        """The largest width in nu of a step on a model with kinks."""
        return min(WIDEST_STEP, self.conditioner.widest)

    @property
    def weights_only(self):
        return True

    def suited(self, coordinates, network, problem):
        if self.kinks is not None or not is_concrete((network, problem)):
            return self
        found = has_kinks(coordinates, coordinates.encode(network), problem.inputs)
        return MarginFlow(
            self.conditioner,
            rtol=self.rtol,
            atol=self.atol,
            most_steps=self.budget,
            kinks=found,
        )

    def step_control(self, coordinates, problem):
        if not self.kinks:
            return super().step_control(coordinates, problem)
        widest = self._widest
        control = GainController(first=min(FIRST_STEP, widest), widest=widest, clock=True)

        def gained(network: Any) -> Array:
            outputs = problem.outputs(network)
            return -jax.nn.logsumexp(problem.loss.log(outputs, problem.targets))

        return control.watching(lambda y: coordinates.decode(y[0]), gained)

    def default_solver(self, dtype, size):
        if self.kinks:
            return KinkEuler()
        # At large nu Kvaerno5, of higher order, may reject nearly all of its steps.
        small = jnp.finfo(dtype).bits > 32 and size <= LARGEST_IMPLICIT
        return dfx.Kvaerno3() if small else dfx.Tsit5()

    def memory(self, position):
        dtype = jax.tree.leaves(position)[0].dtype
        average = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape if self.kinks else (0,), leaf.dtype), position
        )
        return Memory(self.conditioner.start(position), jnp.zeros((), dtype), average)

    def begins(self, coordinates, network, problem):
        check_classification(problem)
        position = coordinates.base.encode(network)
        if is_concrete((position, problem)):
            check_homogeneous(coordinates.base, position, problem.inputs)
        return nu_and_gradient(coordinates.base.linearise, position, problem)[0]

    def build(self, coordinates, problem, position, key, offset, solver):
        conditioner = self.conditioner

        def move(t: Any, y: Any, args: Any) -> Any:
            (w, memory), _ = y
            now = Moment(t, problem.n, memory.time)
            _, gradient = nu_and_gradient(coordinates.base.linearise, w, problem)
            factor = conditioner.factor(memory.squares, gradient, now)
            step = jax.tree.map(jnp.multiply, factor, gradient)
            speed = _dot(step, gradient)
            squares = conditioner.rate(memory.squares, gradient, now, speed)
            average = jax.tree.map(
                jnp.subtract, gradient if self.kinks else memory.average, memory.average
            )
            change = Memory(squares, 1 / speed - memory.time, average)
            integral = conditioner.scale(problem.dtype) / speed
            return (jax.tree.map(lambda v: v / speed, step), change), integral

        return dfx.ODETerm(move)

    def observables(self, network, problem, memory):
        at = here(network, problem, memory.squares)
        dtype = at.nu.dtype
        root, n = self.conditioner.scale(dtype), jnp.asarray(problem.n, dtype)
        factor = self.conditioner.factor(
            memory.squares, at.tangent, Moment(at.nu, problem.n, memory.time)
        )
        f = jax.flatten_util.ravel_pytree(factor)[0]
        h = f / root
        mean = averaged(memory.average, at.flat) if self.kinks else at.flat
        moved = memory.time > 0
        log_time = jnp.log(jnp.where(moved, memory.time * root, 1)) + at.nu + jnp.log(n)
        return {
            **values(at, problem.n, h, mean),
            "log_time": jnp.where(moved, log_time, -jnp.inf),
            "surrogate_margin": over(at.nu, norm(at.w, 1 / h), at.degree),
            "loss_time_speed": memory.time * jnp.sum(f * jnp.square(at.flat)),
            **({"mean_gradient": mean} if self.kinks else {}),
        }

    def units(self):
        return UNITS

    def judge(self, status, final, end):
        warn_of_rounding(end, final["nu"].dtype)
        off = end - final["nu"]
        # At the end of a measured clock nu may be a part of the last step ahead of it.
        off = jnp.maximum(off, 0) if self.kinks else jnp.abs(off)
        behind = off > CLOCK_ERROR * jnp.maximum(jnp.abs(end), 1)
        # The loss falls for ever, so no loss is one at which a run has converged.
        status = jnp.where(status == int(Status.CONVERGED), int(Status.MOVING), status)
        finite = status != int(Status.NON_FINITE)
        status = jnp.where(behind & finite, int(Status.GAVE_UP), status)
        return jnp.where(
            (status == int(Status.GAVE_UP)) & ~(final["q_min"] > 0), int(Status.STALLED), status
        )

    def explain(self, status, final):
        if status == Status.GAVE_UP:
            return (
                f"gave up at nu = {final['nu']:.6g}: the solver ran out of its "
                f"{self.most_steps:,} steps"
                + (
                    f", each at most {self._widest:g} wide in nu (most_steps), or no step along "
                    "the gradient gains anything"
                    if self.kinks
                    else " (most_steps); if the model has kinks that were not recognised, give "
                    "MarginFlow(kinks=True)"
                )
                + "; the values are those at this nu"
            )
        return reason(status, final)


def _dot(a: Any, b: Any) -> Array:
    """The inner product of two tangents."""
    parts = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jax.tree.reduce(jnp.add, parts)
