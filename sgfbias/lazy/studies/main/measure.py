"""Train the networks, and measure where they end, what the kernel at the start
predicts, and the gradient along the way.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias import GradientDescent, Problem, Record, StochasticGradientDescent, simulate
from sgfbias.lazy import DeepReLU, SeparatedSphere, ntk, rescale
from sgfbias.lazy import measure as compare
from sgfbias.lazy.probe import least_eigenvalues
from sgfbias.lazy.studies.main import (
    BATCH,
    LOOKS,
    LOSSES,
    MOST_STEPS,
    SEPARATION,
    Config,
)
from sgfbias.study import Columns, Log

LAYERED = {
    "distance": "parameter",
    "predicted": "parameter",
    "relative_distance": "1",
    "flips": "1",
    "floor": "1",
    "typical_floor": "1",
    "identity_error": "1",
}
SCALARS = {"steps": "steps", "kernel_drift": "1", "density_flips": "1"}


class Gradients(eqx.Module):
    """For every layer `n^2 |grad_l L|^2`, `u^T K_l u` with u = -y l', the size of the
    terms of this sum, and its floor `lambda_min(K_l) (sum |u|)^2 / n`; (layers, 4).
    """

    problem: Problem

    def __call__(self, network: DeepReLU) -> Array:
        n = self.problem.n
        u = self.problem.derivatives(network)
        gradient = eqx.filter_grad(self.problem.risk)(network)
        parts = list(ntk(network, self.problem).layers.values())
        rows = []
        for slope, part, least in zip(
            gradient.weights, parts, least_eigenvalues(parts), strict=True
        ):
            floor = least * jnp.sum(jnp.abs(u)) ** 2 / n
            size = jnp.abs(u) @ jnp.abs(part) @ jnp.abs(u)
            rows.append(jnp.stack([n**2 * jnp.sum(slope**2), u @ part @ u, size, floor]))
        return jnp.stack(rows)


def measure(config: Config, log: Log) -> Columns:
    """Distances, switched units, kernels and gradients, for every loss, width and
    network, and the same ends for SGD and for outputs of the scale 1/sqrt(m).
    """
    widths, seeds, depth = config.widths, config.seeds, config.depth
    out = Columns(
        loss_name=list(LOSSES),
        width=np.asarray(widths),
        seed=np.arange(seeds),
        layer=np.arange(1, depth + 1),
    )
    plain = SeparatedSphere.sample(
        jax.random.key(config.data_seed()),
        n=config.examples,
        d=config.inputs,
        separation=SEPARATION,
        dtype=jnp.float64,
    )
    shape = (len(LOSSES), len(widths), seeds)
    found = {name: np.full((*shape, depth), np.nan) for name in LAYERED}
    found |= {name: np.full(shape, np.nan) for name in SCALARS}
    beside = {
        name: np.full(shape[1:], np.nan)
        for name in ("sgd_distance", "mean_field_distance", "mean_field_flips")
    }
    for k, width in enumerate(widths):
        log(f"networks of width {width}")
        for s, key in enumerate(config.keys(0, seeds)):
            start = DeepReLU.init(key, config.inputs, width=width, depth=depth, dtype=jnp.float64)
            kernels = [np.asarray(part) for part in ntk(start, plain).layers.values()]
            f0 = np.asarray(jax.vmap(start)(plain.inputs))
            for l, (loss, smooth) in enumerate(LOSSES.values()):
                problem = Problem(plain.inputs, plain.targets, loss=loss)
                rate = config.step / (4 * smooth * width)
                run = trained(GradientDescent(rate), start, problem, config, floors=True)
                if run is None:
                    continue
                end, steps, gradients = run
                row = {"steps": steps, **_ends(start, end, problem), **_floors(gradients)}
                row["predicted"] = predicted(kernels, f0, problem, rate, steps)
                for name, value in row.items():
                    found[name][l, k, s] = value
            run = trained(
                StochasticGradientDescent(config.step / width, BATCH), start, plain, config, key=key
            )
            if run is not None:
                beside["sgd_distance"][k, s] = np.linalg.norm(
                    compare(start, run[0], plain).distance
                )
            scaled = rescale(start, width**-0.5, centred=False)
            run = trained(GradientDescent(config.step), scaled, plain, config)
            if run is not None:
                end = compare(start, run[0].model, plain)
                beside["mean_field_distance"][k, s] = np.linalg.norm(end.distance)
                beside["mean_field_flips"][k, s] = np.mean(end.flips)
    for name, units in (LAYERED | SCALARS).items():
        dims = ("loss_name", "width", "seed", *(("layer",) if name in LAYERED else ()))
        out.add(name, dims, found[name], units)
    for name, values in beside.items():
        out.add(name, ("width", "seed"), values, "1" if name.endswith("flips") else "parameter")
    return out


def trained(
    rule: Any,
    network: Any,
    problem: Problem,
    config: Config,
    *,
    key: Array | None = None,
    floors: bool = False,
) -> tuple[Any, int, np.ndarray | None] | None:
    """The network at the loss, the number of steps, and the gradients at all recorded
    times until then, (times, layers, 4); or None if it does not reach the loss.
    """
    record = Record({"gradients": Gradients(problem)} if floors else (), times=LOOKS)
    run = simulate(
        rule, network, problem, keys=key, steps=MOST_STEPS, stop=config.loss, record=record
    )
    reached = np.flatnonzero(np.asarray(run["loss"]) <= config.loss)
    if not reached.size:
        return None
    last = int(reached[0])
    gradients = np.asarray(run["gradients"])[: last + 1] if floors else None
    return run.networks, int(np.asarray(run.steps)[last]), gradients


def _ends(start: DeepReLU, end: DeepReLU, problem: Problem) -> dict[str, Any]:
    """Where training ends, and the share of units of the first layer that switch if
    their density near 0 is that of the start: `mean |dw . x| sqrt(m / (4 pi))`.
    """
    found = compare(start, end, problem)
    move = np.abs(np.asarray(problem.inputs) @ np.asarray(end.weights[0] - start.weights[0]).T)
    return {
        "distance": np.asarray(found.distance),
        "relative_distance": np.asarray(found.relative_distance),
        "flips": np.asarray(found.flips),
        "kernel_drift": float(found.kernel_drift),
        "density_flips": move.mean() * np.sqrt(move.shape[1] / (4 * np.pi)),
    }


def _floors(gradients: np.ndarray | None) -> dict[str, np.ndarray]:
    """The least and the typical ratio of the gradient to its floor in each layer, and
    the largest error of the identity, relative to the size of its terms.
    """
    assert gradients is not None
    squares, forms, sizes, floors = np.moveaxis(gradients.astype(np.float64), -1, 0)
    ratio = squares / floors
    return {
        "floor": ratio.min(axis=0),
        "typical_floor": np.median(ratio, axis=0),
        "identity_error": (np.abs(squares - forms) / sizes).max(axis=0),
    }


def predicted(
    kernels: list[np.ndarray], f0: np.ndarray, problem: Problem, rate: float, steps: int
) -> np.ndarray:
    """The distance of every layer of the linearised network after as many steps.

    Its outputs are `f0 + K a` with `a = -rate/n sum l'`, the sum over the steps, and
    the distance is `sqrt(a^T K_l a)`.
    """
    dtype = problem.dtype
    whole, start = (jnp.asarray(v, dtype) for v in (sum(kernels), f0))
    a = np.asarray(
        _sum(whole, start, problem, jnp.asarray(rate / problem.n, dtype), jnp.int32(steps))
    )
    return np.asarray([np.sqrt(a @ part @ a) for part in kernels])


@eqx.filter_jit
def _sum(kernel: Array, f0: Array, problem: Problem, rate: Array, steps: Any) -> Array:
    def step(_: Any, a: Array) -> Array:
        return a - rate * problem.loss.derivative(f0 + kernel @ a, problem.targets)

    return jax.lax.fori_loop(0, steps, step, jnp.zeros_like(f0))
