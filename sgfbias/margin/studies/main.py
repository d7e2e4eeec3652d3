"""Does a linear classifier end at the max-margin solution of its optimiser's own norm,
and what does turning the data change?
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from sgfbias import LogisticLoss, Problem, Record, simulate
from sgfbias.margin import (
    AdaGrad,
    ExponentialLoss,
    Identity,
    MarginFlow,
    RMSProp,
    adagrad_limit,
    max_margin,
)
from sgfbias.margin.data import read_two_classes
from sgfbias.margin.geometry import surrogate_excess
from sgfbias.margin.network import Linear
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Log,
    Positive,
    Seed,
    SeededConfig,
    claim,
    control,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import span

PRECISION = "float64"
SECONDS = 60
REFERENCES = {
    "wang2021": "the max-margin problems of adaptive optimisers",
    "lyu2020": "the margin of gradient descent",
    "qian2019": "the limit of AdaGrad on linear models",
}
WANG, LYU, QIAN = source("wang2021"), source("lyu2020"), source("qian2019")
# Runs by name: all with the exponential loss, except the last one.
RUNS = ("gd", "rmsprop", "adagrad", "gd_logistic")
OWN = {"gd": "l2", "rmsprop": "l2", "adagrad": "adagrad", "gd_logistic": "l2"}
CANDIDATES = ("l2", "linf", "adagrad")
ANGLES = np.linspace(0.05, 1.5, 9)  # of the single example of the closed form
PER_DECADE = 20


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Gradient flow, RMSProp and AdaGrad train a linear classifier to losses far below
    what a float can hold, on data in several rotations.
    """

    rotations: Annotated[int, AtLeast(2)] = 8
    """Number of random rotations of the data, the first of which is none."""
    n: Annotated[int, Between(2, 32, closed=True)] = 4
    """Number of examples, half of each class."""
    d: Annotated[int, Between(3, 64, closed=True)] = 6
    """Number of inputs."""
    eps: Positive = 1e-8
    """Constant eps of AdaGrad and RMSProp, inside the square root."""
    decay: Annotated[float, Between(0.0, 1.0)] = 0.9
    """Decay of the squares that RMSProp averages."""
    nu: Annotated[float, Between(1e3, 1e8, closed=True)] = 1e4
    """Last value of nu = -log(sum of the losses)."""
    problem_seed: Seed = 5
    """Chooses among the data of one root seed."""
    data: Path | None = None
    """A .npz file with X (n, d) and y (n,) of two classes that a linear classifier
    separates, used instead of drawn data; None draws them.
    """

    @property
    def own_data(self) -> bool:
        """Whether the data are a user's own, read from `data`."""
        return self.data is not None

    def check(self) -> None:
        if not self.own_data:
            self.check_choice()


QUICK = Config(rotations=3)


def flows(config: Config) -> dict[str, MarginFlow]:
    """The flow of every run."""
    gd = MarginFlow(Identity())
    return {
        "gd": gd,
        "rmsprop": MarginFlow(RMSProp(config.decay, config.eps)),
        "adagrad": MarginFlow(AdaGrad(config.eps)),
        "gd_logistic": gd,
    }


def measure(config: Config, log: Log) -> Columns:
    """The weights of every run along nu on the turned data, and the candidates."""
    rng = np.random.default_rng(config.data_seed())
    if config.data is None:
        X, y = rng.normal(size=(config.n, config.d)), np.where(np.arange(config.n) % 2, -1.0, 1.0)
    else:
        X, y = read_two_classes(config.data)
    d = X.shape[1]
    turns = [np.eye(d)]
    while len(turns) < config.rotations:
        turns.append(np.linalg.qr(rng.normal(size=(d, d)))[0])
    decades = math.log10(config.nu) + 1
    nus = np.geomspace(0.1, config.nu, round(PER_DECADE * decades) + 1)
    record = Record(
        {
            "weights": weights,
            "conditioner": None,
            "surrogate_margin": None,
            "loss_time_speed": None,
            "nu": None,
        },
        nus,
    )
    out = Columns(
        nu=("nu", nus, {"units": "1"}),
        run=list(RUNS),
        candidate=list(CANDIDATES),
        angle=("angle", ANGLES, {"units": "rad"}),
    )
    shape = (len(RUNS), config.rotations)
    distance = np.full((*shape, len(CANDIDATES), nus.size), np.nan)
    turned_back = np.full((*shape, d), np.nan)
    speed, slack, clock = (np.full(shape, np.nan) for _ in range(3))
    start = Linear(jnp.zeros(d))
    for k, turn in enumerate(turns):
        log(f"rotation {k + 1} of {config.rotations}")
        data = X @ turn.T
        runs = {}
        for name, flow in flows(config).items():
            loss = LogisticLoss() if name == "gd_logistic" else ExponentialLoss()
            problem = Problem(jnp.asarray(data), jnp.asarray(y), loss=loss)
            runs[name] = simulate(flow, start, problem, t1=config.nu, record=record)
        h = np.asarray(runs["adagrad"].final["conditioner"])
        norms: dict[str, Any] = {"l2": "l2", "linf": "linf", "adagrad": 1 / h}
        ends = [unit(max_margin(data, y, norm=norms[name]).weights) for name in CANDIDATES]
        for r, run in enumerate(runs.values()):
            direction = unit(np.asarray(run["weights"]))
            distance[r, k] = [np.linalg.norm(direction - end, axis=1) for end in ends]
            turned_back[r, k] = direction[-1] @ turn
            speed[r, k] = run["loss_time_speed"][-1]
            slack[r, k] = surrogate_excess(run, 1.0).min()
            clock[r, k] = np.abs(np.asarray(run["nu"]) / nus - 1).max()
    out.add("distance", ("run", "rotation", "candidate", "nu"), distance, "1")
    out.add("direction", ("run", "rotation", "input"), turned_back, "1")
    out.add("loss_time_speed", ("run", "rotation"), speed, "1")
    out.add("slack", ("run", "rotation"), slack, "1")
    out.add("clock_error", ("run", "rotation"), clock, "1")
    log("the closed form of one example")
    epsilons = config.eps * np.array([1.0, 1e4, 1e8])
    out.axes["eps"] = ("eps", epsilons, {"units": "1"})
    out.add("closed_form_error", ("angle", "eps"), closed_form_errors(config, epsilons), "1")
    return out


