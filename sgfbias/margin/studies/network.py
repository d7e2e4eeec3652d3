"""Of which max-margin problem is the direction of a squared-ReLU network nearly a KKT
point, and which KKT point lies below it?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from sgfbias import Problem, Record, Trajectory, simulate
from sgfbias.margin import (
    AdaGrad,
    ExponentialLoss,
    Identity,
    MarginFlow,
    RMSProp,
    certify,
    land,
)
from sgfbias.margin.geometry import least_slack
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Count,
    Log,
    Positive,
    SeededConfig,
    claim,
    control,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import span

NAME = "margin-network"
PRECISION = "float64"
SECONDS = 100
REFERENCES = {
    "wang2021": "the max-margin problems of adaptive optimisers",
    "lyu2020": "KKT points of the margin, and the smoothed margin",
    "lawson1974": "problems of least distance",
}
WANG, LYU = source("wang2021"), source("lyu2020")
DEGREE = 3
OPTIMISERS = ("gd", "rmsprop", "adagrad")
WORDS = {"gd": "gradient flow", "rmsprop": "RMSProp", "adagrad": "AdaGrad"}
GEOMETRIES = ("l2", "linf", "metric")
# Where runs land: AdaGrad's in l2, too, and in its own metric.
LANDINGS = (("gd", "l2"), ("rmsprop", "l2"), ("adagrad", "l2"), ("adagrad", "metric"))
PER_DECADE = 12
DRAWS = 10_000  # of networks, at most
MOST_STEPS = 60_000  # of a run
# 1 - cos of the angle between the weights and the gradient of nu, in the inner product
# of the geometry: 18 and 26 degrees.
SMALL, OWN = 0.05, 0.1


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Small squared-ReLU networks, which are homogeneous of degree 3, separate points
    of two half-spaces by gradient flow, RMSProp and AdaGrad.
    """

    seeds: Annotated[int, AtLeast(2)] = 3
    """Number of seeds, each with data and a network of its own."""
    n: Count = 16
    """Number of examples."""
    d: Count = 5
    """Number of inputs."""
    units: Annotated[int, AtLeast(2)] = 8
    """Number of hidden units."""
    eps: Positive = 1e-8
    """Constant eps of AdaGrad and RMSProp, inside the square root."""
    decay: Annotated[float, Between(0.0, 1.0)] = 0.9
    """Decay of the squares that RMSProp averages."""
    nu: Annotated[float, Between(1e2, 1e7, closed=True)] = 3e3
    """Last value of nu = -log(sum of the losses)."""


QUICK = Config(seeds=2, n=10, d=4, units=6, nu=1e3)
PAPER = Config(seeds=20)


def squared_relu(z: Array) -> Array:
    """One function for all networks, so that one program serves them."""
    return jnp.square(jax.nn.relu(z))


def weights(network: Any) -> Array:
    """All weights, flat."""
    return jax.flatten_util.ravel_pytree(eqx.filter(network, eqx.is_inexact_array))[0]


