"""On images of digits, is the training of an MLP and of a conv net that of a kernel,
and does scaling their outputs make it so?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias import GradientDescent, Problem, Record, simulate
from sgfbias.lazy import measure as compare
from sgfbias.lazy import ntk, rescale
from sgfbias.lazy.digits import IMAGES, SmallConvNet, digits
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Log,
    SeededConfig,
    claim,
    control,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import span

NAME = "lazy-digits"
PRECISION = "float32"
SECONDS = 90
REFERENCES = {"chizat2019": "the scale alpha of the outputs"}
CHIZAT = source("chizat2019")
NETWORKS = ("MLP", "conv net")
SCALES = ("standard", "rescaled")
MOST_STEPS, LOOKS = 8192, 200
# The step size in units of that at which the linearised network diverges, with 1/2 for
# the largest second derivative of the loss.
SAFE = 0.25
# Changes of the kernel that count as lazy and as rich, chosen on the root seeds 100 to
# 103 alone.
LAZY, RICH = 0.35, 1.0


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """An MLP and a small conv net are trained on images of digits to one loss by
    gradient descent, as they are and with centred outputs times a scale alpha.
    """

    seeds: Annotated[int, AtLeast(2)] = 3
    """Number of seeds, each with its own images and networks."""
    images: Annotated[int, Between(20, IMAGES, closed=True)] = 60
    """Number of images."""
    width: Annotated[int, AtLeast(4)] = 64
    """Width of the two hidden layers of the MLP."""
    channels: Annotated[int, AtLeast(2)] = 8
    """Number of channels of the two convolutions."""
    alpha: Annotated[float, Between(1, 1000)] = 100.0
    """Scale of the outputs of the rescaled networks."""
    loss: Annotated[float, Between(0.02, 2)] = 0.3
    """Cross-entropy to which the networks are trained."""


QUICK = Config(seeds=2)


def measure(config: Config, log: Log) -> Columns:
    """How far training goes, for both networks and scales, and layer by layer."""
    out = Columns(
        network=list(NETWORKS), scale=list(SCALES), seed=np.arange(config.seeds), layer=[1, 2, 3]
    )
    shape = (len(NETWORKS), len(SCALES), config.seeds)
    scalars = ("steps", "kernel_drift", "aligned_before", "aligned_after", "tangent_error")
    found = {name: np.full(shape, np.nan) for name in scalars}
    found |= {name: np.full((*shape, 3), np.nan) for name in ("relative_distance", "flips")}
    for s, key in enumerate(config.keys(0, config.seeds)):
        problem = digits(config.images, seed=config.root_seed + s, dtype=jnp.float32)
        nets: tuple[Any, ...] = (
            eqx.nn.MLP(64, 10, config.width, 2, dtype=jnp.float32, key=key),
            SmallConvNet(key, config.channels, dtype=jnp.float32),
        )
        for k, net in enumerate(nets):
            log(f"{NETWORKS[k]}, seed {s}")
            for a, scaled in enumerate((net, rescale(net, config.alpha))):
                for name, value in _trained(scaled, problem, config).items():
                    found[name][k, a, s] = value
    for name, values in found.items():
        dims = ("network", "scale", "seed", "layer")[: values.ndim]
        out.add(name, dims, values, "GD steps" if name == "steps" else "1")
    return out


def _trained(network: Any, problem: Problem, config: Config) -> dict[str, Any]:
    """What lies between a network and where it ends; nothing if it is lost."""
    kernel = ntk(network, problem)
    step = SAFE * 4 * problem.n / float(kernel.largest)
    run = simulate(
        GradientDescent(step),
        network,
        problem,
        steps=MOST_STEPS,
        stop=config.loss,
        record=Record((), times=LOOKS),
    )
    reached = np.flatnonzero(np.asarray(run["loss"]) <= config.loss)
    if not reached.size:
        return {}
    end = compare(network, run.networks, problem)
    return {
        "steps": np.asarray(run.steps)[reached[0]],
        "kernel_drift": end.kernel_drift,
        "aligned_before": class_alignment(kernel.matrix, problem.targets),
        "aligned_after": class_alignment(ntk(run.networks, problem).matrix, problem.targets),
        "tangent_error": end.tangent_error,
        "relative_distance": np.asarray(end.relative_distance),
        "flips": np.asarray(end.flips),
    }


def class_alignment(kernel: Any, labels: Any) -> float:
    """The cosine between a kernel (n, n, O, O), summed over the outputs and centred
    over the examples, and the centred matrix that is 1 where two labels are equal.
    """
    n = len(labels)
    centre = np.eye(n) - 1 / n
    summed = np.trace(np.asarray(kernel, np.float64), axis1=2, axis2=3)
    labels = np.asarray(labels)
    a, b = (centre @ m @ centre for m in (summed, (labels[:, None] == labels).astype(np.float64)))
    return float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Rescaled networks keep their kernel, and the others do not."""
    drift = ds["kernel_drift"].values
    gain = (ds["aligned_after"] - ds["aligned_before"]).values
    error = ds["tangent_error"].values
    moved = ds["relative_distance"].values
    flips = np.nanmean(ds["flips"].values, axis=-1)
    lost = int(np.isnan(ds["steps"].values).sum())
    scaled = f"times {config.alpha:g}"
    return [
        claim(
            "Every run reaches the loss",
            "own experiment",
            predicted="no run is lost",
            measured=f"{lost} of {drift.size} runs do not reach {config.loss:g} in "
            f"{MOST_STEPS:,} steps",
            tolerance="none",
            holds=lost == 0,
        ),
        claim(
            f"With outputs {scaled} the kernel stays",
            CHIZAT,
            predicted="a relative change that falls as the scale grows",
            measured=_each(drift[:, 1]),
            tolerance=f"below {LAZY} for every network",
            holds=np.all(drift[:, 1] < LAZY),
            main=True,
        ),
        claim(
            "As they are, both networks leave their kernel: it changes by more than its size",
            CHIZAT,
            predicted="a change of the size of the kernel or more",
            measured=_each(drift[:, 0]),
            tolerance=f"above {RICH} for every network",
            holds=np.all(drift[:, 0] > RICH),
            main=True,
        ),
        claim(
            "Every layer moves further in the standard networks, and more units switch",
            CHIZAT,
            predicted="distances that fall as the inverse of the scale",
            measured=f"relative distances {_each(moved[:, 0])}; with outputs {scaled} "
            f"{_each(moved[:, 1])}; switched units {_each(flips[:, 0])} and {_each(flips[:, 1])}",
            tolerance="at least three times as far in every layer of every network, and a larger "
            "share of switched units",
            holds=np.all(moved[:, 0] > 3 * moved[:, 1]) and np.all(flips[:, 0] > flips[:, 1]),
            main=True,
        ),
        claim(
            "The kernel aligns more with the classes where it changes more",
            CHIZAT,
            predicted="a larger gain in the standard networks",
            measured="gains " + _each(gain[:, 0]) + f"; with outputs {scaled} " + _each(gain[:, 1]),
            tolerance="for every network",
            holds=np.all(gain[:, 0] > gain[:, 1]),
            must_hold=False,
        ),
        control(
            "the linearised network is no description of the standard networks",
            CHIZAT,
            predicted="an error of the size of the change of the outputs",
            measured="errors "
            + _each(error[:, 0])
            + f"; with outputs {scaled} "
            + _each(error[:, 1]),
            tolerance="an error above 0.2 and above that of the rescaled network, everywhere",
            holds=np.all(error[:, 0] > 0.2) and np.all(error[:, 0] > error[:, 1]),
            main=True,
        ),
    ]