def weights(network: Linear) -> Array:
    """The weights. One function for all runs, so that one program serves them."""
    return network.w


def unit(v: np.ndarray) -> np.ndarray:
    """Vectors, along the last axis, of length 1; 0 stays 0."""
    size = np.linalg.norm(v, axis=-1, keepdims=True)
    return v / np.where(size > 0, size, 1)


def closed_form_errors(config: Config, epsilons: np.ndarray) -> np.ndarray:
    """Distances (angles, eps) of AdaGrad's direction on one example to its limit.

    The weights are `nu` times the direction plus a constant, so the direction is that
    of their difference between half of the last nu and the last.
    """
    errors = np.full((ANGLES.size, epsilons.size), np.nan)
    record = Record({"weights": weights}, [config.nu / 2, config.nu])
    start = np.zeros(2)
    for i, angle in enumerate(ANGLES):
        x = np.array([np.cos(angle), np.sin(angle)])
        problem = Problem(jnp.asarray(x)[None], jnp.ones(1), loss=ExponentialLoss())
        for j, eps in enumerate(epsilons):
            run = simulate(
                MarginFlow(AdaGrad(float(eps))),
                Linear(jnp.asarray(start)),
                problem,
                t1=config.nu,
                record=record,
            )
            moved = np.diff(np.asarray(run["weights"]), axis=0)[0]
            limit = adagrad_limit(x, start, eps=float(eps)).direction
            errors[i, j] = np.linalg.norm(unit(moved) - limit)
    return errors


