"""Do the temperature of SGD where no perceptron fits the labels and the distance of two
runs where many do tell the same of its noise, and does noise move the decision boundary
away from the examples?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias import PersistentMask
from sgfbias.meanfield import gardner_capacity
from sgfbias.meanfield.perceptron import Tasks, fluctuations, solutions
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
from sgfbias.study.plotting import COLOURS, Figure, finish, interval_bars, panels
from sgfbias.study.statistics import Estimate, arrow, estimate, listed, mean

NAME = "meanfield-replicas"
PRECISION = "float32"
SECONDS = 60
REFERENCES = {
    "mignacco2022": "the effective temperature, the distance of replicas, and wide boundaries",
    "gardner1988": "how many random labels a perceptron fits",
}
MIGNACCO = source("mignacco2022")
# The settings: shares b with independent masks, then times tau at one share.
FRACTIONS = (1.0, 0.7, 0.5, 0.3, 0.15)
TAUS = (0.5, 1.0, 2.0, 4.0)
BASE = 0.3
COUNT = len(FRACTIONS)
NAMES = [*(f"b={b:g}" for b in FRACTIONS), *(f"b={BASE:g}, tau={tau:g}" for tau in TAUS)]
LAG = 40
VIOLATION = 1e-4
NEAR = 0.05
AGREE = 0.9
EDGES = np.linspace(-NEAR, 2 + NEAR, 22)
SHUFFLES = 200
SECOND = 10_000


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """A perceptron on a sphere learns random labels with the squared hinge loss of
    margin 0, once with more labels than it can fit and once with fewer.
    """

    unsat_alpha: Annotated[float, Between(2.0, 20.0)] = 4.0
    """Number of labels per dimension where not all can be fitted, above 2."""
    unsat_d: Annotated[int, Between(20, 4000, closed=True)] = 150
    """Number of dimensions where not all labels can be fitted."""
    unsat_step: Positive = 0.05
    """Step size where not all labels can be fitted, for the sum of losses."""
    burn: Annotated[int, AtLeast(100)] = 1500
    """Number of steps before fluctuations and responses begin."""
    lags: Annotated[int, AtLeast(LAG)] = 200
    """Longest lag of fluctuations and responses."""
    sat_alpha: Annotated[float, Between(0.0, 2.0)] = 1.0
    """Number of labels per dimension where all can be fitted, below 2."""
    sat_d: Annotated[int, Between(20, 4000, closed=True)] = 200
    """Number of dimensions where all labels can be fitted."""
    sat_step: Positive = 0.1
    """Step size where all labels can be fitted, for the sum of losses."""
    sat_steps: Annotated[int, AtLeast(100)] = 6000
    """Number of steps where all labels can be fitted."""
    seeds: Annotated[int, AtLeast(4)] = 32
    """Number of data sets of either kind, each with one start."""
    data_seed_offset: Annotated[int, AtLeast(0)] = 0
    """Number of the draw of data sets."""

    def check(self) -> None:
        for name in ("unsat", "sat"):
            alpha, d, step = (getattr(self, f"{name}_{word}") for word in ("alpha", "d", "step"))
            if abs(alpha * d - round(alpha * d)) > 1e-6:
                raise ValueError(
                    f"{name}_alpha times {name}_d must be a whole number of examples, but is "
                    f"{alpha * d:g}"
                )
            if step * 1.01 / TAUS[0] > BASE:
                raise ValueError(
                    f"{name}_step must be below {TAUS[0] * BASE / 1.01:.2g}, so that masks have "
                    f"memory at the shortest time, but is {step:g}"
                )


QUICK = Config(unsat_d=60, lags=60, sat_d=80, seeds=24)
PAPER = Config(unsat_d=300, sat_d=400, seeds=64)


def lags_of(config: Config) -> np.ndarray:
    """The lags that are looked at, (lags,), with 0 first and the claimed one."""
    some = np.geomspace(1, config.lags, 16).round().astype(int)
    return np.unique([0, LAG, *some])


def settings(step: float) -> PersistentMask:
    """The masks of all settings, along a leading axis."""
    b = jnp.asarray([*FRACTIONS, *(BASE for _ in TAUS)], jnp.float32)
    q = jnp.asarray([*(1 / b for b in FRACTIONS), *(tau / step for tau in TAUS)], jnp.float32)
    return jax.vmap(lambda b, q: PersistentMask(b, persistence=q))(b, q)


def measure(config: Config, log: Log) -> Columns:
    """Drops and responses where no weights fit all labels, and distances and gaps of
    solutions where some do.
    """
    out = Columns(
        setting=NAMES,
        seed=np.arange(config.seeds),
        lag=("lag", lags_of(config), {"units": "steps"}),
        gap=("gap", (EDGES[1:] + EDGES[:-1]) / 2, {"units": "y w . x / sqrt(d)"}),
        shuffle=np.arange(SHUFFLES),
    )
    generator = np.random.default_rng(config.data_seed("data_seed_offset"))
    log("more labels than can be fitted")
    tasks = Tasks.draw(generator, config.seeds, config.unsat_alpha, config.unsat_d)
    drop, response = fluctuations(
        tasks,
        settings(config.unsat_step),
        config.unsat_step,
        tuple((config.burn + lags_of(config)).tolist()),
        config.keys(0, config.seeds),
        jnp.asarray(generator.choice([-1.0, 1.0], tasks.start.shape), jnp.float32),
    )
    out.add("drop", ("setting", "seed", "lag"), drop, "|dw|^2 / (2 d)")
    out.add("response", ("setting", "seed", "lag"), response, "w per unit force")
    log("fewer labels than can be fitted")
    distance, found = solutions(
        Tasks.draw(generator, config.seeds, config.sat_alpha, config.sat_d),
        settings(config.sat_step),
        config.sat_step,
        config.sat_steps,
        config.keys(SECOND, SECOND + 2 * config.seeds).reshape(config.seeds, 2),
    )
    gaps = np.asarray(found)
    out.add("distance", ("setting", "seed"), distance, "|w1 - w2|^2 / d")
    over, unit = (-2, -1), "y w . x / sqrt(d)"
    out.add("violation", ("setting", "seed"), -gaps.min(axis=over), unit)
    out.add("mean_gap", ("setting", "seed"), gaps.mean(axis=over), unit)
    near = np.mean(np.abs(gaps) < NEAR, axis=over)
    out.add("near", ("setting", "seed"), near, "share of the labels")
    density = [np.histogram(row, EDGES, density=True)[0] for row in gaps]
    out.add("density", ("setting", "gap"), np.stack(density), "1 / gap")
    shuffled = [generator.permutation(len(NAMES)) for _ in range(SHUFFLES)]
    out.add("shuffled", ("shuffle", "setting"), np.stack(shuffled), "number of the setting")
    return out


def temperatures(ds: xr.Dataset, lag: int) -> list[Estimate]:
    """Mean drop over mean response at a lag in every setting, with bootstrap intervals
    over data sets.
    """
    at = int(np.flatnonzero(ds["lag"].values == lag)[0])
    return [
        estimate(
            lambda a, b: np.mean(a, axis=-1) / np.mean(b, axis=-1), drop, response, paired=True
        )
        for drop, response in zip(
            ds["drop"].values[:, :, at], ds["response"].values[:, :, at], strict=True
        )
    ]


def hotter_for_its_distance(ds: xr.Dataset, first: int, second: int) -> Estimate:
    """Temperature over distance of one setting, over that of another. Data sets of the
    two kinds are resampled independently, the settings together.
    """
    at = int(np.flatnonzero(ds["lag"].values == LAG)[0])
    drop, response = (ds[name].values[:, :, at] for name in ("drop", "response"))
    distance, seeds = ds["distance"].values, np.arange(ds.sizes["seed"])

    def ratio(hot: np.ndarray, far: np.ndarray) -> Any:
        up, down = (
            np.mean(drop[k][hot], axis=-1)
            / np.mean(response[k][hot], axis=-1)
            / np.mean(distance[k][far], axis=-1)
            for k in (first, second)
        )
        return up / down

    return estimate(ratio, seeds, seeds)


def ranks_agree(first: Any, second: Any) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Temperature and distance rank the settings alike, and the noisiest ends with
    fewer examples near its boundary.
    """
    heat = np.asarray([e.value for e in temperatures(ds, LAG)])
    late = np.asarray([e.value for e in temperatures(ds, config.lags)])
    distance = ds["distance"].values.mean(axis=1)
    base = FRACTIONS.index(BASE)
    by_memory = [distance[base], *distance[COUNT:]]
    agreement = ranks_agree(heat, distance)
    by_chance = [ranks_agree(heat[row], distance) for row in ds["shuffled"].values]
    chance = float(np.mean(np.asarray(by_chance) > AGREE))
    excess = hotter_for_its_distance(ds, COUNT, COUNT - 1)
    noisiest = int(np.argmax(distance))
    wider = mean(ds["mean_gap"].values[noisiest] - ds["mean_gap"].values[0])
    fewer = mean(ds["near"].values[noisiest] - ds["near"].values[0])
    violation = float(ds["violation"].values.max())
    return [
        claim(
            "Where all labels can be fitted every run fits them",
            source("gardner1988"),
            predicted=f"solutions below {gardner_capacity(0.0):g} labels per dimension, here "
            f"{config.sat_alpha:g}",
            measured=f"violations of at most {violation:.1e}",
            tolerance=f"below {VIOLATION:g}",
            holds=violation < VIOLATION,
            reason="the runs are too short",
        ),
        claim(
            "With all examples at every step replicas stay together and no temperature is left",
            MIGNACCO,
            predicted="a distance of 0, and a temperature of 0 once the run is stationary",
            measured=f"a distance of {distance[0]:.1e}; at lag {LAG} {heat[0] / heat.max():.1%} of "
            f"the largest temperature, at lag {config.lags} {late[0] / late.max():.1%}",
            tolerance=f"1e-6 of the largest distance, and 1% of the largest temperature at lag "
            f"{LAG}: gradient descent still ages",
            holds=distance[0] <= 1e-6 * distance.max() and abs(heat[0]) < 0.01 * heat.max(),
            main=True,
        ),
        claim(
            "Smaller shares of the examples heat, and drive replicas apart",
            MIGNACCO,
            predicted="increases",
            measured=f"temperatures {arrow(heat[:COUNT])}, distances {arrow(distance[:COUNT])} at "
            f"b = {listed(FRACTIONS)}",
            tolerance="every step up",
            holds=np.all(np.diff(heat[:COUNT]) > 0) and np.all(np.diff(distance[:COUNT]) > 0),
        ),
        claim(
            "At one share of the examples longer memories drive replicas further apart",
            MIGNACCO,
            predicted="an increase",
            measured=f"{arrow(by_memory)} without memory and at tau = {listed(TAUS)}",
            tolerance="every step up",
            holds=np.all(np.diff(by_memory) > 0),
        ),
        claim(
            "Every memory makes this share hotter",
            MIGNACCO,
            predicted="hotter than with independent masks",
            measured=f"{listed(heat[COUNT:])} at tau = {listed(TAUS)}, {heat[base]:.2g} without "
            "memory",
            tolerance="every one hotter",
            holds=np.all(heat[COUNT:] > heat[base]),
        ),
        claim(
            "The temperature where labels cannot be fitted ranks the settings as the distance of "
            "replicas does where they can",
            MIGNACCO,
            predicted="the same order",
            measured=f"a rank correlation of {agreement:.3f} over {len(heat)} settings",
            tolerance=f"above {AGREE:g}",
            holds=agreement > AGREE,
            main=True,
        ),
        claim(
            "The two are not one number: a memory of tau = 0.5 is hotter for its distance than "
            "the smallest share is",
            MIGNACCO,
            predicted="alike, not equal",
            measured=f"temperature over distance {heat[COUNT] / distance[COUNT]:.1f} at tau = "
            f"{TAUS[0]:g}, {heat[COUNT - 1] / distance[COUNT - 1]:.1f} at b = {FRACTIONS[-1]:g}: "
            f"a ratio of {excess:.1f}",
            tolerance="an interval above 1",
            holds=excess.low > 1,
            main=True,
        ),
        claim(
            "The noisiest setting ends further from its examples than gradient descent does on "
            "the same data from the same start",
            MIGNACCO,
            predicted="a larger mean gap, and fewer examples near the boundary",
            measured=f"{NAMES[noisiest]}: mean gap {wider:+.3f}, share of gaps below {NEAR:g} "
            f"{fewer:+.3f}",
            tolerance="paired intervals that leave out 0",
            holds=wider.low > 0 and fewer.high < 0,
            main=True,
        ),
        control(
            "with the settings shuffled temperature and distance do not rank them alike",
            MIGNACCO,
            predicted="no order",
            measured=f"{chance:.1%} of {len(by_chance)} shuffles reach a rank correlation of "
            f"{AGREE:g}",
            tolerance="below 5%",
            holds=chance < 0.05,
            main=True,
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw temperatures against distances, and the gaps of the quietest and of the
    noisiest setting.
    """
    figure, (left, right) = panels(columns=2)
    heat, distance = temperatures(ds, LAG), ds["distance"].values.mean(axis=1)
    for part, colour, words in (
        (slice(1, COUNT), COLOURS["sgd"], "independent masks, b falls"),
        (slice(COUNT, None), COLOURS["control"], f"b = {BASE:g}, memory grows"),
    ):
        order = np.argsort(distance[part])
        rows = [heat[part][k] for k in order]
        interval_bars(left, distance[part][order], rows, colour=colour, label=words, style="o-")
    finish(
        left,
        title="Two measures of the noise of SGD",
        x=f"distance |w₁ - w₂|² / d, alpha = {config.sat_alpha:g}",
        y=f"temperature at lag {LAG}, alpha = {config.unsat_alpha:g}",
    )
    noisiest = int(np.argmax(distance))
    for k, colour, words in (
        (0, COLOURS["gd"], "all examples at every step"),
        (noisiest, COLOURS["control"], NAMES[noisiest]),
    ):
        right.step(
            ds["gap"].values, ds["density"].values[k], where="mid", color=colour, label=words
        )
    finish(
        right,
        title="Distance of the examples from the boundary",
        x="gap y w . x / sqrt(d)",
        y="density",
        x_scale="linear",
    )
    return figure