def measure(config: Config, log: Log) -> Columns:
    """Gaps along nu, the margins at the end, and where the ends land."""
    nus = np.geomspace(1.0, config.nu, round(PER_DECADE * np.log10(config.nu)) + 1)
    names = ("nu", "conditioner", "surrogate_margin", "margin_l2")
    gaps = tuple(f"gap_{name}" for name in GEOMETRIES)
    record = Record({"weights": weights, **dict.fromkeys((*names, *gaps))}, nus)
    flows = {
        "gd": MarginFlow(Identity(), most_steps=MOST_STEPS),
        "rmsprop": MarginFlow(RMSProp(config.decay, config.eps), most_steps=MOST_STEPS),
        "adagrad": MarginFlow(AdaGrad(config.eps), most_steps=MOST_STEPS),
    }
    out = Columns(
        nu=("nu", nus, {"units": "1"}),
        optimiser=list(OPTIMISERS),
        geometry=list(GEOMETRIES),
        landing=[f"{name} in {geometry}" for name, geometry in LANDINGS],
    )
    runs = (config.seeds, len(OPTIMISERS))
    gap = np.full((*runs, len(GEOMETRIES), nus.size), np.nan)
    found = {name: np.full(runs, np.nan) for name in ("reached", "slack", "margin")}
    landings = (config.seeds, len(LANDINGS))
    landed = {
        name: np.full(landings, np.nan)
        for name in ("stationarity", "complementarity", "identity", "gain", "moved", "iterations",
                     "landed_margin")
    }  # fmt: skip
    for s, key in enumerate(config.keys(0, config.seeds)):
        problem, start = drawn(key, config)
        ends: dict[str, Trajectory] = {}
        for k, (name, flow) in enumerate(flows.items()):
            log(f"{WORDS[name]}, seed {s}")
            run = simulate(flow, start, problem, t1=config.nu, record=record)
            found["reached"][s, k] = run.final["nu"] / config.nu
            if not float(run.final["q_min"]) > 0:
                continue
            ends[name] = run
            gap[s, k] = [np.asarray(run[g]) for g in gaps]
            found["slack"][s, k] = least_slack(run, DEGREE)
            found["margin"][s, k] = run.final["margin_l2"]
        for k, (name, geometry) in enumerate(LANDINGS):
            if name in ends:
                log(f"landing in {geometry} from {WORDS[name]}, seed {s}")
                for quantity, value in _landed(ends[name], geometry).items():
                    landed[quantity][s, k] = value
    out.add("gap", ("seed", "optimiser", "geometry", "nu"), gap, "1")
    for name, values in found.items():
        out.add(name, ("seed", "optimiser"), values, "1")
    for name, values in landed.items():
        out.add(name, ("seed", "landing"), values, "degrees" if name == "moved" else "1")
    return out


def drawn(key: Array, config: Config) -> tuple[Problem, eqx.nn.MLP]:
    """Normal inputs with the labels of a random half-space, and the first network in
    which every example activates a unit whose output has the sign of its label. Others
    may come to rest where an example activates no unit and is not fitted.
    """
    data, labels, net = jax.random.split(key, 3)
    X = jax.random.normal(data, (config.n, config.d))
    y = jnp.where(X @ jax.random.normal(labels, (config.d,)) > 0, 1.0, -1.0).astype(X.dtype)
    options: Any = {"use_bias": False, "use_final_bias": False, "activation": squared_relu}
    for draw in range(DRAWS):
        own = jax.random.fold_in(net, draw)
        start = eqx.nn.MLP(config.d, "scalar", config.units, 1, key=own, **options)
        active = X @ start.layers[0].weight.T > 0
        if bool(jnp.all(jnp.any(active & (y[:, None] * start.layers[1].weight > 0), axis=1))):
            break
    return Problem(X, y, loss=ExponentialLoss()), start


