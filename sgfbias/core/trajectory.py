"""What comes back from a simulation: recorded series, final values, a status per seed; and it prints itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import numpy_for
from sgfbias.core.coordinates import coordinates_for
from sgfbias.core.network import AbstractNetwork, declares
from sgfbias.core.provenance import attributes
from sgfbias.core.references import SOLVERS, merge, references_of
from sgfbias.core.solver import OURS


class Status(IntEnum):
    """How a seed ended."""

    CONVERGED = 0
    MOVING = 1
    STALLED = 2
    NON_FINITE = 3
    GAVE_UP = 4


STATUS_WORDS = ("converged", "moving", "stalled high", "non-finite", "gave up")
STALL_RATIO = 0.9
STALL_LEVEL = 1e-2


def classify(
    *,
    finite: Array,
    loss: Array,
    first_loss: Array,
    tolerance: float | None,
    least: float | None,
    early: Array,
    late: Array,
    may_stall: bool,
    gave_up: Any = False,
) -> Array:
    """Status of each seed.

    - non-finite: the loss or a parameter is NaN or infinite;
    - converged: the loss is at or below the tolerance (None: nothing is known that it could converge to);
    - stalled high: the excess over the least loss, averaged over the last half of the run (`late`), is at least .9 of its average over the
      quarter before (`early`), and still above 1% of the excess at the start: a step size too large to converge, or a run too short to leave a
      plateau. Where the least loss is not known (`least` is None), a loss that settles may have found its minimum, and only one that has
      risen counts: the average is above the loss at the start, and not falling;
    - gave up: an adaptive solver ran out of steps; later times are NaN, the final values those of the time it reached;
    - moving: anything else.
    """
    arrays = finite, loss, first_loss, early, late, gave_up
    host = numpy_for(arrays)
    finite, loss, first_loss, early, late, gave_up = (host.asarray(a) for a in arrays)
    with np.errstate(all="ignore"):  # diverged seeds
        if least is None:
            stalled = (late >= early) & (late > first_loss)
        else:
            stalled = (late - least >= STALL_RATIO * (early - least)) & (late - least > STALL_LEVEL * (first_loss - least))
        status = host.where(stalled & may_stall, int(Status.STALLED), int(Status.MOVING))
        if tolerance is not None:
            status = host.where(loss <= tolerance, int(Status.CONVERGED), status)
        status = host.where(gave_up, int(Status.GAVE_UP), status)
        return jnp.asarray(host.where(finite, status, int(Status.NON_FINITE)))


class Trajectory(eqx.Module):
    """The runs of one `simulate` call.

    - `runs[name]`: recorded series, (seeds, times, ...); without a seed axis for a single run.
    - `runs.final[name]`: values at the end, (seeds, ...). `runs.networks`: the networks at the end, stacked.
    - `runs.times`, `runs.steps`: recorded flow times and solver steps (an adaptive solver has no steps: None).
    - `runs.status` (seeds,), `runs.statuses()`, `runs.reason(i)`: how each seed ended; `runs.diverged`: non-finite or stalled high.
    - `runs.stop_time` (seeds,): flow time at which a seed reached the stopping tolerance, infinity if it did not.
    """

    series: dict[str, Array]
    final: dict[str, Array]
    networks: Any
    times: Array
    steps: Array | None
    status: Array
    stop_time: Array
    averages: tuple[Array, Array]
    dynamics: Any
    network: Any
    problem: Any
    keys: Array | None
    tolerance: float | None = eqx.field(static=True)
    coordinates: str = eqx.field(static=True)
    solver: str = eqx.field(static=True)

    def __getitem__(self, name: str) -> Array:
        if name not in self.series:
            hint = f"; runs.final[{name!r}] has its value at the end, record=[{name!r}] records it" if name in self.final else ""
            raise KeyError(f"{name!r} was not recorded; recorded are {', '.join(self.series)}{hint}")
        return self.series[name]

    @property
    def diverged(self) -> Array:
        """Seeds that are non-finite or stalled high: (seeds,) of bool. Divergence is more than NaN."""
        status = numpy_for(self.status).asarray(self.status)
        return jnp.asarray((status == int(Status.NON_FINITE)) | (status == int(Status.STALLED)))

    @property
    def references(self) -> Mapping[str, str]:
        """What the runs used: keys of the bibliography -> what they are cited for; `sgfbias.cite(runs)` has the BibTeX."""
        parts = [references_of(self.dynamics), references_of(self.network)]
        if isinstance(self.network, AbstractNetwork):
            parts.append(references_of(coordinates_for(self.network, self.problem, self.dynamics, self.coordinates)))
        parts.append(OURS[self.solver].references if self.solver in OURS else SOLVERS.get(self.solver, {}))
        return merge(*parts)

    def statuses(self) -> dict[str, int]:
        """How many seeds have which status."""
        counts = np.bincount(np.atleast_1d(np.asarray(self.status)), minlength=len(STATUS_WORDS))
        return {word: int(count) for word, count in zip(STATUS_WORDS, counts, strict=True) if count}

    def reason(self, seed: int = 0) -> str:
        """Why seed number `seed` of this trajectory has its status, in words."""

        def pick(array: Array) -> float:
            return float(np.atleast_1d(np.asarray(array))[seed])

        status = Status(int(np.atleast_1d(np.asarray(self.status))[seed]))
        loss = pick(self.final["loss"])
        early, late = (pick(a) for a in self.averages)
        tolerance = "" if self.tolerance is None else f"{self.tolerance:.2e}"
        return {
            Status.CONVERGED: f"converged: loss {loss:.2e} is at or below the tolerance {tolerance}",
            Status.MOVING: f"moving: loss {loss:.2e}, "
            + (
                f"still above the tolerance {tolerance}"
                if self.tolerance is not None
                else "and the least loss of this problem is not known: give `stop`, a loss that counts as converged"
            ),
            Status.STALLED: (
                f"stalled high: mean loss {late:.2e} over the last half of the run, {early:.2e} over the quarter before; "
                "the step size is too large, or the run too short to leave a plateau"
            ),
            Status.GAVE_UP: "gave up: the adaptive solver ran out of steps before the end; ask for looser tolerances or a shorter time",
            Status.NON_FINITE: "non-finite: the loss or a parameter became NaN or infinite; the step size is too large",
        }[status]

    def to_xarray(self) -> Any:
        """Everything as one `xarray.Dataset` with dimensions `seed`, `time` and those of the observables, units and provenance.

        Values at the end carry the prefix `final_`.
        """
        import xarray as xr

        single = self.status.ndim == 0
        dims = {**declares(self.network, "dims"), **self.problem.dims()}
        units = {
            "loss": "loss",
            "loss_integral": "loss * flow time",
            **declares(self.network, "units"),
            **self.problem.units(),
        }
        seed = () if single else ("seed",)

        def variable(name: str, lead: tuple[str, ...], value: Array) -> Any:
            rest = value.ndim - len(lead)
            tail = dims.get(name) or tuple(f"{name}_{k}" for k in range(rest))
            return xr.Variable((*lead, *tail), np.asarray(value), {"units": units.get(name, "")})

        data = {name: variable(name, (*seed, "time"), value) for name, value in self.series.items()}
        data |= {f"final_{name}": variable(name, seed, value) for name, value in self.final.items()}
        data["status"] = xr.Variable(seed, np.asarray(self.status), {"meaning": dict(enumerate(STATUS_WORDS)).__str__()})
        data["stop_time"] = xr.Variable(seed, np.asarray(self.stop_time), {"units": "flow time"})
        coords: dict[str, Any] = {"time": xr.Variable("time", np.asarray(self.times), {"units": "flow time"})}
        if self.steps is not None:
            coords["step"] = xr.Variable("time", np.asarray(self.steps), {"units": "solver steps"})
        if self.keys is not None and not single:
            coords["key"] = xr.Variable(("seed", "key_word"), np.asarray(jax.random.key_data(self.keys)))
        config = {"dynamics": repr(self.dynamics), "coordinates": self.coordinates, "solver": self.solver}
        attrs = attributes(config, dtype=self.problem.dtype, keys=self.keys)
        return xr.Dataset(data, coords, attrs | {"references": json.dumps(self.references)})

    def __repr__(self) -> str:
        if any(isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((self.series, self.status))):
            return f"Trajectory(traced, series {', '.join(self.series)})"
        single = self.status.ndim == 0
        seeds = 1 if single else self.status.shape[0]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter((self.series, self.final, self.networks), eqx.is_array)))
        end = float(self.times[-1])
        steps = "adaptive steps" if self.steps is None else f"{int(self.steps[-1]):,} steps"
        lines = [
            f"Trajectory of {type(self.dynamics).__name__} in {self.coordinates} ({self.solver}), {self.problem.dtype}",
            f"  seeds   {seeds}{' (no seed axis)' if single else ''}",
            f"  time    0 to {end:g}, {steps}, {self.times.shape[0]} recorded",
            f"  status  {', '.join(f'{count} {word}' for word, count in self.statuses().items())}",
            f"  memory  {size / 1e6:.1f} MB",
        ]
        lines += [f"  [{name!r}]  {tuple(value.shape)}" for name, value in self.series.items()]
        lines += [f"  .final[{name!r}]  {tuple(value.shape)}" for name, value in self.final.items() if name not in self.series]
        return "\n".join(lines)
