"""How far apart does the noise of SGD drive two trainings of one network, and does
memory in the masks count as much as their share?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias import PersistentMask, Problem, SoftmaxCrossEntropyLoss, StochasticGradientDescent
from sgfbias.meanfield import noise_report
from sgfbias.meanfield.bundled import ten_classes
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Log,
    Positive,
    SeededConfig,
    claim,
    control,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import arrow, listed, span

NAME = "noise-of-networks"
PRECISION = "float32"
SECONDS = 60
REFERENCES = {
    "mignacco2022": "replicas, the effective temperature, and masks with memory",
    "yaida2018": "the ratio that is 1 in a stationary state",
}
MIGNACCO = source("mignacco2022")
FRACTIONS = (1.0, 0.5, 0.2, 0.05)
BASE = 0.2
# Persistences at the base share, as shares of the number of steps.
MEMORIES = (0.06, 0.16, 0.4)


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """An MLP of one hidden layer learns ten digits from one start, with masks of four
    shares without memory, and of one share with three memories.
    """

    examples: Annotated[int, Between(32, 1797, closed=True)] = 192
    """Number of images."""
    width: Annotated[int, Between(4, 256, closed=True)] = 24
    """Width of the hidden layer."""
    step: Positive = 0.3
    """Step size of SGD on the mean loss."""
    steps: Annotated[int, AtLeast(200)] = 600
    """Number of steps."""
    seeds: Annotated[int, AtLeast(3)] = 4
    """Number of runs in every setting, all from one start."""
    data_seed_offset: Annotated[int, AtLeast(0)] = 0
    """Number of the draw of images."""


QUICK = Config(examples=96, steps=250, seeds=3, width=12)


def settings(config: Config) -> list[tuple[float, float]]:
    """The share b and the persistence of every setting."""
    long = [(BASE, share * config.steps) for share in MEMORIES]
    return [*((b, 1 / b) for b in FRACTIONS), *long]


def measure(config: Config, log: Log) -> Columns:
    """Distances, responses and stationarity ratios in every setting."""
    own = config.data_seed("data_seed_offset")
    inputs, labels = ten_classes(config.examples, seed=own)
    problem = Problem(
        jnp.asarray(inputs, jnp.float32), jnp.asarray(labels), loss=SoftmaxCrossEntropyLoss()
    )
    start = eqx.nn.MLP(64, 10, config.width, 1, key=config.keys(1, 2)[0])
    out = Columns(
        setting=[f"b={b:g} q={q:.3g}" for b, q in settings(config)],
        seed=np.arange(config.seeds),
    )
    found: dict[str, list[Any]] = {
        name: [] for name in ("distance", "stationarity", "temperature", "loss", "response")
    }
    reports = []
    for b, q in settings(config):
        log(f"b = {b:g}, persistence {q:.3g}")
        reports.append(_report(config, start, problem, b, q, config.keys(8, 8 + config.seeds)))
    for report in reports:
        found["distance"].append(report.distance)
        found["stationarity"].append(report.stationarity)
        found["temperature"].append(report.temperature)
        found["loss"].append(report.loss[:, -1])
        found["response"].append(report.response[:, 1])
    out.axes["step"] = np.asarray(reports[0].steps)
    units = {"stationarity": "1", "temperature": "loss", "loss": "loss", "response": "step size"}
    out.add("distance", ("setting", "step"), np.stack(found["distance"]), "|w1 - w2|^2 / p")
    for name, unit in units.items():
        out.add(name, ("setting", "seed"), np.stack(found[name]), unit)
    log("two runs that share their masks")
    (key,) = config.keys(8, 9)
    same = _report(config, start, problem, BASE, 1 / BASE, jnp.stack([key, key]))
    out.add("shared", ("step",), same.distance, "|w1 - w2|^2 / p")
    return out


def _report(
    config: Config, start: Any, problem: Problem, b: float, q: float, keys: jax.Array
) -> Any:
    """The report of one setting."""
    sgd = StochasticGradientDescent(config.step, sampling=PersistentMask(b, persistence=q))
    waiting = config.steps // 2
    return noise_report(
        sgd, start, problem, keys=keys, steps=config.steps, waiting=waiting, probes=1
    )


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Replicas are driven apart by smaller shares and by longer memories, and not at
    all without noise.
    """
    end = ds["distance"].values[:, -1]
    count = len(FRACTIONS)
    vanilla, memory = end[:count], [end[FRACTIONS.index(BASE)], *end[count:]]
    response = ds["response"].values
    persistences = [q for _, q in settings(config)[count:]]
    finite = all(np.isfinite(ds[name].values).all() for name in ("distance", "loss"))
    ratio = ds["stationarity"].values[1:].mean(axis=1)
    return [
        claim(
            "Every run is finite",
            MIGNACCO,
            predicted="no run diverges",
            measured="all finite" if finite else "some are NaN or infinite",
            tolerance="none",
            holds=finite,
            reason="the step size is too large",
        ),
        claim(
            "With all examples at every step two runs stay together",
            MIGNACCO,
            predicted="a distance of 0",
            measured=f"{vanilla[0]:.1e} per parameter",
            tolerance="below rounding: 1e-10 of that at b = 0.5",
            holds=vanilla[0] <= 1e-10 * vanilla[1],
            main=True,
        ),
        claim(
            "Smaller shares of the examples drive runs further apart",
            MIGNACCO,
            predicted="an increase",
            measured=f"{arrow(vanilla[1:])} per parameter at b = {listed(FRACTIONS[1:])}",
            tolerance="every step up",
            holds=np.all(np.diff(vanilla[1:]) > 0),
            main=True,
        ),
        claim(
            "At one share of the examples long memories drive runs further apart",
            MIGNACCO,
            predicted="an increase",
            measured=f"{arrow(memory)} per parameter without memory and at persistence "
            f"{listed(persistences, '.0f')}",
            # The shortest memory may be too short for a difference above chance, and a
            # mask of the longest one hardly moves in a run.
            tolerance="both longer memories above none",
            holds=min(memory[2:]) > memory[0],
            main=True,
        ),
        claim(
            "The response to a force after one step is the step size",
            MIGNACCO,
            predicted=f"{config.step:g}",
            measured=span(response, ".5g"),
            tolerance="1e-4, the rounding of single precision",
            holds=np.all(np.abs(response / config.step - 1) < 1e-4),
        ),
        claim(
            "The runs are stationary at the end",
            source("yaida2018"),
            predicted="a ratio of 1",
            measured=f"{listed(ratio)} in the settings with noise",
            tolerance="within 10%",
            holds=np.all(np.abs(ratio - 1) < 0.1),
            must_hold=False,
            reason="a network still learns at this time, so its temperatures only inform",
        ),
        control(
            "two runs that share their masks stay together",
            MIGNACCO,
            predicted="a distance of 0",
            measured=f"{np.abs(ds['shared'].values).max():.1e}",
            tolerance="below rounding: 1e-10 of that with masks of their own",
            holds=np.abs(ds["shared"].values).max() <= 1e-10 * memory[0],
            main=True,
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the distance of replicas along the runs, and the temperature against it."""
    figure, (left, right) = panels(columns=2)
    steps = ds["step"].values
    names = [str(name) for name in ds["setting"].values]
    shades = np.linspace(0.35, 1, len(FRACTIONS))
    for k, name in enumerate(names):
        memory = k >= len(FRACTIONS)
        colour = COLOURS["control"] if memory else COLOURS["sgd"]
        shade = shades[k - len(FRACTIONS) + 1] if memory else shades[k]
        keep = ds["distance"].values[k] > 0
        if keep.any():
            left.plot(
                steps[keep],
                ds["distance"].values[k][keep],
                color=colour,
                alpha=float(shade),
                label=name,
            )
    finish(
        left,
        title="Distance of two runs",
        x="steps",
        y="|w₁ - w₂|² / p",
        x_scale="linear",
    )
    distance, heat = ds["distance"].values[1:, -1], ds["temperature"].values[1:].mean(axis=1)
    independent = np.arange(1, len(names)) < len(FRACTIONS)
    for keep, colour, words in (
        (independent, COLOURS["sgd"], "independent masks"),
        (~independent, COLOURS["control"], "masks with memory"),
    ):
        right.plot(distance[keep], heat[keep], "o", color=colour, label=words)
    finish(
        right,
        title="Fluctuation over response, not stationary",
        x="|w₁ - w₂|² / p at the end",
        y="drop / response, units of the loss",
    )
    return figure
