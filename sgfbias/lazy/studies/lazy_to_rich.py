"""Is training lazy where the output scale alpha is large, with a distance that the
kernel at the start predicts, and does it learn features where alpha is small?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from sgfbias import GradientDescent, Record, simulate
from sgfbias.lazy import DeepReLU, SeparatedSphere, ntk, rescale
from sgfbias.lazy import measure as compare
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
from sgfbias.study.statistics import arrow, log_slope, span

NAME = "lazy-to-rich"
PRECISION = "float64"
SECONDS = 30
REFERENCES = {
    "chizat2019": "the scale alpha of the outputs",
    "zou2018": "the network and the data",
}
CHIZAT = source("chizat2019")
# Output scales; the first is that of mean-field networks, 1/sqrt(m) at width 64.
ALPHAS = (0.125, 1.0, 4.0, 16.0, 64.0, 256.0)
LAZY = 4.0  # from this scale on, training is called lazy
MOST_STEPS, LOOKS = 4096, 400
SHOWN = 4  # examples whose outputs are drawn
QUANTITIES = {
    "distance": "parameter",
    "relative_distance": "1",
    "flips": "1",
    "kernel_drift": "1",
    "predicted": "parameter",
}


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Gradient descent trains `alpha (f(w) - f(w0))` to one loss at six scales alpha,
    with step sizes proportional to 1/alpha^2.
    """

    seeds: Annotated[int, AtLeast(2)] = 4
    """Number of networks, each trained at every scale."""
    examples: Annotated[int, Between(4, 64, closed=True)] = 24
    """Number of examples."""
    inputs: Annotated[int, Between(8, 512, closed=True)] = 24
    """Number of inputs of the network, of which the last one is a constant."""
    width: Annotated[int, Between(8, 4096, closed=True)] = 64
    """Width of the network, an even number."""
    depth: Annotated[int, Between(1, 6, closed=True)] = 3
    """Number of hidden layers."""
    step: Positive = 4.0
    """Step size of gradient descent times the width times alpha^2."""
    loss: Annotated[float, Between(0.02, 0.6)] = 0.1
    """Logistic loss to which gradient descent trains."""
    problem_seed: int = 0
    """Random seed from which the examples are drawn."""

    def check(self) -> None:
        if self.width % 2:
            raise ValueError(f"width must be even, but is {self.width}")


QUICK = Config(seeds=3)


class Outputs(eqx.Module):
    """The outputs of a network on some examples."""

    inputs: Array

    def __call__(self, network: Any) -> Array:
        return jax.vmap(network)(self.inputs)


def measure(config: Config, log: Log) -> Columns:
    """The quantities of every trained network at every scale, and the distance and the
    outputs that the kernel at the start predicts.
    """
    out = Columns(alpha=np.asarray(ALPHAS), seed=np.arange(config.seeds))
    problem = SeparatedSphere.sample(
        jax.random.key(config.data_seed()),
        n=config.examples,
        d=config.inputs,
        separation=0.8,
        dtype=jnp.float64,
    )
    found = {name: np.full((len(ALPHAS), config.seeds), np.nan) for name in QUANTITIES}
    steps = np.full((len(ALPHAS), config.seeds), np.nan)
    looks = np.zeros(0, int)
    curves: dict[int, np.ndarray] = {}
    record = Record({"outputs": Outputs(problem.inputs[:SHOWN])}, times=LOOKS)
    for s, key in enumerate(config.keys(0, config.seeds)):
        log(f"network {s + 1} of {config.seeds}")
        network = DeepReLU.init(
            key, config.inputs, width=config.width, depth=config.depth, dtype=jnp.float64
        )
        linear = linearised(
            np.asarray(ntk(network, problem).matrix),
            problem,
            config.step / config.width,
            config.loss,
        )
        for k, alpha in enumerate(ALPHAS):
            scaled = rescale(network, alpha)
            run = simulate(
                GradientDescent(config.step / (config.width * alpha**2)),
                scaled,
                problem,
                steps=MOST_STEPS,
                stop=config.loss,
                record=record,
            )
            reached = np.flatnonzero(np.asarray(run["loss"]) <= config.loss)
            if not reached.size:
                continue
            steps[k, s] = np.asarray(run.steps)[reached[0]]
            end = compare(scaled, run.networks, problem)
            found["distance"][k, s] = np.linalg.norm(end.distance)
            found["relative_distance"][k, s] = np.mean(end.relative_distance)
            found["flips"][k, s] = np.nanmean(end.flips)
            found["kernel_drift"][k, s] = end.kernel_drift
            found["predicted"][k, s] = linear.distance / alpha
            if s == 0:
                curves[k] = np.asarray(run["outputs"])[: reached[0] + 1]
                looks = np.asarray(run.steps)
        if s == 0:
            _curves(out, curves, linear.outputs[:, :SHOWN], looks)
    for name, units in QUANTITIES.items():
        out.add(name, ("alpha", "seed"), found[name], units)
    out.add("steps", ("alpha", "seed"), steps, "GD steps")
    return out


