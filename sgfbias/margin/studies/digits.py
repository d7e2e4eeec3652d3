"""Where does the direction of a ReLU network that separates images of digits go, once
its loss is far below what a float can hold?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from diffrax import Tsit5
from jaxtyping import Array

from sgfbias import OptaxDescent, Problem, Record, simulate
from sgfbias.margin import Identity, MarginFlow, certify
from sgfbias.margin.data import IMAGES, digits
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Count,
    Log,
    SeededConfig,
    claim,
    control,
    not_applicable,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import span

NAME = "margin-digits"
PRECISION = "float64"
SECONDS = 60
REFERENCES = {
    "lyu2020": "the margin of gradient descent on homogeneous networks",
    "wang2021": "the direction of Adam",
}
LYU, WANG = source("lyu2020"), source("wang2021")
FIRST = 5.0  # the nu from which on margins and gaps are compared
MARKS = 4  # values of nu at which the margin is compared, with the first and the last
FALLS = 5.0
PER_DECADE = 20
SLIDE = 30.0  # the clock up to which the solver that controls its error is followed
SLIDE_STEPS = 4000


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """A ReLU network without biases learns images of digits by gradient flow, and goes
    on to losses of 1e-400 and beyond.
    """

    seeds: Annotated[int, AtLeast(1)] = 2
    """Number of seeds, each with its own images and network."""
    images: Annotated[int, Between(20, IMAGES, closed=True)] = 100
    """Number of images."""
    width: Annotated[int, AtLeast(4)] = 32
    """Width of the hidden layer, or four times the number of channels of the
    convolution.
    """
    convolution: bool = False
    """Whether the first layer is a convolution."""
    nu: Annotated[float, Between(760, 1e6, closed=True)] = 1000.0
    """Last value of nu = -log(sum of the losses); the loss is 0.0 from 750 on."""
    adam_steps: Count = 3000
    """Number of iterations of Adam with its default settings."""


QUICK = Config(seeds=1, images=40, width=16, nu=800.0, adam_steps=1000)
PAPER = Config(seeds=2, images=IMAGES, convolution=True, nu=2302.6)


class ConvNet(eqx.Module):
    """A convolution with ReLU and a linear layer, both without biases."""

    first: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self, key: Array, channels: int):
        a, b = jax.random.split(key)
        self.first = eqx.nn.Conv2d(1, channels, 3, stride=2, use_bias=False, key=a)
        self.last = eqx.nn.Linear(9 * channels, 10, use_bias=False, key=b)

    def __call__(self, x: Array) -> Array:
        return self.last(jnp.ravel(jax.nn.relu(self.first(x.reshape(1, 8, 8)))))


def network(key: Array, config: Config) -> Any:
    """The network before training, homogeneous of degree 2."""
    if config.convolution:
        return ConvNet(key, max(config.width // 4, 1))
    return eqx.nn.MLP(64, 10, config.width, 1, use_bias=False, use_final_bias=False, key=key)


class Accuracy(eqx.Module):
    """The share of examples with the right class."""

    problem: Problem

    def __call__(self, net: Any) -> Array:
        right = jnp.argmax(self.problem.outputs(net), axis=1) == self.problem.targets
        return jnp.mean(right.astype(self.problem.dtype))


def measure(config: Config, log: Log) -> Columns:
    """Margins and gaps along nu; how far a solver that controls its error gets; and
    the gaps of Adam.
    """
    decades = np.log10(config.nu / FIRST)
    nus = np.geomspace(FIRST, config.nu, round(PER_DECADE * decades) + 1)
    out = Columns(nu=("nu", nus, {"units": "1"}), seed=np.arange(config.seeds))
    series = ("margin_l2", "gap_l2", "gap_linf")
    along = {name: np.full((config.seeds, nus.size), np.nan) for name in (*series, "accuracy")}
    ends = ("nu", "loss", "q_min", "pointwise", "slid", "adam_nu", "adam_l2", "adam_linf")
    last = {name: np.full(config.seeds, np.nan) for name in ends}
    for s, key in enumerate(config.keys(0, config.seeds)):
        problem, others = digits(config.images, seed=config.root_seed + s)
        start = network(key, config)
        log(f"gradient flow, seed {s}")
        record = Record({"accuracy": Accuracy(others), **dict.fromkeys(series)}, nus)
        flow = MarginFlow(Identity(), most_steps=2_000_000)
        run = simulate(flow, start, problem, t1=config.nu, record=record)
        for name in along:
            along[name][s] = run[name]
        for name in ("nu", "loss", "q_min"):
            last[name][s] = run.final[name]
        last["pointwise"][s] = certify(run.networks, problem).alignment_gap
        log(f"a solver that controls its error, seed {s}")
        smooth = MarginFlow(Identity(), kinks=False, rtol=1e-4, most_steps=SLIDE_STEPS)
        # Explicit steps, as an implicit solver would form Jacobians at every kink.
        slid = simulate(smooth, start, problem, t1=SLIDE, record=Record(("nu",), 2), solver=Tsit5())
        last["slid"][s] = slid.final["nu"]
        log(f"Adam, seed {s}")
        adam = simulate(
            OptaxDescent(optax.adam(1e-3), 1.0), start, problem, steps=config.adam_steps,
            record=Record((), 2),
        )  # fmt: skip
        last["adam_nu"][s] = -problem.log_risk(adam.networks) - np.log(problem.n)
        if Accuracy(problem)(adam.networks) < 1:
            continue  # A margin is defined once all examples are fitted.
        for name in ("l2", "linf"):
            found = certify(adam.networks, problem, geometry=name)
            last[f"adam_{name}"][s] = found.alignment_gap
    for name, rows in along.items():
        out.add(name, ("seed", "nu"), rows, "1")
    for name, values in last.items():
        out.add(f"end_{name}", ("seed",), values, "1")
    return out


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The loss at the end, the margin and the gap along the way."""
    nus = ds["nu"].values
    marks = np.unique(np.linspace(0, nus.size - 1, MARKS).round().astype(int))
    margin = ds["margin_l2"].values[:, marks]
    rises = np.diff(margin, axis=1)
    gap, linf = ds["gap_l2"].values, ds["gap_linf"].values
    falls, linf_falls = gap[:, 0] / gap[:, -1], linf[:, 0] / linf[:, -1]
    loss, nu = ds["end_loss"].values, ds["end_nu"].values
    slid = ds["end_slid"].values
    pointwise = ds["end_pointwise"].values
    at = ", ".join(f"{v:.4g}" for v in nus[marks])
    return [
        claim(
            "Gradient flow reaches the last nu, where the loss is 0.0 in float64",
            LYU,
            predicted=f"a loss of about 1e-{config.nu / np.log(10):.0f}",
            measured=f"nu = {span(nu, '.6g')}, a loss of {span(loss, '.2g')}",
            tolerance="nu within 1e-3, and a loss of exactly 0, in every seed",
            holds=np.all(np.abs(nu / config.nu - 1) < 1e-3) and np.all(loss == 0),
            main=True,
        ),
        claim(
            "The l2 margin rises all the way",
            LYU,
            predicted="the margin of gradient flow grows",
            measured=f"margins at nu = {at}: "
            + "; ".join(" ".join(f"{v:.4f}" for v in row) for row in margin),
            tolerance=f"each of {MARKS} values above the one before it, in every seed",
            holds=np.all(rises > 0),
            main=True,
        ),
        claim(
            "The direction turns towards a KKT point of the l2 max-margin problem",
            LYU,
            predicted="a gap that goes to 0",
            measured=f"averaged gaps in l2 {span(gap[:, 0], '.2g')} at nu = {FIRST:g}, "
            f"{span(gap[:, -1], '.2g')} at the end: {span(falls, '.3g')} times smaller",
            tolerance=f"{FALLS:g} times smaller in every seed",
            holds=np.all(falls >= FALLS),
            main=True,
        ),
        claim(
            "At a kink the gradient of one side is not aligned, and only its average is",
            "own experiment",
            predicted="a larger gap with the gradient at the end alone",
            measured=f"gaps {span(pointwise, '.2g')}, averaged {span(gap[:, -1], '.2g')}",
            tolerance="larger in every seed",
            holds=np.all(pointwise > gap[:, -1]),
            must_hold=False,
        ),
        _adam(ds, config),
        control(
            "the direction does not turn towards l_inf",
            LYU,
            predicted="a gap in l_inf that stays",
            measured=f"gaps in l_inf {span(linf[:, 0], '.2g')} and {span(linf[:, -1], '.2g')}: "
            f"{span(linf_falls, '.3g')} times smaller",
            tolerance=f"less than {FALLS:g} times smaller in every seed",
            holds=np.all(linf_falls < FALLS),
            main=True,
        ),
        control(
            f"a solver that controls its error does not reach nu = {SLIDE:g} in {SLIDE_STEPS:,} "
            "steps",
            "own experiment",
            predicted="steps that are rejected at kinks, or slide along them and gain nothing",
            measured=f"nu = {span(slid, '.4g')} where it ends",
            tolerance=f"below {SLIDE:g} by more than 1e-3 of it, in every seed",
            holds=np.all(slid < SLIDE * (1 - 1e-3)),
        ),
    ]


