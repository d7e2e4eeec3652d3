"""How far from its threshold does stabilisation move the inputs of a neuron, and how
many labels does this change?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias.fourier.agreement import disagreement
from sgfbias.fourier.coefficients import chow
from sgfbias.fourier.cube import corners
from sgfbias.fourier.neuron import sign, stabilise
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Log,
    NotNegative,
    SeededConfig,
    claim,
    control,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import mean_t

NAME = "fourier-neuron"
SECONDS = 25
REFERENCES = {
    "raviv2021": "stabilised neurons, their mean distance and their disagreement",
    "odonnell2014": "Chow parameters, Sheppard's formula for the disagreement of half spaces",
}
RAVIV = source("raviv2021")
OWN = "the definition, by enumeration"
POWERS = (1.0, 1.5, 2.0, 4.0)
OTHERS = 16  # other weights with which each stabilised neuron is compared
PATHS = {"clip": "clipped", "power": "powers", "shift": "shifted"}
POINTS = 33  # neurons along each path from w to sgn(w)
# Distances at which the paths are compared, as fractions of the way from w to sgn(w).
WAY = np.linspace(0.1, 0.9, 9)
ROUNDING = 1e-11


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Random neurons of few bits, for which everything is computed by enumeration."""

    neurons: Annotated[int, AtLeast(20)] = 200
    """Number of neurons with normal weights, and of neurons with one big weight."""
    d: Annotated[int, Between(7, 16, closed=True)] = 15
    """Number of bits, from 7 to 16."""
    threshold: NotNegative = 0.5
    """Standard deviation of the thresholds of the normal neurons, as a fraction of the
    2-norm of their weights.
    """


QUICK = Config(neurons=60, d=12)


