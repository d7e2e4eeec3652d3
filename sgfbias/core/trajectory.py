"""The result of a simulation: recorded series, final values, and a status per seed."""

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
from sgfbias.core.dynamics import FLOW_TIME
from sgfbias.core.names import did_you_mean
from sgfbias.core.network import AbstractNetwork, declares
from sgfbias.core.provenance import attributes
from sgfbias.core.references import SOLVERS, merge, references_of
from sgfbias.core.solver import OURS
from sgfbias.core.types import Dataset
from sgfbias.core.weights import coordinates_for


class Status(IntEnum):
    """How a seed ended.

    - `CONVERGED`: the loss is at or below the tolerance.
    - `MOVING`: none of the others applies.
    - `STALLED`: the loss stays high and hardly falls, see `classify`.
    - `NON_FINITE`: the loss or a parameter is NaN or infinite.
    - `GAVE_UP`: an adaptive solver ran out of steps.
    """

    CONVERGED = 0
    MOVING = 1
    STALLED = 2
    NON_FINITE = 3
    GAVE_UP = 4


STATUS_WORDS = ("converged", "moving", "stalled high", "non-finite", "gave up")
# A seed has stalled if its excess loss is at least 0.9 of its excess loss earlier in
# the run, and more than 1% of its excess loss at the start, see `classify`.
STALL_RATIO = 0.9
STALL_LEVEL = 1e-2


def classify(
    *,
    finite: Any,
    loss: Any,
    first_loss: Any,
    tolerance: float | None,
    least: float | None,
    early: Any,
    late: Any,
    may_stall: bool,
    gave_up: Any = False,
) -> Any:
    """The status of each seed. The first of these that applies:

    - non-finite: the loss or a parameter is NaN or infinite.
    - gave up: an adaptive solver ran out of steps. Values at later times are NaN, and
      the final values are those at the time that it reached.
    - converged: the loss is at or below `tolerance`. With None no seed is converged.
    - stalled high: the loss is high and hardly falls, as the step size is too large to
      converge, or the run too short to leave a plateau. The excess over the least loss,
      averaged over the last half of the run (`late`), is at least 0.9 of its average
      over the quarter before (`early`), and above 1% of the excess at the start. If the
      least loss is not known (`least` is None), a loss that settles may have found its
      minimum. Then only a loss that has risen counts: its average `late` is above the
      loss at the start, and not below `early`. Without `may_stall` no seed has this
      status.
    - moving: anything else.

    It is an array of NumPy unless something is traced.
    """
    arrays = finite, loss, first_loss, early, late, gave_up
    host = numpy_for(arrays)
    finite, loss, first_loss, early, late, gave_up = (host.asarray(a) for a in arrays)
    # Diverged seeds are not finite.
    with np.errstate(all="ignore"):
        if least is None:
            stalled = (late >= early) & (late > first_loss)
        else:
            stalled = (late - least >= STALL_RATIO * (early - least)) & (
                late - least > STALL_LEVEL * (first_loss - least)
            )
        status = host.where(stalled & may_stall, int(Status.STALLED), int(Status.MOVING))
        if tolerance is not None:
            status = host.where(loss <= tolerance, int(Status.CONVERGED), status)
        status = host.where(gave_up, int(Status.GAVE_UP), status)
        return host.where(finite, status, int(Status.NON_FINITE))


