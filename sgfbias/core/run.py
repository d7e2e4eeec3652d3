"""What `simulate` passes to one of the two ways of running, and what it gets back."""

from __future__ import annotations

from typing import Any, NamedTuple

import diffrax as dfx
from jaxtyping import Array

from sgfbias.core.along import Along
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.dynamics import AbstractDynamics
from sgfbias.core.observe import Observe
from sgfbias.core.problem import Problem


class Run(NamedTuple):
    """A run whose arguments have been checked and completed.

    - `coordinates`: the coordinates of the state.
    - `network`: the start. If every seed has its own start, this is the first one, for
      its shapes and functions.
    - `observe`: computes the observables along the run.
    - `finish`: computes the observables at the end.
    - `keys`: (seeds,), (), or None.
    - `times`: the number or the array of times to record, as the user gave it.
    - `stop`: the loss at which a seed is frozen, or None.
    - `exact`: whether the digits of a seed may not depend on the number of seeds.
    - `along`: the integrals and sums to record, or None.
    """

    dynamics: AbstractDynamics
    coordinates: AbstractCoordinates
    network: Any
    problem: Problem
    solver: dfx.AbstractSolver
    observe: Observe
    finish: Observe
    keys: Array | None
    times: Any
    stop: float | None
    exact: bool = True
    along: Along | None = None


class Raw(NamedTuple):
    """The result of a run before its seeds have a status.

    Arrays have a leading axis of seeds if `keys` had one.

    - `series`: (seeds, times, ...) by name, the recorded observables.
    - `final`: (seeds, ...) by name, the observables at the end.
    - `networks`: the arrays of the networks at the end.
    - `finite`: (seeds,), whether every number at the end is finite.
    - `times`: (times,), the recorded flow times.
    - `steps`: (times,), the recorded solver steps, or None for an adaptive solver.
    - `stop_time`: (seeds,), the flow time at which a seed was frozen, or infinity.
    - `first_loss`: (seeds,), the loss at the start.
    - `averages`: (seeds,) each, the mean loss over the second quarter and over the last
      half of the run.
    - `gave_up`: whether an adaptive solver ran out of steps.
    - `starts`: the arrays of the starts if every seed has its own, or None.
    """

    series: dict[str, Array]
    final: dict[str, Array]
    networks: Any
    finite: Array
    times: Array
    steps: Array | None
    stop_time: Array
    first_loss: Array
    averages: tuple[Array, Array]
    gave_up: Any = False
    starts: Any = None