def draw(config: Config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weights (neurons, d) and biases (neurons,): normal ones, and those with one
    weight as large as 0.4 of all others together.
    """
    rng = np.random.default_rng([config.root_seed, 26])
    normal = rng.normal(size=(config.neurons, config.d))
    bias = config.threshold * rng.normal(size=config.neurons) * np.linalg.norm(normal, axis=1)
    big = rng.uniform(0.9, 1.1, size=normal.shape) * rng.choice([-1.0, 1.0], size=normal.shape)
    big[:, 0] *= 0.4 * (config.d - 1)
    return {"normal": (normal, bias), "big": (big, np.zeros(config.neurons))}


def neurons(weight: np.ndarray, bias: np.ndarray, activation: Any = sign) -> eqx.nn.MLP:
    """A network with these neurons in its first layer, and a head without a meaning."""
    m, d = weight.shape
    net = eqx.nn.MLP(
        d, "scalar", m, 1, activation, dtype=jnp.asarray(weight).dtype, key=jax.random.key(0)
    )
    return eqx.tree_at(
        lambda n: (n.layers[0].weight, n.layers[0].bias),
        net,
        (jnp.asarray(weight), jnp.asarray(bias)),
    )


def mean_distance(aligned: np.ndarray, v: np.ndarray, p: float) -> np.ndarray:
    """`E[tau <v, x>] / |v|_q` of every row of v, (..., neurons), where `aligned` is the
    mean over all inputs.
    """
    q = np.inf if p == 1 else p / (p - 1)
    return aligned / np.linalg.norm(v, q, axis=-1)


def paths(weight: np.ndarray) -> dict[str, np.ndarray]:
    """Three paths from w (first) to max|w| sgn(w), (points, neurons, d) each: clipped
    weights, powers of weights, and weights shifted away from 0.
    """
    size = np.abs(weight) / np.abs(weight).max(axis=1, keepdims=True)
    along = np.linspace(0, 1, POINTS)[:, None, None]
    clip = np.minimum(size / np.maximum(1 - along, 1e-9), 1)
    found = {"clip": clip, "power": size ** (1 - along), "shift": (1 - along) * size + along}
    return {name: np.sign(weight) * path for name, path in found.items()}


def measure(config: Config, log: Log) -> Columns:
    """Mean distances, disagreements and paths of all neurons, over all inputs."""
    out = Columns(p=np.asarray(POWERS), way=WAY, neuron=np.arange(config.neurons))
    drawn, x = draw(config), np.asarray(corners(config.d))
    rng = np.random.default_rng([config.root_seed, 27])
    for name, (weight, bias) in drawn.items():
        log(f"{config.neurons} {name} neurons of {config.d} bits")
        t = np.asarray(chow(neurons(weight, bias), method="enumerate").coefficients)
        new = np.abs(weight).max(axis=1, keepdims=True) * np.sign(weight)
        found = jax.vmap(disagreement)(*map(jnp.asarray, (weight, new, bias, bias)))
        for kind in ("exact", "gaussian", "bound"):
            out.add(f"{name}_{kind}", ("neuron",), getattr(found, kind), "probability")
        if name == "normal":
            _distances(out, x, weight, bias, t, rng)
            _along(out, weight, bias, t)
    weight, bias = drawn["normal"]
    log("the quadrature")
    soft = neurons(weight, bias, jax.nn.sigmoid)
    means = rng.uniform(-0.9, 0.9, size=config.d)
    both = [chow(soft, means, method=method) for method in ("quadrature", "enumerate")]
    error = np.abs(both[0].coefficients - both[1].coefficients).max(axis=1)
    out.add("quadrature_error", ("neuron",), error, "1")
    independent = chow(soft, method="enumerate").coefficients
    out.add("unbiased_error", ("neuron",), np.abs(independent - both[1].coefficients).max(1), "1")
    return out


def _distances(
    out: Columns, x: np.ndarray, w: np.ndarray, bias: np.ndarray, t: np.ndarray, rng: Any
) -> None:
    """Mean distances of the stabilised neurons, of the neurons as they were, and of
    others near them, from the inputs themselves.
    """
    labels = np.where(x @ w.T + bias >= 0, 1.0, -1.0)
    rows: dict[str, list] = {"norm": [], "reached": [], "before": [], "others": []}
    net = neurons(w, bias)
    for p in POWERS:
        v = np.asarray(stabilise(net, p=p).layers[0].weight)
        spread = rng.normal(size=(OTHERS, *w.shape)) * 0.3 * np.abs(v).mean(axis=1)[:, None]
        aligned = [np.mean(labels * (x @ u.T), axis=0) for u in (v, w, *(v + spread))]
        found = [
            mean_distance(a, u, p) for a, u in zip(aligned, (v, w, *(v + spread)), strict=True)
        ]
        rows["norm"].append(np.linalg.norm(t, p, axis=1))
        rows["reached"].append(found[0])
        rows["before"].append(found[1])
        rows["others"].append(np.max(found[2:], axis=0))
    for name, values in rows.items():
        out.add(f"distance_{name}", ("p", "neuron"), values, "l_p distance")
    out.add(
        "gain_bound",
        ("neuron",),
        w.shape[1] - np.abs(w).sum(axis=1) / np.abs(w).max(axis=1),
        "l1 distance",
    )
    out.add("sign_mismatches", ("neuron",), np.sum(t * w < -1e-12, axis=1), "bits")


def _along(out: Columns, w: np.ndarray, bias: np.ndarray, t: np.ndarray) -> None:
    """The agreement of old and new labels along three paths, at equal mean distance.

    Biases are scaled so that the threshold stays the same fraction of max|w|.
    """
    scaled = bias / np.abs(w).max(axis=1)
    exact = jax.jit(jax.vmap(lambda *a: disagreement(*a).exact))
    far = np.abs(t).sum(axis=1)
    for name, path in paths(w).items():
        agreement = 1 - np.stack(
            [np.asarray(exact(*map(jnp.asarray, (w, v, bias, scaled)))) for v in path]
        )
        # Each v has max|v| = 1, so this is the mean l1 distance.
        distance = np.einsum("knd,nd->kn", path, t)
        near = distance[0]
        at = near + WAY[:, None] * (far - near)
        rows = [np.interp(at[:, k], distance[:, k], agreement[:, k]) for k in range(len(w))]
        out.add(f"agreement_{name}", ("way", "neuron"), np.transpose(rows), "probability")
    out.add("path_distance", ("way", "neuron"), at, "l1 distance")


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Identities and bounds hold for every neuron. How the paths compare is a mean over
    neurons.
    """
    reached, norm = ds["distance_reached"].values, ds["distance_norm"].values
    before, others = ds["distance_before"].values, ds["distance_others"].values
    off = np.abs(reached - norm).max()
    return [
        claim(
            "A stabilised neuron has the mean l_p distance |t|_p, for p = 1, 1.5, 2 and 4",
            RAVIV,
            predicted="the value of Hoelder's inequality",
            measured=f"largest difference {off:.1e} over {norm.shape[1]} neurons",
            tolerance=f"rounding, {ROUNDING:.0e}",
            holds=off < ROUNDING,
            main=True,
        ),
        claim(
            "No other weights have a larger mean l_p distance",
            RAVIV,
            predicted="never above |t|_p",
            measured=f"of {OTHERS} other weights of each neuron and the old ones, the best has "
            f"{np.max(np.maximum(others, before) / norm):.4f} of |t|_p",
            tolerance=f"rounding, {ROUNDING:.0e}",
            holds=np.max(np.maximum(others, before) - norm) < ROUNDING,
        ),
        *_one_norm(ds),
        claim(
            "Chow parameters have the signs of the weights, whatever the threshold",
            RAVIV,
            predicted="no bit of another sign",
            measured=f"{int(ds['sign_mismatches'].sum())} bits of another sign",
            tolerance="none",
            holds=int(ds["sign_mismatches"].sum()) == 0,
        ),
        *_disagreements(ds, config),
        *_paths(ds),
        *_quadrature(ds),
    ]


def _one_norm(ds: xr.Dataset) -> list[Claim]:
    """The mean l1 distance before and after."""
    before, after = (ds[f"distance_{name}"].sel(p=1.0).values for name in ("before", "reached"))
    room = ds["gain_bound"].values - (after - before)
    factor = mean_t(after / before)
    two = ds["distance_reached"].sel(p=2.0) / ds["distance_before"].sel(p=2.0)
    return [
        claim(
            "The mean l1 distance grows by at most d - |w|_1/|w|_inf, the gain by which neurons "
            "are chosen",
            RAVIV,
            predicted="never more",
            measured=f"it grows by {np.mean(after - before):.2f} in the mean, to {factor:.2f} "
            f"times what it was; the smallest distance from the bound is {room.min():.2f}",
            tolerance=f"rounding, {ROUNDING:.0e}",
            holds=room.min() > -ROUNDING and factor.low > 1,
        ),
        control(
            "for p = 2 a neuron is nearly its own stabilised one, and its mean distance grows "
            "little",
            RAVIV,
            predicted="a factor near 1",
            measured=f"it grows to {float(two.mean()):.3f} times what it was",
            tolerance="a tenth of the growth for p = 1",
            holds=float(two.mean()) - 1 < (factor.value - 1) / 10,
        ),
    ]


def _disagreements(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The exact disagreement, Sheppard's formula and the bound."""
    exact, gaussian, bound = (
        {name: ds[f"{name}_{kind}"].values for name in ("normal", "big")}
        for kind in ("exact", "gaussian", "bound")
    )
    room = min(np.min(bound[name] - exact[name]) for name in exact)
    off = mean_t(exact["normal"] - gaussian["normal"])
    above = np.mean(exact["big"] > gaussian["big"])
    return [
        claim(
            "The bound on the disagreement of old and new labels is never exceeded",
            OWN,
            predicted="exact value at most the bound",
            measured="exact and bound in the mean: "
            + ", ".join(
                f"{words} {np.mean(exact[name]):.3f} and {np.mean(bound[name]):.3f}"
                for name, words in (("normal", "normal weights"), ("big", "one big weight"))
            )
            + f"; the smallest distance is {room:.1e}",
            tolerance="rounding",
            holds=room > -ROUNDING,
            main=True,
        ),
        claim(
            "For normal weights Sheppard's formula has the mean disagreement",
            source("odonnell2014"),
            predicted=f"{np.mean(gaussian['normal']):.4f}",
            measured=f"{np.mean(exact['normal']):.4f}, difference {off:.4f}",
            tolerance="interval of the difference within 1/d, the order of the first correction "
            "of the normal law for a symmetric sum of d bits",
            holds=max(abs(off.low), abs(off.high)) < 1 / config.d,
        ),
        control(
            "Sheppard's formula is no bound: neurons with one big weight exceed it",
            source("odonnell2014"),
            predicted="exceeded, since one bit is far from normal",
            measured=f"exceeded by {above:.0%} of the neurons, {np.mean(exact['big']):.3f} against "
            f"{np.mean(gaussian['big']):.3f} in the mean",
            tolerance="by more than half of them",
            holds=above > 0.5,
            main=True,
        ),
    ]


def _paths(ds: xr.Dataset) -> list[Claim]:
    """How many labels are kept along the three paths."""
    clip = ds["agreement_clip"].values
    rows = []
    for name, words in (("power", "powers |w|^s"), ("shift", "shifted weights |w| + c")):
        other = ds[f"agreement_{name}"].values
        gain = mean_t((clip - other).mean(axis=0), tests=2)
        middle = clip.shape[0] // 2
        rows.append(
            claim(
                f"At equal mean distance, clipped weights keep more labels than {words}",
                "the largest cosine with w for given norms",
                predicted="more, in the mean over neurons and distances",
                measured=f"more by {gain:.4f}; half-way {clip[middle].mean():.3f} against "
                f"{other[middle].mean():.3f}; as many or more in "
                f"{np.mean(clip >= other - 1e-9):.0%} of the cases",
                tolerance="99% interval of the mean above 0",
                holds=gain.low > 0,
                main=name == "power",
            )
        )
    return rows


def _quadrature(ds: xr.Dataset) -> list[Claim]:
    """Chow parameters of the sigmoid by quadrature."""
    error, wrong = ds["quadrature_error"].values, ds["unbiased_error"].values
    return [
        claim(
            "The Chow parameters of sigmoid neurons by quadrature are those by enumeration, for "
            "biased bits",
            OWN,
            predicted="no difference",
            measured=f"largest difference {error.max():.1e}",
            tolerance=f"rounding, {ROUNDING:.0e}",
            holds=error.max() < ROUNDING,
            main=True,
        ),
        control(
            "the biases of the bits matter: unbiased bits have other Chow parameters",
            OWN,
            predicted="a difference far above rounding for every neuron",
            measured=f"smallest difference {wrong.min():.1e}",
            tolerance="above 1e-6 for every neuron",
            holds=wrong.min() > 1e-6,
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw mean distances before and after, disagreements against both formulas, and
    the labels that the three paths keep.
    """
    figure, (left, middle, right) = panels(columns=3)
    before, after = (ds[f"distance_{name}"].sel(p=1.0).values for name in ("before", "reached"))
    left.plot(before, after, ".", color=COLOURS["sgf"], label="neurons", markersize=4)
    ends = np.array([before.min(), after.max()])
    left.plot(ends, ends, "k:", linewidth=1, label="no gain")
    finish(
        left,
        title="Mean l1 distance from the hyperplane",
        x="before",
        y="stabilised",
        x_scale="linear",
        y_scale="linear",
    )
    for kind, marker, filled in (("gaussian", "o", "full"), ("bound", "^", "none")):
        for name, colour in (("normal", COLOURS["sgf"]), ("big", COLOURS["control"])):
            middle.plot(
                ds[f"{name}_exact"],
                ds[f"{name}_{kind}"],
                marker,
                fillstyle=filled,
                color=colour,
                markersize=3.5,
                alpha=0.6,
                label=f"{'Sheppard' if kind == 'gaussian' else 'bound'}, "
                + ("normal weights" if name == "normal" else "one big weight"),
            )
    top = max(float(ds["big_exact"].max()), float(ds["normal_exact"].max()))
    middle.plot([0, top], [0, top], "k:", linewidth=1, label="equal")
    finish(
        middle,
        title="Probability that old and new label differ",
        x="exact",
        y="by formula",
        x_scale="linear",
        y_scale="linear",
        room=0.25,
    )
    for (name, label), colour, style in zip(
        PATHS.items(),
        (COLOURS["sgf"], COLOURS["sgd"], COLOURS["gd"]),
        ("o-", "s--", "^:"),
        strict=True,
    ):
        values = [mean_t(row) for row in ds[f"agreement_{name}"].values]
        right.plot(ds["way"], [v.value for v in values], style, color=colour, label=label)
    finish(
        right,
        title="Labels kept on three ways from w to sgn(w)",
        x="fraction of the gain in mean l1 distance",
        y="agreement with the old labels, mean",
        x_scale="linear",
        y_scale="linear",
    )
    return figure
