"""The study measures losses, gains and errors of every algorithm at every step size. It
tests the exact law with an independent recursion.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias import (
    DiagonalNetwork,
    GradientDescent,
    Record,
    SparseRegression,
    StochasticGradientDescent,
    simulate,
)
from sgfbias.core.tiles import tile_map
from sgfbias.diagonal.potential import u_from
from sgfbias.diagonal.studies.edge_of_stability import LAW_EVERY, PER_OCTAVE, Config
from sgfbias.diagonal.theory.certificate import row_space
from sgfbias.diagonal.theory.fibre import outside_row_space
from sgfbias.diagonal.theory.large_steps import recursion
from sgfbias.diagonal.theory.selection_each import select_each
from sgfbias.study import Columns, Log

LAST = Record(times=2)
FIRST_DRAWS = 4000  # number of problems on which the gradient at the start is computed
SECOND_HALF = 0x48414C46  # folded into the keys, so that both halves draw other examples
# Variable of every algorithm, without its prefix -> its units.
UNITS = {"loss": "loss", "error": "(target / input)^2", "half_gain": "1", "gain": "1"}


class Problems(NamedTuple):
    """Inputs `X` (m, n, d), outputs `y` (m, n) and truths (m, d) of m problems."""

    X: np.ndarray
    y: np.ndarray
    truth: np.ndarray

    def at(self, index: np.ndarray) -> Problems:
        """The problems of these indices, in this order."""
        return Problems(*(value[index] for value in self))

    def solutions(self, log_alpha: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """The selected solutions (m, d) at `log_alpha` (m, d) and `offset` (m, d); NaN
        where there is no solution, or where the solver did not find it.
        """
        beta, solved = select_each(self.X, self.y, log_alpha, offset)
        return np.where(solved[:, None], beta, np.nan)

    def errors(self, log_alpha: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """The squared distances (m,) of the selected solutions from the truths."""
        return np.square(self.solutions(log_alpha, offset) - self.truth).sum(axis=-1)


def outputs(X: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """The products X beta of every problem, (m, n)."""
    return np.einsum("...nd,...d->...n", X, beta)


def log_start(config: Config) -> float:
    """The log alpha of `DiagonalNetwork` that corresponds to the config's alpha."""
    return float(np.log(config.alpha / np.sqrt(2)))


def measure(config: Config, log: Log) -> Columns:
    """Run gradient descent, SGD, and gradient descent on uncentred inputs at every draw
    and step size, for the loss, the gain of every coordinate and the error of the
    selected solution.
    """
    key = jax.random.key(config.data_seed())
    drawn = [
        SparseRegression.sample(
            jax.random.fold_in(key, k),
            n=config.n,
            d=config.d,
            sparsity=config.sparsity,
            dtype=jnp.float64,
        )
        for k in range(config.draws)
    ]
    X, truth = (
        np.stack([np.asarray(getattr(problem, name)) for problem in drawn])
        for name in ("X", "beta_star")
    )
    shifted = X + config.mean
    centred, uncentred = (
        Problems(inputs, outputs(inputs, truth), truth) for inputs in (X, shifted)
    )
    # The step sizes are in falling order.
    levels = (
        np.arange(PER_OCTAVE * config.octaves_up, -PER_OCTAVE * config.octaves_down - 1, -1)
        / PER_OCTAVE
    )
    gamma = 2.0 ** levels[None] / np.abs(truth).sum(axis=1, keepdims=True)
    coordinates = {
        "draw": np.arange(config.draws),
        "level": levels,
        "batch": np.array(config.batch_sizes),
    }
    out = Columns(**coordinates, seed=np.arange(config.seeds), law=["GD", "SGD"])
    out.add("gamma", ("draw", "level"), gamma, "flow time")
    out.add("truth", ("draw", "feature"), truth, "target / input")
    log(
        f"running gradient descent on {config.draws} problems at {levels.size} step sizes, "
        f"{config.steps:,} iterations"
    )
    descent = _runs(config, centred, gamma, None)
    rows = []
    for batch in config.batch_sizes:
        log(f"running SGD with batches of {batch}, {config.seeds} seeds on every problem")
        rows.append(_runs(config, centred, gamma, batch))
    log(f"running gradient descent on inputs of mean {config.mean:g}")
    slower = _runs(config, uncentred, gamma * 2.0**-config.octaves_uncentred, None)
    for name, units in UNITS.items():
        tail = ("feature",) if name.endswith("gain") else ()
        out.add(f"gd_{name}", ("draw", "level", *tail), descent[name], units)
        out.add(
            f"sgd_{name}",
            ("batch", "draw", "level", "seed", *tail),
            [row[name] for row in rows],
            units,
        )
        out.add(f"shifted_{name}", ("draw", "level", *tail), slower[name], units)
    for prefix, problems in (("", centred), ("shifted_", uncentred)):
        out.add(f"{prefix}start_loss", ("draw",), np.square(problems.y).mean(axis=-1) / 4, "loss")
        # Gradient flow is the limit of small step sizes, without gain and offset.
        out.add(
            f"{prefix}flow_error",
            ("draw",),
            problems.errors(np.full(truth.shape, log_start(config)), np.zeros(truth.shape)),
            UNITS["error"],
        )
    # This is the error if the gain of gradient descent were spread evenly over the
    # coordinates.
    even = np.broadcast_to(
        descent["gain"].mean(axis=-1, keepdims=True), descent["gain"].shape
    ).reshape(-1, config.d)
    flat = centred.at(np.repeat(np.arange(config.draws), levels.size)).errors(
        log_start(config) - even / 2, np.zeros_like(even)
    )
    out.add("flat_error", ("draw", "level"), flat.reshape(gamma.shape), UNITS["error"])
    log("testing the exact law with an independent recursion in the paper's weights")
    _law(config, centred, gamma[:, ::LAW_EVERY], out)
    _first(config, out)
    return out


