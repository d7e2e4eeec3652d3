"""With label noise that never ends nothing converges, but the time average does: to a Lasso solution whose penalty the noise sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import seeds
from sgfbias.core.descent import StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.noise import LabelNoise
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.trajectory import Status
from sgfbias.diagonal.label_noise_lasso_claims import claims as claims
from sgfbias.diagonal.label_noise_lasso_claims import plot as plot
from sgfbias.diagonal.lasso import label_noise_lasso, lasso
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression

WINDOWS = (1 / 16, 1 / 4, 1.0)  # ends of the averages, as shares of the run
BURN_IN = 0.2  # of each of them left out
FACTORS = (0.5, 1.0, 2.0)  # of the penalty


@dataclasses.dataclass(frozen=True)
class LabelNoiseLassoConfig:
    """Time averages of the flow and of SGD under persistent label noise against the Lasso at several gamma and delta."""

    seeds: int = 16
    """Seeds per run."""
    time: float = 8000.0
    """Flow time of the flows."""
    sgd_time: float = 3000.0
    """Flow time of SGD."""
    flows: tuple[tuple[float, float], ...] = ((0.04, 1.0), (0.04, 0.7), (0.01, 2.0))
    """(gamma, delta) of the flows; delta is added to every derivative of the loss, half of what is added to the label."""
    descents: tuple[tuple[float, float], ...] = ((0.04, 1.0), (0.01, 2.0))
    """(gamma, delta) of SGD, gamma falling at the same gamma delta^2."""
    dt: float = 0.08
    """Flow time per step of the flows."""
    points: int = 10_000
    """Recorded times of a run, evenly spaced."""
    alpha: float = 0.1
    """Scale of the initialisation."""
    n: int = 20
    """Examples."""
    d: int = 40
    """Features."""
    sparsity: int = 3
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the drawn problem."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("time", "sgd_time", "dt", "alpha"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        for name, least in (("seeds", 8), ("points", 320)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        for name, least in (("flows", 2), ("descents", 2)):
            value = getattr(self, name)
            if len(value) < least or not all(len(pair) == 2 and min(pair) > 0 for pair in value):
                raise ValueError(f"{name} must be at least {least} pairs of positive (gamma, delta), but is {value}")
        gammas = [gamma for gamma, _ in self.descents]
        if gammas != sorted(gammas, reverse=True) or len({round(g * delta**2, 9) for g, delta in self.descents}) > 1:
            raise ValueError(f"descents must have falling gamma at one gamma delta^2, but are {self.descents}")
        if self.n >= self.d:
            raise ValueError(f"n must be below d = {self.d}, so that there are interpolators, but is {self.n}")


Config = LabelNoiseLassoConfig
PAPER = LabelNoiseLassoConfig(
    seeds=64, time=60_000.0, sgd_time=40_000.0, n=40, d=100, sparsity=5, flows=((0.02, 1.0), (0.02, 0.7), (0.005, 2.0)), dt=0.04
)
REFERENCES = {
    "pesme2021": "label noise and its effective initialisation",
}


def run(config: LabelNoiseLassoConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per run.

    **Returns:** an `xarray.Dataset` with dimensions run, window, seed, factor, feature and time.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        key = jax.random.key(config.problem_seed)
        problem = SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
        cells = [("flow", gamma, delta, config.dt, config.time) for gamma, delta in config.flows]
        cells += [("SGD", gamma, delta, gamma, config.sgd_time) for gamma, delta in config.descents]
        rows = []
        for k, (kind, gamma, delta, dt, time) in enumerate(cells):
            say(f"{kind}, gamma = {gamma:g}, delta = {delta:g}: {round(time / dt):,} steps, {config.seeds} seeds")
            rows.append(_averages(config, problem, kind, gamma, delta, dt, time, seeds(k * config.seeds, (k + 1) * config.seeds)))
        say("control: the flow without label noise")
        gamma = config.flows[0][0]
        quiet = _averages(config, problem, "flow", gamma, 0.0, config.dt, config.time / 4, seeds(0, config.seeds))
        out = Columns()
        for name, (dims, units) in VARIABLES.items():
            out.add(name, ("run", *dims), np.stack([np.asarray(row[name]) for row in rows]), units)
        out.add("quiet_beta", ("seed", "feature"), quiet["beta"][-1], "target / input")
        out.add("truth", ("feature",), problem.beta_star, "target / input")
        out.add("fourth", ("feature",), jnp.mean(problem.X**4, axis=0), "input^4")
        out.add("h", ("feature",), problem.h, "input^2")
        gram, pull = problem.X.T @ problem.X / problem.n, problem.X.T @ problem.y / problem.n
        out.add("gram", ("feature", "other"), gram, "input^2")
        out.add("pull", ("feature",), pull, "input * target")
        coords = {
            "run": [f"{kind}, gamma {gamma:g}, delta {delta:g}" for kind, gamma, delta, _, _ in cells],
            "discrete": ("run", np.array([kind == "SGD" for kind, *_ in cells])),
            "gamma": ("run", np.array([cell[1] for cell in cells])),
            "delta": ("run", np.array([cell[2] for cell in cells])),
            "window": ("window", np.asarray(WINDOWS), {"units": "share of the run"}),
            "factor": ("factor", np.asarray(FACTORS), {"units": "penalty"}),
            "seed": np.arange(config.seeds),
        }
        attrs = attributes({"study": "label-noise-lasso", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=seeds(0, config.seeds))
        return out.dataset(coords, attrs | {"study": "label-noise-lasso"})


VARIABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "beta": (("window", "seed", "feature"), "target / input"),
    "loss": (("window", "seed"), "loss"),
    "lost": (("seed",), "1"),
    "lasso": (("factor", "feature"), "target / input"),
    "own_lasso": (("window", "feature"), "target / input"),
    "sample_lasso": (("feature",), "target / input"),
    "sample_h": (("feature",), "input^2 loss"),
    "predicted_lasso": (("feature",), "target / input"),
    "predicted_loss": ((), "loss"),
    "gap": ((), "1"),
    "path": (("time", "feature"), "target / input"),
    "running": (("time", "feature"), "target / input"),
}


def _averages(
    config: Config, problem: SparseRegression, kind: str, gamma: float, delta: float, dt: float, time: float, keys: Array
) -> dict[str, np.ndarray]:
    """Averages over time of each window, the Lasso solutions at the mean penalty, and the iterate and running average of one seed."""
    network = DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64)
    dynamics: Any = StochasticGradientFlow(gamma, LabelNoise(delta), dt=dt)
    if kind == "SGD":
        dynamics = StochasticGradientDescent(gamma, label_noise=delta, integral="batch")
    every = max(round(time / dt / config.points), 1)
    count = round(time / dt / every)
    times = np.arange(count + 1) * every * dt
    runs = simulate(dynamics, network, problem, keys=keys, steps=count * every, record=Record(["beta"], times))
    path, integral = np.asarray(runs["beta"]), np.asarray(runs["loss_integral"])
    ends = [max(round(share * count), 5) for share in WINDOWS]
    starts = [round(BURN_IN * end) for end in ends]
    beta = np.stack([path[:, a:b].mean(axis=1) for a, b in zip(starts, ends, strict=True)])
    loss = np.stack([(integral[:, b] - integral[:, a]) / (times[b] - times[a]) for a, b in zip(starts, ends, strict=True)])
    values: dict[str, Any] = {"beta": beta, "loss": loss, "lost": runs.status == Status.NON_FINITE}
    if delta == 0:
        return values
    X, h = np.asarray(problem.X), np.asarray(problem.h)
    penalty = gamma * (delta**2 + loss.mean(axis=1))
    solved = [lasso(problem, factor * penalty[-1] * h) for factor in FACTORS]
    squares = np.mean([np.mean((row @ X.T - np.asarray(problem.y)) ** 2, axis=0) for row in path[:, starts[-1] : ends[-1]]], axis=0)
    # SGD's own noise: example j's squared residual weighs x_ji^2, not their means one another.
    sample_h = delta**2 * h + np.mean(np.square(X) * squares[:, None], axis=0) / 4
    predicted, predicted_loss = label_noise_lasso(problem, gamma, delta, dt=dt)
    shown = np.linspace(0, count - 1, 400).astype(int)
    running = np.cumsum(path[0], axis=0) / np.arange(1, count + 2)[:, None]
    return values | {
        "lasso": np.stack([s.beta for s in solved]),
        "own_lasso": np.stack([lasso(problem, p * h).beta for p in penalty]),
        "sample_lasso": lasso(problem, gamma * sample_h).beta,
        "sample_h": sample_h,
        "predicted_lasso": predicted.beta,
        "predicted_loss": np.asarray(predicted_loss),
        "gap": np.asarray(max(s.gap for s in (*solved, predicted))),
        "path": path[0, shown],
        "running": running[shown],
    }