def degrees(directions: np.ndarray) -> np.ndarray:
    """The largest angle in degrees between two of the directions (..., rotation, d)."""
    cosines = np.einsum("...ki,...li->...kl", directions, directions)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1))).max(axis=(-1, -2))


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Directions and their limits, the identities along the way, and rotations."""
    nus = ds["nu"].values
    tenth = int(np.argmin(np.abs(np.log(nus * 10 / config.nu))))

    def distances(name: str, candidate: str) -> np.ndarray:
        """(rotations, nu)"""
        return ds["distance"].sel(run=name, candidate=candidate).values

    def product(name: str, candidate: str) -> np.ndarray:
        """Distance times nu, (rotations, 2), at a tenth of the last nu and there."""
        return (distances(name, candidate) * nus)[:, [tenth, -1]]

    ratios = {name: distances(name, OWN[name]) for name in RUNS}
    falls = {name: v[:, tenth] / v[:, -1] for name, v in ratios.items()}
    turned = dict(zip(RUNS, degrees(ds["direction"].values), strict=True))
    error = ds["closed_form_error"].values
    speed = ds["loss_time_speed"].values
    slack, clock = ds["slack"].values, ds["clock_error"].values
    far = distances("adagrad", "l2")[:, -1]
    wrong = distances("gd", "adagrad")[:, [tenth, -1]]
    round_off = 1e-6
    rows = [
        claim(
            "On one example AdaGrad goes to the closed form of its limit",
            QIAN,
            predicted="direction h x with h = (eps + x^2 S)^(-1/2)",
            measured=f"distances {span(error, '.1e')} over {error.size} examples and eps",
            tolerance="1e-6 for each, after extrapolation in 1/nu",
            holds=np.all(error < 1e-6),
            main=True,
        )
    ]
    rows += [
        claim(
            f"{words} goes to the {end}, at a distance of order 1/nu",
            paper,
            predicted="a tenth of the distance at tenfold nu",
            measured=f"{span(falls[name], '.3g')} times smaller; nu times distance "
            f"{span(product(name, OWN[name])[:, 1], '.3g')}",
            tolerance="a factor of 8 to 12 over the last tenfold, in every rotation",
            holds=np.all((falls[name] > 8) & (falls[name] < 12)),
            main=name in ("gd", "adagrad"),
        )
        for name, words, end, paper in (
            ("gd", "Gradient flow", "l2 max-margin solution", LYU),
            ("gd_logistic", "Gradient flow of the logistic loss", "l2 max-margin solution", LYU),
            ("rmsprop", "RMSProp", "l2 max-margin solution", WANG),
            ("adagrad", "AdaGrad", "max-margin solution of its own metric 1/h", WANG),
        )
    ]
    same = max(float(turned[name]) for name in ("gd", "gd_logistic", "rmsprop"))
    return [
        *rows,
        claim(
            "Turning the data turns the answers of gradient flow and RMSProp, and not AdaGrad's",
            WANG,
            predicted="equal up to 1/nu when turned back; AdaGrad's metric does not turn",
            measured=f"largest angles between answers {same:.2g} degrees; AdaGrad "
            f"{turned['adagrad']:.3g}",
            tolerance="below 0.5 degrees, and above 10 degrees",
            holds=same < 0.5 and turned["adagrad"] > 10,
            main=True,
        ),
        claim(
            "The surrogate margin changes by at least what the conditioner allows",
            WANG,
            predicted="d log g >= -1/2 sum_i p_i d log(1/h_i)",
            measured=f"excess between recorded nus {slack.min():.2g} or more",
            tolerance="at least -1e-9 at nu >= 1, in every run",
            holds=np.all(slack > -1e-9),
        ),
        claim(
            "The loss falls as 1 / (t N) with the speed N = sum_k h_k G_k^2",
            LYU,
            predicted="L t N = 1",
            measured=f"off by at most {np.abs(speed - 1).max():.1e} at the last nu",
            tolerance=f"{round_off:g} in every run",
            holds=np.all(np.abs(speed - 1) < round_off),
        ),
        claim(
            "nu of the weights is the clock of the run",
            WANG,
            predicted="equal, since d nu / d nu = <G, h G> / N = 1",
            measured=f"relative differences up to {clock.max():.1e}",
            tolerance="1e-6 at every recorded nu",
            holds=np.all(clock < 1e-6),
        ),
        control(
            "AdaGrad does not go to the l2 max-margin solution",
            WANG,
            predicted="a distance that stays",
            measured=f"distances {span(far, '.3g')}; {span(product('adagrad', 'l2'), '.2g')} "
            "times nu",
            tolerance="above 0.1 in some rotation",
            holds=np.any(far > 0.1),
            main=True,
        ),
        control(
            "gradient flow does not go to the max-margin solution of AdaGrad's metric",
            WANG,
            predicted="a distance that stays",
            measured=f"distances {span(wrong[:, 1], '.3g')}, {span(wrong[:, 0] / wrong[:, 1])} "
            "times smaller than at a tenth of nu",
            tolerance="above 0.1 in some rotation",
            holds=np.any(wrong[:, 1] > 0.1),
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw distances to the candidates against nu, and the answers turned back."""
    figure, (left, middle, right) = panels(columns=3)
    nus = ds["nu"].values
    late = nus >= 1
    colours = {"gd": COLOURS["gd"], "rmsprop": COLOURS["sgf"], "adagrad": COLOURS["sgd"]}
    words = {"gd": "gradient flow", "rmsprop": "RMSProp", "adagrad": "AdaGrad"}
    for axes, candidate, title in (
        (left, "l2", "Distance to the l2 max-margin solution"),
        (middle, "adagrad", "Distance to that of AdaGrad's metric"),
    ):
        for name, colour in colours.items():
            rows = ds["distance"].sel(run=name, candidate=candidate).values[:, late]
            axes.plot(nus[late], rows.T, color=colour, alpha=0.5, linewidth=1)
            axes.plot([], [], color=colour, label=words[name])
        finish(axes, title=title, x="nu = -log(sum of losses)", y="distance of directions")
    reference = ds["direction"].sel(run="gd").values[0]
    for name, colour in colours.items():
        found = ds["direction"].sel(run=name).values
        angle = np.degrees(np.arccos(np.clip(found @ reference, -1, 1)))
        size = 11 if name == "gd" else 6  # points of gradient flow lie under RMSProp's
        right.plot(
            np.arange(len(angle)), angle, "o", color=colour, label=words[name], markersize=size
        )
    finish(
        right,
        title="Answers on turned data, turned back",
        x="rotation of the data",
        y="degrees from the answer of gradient flow",
        x_scale="linear",
        y_scale="linear",
        room=0.2,
    )
    return figure
