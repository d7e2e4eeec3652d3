"""What every way of moving has in common: a clock, a chart, and terms that Diffrax solves."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.problem import Problem
from sgfbias.core.schedule import Clock, as_number

LARGEST_IMPLICIT = 2_000  # numbers of state


class AbstractDynamics(eqx.Module):
    """A way of moving. All dynamics share the flow's clock: the flow time of an iteration is the time its flow takes to follow it."""

    references: ClassVar[Mapping[str, str]] = {}  # keys of the bibliography -> what they are cited for

    @property
    def is_stochastic(self) -> bool:
        """Whether a run needs a key."""
        return True

    @property
    def is_flow(self) -> bool:
        """Continuous or discrete."""
        return True

    @property
    def weights_only(self) -> bool:
        """Whether the motion is defined in the weights: algorithms iterate them, and inertia refers to them."""
        return not self.is_flow

    @property
    @abc.abstractmethod
    def clock(self) -> Clock | None:
        """Flow time of the solver steps; None for an adaptive solver."""

    def default_solver(self, dtype: Any, size: int) -> dfx.AbstractSolver:
        """The solver used when none is given, for this precision and this many numbers of state."""
        return dfx.Euler()

    def chart(self, coordinates: AbstractCoordinates) -> AbstractCoordinates:
        """The coordinates of what moves, given those of the network; dynamics with inertia add a velocity."""
        return coordinates

    @abc.abstractmethod
    def build(
        self, coordinates: AbstractCoordinates, problem: Problem, position: Any, key: Array | None, offset: Array, solver: Any
    ) -> Any:
        """Diffrax terms of one run in step units, solver time 0 being absolute step `offset`; `position` serves for its shapes."""


class AbstractDeterministicFlow(AbstractDynamics):
    """An ordinary differential equation, solved adaptively in flow time, or in fixed steps of `dt`."""

    dt: eqx.AbstractVar[Array | None]
    rtol: eqx.AbstractVar[float | None]
    atol: eqx.AbstractVar[float | None]

    @property
    def is_stochastic(self):
        return False

    @property
    def clock(self):
        return None if self.dt is None else Clock(self.dt)

    def default_solver(self, dtype, size):
        if self.dt is not None:
            return dfx.Euler()
        # In float32 rounding hides what an implicit solver's Newton iteration is to reduce, and it stalls: explicit steps are surer there.
        # An implicit step factorises a matrix of size x size.
        return dfx.Tsit5() if jnp.finfo(dtype).bits <= 32 or size > LARGEST_IMPLICIT else dfx.Kvaerno5()

    def unit(self, dtype: Any) -> Array:
        """Flow time per unit of solver time."""
        return jnp.ones((), dtype) if self.dt is None else self.dt.astype(dtype)

    def tolerances(self, dtype: Any) -> tuple[float, float]:
        """`(rtol, atol)` of the adaptive solver in this precision.

        **Raises:** `ValueError` for a relative tolerance below ten units of rounding.
        """
        single = jnp.finfo(dtype).bits <= 32
        rtol = (1e-5 if single else 1e-8) if self.rtol is None else self.rtol
        atol = (1e-7 if single else 1e-10) if self.atol is None else self.atol
        floor = 10 * float(jnp.finfo(dtype).eps)
        if rtol < floor:
            raise ValueError(
                f"rtol={rtol:g} is below what {jnp.dtype(dtype).name} can reach (about {floor:.0e}); "
                "use a larger rtol, or float64 data with jax.config.update('jax_enable_x64', True)"
            )
        return rtol, atol


def as_width(dt: Any) -> Array | None:
    """`dt=` of a deterministic flow: None, adaptive, or a positive number."""
    return None if dt is None else as_number(dt, "dt")
