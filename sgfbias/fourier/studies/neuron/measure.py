"""Mean distances, disagreements and paths of random neurons, over all inputs."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from sgfbias.fourier.agreement import disagreement
from sgfbias.fourier.coefficients import chow
from sgfbias.fourier.cube import corners
from sgfbias.fourier.neuron import sign, stabilise
from sgfbias.fourier.studies.neuron import OTHERS, POWERS, WAY, Config
from sgfbias.study import Columns, Log

POINTS = 33  # neurons along each path from w to sgn(w)


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
