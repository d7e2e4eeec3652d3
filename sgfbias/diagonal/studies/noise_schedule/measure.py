"""The study measures the search for the schedule, the grid searches, and the errors
that every schedule gives, seed by seed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from sgfbias import (
    DiagonalNetwork,
    LabelNoise,
    Record,
    SparseRegression,
    StochasticGradientFlow,
    hypergradient,
    seeds,
    simulate,
    tune,
)
from sgfbias.core.tiles import is_thread_safe, run_tiles, tile_index
from sgfbias.diagonal.studies.noise_schedule import GRADIENT_RUNS, MOST_LOST, RULES, Config
from sgfbias.study import Columns, Log

SPENT = (0.25, 0.5, 1.0)  # the shares of the budget that pulses of the grid spend
# Step in the logits of the central differences, whose error is of fourth order in it.
WIDTH = 2.0**-7


class Outcome(NamedTuple):
    """The end of one run: the validation error and the loss of the last iterate, and
    the label noise int delta^2 dt that was spent, as it shows in log alpha.
    """

    error: Array
    loss: Array
    spent: Array


def schedule(config: Config, logits: Float[Array, " parts"]) -> Float[Array, " pieces"]:
    """The label noise delta on every piece of the run.

    The softmax of the logits divides the budget into pieces + 1 shares. Every piece
    spends one of them, and the last share is not spent. The square root of a share is
    computed as the exponential of half the log-softmax, because its derivative stays
    finite where a share goes to 0.

    **Arguments:**

    - `logits`: (pieces + 1,), any real numbers.

    **Returns:** (pieces,), not negative.
    """
    return math.sqrt(config.budget * config.pieces / config.time) * jnp.exp(
        jax.nn.log_softmax(logits)[:-1] / 2
    )


def one_run(config: Config, delta: Array, key: Array) -> Outcome:
    """Run the flow with a schedule of label noise, on the problem and along the
    Brownian path that belong to one seed.

    **Arguments:**

    - `delta`: (pieces,). The label noise on every piece.
    - `key`: the seed's random key. It draws both the problem and the path.
    """
    data_key, path_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    problem = SparseRegression.sample(
        data_key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64
    )
    network = DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64)
    length = config.steps // config.pieces
    flow = StochasticGradientFlow(
        config.step_size, LabelNoise(lambda iteration: delta[iteration // length])
    )
    final = simulate(
        flow, network, problem, keys=path_key, steps=config.steps, record=Record(times=2)
    ).final
    # log alpha falls by 2 gamma h (int L + int delta^2 dt). Subtracting int L therefore
    # leaves the label noise that the run had.
    shrinkage = (network.log_alpha - final["log_alpha"]) / (2 * config.step_size * problem.h)
    return Outcome(
        final["validation_error"], final["loss"], jnp.mean(shrinkage) - final["loss_integral"]
    )


def log_error(config: Config, logits: Array, key: Array) -> Array:
    """The outcome whose mean over seeds the search minimises: the logarithm of one
    seed's validation error under the schedule of the logits.
    """
    return jnp.log(one_run(config, schedule(config, logits), key).error)


@functools.cache
def outcome(config: Config) -> Callable[[Array, Array], Array]:
    """`log_error` with its config filled in. There is one function for each config, so
    that its compiled program is found again.
    """
    return functools.partial(log_error, config)


def shapes(config: Config) -> Config:
    """The config without the root seed, which no program depends on: draws with other
    roots share their compiled programs.
    """
    return dataclasses.replace(config, root_seed=0)


@eqx.filter_jit
def _tile(config: Config, delta: Array, keys: Array) -> Outcome:
    """One schedule on the seeds of one tile."""
    return jax.vmap(functools.partial(one_run, config), in_axes=(None, 0))(delta, keys)


def outcomes(config: Config, deltas: np.ndarray, keys: Array) -> Outcome:
    """Run many schedules on the same seeds, in tiles of one shape, with one thread per
    core.

    **Arguments:**

    - `deltas`: (schedules, pieces). The label noise of every schedule.
    - `keys`: (seeds,). The random keys of the seeds.

    **Returns:** an `Outcome` of arrays (schedules, seeds).
    """
    count = keys.shape[0]
    tiles = [
        (shapes(config), jnp.asarray(delta), keys[row])
        for delta in deltas
        for row in tile_index(count)
    ]
    # The first tile runs alone, so that the program is compiled once, not per thread.
    first = jax.block_until_ready(_tile(*tiles[0]))
    parts = [
        first,
        *run_tiles(lambda tile: _tile(*tile), tiles[1:], threads=is_thread_safe(_tile, *tiles[0])),
    ]
    return jax.tree.map(
        lambda *leaves: np.concatenate(leaves).reshape(len(deltas), -1)[:, :count], *parts
    )


def means(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over seeds with finite values, their standard errors, and the numbers of
    seeds without a finite value.

    The mean of a row is infinite if more than a share `MOST_LOST` of its seeds is not
    finite, so that a search for the smallest mean never chooses the row.

    **Arguments:**

    - `logs`: (rows, seeds).

    **Returns:** three arrays (rows,).
    """
    kept = np.isfinite(logs)
    count, lost = np.maximum(kept.sum(axis=1), 2), np.sum(~kept, axis=1)
    mean = np.where(kept, logs, 0).sum(axis=1) / count
    squares = np.where(kept, np.square(logs - mean[:, None]), 0).sum(axis=1)
    return (
        np.where(lost > MOST_LOST * logs.shape[1], np.inf, mean),
        np.sqrt(squares / (count * (count - 1))),
        lost,
    )


