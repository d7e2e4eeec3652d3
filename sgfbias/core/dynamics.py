"""What all dynamics have in common: a clock, coordinates, and terms for a solver."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array

from sgfbias.core.checks import as_float, check_positive
from sgfbias.core.coordinates import AbstractCoordinates, WithMemory
from sgfbias.core.deprecated import accept_old_name, renamed_method
from sgfbias.core.problem import Problem
from sgfbias.core.schedule import Clock, as_number

FLOW_TIME = "flow time"
# An adaptive solver gives up after this many steps.
ADAPTIVE_STEPS = 200_000
# The largest state, in numbers, for which an implicit solver is the default.
LARGEST_IMPLICIT = 2_000


class AbstractDynamics(eqx.Module):
    """A flow or a discrete algorithm, which moves a network.

    All dynamics share the clock of the flow: one iteration of an algorithm takes as
    much flow time as its flow needs to follow the iteration.
    """

    # Keys of the bibliography -> what they are cited for.
    references: ClassVar[Mapping[str, str]] = {}

    @property
    def is_stochastic(self) -> bool:
        """Whether the dynamics are random, so that a run needs keys."""
        return True

    @property
    def is_flow(self) -> bool:
        """Whether the dynamics are continuous, rather than a discrete algorithm."""
        return True

    @property
    def weights_only(self) -> bool:
        """Whether the dynamics are defined in the weights only.

        This holds for discrete algorithms, which iterate the weights, and for flows
        with inertia, whose velocity is that of the weights.
        """
        return not self.is_flow

    @property
    def moves_along_gradients(self) -> bool:
        """Whether the weights move along a sum of gradients, with numbers as weights.

        An algorithm that rescales single parameters, as Adam does, moves along none.
        """
        return True

    @property
    @abc.abstractmethod
    def clock(self) -> Clock | None:
        """The flow time of the solver steps, or None for an adaptive solver."""

    @property
    def clock_name(self) -> str:
        """What `t1` and the recorded times of a run measure: the flow time, unless the
        dynamics have a clock of their own.
        """
        return FLOW_TIME

    def observables(self, network: Any, problem: Problem, memory: Any) -> dict[str, Array]:
        """The values that the dynamics add to those of the network, by name.

        They are recorded like observables that a network declares: scalars along the
        run, and all of them at the end.

        **Arguments:**

        - `network`: the network at one time.
        - `problem`: the data and the loss.
        - `memory`: the inner state of the dynamics at that time, or None.
        """
        return {}

    def units(self) -> dict[str, str]:
        """The units of the values in `observables`, by name."""
        return {}

    def judge(self, status: Array, final: Mapping[str, Array], end: Array) -> Array:
        """The status of each seed, given the one by the general rules.

        **Arguments:**

        - `status`: (seeds,), the `Status` that `classify` gives.
        - `final`: the values at the end, by name, (seeds, ...).
        - `end`: the time at which the run was to end.
        """
        return status

    def explain(self, status: int, final: Mapping[str, float]) -> str | None:
        """The reason for the `Status` of one seed in words, or None for the general
        words. `final` has the scalars of this seed at the end.
        """
        return None

    def default_solver(self, dtype: Any, size: int) -> dfx.AbstractSolver:
        """The solver to use if the user gives none, for the precision `dtype` and a
        state of `size` numbers.
        """
        return dfx.Euler()

    def suited(
        self, coordinates: AbstractCoordinates, network: Any, problem: Problem
    ) -> AbstractDynamics:
        """The dynamics with the choices that depend on the model, such as how to step
        over its kinks. `coordinates` are those of the network.
        """
        return self

    def check(self, n: int) -> None:
        """Refuse dynamics that do not fit a problem of n examples.

        **Raises:** `ValueError` that says what would fit.
        """

    def schedules(self) -> tuple[Callable[[Array], Any], ...]:
        """The schedules of these dynamics, as functions of the iteration.

        They may close over values that are being differentiated.
        """
        clock = self.clock
        return () if clock is None or not callable(clock.step_size) else (clock.step_size,)

    def rows_per_step(self, n: int) -> int:
        """The number of examples, out of n, on which one step evaluates the model."""
        return n

    def penalty_step(self, step: Any, dtype: Any) -> Any:
        """The `step` that a penalty is given at the solver step `step`.

        It is the whole iteration, as schedules count it. A deterministic flow gives a
        real number.
        """
        return step if self.clock is None else self.clock.iteration(jnp.asarray(step))

    @property
    def draws_examples(self) -> bool:
        """Whether the noise of the dynamics comes from the examples, as that of
        minibatches and of their models does, so that the examples must be data.
        """
        return self.is_stochastic

    def integral_shape(self, n: int) -> tuple[int, ...]:
        """The shape of the running loss integral: () for the mean loss of the n
        examples, (n,) for the loss of each example.
        """
        return ()

    def brownian_steps(self, steps: int) -> int:
        """The number of finest Brownian increments in `steps` solver steps."""
        return steps

    def state_coordinates(self, coordinates: AbstractCoordinates) -> AbstractCoordinates:
        """The coordinates of the state, given the coordinates of the network.

        The two are the same, except that dynamics with an inner state add it.
        """
        return coordinates

    @renamed_method("state_coordinates")
    def chart(self, coordinates: AbstractCoordinates) -> Any:
        """The deprecated name of `state_coordinates`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        accept_old_name(cls, "chart", "state_coordinates")

    @abc.abstractmethod
    def build(
        self,
        coordinates: AbstractCoordinates,
        problem: Problem,
        position: Any,
        key: Array | None,
        offset: Array,
        solver: Any,
    ) -> Any:
        """The Diffrax terms of one run, with solver time in units of steps.

        Solver time 0 is the absolute step `offset`. Only the shapes of `position` are
        used.
        """


