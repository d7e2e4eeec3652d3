"""One problem under every noise model: is it the noise's scale, its shape or its support that matters?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import seeds
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.noise import AbstractNoise, IsotropicNoise, LabelNoise, MeanLossNoise, MinibatchNoise, NoNoise, PerSampleNoise
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.trajectory import Status
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.noise_anatomy_claims import LABELS
from sgfbias.diagonal.noise_anatomy_claims import claims as claims
from sgfbias.diagonal.noise_anatomy_claims import plot as plot
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select_many

WIDTHS = (1.0, 0.25, 0.0625)
LONG = Record(times=120)


@dataclasses.dataclass(frozen=True)
class NoiseAnatomyConfig:
    """One problem under every noise model: which keep the bias theorem, which break it, effective alpha and validation error."""

    seeds: int = 256
    """Seeds per noise model."""
    steps: int = 10_000
    """Iterations of the long runs, in mirror coordinates."""
    step_size: float = 0.05
    """gamma."""
    alpha: float = 0.1
    """Scale of the initialisation."""
    n: int = 20
    """Examples."""
    d: int = 50
    """Features."""
    sparsity: int = 3
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the drawn problem."""
    delta: float = 0.3
    """Label noise, added to every derivative of the loss (half of what is added to the label)."""
    delta_steps: int = 500
    """Iterations for which it is on."""
    isotropic: float = 0.5
    """sigma of the isotropic noise."""
    weights_seeds: int = 64
    """Seeds of the test in weights coordinates."""
    weights_steps: int = 300
    """Its length, in iterations."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("step_size", "alpha", "isotropic", "delta"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        for name in ("steps", "delta_steps", "weights_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        for name in ("seeds", "weights_seeds"):
            if getattr(self, name) < 8:
                raise ValueError(f"{name} must be at least 8, but is {getattr(self, name)}")
        if self.n < 5:
            raise ValueError(f"n must be at least 5 for batches of 4, but is {self.n}")


Config = NoiseAnatomyConfig
REFERENCES = {
    "pesme2021": "the noise models and Theorem 1",
    "sander2024": "isotropic noise, the negative control",
    "li2017": "the stochastic modified equation of SGD",
}


def models(config: NoiseAnatomyConfig) -> dict[str, AbstractNoise]:
    """The noise models by name."""
    delta = _Pulse(config.delta, config.delta_steps)
    return {
        "none": NoNoise(),
        "mean-loss": MeanLossNoise(),
        "per-sample": PerSampleNoise(),
        "minibatch": MinibatchNoise(1),
        "minibatch-4": MinibatchNoise(4, replace=False),
        "label": LabelNoise(delta),
        "sum": MinibatchNoise(1) + LabelNoise(delta, mean_loss=False),
        "isotropic": MeanLossNoise() + IsotropicNoise(config.isotropic),
    }


@dataclasses.dataclass(frozen=True)
class _Pulse:
    """A schedule: a level, and 0 from some iteration on."""

    level: float
    until: int

    def __call__(self, iteration: Any) -> Any:
        return jnp.where(iteration < self.until, self.level, 0.0)


def run(config: NoiseAnatomyConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions noise, seed, time, feature, dt and weights_seed.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        key = jax.random.key(config.problem_seed)
        problem = SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
        network = DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64)
        noises = models(config)
        rows = []
        for name, noise in noises.items():
            say(f"{LABELS[name]}: {config.weights_seeds} seeds in weights, {config.seeds} seeds x {config.steps:,} iterations in mirror")
            rows.append({**_theorem(config, problem, network, noise), **_long(config, problem, network, noise)})
        out = Columns()
        dims = {
            "gap": (("dt", "weights_seed"), "relative distance"),
            "weights_shrinkage": (("weights_seed",), "log weight"),
            "law_shrinkage": (("weights_seed",), "log weight"),
            "status": (("seed",), "1"),
            "log_alpha": (("seed", "feature"), "log weight"),
            "landed_error": (("seed",), "(target / input)^2"),
            "fibre_gap": (("seed",), "relative distance"),
            "validation_error": (("seed", "time"), "(target / input)^2"),
        }
        for name, (rest, units) in dims.items():
            out.add(name, ("noise", *rest), np.stack([np.asarray(row[name]) for row in rows]), units)
        coords = {
            "noise": list(noises),
            "dt": ("dt", np.asarray(WIDTHS), {"units": "gamma"}),
            "time": ("time", np.asarray(rows[0]["times"]), {"units": "flow time"}),
            "seed": np.arange(config.seeds),
        }
        attrs = attributes({"study": "noise-anatomy", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=seeds(0, config.seeds))
        return out.dataset(coords, attrs | {"study": "noise-anatomy", "log_alpha_start": repr(float(np.log(config.alpha)))})


def _theorem(config: NoiseAnatomyConfig, problem: SparseRegression, network: DiagonalNetwork, noise: AbstractNoise) -> dict[str, Any]:
    """Theorem 1 at finite time where it can fail, Euler in the weights at three widths on one path; and the law of log alpha."""
    keys, gamma, gaps = seeds(0, config.weights_seeds), config.step_size, []
    for width in WIDTHS:
        fine = round(1 / width)
        flow = StochasticGradientFlow(gamma, noise, dt=gamma * width, brownian_dt=gamma * WIDTHS[-1])
        steps, record = config.weights_steps * fine, Record(times=2)
        runs = simulate(flow, network, problem, keys=keys, steps=steps, coordinates="weights", record=record)
        bad = runs.status == Status.NON_FINITE
        beta, log_alpha = (jnp.where(bad[:, None], s, runs.final[k]) for k, s in (("beta", 0.0), ("log_alpha", network.log_alpha)))
        predicted = select_many(problem, log_alpha, targets=beta @ problem.X.T).beta
        distance = jnp.linalg.norm(beta - predicted, axis=1) / jnp.linalg.norm(beta, axis=1)
        gaps.append(np.where(bad, np.nan, distance))
    mirror = simulate(flow, network, problem, keys=keys, steps=steps, record=LONG)

    def shrinkage(values: Array) -> np.ndarray:
        return np.asarray(jnp.mean(network.log_alpha - values, axis=1))

    return {
        "gap": np.stack(gaps),
        "weights_shrinkage": np.where(bad, np.nan, shrinkage(runs.final["log_alpha"])),
        "law_shrinkage": shrinkage(mirror.final["log_alpha"]),
    }


def _long(config: NoiseAnatomyConfig, problem: SparseRegression, network: DiagonalNetwork, noise: AbstractNoise) -> dict[str, Any]:
    """Effective alpha, the solution it selects, and whether the iterate is the minimiser on its fibre."""
    # Widths as in the other runs, so that the compiled program is theirs.
    flow = StochasticGradientFlow(config.step_size, noise, dt=config.step_size, brownian_dt=config.step_size)
    runs = simulate(flow, network, problem, keys=seeds(0, config.seeds), steps=config.steps, record=LONG)
    bad = runs.status == Status.NON_FINITE
    beta = jnp.where(bad[:, None], 0.0, runs.final["beta"])
    log_alpha = jnp.where(bad[:, None], network.log_alpha, runs.final["log_alpha"])
    landed = select_many(problem, log_alpha).beta
    fibre = select_many(problem, log_alpha, targets=beta @ problem.X.T).beta
    gap = jnp.linalg.norm(beta - fibre, axis=1) / jnp.linalg.norm(beta, axis=1)
    return {
        "status": runs.status,
        "log_alpha": jnp.where(bad[:, None], jnp.nan, log_alpha),
        "landed_error": jnp.where(bad, jnp.nan, jax.vmap(problem.validation_error)(landed)),
        "fibre_gap": jnp.where(bad, jnp.nan, gap),
        "validation_error": runs["validation_error"],
        "times": runs.times,
    }