def _runs(
    config: Config, problems: Problems, gamma: np.ndarray, batch: int | None
) -> dict[str, np.ndarray]:
    """Run an algorithm at every draw, step size and seed.

    The results are the loss, the gain of every coordinate at half time and at the end,
    and the error of the solution that is selected with the gain and offset at the end.

    **Arguments:**

    - `gamma`: (draws, levels). The step sizes.
    - `batch`: the batch size of SGD; None for gradient descent, whose results have no
      axis of seeds.
    """
    shape = gamma.shape if batch is None else (*gamma.shape, config.seeds)
    lanes = problems.at(np.indices(shape)[0].ravel())
    steps = np.broadcast_to(gamma.reshape(gamma.shape + (1,) * (len(shape) - 2)), shape).ravel()
    start = DiagonalNetwork.init(log_alpha=log_start(config), d=config.d, dtype=jnp.float64)
    network = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps.size, *leaf.shape)), start)
    first = config.keys(0, steps.size)
    second = jax.vmap(lambda key: jax.random.fold_in(key, SECOND_HALF))(first)
    data = tuple(jnp.asarray(value) for value in (lanes.X, lanes.y, steps))
    found = {}
    for name, keys in (("half_gain", first), ("gain", second)):
        network, loss = tile_map(
            lambda tile: _half(tile, batch, config.steps // 2), (*data, keys, network)
        )
        found[name] = np.asarray(2 * (start.log_alpha - network.log_alpha))
    found["loss"] = np.where(np.isfinite(loss), loss, np.inf)
    found["error"] = lanes.errors(np.asarray(network.log_alpha), np.asarray(network.offset))
    return {name: value.reshape(*shape, *value.shape[1:]) for name, value in found.items()}


@eqx.filter_jit
def _half(lanes: Any, batch: int | None, steps: int) -> Any:
    """Run half of the steps in every lane `(X, y, gamma, key, network)`. The results
    are the networks and their losses.
    """

    def one(X: Array, y: Array, gamma: Array, key: Array, network: Any) -> Any:
        dynamics = (
            GradientDescent(gamma)
            if batch is None
            else StochasticGradientDescent(gamma, batch, integral="batch")
        )
        keys = None if batch is None else key
        runs = simulate(
            dynamics, network, SparseRegression(X, y), keys=keys, steps=steps, record=LAST
        )
        return runs.networks, runs.final["loss"]

    return jax.vmap(one)(*lanes)


def _law(config: Config, problems: Problems, gamma: np.ndarray, out: Columns) -> None:
    """Measure how far beta is from the minimiser of its potential on its fibre: by the
    part of the potential's gradient outside the row space of X, and by the distance
    from the program's solution. The columns are added to `out`.
    """
    lanes = problems.at(np.repeat(np.arange(config.draws), gamma.shape[1]))
    basis = np.repeat(
        [np.asarray(row_space(jnp.asarray(X))) for X in problems.X], gamma.shape[1], axis=0
    )
    found = []
    for rng in (None, np.random.default_rng(config.data_seed())):
        ends = recursion(lanes.X, lanes.y, gamma.ravel(), config.alpha, config.steps // 2, rng)
        alive = np.isfinite(ends[0]).all(axis=1) & np.isfinite(ends[1]).all(axis=1)
        beta, gain, offset = (np.where(alive[:, None], value, 0.0) for value in ends)

        def outside(gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
            """The relative part of the gradient that is outside the row space."""
            slope = (
                np.asarray(u_from(jnp.asarray(beta), jnp.asarray(log_start(config) - gain / 2)))
                - offset
            )
            return np.where(alive, outside_row_space(basis, slope), np.nan)

        chosen = lanes._replace(y=outputs(lanes.X, beta)).solutions(
            log_start(config) - gain / 2, offset
        )
        columns = {
            "stationarity": outside(gain, offset),
            "no_offset": outside(gain, 0 * offset),
            "no_gain": outside(0 * gain, offset),
            "distance": np.linalg.norm(chosen - beta, axis=1)
            / np.maximum(np.linalg.norm(beta, axis=1), 1e-300),
            "loss": np.where(
                alive, np.square(outputs(lanes.X, beta - lanes.truth)).mean(axis=1) / 4, np.inf
            ),
            "gain": np.where(alive[:, None], gain, np.nan),
        }
        found.append(
            {name: value.reshape(*gamma.shape, *value.shape[1:]) for name, value in columns.items()}
        )
    for name in found[0]:
        dims = ("law", "draw", "law_level", *(("feature",) if name == "gain" else ()))
        out.add(
            f"law_{name}", dims, [each[name] for each in found], "loss" if name == "loss" else "1"
        )


def _first(config: Config, out: Columns) -> None:
    """Measure the mean squared gradient at beta = 0, on and off the support of many
    problems, for the full batch and for one example. The column is added to `out`.
    """
    rng, n, d, s = np.random.default_rng(config.data_seed()), config.n, config.d, config.sparsity
    X = rng.normal(size=(FIRST_DRAWS, n, d))
    # By symmetry, the support may be the first coordinates.
    y = np.einsum("mns,ms->mn", X[..., :s], rng.normal(size=(FIRST_DRAWS, s)))
    each = X * y[..., None]
    squares = np.square(np.stack([each.mean(axis=1), each[:, 0]]))
    value = np.stack([squares[..., :s].mean(axis=-1), squares[..., s:].mean(axis=-1)], axis=1)
    out.add("first_square", ("law", "part", "first_draw"), value, "(target * input)^2")
