"""Large step sizes up to the edge of stability: the gain of gradient descent is uneven and harms recovery, that of SGD is even and helps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import seeds
from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.tiles import tile_map
from sgfbias.diagonal.certificate import row_space
from sgfbias.diagonal.edge_of_stability_claims import claims as claims
from sgfbias.diagonal.edge_of_stability_claims import plot as plot
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import u_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select

LAST = Record(times=2)
PER_OCTAVE = 4  # step sizes
LAW_EVERY = 2  # of them are run by the independent recursion
FIRST_DRAWS = 4000  # problems for the gradient at the start
SECOND_HALF = 0x48414C46  # apart from the first half's examples


@dataclasses.dataclass(frozen=True)
class EdgeOfStabilityConfig:
    """Gradient descent recovers a sparse truth worse towards its edge of stability and SGD better, since the gain of one is uneven and of the other even."""

    draws: int = 16
    """Drawn problems."""
    seeds: int = 4
    """Seeds of SGD on each."""
    batch_sizes: tuple[int, ...] = (1, 2, 4)
    """Batch sizes of SGD: 1, then doubling."""
    octaves_up: int = 2
    """The largest step size is 2 to this power over |beta*|_1; all algorithms must diverge there."""
    octaves_down: int = 4
    """The smallest is 2 to minus this power over |beta*|_1, four to the octave."""
    steps: int = 10_000
    """Iterations, after which the programme of the algorithm's own law is solved."""
    alpha: float = 0.1
    """Initialisation in the paper's convention, u = sqrt(2) alpha, v = 0; it is alpha / sqrt(2) in `DiagonalNetwork`'s."""
    mean: float = 4.0
    """Mean of the inputs in the uncentred variant, in standard deviations."""
    octaves_uncentred: int = 3
    """How much smaller, in octaves, its step sizes are: the mean is one direction of large curvature."""
    n: int = 20
    """Examples."""
    d: int = 30
    """Features."""
    sparsity: int = 3
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the drawn problems."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        least = (("draws", 4), ("seeds", 1), ("octaves_up", 0), ("octaves_down", 2), ("steps", 100), ("n", 2), ("octaves_uncentred", 0))
        for name, bound in least:
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, but is {getattr(self, name)}")
        if self.steps % 2:
            raise ValueError(f"steps must be even, but is {self.steps}")
        for name in ("alpha", "mean"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        if self.n >= self.d:
            raise ValueError(f"n must be below d = {self.d}, so that the data leave a choice, but is {self.n}")
        if not 1 <= self.sparsity < self.d:
            raise ValueError(f"sparsity must be from 1 to d - 1 = {self.d - 1}, but is {self.sparsity}")
        if len(self.batch_sizes) < 2 or list(self.batch_sizes) != [2**k for k in range(len(self.batch_sizes))]:
            raise ValueError(f"batch_sizes must be 1, 2, 4 and so on, at least two of them, but are {self.batch_sizes}")
        if self.batch_sizes[-1] > self.n:
            raise ValueError(f"batch_sizes must be at most n = {self.n}, but are {self.batch_sizes}")


Config = EdgeOfStabilityConfig
# Their figure 1 is the default's size (n, d, s, alpha) = (20, 30, 3, .1); more problems and longer runs are what more time buys.
PAPER = EdgeOfStabilityConfig(draws=64, seeds=16, steps=100_000)
REFERENCES = {
    "even2023": "the gain of gradient descent and SGD, and the edge of stability",
}


@eqx.filter_jit
def _half(lanes: Any, batch: int | None, steps: int) -> Any:
    """Half a run per lane, `(X, y, gamma, key, network)`: the network then, and its loss."""

    def one(X: Array, y: Array, gamma: Array, key: Array, network: Any) -> Any:
        dynamics = GradientDescent(gamma) if batch is None else StochasticGradientDescent(gamma, batch, integral="batch")
        keys = None if batch is None else key
        runs = simulate(dynamics, network, SparseRegression(X, y), keys=keys, steps=steps, record=LAST)
        return runs.networks, runs.final["loss"]

    return jax.vmap(one)(*lanes)


@eqx.filter_jit
def _solve(X: Array, y: Array, log_alpha: Array, offset: Array) -> Any:
    def one(X: Array, y: Array, log_alpha: Array, offset: Array) -> Any:
        found = select(SparseRegression(X, y), log_alpha, offset=offset)
        return found.beta, found.converged

    return jax.vmap(one)(X, y, log_alpha, offset)


def solutions(X: Any, y: Any, log_alpha: Any, offset: Any) -> np.ndarray:
    """Selected solutions of many lanes, (m, n, d), (m, n), (m, d), (m, d) to (m, d); NaN where there is none, or the solver did not find it."""
    usable = np.isfinite(log_alpha).all(axis=1) & np.isfinite(offset).all(axis=1)
    safe = [np.where(usable[:, None], v, fill) for v, fill in ((log_alpha, 0.0), (offset, 0.0))]
    lanes = tuple(jnp.asarray(v, jnp.float64) for v in (X, y, *safe))
    beta, converged = (np.asarray(v) for v in tile_map(lambda tile: _solve(*tile), lanes))
    return np.where((usable & converged)[:, None], beta, np.nan)


def recursion(X: np.ndarray, y: np.ndarray, gamma: np.ndarray, alpha: float, steps: int, rng: Any = None) -> tuple[np.ndarray, ...]:
    """The paper's iteration in its own weights, written out: X (m, n, d), y (m, n), gamma (m,) to beta, gain and offset, each (m, d).

    `u <- u - gamma v g`, `v <- v - gamma u g` with `g = grad_beta 1/(2n) sum r_i^2`, or of one random example with `rng`. The gain is its
    definition, `sum_k q(gamma g_k)`, `q(x) = -1/2 ln((1 - x^2)^2)`, and the offset `sum_k ln|(1 - x)/(1 + x)| + 2 x`, what the steps leave outside the row space.
    """
    m, n, d = X.shape
    u, v = np.full((m, d), np.sqrt(2) * alpha), np.zeros((m, d))
    gain, offset, lane = np.zeros((m, d)), np.zeros((m, d)), np.arange(m)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(steps):
            if rng is None:
                g = np.einsum("mnd,mn->md", X, np.einsum("mnd,md->mn", X, u * v) - y) / n
            else:
                one = rng.integers(0, n, m)
                x = X[lane, one]
                g = x * (np.sum(x * u * v, axis=1) - y[lane, one])[:, None]
            x = gamma[:, None] * g
            gain -= np.log(np.square(1 - np.square(x))) / 2
            offset += np.log(np.abs((1 - x) / (1 + x))) + 2 * x
            u, v = u - v * x, v - u * x
    return u * v, gain, offset


def run(config: EdgeOfStabilityConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions draw, level (of the step size), batch, seed and feature.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        return _run(config, say)


def _run(config: EdgeOfStabilityConfig, say: Callable[[str], None]) -> Any:
    out, key = Columns(), jax.random.key(config.problem_seed)
    problems = [
        SparseRegression.sample(jax.random.fold_in(key, k), n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
        for k in range(config.draws)
    ]
    X, truth = (np.stack([np.asarray(getattr(p, name)) for p in problems]) for name in ("X", "beta_star"))
    levels = np.arange(PER_OCTAVE * config.octaves_up, -PER_OCTAVE * config.octaves_down - 1, -1) / PER_OCTAVE  # from the largest down
    gamma = 2.0 ** levels[None] / np.abs(truth).sum(axis=1, keepdims=True)
    out.add("gamma", ("draw", "level"), gamma, "flow time")
    out.add("truth", ("draw", "feature"), truth, "target / input")
    say(f"gradient descent on {config.draws} problems at {levels.size} step sizes, {config.steps:,} iterations")
    descent = _sweep(config, X, truth, gamma, None)
    store(out, "gd", ("draw", "level"), descent)
    _flat(config, X, truth, descent, out)
    rows = []
    for batch in config.batch_sizes:
        say(f"SGD with batches of {batch}, {config.seeds} seeds of each")
        rows.append(_sweep(config, X, truth, gamma, batch))
    store(out, "sgd", ("batch", "draw", "level", "seed"), {name: np.stack([row[name] for row in rows]) for name in rows[0]})
    say(f"gradient descent on inputs of mean {config.mean:g}")
    shifted, slower = X + config.mean, gamma * 2.0**-config.octaves_uncentred
    store(out, "shifted", ("draw", "level"), _sweep(config, shifted, truth, slower, None))
    for name, inputs in (("start_loss", X), ("shifted_start_loss", shifted)):
        out.add(name, ("draw",), np.square(_targets(inputs, truth)).mean(axis=-1) / 4, "loss")
    out.add("flow_error", ("draw",), _start_error(config, X, truth), "(target / input)^2")
    out.add("shifted_flow_error", ("draw",), _start_error(config, shifted, truth), "(target / input)^2")
    say("the law, by an independent recursion in the paper's weights")
    _law(config, X, truth, gamma, out)
    _first(config, out)
    attrs = attributes({"study": "edge-of-stability", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=key)
    coords = {"draw": np.arange(config.draws), "level": levels, "batch": np.array(config.batch_sizes), "seed": np.arange(config.seeds)}
    return out.dataset(coords | {"law": ["GD", "SGD"]}, attrs | {"study": "edge-of-stability"})


def store(out: Columns, prefix: str, dims: tuple[str, ...], found: dict[str, np.ndarray]) -> None:
    """What `_sweep` found, one variable each."""
    for name, units in (("loss", "loss"), ("error", "(target / input)^2")):
        out.add(f"{prefix}_{name}", dims, found[name], units)
    for name in ("gain", "half_gain"):
        out.add(f"{prefix}_{name}", (*dims, "feature"), found[name], "1")


def _targets(X: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.einsum("...nd,...d->...n", X, truth)


def _log_start(config: EdgeOfStabilityConfig) -> float:
    return float(np.log(config.alpha / np.sqrt(2)))


def _start_error(config: EdgeOfStabilityConfig, X: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of gradient flow, the limit of small step sizes."""
    beta = solutions(X, _targets(X, truth), np.full(truth.shape, _log_start(config)), np.zeros(truth.shape))
    return np.square(beta - truth).sum(axis=-1)


def _sweep(config: EdgeOfStabilityConfig, X: np.ndarray, truth: np.ndarray, gamma: np.ndarray, batch: int | None) -> dict[str, np.ndarray]:
    """Every draw, step size and seed (no seed axis for gradient descent): loss, gain per coordinate at half time and at the end, and the error of
    the solution that the algorithm's own law selects then."""
    shape = gamma.shape if batch is None else (*gamma.shape, config.seeds)
    draw = np.indices(shape)[0].ravel()
    steps = np.broadcast_to(gamma.reshape(gamma.shape + (1,) * (len(shape) - 2)), shape).ravel()
    start = DiagonalNetwork.init(log_alpha=_log_start(config), d=config.d, dtype=jnp.float64)
    network = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (draw.size, *leaf.shape)), start)
    first = seeds(0, draw.size)
    second = jax.vmap(lambda k: jax.random.fold_in(k, SECOND_HALF))(first)
    data = tuple(jnp.asarray(v) for v in (X[draw], _targets(X, truth)[draw], steps))
    found = {}
    for name, keys in (("half_gain", first), ("gain", second)):
        network, loss = tile_map(lambda tile: _half(tile, batch, config.steps // 2), (*data, keys, network))
        found[name] = np.asarray(2 * (start.log_alpha - network.log_alpha))
    loss = np.asarray(loss)
    beta = solutions(X[draw], data[1], np.asarray(network.log_alpha), np.asarray(network.offset))
    found |= {"loss": np.where(np.isfinite(loss), loss, np.inf), "error": np.square(beta - truth[draw]).sum(axis=-1)}
    return {name: value.reshape(*shape, *value.shape[1:]) for name, value in found.items()}


def _flat(config: EdgeOfStabilityConfig, X: np.ndarray, truth: np.ndarray, descent: dict[str, np.ndarray], out: Columns) -> None:
    """Error if gradient descent's gain were spread evenly over the coordinates."""
    count = descent["loss"].shape[1]
    even = np.broadcast_to(descent["gain"].mean(axis=-1, keepdims=True), descent["gain"].shape).reshape(-1, config.d)
    draw = np.repeat(np.arange(config.draws), count)
    beta = solutions(X[draw], _targets(X, truth)[draw], _log_start(config) - even / 2, np.zeros_like(even))
    out.add("flat_error", ("draw", "level"), np.square(beta - truth[draw]).sum(axis=-1).reshape(-1, count), "(target / input)^2")


def _law(config: EdgeOfStabilityConfig, X: np.ndarray, truth: np.ndarray, gamma: np.ndarray, out: Columns) -> None:
    """How far beta is from minimising its potential on its fibre: the part of `arcsinh(beta / 2 alpha^2) - offset` outside the row space, relative."""
    picked = gamma[:, ::LAW_EVERY]
    draw = np.repeat(np.arange(config.draws), picked.shape[1])
    basis = np.stack([np.asarray(row_space(jnp.asarray(x))) for x in X])[draw]
    rows: dict[str, list[np.ndarray]] = {"stationarity": [], "no_offset": [], "no_gain": [], "distance": [], "loss": [], "gain": []}
    for rng in (None, np.random.default_rng(config.problem_seed)):
        beta, gain, offset = recursion(X[draw], _targets(X, truth)[draw], picked.ravel(), config.alpha, config.steps // 2, rng)
        alive = np.isfinite(beta).all(axis=1) & np.isfinite(gain).all(axis=1)
        beta, gain, offset = (np.where(alive[:, None], v, 0.0) for v in (beta, gain, offset))

        def outside(gain: np.ndarray, offset: np.ndarray, beta: np.ndarray = beta, alive: np.ndarray = alive) -> np.ndarray:
            slope = np.asarray(u_from(jnp.asarray(beta), jnp.asarray(_log_start(config) - gain / 2))) - offset
            left = slope - np.einsum("mkd,mk->md", basis, np.einsum("mkd,md->mk", basis, slope))
            return np.where(alive, np.linalg.norm(left, axis=1) / np.maximum(np.linalg.norm(slope, axis=1), 1e-300), np.nan)

        chosen = solutions(X[draw], _targets(X[draw], beta), _log_start(config) - gain / 2, offset)
        rows["stationarity"].append(outside(gain, offset))
        rows["no_offset"].append(outside(gain, 0 * offset))
        rows["no_gain"].append(outside(0 * gain, offset))
        rows["distance"].append(np.linalg.norm(chosen - beta, axis=1) / np.maximum(np.linalg.norm(beta, axis=1), 1e-300))
        loss = np.square(_targets(X[draw], beta - truth[draw])).mean(axis=1) / 4
        rows["loss"].append(np.where(alive, loss, np.inf))
        rows["gain"].append(np.where(alive[:, None], gain, np.nan))
    for name, values in rows.items():
        value = np.stack(values).reshape(2, config.draws, picked.shape[1], *values[0].shape[1:])
        out.add(
            f"law_{name}", ("law", "draw", "law_level", *(("feature",) if name == "gain" else ())), value, "loss" if name == "loss" else "1"
        )


def _first(config: EdgeOfStabilityConfig, out: Columns) -> None:
    """Mean squared gradient at beta = 0 on and off the support of many problems, full batch and one example."""
    rng, n, d, s = np.random.default_rng(config.problem_seed), config.n, config.d, config.sparsity
    X = rng.normal(size=(FIRST_DRAWS, n, d))
    y = np.einsum("mns,ms->mn", X[..., :s], rng.normal(size=(FIRST_DRAWS, s)))  # by symmetry the support may be the first coordinates
    each = X * y[..., None]
    squares = np.square(np.stack([each.mean(axis=1), each[:, 0]]))
    value = np.stack([squares[..., :s].mean(axis=-1), squares[..., s:].mean(axis=-1)], axis=1)
    out.add("first_square", ("law", "part", "first_draw"), value, "(target * input)^2")
