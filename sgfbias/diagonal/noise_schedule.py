"""When should a budget of label noise be spent? A schedule learned by gradients through the flow, against constants and pulses."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from sgfbias.core.brownian import seeds
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.hypergradient import hypergradient
from sgfbias.core.noise import LabelNoise
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.tiles import may_share, run_tiles, tile_index
from sgfbias.core.tune import tune
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.noise_schedule_claims import MOST_LOST, RULES
from sgfbias.diagonal.noise_schedule_claims import claims as claims
from sgfbias.diagonal.noise_schedule_claims import plot as plot
from sgfbias.diagonal.problem import SparseRegression

# What a grid may cost: seconds of a value with its gradient over those of a run, at the default size 7.5 on one core and 9.5 on two, which few
# training seeds do not fill; rounded up in the grids' favour.
GRADIENT_RUNS = 10
SPENT = (0.25, 0.5, 1.0)  # parts of the budget that the pulses of the grid spend
WIDTH = 2.0**-7  # of the central differences, in the logits; their error is of fourth order


@dataclasses.dataclass(frozen=True)
class NoiseScheduleConfig:
    """A schedule delta(t) of label noise with int delta^2 dt within a budget, learned for the error of the iterate after so many steps."""

    budget: float = 25.0
    """What int delta^2 dt may be at most, over all the run."""
    pieces: int = 8
    """Pieces of equal length on which delta is constant."""
    steps: int = 1000
    """Iterations, after which the iterate's error counts; a multiple of pieces."""
    step_size: float = 0.05
    """gamma of the flow, and the time that an iteration takes."""
    alpha: float = 0.1
    """Initialisation of the diagonal network; large enough that shrinking it helps."""
    n: int = 20
    """Examples. Every seed draws a problem and a path of its own."""
    d: int = 50
    """Features."""
    sparsity: int = 3
    """Non-zero entries of every truth."""
    train: int = 128
    """Seeds the schedule is learned on; the grids have more of them, for the same cost."""
    held_out: int = 512
    """Other seeds, on which everything is tested."""
    iterations: int = 30
    """Steps of the search (Adam), at most."""
    learning_rate: float = 0.3
    """Of the search, in the logits of the parts of the budget."""
    grid: int = 24
    """Constants on the grid, from 0 to the one that spends the budget."""
    seed: int = 0
    """Which seeds: another number draws other ones throughout."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("budget", "step_size", "alpha", "learning_rate"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        least = {"pieces": 2, "n": 1, "sparsity": 1, "train": 8, "held_out": 8, "iterations": 1, "grid": 3, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, but is {getattr(self, name)}")
        if self.steps < self.pieces or self.steps % self.pieces:
            raise ValueError(f"steps must be a multiple of pieces = {self.pieces}, but is {self.steps}")
        if self.n >= self.d:
            raise ValueError(f"n must be below d = {self.d}, so that the data leave a choice, but is {self.n}")
        if self.sparsity > self.d:
            raise ValueError(f"sparsity must be at most d = {self.d}, but is {self.sparsity}")

    @property
    def time(self) -> float:
        """Flow time of a run."""
        return self.steps * self.step_size


Config = NoiseScheduleConfig
REFERENCES = {
    "pesme2021": "label noise, section 5.3",
    "li2017": "the stochastic modified equation of SGD",
    "optax2020": "the search for the schedule",
}


class Outcome(NamedTuple):
    """Of one run: the iterate's validation error and its loss, and what it spent of the budget as its alpha tells."""

    error: Array
    loss: Array
    spent: Array


def schedule(config: NoiseScheduleConfig, logits: Float[Array, " parts"]) -> Float[Array, " pieces"]:
    """delta on every piece; the parts of the budget are the softmax of pieces + 1 logits, and the last part is not spent.

    Half of a log-softmax in place of the root of a softmax: its derivative stays finite where a part goes to 0.
    """
    return math.sqrt(config.budget * config.pieces / config.time) * jnp.exp(jax.nn.log_softmax(logits)[:-1] / 2)


