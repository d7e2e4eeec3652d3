"""How distances, switched units and the change of the kernel scale with width, output
scale or step size, at one level of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias.core.brownian import seeds as seeds_of
from sgfbias.core.checks import as_float, as_host_numbers, as_whole, check_positive
from sgfbias.core.names import Named
from sgfbias.core.problem import Problem
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.types import Dataset
from sgfbias.lazy.kept import Kept
from sgfbias.lazy.probe import measure
from sgfbias.study.statistics import LEVEL, Estimate

# Every run is looked at after at most so many numbers of steps, of equal ratios.
LOOKS = 512
UNITS = {
    "steps": "steps",
    "distance": "parameter",
    "relative_distance": "1",
    "flips": "1",
    "kernel_drift": "1",
    "misalignment": "1",
    "least": "output^2 / parameter^2",
    "tangent_error": "1",
}


class Scaling(NamedTuple):
    """Quantities of trained networks against one variable; prints its slopes.

    - `variable`: the name of the variable.
    - `values`: (values,), increasing.
    - `quantities`: name -> (values, seeds); NaN for a run that did not reach the loss.
      `distance` is that of all parameters, `relative_distance` and `flips` are means
      over layers, and `distance[NAME]` and its like are those of one layer.
      `misalignment` is 1 - `kernel_alignment`. `steps` is the number of steps.
      The names of quantities of one's own are their own.
    - `stop`: the loss at which runs are compared.
    """

    variable: str
    values: np.ndarray
    quantities: Mapping[str, np.ndarray]
    stop: float

    @property
    def slopes(self) -> Mapping[str, Estimate]:
        """The exponent of every quantity in the variable, with its 99% interval.

        It is the slope of the least-squares line through the logarithms of all runs,
        with the interval of Student's t distribution. What is no power law widens it.
        The exponent is NaN if a run did not reach the loss, or a quantity is not
        positive.
        """
        return Named({name: exponent(self.values, rows) for name, rows in self.quantities.items()})

    @property
    def lost(self) -> int:
        """The number of runs that did not reach the loss."""
        return int(np.isnan(self.quantities["steps"]).sum())

    def to_xarray(self) -> Dataset:
        """All quantities as an `xarray.Dataset`, by the variable and by seed."""
        import xarray as xr

        data = {
            name: ((self.variable, "seed"), rows, {"units": UNITS.get(name.partition("[")[0], "1")})
            for name, rows in self.quantities.items()
        }
        return xr.Dataset(data, {self.variable: self.values}, {"stop": f"loss {self.stop:g}"})

    def __repr__(self) -> str:
        runs = self.quantities["steps"].size
        lines = [
            f"slopes in {self.variable}, from {self.values[0]:g} to {self.values[-1]:g}, at the "
            f"loss {self.stop:g}; {self.lost} of {runs} runs did not reach it"
        ]
        width = max(len(name) for name in self.quantities)
        for name, slope in self.slopes.items():
            ends = " -> ".join(f"{v:.3g}" for v in np.mean(self.quantities[name], axis=1))
            known = np.isfinite(slope.value)
            words = f"{slope:.2f}" if known else "no slope, as a value is 0 or missing"
            lines.append(f"  {name:{width}}  {words}; means {ends}")
        return "\n".join(lines)


def scaling(
    make: Callable[[Any, Any], Any],
    grid: Mapping[str, Sequence[Any]],
    problem: Problem,
    rule: Callable[[Any], Any],
    *,
    seeds: Any = 3,
    stop: Any = 0.1,
    steps: Any = 10_000,
    trainable: Any = None,
    quantities: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    store: str | Path | None = None,
) -> Scaling:
    """Train networks at several values of one variable to one loss, and fit a power law
    to every quantity of `measure`.

    **Arguments:**

    - `make`: a function (value, key) -> network at its start.
    - `grid`: the name of the variable and its values, which are positive and
      increasing, such as {"width": [64, 128, 256]}.
    - `problem`: a `Problem`.
    - `rule`: a function of the value that returns an algorithm of fixed steps, such as
      `lambda width: GradientDescent(4 / width)`.
    - `seeds`: the number of networks at each value.
    - `stop`: the loss at which runs end and are compared. It is looked at after every
      step at first, and then after numbers of steps whose ratio is less than 1.02.
    - `steps`: the largest number of steps of a run.
    - `trainable`: which arrays are parameters, as in `simulate`.
    - `quantities`: more quantities by name, functions (network at its start, network at
      the end) -> number.
    - `store`: a folder in which every run that is done is kept, made if it does not
      exist. A call that was interrupted continues there and gives the same numbers,
      and so does one with more values or seeds. A run is taken over only if all that it
      is made of is the same: its network, the problem, the algorithm, `stop`, `steps`,
      `trainable` and `quantities`.

    **Returns:** a `Scaling`, whose `slopes` has an `Estimate` for every quantity.

    **Raises:** `ValueError` for a grid of several variables, fewer than two values or
    seeds, quantities that are no numbers or have a name that is taken, for what
    `simulate` refuses, and with a store for functions whose content cannot be told.
    `StoreError` for a folder that holds something else or cannot be written.
    """
    name, values = _variable(grid)
    kept = None if store is None else Kept(store)
    count = as_whole(seeds, "seeds", least=2)
    stop, steps = as_float(stop, "stop"), as_whole(steps, "steps", least=2)
    own = dict(quantities or {})
    if taken := sorted(name for name in own if name.partition("[")[0] in UNITS):
        raise ValueError(
            f"{taken[0]!r} in `quantities` is the name of a quantity that is there already, "
            f"besides {', '.join(UNITS)}: give it another name"
        )
    found: dict[str, np.ndarray] = {}
    for k, given in enumerate(grid[name]):
        for s, key in enumerate(seeds_of(0, count)):
            network, algorithm = make(given, key), rule(given)
            options = {"stop": stop, "steps": steps, "trainable": trainable}
            options |= {"quantities": own} if own else {}
            row = _kept(kept, network, problem, algorithm, key, options)
            for quantity, number in row.items():
                cells = found.setdefault(quantity, np.full((len(values), count), np.nan))
                cells[k, s] = number
    return Scaling(name, values, Named(found), stop)


def _variable(grid: Mapping[str, Sequence[Any]]) -> tuple[str, np.ndarray]:
    """The name of the variable and its values."""
    if not isinstance(grid, Mapping) or len(grid) != 1:
        raise ValueError(
            f'the grid must have one variable, such as {{"width": [64, 128, 256]}}, but is {grid!r}'
        )
    ((name, given),) = grid.items()
    values = as_host_numbers(given, name).astype(np.float64)
    if values.ndim != 1 or values.size < 2 or (np.diff(values) <= 0).any():
        raise ValueError(
            f"{name} must have two values or more, in increasing order, but they are {given!r}"
        )
    check_positive(values, name)
    return str(name), values


def _kept(
    kept: Kept | None,
    network: Any,
    problem: Problem,
    rule: Any,
    key: Any,
    options: dict[str, Any],
) -> dict[str, float]:
    """The quantities of one network: from the store, or by training it."""
    if kept is None:
        return _trained(network, problem, rule, key, **options)
    precision = str(jnp.result_type(float))
    name = kept.name(network, problem, rule, jax.random.key_data(key), options, precision)
    row = kept.read(name)
    if row is None:
        row = _trained(network, problem, rule, key, **options)
        kept.write(name, row)
    return row


def _trained(
    network: Any,
    problem: Problem,
    rule: Any,
    key: Any,
    *,
    stop: float,
    steps: int,
    trainable: Any,
    quantities: Mapping[str, Callable[[Any, Any], Any]] | None = None,
) -> dict[str, float]:
    """The quantities of one network that is trained to the loss `stop`."""
    random = rule.is_stochastic or problem.perturb is not None
    run = simulate(
        rule,
        network,
        problem,
        keys=key if random else None,
        steps=steps,
        stop=stop,
        record=Record(observables=(), times=min(LOOKS, steps + 1)),
        trainable=trainable,
    )
    reached = np.flatnonzero(np.asarray(run["loss"]) <= stop)
    if not reached.size or run.steps is None:
        return {"steps": np.nan}
    found = measure(network, run.networks, problem, trainable=trainable)
    row = {"steps": float(np.asarray(run.steps)[reached[0]])}
    layers = {
        "distance": np.asarray(found.distance),
        "relative_distance": np.asarray(found.relative_distance),
    }
    if found.flips is not None:
        layers["flips"] = np.asarray(found.flips)
    for name, parts in layers.items():
        whole = np.linalg.norm(parts) if name == "distance" else np.nanmean(parts)
        row[name] = float(whole)
        if len(parts) > 1:
            row |= {f"{name}[{g}]": float(v) for g, v in zip(found.layers, parts, strict=True)}
    scalars = jax.tree.map(
        float, (found.kernel_drift, 1 - found.kernel_alignment, found.least, found.tangent_error)
    )
    row |= dict(
        zip(("kernel_drift", "misalignment", "least", "tangent_error"), scalars, strict=True)
    )
    for name, f in (quantities or {}).items():
        value = np.asarray(f(network, run.networks))
        if value.shape != () or value.dtype.kind not in "fiub":
            raise ValueError(
                f"{name!r} in `quantities` must be a real number, but has shape {value.shape} and "
                f"dtype {value.dtype}"
            )
        row[name] = float(value)
    return row


def exponent(values: np.ndarray, rows: np.ndarray) -> Estimate:
    """The exponent of rows (values, seeds) in the values, with its interval."""
    from scipy.stats import linregress, t

    if not (np.isfinite(rows).all() and (rows > 0).all()):
        return Estimate(np.nan, np.nan, np.nan)
    x = np.repeat(np.log(values), rows.shape[1])
    line = linregress(x, np.log(rows).ravel())
    half = t.ppf((1 + LEVEL) / 2, x.size - 2) * line.stderr
    return Estimate(float(line.slope), float(line.slope - half), float(line.slope + half))
