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
from diffrax import Tsit5
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
from sgfbias.margin.geometry import alignment_gap, surrogate_excess
from sgfbias.margin.network import DEGREE, fitting_network
from sgfbias.margin.objective import nu
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
SECONDS = 60
REFERENCES = {
    "wang2021": "the max-margin problems of adaptive optimisers",
    "lyu2020": "KKT points of the margin, and the smoothed margin",
    "lawson1974": "problems of least distance",
}
WANG, LYU = source("wang2021"), source("lyu2020")
OPTIMISERS = ("gd", "rmsprop", "adagrad")
WORDS = {"gd": "gradient flow", "rmsprop": "RMSProp", "adagrad": "AdaGrad"}
# "adagrad" is the metric 1/h of AdaGrad at the end of its run on the same data.
GEOMETRIES = ("l2", "linf", "adagrad")
# Where runs land: AdaGrad's in l2, too, and in its own metric.
LANDINGS = (("gd", "l2"), ("rmsprop", "l2"), ("adagrad", "l2"), ("adagrad", "metric"))
PER_DECADE = 24
MOST_STEPS = 60_000  # of a run
FIRST_NU = 0.5  # of the start; recorded is from nu = 1 on
# Runs are landed to |w - u| <= TOL |w|, where u solves the linearised problem. With its
# multipliers the residual of stationarity is at most TOL, and L sum lambda (q - 1) over
# |w|^2, where the sum is <u, w - u>, at most L TOL. The certificate has multipliers for
# which the sum of the squares of both is least.
TOL = 1e-6
LANDED = TOL * (1 + DEGREE**2) ** 0.5


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Small squared-ReLU networks, which are homogeneous of degree 3 and fit points of
    two half-spaces from the start, are trained by gradient flow, RMSProp and AdaGrad.
    """

    seeds: Annotated[int, AtLeast(2)] = 8
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


QUICK = Config(seeds=6, n=10, d=4, units=6, nu=1e3)
PAPER = Config(seeds=20)


def weights(network: Any) -> Array:
    """All weights, flat."""
    return jax.flatten_util.ravel_pytree(eqx.filter(network, eqx.is_inexact_array))[0]


class Gradient(eqx.Module):
    """The gradient of nu in all weights, flat."""

    problem: Problem

    def __call__(self, network: Any) -> Array:
        return weights(eqx.filter_grad(nu)(network, self.problem))


def measure(config: Config, log: Log) -> Columns:
    """Gaps along nu, what the surrogate margin gains, and where the ends land."""
    nus = np.geomspace(1.0, config.nu, round(PER_DECADE * np.log10(config.nu)) + 1)
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
    runs, landings = (config.seeds, len(OPTIMISERS)), (config.seeds, len(LANDINGS))
    gap = np.full((*runs, len(GEOMETRIES), nus.size), np.nan)
    own = np.full((*runs, nus.size), np.nan)
    found = {name: np.full(runs, np.nan) for name in ("reached", "slack", "gained", "margin")}
    turned = np.full(config.seeds, np.nan)
    landed = {
        name: np.full(landings, np.nan)
        for name in ("stationarity", "complementarity", "identity", "gain", "moved", "iterations",
                     "landed_margin")
    }  # fmt: skip
    for s, key in enumerate(config.keys(0, config.seeds)):
        problem, start = drawn(key, config)
        series = {"weights": weights, "gradient": Gradient(problem)}
        series |= dict.fromkeys(("conditioner", "surrogate_margin", "nu"))
        ends: dict[str, Trajectory] = {}
        for k, (name, flow) in enumerate(flows.items()):
            log(f"{WORDS[name]}, seed {s}")
            # An explicit solver takes steps of order 1 in nu, and is compiled faster.
            run = simulate(
                flow, start, problem, t1=config.nu, record=Record(series, nus), solver=Tsit5()
            )
            ends[name] = run
            found["reached"][s, k] = run.final["nu"] / config.nu
            found["margin"][s, k] = run.final["margin_l2"]
            excess = surrogate_excess(run, DEGREE, start=FIRST_NU)
            found["slack"][s, k], found["gained"][s, k] = excess.min(), excess.sum()
            own[s, k] = gaps_along(run, 1 / run["conditioner"])
        metric = 1 / ends["adagrad"].final["conditioner"]
        norms = {"l2": jnp.ones_like(metric), "linf": "linf", "adagrad": metric}
        for k, name in enumerate(OPTIMISERS):
            gap[s, k] = [gaps_along(ends[name], norms[geometry]) for geometry in GEOMETRIES]
        w = weights(ends["adagrad"].networks)
        turned[s] = alignment_gap(w, metric * w, "l2")
        for k, (name, geometry) in enumerate(LANDINGS):
            log(f"landing in {geometry} from {WORDS[name]}, seed {s}")
            for quantity, value in _landed(ends[name], geometry).items():
                landed[quantity][s, k] = value
    out.add("gap", ("seed", "optimiser", "geometry", "nu"), gap, "1")
    out.add("own", ("seed", "optimiser", "nu"), own, "1")
    out.add("turned", ("seed",), turned, "1")
    for name, values in found.items():
        out.add(name, ("seed", "optimiser"), values, "1")
    for name, values in landed.items():
        out.add(name, ("seed", "landing"), values, "degrees" if name == "moved" else "1")
    return out


def drawn(key: Array, config: Config) -> tuple[Problem, eqx.nn.MLP]:
    """Normal inputs with the labels of a random half-space, and a network that fits
    them. So no loss is ever 1 again: no run can rest, as others do where an example
    activates no unit and is not fitted.
    """
    data, labels, net = jax.random.split(key, 3)
    X = jax.random.normal(data, (config.n, config.d))
    y = jnp.where(X @ jax.random.normal(labels, (config.d,)) > 0, 1.0, -1.0).astype(X.dtype)
    start = fitting_network(net, X, y, units=config.units, nu=FIRST_NU)
    return Problem(X, y, loss=ExponentialLoss()), start


def gaps_along(run: Trajectory, norm: Any) -> np.ndarray:
    """The gap in a geometry along nu, in "linf" or in a metric, (p,) or (times, p)."""
    w, G = run["weights"], run["gradient"]
    if isinstance(norm, str):
        return np.asarray(_largest(w, G))
    return np.asarray(_metric(w, G, jnp.broadcast_to(norm, w.shape)))


_largest = jax.jit(jax.vmap(lambda w, G: alignment_gap(w, G, "linf")))
_metric = jax.jit(jax.vmap(alignment_gap))


def over_log(nus: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The averages of rows (..., nu) over log nu, by the trapezoidal rule."""
    x = np.log(nus)
    return np.trapezoid(rows, x, axis=-1) / (x[-1] - x[0])