def _each(rows: np.ndarray) -> str:
    """The values of both networks, as text."""
    return ", ".join(f"{name} {span(row)}" for name, row in zip(NETWORKS, rows, strict=True))


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the change of the kernel, its alignment with the labels before and after,
    and the relative distance of every layer.
    """
    figure, (left, middle, right) = panels(columns=3)
    colours = {"standard": COLOURS["gd"], "rescaled": COLOURS["sgf"]}
    places = np.arange(len(NETWORKS))
    for a, scale in enumerate(SCALES):
        drift = ds["kernel_drift"].values[:, a]
        left.plot(places, drift, "o", color=colours[scale])
        left.plot([], [], "o", color=colours[scale], label=scale)
        for k, name in enumerate(NETWORKS):
            both = np.stack([ds[f"aligned_{w}"].values[k, a] for w in ("before", "after")])
            middle.plot(
                2 * k + np.arange(2) * 0.8,
                both,
                "-o",
                color=colours[scale],
                markersize=4,
            )
            right.plot(
                ds["layer"].values,
                ds["relative_distance"].values[k, a].mean(axis=0),
                "o-" if k == 0 else "s--",
                color=colours[scale],
                label=f"{name}, {scale}",
            )
        middle.plot([], [], "-o", color=colours[scale], label=scale)
    left.axhline(LAZY, color="k", linestyle=":", label=f"{LAZY} and {RICH}")
    left.axhline(RICH, color="k", linestyle=":")
    finish(
        left,
        title="Change of the kernel",
        x="network",
        y="|K - K(0)| / |K(0)|",
        x_scale="linear",
        room=0.2,
    )
    left.set_xticks(places, NETWORKS)
    finish(
        middle,
        title="Alignment of the kernel with the classes",
        x="before and after training",
        y="cosine",
        x_scale="linear",
        y_scale="linear",
        room=0.2,
    )
    middle.set_xticks(2 * places + 0.4, NETWORKS)
    finish(
        right,
        title="Distance of the layers",
        x="layer",
        y="|w - w(0)| / |w(0)|",
        x_scale="linear",
        room=0.3,
    )
    right.set_xticks(ds["layer"].values)
    return figure
