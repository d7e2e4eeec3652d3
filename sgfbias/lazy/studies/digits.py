"""On images of digits, is the training of an MLP and of a conv net that of a kernel,
and does scaling their outputs make it so?
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias import GradientDescent, Problem, Record, simulate
from sgfbias.lazy import measure as compare
from sgfbias.lazy import ntk, rescale
from sgfbias.lazy.digits import IMAGES, SIDE, SmallConvNet, all_digits
from sgfbias.lazy.own import Examples, network_maker, own_network, read_examples
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
MLP, CONV_NET, OWN = "MLP", "conv net", "own network"
NETWORKS = (MLP, CONV_NET)
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
    data: Path | None = None
    """A .npz file with examples X (n, ...) and classes y (n,), of which up to `images`
    are drawn in the place of images of digits; None takes these. A conv net is trained
    if X has the shape (n, height, width) or (n, channels, height, width).
    """
    model: str | None = None
    """FILE.py:FUNCTION, a function of a random key that returns an Equinox module. It
    maps an example to one number for each class, and is trained in the place of the MLP
    and the conv net; None trains these.
    """

    @property
    def own_data(self) -> bool:
        """Whether the data or the network are a user's own."""
        return self.data is not None or self.model is not None


QUICK = Config(seeds=2)


def measure(config: Config, log: Log) -> Columns:
    """How far training goes, for all networks and both scales, and layer by layer."""
    examples = all_digits() if config.data is None else read_examples(config.data)
    make = _makers(config, examples)
    count = min(config.images, len(examples.labels))
    shape = (len(make), len(SCALES), config.seeds)
    scalars = ("steps", "kernel_drift", "aligned_before", "aligned_after", "tangent_error")
    found = {name: np.full(shape, np.nan) for name in scalars}
    layered: dict[str, dict[tuple[int, int, int], np.ndarray]] = {
        "relative_distance": {},
        "flips": {},
    }
    for s, key in enumerate(config.keys(0, config.seeds)):
        problem = examples.draw(count, seed=config.root_seed + s, dtype=jnp.float32)
        for k, (name, new) in enumerate(make.items()):
            log(f"{name}, seed {s}")
            net = new(key)
            for a, scaled in enumerate((net, rescale(net, config.alpha))):
                for quantity, value in _trained(scaled, problem, config).items():
                    if quantity in layered:
                        layered[quantity][k, a, s] = np.asarray(value)
                    else:
                        found[quantity][k, a, s] = value
    most = max((len(row) for row in layered["flips"].values()), default=1)
    out = Columns(
        network=list(make),
        scale=list(SCALES),
        seed=np.arange(config.seeds),
        layer=np.arange(1, most + 1),
    )
    for name, values in found.items():
        out.add(name, ("network", "scale", "seed"), values, "GD steps" if name == "steps" else "1")
    for name, rows in layered.items():
        # Networks with fewer layers have no numbers in the last ones.
        values = np.full((*shape, most), np.nan)
        for place, row in rows.items():
            values[place][: len(row)] = row
        out.add(name, ("network", "scale", "seed", "layer"), values, "1")
    return out


def _makers(config: Config, examples: Examples) -> dict[str, Any]:
    """Functions of a key that return the networks, by name."""
    if config.model is not None:
        make = network_maker(config.model)
        return {OWN: lambda key: own_network(make, key, examples, jnp.float32)}
    shape, classes = examples.inputs.shape[1:], examples.classes
    size = int(np.prod(shape))
    mlp = functools.partial(_mlp, size, classes, config.width, flat=len(shape) == 1)
    if config.data is None:
        shape = (SIDE, SIDE)
    planes = {2: (1, *shape), 3: shape}.get(len(shape))
    if planes is None or min(planes[1:]) < 3:
        return {MLP: mlp}
    conv_net = functools.partial(
        SmallConvNet, channels=config.channels, shape=planes, classes=classes, dtype=jnp.float32
    )
    return {MLP: mlp, CONV_NET: conv_net}