def _landed(run: Trajectory, geometry: str) -> dict[str, float]:
    """Where a run lands, and the conditions of a KKT point there."""
    landed = land(run, geometry=geometry, tol=TOL)
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
    """The bounds along the way, gaps in the first and the last tenfold, and the landed
    points.
    """
    nus, own, gap = ds["nu"].values, ds["own"].values, ds["gap"].values
    decade = PER_DECADE + 1
    first = over_log(nus[:decade], own[..., :decade])
    last = over_log(nus[-decade:], own[..., -decade:])
    l2, linf, metric = np.moveaxis(over_log(nus[-decade:], gap[..., -decade:]), 2, 0)
    right = np.stack([l2[:, 0], l2[:, 1], metric[:, 2]], axis=1)
    wrong = np.stack([metric[:, 0], metric[:, 1], l2[:, 2]], axis=1)
    bounded = over_log(nus, own * (2 - own))
    gained = ds["gained"].values / np.log(nus[-1] / nus[0])
    margin = {name: ds["margin"].sel(optimiser=name).values for name in OPTIMISERS}
    lower = np.stack([margin["adagrad"] / margin[name] for name in ("gd", "rmsprop")])
    reached, slack = ds["reached"].values, ds["slack"].values
    stationarity, complementarity = ds["stationarity"].values, ds["complementarity"].values
    identity, gain = ds["identity"].values, ds["gain"].values
    gd, rmsprop = (
        ds["landed_margin"].sel(landing=f"{name} in l2").values for name in ("gd", "rmsprop")
    )
    same = int(np.sum(np.abs(rmsprop / gd - 1) < 1e-4))
    tenfold = "averages over the last tenfold of nu and the seeds"
    return [
        claim(
            "Every run reaches its last nu",
            LYU,
            predicted="nu grows for ever from a start that fits the data",
            measured=f"nu is {span(reached, '.6g')} of the last one",
            tolerance="within 1e-3 for every run",
            holds=np.all(np.abs(reached - 1) < 1e-3),
        ),
        claim(
            "The surrogate margin changes by at least what the conditioner allows",
            WANG,
            predicted="d log g >= -L/2 sum_i p_i d log(1/h_i)",
            measured=f"excess between recorded nus {np.min(slack):.2g} or more",
            tolerance="at least -1e-9 at nu >= 1, in every run",
            holds=np.all(slack > -1e-9),
        ),
        claim(
            "Averaged over log nu, the gap in the optimiser's own geometry is at most what the "
            "surrogate margin gains",
            LYU,
            predicted="an average of 1 - cos^2 of at most that excess over log nu",
            measured="averages and bounds: " + by_optimiser(bounded, gained),
            tolerance="at most the bound in every run",
            holds=np.all(bounded <= gained),
            main=True,
        ),
        claim(
            "The gap in the optimiser's own geometry falls",
            WANG,
            predicted="averages over tenfolds of nu whose sum is bounded, as the margin is",
            measured="averages over the first and the last tenfold and the seeds: "
            + by_optimiser(first.mean(0), last.mean(0))
            + f"; it rises in {np.sum(last >= first)} of {last.size} runs",
            tolerance="smaller over the last tenfold for every optimiser",
            holds=np.all(last.mean(0) < first.mean(0)),
            main=True,
        ),
        claim(
            "AdaGrad is nearest to stationary in its own metric, and least so in l2",
            WANG,
            predicted="the two max-margin problems have other KKT points",
            measured=f"{tenfold}, in l2 and in AdaGrad's metric: "
            + by_optimiser(l2.mean(0), metric.mean(0)),
            tolerance="AdaGrad's is the largest in l2, and the smallest in its metric",
            holds=np.all(l2.mean(0)[:2] < l2.mean(0)[2])
            and np.all(metric.mean(0)[:2] > metric.mean(0)[2]),
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
            "Below the end of every run lies a KKT point",
            LYU,
            predicted="multipliers that balance the weights, with complementarity",
            measured=f"stationarity up to {np.max(stationarity):.1e}, complementarity up to "
            f"{np.max(complementarity):.1e}, margin {span(gain, '.3g')} times the run's",
            tolerance=f"both below {LANDED:.1e}, as a landing to {TOL:g} implies, and at least the "
            "run's margin, for every landing",
            holds=np.all(stationarity <= LANDED)
            and np.all(complementarity <= LANDED)
            and np.all(gain >= 1 - 1e-12),
            main=True,
        ),
        claim(
            "At the landed points L sum lambda q is the square of the norm",
            LYU,
            predicted="equal, by Euler's identity",
            measured=f"relative differences up to {np.max(identity):.1e}",
            tolerance=f"{LANDED:.1e}, the stationarity that is allowed",
            holds=np.all(identity <= LANDED),
        ),
        claim(
            "Gradient flow and RMSProp land at the same point",
            WANG,
            predicted="the same problem, which has many KKT points",
            measured=f"equal margins for {same} of {gd.size} seeds; landings moved by "
            f"{span(ds['moved'].values, '.2g')} degrees",
            tolerance="1e-4 in every seed",
            holds=same == gd.size,
            must_hold=False,
        ),
        control(
            "in the geometry of the other problem no optimiser is as nearly stationary",
            WANG,
            predicted="a gap that stays, for AdaGrad in l2 of about that of w and w/h, "
            f"{np.mean(ds['turned'].values):.2g}",
            measured=f"{tenfold}, in the right geometry and in the other: "
            + by_optimiser(right.mean(0), wrong.mean(0))
            + f"; smaller in the other in {np.sum(right >= wrong)} of {right.size} runs",
            tolerance="larger in the other for every optimiser",
            holds=np.all(wrong.mean(0) > right.mean(0)),
            main=True,
        ),
        control(
            "no optimiser is as nearly stationary in l_inf",
            WANG,
            predicted="l_inf is the geometry of eps = 0",
            measured=f"{tenfold}, in the right geometry and in l_inf: "
            + by_optimiser(right.mean(0), linf.mean(0)),
            tolerance="larger in l_inf for every optimiser",
            holds=np.all(linf.mean(0) > right.mean(0)),
        ),
    ]


