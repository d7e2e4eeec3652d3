"""The measurements of the study: the search for alpha, and the errors of the learned
alpha and of others on training and held-out tasks.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from sgfbias import (
    DiagonalNetwork,
    Record,
    SparseRegression,
    StochasticGradientFlow,
    hypergradient,
    land,
    minimum_l1,
    seeds,
    simulate,
    tune,
)
from sgfbias.core.tiles import tile_map
from sgfbias.diagonal.studies.alpha_shape import MOST_LOST, TRAINED, Config
from sgfbias.study import Columns, Log

SQUARED = "(target / input)^2"
# Folded into a task's key to draw its data, so that they are independent of the noise
# of its flow.
TASK_STREAM = 0x5441534B
# The width of the central differences, in log alpha.
WIDTH = 1e-4


class Training(eqx.Module):
    """The log error of the predictor that the flow reaches on one task from a given
    initialisation. This is all that the search sees.

    `support` holds the coordinates that the tasks share. If `scattered` is true, every
    task draws a support of its own instead. Both are arrays, so that all kinds of tasks
    share one compiled function. For the same reason the seeds of `config` are 0: the
    keys of the tasks are arguments.
    """

    support: Int[Array, " s"]
    scattered: Bool[Array, ""]
    config: Config = eqx.field(static=True)

    def problem(self, key: Array) -> SparseRegression:
        """The task that belongs to `key`."""
        c = self.config
        inputs, values, noise, own = jax.random.split(jax.random.fold_in(key, TASK_STREAM), 4)
        X = jax.random.normal(inputs, (c.n, c.d))
        drawn = jax.random.choice(own, c.d, (c.sparsity,), replace=False).astype(self.support.dtype)
        support = jnp.where(self.scattered, drawn, self.support)
        beta = jnp.zeros(c.d).at[support].set(jax.random.normal(values, (c.sparsity,)))
        return SparseRegression(X, X @ beta + c.noise * jax.random.normal(noise, (c.n,)), beta)

    def error(self, log_alpha: Float[Array, " d"], key: Array) -> tuple[Array, Array]:
        """`|beta - beta*|^2` of the flow's limit, NaN if there is none, and
        `|beta*|^2`.
        """
        c, problem = self.config, self.problem(key)
        flow, network = (
            StochasticGradientFlow(c.step_size, dt=2 * c.step_size),
            DiagonalNetwork.init(log_alpha=log_alpha),
        )
        landed = land(
            simulate(flow, network, problem, keys=key, steps=c.steps, record=Record(times=2))
        )
        return jnp.where(jnp.isfinite(landed.error), landed.validation_error, jnp.nan), jnp.sum(
            jnp.square(problem.beta_star)
        )

    def __call__(self, log_alpha: Float[Array, " d"], key: Array) -> Array:
        """The logarithm of the error of the flow's limit."""
        return jnp.log(self.error(log_alpha, key)[0])


@eqx.filter_jit
def _tile(training: Training, log_alpha: Array, keys: Array) -> tuple[Array, Array]:
    """`Training.error` on the tasks of a tile, (tasks,) each."""
    return jax.vmap(training.error, in_axes=(None, 0))(log_alpha, keys)


def errors(training: Training, log_alpha: Any, keys: Array) -> np.ndarray:
    """The errors `|beta - beta*|^2` on many tasks and the squared norms `|beta*|^2` of
    their true predictors: (2, tasks).
    """
    return np.stack(tile_map(lambda tile: _tile(training, jnp.asarray(log_alpha), tile), keys))


def best(grid: np.ndarray, found: np.ndarray) -> int:
    """The index of the alpha with the smallest mean log error, among those that lose at
    most `MOST_LOST` of the tasks, so that losing the hard tasks does not pay.

    **Arguments:**

    - `grid`: (levels,). The uniform alphas.
    - `found`: (levels, tasks). Their errors, NaN for a lost task.

    **Raises:** `ValueError` if every alpha loses too many tasks.
    """
    usable = np.flatnonzero(np.mean(np.isnan(found), axis=1) <= MOST_LOST)
    if usable.size == 0:
        raise ValueError(
            f"no uniform alpha from {grid[0]:g} to {grid[-1]:g} leads to a limit on nearly all "
            "tasks; use a smaller step_size or more steps"
        )
    return int(usable[np.argmin(np.nanmean(np.log(found[usable]), axis=1))])


