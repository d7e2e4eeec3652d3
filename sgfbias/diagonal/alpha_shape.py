"""Can the shape of the initialisation be learned? One alpha per coordinate, by gradients through training, on tasks with a shared support."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from sgfbias.core.brownian import seeds
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.hypergradient import hypergradient
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.tiles import tile_map
from sgfbias.core.tune import tune
from sgfbias.diagonal.alpha_shape_claims import MOST_LOST
from sgfbias.diagonal.alpha_shape_claims import claims as claims
from sgfbias.diagonal.alpha_shape_claims import plot as plot
from sgfbias.diagonal.landing import land
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import minimum_l1

TASK_STREAM = 0x5441534B  # of a task's data, apart from its flow's noise
WIDTH = 1e-4  # of the central differences, in log alpha


@dataclasses.dataclass(frozen=True)
class AlphaShapeConfig:
    """An alpha per coordinate, learned on sparse tasks that share their support, helps on tasks never seen."""

    tasks: int = 64
    """Training tasks. Each has its own Gaussian inputs, values on the support, observation noise and flow."""
    held_out: int = 256
    """Tasks the shape is tested on."""
    n: int = 15
    """Examples per task; so few that no uniform alpha does well."""
    d: int = 50
    """Coordinates."""
    sparsity: int = 5
    """Size of the support that all tasks share."""
    noise: float = 0.05
    """Standard deviation of the observation noise. It keeps errors off 0, where their logarithm would reward ever smaller alphas."""
    step_size: float = 0.02
    """gamma of the flow; solver steps take twice that time, well inside the stability of all alphas but the largest."""
    steps: int = 800
    """Solver steps before landing."""
    alpha_low: float = 1e-3
    """Lower end of the alphas, of the search and of the grid; much smaller and tasks are still on a plateau after so many steps."""
    alpha_high: float = 2.0
    """Upper end of both."""
    levels: int = 16
    """Uniform alphas on the grid, log-spaced."""
    iterations: int = 40
    """Steps of the search (Adam), at most."""
    learning_rate: float = 0.2
    """Of the search, in its free variables."""
    problem_seed: int = 1
    """Seed of the supports and of all tasks."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("noise", "step_size", "alpha_low", "learning_rate"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        for name, least in (("tasks", 8), ("held_out", 8), ("n", 1), ("sparsity", 1), ("steps", 4), ("levels", 3), ("iterations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        if not (np.isfinite(self.alpha_high) and self.alpha_high > self.alpha_low):
            raise ValueError(f"alpha_high must be finite and above alpha_low = {self.alpha_low}, but is {self.alpha_high}")
        if self.n >= self.d:
            raise ValueError(f"n must be below d = {self.d}, so that the data leave a choice, but is {self.n}")
        if 2 * self.sparsity > self.d:
            raise ValueError(f"sparsity must be at most d / 2 = {self.d / 2:g}, so that another support fits in, but is {self.sparsity}")
        if self.problem_seed < 0:
            raise ValueError(f"problem_seed must be at least 0, but is {self.problem_seed}")


Config = AlphaShapeConfig
REFERENCES = {
    "pesme2021": "theorem 1: the limit minimises phi_alpha",
    "woodworth2020": "the shape of alpha counts",
    "li2017": "the stochastic modified equation of SGD",
    "optax2020": "the search for alpha",
}