def _curves(
    out: Columns, curves: dict[int, np.ndarray], straight: np.ndarray, looks: np.ndarray
) -> None:
    """Add the outputs at the steps `looks`: those of every scale, and the linearised
    ones, which are given after every step. They are NaN after a run has ended.
    """
    out.axes |= {"look": looks, "example": np.arange(SHOWN)}
    outputs = np.full((len(ALPHAS), len(looks), SHOWN), np.nan)
    for k, rows in curves.items():
        outputs[k, : len(rows)] = rows
    out.add("outputs", ("alpha", "look", "example"), outputs, "output")
    inside = looks < len(straight)
    shown = np.full((len(looks), SHOWN), np.nan)
    shown[inside] = straight[looks[inside]]
    out.add("linear_outputs", ("look", "example"), shown, "output")


class Linearised(NamedTuple):
    """A linearised network that is trained to a loss.

    - `outputs`: (steps + 1, n), after every step. They are the same at every alpha.
    - `distance`: that of its weights from the start, at alpha = 1. At another alpha it
      is this over alpha.
    """

    outputs: np.ndarray
    distance: float


def linearised(
    kernel: np.ndarray, problem: SeparatedSphere, rate: float, loss: float
) -> Linearised:
    """The training of the linearised and centred network with these steps.

    Its outputs are `f = K a`, where a is the sum of `-rate l'(f) / n` over the steps,
    and its distance is `sqrt(a^T K a)`.
    """
    y, n = np.asarray(problem.targets), problem.n
    a, outputs = np.zeros(n), []
    for _ in range(MOST_STEPS):
        outputs.append(kernel @ a)
        margin = y * outputs[-1]
        if np.mean(np.logaddexp(0, -margin)) <= loss:
            break
        a += rate / n * y / (1 + np.exp(margin))
    return Linearised(np.stack(outputs), float(np.sqrt(a @ kernel @ a)))


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """At large scales the distance is the linearised one and falls as 1/alpha, and the
    kernel stays; at the scale of mean-field networks neither is true.
    """
    alpha = ds["alpha"].values
    lazy = alpha >= LAZY
    distance = ds["distance"].values
    ratio = distance / ds["predicted"].values
    slopes = np.atleast_1d(log_slope(alpha[lazy], distance[lazy].T))
    lost = int(np.isnan(ds["steps"].values).sum())
    relative, flips = (ds[name].values.mean(axis=1) for name in ("relative_distance", "flips"))
    sixteenfold = [k for k in range(len(alpha)) if alpha[k] in (1, 16, 256)]
    drift = ds["kernel_drift"].values
    # The square of the distance is a quadratic form of the inverse kernel. A run is
    # looked at within 2% of its steps after it has reached the loss.
    allowed = drift[lazy] + 0.01
    return [
        claim(
            "Every run reaches the loss",
            CHIZAT,
            predicted="no run is lost",
            measured=f"{lost} of {distance.size} runs do not reach {config.loss:g} in "
            f"{MOST_STEPS:,} steps",
            tolerance="none",
            holds=lost == 0,
            reason="the step size is too large",
        ),
        claim(
            "The distance falls as 1/alpha once training is lazy",
            CHIZAT,
            predicted=f"slope -1 over alpha >= {LAZY:g}, up to the change of the kernel",
            measured=f"slopes {span(slopes, '.3f')}",
            tolerance="within 0.05 of -1 for every network",
            holds=np.all(np.abs(slopes + 1) < 0.05),
            main=True,
        ),
        claim(
            "It is the distance of the linearised network, sqrt(a^T K a)",
            CHIZAT,
            predicted=f"a ratio of 1 for alpha >= {LAZY:g}, up to the change of the kernel",
            measured=f"ratios {span(ratio[lazy], '.3f')}; relative changes of the kernel "
            f"{span(drift[lazy])}",
            tolerance="off by at most the relative change of the kernel, and 1% for the steps at "
            "which runs are looked at, for every network and scale",
            holds=np.all(np.abs(ratio[lazy] - 1) < allowed) and np.all(drift[lazy] < 0.5),
            main=True,
        ),
        claim(
            "Relative distances and the share of switched units fall as alpha grows",
            CHIZAT,
            predicted="both tend to 0",
            measured=f"relative distances {arrow(relative)}; switched units {arrow(flips)}",
            tolerance="means of relative distances that fall from each scale to the next, and "
            "switched units that fall at least fourfold from alpha = 1 to 16 and to 256",
            holds=np.all(np.diff(relative) < 0)
            and np.all(flips[sixteenfold][1:] < flips[sixteenfold][:-1] / 4),
        ),
        control(
            "at the scale of mean-field networks the linearised distance is off by more than 10%",
            CHIZAT,
            predicted="another distance, as the kernel changes by more than its size",
            measured=f"ratios {span(ratio[0], '.3f')} at alpha = {alpha[0]:g}",
            tolerance="above 10% for every network",
            holds=np.all(np.abs(ratio[0] - 1) > 0.1),
        ),
        control(
            "at the scale of mean-field networks the kernel changes by more than half of its size",
            CHIZAT,
            predicted="a change of the size of the kernel",
            measured=f"drifts {span(drift[0])} at alpha = {alpha[0]:g}; {span(drift[-1])} at "
            f"{alpha[-1]:g}",
            tolerance="above 0.5 for every network",
            holds=np.all(drift[0] > 0.5),
            main=True,
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the distance and its prediction, the switched units, and the change of the
    kernel against the output scale, and the outputs of one network along its training.
    """
    figure, (left, middle, right, along) = panels(columns=2, rows=2)
    alpha = ds["alpha"].values
    left.plot(alpha, ds["distance"].values, "o", color=COLOURS["gd"])
    left.plot([], [], "o", color=COLOURS["gd"], label="gradient descent")
    left.plot(
        alpha, ds["predicted"].values.mean(axis=1), color=COLOURS["sgf"], label="linearised network"
    )
    finish(left, title="Distance from the start", x="output scale α", y="|w - w(0)|")
    for axes, name, title, y in (
        (middle, "flips", "Switched units", "share of units and examples"),
        (right, "kernel_drift", "Change of the kernel", "|K - K(0)| / |K(0)|"),
    ):
        axes.plot(alpha, ds[name].values, "o", color=COLOURS["gd"], alpha=0.6)
        axes.plot(alpha, ds[name].values.mean(axis=1), color=COLOURS["gd"], label="mean")
        finish(axes, title=f"{title}, at the loss {config.loss:g}", x="output scale α", y=y)
    for k, way in enumerate(np.linspace(0, 1, len(alpha))):
        shade = (0.9 * (1 - way), 0.3, 0.9 * way)
        curves = ds["outputs"].values[k]
        along.plot(ds["look"], curves, color=shade, linewidth=1.2)
        along.plot([], [], color=shade, label=f"α = {alpha[k]:g}")
    along.plot(ds["look"], ds["linear_outputs"].values, "k--", linewidth=1)
    along.plot([], [], "k--", label="linearised")
    finish(
        along,
        title=f"Outputs of one network on {ds.sizes['example']} examples",
        x="steps of gradient descent",
        y="output",
        x_scale="symlog",
        y_scale="linear",
        room=0.3,
    )
    return figure