def one_run(config: NoiseScheduleConfig, delta: Array, key: Array) -> Outcome:
    """The flow with label noise of that schedule, on the problem and along the path of one seed."""
    data_key, path_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    problem = SparseRegression.sample(data_key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
    network = DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64)
    length = config.steps // config.pieces
    flow = StochasticGradientFlow(config.step_size, LabelNoise(lambda iteration: delta[iteration // length]))
    final = simulate(flow, network, problem, keys=path_key, steps=config.steps, record=Record(times=2)).final
    # log alpha loses 2 gamma h (int L + int delta^2): what the labels took is what the loss did not.
    shrinkage = (network.log_alpha - final["log_alpha"]) / (2 * config.step_size * problem.h)
    return Outcome(final["validation_error"], final["loss"], jnp.mean(shrinkage) - final["loss_integral"])


def run(config: NoiseScheduleConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions rule (learned, constant, ...), piece, seed, train, iteration, level, pulse and point.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        out, pieces = Columns(), config.pieces
        train, held = seeds(0, config.train, root=2 * config.seed), seeds(0, config.held_out, root=2 * config.seed + 1)
        measure = eqx.filter_jit(jax.vmap(lambda delta, key: one_run(config, delta, key), in_axes=(None, 0)))

        def outcome(logits: Array, key: Array) -> Array:
            return jnp.log(one_run(config, schedule(config, logits), key).error)

        say(f"search: up to {config.iterations} gradients of {config.train} seeds, {config.steps:,} steps each")
        start = jnp.zeros(pieces + 1)
        found = tune(outcome, start, keys=train, optimiser=optax.adam(config.learning_rate), iterations=config.iterations)
        for name, units in {"value": "log error", "error": "log error", "excluded": "1", "gradient_norm": "log error"}.items():
            out.add(f"search_{name}", ("iteration",), found.history[name].values, units)
        cost = found.history.sizes["iteration"] * config.train * GRADIENT_RUNS

        full = math.sqrt(config.budget / config.time)
        levels = full * np.linspace(0, 1, config.grid)
        pulses = [(full * math.sqrt(part * pieces / end), end) for end in range(1, pieces + 1) for part in SPENT]
        grids = {
            "constant": np.repeat(levels[:, None], pieces, axis=1),
            "pulse": np.array([[delta] * end + [0.0] * (pieces - end) for delta, end in pulses]),
        }
        best, costs = {}, {"search": cost}
        for name, deltas in grids.items():
            count = math.ceil(cost / len(deltas))
            say(f"grid of {len(deltas)} {name}s, {count:,} seeds each")
            logs = np.log(_measure(measure, deltas, seeds(0, count, root=2 * config.seed)).error)
            value, error, lost = _means(logs)
            best[name] = deltas[int(np.argmin(value))]
            costs[name] = len(deltas) * count
            dims = ("level" if name == "constant" else "pulse",)
            out.add(f"{name}_value", dims, value, "log error")
            out.add(f"{name}_error", dims, error, "log error")
            out.add(f"{name}_lost", dims, lost, "1")

        learned = np.asarray(schedule(config, found.hyper))
        rules = {
            "learned": learned,
            **best,
            "none": np.zeros(pieces),
            "uniform": np.full(pieces, full),
            "reversed": learned[::-1],
        }
        deltas = np.stack([rules[name] for name in RULES])
        out.add("delta", ("rule", "piece"), deltas, "target")
        for prefix, keys, dim in (("", held, "seed"), ("train_", train, "train")):
            say(f"{len(RULES)} schedules on {keys.shape[0]} {'held-out' if dim == 'seed' else 'training'} seeds")
            values = _measure(measure, deltas, keys)
            out.add(f"{prefix}error", ("rule", dim), values.error, "(target / input)^2")
            out.add(f"{prefix}loss", ("rule", dim), values.loss, "target^2")
            out.add(f"{prefix}spent", ("rule", dim), values.spent, "target^2 time")

        say("gradients of the search against central differences")
        slopes, differences, shares = zip(*(_slopes(config, outcome, measure, z, train) for z in (start, found.hyper)), strict=True)
        out.add("slope", ("point", "train"), np.stack(slopes), "log error")
        out.add("difference", ("point", "train"), np.stack(differences), "log error")
        out.add("share", ("point",), shares, "1")
        out.add("cost", ("method",), [runs * config.steps for runs in costs.values()], "seed-steps")
        out.add("pulse_delta", ("pulse",), [delta for delta, _ in pulses], "target")
        out.add("pulse_end", ("pulse",), [end * config.time / pieces for _, end in pulses], "time")
        coords = {
            "rule": list(RULES),
            "piece": np.arange(pieces) * config.time / pieces,
            "level": levels,
            "method": list(costs),
            "point": ["start", "found"],
        }
        attrs = attributes({"study": "noise-schedule", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=held)
        numbers = {"budget": config.budget, "time": config.time, "gradient_runs": GRADIENT_RUNS}
        return out.dataset(coords, attrs | {"study": "noise-schedule"} | {name: str(value) for name, value in numbers.items()})


def _measure(measure: Callable[[Array, Array], Outcome], deltas: np.ndarray, keys: Array) -> Outcome:
    """Outcomes (schedules, seeds) in tiles of one shape, one thread per core."""
    count = keys.shape[0]
    tiles = [(jnp.asarray(delta), keys[row]) for delta in deltas for row in tile_index(count)]
    first = jax.block_until_ready(measure(*tiles[0]))  # compiles once, not once per thread
    threads = may_share(measure, *tiles[0])
    parts = [first, *run_tiles(lambda tile: measure(*tile), tiles[1:], threads=threads)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves).reshape(len(deltas), -1)[:, :count], *parts)


def _means(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the seeds that are finite, standard error, and how many are not; too many, and the mean is infinite: it is passed over."""
    kept = np.isfinite(logs)
    count = np.maximum(kept.sum(axis=1), 2)
    mean = np.where(kept, logs, 0).sum(axis=1) / count
    squares = np.where(kept, np.square(logs - mean[:, None]), 0).sum(axis=1)
    lost = np.sum(~kept, axis=1)
    return np.where(lost > MOST_LOST * logs.shape[1], np.inf, mean), np.sqrt(squares / (count * (count - 1))), lost


def _slopes(config: NoiseScheduleConfig, outcome: Any, measure: Any, logits: Array, keys: Array) -> tuple[np.ndarray, np.ndarray, float]:
    """Derivative of every seed's outcome along a direction of random signs, by gradients, and by differences with common random numbers;
    and the largest seed's share of the squared gradient."""
    direction = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], logits.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the share is stored and shown
        report = hypergradient(outcome, logits, keys=keys)
    near = np.stack([schedule(config, logits + factor * WIDTH * direction) for factor in (1, -1, 2, -2)])
    up, down, far_up, far_down = np.log(_measure(measure, near, keys).error)
    difference = (8 * (up - down) - (far_up - far_down)) / (12 * WIDTH)
    return np.asarray(report.gradients @ direction), difference, float(report.share)