class _Training(eqx.Module):
    """The log error of the predictor that the flow trains on one task, from an initialisation: what the search is told, and all it is told.

    Arrays are fields, so that all kinds of tasks share one compiled program.
    """

    support: Int[Array, " s"]
    scattered: Bool[Array, ""]  # whether every task draws a support of its own instead
    config: AlphaShapeConfig = eqx.field(static=True)

    def problem(self, key: Array) -> SparseRegression:
        c = self.config
        inputs, values, noise, own = jax.random.split(jax.random.fold_in(key, TASK_STREAM), 4)
        X = jax.random.normal(inputs, (c.n, c.d), jnp.float64)
        drawn = jax.random.choice(own, c.d, (c.sparsity,), replace=False).astype(self.support.dtype)
        support = jnp.where(self.scattered, drawn, self.support)
        beta = jnp.zeros(c.d, jnp.float64).at[support].set(jax.random.normal(values, (c.sparsity,), jnp.float64))
        return SparseRegression(X, X @ beta + c.noise * jax.random.normal(noise, (c.n,), jnp.float64), beta)

    def error(self, log_alpha: Float[Array, " d"], key: Array) -> tuple[Array, Array]:
        """`|beta - beta*|^2` of the limit, NaN for a task without one, and `|beta*|^2`."""
        c, problem = self.config, self.problem(key)
        flow = StochasticGradientFlow(c.step_size, dt=2 * c.step_size)
        network = DiagonalNetwork.init(log_alpha=log_alpha, d=c.d, dtype=jnp.float64)
        landed = land(simulate(flow, network, problem, keys=key, steps=c.steps, record=Record(times=2)))
        return jnp.where(jnp.isfinite(landed.error), landed.validation_error, jnp.nan), jnp.sum(jnp.square(problem.beta_star))

    def __call__(self, log_alpha: Float[Array, " d"], key: Array) -> Array:
        return jnp.log(self.error(log_alpha, key)[0])


@eqx.filter_jit
def _errors(training: _Training, log_alpha: Array, keys: Array) -> tuple[Array, Array]:
    return jax.vmap(training.error, in_axes=(None, 0))(log_alpha, keys)


def measure(training: _Training, log_alpha: Any, keys: Array) -> np.ndarray:
    """Errors of the predictors of many tasks, and the squared norms of their truths, (2, tasks)."""
    return np.stack(tile_map(lambda tile: _errors(training, jnp.asarray(log_alpha, jnp.float64), tile), keys))