def measure(config: Config, log: Log) -> Columns:
    """Learn a schedule, search grids of constants and of pulses, and run every schedule
    of `RULES` on training and on held-out seeds: validation error, loss, and the label
    noise that was spent, by seed.
    """
    pieces, full = config.pieces, math.sqrt(config.budget / config.time)
    train, held = (
        seeds(0, config.train, root=2 * config.root_seed),
        seeds(0, config.held_out, root=2 * config.root_seed + 1),
    )
    levels = full * np.linspace(0, 1, config.grid)
    heights, ends = np.array(
        [
            (full * math.sqrt(part * pieces / end), end)
            for end in range(1, pieces + 1)
            for part in SPENT
        ]
    ).T
    at = np.arange(pieces) * config.time / pieces
    out = Columns(
        rule=list(RULES),
        piece=at,
        level=levels,
        method=["search", "constant", "pulse"],
        point=["start", "found"],
    )

    log(
        f"searching for a schedule: up to {config.iterations} gradients, each over "
        f"{config.train} seeds of {config.steps:,} steps"
    )
    start, adam = jnp.zeros(pieces + 1), optax.adam(config.learning_rate)
    found = tune(
        outcome(shapes(config)), start, keys=train, optimiser=adam, iterations=config.iterations
    )
    for name in ("value", "error", "excluded", "gradient_norm"):
        out.add(
            f"search_{name}",
            ("iteration",),
            found.history[name].values,
            "1" if name == "excluded" else "log error",
        )
    learned = np.asarray(schedule(config, found.hyper))
    rules = {
        "learned": learned,
        "none": np.zeros(pieces),
        "uniform": np.full(pieces, full),
        "reversed": learned[::-1],
    }

    costs = [found.history.sizes["iteration"] * config.train * GRADIENT_RUNS]
    for name, dim, deltas in (
        ("constant", "level", np.repeat(levels[:, None], pieces, axis=1)),
        ("pulse", "pulse", np.where(np.arange(pieces) < ends[:, None], heights[:, None], 0.0)),
    ):
        count = math.ceil(costs[0] / len(deltas))
        log(f"running a grid of {len(deltas)} {name}s, with {count:,} seeds each")
        value, error, lost = means(
            np.log(outcomes(config, deltas, seeds(0, count, root=2 * config.root_seed)).error)
        )
        rules[name] = deltas[int(np.argmin(value))]
        costs.append(len(deltas) * count)
        for column, values, units in (
            ("value", value, "log error"),
            ("error", error, "log error"),
            ("lost", lost, "1"),
        ):
            out.add(f"{name}_{column}", (dim,), values, units)
    out.add("cost", ("method",), [runs * config.steps for runs in costs], "seed-steps")
    out.add("pulse_delta", ("pulse",), heights, "target")
    out.add("pulse_end", ("pulse",), ends * config.time / pieces, "time")

    deltas = np.stack([rules[name] for name in RULES])
    out.add("delta", ("rule", "piece"), deltas, "target")
    for prefix, keys, dim in (("", held, "seed"), ("train_", train, "train")):
        log(
            f"running {len(RULES)} schedules on {keys.shape[0]} "
            f"{'held-out' if dim == 'seed' else 'training'} seeds"
        )
        ran = outcomes(config, deltas, keys)
        for name, units in (
            ("error", "(target / input)^2"),
            ("loss", "target^2"),
            ("spent", "target^2 time"),
        ):
            out.add(f"{prefix}{name}", ("rule", dim), getattr(ran, name), units)

    log("comparing gradients of the search with central differences")
    slopes = zip(*(_slopes(config, logits, train) for logits in (start, found.hyper)), strict=True)
    for name, values in zip(("slope", "difference", "doubt", "share"), slopes, strict=True):
        out.add(
            name,
            ("point",) if name == "share" else ("point", "train"),
            np.stack(values),
            "1" if name == "share" else "log error",
        )
    return out


def _slopes(
    config: Config, logits: Array, keys: Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Derivatives of every seed's outcome along one direction of random signs: from the
    gradients, and from central differences with common random numbers. The third array
    is the error of the differences, as half the width shows it. The last value is the
    largest seed's share of the sum of squared gradients.
    """
    direction = jnp.asarray(_signs(config.root_seed, logits.size))
    with warnings.catch_warnings():
        # No warning is needed if one seed dominates: the share is stored and shown.
        warnings.simplefilter("ignore", UserWarning)
        report = hypergradient(outcome(shapes(config)), logits, keys=keys)
    factors = (1, -1, 2, -2, 0.5, -0.5)
    near = np.stack([schedule(config, logits + factor * WIDTH * direction) for factor in factors])
    ends = np.log(outcomes(config, near, keys).error)
    middle, far, half = (ends[k] - ends[k + 1] for k in (0, 2, 4))
    difference, finer = (8 * middle - far) / (12 * WIDTH), (8 * half - middle) / (6 * WIDTH)
    # The error of `difference` is of fourth order in the width, so that half the width
    # leaves a sixteenth of it.
    doubt = np.abs(difference - finer) * 16 / 15
    return np.asarray(report.gradients @ direction), difference, doubt, float(report.share)


def _signs(root: int, count: int) -> np.ndarray:
    """Random signs that are not all equal: equal changes of all logits do not change
    their softmax, and every derivative along them is 0.
    """
    rng = np.random.default_rng(root)
    signs = rng.choice([-1.0, 1.0], count)
    while np.ptp(signs) == 0:
        signs = rng.choice([-1.0, 1.0], count)
    return signs