def measure(config: Config, log: Log) -> Columns:
    """Search for alpha, and measure the errors `|beta - beta*|^2` of this and other
    alphas on training and held-out tasks, NaN for a lost task. The alphas and the
    course of the search are stored as well.

    **Raises:** `ValueError` if every uniform alpha loses too many training tasks.
    """
    d, s, low, high = config.d, config.sparsity, np.log(config.alpha_low), np.log(config.alpha_high)
    order = jax.random.permutation(jax.random.key(config.data_seed()), d)
    sizes = dataclasses.replace(config, root_seed=0, problem_seed=0)
    shared, elsewhere, scattered = (
        Training(where, jnp.asarray(own), sizes)
        for where, own in ((order[:s], False), (order[s : 2 * s], False), (order[:s], True))
    )
    mask, other = (np.isin(np.arange(d), training.support) for training in (shared, elsewhere))
    last = config.tasks + config.held_out
    train, held = (
        seeds(*ends, root=config.data_seed()) for ends in ((0, config.tasks), (config.tasks, last))
    )
    grid = np.geomspace(config.alpha_low, config.alpha_high, config.levels)
    out = Columns(
        coordinate=np.arange(d),
        task=np.arange(config.tasks),
        held=np.arange(config.tasks, last),
        alpha=grid,
        point=["start", "learned"],
    )

    log(
        f"{config.levels} uniform alphas are tried on {config.tasks} tasks with n = {config.n}, "
        f"d = {d} and {s} non-zero coefficients"
    )
    # The oracle knows the support: its alpha is alpha_low off the support, and the best
    # level of the grid on it.
    alphas = {}
    for name, column, rest in (("uniform", "grid", np.log(grid)[:, None]), ("oracle", "told", low)):
        rows = np.where(mask, np.log(grid)[:, None], rest)
        found = np.stack([errors(shared, row, train)[0] for row in rows])
        out.add(f"{column}_error", ("alpha", "task"), found, SQUARED)
        alphas[name] = rows[best(grid, found)]
    # The search starts from the best uniform alpha, but not at the very end of the
    # interval, where it could not move.
    start = alphas["start"] = np.clip(
        alphas["uniform"], low + 0.05 * (high - low), high - 0.05 * (high - low)
    )

    def search(training: Training, name: str) -> np.ndarray:
        adam, bounds = optax.adam(config.learning_rate), (float(low), float(high))
        tuned = tune(
            training,
            jnp.asarray(start),
            keys=train,
            optimiser=adam,
            iterations=config.iterations,
            bounds=bounds,
        )
        dim = name.replace("search", "iteration")
        for column in ("value", "error", "excluded", "gradient_norm"):
            out.add(
                f"{name}_{column}",
                (dim,),
                tuned.history[column].values,
                "1" if column == "excluded" else "log error",
            )
        out.add(
            f"{name}_log_alpha", (dim, "coordinate"), tuned.history["hyper"].values, "log weight"
        )
        out.attrs[name] = tuned.reason
        return np.asarray(tuned.hyper)

    log(
        f"{d} alphas are searched for by gradients through {config.tasks} runs of "
        f"{config.steps} steps"
    )
    alphas["learned"] = search(shared, "search")
    log("as a control, the search is repeated where every task has a support of its own")
    alphas["scattered"] = search(scattered, "scattered_search")

    log(
        "gradients are compared with central differences, and the alphas are tested on "
        f"{config.held_out} held-out tasks"
    )
    direction = np.random.default_rng(config.data_seed()).normal(size=d)
    slopes = [_slopes(shared, alphas[point], train, direction) for point in ("start", "learned")]
    for name, values in zip(
        ("slope_pathwise", "slope_difference"), zip(*slopes, strict=True), strict=True
    ):
        out.add(name, ("point", "task"), np.stack(values), "log error / log weight")
    tests = {
        **{name: (shared, alphas[name]) for name in ("learned", "uniform", "oracle")},
        **{f"elsewhere_{name}": (elsewhere, alphas[name]) for name in ("learned", "uniform")},
        "scattered_learned": (scattered, alphas["scattered"]),
        "scattered_uniform": (scattered, alphas["uniform"]),
    }
    for name, (training, log_alpha) in tests.items():
        out.add(f"held_{name}", ("held",), errors(training, log_alpha, held)[0], SQUARED)
    for name in TRAINED:
        out.add(f"train_{name}", ("task",), errors(*tests[name], train)[0], SQUARED)
    sparse = [
        float(problem.validation_error(minimum_l1(problem)))
        for problem in map(shared.problem, held)
    ]
    out.add("held_l1", ("held",), sparse, SQUARED)
    out.add("held_size", ("held",), errors(shared, alphas["uniform"], held)[1], SQUARED)
    for name, values in (("support", mask), ("other_support", other)):
        out.add(name, ("coordinate",), values, "1")
    for name, values in alphas.items():
        out.add(f"log_alpha_{name}", ("coordinate",), values, "log weight")
    return out


def _slopes(
    training: Training, log_alpha: np.ndarray, keys: Array, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of every task's log error along a direction of log alpha, by
    gradients and by central differences: (tasks,) each.
    """
    with warnings.catch_warnings():
        # The warnings are about lost tasks, which a claim counts.
        warnings.simplefilter("ignore", UserWarning)
        gradients = hypergradient(training, jnp.asarray(log_alpha), keys=keys).gradients
    plus, minus = (
        np.log(errors(training, log_alpha + sign * WIDTH * direction, keys)[0]) for sign in (1, -1)
    )
    return np.asarray(gradients) @ direction, (plus - minus) / (2 * WIDTH)