def _landed(run: Trajectory, geometry: str) -> dict[str, float]:
    """Where a run lands, and the conditions of a KKT point there."""
    landed = land(run, geometry=geometry)
    found = landed.certificate
    before = certify(run, geometry=geometry)
    # In the scale q_min = 1 the norm is margin^(-1/L), and L sum lambda q = |w|^2.
    square = found.margin ** (-2 / DEGREE)
    return {
        "stationarity": found.stationarity,
        "complementarity": abs(found.complementarity),
        "identity": abs(DEGREE * float(np.sum(found.multipliers * found.margins)) / square - 1),
        "gain": found.margin / before.margin,
        "moved": landed.moved_degrees,
        "iterations": landed.iterations,
        "landed_margin": found.margin,
    }


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Gaps and margins at the end, the bound along the way, and the landed points."""
    last = ds["gap"].isel(nu=-1)

    def gaps(name: str, geometry: str) -> np.ndarray:
        """(seeds,)"""
        return last.sel(optimiser=name, geometry=geometry).values

    l2 = np.stack([gaps("gd", "l2"), gaps("rmsprop", "l2")])
    own, wrong = gaps("adagrad", "metric"), gaps("adagrad", "l2")
    margin = {name: ds["margin"].sel(optimiser=name).values for name in OPTIMISERS}
    lower = np.stack([margin["adagrad"] / margin[name] for name in ("gd", "rmsprop")])
    reached = ds["reached"].values
    slack = ds["slack"].values
    stationarity, complementarity = ds["stationarity"].values, ds["complementarity"].values
    identity, gain = ds["identity"].values, ds["gain"].values
    gd, other = (
        ds["landed_margin"].sel(landing=f"{name} in l2").values for name in ("gd", "rmsprop")
    )
    same = int(np.sum(np.abs(other / gd - 1) < 1e-4))
    return [
        claim(
            "Every run reaches its last nu",
            LYU,
            predicted="the data are separated, and nu grows for ever",
            measured=f"nu is {span(reached, '.6g')} of the last one",
            tolerance="within 1e-3 for every run",
            holds=np.all(np.abs(reached - 1) < 1e-3),
        ),
        claim(
            "The weights of gradient flow and of RMSProp are nearly parallel to the gradient of nu",
            WANG,
            predicted="a gap in l2 that goes to 0",
            measured=f"gaps in l2: gradient flow {span(l2[0])}, RMSProp {span(l2[1])}",
            tolerance=f"below {SMALL} (18 degrees) in every seed",
            holds=np.all(l2 < SMALL),
            main=True,
        ),
        claim(
            "The weights of AdaGrad are nearly stationary in its own metric",
            WANG,
            predicted="a gap in the metric 1/h that goes to 0",
            measured=f"gaps in its metric {span(own)}",
            tolerance=f"below {OWN} (26 degrees) in every seed",
            holds=np.all(own < OWN),
            main=True,
        ),
        claim(
            "AdaGrad has the smallest l2 margin at this nu",
            WANG,
            predicted="a smaller one than gradient flow and RMSProp, which maximise it",
            measured=f"ratios to gradient flow {span(lower[0])}, to RMSProp {span(lower[1])}",
            tolerance="below 1 in every seed",
            holds=np.all(lower < 1),
            must_hold=False,
        ),
        claim(
            "The surrogate margin changes by at least what the conditioner allows",
            WANG,
            predicted="d log g >= -L/2 sum_i p_i d log(1/h_i)",
            measured=f"excess between recorded nus {np.nanmin(slack):.2g} or more",
            tolerance="at least -1e-9 at nu >= 1, in every run",
            holds=np.all(slack > -1e-9),
        ),
        claim(
            "Below the end of every run lies a KKT point",
            LYU,
            predicted="multipliers that balance the weights, with complementarity",
            measured=f"stationarity up to {np.nanmax(stationarity):.1e}, complementarity up to "
            f"{np.nanmax(complementarity):.1e}, margin {span(gain, '.3g')} times the run's",
            tolerance="1e-4, 1e-6, and at least the run's margin, for every landing",
            holds=np.all(stationarity < 1e-4)
            and np.all(complementarity < 1e-6)
            and np.all(gain >= 1 - 1e-12),
            main=True,
        ),
        claim(
            "At the landed points L sum lambda q is the square of the norm",
            LYU,
            predicted="equal, by Euler's identity",
            measured=f"relative differences up to {np.nanmax(identity):.1e}",
            tolerance="1e-5, ten times the stationarity to which runs are landed",
            holds=np.all(identity < 1e-5),
        ),
        claim(
            "Gradient flow and RMSProp land at the same point",
            WANG,
            predicted="the same problem, which has many KKT points",
            measured=f"equal margins for {same} of {gd.size} seeds; they moved by "
            f"{span(ds['moved'].values, '.2g')} degrees",
            tolerance="1e-4 in every seed",
            holds=same == gd.size,
            must_hold=False,
        ),
        control(
            "the weights of AdaGrad are not stationary in l2",
            WANG,
            predicted="a gap that stays",
            measured=f"gaps in l2 {span(wrong)}",
            tolerance=f"the median of the seeds above {SMALL}, the bound for the others",
            holds=np.median(wrong) > SMALL,
            main=True,
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the gap of each optimiser in each geometry against nu."""
    figure, axes = panels(columns=3)
    nus = ds["nu"].values
    colours = {"gd": COLOURS["gd"], "rmsprop": COLOURS["sgf"], "adagrad": COLOURS["sgd"]}
    titles = {"l2": "l2", "linf": "l_inf", "metric": "the metric of the optimiser"}
    for panel, geometry in zip(axes, GEOMETRIES, strict=True):
        for name in OPTIMISERS:
            rows = ds["gap"].sel(optimiser=name, geometry=geometry).values
            panel.plot(nus, np.abs(rows).T, color=colours[name], alpha=0.7, linewidth=1.2)
            panel.plot([], [], color=colours[name], label=WORDS[name])
        finish(
            panel,
            title=f"Gap in {titles[geometry]}",
            x="nu = -log(sum of losses)",
            y="1 - cos of the angle of w and its dual",
        )
    return figure
