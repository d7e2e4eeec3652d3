"""Does a deep ReLU network start as the closed forms of infinite width say, and does
the least eigenvalue of its kernel predict how long training takes?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias import GradientDescent, Record, simulate
from sgfbias.lazy import (
    DeepReLU,
    SeparatedSphere,
    correlations,
    layer_kernels,
    near_zero_fraction,
    norm_variance,
    ntk,
)
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
from sgfbias.study.plotting import COLOURS, Figure, finish, panels, ticks
from sgfbias.study.statistics import Estimate, arrow, mean_and_error, power_law

NAME = "kernel-at-start"
PRECISION = "float32"
SECONDS = 80
REFERENCES = {
    "zou2018": "the network, its Gaussian start, and training that depends on the separation",
    "cho2009": "the arc-cosine kernels",
}
ZOU, CHO = source("zou2018"), source("cho2009")
# The distances of the pairs of points with opposite labels.
DISTANCES = (0.1, 0.3, 0.6, 0.9)
# Pre-activations in [-b, b] are counted for b times the square root of the width:
BAND = 0.5
# Gradient descent stops at the latest after so many steps, of which so many are looked
# at; their ratio is 1.04.
MOST_STEPS, LOOKS = 8192, 240


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """The empirical tangent kernel, the norms of the layers and the outputs of networks
    at their start are compared with closed forms. Gradient descent then runs on pairs
    of points with opposite labels at four distances.
    """

    widths: tuple[Annotated[int, AtLeast(16)], ...] = (128, 512, 2048)
    """Widths of the networks whose kernel is computed, even and increasing."""
    seeds: Annotated[int, AtLeast(4)] = 5
    """Number of networks at each width, and of data sets at each distance."""
    examples: Annotated[int, Between(4, 64, closed=True)] = 24
    """Number of examples, an even number."""
    inputs: Annotated[int, Between(16, 512, closed=True)] = 24
    """Number of inputs of a network, of which the last one is a constant."""
    depth: Annotated[int, Between(2, 6, closed=True)] = 3
    """Number of hidden layers."""
    draws: Annotated[int, AtLeast(500)] = 4000
    """Number of networks of width 64 whose norms and outputs are compared with their
    laws.
    """
    trained: Annotated[int, AtLeast(64)] = 256
    """Width of the networks that gradient descent trains, an even number."""
    step: Positive = 4.0
    """Step size of gradient descent times the width."""
    loss: Annotated[float, Between(0.05, 0.6)] = 0.3
    """Logistic loss to which gradient descent trains."""

    def check(self) -> None:
        if len(self.widths) < 2 or any(np.diff(self.widths) <= 0):
            raise ValueError(f"widths must be two or more, increasing, but are {self.widths}")
        for name, value in (("widths", self.widths), ("trained", (self.trained,))):
            if any(width % 2 for width in value):
                raise ValueError(f"{name} must be even, but {name} has {value}")
        if self.examples % 2:
            raise ValueError(f"examples must be even, but is {self.examples}")


QUICK = Config(widths=(64, 256, 1024), seeds=4, draws=2000, trained=128)
NARROW = 64


def measure(config: Config, log: Log) -> Columns:
    """The error of the kernel against width, the norms, pre-activations and outputs of
    many narrow networks, and the steps of gradient descent at each distance.
    """
    out = Columns(
        width=np.asarray(config.widths),
        seed=np.arange(config.seeds),
        layer=np.arange(1, config.depth + 1),
        draw=np.arange(config.draws),
        distance=np.asarray(DISTANCES),
    )
    data, narrow, pairs, starts = jax.vmap(jax.random.split, (0, None), 1)(
        config.keys(0, 2), 2
    ).reshape(4)
    problem = SeparatedSphere.sample(
        data, n=config.examples, d=config.inputs, separation=0.5, dtype=jnp.float32
    )
    _kernels(config, problem.inputs, out, log)
    _laws(config, problem.inputs[:1], narrow, out, log)
    _training(config, pairs, starts, out, log)
    return out


def _kernels(config: Config, x: jax.Array, out: Columns, log: Log) -> None:
    """The relative errors of the parts of the kernel."""
    wanted = layer_kernels(x, config.depth)
    # Without the factors for units that are active for one of two examples only.
    ungated = [rho / 2 for rho in correlations(x, config.depth)[:-1]]
    errors = np.zeros((2, len(config.widths), config.seeds, config.depth))
    for k, width in enumerate(config.widths):
        log(f"kernels of {config.seeds} networks of width {width}")
        for s, key in enumerate(config.keys(10, 10 + config.seeds)):
            network = DeepReLU.init(
                key, config.inputs, width=width, depth=config.depth, dtype=x.dtype
            )
            for l, part in enumerate(ntk(network, x).layers.values()):
                for which, limit in enumerate((wanted[l], ungated[l])):
                    errors[which, k, s, l] = jnp.linalg.norm(
                        part / width - limit
                    ) / jnp.linalg.norm(limit)
    for name, values in zip(("error", "ungated_error"), errors, strict=True):
        out.add(name, ("width", "seed", "layer"), values, "1")


def _laws(config: Config, x: jax.Array, key: jax.Array, out: Columns, log: Log) -> None:
    """The squared norms of the layers, the fractions of pre-activations near zero less
    what they should be, and the outputs, of networks of width 64 on one example.
    """
    log(f"{config.draws:,} networks of width {NARROW}")
    bound = BAND / np.sqrt(NARROW)

    @jax.jit
    def some(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def one(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            network = DeepReLU.init(
                key, config.inputs, width=NARROW, depth=config.depth, dtype=x.dtype
            )
            h = (x[0], *network.activations(x[0]))
            excess = jnp.stack(
                [
                    jnp.mean((jnp.abs(layer(inputs)) <= bound).astype(x.dtype))
                    - near_zero_fraction(bound, NARROW, norm=jnp.linalg.norm(inputs))
                    for layer, inputs in zip(network.layers, h, strict=False)
                ]
            )
            return jnp.stack([jnp.sum(v**2) for v in h[1:]]), excess, network(x[0])

        return jax.vmap(one)(keys)

    found = [some(keys) for keys in _pieces(jax.random.split(key, config.draws), 500)]
    norms, excess, outputs = (np.concatenate(values) for values in zip(*found, strict=True))
    out.add("norm", ("draw", "layer"), norms, "input^2")
    out.add("near_zero_excess", ("draw", "layer"), excess, "1")
    out.add("output", ("draw",), outputs, "output")


def _pieces(keys: jax.Array, size: int) -> list[jax.Array]:
    return [keys[k : k + size] for k in range(0, len(keys), size)]


def _training(config: Config, pairs: jax.Array, starts: jax.Array, out: Columns, log: Log) -> None:
    """The least eigenvalue of the kernel of infinite width, and the steps of gradient
    descent, for pairs of points at each distance.
    """
    least = np.zeros((len(DISTANCES), config.seeds))
    steps = np.full(least.shape, np.nan)
    rate = config.step / config.trained
    for k, distance in enumerate(DISTANCES):
        log(f"gradient descent on pairs at distance {distance}")
        for s in range(config.seeds):
            problem = SeparatedSphere.pairs(
                jax.random.fold_in(pairs, s),
                n=config.examples,
                d=config.inputs,
                separation=distance,
                dtype=jnp.float32,
            )
            limit = sum(np.asarray(part) for part in layer_kernels(problem.inputs, config.depth))
            least[k, s] = np.linalg.eigvalsh(limit)[0]
            network = DeepReLU.init(
                jax.random.fold_in(starts, s),
                config.inputs,
                width=config.trained,
                depth=config.depth,
                dtype=jnp.float32,
            )
            run = simulate(
                GradientDescent(rate),
                network,
                problem,
                steps=MOST_STEPS,
                stop=config.loss,
                record=Record(observables=(), times=LOOKS),
            )
            reached = np.flatnonzero(np.asarray(run["loss"]) <= config.loss)
            if reached.size:
                steps[k, s] = np.asarray(run.steps)[reached[0]]
    out.add("least_eigenvalue", ("distance", "seed"), least, "output^2 / parameter^2")
    out.add("steps", ("distance", "seed"), steps, "GD steps")


def joint(tests: int) -> float:
    """How many standard errors `tests` normal numbers exceed with probability 1% in
    all.
    """
    from scipy.stats import norm

    return float(norm.ppf(1 - 0.01 / (2 * tests)))


def _deviations(rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means of columns, and how many standard errors they are from `wanted`."""
    means, errors = np.transpose([mean_and_error(column) for column in rows.T])
    return means, (means - wanted) / errors


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The closed forms hold within their errors, and wrong ones do not; the kernel's
    least eigenvalue grows with the distance of opposite labels, and training is
    shorter.
    """
    return [_kernel(ds), _ungated(ds), *_norms(ds), _near_zero(ds), *_outputs(ds), *_trained(ds)]


def error_slope(ds: xr.Dataset, name: str = "error") -> tuple[Estimate, np.ndarray, np.ndarray]:
    """The exponent of the kernel's error in the width, with its interval, and the
    errors: the root mean square over the layers, as means over seeds.
    """
    rms = np.sqrt(np.mean(np.square(ds[name].values), axis=2))
    means, errors = np.transpose([mean_and_error(row) for row in rms])
    return power_law(ds["width"].values, means, errors), means, errors


def _kernel(ds: xr.Dataset) -> Claim:
    slope, means, _ = error_slope(ds)
    return claim(
        "The parts K_l/m of the kernel approach their closed forms as 1/sqrt(m)",
        f"{ZOU}; {CHO}",
        predicted="slope -1/2 of the relative error in m",
        measured=f"relative error {arrow(means)}, slope {slope:.2f}",
        tolerance="interval of the slope within 0.1 of -1/2 or containing it; 0.1 is for the order "
        "after it",
        holds=slope.low - 0.1 < -0.5 < slope.high + 0.1,
        main=True,
    )


def _ungated(ds: xr.Dataset) -> Claim:
    slope, means, _ = error_slope(ds, "ungated_error")
    return control(
        "the error stays where it is for a closed form without the gates of the units",
        CHO,
        predicted="slope 0",
        measured=f"relative error {arrow(means)}, slope {slope:.2f}",
        tolerance="slope above -0.25",
        holds=slope.value > -0.25,
        main=True,
    )


def _norms(ds: xr.Dataset) -> list[Claim]:
    layers, norms = ds["layer"].values, ds["norm"].values.astype(np.float64)
    wanted = np.asarray(norm_variance(layers.astype(np.float32), NARROW))
    limit = joint(len(layers))
    variance, off = _deviations(np.square(norms - 1), wanted)
    # Weights from N(0, 1/m) are those from N(0, 2/m) divided by sqrt(2), and the layers
    # are homogeneous.
    halved, far = _deviations(np.square(norms / 2.0**layers - 1), wanted)
    tolerance = f"within {limit:.2f} standard errors in each layer (99% for all layers)"
    return [
        claim(
            f"The variance of |x_l|^2 is (1 + 5/m)^l - 1 at m = {NARROW}",
            ZOU,
            predicted=", ".join(f"{v:.4f}" for v in wanted),
            measured=", ".join(
                f"{v:.4f} ({z:+.1f} standard errors)" for v, z in zip(variance, off, strict=True)
            ),
            tolerance=tolerance,
            holds=np.all(np.abs(off) < limit),
            main=True,
        ),
        control(
            "weights from N(0, 1/m) miss the formula in every layer",
            ZOU,
            predicted="mean squares of |x_l|^2 - 1 near (1 - 2^-l)^2",
            measured=", ".join(
                f"{v:.3f} ({z:+.0f} standard errors)" for v, z in zip(halved, far, strict=True)
            ),
            tolerance=f"above {limit:.2f} standard errors in each layer",
            holds=np.all(np.abs(far) > limit),
        ),
    ]


def _near_zero(ds: xr.Dataset) -> Claim:
    excess = ds["near_zero_excess"].values.astype(np.float64)
    limit = joint(excess.shape[1])
    means, off = _deviations(excess, np.zeros(excess.shape[1]))
    expected = float(near_zero_fraction(BAND / np.sqrt(NARROW), NARROW))
    return claim(
        "The fraction of pre-activations in [-b, b] is erf(b sqrt(m) / (2 |x|)), for the norm |x| "
        "of the layer's inputs",
        ZOU,
        predicted=f"{expected:.4f} at b = {BAND}/sqrt(m) and |x| = 1",
        measured="excess "
        + ", ".join(
            f"{v:+.5f} ({z:+.1f} standard errors)" for v, z in zip(means, off, strict=True)
        ),
        tolerance=f"within {limit:.2f} standard errors in each layer (99% for all layers)",
        holds=np.all(np.abs(off) < limit),
    )


def _outputs(ds: xr.Dataset) -> list[Claim]:
    squares = np.square(ds["output"].values.astype(np.float64))
    mean, error = mean_and_error(squares)
    off = [(mean - wanted) / error for wanted in (1 - 1 / np.pi, 1.0)]
    limit = joint(1)
    where = "the mean of max(z, 0), which a read-out of +1 and -1 cancels"
    return [
        claim(
            "The variance of the output is 1 - 1/pi",
            where,
            predicted=f"{1 - 1 / np.pi:.4f}",
            measured=f"{mean:.4f} ({off[0]:+.1f} standard errors)",
            tolerance=f"within {limit:.2f} standard errors (99%)",
            holds=abs(off[0]) < limit,
        ),
        control(
            "the same test refuses the variance 1, that of a read-out of random signs",
            where,
            predicted="more standard errors from 1",
            measured=f"{off[1]:+.1f} standard errors",
            tolerance=f"more than {limit:.2f}",
            holds=abs(off[1]) > limit,
            reason="there are too few draws",
        ),
    ]


def _trained(ds: xr.Dataset) -> list[Claim]:
    least, steps = ds["least_eigenvalue"].values, ds["steps"].values
    lost = int(np.isnan(steps).sum())
    typical = np.exp(np.mean(np.log(np.where(np.isnan(steps), MOST_STEPS, steps)), axis=1))
    return [
        claim(
            "The least eigenvalue of the kernel grows with the distance of opposite labels",
            ZOU,
            predicted="0 at distance 0, as two equal rows are singular; it grows with the distance",
            measured=f"means {arrow(least.mean(axis=1))} at distances "
            f"{arrow(ds['distance'].values)}",
            tolerance="an increase from each distance to the next, in every data set",
            holds=np.all(np.diff(least, axis=0) > 0),
        ),
        claim(
            "It predicts the order of training times: gradient descent takes fewer steps where it "
            "is larger",
            ZOU,
            predicted="the opposite order",
            measured=f"steps (geometric means) {arrow(typical)}; {lost} of {steps.size} runs do "
            f"not reach the loss in {MOST_STEPS:,} steps",
            tolerance="fewer steps at each distance than at the one before, and no run lost",
            holds=lost == 0 and np.all(np.diff(typical) < 0),
            main=True,
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the error of the kernel against width, the variance of the norms by layer,
    and the steps of gradient descent against the least eigenvalue.
    """
    figure, (left, middle, right) = panels(columns=3)
    width = ds["width"].values
    for name, colour, label in (
        ("error", COLOURS["sgf"], "closed form"),
        ("ungated_error", COLOURS["control"], "without gates (control)"),
    ):
        slope, means, errors = error_slope(ds, name)
        left.errorbar(
            width,
            means,
            yerr=2 * errors,
            marker="o",
            color=colour,
            capsize=2,
            label=f"{label}: slope {slope.value:.2f}",
        )
    left.plot(width, error_slope(ds)[1][0] * np.sqrt(width[0] / width), "k:", label="1/√m")
    finish(
        left,
        title="Distance of the kernel from a closed form",
        x="width m",
        y="relative error, bars: 2 standard errors",
        room=0.25,
    )
    left.set_xticks(width, [str(w) for w in width])
    left.minorticks_off()
    layers = ds["layer"].values
    squares = np.square(ds["norm"].values.astype(np.float64) - 1)
    means, errors = np.transpose([mean_and_error(column) for column in squares.T])
    middle.errorbar(
        layers, means, yerr=3 * errors, fmt="o", color=COLOURS["sgf"], capsize=3, label="measured"
    )
    formula = np.asarray(norm_variance(layers.astype(np.float32), NARROW))
    middle.plot(layers, formula, "k_", markersize=18, label="$(1 + 5/m)^l - 1$")
    finish(
        middle,
        title=f"Variance of $|x_l|^2$ at width {NARROW}",
        x="layer l",
        y="variance, bars: 3 standard errors",
        x_scale="linear",
        y_scale="linear",
        legend="upper left",
    )
    ticks(middle, layers)
    for k, distance in enumerate(ds["distance"].values):
        shade = 0.25 + 0.75 * k / (len(DISTANCES) - 1)
        right.plot(
            ds["least_eigenvalue"].values[k],
            ds["steps"].values[k],
            "o",
            color=COLOURS["sgd"],
            alpha=shade,
            label=f"distance {distance:g}",
        )
    finish(
        right,
        title=f"Gradient descent to the loss {config.loss:g}, width {config.trained}",
        x="least eigenvalue of the kernel of infinite width",
        y="steps",
    )
    return figure