def run(config: AlphaShapeConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset`; errors are `|beta - beta*|^2`, NaN for a task that was lost.

    **Raises:** `ValueError` for values that make no sense, or if no uniform alpha can be used.
    """
    config.check()
    with jax.enable_x64(True):
        return _run(config, say)


def _run(config: AlphaShapeConfig, say: Callable[[str], None]) -> Any:
    d, s, out = config.d, config.sparsity, Columns()
    order = jax.random.permutation(jax.random.key(config.problem_seed), d)
    shared, elsewhere, scattered = (
        _Training(where, jnp.asarray(own), config) for where, own in ((order[:s], False), (order[s : 2 * s], False), (order[:s], True))
    )
    train = seeds(0, config.tasks, root=config.problem_seed)
    held = seeds(config.tasks, config.tasks + config.held_out, root=config.problem_seed)
    mask, other = (np.isin(np.arange(d), t.support) for t in (shared, elsewhere))

    say(f"{config.levels} uniform alphas on {config.tasks} tasks with n = {config.n}, d = {d}, {s} non-zeros")
    grid = np.geomspace(config.alpha_low, config.alpha_high, config.levels)
    outcomes = np.stack([measure(shared, np.full(d, np.log(a)), train)[0] for a in grid])
    uniform = np.full(d, np.log(_best(grid, outcomes)))
    # With the support known: two numbers, the small one at the end of the interval.
    told = np.where(mask, np.log(grid)[:, None], np.log(config.alpha_low))
    told_outcomes = np.stack([measure(shared, row, train)[0] for row in told])
    oracle = np.where(mask, np.log(_best(grid, told_outcomes)), np.log(config.alpha_low))

    # The search starts from the best uniform alpha; at the very end of the interval it could not move.
    low, high = np.log(config.alpha_low), np.log(config.alpha_high)
    start = np.clip(uniform, low + 0.05 * (high - low), high - 0.05 * (high - low))

    def search(training: _Training) -> Any:
        adam = optax.adam(config.learning_rate)
        return tune(
            training, jnp.asarray(start), keys=train, optimiser=adam, iterations=config.iterations, bounds=(float(low), float(high))
        )

    say(f"searching {d} alphas by gradients through {config.tasks} runs of {config.steps} steps")
    found = search(shared)
    say("the same where every task has a support of its own, as a control")
    vain = search(scattered)
    learned, vain_learned = np.asarray(found.hyper), np.asarray(vain.hyper)

    say(f"gradients against central differences, then {config.held_out} held-out tasks")
    direction = np.random.default_rng(config.problem_seed).normal(size=d)
    pathwise, differences = [], []
    for point in (start, learned):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of lost tasks, which the claims count
            gradients = hypergradient(shared, jnp.asarray(point), keys=train).gradients
        pathwise.append(np.asarray(gradients) @ direction)
        plus, minus = (np.log(measure(shared, point + sign * WIDTH * direction, train)[0]) for sign in (1, -1))
        differences.append((plus - minus) / (2 * WIDTH))

    squared = "(target / input)^2"
    held_errors = {
        "learned": measure(shared, learned, held)[0],
        "uniform": measure(shared, uniform, held)[0],
        "oracle": measure(shared, oracle, held)[0],
        "l1": np.array([_l1_error(shared.problem(key)) for key in held]),
        "elsewhere_learned": measure(elsewhere, learned, held)[0],
        "elsewhere_uniform": measure(elsewhere, uniform, held)[0],
        "scattered_learned": measure(scattered, vain_learned, held)[0],
        "scattered_uniform": measure(scattered, uniform, held)[0],
    }
    train_errors = {
        "learned": measure(shared, learned, train)[0],
        "uniform": measure(shared, uniform, train)[0],
        "scattered_learned": measure(scattered, vain_learned, train)[0],
        "scattered_uniform": measure(scattered, uniform, train)[0],
    }
    for name, values in held_errors.items():
        out.add(f"held_{name}", ("held",), values, squared)
    for name, values in train_errors.items():
        out.add(f"train_{name}", ("task",), values, squared)
    out.add("held_size", ("held",), measure(shared, uniform, held)[1], squared)
    for name, values in (("support", mask), ("other_support", other)):
        out.add(name, ("coordinate",), values, "1")
    for name, values in (("learned", learned), ("uniform", uniform), ("oracle", oracle), ("start", start), ("scattered", vain_learned)):
        out.add(f"log_alpha_{name}", ("coordinate",), values, "log weight")
    out.add("grid_error", ("alpha", "task"), outcomes, squared)
    out.add("told_error", ("alpha", "task"), told_outcomes, squared)
    for name, result, dim in (("search", found, "iteration"), ("scattered_search", vain, "scattered_iteration")):
        for column, units in (("value", "log error"), ("error", "log error"), ("excluded", "1"), ("gradient_norm", "log error")):
            out.add(f"{name}_{column}", (dim,), result.history[column].values, units)
        out.add(f"{name}_log_alpha", (dim, "coordinate"), result.history["hyper"].values, "log weight")
    out.add("slope_pathwise", ("point", "task"), pathwise, "log error / log weight")
    out.add("slope_difference", ("point", "task"), differences, "log error / log weight")
    attrs = attributes({"study": "alpha-shape", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=train)
    coords = {
        "coordinate": np.arange(d),
        "task": np.arange(config.tasks),
        "held": np.arange(config.tasks, config.tasks + config.held_out),
        "alpha": grid,
        "point": ["start", "learned"],
    }
    return out.dataset(coords, attrs | {"study": "alpha-shape", "search": found.reason, "scattered_search": vain.reason})


def _best(grid: np.ndarray, errors: np.ndarray) -> float:
    """The level of smallest mean log error, among those that lose hardly a task: losing the hard ones must not pay."""
    usable = np.mean(np.isnan(errors), axis=1) <= MOST_LOST
    if not usable.any():
        raise ValueError(
            f"no uniform alpha from {grid[0]:g} to {grid[-1]:g} has a limit on nearly all tasks; use a smaller step_size, or more steps"
        )
    return float(grid[usable][np.argmin(np.nanmean(np.log(errors[usable]), axis=1))])


def _l1_error(problem: SparseRegression) -> float:
    return float(problem.validation_error(minimum_l1(problem)))