def _adam(ds: xr.Dataset, config: Config) -> Claim:
    statement = "Adam with its default settings is stationary in neither geometry"
    l2, linf = ds["end_adam_l2"].values, ds["end_adam_linf"].values
    if np.isnan(l2).any():
        return not_applicable(
            statement,
            WANG,
            f"Adam has not fitted all images in {config.adam_steps:,} iterations; take more, "
            "--adam-steps",
            must_hold=False,
        )
    return claim(
        statement,
        WANG,
        predicted="l_inf before its eps matters, and l2 long after",
        measured=f"gaps in l2 {span(l2, '.2g')}, in l_inf {span(linf, '.2g')} at nu = "
        f"{span(ds['end_adam_nu'].values, '.3g')}",
        tolerance="both above 0.1 in every seed",
        holds=np.all(l2 > 0.1) and np.all(linf > 0.1),
        must_hold=False,
    )


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the margin, the gaps and the accuracy on other images against nu."""
    figure, (left, middle, right) = panels(columns=3)
    nus = ds["nu"].values
    x = "nu = -log(sum of losses)"
    left.plot(nus, ds["margin_l2"].values.T, color=COLOURS["gd"])
    left.plot([], [], color=COLOURS["gd"], label="gradient flow")
    finish(left, title="l2 margin", x=x, y="q_min / |w|^2", y_scale="linear")
    for name, words in (("gap_l2", "l2"), ("gap_linf", "l_inf")):
        colour = COLOURS["gd" if name == "gap_l2" else "control"]
        middle.plot(nus, ds[name].values.T, color=colour)
        middle.plot([], [], color=colour, label=words)
    finish(middle, title="Averaged alignment gap", x=x, y="gap")
    right.plot(nus, ds["accuracy"].values.T, color=COLOURS["sgf"])
    right.plot([], [], color=COLOURS["sgf"], label="gradient flow")
    finish(right, title="Accuracy on other images", x=x, y="accuracy", y_scale="linear")
    return figure
