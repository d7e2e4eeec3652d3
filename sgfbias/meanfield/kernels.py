"""What enters a pass of the theory, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from sgfbias.meanfield.data import Bins


class Setting(NamedTuple):
    """The numbers of a pass, in the precision of the kernels.

    - `alpha`, `step_size`, `ridge`: scalars.
    - `bins`: the spectrum.
    - `explicit`: whether the drift contains the component of z along v.
    - `sphere`: whether w is projected after every step.
    - `memory`: the longest lag of `M_R`, or None for all.
    - `teacher`: whether targets depend on z along v, and the drift is h0 over its
      variance.
    """

    alpha: Array
    step_size: Array
    ridge: Array
    bins: Bins
    explicit: bool
    sphere: bool
    memory: int | None = None
    teacher: bool = False

    @property
    def seen_energies(self) -> Array:
        """The weights of q, (bins,), in what the drift multiplies: in the overlap, or
        with a teacher in w . Sigma v / d. The sum of the latter is the variance of h0.
        """
        own = self.bins.weights * self.bins.energies
        return own * self.bins.values if self.teacher else own


class Effective(NamedTuple):
    """The effective examples, in the precision of the memory.

    - `drift`, `targets`: (samples,). With several outputs the drift is (samples, M).
    - `masks`: (replicas, steps, samples).
    - `white`: (replicas, steps, samples), or (replicas, steps, K, samples) with K
      outputs, standard normal.
    """

    drift: Array
    targets: Array
    masks: Array
    white: Array


class Kernels(NamedTuple):
    """The order parameters up to a step; `times` is one more than the number of steps.

    With K outputs and M directions, `overlaps` has two more axes (K, M), the response
    and the correlations two more axes (K, K), the factors have `steps K` in place of
    steps, and the forces are (replicas, steps, K, samples).

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

    With K outputs and M directions mu is (K, M), G is (K, K), and the rows are (steps,
    K, K).
    """

    drift: Array
    stiffness: Array
    noise: Array
    cross: Array | None
    memory: Array


class Seen(NamedTuple):
    """What a step shows besides the kernels.

    - `loss`: the mean loss of the examples.
    - `edges`: (2,), the row of M_R at the first lag and at the last one that is kept,
      with K outputs (2, K, K). None if all lags are kept.
    """

    loss: Array
    edges: Array | None


class Scheme(NamedTuple):
    """The equations of a step.

    - `first`: makes the `Kernels` at time 0.
    - `rows`: makes rows of A that are still 0, (replicas, size, ..., columns, samples).
    - `step`: takes a step, and returns the kernels, the rows of A and what was `Seen`.
    """

    first: Callable[..., Kernels]
    rows: Callable[[Effective, int, int], Array]
    step: Callable[..., Any]