class AbstractDeterministicFlow(AbstractDynamics):
    """A flow without noise, solved adaptively, or in fixed steps of flow time `dt`."""

    dt: eqx.AbstractVar[Array | None]
    rtol: eqx.AbstractVar[float | None]
    atol: eqx.AbstractVar[float | None]

    @property
    def is_stochastic(self):
        return False

    @property
    def most_steps(self) -> int:
        """The number of steps after which an adaptive solver gives up."""
        return ADAPTIVE_STEPS

    def memory(self, position: Any) -> Any:
        """The inner state before the first step, a PyTree of arrays that moves with the
        `position`, such as a velocity; or None for a flow without one.

        With a memory the state of the solver is `((position, memory), integral)`.
        """
        return None

    def begins(self, coordinates: AbstractCoordinates, network: Any, problem: Problem) -> Any:
        """The reading of the flow's own clock at the start.

        It is asked for only if `clock_name` is not the flow time, which begins at 0.
        `coordinates` are those of the whole state.

        **Raises:** `ValueError` if the flow cannot start there.
        """
        return 0.0

    def state_coordinates(self, coordinates):
        if type(self).memory is AbstractDeterministicFlow.memory:
            return coordinates
        return WithMemory(coordinates, self)

    @property
    def clock(self):
        return None if self.dt is None else Clock(self.dt)

    def step_control(
        self, coordinates: AbstractCoordinates, problem: Problem
    ) -> dfx.AbstractStepSizeController:
        """How an adaptive solver chooses its steps: by an estimate of its error, with
        the `tolerances`. `coordinates` are those of the whole state.
        """
        rtol, atol = self.tolerances(problem.dtype)
        return dfx.PIDController(rtol=rtol, atol=atol, norm=error_norm)

    def default_solver(self, dtype, size):
        if self.dt is not None:
            return dfx.Euler()
        # In float32 the Newton iteration of an implicit solver stalls at the level of
        # rounding, so explicit steps are more reliable. In a large state an implicit
        # step is expensive, as it factorises a matrix of shape (size, size).
        return (
            dfx.Tsit5()
            if jnp.finfo(dtype).bits <= 32 or size > LARGEST_IMPLICIT
            else dfx.Kvaerno5()
        )

    def time(self, offset: Array, t: Array) -> Array:
        """The time in solver steps, or the flow time of an adaptive solver, at the
        solver time `t` of a run from the absolute step `offset`.
        """
        return offset.astype(t.dtype) + t

    def penalty_step(self, step, dtype):
        return jnp.asarray(step).astype(dtype)

    def unit(self, dtype: Any) -> Array:
        """The flow time per unit of solver time."""
        return jnp.ones((), dtype) if self.dt is None else self.dt.astype(dtype)

    def tolerances(self, dtype: Any) -> tuple[float, float]:
        """The tolerances `(rtol, atol)` of the adaptive solver in precision `dtype`.

        **Raises:** `ValueError` for a relative tolerance below ten times the machine
        epsilon.
        """
        single = jnp.finfo(dtype).bits <= 32
        rtol = (1e-5 if single else 1e-8) if self.rtol is None else self.rtol
        atol = (1e-7 if single else 1e-10) if self.atol is None else self.atol
        floor = 10 * float(jnp.finfo(dtype).eps)
        if rtol < floor:
            raise ValueError(
                f"rtol={rtol:g} is below what {jnp.dtype(dtype).name} can reach (about "
                f"{floor:.0e}); use a larger rtol, or float64 data with "
                "jax.config.update('jax_enable_x64', True)"
            )
        return rtol, atol


def error_norm(scaled_error: Any) -> Array:
    """The root mean square of the scaled error, with infinity in place of NaN.

    A trial step that overflows gives infinity / infinity = NaN. An infinite error makes
    the solver reject the step and try a smaller one, whereas NaN would turn the width
    of all later steps into NaN.
    """
    norm = optx.rms_norm(scaled_error)
    return jnp.where(jnp.isnan(norm), jnp.inf, norm)


def as_tolerance(value: Any, name: str) -> float | None:
    """A tolerance of an adaptive solver, or None for the default.

    **Raises:** `ValueError` for a number that is not positive and finite.
    """
    if value is None:
        return None
    tolerance = as_float(value, name)
    check_positive(tolerance, name)
    return tolerance


def as_width(dt: Any) -> Array | None:
    """The `dt` of a deterministic flow as an array, or None for an adaptive solver.

    **Raises:** `ValueError` for a number that is not positive.
    """
    return None if dt is None else as_number(dt, "dt")
