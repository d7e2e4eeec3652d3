"""What enters a pass of the theory, and what it keeps."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array

from sgfbias.meanfield.data import Bins


class Setting(NamedTuple):
    """The numbers of a pass, in the precision of the kernels.

    - `alpha`, `step_size`, `ridge`: scalars.
    - `bins`: the spectrum.
    - `explicit`: whether the drift contains the component of z along v.
    - `sphere`: whether w is projected after every step.
    - `memory`: the longest lag of `M_R`, or None for all.
    """

    alpha: Array
    step_size: Array
    ridge: Array
    bins: Bins
    explicit: bool
    sphere: bool
    memory: int | None = None


class Effective(NamedTuple):
    """The effective examples, in the precision of the memory.

    - `drift`, `targets`: (samples,).
    - `masks`: (replicas, steps, samples).
    - `white`: (replicas, steps, samples), standard normal.
    """

    drift: Array
    targets: Array
    masks: Array
    white: Array


class Kernels(NamedTuple):
    """The order parameters up to a step; `times` is one more than the number of steps.

    - `overlaps`: (bins, times), q.
    - `response`: (bins, times, times).
    - `same`: (bins, times, times), the correlation of a run with itself.
    - `other`: the correlation with a second replica, or None.
    - `factors`: (replicas, steps, steps), of the Gaussian paths.
    - `forces`: (replicas, steps, samples), f.
    """

    overlaps: Array
    response: Array
    same: Array
    other: Array | None
    factors: Array
    forces: Array


class Moments(NamedTuple):
    """The averages over the effective examples at a step, times alpha.

    - `drift`: mu. `stiffness`: G.
    - `noise`, `cross`: (steps,), rows of M_C of a replica with itself and the other.
    - `memory`: (steps,), the row of M_R.
    """

    drift: Array
    stiffness: Array
    noise: Array
    cross: Array | None
    memory: Array