def by_optimiser(left: np.ndarray, right: np.ndarray) -> str:
    """The numbers of two tables (optimisers,), or their ranges over the seeds if they
    are (seeds, optimisers), as text.
    """
    return "; ".join(
        f"{WORDS[name]} {span(left[..., k])} and {span(right[..., k])}"
        for k, name in enumerate(OPTIMISERS)
    )


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the gap of each optimiser in each geometry against nu."""
    figure, axes = panels(columns=3)
    nus = ds["nu"].values
    colours = {"gd": COLOURS["gd"], "rmsprop": COLOURS["sgf"], "adagrad": COLOURS["sgd"]}
    titles = {"l2": "l2", "linf": "l_inf", "adagrad": "the metric of AdaGrad"}
    for panel, geometry in zip(axes, GEOMETRIES, strict=True):
        for name in OPTIMISERS:
            rows = ds["gap"].sel(optimiser=name, geometry=geometry).values
            style = "--" if name == "rmsprop" else "-"
            panel.plot(nus, rows.T, color=colours[name], alpha=0.6, linewidth=1.2, linestyle=style)
            panel.plot([], [], color=colours[name], label=WORDS[name], linestyle=style)
        finish(
            panel,
            title=f"Gap in {titles[geometry]}",
            x="nu = -log(sum of losses)",
            y="1 - cos of the angle of w and its dual",
        )
    return figure