def _mlp(size: int, classes: int, width: int, key: Any, *, flat: bool) -> Any:
    """The MLP, after what makes a vector of an example that is none."""
    net = eqx.nn.MLP(size, classes, width, 2, dtype=jnp.float32, key=key)
    return net if flat else eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), net])


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
        "flips": np.full(len(end.layers), np.nan) if end.flips is None else np.asarray(end.flips),
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
    moved, flips = ds["relative_distance"].values, _switched(ds)
    names = [str(name) for name in ds["network"].values]
    each = functools.partial(_each, names)
    # A network may have fewer layers than another, layers that start at 0, and no unit
    # with a kink. These have no numbers.
    there = np.isfinite(moved).any(axis=(1, 2))[:, None]
    kinked = np.isfinite(flips).any(axis=(1, 2))[:, None]
    further = np.where(there, moved[:, 0] > 3 * moved[:, 1], True)
    more = np.where(kinked, flips[:, 0] > flips[:, 1], True)
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
            measured=each(drift[:, 1]),
            tolerance=f"below {LAZY} for every network",
            holds=np.all(drift[:, 1] < LAZY),
            main=True,
        ),
        claim(
            "As they are, "
            + ("both networks leave their" if len(names) > 1 else "networks leave the")
            + " kernel: it changes by more than its size",
            CHIZAT,
            predicted="a change of the size of the kernel or more",
            measured=each(drift[:, 0]),
            tolerance=f"above {RICH} for every network",
            holds=np.all(drift[:, 0] > RICH),
            main=True,
        ),
        claim(
            "Every layer moves further in the standard networks, and more units switch",
            CHIZAT,
            predicted="distances that fall as the inverse of the scale",
            measured=f"relative distances {each(moved[:, 0])}; with outputs {scaled} "
            f"{each(moved[:, 1])}; switched units {each(flips[:, 0])} and {each(flips[:, 1])}",
            tolerance="at least three times as far in every layer of every network, and a larger "
            "share of switched units",
            holds=lost == 0 and np.all(further) and np.all(more),
            main=True,
        ),
        claim(
            "The kernel aligns more with the classes where it changes more",
            CHIZAT,
            predicted="a larger gain in the standard networks",
            measured="gains " + each(gain[:, 0]) + f"; with outputs {scaled} " + each(gain[:, 1]),
            tolerance="for every network",
            holds=np.all(gain[:, 0] > gain[:, 1]),
            must_hold=False,
        ),
        control(
            "the linearised network is no description of the standard networks",
            CHIZAT,
            predicted="an error of the size of the change of the outputs",
            measured="errors "
            + each(error[:, 0])
            + f"; with outputs {scaled} "
            + each(error[:, 1]),
            tolerance="an error above 0.2 and above that of the rescaled network, everywhere",
            holds=np.all(error[:, 0] > 0.2) and np.all(error[:, 0] > error[:, 1]),
            main=True,
        ),
    ]


def _switched(ds: xr.Dataset) -> np.ndarray:
    """The mean share of switched units over the layers that have such units, (networks,
    scales, seeds); NaN where none has.
    """
    shares = ds["flips"].values
    count = np.isfinite(shares).sum(axis=-1)
    return np.where(count > 0, np.nansum(shares, axis=-1) / np.maximum(count, 1), np.nan)


def _each(names: list[str], rows: np.ndarray) -> str:
    """The values of every network, as text."""
    words = []
    for name, row in zip(names, rows, strict=True):
        known = row[np.isfinite(row)]
        words.append(f"{name} {span(known) if known.size else 'none'}")
    return ", ".join(words)


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the change of the kernel, its alignment with the labels before and after,
    and the relative distance of every layer.
    """
    figure, (left, middle, right) = panels(columns=3)
    colours = {"standard": COLOURS["gd"], "rescaled": COLOURS["sgf"]}
    names = [str(name) for name in ds["network"].values]
    places = np.arange(len(names))
    for a, scale in enumerate(SCALES):
        drift = ds["kernel_drift"].values[:, a]
        left.plot(places, drift, "o", color=colours[scale])
        left.plot([], [], "o", color=colours[scale], label=scale)
        for k, name in enumerate(names):
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
    left.set_xticks(places, names)
    finish(
        middle,
        title="Alignment of the kernel with the classes",
        x="before and after training",
        y="cosine",
        x_scale="linear",
        y_scale="linear",
        room=0.2,
    )
    middle.set_xticks(2 * places + 0.4, names)
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