class Trajectory(eqx.Module):
    """The runs of one call of `simulate`.

    A single run has no seed axis.

    - `runs[name]`: (seeds, times, ...), the recorded series of the observable `name`.
    - `runs.final[name]`: (seeds, ...), its values at the end.
    - `runs.networks`: the networks at the end, stacked along the seed axis.
    - `runs.network`: the network at the start. If every seed has its own start
      (`own_starts`), all starts, stacked.
    - `runs.start`: the network at the start, or the first of them.
    - `runs.times`: (times,), the recorded flow times, or readings of the clock that the
      dynamics have instead.
    - `runs.steps`: (times,), the recorded solver steps, or None for an adaptive solver.
    - `runs.status`: (seeds,), how each seed ended, a `Status`.
    - `runs.statuses()`: the number of seeds with each status.
    - `runs.reason(i)`: the reason for the status of seed i, in words.
    - `runs.diverged`: (seeds,), whether a seed is non-finite or stalled high.
    - `runs.stop_time`: (seeds,), the flow time at which a seed reached the loss `stop`,
      or infinity if it did not.
    - `runs.to_xarray()`: everything as an `xarray.Dataset`.
    - `runs.plot()`: a picture of the series and of how the seeds ended.
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
    own_starts: bool = eqx.field(static=True, default=False)

    @property
    def start(self) -> Any:
        """The network from which the runs started, or the first one if every seed has
        its own start.
        """
        if not self.own_starts or jnp.ndim(self.status) == 0:
            return self.network
        return jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, self.network)

    def __getitem__(self, name: str) -> Array:
        if name not in self.series:
            hint = (
                f"; runs.final[{name!r}] has its value at the end, and record=[{name!r}] records it"
                if name in self.final
                else ""
            )
            raise KeyError(
                f"{name!r} was not recorded; {did_you_mean(name, self.series)}the recorded series "
                f"are {', '.join(self.series)}{hint}"
            )
        return self.series[name]

    @property
    def diverged(self) -> Array:
        """Whether each seed is non-finite or stalled high, (seeds,) of bool.

        A seed can therefore diverge without a NaN.
        """
        status = numpy_for(self.status).asarray(self.status)
        return jnp.asarray((status == int(Status.NON_FINITE)) | (status == int(Status.STALLED)))

    @property
    def references(self) -> Mapping[str, str]:
        """The works that the runs used: keys of the bibliography -> what they are cited
        for.

        `sgfbias.cite(runs)` gives their BibTeX.
        """
        parts = [references_of(self.dynamics), references_of(self.start)]
        if isinstance(self.start, AbstractNetwork):
            parts.append(
                references_of(
                    coordinates_for(self.start, self.problem, self.dynamics, self.coordinates)
                )
            )
        parts.append(
            OURS[self.solver].references if self.solver in OURS else SOLVERS.get(self.solver, {})
        )
        return merge(*parts)

    def statuses(self) -> dict[str, int]:
        """The number of seeds with each status."""
        counts = np.bincount(np.atleast_1d(np.asarray(self.status)), minlength=len(STATUS_WORDS))
        return {word: int(count) for word, count in zip(STATUS_WORDS, counts, strict=True) if count}

    def reason(self, seed: int = 0) -> str:
        """The reason, in words, for the status of seed number `seed`.

        Seeds are counted from 0 within this trajectory.
        """

        def pick(array: Array) -> float:
            return float(np.atleast_1d(np.asarray(array))[seed])

        status = Status(int(np.atleast_1d(np.asarray(self.status))[seed]))
        scalars = {
            name: pick(value)
            for name, value in self.final.items()
            if jnp.ndim(value) == jnp.ndim(self.status) and jnp.isrealobj(value)
        }
        if (words := self.dynamics.explain(int(status), scalars)) is not None:
            return words
        loss = self._loss_in_words(seed)
        early, late = (pick(a) for a in self.averages)
        tolerance = "" if self.tolerance is None else f"{self.tolerance:.2e}"
        return {
            Status.CONVERGED: f"converged: loss {loss} is at or below the tolerance {tolerance}",
            Status.MOVING: f"moving: loss {loss} "
            + (
                f"is still above the tolerance {tolerance}"
                if self.tolerance is not None
                else f"at the end, but {self._unknown}: give `stop`, a loss that counts as "
                "converged"
            ),
            Status.STALLED: (
                f"stalled high: the mean loss is {late:.2e} over the last half of the run and was "
                f"{early:.2e} over the quarter before; the step size is too large, the run is too "
                "short to leave a plateau, or no weights fit these data"
            ),
            Status.GAVE_UP: "gave up: the adaptive solver ran out of steps before the end; take "
            "looser tolerances or a shorter time",
            Status.NON_FINITE: self._why_not_finite(seed),
        }[status]

    @property
    def _unknown(self) -> str:
        """Why it is not known which loss counts as converged."""
        if self.problem.penalty is None:
            return "the least loss of this problem is not known"
        return "with a penalty the run does not aim at the least loss"

    def _loss_in_words(self, seed: int) -> str:
        """The loss of a seed at the end, from its logarithm if it has underflowed."""
        loss = float(np.atleast_1d(np.asarray(self.final["loss"]))[seed])
        if loss != 0:
            return f"{loss:.2e}"
        networks = self.networks
        if jnp.ndim(self.status):
            networks = jax.tree.map(lambda v: v[seed] if eqx.is_array(v) else v, networks)
        exponent = float(self.problem.log_risk(networks)) / np.log(10)
        return f"10^{exponent:.1f}" if np.isfinite(exponent) else "0"

    def _why_not_finite(self, seed: int) -> str:
        """When the loss of a seed stopped being finite, and what to look at."""
        losses = np.asarray(self.series["loss"])
        bad = np.flatnonzero(~np.isfinite(losses if losses.ndim == 1 else losses[seed]))
        times = np.asarray(self.times)
        if bad.size and times[bad[0]] == 0:
            return (
                "non-finite: the loss is NaN or infinite at the start, before the first step; look "
                "at the parameters of the model, and at the loss on these data"
            )
        clock = self.dynamics.clock_name
        when = f" by {clock} {times[bad[0]]:g}" if bad.size else ""
        return (
            f"non-finite: the loss or a parameter became NaN or infinite{when}; the step size is "
            "too large, or the model or a schedule returned NaN there"
        )

    def to_xarray(self) -> Dataset:
        """Everything as one `xarray.Dataset`, with units and provenance.

        Its dimensions are `seed`, `time`, and those of the observables. The names of
        values at the end begin with `final_`. `to_netcdf` and `to_zarr` can write it.
        The words of the keys are then float64, exactly.
        """
        import xarray as xr

        single = self.status.ndim == 0
        dims = {**declares(self.start, "dims"), **self.problem.dims()}
        units = {
            "loss": "loss",
            "penalty": "loss",
            "loss_integral": "loss * flow time",
            "example_integral": "loss * flow time",
            **declares(self.start, "units"),
            **self.problem.units(),
            **self.dynamics.units(),
        }
        seed = () if single else ("seed",)

        def variable(name: str, lead: tuple[str, ...], value: Array) -> Any:
            rest = value.ndim - len(lead)
            tail = dims.get(name) or tuple(f"{name}_{k}" for k in range(rest))
            return xr.Variable((*lead, *tail), np.asarray(value), {"units": units.get(name, "")})

        data = {name: variable(name, (*seed, "time"), value) for name, value in self.series.items()}
        data |= {f"final_{name}": variable(name, seed, value) for name, value in self.final.items()}
        data["status"] = xr.Variable(
            seed,
            np.asarray(self.status),
            {"units": "1", "meaning": dict(enumerate(STATUS_WORDS)).__str__()},
        )
        clock = {"units": self.dynamics.clock_name}
        data["stop_time"] = xr.Variable(seed, np.asarray(self.stop_time), clock)
        coords: dict[str, Any] = {"time": xr.Variable("time", np.asarray(self.times), clock)}
        if not single:
            coords["seed"] = np.arange(self.status.shape[0])
        if self.steps is not None:
            coords["step"] = xr.Variable("time", np.asarray(self.steps), {"units": "solver steps"})
        if self.keys is not None and not single:
            # NetCDF 3 has no unsigned integers: in files the words are float64.
            coords["key"] = xr.Variable(
                ("seed", "key_word"),
                np.asarray(jax.random.key_data(self.keys)),
                encoding={"dtype": "float64"},
            )
        config = {
            "dynamics": repr(self.dynamics),
            "coordinates": self.coordinates,
            "solver": self.solver,
        }
        attrs = attributes(config, dtype=self.problem.dtype, keys=self.keys)
        return xr.Dataset(data, coords, attrs | {"references": json.dumps(self.references)})

    def plot(self, *names: str) -> Any:
        """A picture of the runs: each series against the clock of the run, with the
        median over seeds and the band from the 5% to the 95% quantile, and how the
        seeds ended. Seeds whose values are not finite are left out of the curves.

        **Arguments:**

        - `names`: the series to draw, each of shape (seeds, times); by default all of
          this shape.

        **Returns:** a Matplotlib `Figure`; `figure.savefig("runs.png")` stores it.

        **Raises:** `KeyError` for a series that was not recorded, `ValueError` for one
        that has further dimensions.
        """
        from sgfbias.core import plot

        flat = jnp.ndim(self.status) + 1
        for name in names:
            if self[name].ndim != flat:
                raise ValueError(
                    f"runs[{name!r}] has shape {self[name].shape}, and only series of one number "
                    "per seed and time can be drawn; draw a part of it yourself"
                )
        shown = names or [name for name, value in self.series.items() if value.ndim == flat]
        units = {
            "loss": "loss",
            "penalty": "loss",
            "loss_integral": "loss * flow time",
            **declares(self.start, "units"),
            **self.problem.units(),
            **self.dynamics.units(),
        }
        clock = self.dynamics.clock_name
        figure, axes = plot.grid(len(shown) + 1)
        times = np.asarray(self.times)
        for name, panel in zip(shown, axes, strict=False):
            plot.series(
                panel, times, np.asarray(self.series[name]), name, units.get(name, ""), clock
            )
        plot.statuses(axes[-1], self.statuses(), STATUS_WORDS)
        return figure

    def _repr_html_(self) -> str:
        from sgfbias.core import plot

        title, *lines = repr(self).splitlines()
        return plot.table(title, dict(line.strip().split(maxsplit=1) for line in lines))

    def __repr__(self) -> str:
        if any(
            isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct)
            for leaf in jax.tree.leaves((self.series, self.status))
        ):
            return f"Trajectory(traced, series {', '.join(self.series)})"
        single = self.status.ndim == 0
        seeds = 1 if single else self.status.shape[0]
        size = sum(
            leaf.nbytes
            for leaf in jax.tree.leaves(
                eqx.filter((self.series, self.final, self.networks), eqx.is_array)
            )
        )
        clock, end = self.dynamics.clock_name, float(self.times[-1])
        first = "0" if clock == FLOW_TIME else f"{clock} {float(self.times[0]):g}"
        steps = "adaptive steps" if self.steps is None else f"{int(self.steps[-1]):,} steps"
        lines = [
            f"Trajectory of {type(self.dynamics).__name__} in {self.coordinates} "
            f"({self.solver}), {self.problem.dtype}",
            f"  seeds   {seeds}{' (no seed axis)' if single else ''}",
            f"  time    {first} to {end:g}, {steps}, {self.times.shape[0]} recorded",
            f"  status  {', '.join(f'{count} {word}' for word, count in self.statuses().items())}",
            f"  memory  {size / 1e6:.1f} MB",
        ]
        lost = int(np.sum(np.atleast_1d(np.asarray(self.diverged))))
        if 2 * lost > seeds:
            finite = not np.any(np.asarray(self.status) == Status.NON_FINITE)
            other = ", or do no weights fit these data?" if finite else "?"
            lines.append(
                f"  warning {lost} of {seeds} seeds diverged: is the step size too large{other} "
                "runs.reason(i) tells why seed i did"
            )
        lines += [f"  [{name!r}]  {tuple(value.shape)}" for name, value in self.series.items()]
        lines += [
            f"  .final[{name!r}]  {tuple(value.shape)}"
            for name, value in self.final.items()
            if name not in self.series
        ]
        return "\n".join(lines)
