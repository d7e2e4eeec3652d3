"""The kernels, the norms and outputs, and the training of networks at their start."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias import GradientDescent, Record, simulate
from sgfbias.lazy import (
    DeepReLU,
    SeparatedSphere,
    correlations,
    layer_kernels,
    near_zero_fraction,
    ntk,
)
from sgfbias.lazy.studies.kernel_at_start import (
    BAND,
    DISTANCES,
    LOOKS,
    MOST_STEPS,
    NARROW,
    Config,
)
from sgfbias.study import Columns, Log


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
